"""Captures on the disk, and how they are read whatever happened to them.

    CAPTURE/000001.jsonl.zst    frames (`frames`), the first with the header record alone; `zstdcat` prints the records
    CAPTURE/MANIFEST.json       what was finished so far; `closed` once the capture was stopped

A directory is locked (flock) while it is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bridges.capture import frames, records
from bridges.capture.records import Header, Record, nanoseconds
from bridges.capture.segments import File, Segment, look, name_of, number_of

MANIFEST: Final = "MANIFEST.json"


class CaptureError(Exception):
    """A capture that cannot be read; the text names file, segment and record.

    `code` is 2 for what is wrong (foreign, newer, unreadable), 3 for what has nothing in it.
    """

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


class Entry(msgspec.Struct):
    """A finished segment: the `seq` of its first record and the one behind its last, how many it has (no header)."""

    name: str
    first: int
    after: int
    records: int
    bytes: int
    chain: str


class Manifest(msgspec.Struct):
    """What MANIFEST.json says. While a capture is written, the segment that is written is not in it."""

    schema: int
    tool: str
    closed: bool
    segments: list[Entry]


class Place(NamedTuple):
    """Where a record stands: the segment's name, and its number there, from 1 and with those known to be lost."""

    file: str
    record: int

    def __str__(self) -> str:
        return f"{self.file} record {self.record}"


class Capture:
    """A capture to be read: a directory, or one segment of one. `headers` are those that can be read, in order.

    `size` is in bytes; `missing` names segments that are not there; `hosts` are all by whom it was written, each with
    the first segment that says so. `is_being_written` says whether a writer had it when it was opened.
    """

    def __init__(
        self,
        path: Path,
        segments: list[Segment],
        manifest: Manifest | None,
        manifest_damage: str,
        *,
        is_being_written: bool,
    ) -> None:
        self.path = path
        self.is_being_written = is_being_written
        self.manifest = manifest
        self.headers = [segment.header for segment in segments if segment.header is not None]
        self.hosts: dict[str, str] = {}
        for segment in segments:
            if segment.header is not None:
                self.hosts.setdefault(segment.header.host, segment.path.name)
        self.size = sum(segment.size for segment in segments)
        self.segments = [segment.path.name for segment in segments]
        there = set(self.segments)
        self.missing = [name for name in self._expected(segments) if name not in there]
        self._parts = segments
        self._manifest_damage = manifest_damage

    def read(
        self, on_damage: Callable[[str], None], progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[Place, Record]]:
        """All records that are whole, in order, headers and the end among them; of any size in little memory.

        Damage is told as a sentence with file, offset and records lost, before the record behind it; so is a capture
        that was not closed. One that is being written ends with its last whole frame, and that is no damage.
        `progress` gets the bytes read so far, of `size`.
        """
        if self._manifest_damage:
            on_damage(self._manifest_damage)
        return _Reading(self, self._parts, on_damage, progress or (lambda _: None)).run()

    def _expected(self, segments: list[Segment]) -> list[str]:
        """The names of all segments that there should be, as far as it is known."""
        if not self.path.is_dir():
            return []
        entries = [] if self.manifest is None else [number_of(entry.name) for entry in self.manifest.segments]
        there = [segment.number for segment in segments]
        first = 1 if self.manifest is None else min(entries + there)
        if self.is_being_written:  # what came before may have been removed by the limits meanwhile
            first = there[0]
        return [name_of(number) for number in range(first, max(entries + there) + 1)]


