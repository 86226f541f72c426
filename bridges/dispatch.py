"""The life of one call: wait at the gate, be admitted in an epoch, be asked of the authority, be counted.

The rules that hold here and nowhere else
    * a call goes to the authority of the moment it was admitted, once; nothing is ever sent again
    * while the gate is held new calls wait, bounded in number and time; those admitted finish in their epoch
    * admitted = answered + in flight + in doubt + abandoned, at every reading
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from bridges.calls import Door, Side
from bridges.faults import Fault, Kind

LOG: Final = logging.getLogger("bridges.dispatch")

# Far above what a toolstack has in flight, far below the bus's own limit of 50000 pending replies: full means Busy.
IN_FLIGHT_LIMIT: Final = 4096
HELD_LIMIT: Final = 4096
# Longer than any flip takes: a take-over of the tree gives up after 5 s, a start or Assume after 10 s.
HOLD_SECONDS: Final = 30.0

T = TypeVar("T")


@dataclass(slots=True)
class Counters:
    """What happened to the calls of one service since the bridge started."""

    admitted: int = 0
    answered: int = 0
    in_doubt: int = 0
    abandoned: int = 0
    refused: int = 0
    by_door: Counter[str] = field(default_factory=Counter)
    by_side: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


class Dispatch:
    """All calls of one service, whichever door they came by."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.authority = Side.LEGACY
        self.counters = Counters()
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

    async def run(self, door: Door, deadline: float | None, work: Callable[[Side], Awaitable[T]]) -> T:
        """Admits a call and asks the authority by `work(side)`. Raises Fault; any other exception is a defect of ours.

        `deadline` is on time.monotonic's clock; None marks a long poll, which a drain may end.
        """
        if self._gate is not None:
            await self._wait_at(self._gate, deadline)
        side = self.authority
        ticket = self._admit(door, is_long_poll=deadline is None)
        try:
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

    def _admit(self, door: Door, *, is_long_poll: bool) -> object:
        if len(self._in_flight) >= IN_FLIGHT_LIMIT:
            self._refuse(f"{IN_FLIGHT_LIMIT} calls of {self.service} are in flight")
        ticket = object()
        self._in_flight[ticket] = asyncio.current_task() if is_long_poll else None
        self._idle.clear()
        self.counters.admitted += 1
        self.counters.by_door[door] += 1
        return ticket

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
