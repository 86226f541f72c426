"""Calls of services found in oxenstored's access log: for a host where the bridge was never installed.

What this cannot carry
    * values of a long line: the log cuts it (`complete` is then CUT, and no value of that request is kept)
    * a NUL within a value: the log shows a space
    * times below a millisecond, and what was in files that were rotated away
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec

from bridges.calls import Door, Side
from bridges.capture.imports import Asked, Found, Imported, Maker, Note, Pending, Places, Spoken, imported
from bridges.capture.messages import StoreAnswer, StoreCall, nodes_size
from bridges.capture.records import ANSWERED, Complete, Fault, Leg, Record
from bridges.capture.store import CaptureError
from bridges.faults import Kind
from bridges.interfaces import model
from bridges.interfaces.model import Service
from xenstore_rpc.access_log import Calls, Event, Line, Seen, read_line
from xenstore_rpc.records import UNKNOWN_FUNCTION, Request, Response

SOURCE: Final = "oxenstored access log"

LINE_LIMIT: Final = 64 * 1024
"""Bytes of the longest line that is looked at."""

STRANGE_LIMIT: Final = 1000
"""Lines of which one must be oxenstored's, or the file is none of its logs."""

_FAULT: Final = "fault"
_GZIP: Final = b"\x1f\x8b"
_FAR_BACK: Final = 1_000_000_000  # nanoseconds that the clock may go back without being told of

_Key = tuple[str, str, str]


def access_log(path: Path, note: Note, services: Mapping[str, Service] | None = None) -> Imported:
    """The calls in a log, PATH.1, PATH.2 and so on before it; `services` by the name of their tree.

    Calls in other trees are records without a method: who called which function, how large, how long. Raises
    CaptureError and OSError, now or while the records are read.
    """
    known = {"squeezed": model.load("squeezed")} if services is None else services
    spoken = {tree: Spoken(service, service.dialect) for tree, service in known.items()}
    maker = Maker()
    dialects = {each.service.name: each.dialect for each in spoken.values()}
    return imported(SOURCE, maker, dialects, _Import(note, maker, spoken).run(path))


