"""Writing a capture: frames into segments, segments within limits, and what a full disk leaves whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bridges.capture import frames, records
from bridges.capture.records import End, Header, Lost, Record
from bridges.capture.segments import name_of
from bridges.capture.store import MANIFEST, Entry, Manifest

MIB: Final = 1024 * 1024


class Limits(NamedTuple):
    """A segment ends at `segment_bytes` or `segment_seconds`; the oldest is removed over `total_bytes` of the capture,
    or `age_seconds` after it ended. The segment that is written is never removed."""

    segment_bytes: int = 64 * MIB
    segment_seconds: float = 600.0
    total_bytes: int = 1024 * MIB
    age_seconds: float = 7 * 24 * 3600.0


class Writer:
    """Writes the capture in `directory`, which must not exist. Blocking; used by one thread at a time. Raises OSError.

    `header` makes a segment's header of its number and the chain before it. `clock` gives seconds that only grow.
    `records` counts what was written, headers not among it: a `write` that failed has written so many of its lines,
    and the next one goes on behind them. `header` is that of the segment that is written.
    """

    def __init__(
        self, directory: Path, header: Callable[[int, str], Header], limits: Limits, clock: Callable[[], float]
    ) -> None:
        self.directory = directory
        self.records = 0
        self.header: Header
        self._make_header = header
        self._limits = limits
        self._clock = clock
        self._compressor = frames.compressor()
        self._finished: deque[tuple[Entry, float]] = deque()
        self._removed: Counter[str] = Counter()
        self._number = 0
        self._chain = ""
        self._descriptor: int | None = None
        self._now: Entry
        self._began = 0.0
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        self._place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._place, fcntl.LOCK_EX)
            self._begin(0)
        except BaseException:
            os.close(self._place)
            directory.rmdir()
            raise

    def write(self, lines: Sequence[bytes], first: int) -> None:
        """Writes records that follow one another, `first` is the seq of the first. Nothing is durable before `sync`.

        Raises OSError when the disk is full: the segment then ends with its last whole frame.
        """
        for group in frames.groups(lines):
            self._rotate(first)
            self._append(group, first)
            first += len(group)
        self._keep_limits()

    def take_removed(self) -> tuple[int, str] | None:
        """How many records the limits removed since this was asked last, and why; one reason at a time."""
        for why in list(self._removed):
            return self._removed.pop(why), why
        return None

    def sync(self) -> None:
        """Makes durable what was written, and keeps the limits where nothing is written any more."""
        if self._descriptor is not None:
            os.fdatasync(self._descriptor)
        self._rotate(self._now.after)
        self._keep_limits()

    def close(self, end_line: bytes, seq: int) -> None:
        """Writes the end record and the manifest, and lets go of the directory, also when it raises OSError."""
        try:
            if self._descriptor is None:
                self._begin(seq)
            self._append([end_line], seq)
            self._finish()
            self._write_manifest(closed=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Lets go of the directory as it is: the capture was not closed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._place >= 0:
            os.close(self._place)
            self._place = -1

    def _rotate(self, first: int) -> None:
        """Begins another segment where this one is over; `first` is the seq that comes next."""
        if self._descriptor is not None:
            limits, now = self._limits, self._now
            is_over = now.bytes >= limits.segment_bytes or self._clock() - self._began >= limits.segment_seconds
            if not (is_over and now.records):
                return
            self._finish()
        self._write_manifest()
        self._begin(first)

    def _begin(self, first: int) -> None:
        number = self._number + 1
        header = self._make_header(number, self._chain)
        name = name_of(number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(name, flags, 0o600, dir_fd=self._place)
        self._now = Entry(name, first, first, 0, 0, self._chain)
        try:
            self._put([records.encode(header)], first)
            os.fsync(self._place)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = None
            os.unlink(name, dir_fd=self._place)
            raise
        self.header = header
        self._number = number

    def _append(self, lines: Sequence[bytes], first: int) -> None:
        self._put(lines, first)
        now = self._now
        if not now.records:
            now.first, self._began = first, self._clock()
        now.records += len(lines)
        now.after = first + len(lines)
        self.records += len(lines)

    def _put(self, lines: Sequence[bytes], first: int) -> None:
        """Writes a frame, or leaves the file as it was."""
        assert self._descriptor is not None
        now = self._now
        data, chain = frames.pack(lines, first, now.chain, self._compressor)
        left, end = memoryview(data), now.bytes
        try:
            while left:
                done = os.pwrite(self._descriptor, left, end)
                left, end = left[done:], end + done
        except OSError:
            with contextlib.suppress(OSError):  # what stays is written over by the next frame
                os.ftruncate(self._descriptor, now.bytes)
            raise
        now.bytes, now.chain = end, chain

    def _finish(self) -> None:
        assert self._descriptor is not None
        os.fdatasync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        self._finished.append((self._now, self._clock()))
        self._chain = self._now.chain

    def _keep_limits(self) -> None:
        while self._finished and (why := self._excess()):
            entry, _ = self._finished.popleft()
            self._removed[why] += entry.records
            # The manifest first, so that it never names what is not there; but a full disk needs the removal.
            with contextlib.suppress(OSError):
                self._write_manifest()
            (self.directory / entry.name).unlink(missing_ok=True)

    def _excess(self) -> str:
        total = self._now.bytes + sum(entry.bytes for entry, _ in self._finished)
        if total > self._limits.total_bytes:
            return "size limit"
        return "age limit" if self._clock() - self._finished[0][1] > self._limits.age_seconds else ""

    def _write_manifest(self, *, closed: bool = False) -> None:
        manifest = Manifest(records.SCHEMA, self.header.tool, closed, [entry for entry, _ in self._finished])
        path = self.directory / MANIFEST
        new = path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(msgspec.json.format(msgspec.json.encode(manifest)))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        os.fsync(self._place)


def write_all(directory: Path, header: Callable[[int, str], Header], found: Iterable[Record], limits: Limits) -> int:
    """A closed capture of records that were read elsewhere, without headers and end; how many there are.

    Raises OSError, and what the records raise: the directory is then left as it is. What the limits remove is counted
    in the capture itself.
    """
    writer = Writer(directory, header, limits, lambda: 0.0)
    lines: list[bytes] = []
    count, first, after = 0, 1, 1
    time = writer.header.real, writer.header.mono
    try:
        for record in found:
            assert not isinstance(record, Header | End), "these are made here"
            if len(lines) == frames.RECORDS or record.seq != after:
                writer.write(lines, first)
                lines.clear()
            first = first if lines else record.seq
            lines.append(records.encode(record))
            count, after, time = count + 1, record.seq + 1, (record.ts, record.mono)
        writer.write(lines, first)
        while removed := writer.take_removed():
            writer.write([records.encode(Lost(after, *time, *removed))], after)
            after += 1
        writer.close(records.encode(End(after, *time, writer.records)), after)
    except BaseException:
        writer.abandon()
        raise
    return count
