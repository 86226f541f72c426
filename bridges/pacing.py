"""Work beside the calls: in slices that take their share of the time and no more, and in threads that get theirs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SLICE_SECONDS: Final = 0.0005
# How long a thread may wait for a loop without rest, and for how long that then rests; of the loop's time it is busy
# when it used so much of it.
PATIENCE_SECONDS: Final = 0.001
REST_SECONDS: Final = 0.0001
BUSY: Final = 0.9


class Pace:
    """A worker that may take `share` of the time, in slices of half a millisecond."""

    def __init__(self, share: float) -> None:
        self._rest = 1 / share - 1
        self._spent = 0.0

    async def spent(self, seconds: float) -> None:
        """Has worked for so long; returns when it may go on."""
        self._spent += seconds
        if self._spent >= SLICE_SECONDS:
            spent, self._spent = self._spent, 0.0
            await asyncio.sleep(spent * self._rest)


class GivingWay:
    """What the event loop owes to threads that work for it.

    The interpreter runs one thread at a time, and a loop that never rests has it again before a waiting thread has
    woken up: each look at the sockets hands it over for a microsecond, which counts as having handed it over (measured:
    a commit of 1 ms took 6 to 16 s). So while work of a thread is under way, a loop that is busy all the time rests for
    a tenth of a millisecond in each.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._looks = False
        self._at = self._used = 0.0

    def begun(self) -> None:
        """A piece of work was given to a thread; called on the loop."""
        self._under_way += 1
        if not self._looks:
            self._looks = True
            self._look_later()

    def over(self) -> None:
        """One has been done."""
        self._under_way -= 1

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of blocking work."""
        self.begun()
        try:
            return await asyncio.to_thread(work, *args, **kwargs)
        finally:
            self.over()

    def _look_later(self) -> None:
        self._at, self._used = time.monotonic(), time.thread_time()
        asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._look)

    def _look(self) -> None:
        if not self._under_way:
            self._looks = False
            return
        if time.thread_time() - self._used > BUSY * (time.monotonic() - self._at):
            time.sleep(REST_SECONDS)
        self._look_later()
