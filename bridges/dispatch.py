"""The life of one call: wait at the gate, be admitted in an epoch, be recorded, be asked of the authority, be counted.

The rules that hold here and nowhere else
    * a call goes to the authority of the moment it was admitted, once; nothing is ever sent again
    * a write is recorded before it is dispatched, and its result before the answer leaves
    * a write never reaches a candidate
    * while the gate is held new calls wait, bounded in number and time; those admitted finish in their epoch
    * admitted = answered + in flight + in doubt + abandoned, at every reading
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar

from bridges import routing
from bridges.calls import Door, Side
from bridges.cutover import Stage
from bridges.durable import NotDurable
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Effect, Method
from bridges.journal import Entry, Found, Journal
from bridges.state import Standing

LOG: Final = logging.getLogger("bridges.dispatch")

# Far above what a toolstack has in flight, far below the bus's own limit of 50000 pending replies: full means Busy.
IN_FLIGHT_LIMIT: Final = 4096
HELD_LIMIT: Final = 4096
# Longer than any flip takes: a take-over of the tree gives up after 5 s, a start or Assume after 10 s.
HOLD_SECONDS: Final = 30.0
ANSWERED: Final = "answered"
_UNKNOWN_SECONDS: Final = 300.0

T = TypeVar("T")


class Arrival(NamedTuple):
    """What is known of a call when it stands at a door, before it is read.

    `deadline` is on time.monotonic's clock; None marks a long poll, which a drain may end. `request` is what the
    door's protocol calls the request, empty where it has no name for it.
    """

    door: Door
    name: str
    effect: Effect
    deadline: float | None
    request: str = ""


def deadline_of(method: Method) -> float | None:
    """When a call of a method that comes now must be answered, on time.monotonic's clock; None: a long poll."""
    return None if method.deadline is None else time.monotonic() + method.deadline


def arrival(door: Door, method: Method | None, name: str = "", request: str = "") -> Arrival:
    """A call of a method as of now; what is not written down may change something, so it counts as a write."""
    if method is None:
        return Arrival(door, name, Effect.WRITE, time.monotonic() + _UNKNOWN_SECONDS, request)
    return Arrival(door, method.name, method.effect, deadline_of(method), request)


@dataclass(slots=True)
class Counters:
    """What happened to the calls of one service since the bridge started.

    `last_use` is when a call came to each door, on time.monotonic's clock.
    """

    admitted: int = 0
    answered: int = 0
    in_doubt: int = 0
    abandoned: int = 0
    refused: int = 0
    by_door: Counter[str] = field(default_factory=Counter)
    by_side: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    last_use: dict[str, float] = field(default_factory=dict)


