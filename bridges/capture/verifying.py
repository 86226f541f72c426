"""Whether a capture is whole and makes sense: everything that can be said of it in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from bridges.capture.records import End, Header, Leg, Lost, Record, Reply, Request, nanoseconds
from bridges.capture.store import Capture, Place

OPEN: Final = 65536  # requests whose reply is waited for; the oldest beyond counts as without one
TEXTS: Final = 1000  # of a kind that are kept; the rest is counted
PART: Final = "read in part"
_JUMP: Final = 10**9  # nanoseconds


class Report(msgspec.Struct):
    """What was found. `state` is `closed`, `being written`, `not closed`, or `read in part` when it was stopped.

    `requests`, `replies`, `unanswered` (requests without a reply) and `strays` (replies whose request is not there) are
    counts by leg, `lost` of records by why, as the capture itself says. `damages`, `gaps` (in `seq`, where no damage
    explains them) and `jumps` (the wall clock moved against the other by more than 1 s between neighbours) are
    sentences with their place; `more` counts those that were too many to keep. `mixed` names segments of different
    hosts or boots.
    """

    path: str
    state: str
    bytes: int
    segments: int
    missing: list[str]
    records: int = 0
    requests: dict[str, int] = {}
    replies: dict[str, int] = {}
    unanswered: dict[str, int] = {}
    strays: dict[str, int] = {}
    lost: dict[str, int] = {}
    damages: list[str] = []
    gaps: list[str] = []
    jumps: list[str] = []
    hosts: list[str] = []
    boots: list[str] = []
    mixed: list[str] = []
    more: int = 0

    @property
    def is_whole(self) -> bool:
        """Nothing is damaged or missing of what was read, and it is one capture of one host."""
        return not (self.damages or self.missing or self.gaps or len(self.hosts) > 1)


def verify(
    capture: Capture, progress: Callable[[int], None] | None = None, is_stopped: Callable[[], bool] = lambda: False
) -> Report:
    """Reads all of a capture, of any size, in little memory; what it found so far once `is_stopped` says so."""
    state = "being written" if capture.is_being_written else "not closed"
    look = _Look(Report(str(capture.path), state, capture.size, len(capture.segments), capture.missing))
    for place, record in capture.read(look.damage, progress):
        if is_stopped():
            return look.so_far()
        look.record(place, record)
    return look.done()


class _Look:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._open: dict[int, Leg] = {}
        self._after: int | None = None  # the seq that comes next; None: unknown, or behind damage
        self._offset: int | None = None  # wall clock less the other; None: not known, or of another boot
        self._header: tuple[Place, Header] | None = None

    def damage(self, text: str) -> None:
        self._keep(self._report.damages, text)
        self._after = None

    def record(self, place: Place, record: Record) -> None:
        if isinstance(record, Header):
            self._look_at_header(place, record)
            return
        report = self._report
        report.records += 1
        self._look_at_order(place, record.seq)
        self._look_at_clocks(place, record.ts, record.mono)
        match record:
            case Request():
                _count(report.requests, record.leg)
                self._open[record.seq] = record.leg
                if len(self._open) > OPEN:
                    _count(report.unanswered, self._open.pop(next(iter(self._open))))
            case Reply():
                _count(report.replies, record.leg)
                if self._open.pop(record.re, None) is None:
                    _count(report.strays, record.leg)
            case Lost():
                _count(report.lost, record.why, record.n)
            case End():
                report.state = "closed"

    def done(self) -> Report:
        for leg in self._open.values():
            _count(self._report.unanswered, leg)
        return self._report

    def so_far(self) -> Report:
        """What was found in the beginning of the capture; nobody knows which requests will be answered."""
        self._report.state = PART
        return self._report

    def _look_at_header(self, place: Place, header: Header) -> None:
        report = self._report
        if self._header is not None:
            first, known = self._header
            if header.host != known.host:
                text = f"{first.file} is of host {known.host}, {place.file} of host {header.host}"
                self._keep(report.mixed, f"two captures of different hosts: {text}")
            elif header.boot != known.boot:
                text = f"{first.file} is of boot {known.boot}, {place.file} of boot {header.boot}"
                self._keep(report.mixed, f"the host was started again: {text}")
            if (header.host, header.boot) != (known.host, known.boot):
                self._offset = None
        self._header = place, header
        for found, value in ((report.hosts, header.host), (report.boots, header.boot)):
            if value not in found:
                self._keep(found, value)

    def _look_at_order(self, place: Place, seq: int) -> None:
        if self._after is not None and seq != self._after:
            missing = "does not follow" if seq < self._after else f"{seq - self._after} before it are not there"
            self._keep(self._report.gaps, f"{place}: seq {seq}, expected {self._after}: {missing}")
        self._after = seq + 1

    def _look_at_clocks(self, place: Place, ts: str, mono: str) -> None:
        wall, steady = nanoseconds(ts), nanoseconds(mono)
        offset = wall - steady if wall and steady else None
        if offset is not None and self._offset is not None and abs(offset - self._offset) > _JUMP:
            seconds = (offset - self._offset) / 10**9
            self._keep(self._report.jumps, f"{place}: the wall clock moved by {seconds:+.3f} s since the record before")
        self._offset = offset

    def _keep(self, texts: list[str], text: str) -> None:
        if len(texts) < TEXTS:
            texts.append(text)
        else:
            self._report.more += 1


def _count(counts: dict[str, int], name: str, n: int = 1) -> None:
    counts[name] = counts.get(name, 0) + n
