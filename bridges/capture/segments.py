"""Segment files: their names, what a file is, and reading one in pieces.

Files are not mapped: a mapped file that shrinks, as the one being written does when its disk is full, ends the process
that reads it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from bridges.capture import frames, records
from bridges.capture.records import Header

_NAME: Final = re.compile(r"(\d{6})\.jsonl\.zst")
_PIECE: Final = 64 * 1024
_KINDS: Final = (
    (b"\x89PNG", "a PNG image"),
    (b"\x1f\x8b", "a gzip file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x0a\x0d\x0d\x0a", "a pcapng file"),
    (b"\xa1\xb2\xc3\xd4", "a pcap file"),
    (b"\xd4\xc3\xb2\xa1", "a pcap file"),
    (b"{", "JSON that is in no zstd frame"),
    (frames.ZSTD_MAGIC, "a zstd file without a frame of a capture that can be read"),
)


class Segment(NamedTuple):
    """A segment file. `first` is the seq of its first record, by its header's frame. `foreign` says what it is, if
    nothing of it is ours, `newer` why this version cannot read it."""

    path: Path
    number: int
    size: int
    header: Header | None = None
    first: int | None = None
    foreign: str = ""
    newer: str = ""


class File:
    """A segment file as `frames.Source`."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self._descriptor).st_size
        self._size = size if most is None else min(size, most)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice, /) -> bytes:
        start, stop, _ = where.indices(self._size)
        return os.pread(self._descriptor, max(0, stop - start), start)

    def find(self, wanted: bytes, start: int, /) -> int:
        while start < self._size:
            piece = self[start : start + _PIECE]
            found = piece.find(wanted)
            if found >= 0:
                return start + found
            if len(piece) < _PIECE:  # the end, or less was there than when it was opened
                break
            start += _PIECE - len(wanted) + 1
        return -1


def name_of(number: int) -> str:
    return f"{number:06}.jsonl.zst"


def number_of(name: str) -> int:
    """The number of a segment's name, or 0 for another name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0


def look(path: Path) -> Segment:
    """What a file is, by its first frame that can be read. Raises OSError."""
    number = number_of(path.name)
    with File(path, most=frames.LIMIT) as file:
        size = path.stat().st_size
        frame = next((item for item in frames.scan(file, None) if isinstance(item, frames.Frame)), None)
        start = file[:4096]
    if frame is None:
        return Segment(path, number, size, foreign=_kind_of(start))
    line = frame.lines[0]
    newer = _newer(line)
    if newer:
        return Segment(path, number, size, newer=newer)
    try:
        record = records.decode(line)
    except records.RecordError as error:
        if frame.offset == 0 and not frame.chain:
            return Segment(path, number, size, foreign=f"a zstd file, and its first line {error}")
        return Segment(path, number, size)
    if not isinstance(record, Header):
        return Segment(path, number, size)
    return Segment(path, number, size, record, frame.first or None)


class _Schema(msgspec.Struct):
    t: str = ""
    schema: int = 0


def _newer(line: bytes) -> str:
    try:
        found = msgspec.json.decode(line, type=_Schema)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if found.t == "hdr" and found.schema > records.SCHEMA:
        return f"written by a newer version (schema {found.schema}, known is {records.SCHEMA}): use that one"
    return ""


def _kind_of(start: bytes) -> str:
    if not start:
        return "empty"
    for magic, name in _KINDS:
        if start.startswith(magic):
            return name
    return "text" if start.isascii() and b"\0" not in start else "something else"
