"""Work beside the calls, in slices: it takes its share of the time and no more, so that callers come first."""

from __future__ import annotations

import asyncio
from typing import Final

SLICE_SECONDS: Final = 0.0005


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
