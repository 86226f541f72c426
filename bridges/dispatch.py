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

# Far above what a host's toolstack has in flight, far below the bus's own limits (50000 pending replies): full means Busy.
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
        self._in_flight: set[object] = set()
        self._long_polls: dict[object, asyncio.Task[object]] = {}
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
            "by_door": dict(counters.by_door),
            "by_side": dict(counters.by_side),
            "faults": dict(counters.faults),
        }

    @property
    def in_flight(self) -> int:
        return len(self._in_flight) + len(self._long_polls)

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
        for ticket, task in self._long_polls.items():
            self._ended.add(ticket)
            task.cancel()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self, door: Door, deadline: float | None, work: Callable[[Side], Awaitable[T]]) -> T:
        """Admits a call and asks the authority by `work(side)`. Raises Fault; every other exception is a defect of ours.

        `deadline` is on time.monotonic's clock; None marks a long poll, which a drain may end.
        """
        if self._gate is not None:
            await self._wait_at(self._gate, deadline)
        if self.in_flight >= IN_FLIGHT_LIMIT:
            self._refuse(f"{IN_FLIGHT_LIMIT} calls of {self.service} are in flight")
        side = self.authority
        counters = self.counters
        counters.admitted += 1
        counters.by_door[door] += 1
        ticket = object()
        self._idle.clear()
        if deadline is None:
            task = asyncio.current_task()
            assert task is not None
            self._long_polls[ticket] = task
        else:
            self._in_flight.add(ticket)
        try:
            answer = await work(side)
        except Fault as fault:
            counters.faults[fault.kind] += 1
            if fault.kind is Kind.IN_DOUBT:
                counters.in_doubt += 1
            else:
                counters.answered += 1
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if ticket in self._ended and task is not None and task.uncancel() == 0:
                counters.faults[Kind.UNAVAILABLE] += 1
                counters.answered += 1
                raise Fault(Kind.UNAVAILABLE, f"{self.service} is being moved: the wait was ended, ask again") from None
            counters.abandoned += 1
            raise
        except BaseException:
            counters.faults[Kind.INTERNAL] += 1
            counters.answered += 1
            raise
        else:
            counters.answered += 1
            counters.by_side[side] += 1
            return answer
        finally:
            self._in_flight.discard(ticket)
            self._long_polls.pop(ticket, None)
            self._ended.discard(ticket)
            if not self._in_flight and not self._long_polls:
                self._idle.set()

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