class _Import:
    """One import."""

    def __init__(self, note: Note, maker: Maker, spoken: Mapping[str, Spoken]) -> None:
        self._note = note
        self._maker = maker
        self._spoken = spoken
        self._calls = Calls()
        self._pending: Pending[_Key, Asked] = Pending()
        self._strange = Places(note)
        self._jumps = Places(note)
        self._damaged: list[str] = []
        self._found = 0
        self._last = 0

    def run(self, path: Path) -> Iterator[Record]:
        for file in _rotated(path, self._note):
            for place, line in self._lines(file):
                if line.time < self._last - _FAR_BACK:
                    self._jumps.tell(f"{place}: the clock goes back by {(self._last - line.time) / 1e9:g} s")
                self._last = line.time
                for event in self._calls.feed(line):
                    yield from self._records(event)
        for event in self._calls.end(self._last):
            yield from self._records(event)
        self._strange.tell_rest("{} lines in all are none of oxenstored's access log: they were skipped")
        self._jumps.tell_rest("the clock goes back {} times in all")
        if self._strange.count:
            yield self._maker.lost(0, "unreadable lines in the log", self._last)
        for name in self._damaged:
            yield self._maker.lost(0, f"the log {name} is damaged", self._last)
        if self._calls.forgotten:
            yield self._maker.lost(0, "too many transactions at once in the log", self._last)
        if not self._found:
            raise CaptureError(f"{path}: no call of any service is in this log", 3)

    def _lines(self, file: Path) -> Iterator[tuple[str, Line]]:
        first, number, held = b"", 0, list[int]()
        is_log = False
        with _open(file) as stream:
            while line := self._next_line(stream, file, number):
                number += 1
                first = first or line
                found = read_line(line.rstrip(b"\r\n"))
                if found is None:
                    held.append(number)
                is_log |= found is not None
                if not is_log and number == STRANGE_LIMIT:
                    break
                if is_log:
                    for strange in held:
                        self._strange.tell(f"{file} line {strange}: is no line of oxenstored's access log: skipped")
                    held.clear()
                if found is not None:
                    yield f"{file} line {number}", found
        if held:
            raise CaptureError(f"{file} line 1: is no line of oxenstored's access log: {first[:60]!r}")

    def _next_line(self, stream: BinaryIO, file: Path, number: int) -> bytes:
        """The line behind the one of that number; empty at the end, also where what is left cannot be unpacked."""
        try:
            return stream.readline(LINE_LIMIT)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not number:
                raise CaptureError(f"{file}: cannot be unpacked: {error}") from None
            self._damaged.append(file.name)
            self._note(f"{file} behind line {number}: cannot be unpacked: {error}: what stands before was imported")
            return b""

    def _records(self, event: Event) -> Iterator[Record]:
        if not isinstance(event, Seen):
            self._pending.take((event.tree, event.function, event.request_id))
            return
        self._found += 1
        key = (event.tree, event.function, event.request_id)
        if event.is_request:
            asked = self._request(event)
            self._pending.put(key, asked)
            yield asked.record
            return
        known = self._pending.take(key)
        if known is None:  # its request was written before the log begins
            known = self._request(event._replace(nodes=(), cut=(), connection=""), is_there=False)
            yield known.record
        yield from self._reply(event, known)

    def _request(self, event: Seen, *, is_there: bool = True) -> Asked:
        found = Found(event.time, Leg.OBSERVED, Door.XENSTORE, event.connection, side=str(Side.LEGACY))
        spoken = self._spoken.get(event.tree)
        size, names = nodes_size(event.nodes), ", ".join(name for name, _ in event.nodes)
        if spoken is None:
            text = f"no interface is written down; arguments: {names}" if is_there else "seen by its answer"
            complete = Complete.UNREAD if is_there else Complete.NO_ARGUMENTS
            asked = self._maker.bare_request(event.tree, event.function, found, complete=complete, size=size, note=text)
        else:
            is_whole = is_there and not event.cut
            request = Request(event.function, event.request_id, event.nodes) if is_whole else None
            message = StoreCall(request, event.function, event.request_id)
            asked = self._maker.request(spoken, message, spoken.service.by_xenstore_function.get(event.function), found)
            if event.cut:
                record = msgspec.structs.replace(
                    asked.record, complete=Complete.CUT, size=size, note=f"{_cut(event)}; arguments: {names}"
                )
                asked = asked._replace(record=record)
        return asked

    def _reply(self, event: Seen, asked: Asked) -> Iterator[Record]:
        if asked.describer is None or event.cut:
            names = f"results: {', '.join(name for name, _ in event.nodes)}"
            fault = _fault(self._spoken.get(event.tree), Response(event.nodes))
            yield self._maker.bare_reply(
                asked,
                ANSWERED if fault is None else _FAULT,
                event.time,
                complete=Complete.CUT if event.cut else Complete.UNREAD,
                size=nodes_size(event.nodes),
                note=f"{_cut(event)}; {names}" if event.cut else f"not read; {names}",
                fault=fault,
            )
            return
        reply = self._maker.reply(asked, StoreAnswer(Response(event.nodes)), event.time)
        if reply is not None:
            yield reply


def _fault(spoken: Spoken | None, response: Response) -> Fault | None:
    """What an error's code alone says: a cut description says nothing that is certain."""
    if not response.is_error:
        return None
    entry = None if spoken is None else spoken.service.xenstore_errors.get(response.code)
    if entry is not None:
        return Fault(str(Kind.DECLARED), entry.error)
    if response.code == UNKNOWN_FUNCTION:
        return Fault(str(Kind.UNKNOWN_METHOD))
    return Fault(str(Kind.UNDECLARED), response.code if response.code.isdecimal() else "")


def _cut(event: Seen) -> str:
    named = ", ".join(name for name in event.cut if name)
    return f"the log has cut {named}" if named else "the log has not all of it"


def _rotated(path: Path, note: Note) -> list[Path]:
    """The files of a log, oldest first: those that were rotated have a number behind their name."""
    older: list[Path] = []
    while (next_one := _numbered(path, len(older) + 1)) is not None:
        older.append(next_one)
    if older:
        note(f"{path}: read with {len(older)} older files, from {older[-1].name} on")
    return [*reversed(older), path]


def _numbered(path: Path, number: int) -> Path | None:
    candidates = (path.with_name(f"{path.name}.{number}{suffix}") for suffix in ("", ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _open(file: Path) -> BinaryIO:
    with file.open("rb") as stream:
        is_packed = stream.read(2) == _GZIP
    return cast("BinaryIO", gzip.open(file)) if is_packed else file.open("rb")
