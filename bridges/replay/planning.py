"""Which recorded call is sent when, and after which others; with what handles, is said by `bindings`.

A call waits for those before it, on the same connection or about the same handle, that were over when it came: what the
recording shows one after the other is sent one after the other, and what overlapped may overlap again. So a long poll
holds up nobody whom it did not hold up then. It also waits for the write that gave a handle which it takes, whatever
the clocks said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from bridges.capture import typed
from bridges.faults import Fault
from bridges.interfaces.model import Effect, Method, Service
from bridges.replay.bindings import Key, Places
from bridges.replay.pairs import Exchange, NotRecorded, answer_of
from bridges.replay.results import Spread
from bridges.replay.tallies import Line
from bridges.xmlrpc_values import Mismatch

# Why calls are left out that nobody meant to send.
LONG_POLL: Final = "long poll"
OTHER_SERVICE: Final = "another service"
WRITE: Final = "--allow-writes was not given"
NOT_MEANT: Final = frozenset({LONG_POLL, OTHER_SERVICE, WRITE})
NO_SANDBOX: Final = "the target no longer says that it is a sandbox"

_NEVER: Final = 1 << 63  # nanoseconds: the end of a call of which no end is known
_LATENESS: Final = 10_000  # microseconds at the 99th percentile that a run may always have
_SHARE: Final = 0.05  # of the service time


class Schedule:
    """When calls are due: as they came, by `mono` within a boot, else by `ts`."""

    def __init__(self) -> None:
        self._line = Line()

    def due(self, exchange: Exchange) -> float:
        """Seconds from the first request. To be asked for in the order of requests."""
        return self._line.at(exchange.request, exchange.boot) / 1e9


class _Open(NamedTuple):
    """A call that is not over, at a key: its seq, when it came and was over in the recording (nanoseconds).

    `waits`: it waited itself for those that were at this key. `gives`: it is a write that gave the handle.
    """

    seq: int
    began: int
    ended: int
    waits: bool
    gives: bool


class Order:
    """What calls wait for. Kept is what is not over, and of that only what a later call may have to wait for itself."""

    def __init__(self) -> None:
        self._line = Line()
        self._places = Places()
        self._open: dict[Key, list[_Open]] = {}
        self._keys: dict[int, set[Key]] = {}

    def waits(self, exchange: Exchange, method: Method, service: Service) -> tuple[int, ...]:
        """The seqs of the calls that must be over before this one is sent.

        To be asked once for each call that may be sent, in the order of requests. `over` must follow for each of them.
        """
        request, reply = exchange.request, exchange.reply
        began = self._line.at(request, exchange.boot)
        taken = set(self._taken(exchange, method, service))
        if request.conn:
            taken.add((request.service, f"connection at {request.door}", request.conn))
        given = set(self._given(exchange, method, service))
        found = {seq: None for key in taken for seq in self._before(key, began)}
        ended = _NEVER if reply is None else began + reply.us * 1000
        is_write = method.effect is Effect.WRITE
        self._keys[request.seq] = taken | given
        for key in taken | given:
            call = _Open(request.seq, began, ended, waits=key in taken, gives=is_write and key in given)
            self._open.setdefault(key, []).append(call)
        return tuple(found)

    def over(self, seq: int) -> None:
        """A call was answered, or will never be sent. Not before all that it waited for is over."""
        for key in self._keys.pop(seq, ()):
            left = [each for each in self._open.get(key, ()) if each.seq != seq]
            if left:
                self._open[key] = left
            else:
                self._open.pop(key, None)

    def _before(self, key: Key, began: int) -> Iterator[int]:
        """The calls of a key that were over by then; those for which one of them waits itself are forgotten."""
        calls = self._open.get(key)
        if not calls:
            return
        before = [each for each in calls if each.ended <= began or each.gives]
        _, last = max(((each.began, number) for number, each in enumerate(before) if each.waits), default=(0, 0))
        covered = {each.seq for each in before[:last] if each.ended <= before[last].began}
        if covered:
            self._open[key] = [each for each in calls if each.seq not in covered]
        yield from (each.seq for each in before if each.seq not in covered)

    def _taken(self, exchange: Exchange, method: Method, service: Service) -> Iterator[Key]:
        try:
            arguments = typed.read_arguments(method, exchange.request.arguments or {})
        except Mismatch:
            return  # it will not be sent
        yield from self._places.taken(method, service, arguments)

    def _given(self, exchange: Exchange, method: Method, service: Service) -> Iterator[Key]:
        if not method.produces:
            return
        try:
            answer = answer_of(method, exchange.reply)
        except NotRecorded:
            return
        if not isinstance(answer, Fault):
            yield from self._places.given(method, service, answer)


def is_late(lateness: Spread, service: Spread) -> bool:
    """Whether a run did not keep its schedule: how late calls were sent, against how long they took to be answered."""
    return lateness.p99 > max(_LATENESS, service.p50 * _SHARE)
