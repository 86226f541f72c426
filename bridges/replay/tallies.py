"""Counting in bounded memory: distributions, rates, and distinct names that come from a wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from bridges.capture.records import Request, nanoseconds
from bridges.replay.results import Spread

OTHERS: Final = "(others)"  # what is counted together once there are too many names
_EXACT_BITS: Final = 8
_SECOND: Final = 10**9  # nanoseconds
T = TypeVar("T")


class Histogram:
    """A distribution of numbers that are not negative, exact below 256 and to a hundredth above."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._highest: dict[int, int] = {}  # of those that are counted together
        self._most = 0

    def add(self, value: int) -> None:
        value = max(value, 0)
        shift = max(value.bit_length() - _EXACT_BITS, 0)
        bottom = value >> shift << shift
        self._counts[bottom] = self._counts.get(bottom, 0) + 1
        self._highest[bottom] = max(self._highest.get(bottom, 0), value)
        self._most = max(self._most, value)

    def spread(self) -> Spread:
        total = sum(self._counts.values())
        return Spread(total, self._at(total, 50), self._at(total, 99), self._most) if total else Spread()

    def _at(self, total: int, percent: int) -> int:
        """The value that so many percent of all do not exceed."""
        left = -(-total * percent // 100)
        for bottom in sorted(self._counts):
            left -= self._counts[bottom]
            if left <= 0:
                return self._highest[bottom]
        return self._most


class Peak:
    """How many there were in the busiest of equal stretches of time; what is late counts where the time stands."""

    def __init__(self, seconds: int) -> None:
        self._length = seconds * _SECOND
        self._stretch = -1
        self._now = 0
        self.most = 0

    def add(self, at: int) -> None:
        stretch = at // self._length
        if stretch > self._stretch:
            self._stretch, self._now = stretch, 0
        self._now += 1
        self.most = max(self.most, self._now)


class Line:
    """The times of requests on one line that never runs back far: by `mono` in a boot, by `ts` where there is none.

    A boot that ends and a `ts` that is set back both go on where the time had come to.
    """

    def __init__(self) -> None:
        self.now = 0  # nanoseconds since the first request
        self._origin: tuple[str, bool] | None = None  # boot, whether by mono
        self._offset = 0
        self._last_ts = 0

    def at(self, request: Request, boot: str) -> int:
        """Nanoseconds since the first request."""
        ts, mono = nanoseconds(request.ts), nanoseconds(request.mono)
        by_mono = mono > 0
        clock = mono if by_mono else ts
        # In an import `mono` is the same as `ts`, and may be set back as well.
        was_set_back = clock + self._offset < self.now - _SECOND
        if self._origin != (boot, by_mono) or was_set_back:
            gap = max(ts - self._last_ts, 0) if self._origin is not None else 0
            self._origin = (boot, by_mono)
            self._offset = self.now + gap - clock
        self._last_ts = ts
        at = max(clock + self._offset, 0)
        self.now = max(self.now, at)
        return at


class Named(Generic[T]):
    """Something for each name; from so many names on, one for all that are new."""

    def __init__(self, make: Callable[[], T], most: int) -> None:
        self._make = make
        self._most = most
        self._all: dict[tuple[str, ...], T] = {}

    def of(self, *name: str) -> T:
        if name not in self._all and len(self._all) >= self._most:
            name = (OTHERS,) * len(name)
        if name not in self._all:
            self._all[name] = self._make()
        return self._all[name]

    def items(self) -> Iterable[tuple[tuple[str, ...], T]]:
        return self._all.items()


def add(counts: dict[str, int], name: str, most: int = 64) -> None:
    """One more of that name, or of the others once there are so many."""
    if name not in counts and len(counts) >= most:
        name = OTHERS
    counts[name] = counts.get(name, 0) + 1
