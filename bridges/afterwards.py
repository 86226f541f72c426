"""What is compared once the answer has left: never in a caller's way, never changing what he got.

In relay and shadow everything that passes is translated to the bus and back, and must come back equal (a round trip).
In shadow a candidate is asked every read too, with a deadline of its own, and its answer is compared with that of the
legacy daemon. Both queues are bounded; what does not fit is dropped and counted:

    made = same + different + pending + dropped{reason}        for round trips
    sent = same + different + pending + dropped{reason}        for reads
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bridges import comparison
from bridges.backends import Backend
from bridges.calls import Call, Door, Trail
from bridges.capture.telling import Teller
from bridges.comparison import Difference, Outcome
from bridges.cutover import MEANINGS, Compared
from bridges.dispatch import Dispatch
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Service
from bridges.pacing import Pace
from bridges.round_trips import Trip

LOG: Final = logging.getLogger("bridges.afterwards")

QUEUE_LIMIT: Final = 1024
QUEUE_BYTES: Final = 64 * 1024 * 1024
READS_LIMIT: Final = 64
# Work on a larger exchange is done beside the event loop: callers go on being served meanwhile.
LARGE_BYTES: Final = 64 * 1024
# What comparing may take of the time, in slices: a bridge that is busy drops comparisons, never calls.
SHARE: Final = 0.2
CANDIDATE_SECONDS: Final = 10.0
FIELDS_LIMIT: Final = 200

_DROPPED: Final = {Kind.UNAVAILABLE: "no candidate", Kind.TIMED_OUT: "timed out", Kind.BUSY: "candidate busy"}


@dataclass(slots=True)
class Tally:
    """What was compared, and where it differed: `fields` counts by method and field path, `examples` has one each."""

    begun: int = 0
    same: int = 0
    different: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    methods: dict[str, list[int]] = field(default_factory=dict)
    fields: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        return self.begun - self.same - self.different - self.dropped.total()

    def count(self, method: str, differences: list[Difference]) -> None:
        """One comparison that was made."""
        counts = self.methods.setdefault(method, [0, 0])
        counts[bool(differences)] += 1
        if not differences:
            self.same += 1
            return
        self.different += 1
        for each in differences:
            place = f"{method} {each.path}"
            if place in self.fields or len(self.fields) < FIELDS_LIMIT:
                self.fields[place] += 1
                self.examples.setdefault(place, (each.left, each.right))

    def status(self, begun: str) -> dict[str, Any]:
        """JSON-ready; `begun` is what the first number is called."""
        return {
            begun: self.begun,
            "same": self.same,
            "different": self.different,
            "pending": self.pending,
            "dropped": dict(self.dropped),
            "methods": {name: {"same": same, "different": other} for name, (same, other) in self.methods.items()},
            "fields": {
                place: {"count": count, "legacy": self.examples[place][0], "bus": self.examples[place][1]}
                for place, count in self.fields.most_common(20)
            },
        }


class Afterwards:
    """The comparisons of one service. `candidate` is asked reads in shadow."""

    def __init__(self, dispatch: Dispatch, candidate: Backend, service: Service) -> None:
        self.round_trips = Tally()
        self.reads = Tally()
        self._dispatch = dispatch
        self._candidate = candidate
        self._teller = Teller(service)
        self._queue: deque[tuple[Callable[[], Trip], int, Trail | None]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    def begin_anew(self) -> None:
        """Forgets what was counted: evidence is gathered per stage."""
        self.round_trips, self.reads = Tally(), Tally()
        self._queue.clear()
        self._bytes = 0

    def offer(self, make: Callable[[], Trip], size: int = 0, trail: Trail | None = None) -> None:
        """An exchange that is over; `make` reads it, later. `size` is that of its messages in bytes."""
        compared = MEANINGS[self._dispatch.standing.stage].compared
        if compared is not Compared.ROUND_TRIPS and compared is not Compared.READS:
            return
        self.round_trips.begun += 1
        if len(self._queue) >= QUEUE_LIMIT or self._bytes + size > QUEUE_BYTES:
            self.round_trips.dropped["queue full"] += 1
            return
        self._queue.append((make, size, trail))
        self._bytes += size
        self._wake.set()

    async def run(self) -> None:
        """Compares until it is cancelled."""
        pace = Pace(SHARE)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    make, size, trail = self._queue.popleft()
                    self._bytes -= size
                    tally = self.round_trips
                    began = time.monotonic()
                    trip = make() if size < LARGE_BYTES else await asyncio.to_thread(make)
                    self._judge(trip, tally, trail)
                    await pace.spent(time.monotonic() - began)
        finally:
            for task in self._asking:
                task.cancel()

    def _judge(self, trip: Trip, tally: Tally, trail: Trail | None) -> None:
        if trip.note and not trip.differences:
            tally.dropped[trip.note] += 1
            return
        name = trip.method.name if trip.method is not None else ""
        method, arguments = trip.method, trip.arguments if trip.outcome is not None else None
        outcomes = () if trip.outcome is None else (trip.outcome.answer,)
        differences = self._teller.examples(method, arguments, outcomes, trip.differences)
        self._tell("does not come back from the bus as it was", tally, name, differences)
        tally.count(name, differences)
        if trip.method is not None and trip.arguments is not None and trip.outcome is not None:
            self._send(Call(trip.method, trip.arguments, Door.BUS, 0.0, trail), trip.outcome.answer)

    def _send(self, call: Call, answer: Outcome) -> None:
        """Asks the candidate what the legacy daemon has answered, if this may be asked of it."""
        if not self._dispatch.goes_to_candidate(call.method):
            return
        self.reads.begun += 1
        if len(self._asking) >= READS_LIMIT:
            self.reads.dropped["queue full"] += 1
            return
        task = asyncio.create_task(self._ask(call, answer, self.reads), name=f"candidate of {self._dispatch.service}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, call: Call, answer: Outcome, tally: Tally) -> None:
        method = call.method
        patience = CANDIDATE_SECONDS if method.deadline is None else min(CANDIDATE_SECONDS, method.deadline)
        said: Outcome
        try:
            said = await self._candidate.ask(replace(call, deadline=time.monotonic() + patience))
        except Fault as fault:
            if call.trail is not None:
                call.trail.failed(fault, is_candidate=True)
            if (reason := _DROPPED.get(fault.kind)) is not None:
                tally.dropped[reason] += 1
                return
            said = fault
        except asyncio.CancelledError:
            tally.dropped["the stage was left"] += 1
            raise
        except Exception:
            LOG.exception("%s %s: asking the candidate", self._dispatch.service, method.name)
            tally.dropped["defect"] += 1
            return
        differences = comparison.compare(method, answer, said)
        differences = self._teller.examples(method, call.arguments, (answer, said), differences)
        self._tell("is answered otherwise by the candidate", tally, method.name, differences)
        tally.count(method.name, differences)

    def _tell(self, what: str, tally: Tally, name: str, differences: list[Difference]) -> None:
        """A line in the log for each place that differs for the first time; how often it does is in the status."""
        for path, legacy, bus in differences:
            if f"{name} {path}" not in tally.fields and len(tally.fields) < FIELDS_LIMIT:
                LOG.info("%s %s %s: %s: legacy %s, bus %s", self._dispatch.service, name, what, path, legacy, bus)