class _Reading:
    """One run over a capture: `chain` and `after` are what the next frame must follow."""

    def __init__(
        self,
        capture: Capture,
        segments: list[Segment],
        on_damage: Callable[[str], None],
        progress: Callable[[int], None],
    ) -> None:
        self._capture = capture
        self._segments = segments
        self._missing = list(capture.missing)
        self._entries = {} if capture.manifest is None else {entry.name: entry for entry in capture.manifest.segments}
        self._on_damage = on_damage
        self._progress = progress
        self._is_growing = capture.is_being_written
        self._is_ended = False
        self._chain: str | None = "" if segments[0].number == 1 else None
        self._after: int | None = None
        self._done = 0

    def run(self) -> Iterator[tuple[Place, Record]]:
        last = self._segments[-1]
        for index, segment in enumerate(self._segments):
            self._tell_missing(segment)
            self._after = self._after or self._first_of(segment)
            behind = self._behind(index)
            try:
                yield from self._read(segment, behind, is_growing=self._is_growing and segment is last)
            except OSError as error:
                gone = self._is_growing and isinstance(error, FileNotFoundError)
                why = "was removed meanwhile, by the limits" if gone else f"cannot be read ({error.strerror})"
                self._on_damage(f"{segment.path.name}: {why}")
                self._lose_track(behind)
            self._done += segment.size
            self._progress(self._done)
        self._tell_missing(None)
        manifest = self._capture.manifest
        if not (self._is_ended or self._is_growing or (manifest is not None and manifest.closed)):
            alone = "" if self._capture.path.is_dir() else ", or more segments follow"
            self._on_damage(f"{last.path.name}: has no end: it was not closed{alone}")

    def _read(
        self, segment: Segment, behind: frames.Behind | None, *, is_growing: bool
    ) -> Iterator[tuple[Place, Record]]:
        name = segment.path.name
        if segment.foreign and is_growing:  # its header is being written
            return
        if segment.foreign:
            lost = None if behind is None else frames.between(self._after, behind.seq)
            self._on_damage(f"{name}: is {segment.foreign}: {_lost(lost)}")
            self._lose_track(behind)
            return
        number = 0
        damage: frames.Damage | None = None
        with File(segment.path) as file:
            for item in frames.scan(file, self._chain, self._after, behind):
                if damage is not None:
                    number += self._tell(name, damage)
                    damage = None
                if isinstance(item, frames.Damage):
                    damage = item
                    continue
                if segment.header is None and self._chain is None and item.offset == 0:  # else it is damage, and told
                    self._on_damage(f"{name}: its header is missing")
                self._chain, self._after = item.chain or None, item.after
                for place, record in _decoded(name, number, item.lines, self._on_damage):
                    self._is_ended = isinstance(record, records.End)
                    yield place, record
                number += len(item.lines)
                self._progress(self._done + item.offset + item.size)
        if damage is not None:
            self._lose_track(behind)
            if not is_growing:  # else it is the frame that is being written
                self._tell(name, damage)

    def _lose_track(self, behind: frames.Behind | None) -> None:
        self._chain, self._after = None, None if behind is None else behind.seq

    def _first_of(self, segment: Segment) -> int | None:
        entry = self._entries.get(segment.path.name)
        return segment.first or (entry.first if entry is not None and entry.first else None)

    def _behind(self, index: int) -> frames.Behind | None:
        """What is known of the end of a segment, by the manifest or by the segment that follows."""
        segment = self._segments[index]
        entry = self._entries.get(segment.path.name)
        if entry is not None:
            return frames.Behind(entry.chain, entry.after)
        following = next(iter(self._segments[index + 1 : index + 2]), None)
        if following is None or following.header is None or following.number != segment.number + 1:
            return None
        return frames.Behind(following.header.chain, following.first)

    def _tell(self, name: str, damage: frames.Damage) -> int:
        self._on_damage(f"{name} offset {damage.offset}: {damage.what}: {_lost(damage.records)}")
        return damage.records or 0

    def _tell_missing(self, segment: Segment | None) -> None:
        """Names what is missing before a segment, or behind the last."""
        end = None if segment is None else segment.number
        names = [name for name in self._missing if end is None or number_of(name) < end]
        if not names:
            return
        self._missing = self._missing[len(names) :]
        first = None if segment is None else self._first_of(segment)
        known = [self._entries[name].records for name in names if name in self._entries]
        lost = sum(known) if len(known) == len(names) else frames.between(self._after, first)
        many = f" to {names[-1]}: are" if len(names) > 1 else ": is"
        self._on_damage(f"{names[0]}{many} missing: {_lost(lost)}")
        self._chain, self._after = None, first


