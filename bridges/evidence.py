"""What was seen of a service since it entered its stage: for the gates, for the operator, over restarts of the bridge.

Kept as one JSON text a service in the journal's file, written every few seconds: a crash loses the last of it, which
makes the evidence less, never better.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from bridges import gates, routing
from bridges.afterwards import Afterwards, Tally
from bridges.calls import Door
from bridges.dispatch import Dispatch
from bridges.durable import Durable, NotDurable
from bridges.gates import Compared, Evidence
from bridges.journal import Journal
from bridges.situation import Situation

LOG: Final = logging.getLogger("bridges.evidence")

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS evidence (service TEXT PRIMARY KEY, data TEXT NOT NULL) STRICT;
"""
SAVE_SECONDS: Final = 5.0
# A move is watched until so many calls were made after it, or for so long.
WATCH_CALLS: Final = 200
WATCH_SECONDS: Final = 600.0


class _Kept(msgspec.Struct):
    """What is kept: since when each door is ours and when it was used last, as ISO texts; and what was compared."""

    epoch: int = 0
    ours_since: dict[str, str] = {}
    last_use: dict[str, str] = {}
    round_trips: dict[str, int] = {}
    reads: dict[str, int] = {}


class Watch(msgspec.Struct):
    """The first calls after a move: what the counters were when it was done."""

    flip: int
    began: float
    answered: int
    faults: int


