"""Requests and replies of a capture, joined while it streams by, and what was answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from bridges.capture import typed
from bridges.capture.records import ANSWERED, CLOSED, MISSED, Complete, Header, Leg, Lost, Record, Reply, Request
from bridges.comparison import Outcome
from bridges.faults import Kind
from bridges.interfaces.model import Method
from bridges.xmlrpc_values import Mismatch

if TYPE_CHECKING:
    from bridges.capture.store import Place

WINDOW: Final = 65536  # requests
LEGS: Final = frozenset({Leg.CALLER, Leg.OBSERVED})  # a call as its caller saw it; the other legs repeat it
FOR_THE_LOG: Final = frozenset({"debug_info", "dbg"})  # parameters: a text for the log of the daemon, and no more
_SHOWN: Final = 20  # places of one kind of trouble

# The bridge's own excuses: the daemon was not asked, or nobody knows what it answered.
_NO_ANSWERS: Final = frozenset(
    {Kind.UNAVAILABLE, Kind.BUSY, Kind.TIMED_OUT, Kind.IN_DOUBT, Kind.RETIRED, Kind.INTERNAL}
)


class Exchange(NamedTuple):
    """A call and its answer (None: there is none, or it came later than anybody waits for it).

    `place` is that of the request, `boot` the boot in which it came, as its segment's header names it.
    """

    request: Request
    reply: Reply | None
    place: Place
    boot: str = ""


class Troubles:
    """What did not fit together: how often, and where it did first."""

    def __init__(self) -> None:
        self.half = 0  # requests without a reply
        self.strays = 0  # replies without a request
        self.missed = 0  # records that the capture lost while calls were made
        self.unseen = False  # whether calls may have passed that nobody saw
        self.repeated = 0  # records with the `seq` of an earlier one, and second replies
        self._shown: dict[str, list[str]] = {}

    def note(self, what: str, place: Place) -> None:
        shown = self._shown.setdefault(what, [])
        if len(shown) < _SHOWN:
            shown.append(str(place))

    @property
    def first_stray(self) -> str:
        """The place of the first reply without a request; empty when there is none."""
        return next(iter(self._shown.get(_STRAY, ())), "")

    @property
    def first_repeated(self) -> str:
        """The place of the first record that repeats another one; empty when there is none."""
        return next(iter(self._shown.get(_REPEATED, ())), "")

    def sentences(self) -> list[str]:
        """One for each kind of trouble that there was, with the first places."""
        counts = {_HALF: self.half, _STRAY: self.strays, _REPEATED: self.repeated}
        return [
            f"{count} {what}: {', '.join(self._shown[what])}{', ...' if count > _SHOWN else ''}"
            for what, count in counts.items()
            if count
        ]


_HALF: Final = "requests have no reply"
_STRAY: Final = "replies have no request"
REPEATED: Final = "the same seq, or another answer to the same call"
_REPEATED: Final = f"records repeat an earlier one ({REPEATED}) and were left out"


class Selection(NamedTuple):
    """Which calls of a capture are meant; an empty list means all. `methods` are patterns such as `VM.*`."""

    services: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()

    def takes(self, request: Request) -> bool:
        name = request.method or request.name
        return (
            (not self.services or request.service in self.services)
            and (not self.methods or any(fnmatchcase(name, pattern) for pattern in self.methods))
            and (not self.doors or request.door in self.doors)
        )


def join(
    found: Iterable[tuple[Place, Record]], *, window: int = WINDOW, troubles: Troubles | None = None
) -> Iterator[Exchange]:
    """The calls of a capture in the order of their requests, each with its reply.

    A request without one is given alone after `window` more requests; its reply, should it come, has no request then.
    """
    joiner = _Joiner(window, Troubles() if troubles is None else troubles)
    for place, record in found:
        yield from joiner.take(place, record)
    yield from joiner.rest()


class _Joiner:
    def __init__(self, window: int, troubles: Troubles) -> None:
        self._window = window
        self._troubles = troubles
        self._boot = ""
        self._open: OrderedDict[int, Exchange] = OrderedDict()  # from the first request on that has no reply
        self._given: OrderedDict[int, bool] = OrderedDict()  # the last that were given: whether with a reply

    def take(self, place: Place, record: Record) -> Iterator[Exchange]:
        match record:
            case Header():
                self._boot = record.boot
                return
            case Lost():
                self._troubles.missed += record.n if record.why in MISSED else 0
                self._troubles.unseen |= record.n == 0
                return
            case Request() if record.leg in LEGS:
                self._ask(place, record)
            case Reply() if record.leg in LEGS:
                self._answer(place, record)
            case _:
                return
        while self._open and (len(self._open) > self._window or next(iter(self._open.values())).reply is not None):
            yield self._give()

    def rest(self) -> Iterator[Exchange]:
        while self._open:
            yield self._give()

    def _ask(self, place: Place, request: Request) -> None:
        if request.seq in self._open or request.seq in self._given:
            self._repeat(place)
        else:
            self._open[request.seq] = Exchange(request, None, place, self._boot)

    def _answer(self, place: Place, reply: Reply) -> None:
        exchange = self._open.get(reply.re)
        if exchange is None:
            if self._given.get(reply.re):
                self._repeat(place)
            else:
                self._troubles.strays += 1
                self._troubles.note(_STRAY, place)
        elif exchange.reply is not None:
            self._repeat(place)
        else:
            self._open[reply.re] = exchange._replace(reply=reply)

    def _repeat(self, place: Place) -> None:
        self._troubles.repeated += 1
        self._troubles.note(_REPEATED, place)

    def _give(self) -> Exchange:
        seq, exchange = self._open.popitem(last=False)
        self._given[seq] = exchange.reply is not None
        if len(self._given) > self._window:
            self._given.popitem(last=False)
        if exchange.reply is None:
            self._troubles.half += 1
            self._troubles.note(_HALF, exchange.place)
        return exchange


class NotRecorded(Exception):
    """There is no answer of the service in the capture; the text says why."""


def answer_of(method: Method, reply: Reply | None) -> Outcome:
    """What the service answered. Raises NotRecorded, also for what does not fit the interface."""
    if reply is None:
        raise NotRecorded("no answer was recorded")
    if reply.complete is not Complete.COMPLETE:
        raise NotRecorded(f"the recorded answer is not complete: {reply.note or reply.complete}")
    try:
        if reply.outcome == ANSWERED:
            return typed.read(method.result, reply.result)
        if reply.fault is not None:
            fault = typed.read_fault(method, reply.fault)
            if fault.kind in _NO_ANSWERS:
                raise NotRecorded(f"the service did not answer when it was recorded: {fault.kind}")
            return fault
    except Mismatch as mismatch:
        raise NotRecorded(f"the recorded answer does not fit the interface: {mismatch.place}") from None
    if reply.outcome == CLOSED:
        raise NotRecorded("the connection was closed without an answer when it was recorded")
    raise NotRecorded(f"the recorded answer was not read: {reply.note or reply.outcome}")