def open_capture(path: Path) -> Capture:
    """The capture in a directory, or in one segment file. Raises CaptureError when nothing of it can be read."""
    manifest, damage = None, ""
    try:
        is_being_written = _is_locked(path if path.is_dir() else path.parent)
        if stat.S_ISREG(path.stat().st_mode):
            segments = [look(path)]
        elif path.is_dir():
            manifest, damage = _read_manifest(path)  # before the segments: those that come meanwhile do no harm
            segments = _look_into(path, is_growing=is_being_written)
        else:
            raise CaptureError(f"{path}: is neither a directory nor a file")
    except OSError as error:
        raise CaptureError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    for segment in segments:
        if segment.newer:
            raise CaptureError(f"{segment.path} record 1: {segment.newer}")
    if not any(segment.size for segment in segments):
        raise CaptureError(f"{segments[0].path}: is empty", 3)
    if all(segment.foreign for segment in segments):
        raise CaptureError(f"{segments[0].path}: is no segment of a capture but {segments[0].foreign}")
    return Capture(path, segments, manifest, damage, is_being_written=is_being_written)


def find(directory: Path) -> list[Path]:
    """The captures in a directory, oldest first; none when there is no such directory. Raises CaptureError."""
    found: list[tuple[int, Path]] = []
    try:
        for path in directory.iterdir() if directory.is_dir() else ():
            if names := _names(path):
                header = _first_header(path, names)
                began = nanoseconds(header.real) if header is not None else 0
                found.append((began or path.stat().st_mtime_ns, path))
    except OSError as error:
        raise CaptureError(f"{error.filename or directory}: cannot be read: {error.strerror}") from None
    return [path for _, path in sorted(found)]


def _first_header(path: Path, names: list[str]) -> Header | None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, by the limits
            return look(path / name).header
    return None


def _look_into(path: Path, *, is_growing: bool) -> list[Segment]:
    while names := _names(path):
        segments: list[Segment] = []
        for name in _without_gaps(names) if is_growing else names:
            try:
                segments.append(look(path / name))
            except FileNotFoundError:
                if segments and not segments[-1].path.exists():  # removed meanwhile by the limits, the oldest first
                    segments.clear()
        if segments:
            return segments
    raise _without_segments(path)


def _names(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    with os.scandir(path) as found:  # which knows of each what it is, also when it was removed meanwhile
        return sorted(each.name for each in found if number_of(each.name) and each.is_file())


def _without_gaps(names: list[str]) -> list[str]:
    """A directory is not listed in one moment: of two segments that come meanwhile the second alone may be seen."""
    numbers = [number_of(name) for name in names]
    return [name_of(number) for number in range(numbers[0], numbers[-1] + 1)]


def _without_segments(path: Path) -> CaptureError:
    inside = sorted(found.name for found in path.iterdir())
    if not inside:
        return CaptureError(f"{path}: is empty: expected segments named {name_of(1)}", 3)
    captures = [found.name for found in find(path)]
    if captures:
        return CaptureError(
            f"{path}: is no capture, but has {len(captures)}: name one of them, as {path / captures[-1]}"
        )
    return CaptureError(f"{path}: has no segments: expected files named {name_of(1)}, found {', '.join(inside[:3])}")


def _read_manifest(path: Path) -> tuple[Manifest | None, str]:
    """The manifest, or what is wrong with it."""
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None, ""
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return None, f"{MANIFEST}: is damaged, and was not used: {error}"
    strange = [entry.name for entry in manifest.segments if not number_of(entry.name)]
    if strange:
        return None, f"{MANIFEST}: is damaged, and was not used: it names {strange[0]!r}"
    return manifest, ""


def _decoded(
    name: str, before: int, lines: list[bytes], on_damage: Callable[[str], None]
) -> Iterator[tuple[Place, Record]]:
    for number, line in enumerate(lines, before + 1):
        place = Place(name, number)
        try:
            record = records.decode(line)
        except records.RecordError as error:
            on_damage(f"{place}: {error}")
        else:
            yield place, record


def _is_locked(directory: Path) -> bool:
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(place, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(place)
    return False


def _lost(count: int | None) -> str:
    if count is None:
        return "nobody knows how many records are lost"
    return "no record is lost" if count == 0 else f"{count} record{'' if count == 1 else 's'} lost"