class Witness:
    """One service's evidence. `observed` gives how many exchanges were seen, and how many of them whole."""

    def __init__(
        self,
        situation: Situation,
        dispatch: Dispatch,
        afterwards: Afterwards,
        journal: Journal,
        durable: Durable,
        *,
        doors: tuple[Door, ...],
        observed: Callable[[], tuple[int, int]],
    ) -> None:
        self._situation = situation
        self._dispatch = dispatch
        self._afterwards = afterwards
        self._journal = journal
        self._durable = durable
        self._doors = doors
        self._observed = observed
        self._kept = _Kept()
        self._saved_at = 0.0
        self.watch: Watch | None = None

    def recall(self) -> None:
        """What an earlier life of the bridge has kept; its comparisons count if the service has not moved since."""
        rows = self._durable.read_now("SELECT data FROM evidence WHERE service = ?", (self._situation.service,))
        try:
            self._kept = msgspec.json.decode(rows[0][0], type=_Kept) if rows else _Kept()
        except msgspec.MsgspecError as error:
            LOG.warning("%s: the evidence that was kept cannot be read: %s", self._situation.service, error)
        if self._kept.epoch == self._situation.standing.epoch:
            for tally, kept in self._tallies():
                tally.begun = tally.same = kept.get("same", 0)
                tally.different = kept.get("different", 0)
                tally.begun += tally.different
        self._mark_doors()

    def begin_anew(self) -> None:
        """The service has entered another stage."""
        self._afterwards.begin_anew()
        self._mark_doors()

    def _mark_doors(self) -> None:
        """Doors that are ours show who uses them; those that are the legacy daemon's do not."""
        for door in self._doors:
            if not routing.keeper_of(self._situation.standing.stage, door).is_ours:
                self._kept.ours_since.pop(door, None)
                self._kept.last_use.pop(door, None)
            else:
                self._kept.ours_since.setdefault(str(door), datetime.now(UTC).isoformat())

    def _tallies(self) -> tuple[tuple[Tally, dict[str, int]], ...]:
        return (self._afterwards.round_trips, self._kept.round_trips), (self._afterwards.reads, self._kept.reads)

    def evidence(self, missing: tuple[str, ...] | None) -> Evidence:
        """What speaks for the next stage, or against it."""
        seen, complete = self._observed()
        return Evidence(
            seen=seen,
            complete=complete,
            round_trips=_compared(self._afterwards.round_trips),
            reads=_compared(self._afterwards.reads),
            in_doubt=self._journal.in_doubt_count(self._situation.service),
            alarms=tuple(self._situation.alarms),
            unused=self.unused(),
            missing=missing,
        )

    def unused(self) -> dict[str, float]:
        """Seconds since a call came to each legacy door that is ours, negative when the clock was set back."""
        now = datetime.now(UTC)
        found = {}
        for door, since in self._kept.ours_since.items():
            used = self._used_here(door, now) or self._kept.last_use.get(door) or since
            found[door] = (now - datetime.fromisoformat(used)).total_seconds()
        return found

    def _used_here(self, door: str, now: datetime) -> str | None:
        last = self._dispatch.counters.last_use.get(door)
        return None if last is None else (now - timedelta(seconds=time.monotonic() - last)).isoformat()

    async def look(self) -> None:
        """Once a second: is every call accounted for, is it time to write it down?"""
        situation, dispatch = self._situation, self._dispatch
        if not dispatch.adds_up:
            situation.alarm("ACCOUNTS", f"calls do not add up: {dispatch.status()['calls']}")
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            await self.save()

    def begin_watch(self, flip: int) -> None:
        """A move is done: its first calls are counted."""
        counters = self._dispatch.counters
        self.watch = Watch(flip, time.monotonic(), counters.answered, self._faults())

    def told(self, watch: Watch) -> str:
        """What was seen since a move, for a person."""
        faults, seconds = self._faults() - watch.faults, time.monotonic() - watch.began
        return f"{self._calls(watch)} calls, {faults} faults of the bridge in {seconds:.0f} s"

    def watch_is_over(self, watch: Watch) -> bool:
        """Whether enough was seen after a move."""
        return self._calls(watch) >= WATCH_CALLS or time.monotonic() - watch.began >= WATCH_SECONDS

    def _calls(self, watch: Watch) -> int:
        return self._dispatch.counters.answered - watch.answered

    def _faults(self) -> int:
        """Faults that no daemon has said: they are what a move can have done."""
        return sum(
            count for kind, count in self._dispatch.counters.faults.items() if kind not in ("Declared", "Undeclared")
        )

    async def save(self) -> None:
        """Makes it durable; a disk that is full is told, and tried again."""
        self._saved_at = time.monotonic()
        now = datetime.now(UTC)
        kept = self._kept
        kept.epoch = self._situation.standing.epoch
        for door in kept.ours_since:
            if (used := self._used_here(door, now)) is not None:
                kept.last_use[door] = used
        for tally, numbers in self._tallies():
            numbers.update(same=tally.same, different=tally.different)
        try:
            await self._durable.write(
                "INSERT OR REPLACE INTO evidence (service, data) VALUES (?,?)",
                (self._situation.service, msgspec.json.encode(kept).decode()),
            )
        except NotDurable as error:
            LOG.warning("%s: the evidence is not kept: %s", self._situation.service, error)

    def status(self) -> dict[str, Any]:
        """What the operator sees of it; JSON-ready."""
        found: dict[str, Any] = {
            "in_doubt_open": self._journal.in_doubt_count(self._situation.service),
            "round_trips": self._afterwards.round_trips.status("made"),
            "comparison": self._afterwards.reads.status("sent"),
            "unused": {door: round(seconds) for door, seconds in self.unused().items()},
        }
        if self.watch is not None:
            found["watching"] = self.told(self.watch)
        return found


def checklist(service: str, settings_doors: tuple[str, ...], unused: dict[str, float]) -> list[str]:
    """What is left to do once a service is complete, for a person."""
    longest = ", ".join(f"{door} {seconds / gates.HOUR:.1f} h" for door, seconds in unused.items())
    return [
        f"the legacy doors of {service} answer Retired; unused for: {longest or 'no doors'}",
        "wait until xcp-bridge status shows no more refused calls there",
        f"let the bus daemon of {service} own org.xen.xcp.{service} by itself at its start, without Assume",
        "disable and remove the legacy daemon's unit and package",
        f"remove services.{service} from the settings ({', '.join(settings_doors)}) and restart the bridge",
    ]


def _compared(tally: Tally) -> Compared:
    worst = tally.fields.most_common(1)
    return Compared(tally.same, tally.different, worst[0][0] if worst else "")