class Dispatch:
    """All calls of one service, whichever door they came by."""

    def __init__(self, service: str, journal: Journal) -> None:
        self.service = service
        self.standing = Standing(Stage.OFF, 0)
        self.counters = Counters()
        self._journal = journal
        # Admitted calls; with the task that waits when the call is a long poll, which a drain may end.
        self._in_flight: dict[object, asyncio.Task[object] | None] = {}
        self._ended: set[object] = set()
        self._held = 0
        self._gate: asyncio.Event | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def status(self) -> dict[str, object]:
        """The counters, JSON-ready. admitted = answered + in_flight + in_doubt + abandoned."""
        counters = self.counters
        return {
            "calls": {
                "admitted": counters.admitted,
                "answered": counters.answered,
                "in_flight": self.in_flight,
                "in_doubt": counters.in_doubt,
                "abandoned": counters.abandoned,
                "held": self._held,
                "refused": counters.refused,
            },
            "by_door": {str(door): count for door, count in counters.by_door.items()},
            "by_side": {str(side): count for side, count in counters.by_side.items()},
            "faults": {str(kind): count for kind, count in counters.faults.items()},
        }

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def is_held(self) -> bool:
        return self._gate is not None

    @property
    def adds_up(self) -> bool:
        """Whether every call that was admitted is accounted for."""
        counters = self.counters
        done = counters.answered + counters.in_doubt + counters.abandoned
        return counters.admitted == done + len(self._in_flight)

    async def recorded(self, request: str) -> Found | None:
        """What is known of a write of that request from before a crash."""
        return await self._journal.find(self.service, request)

    def goes_to_candidate(self, method: Method) -> bool:
        """Whether a candidate is asked this as well. The one place that decides it: a write never reaches one."""
        return routing.asks_candidate(self.standing.stage, method.effect, method.deadline)

    def hold(self) -> None:
        """Closes the gate: calls that come from now on wait."""
        if self._gate is None:
            self._gate = asyncio.Event()

    def resume(self) -> None:
        """Opens the gate: held calls go on, to whoever is the authority now."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    async def drain(self, timeout: float) -> bool:
        """Waits until every admitted call has its answer; long polls are ended, for they change nothing.

        False when calls were still in flight after `timeout` seconds.
        """
        for ticket, waiting in self._in_flight.items():
            if waiting is not None:
                self._ended.add(ticket)
                waiting.cancel()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(
        self,
        arrived: Arrival,
        work: Callable[[Side], Awaitable[T]],
        keep: Callable[[T | Fault], bytes | None] | None = None,
    ) -> T:
        """Admits a call and asks the authority by `work(side)`. Raises Fault; any other exception is a defect of ours.

        `keep` gives what is recorded of a write's answer, for a caller who can still be answered after a crash; None
        where nothing of it may be recorded.
        """
        if self._gate is not None:
            await self._wait_at(self._gate, arrived.deadline)
        self.counters.last_use[arrived.door] = time.monotonic()
        try:
            side = routing.side_of(self.service, self.standing.stage, arrived.door)
        except Fault as fault:
            self._count_refusal(fault.kind)
            raise
        ticket = self._admit(arrived)
        try:
            if routing.is_journalled(arrived.effect, arrived.deadline):
                answer = await self._recorded(arrived, side, work, keep)
            else:
                answer = await work(side)
        except Fault as fault:
            self._count_fault(fault.kind)
            raise
        except asyncio.CancelledError:
            if ticket not in self._ended:
                self.counters.abandoned += 1
                raise
            self._take_cancellation_back()
            self._count_fault(Kind.UNAVAILABLE)
            raise Fault(Kind.UNAVAILABLE, f"{self.service} is being moved: the wait was ended, ask again") from None
        except BaseException:
            self._count_fault(Kind.INTERNAL)
            raise
        finally:
            self._in_flight.pop(ticket)
            self._ended.discard(ticket)
            if not self._in_flight:
                self._idle.set()
        self.counters.answered += 1
        self.counters.by_side[side] += 1
        return answer

    async def _recorded(
        self,
        arrived: Arrival,
        side: Side,
        work: Callable[[Side], Awaitable[T]],
        keep: Callable[[T | Fault], bytes | None] | None,
    ) -> T:
        """A write: recorded, asked once, its result recorded.

        A write that cannot be recorded is not made; one that was made is answered, recorded or not.
        """
        stage, epoch = self.standing.stage, self.standing.epoch
        entry = Entry(self.service, arrived.name, arrived.door, arrived.request, epoch, stage, side)
        try:
            number = await self._journal.begin(entry)
        except NotDurable as error:
            raise Fault(Kind.UNAVAILABLE, f"{arrived.name} cannot be recorded, so it was not made: {error}") from None
        try:
            answer = await work(side)
        except Fault as fault:
            failure: T | Fault = fault
            await self._record(number, str(fault.kind), None if keep is None else partial(keep, failure))
            raise
        except BaseException:  # cancelled while it was asked, or a defect
            await self._record(number, str(Kind.IN_DOUBT))
            raise
        await self._record(number, ANSWERED, None if keep is None else partial(keep, answer))
        return answer

    async def _record(self, number: int, outcome: str, keep: Callable[[], bytes | None] | None = None) -> None:
        kept = None
        if keep is not None:
            with suppress(Fault):  # an answer that cannot be said; the door will find that too
                kept = keep()
        try:
            await self._journal.end(number, outcome, kept)
        except NotDurable as error:
            LOG.error("%s: the result of call %d (%s) is not recorded: %s", self.service, number, outcome, error)

    def _admit(self, arrived: Arrival) -> object:
        if len(self._in_flight) >= IN_FLIGHT_LIMIT:
            self._refuse(f"{IN_FLIGHT_LIMIT} calls of {self.service} are in flight")
        ticket = object()
        self._in_flight[ticket] = asyncio.current_task() if arrived.deadline is None else None
        self._idle.clear()
        self.counters.admitted += 1
        self.counters.by_door[arrived.door] += 1
        return ticket

    def _count_refusal(self, kind: Kind) -> None:
        """A call that was never admitted."""
        self.counters.refused += 1
        self.counters.faults[kind] += 1

    def _count_fault(self, kind: Kind) -> None:
        self.counters.faults[kind] += 1
        if kind is Kind.IN_DOUBT:
            self.counters.in_doubt += 1
        else:
            self.counters.answered += 1

    @staticmethod
    def _take_cancellation_back() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()

    async def _wait_at(self, gate: asyncio.Event, deadline: float | None) -> None:
        if self._held >= HELD_LIMIT:
            self._refuse(f"{self.service} is being moved and {HELD_LIMIT} calls wait already")
        patience = HOLD_SECONDS if deadline is None else min(HOLD_SECONDS, deadline - time.monotonic())
        self._held += 1
        try:
            async with asyncio.timeout(patience):
                while True:
                    await gate.wait()
                    if self._gate is None:
                        return
                    gate = self._gate
        except TimeoutError:
            self._refuse(f"{self.service} is being moved; the call waited {patience:.1f} s and was not executed")
        finally:
            self._held -= 1

    def _refuse(self, why: str) -> None:
        self.counters.refused += 1
        raise Fault(Kind.BUSY, why)
