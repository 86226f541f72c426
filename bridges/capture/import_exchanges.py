"""Calls in files of recorded exchanges: one JSON object a line, the bytes of one connection in both directions.

    {"exchange": NAME, "request": BASE64, "response": BASE64, "chunks": [[SECONDS, ">" or "<", BYTES], ...]}

`chunks` may be missing. What was spoken is told by the first bytes: HTTP (XML-RPC or JSON), frames of sixteen digits
and JSON, or xenstore packets.

What this cannot carry
    * when it was: an exchange is given a millisecond after the one before it, from 1970 on
    * a conversation of several HTTP requests, as message-switch has them: each is counted, none is read
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bridges.calls import Door, Side
from bridges.capture.imports import Asked, Found, Imported, Maker, Note, Spoken, imported
from bridges.capture.messages import (
    HttpCall,
    Nothing,
    PageCall,
    SocketAnswer,
    SocketCall,
    StoreAnswer,
    StoreCall,
    Tongue,
    nodes_size,
)
from bridges.capture.records import CLOSED, UNKNOWN, Complete, Leg, Record
from bridges.capture.store import CaptureError
from bridges.interfaces import model
from bridges.xmlrpc_translation import Translation
from bridges.xmlrpc_values import Mismatch
from xenstore_rpc import conversations
from xenstore_rpc.errors import BadRecord
from xmlrpc_gateway.dialects import DIALECTS
from xmlrpc_gateway.encodings import JSON_OF, XML
from xmlrpc_gateway.errors import BadReply, CodecError, Malformed
from xmlrpc_gateway.framed_messages import HEAD_SIZE, body_length
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, HttpReply, HttpRequest, parse_reply_head
from xmlrpc_gateway.request_heads import read_head, request_line

SOURCE: Final = "recorded exchanges"
SWITCH: Final = "message-switch"
LINE_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of the longest line that is read."""

GUESSED_BY: Final = 64
"""Exchanges from which the dialect is guessed, and whether it is the service at all."""

FEWEST: Final = 8
"""Of so many exchanges one must be a call of the service. In recordings of wrong input a third was, of others none."""

_STEP: Final = 1_000_000  # nanoseconds between two exchanges
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


class _Line(msgspec.Struct):
    request: bytes
    response: bytes = b""
    exchange: str = ""
    chunks: list[tuple[float, str, int]] = []


_decoder: Final = msgspec.json.Decoder(_Line)


def exchanges(path: Path, service: str, dialect: str | None, note: Note) -> Imported:
    """The calls to one service in a file (`message-switch`: conversations with it); without a dialect it is guessed.

    Raises CaptureError and OSError, now or while the records are read.
    """
    maker = Maker()
    if service == SWITCH:
        return imported(SOURCE, maker, {}, _Import(path, note, maker, None).run())
    if service not in model.services():
        raise CaptureError(f"service: expected one of {', '.join(model.services())} or {SWITCH}, got {service!r}")
    known = model.dialects(service)
    if dialect is not None and dialect not in known:
        raise CaptureError(f"dialect: expected one of {service}'s ({', '.join(known)}), got {dialect!r}")
    wanted = known if dialect is None else (dialect,)
    spoken = _best(path, [Spoken(model.load_dialect(service, each), each) for each in wanted])
    if dialect is None and len(known) > 1:
        note(f"{path}: read in the dialect {spoken.dialect}")
    return imported(SOURCE, maker, {service: spoken.dialect}, _Import(path, note, maker, spoken).run())


# ---- what was spoken


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LINE_LIMIT):
            number += 1
            if line.isspace():
                continue
            try:
                yield number, _decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise CaptureError(f"{path} line {number}: is no recorded exchange: {error}") from None


def _tongue(spoken: Spoken, body: bytes) -> Tongue:
    encoding = JSON_OF[spoken.dialect] if body.lstrip().startswith((b"{", b"[")) else XML
    return encoding, Translation(DIALECTS[spoken.dialect], integers_as_text=encoding.integers_as_text)


def _body(request: bytes) -> bytes:
    """The body of a request over HTTP or in a frame, as far as there is one."""
    if request_line(request) is not None:
        read = read_head(request)
        return b"" if read is None else read[1]
    return request[HEAD_SIZE:]


def _best(path: Path, candidates: list[Spoken]) -> Spoken:
    """The dialect in which most of the first calls can be read. Raises CaptureError when there is none."""
    counts: Counter[str] = Counter()
    names: dict[str, None] = {}
    looked_at = 0
    for _, line in islice(_lines(path), GUESSED_BY):
        looked_at += 1
        for spoken in candidates:
            counts[spoken.dialect] += _fits(spoken, line, names)
    if not looked_at:
        raise CaptureError(f"{path}: the file is empty", 3)
    best = max(candidates, key=lambda spoken: counts[spoken.dialect])
    if (fitting := counts[best.dialect]) * FEWEST < looked_at:
        who = f"{best.service.name} as its daemons speak {best.dialect}"
        seen = ", ".join(list(names)[:5]) or "no call at all"
        raise CaptureError(f"{path}: {fitting} of its first {looked_at} exchanges are calls of {who}; it has {seen}")
    return best


def _fits(spoken: Spoken, line: _Line, names: dict[str, None]) -> bool:
    """Whether the service knows a line's call, as this dialect has it; `names` gets what is called."""
    if conversations.looks_like_one(line.request):
        try:
            found = [each.request.function for each in conversations.calls(line.request, line.response)]
        except BadRecord:
            return False
        names.update(dict.fromkeys(found))
        return any(function in spoken.service.by_xenstore_function for function in found)
    body = _body(line.request)
    encoding, translation = _tongue(spoken, body)
    try:
        call = encoding.read_call(body)
    except CodecError:
        return False
    names[call.method] = None
    method = spoken.service.method(call.method) or spoken.service.method_by_alias(call.method)
    if method is None:
        return False
    try:
        translation.of(method).read_arguments(call.params)
    except Mismatch:
        return False
    return True


# ---- the records


class _Times(NamedTuple):
    """When the bytes of a connection went by: nanoseconds, and how many had gone in that direction."""

    begin: int
    sent: list[tuple[int, int]]
    received: list[tuple[int, int]]

    @classmethod
    def of(cls, line: _Line, begin: int) -> _Times:
        found: dict[str, list[tuple[int, int]]] = {">": [], "<": []}
        for seconds, direction, size in line.chunks:
            so_far = found.setdefault(direction, [])
            so_far.append((begin + int(seconds * 1e9), (so_far[-1][1] if so_far else 0) + size))
        return cls(begin, found[">"], found["<"])

    def at(self, passed: list[tuple[int, int]], size: int) -> int:
        """When that many bytes had gone by."""
        return next((time for time, so_far in passed if so_far >= size), passed[-1][0] if passed else self.begin)

    @property
    def end(self) -> int:
        return max((time for time, _ in (*self.sent, *self.received)), default=self.begin)


class _Import:
    """One import; without `spoken` everything is a message-switch's."""

    def __init__(self, path: Path, note: Note, maker: Maker, spoken: Spoken | None) -> None:
        self._path = path
        self._note = note
        self._maker = maker
        self._spoken = spoken
        self._conn = ""
        self._switched = 0
        self._found = 0

    def run(self) -> Iterator[Record]:
        time, has_times = 0, False
        for number, line in _lines(self._path):
            self._conn = line.exchange or str(number)
            times = _Times.of(line, time + _STEP)
            has_times |= bool(line.chunks)
            before = self._found
            yield from self._records(line, times)
            if self._found == before:
                self._note(f"{self._path} line {number}: {self._conn}: no call is in it")
            time = times.end
        if self._switched:
            self._note(
                f"{self._path}: {self._switched} HTTP requests in conversations, as message-switch has them: "
                "the bridge does not carry them; they were counted and not read"
            )
        if not self._found:
            raise CaptureError(f"{self._path}: no call is in this file", 3)
        what = "says when an exchange began" if has_times else "says when anything was"
        self._note(f"{self._path}: nothing in it {what}: the exchanges are a millisecond apart")

    def _records(self, line: _Line, times: _Times) -> Iterator[Record]:
        if self._spoken is not None and conversations.looks_like_one(line.request):
            yield from self._conversation(self._spoken, line, times)
        elif request_line(line.request) is not None:
            requests = list(_http_requests(line.request))
            if self._spoken is None:
                yield from self._switch(requests, times)
            else:
                yield from self._http(self._spoken, requests, line, times)
        elif self._spoken is not None:
            yield from self._framed(self._spoken, line, times)

    def _where(self, door: Door, time: int) -> Found:
        self._found += 1
        return Found(time, Leg.CALLER, door, self._conn, side=str(Side.LEGACY))

    def _reply(self, asked: Asked, answer: SocketAnswer | StoreAnswer | Nothing, time: int) -> Iterator[Record]:
        reply = self._maker.reply(asked, answer, time)
        if reply is not None:
            yield reply

    def _unread(self, service: str, door: Door, line: _Line, times: _Times, text: str) -> Iterator[Record]:
        found = self._where(door, times.begin)
        asked = self._maker.bare_request(
            service, "", found, complete=Complete.UNREAD, size=len(line.request), note=text
        )
        yield asked.record
        outcome = UNKNOWN if line.response else CLOSED
        size = len(line.response)
        yield self._maker.bare_reply(
            asked, outcome, times.end, complete=Complete.UNREAD if size else Complete.COMPLETE, size=size, note=""
        )

    def _http(self, spoken: Spoken, requests: list[HttpRequest], line: _Line, times: _Times) -> Iterator[Record]:
        if not requests:
            yield from self._unread(spoken.service.name, Door.HTTP, line, times, "no whole HTTP request")
            return
        request = requests[0]
        if len(requests) > 1:  # legacy daemons answer one a connection
            self._note(f"{self._path}: {self._conn}: only the first of its {len(requests)} requests was read")
        found = self._where(Door.HTTP, times.begin)
        if request.method != "POST":
            page = PageCall(f"{request.method} {request.target.partition('?')[0]}")
            asked = self._maker.request(spoken, page, None, found)
            yield asked.record
            yield from self._reply(asked, Nothing(), times.end)
            return
        tongue = _tongue(spoken, request.body)
        asked = self._maker.request(spoken, HttpCall(tongue, request), None, found)
        yield asked.record
        try:
            reply = _http_reply(line.response)
        except BadReply:
            size = len(line.response)
            yield self._maker.bare_reply(
                asked, UNKNOWN, times.end, complete=Complete.UNREAD, size=size, note="no HTTP reply"
            )
            return
        yield from self._reply(asked, SocketAnswer(tongue, reply), times.end)

    def _framed(self, spoken: Spoken, line: _Line, times: _Times) -> Iterator[Record]:
        try:
            body = _frame(line.request)
            answer = _frame(line.response) if line.response else CLOSE_SILENTLY
        except Malformed:
            yield from self._unread(spoken.service.name, Door.FRAMED, line, times, "no whole frame")
            return
        tongue = _tongue(spoken, b"{")
        asked = self._maker.request(spoken, SocketCall(tongue, body), None, self._where(Door.FRAMED, times.begin))
        yield asked.record
        yield from self._reply(asked, SocketAnswer(tongue, answer), times.end)

    def _conversation(self, spoken: Spoken, line: _Line, times: _Times) -> Iterator[Record]:
        try:
            found = list(conversations.calls(line.request, line.response))
        except BadRecord as error:
            self._note(f"{self._path}: {self._conn}: {error}")
            return
        for each in found:
            begin = times.at(times.sent, each.sent)
            end = max(begin, times.at(times.received, each.received))
            request, response = each.request, each.response
            where = self._where(Door.XENSTORE, begin)
            if each.tree != spoken.service.name:
                yield self._maker.bare_request(
                    each.tree,
                    request.function,
                    where,
                    complete=Complete.UNREAD,
                    size=nodes_size(request.arguments),
                    note=f"another tree than {spoken.service.name}",
                ).record
                continue
            method = spoken.service.by_xenstore_function.get(request.function)
            message = StoreCall(request, request.function, request.request_id)
            asked = self._maker.request(spoken, message, method, where)
            yield asked.record
            if response is not None:
                yield from self._reply(asked, StoreAnswer(response), end)

    def _switch(self, requests: list[HttpRequest], times: _Times) -> Iterator[Record]:
        for request in requests:
            self._switched += 1
            name = f"{request.method} /{request.target.split('/')[1] if '/' in request.target else ''}"
            yield self._maker.bare_request(
                SWITCH,
                name.partition("?")[0],
                self._where(Door.HTTP, times.begin),
                complete=Complete.UNREAD,
                size=len(request.body),
                note="message-switch is no door of the bridge",
            ).record


def _http_requests(data: bytes) -> Iterator[HttpRequest]:
    """The whole requests of a connection, one behind the other."""
    while (read := read_head(data)) is not None:
        head, rest = read
        body = rest[: head.body_length]
        yield HttpRequest(head.method, head.target, head.version, head.headers, body, "")
        data = rest[len(body) :]


def _http_reply(data: bytes) -> HttpReply | CloseSilently:
    """The reply of a connection. Raises BadReply."""
    if not data:
        return CLOSE_SILENTLY
    end = _HEAD_END.search(data)
    if end is None:
        raise BadReply("expected a whole head")
    status, headers, length = parse_reply_head(data[: end.start()])
    body = data[end.end() :]
    return HttpReply(status, headers, body if length is None else body[:length])


def _frame(data: bytes) -> bytes:
    """The body of a frame. Raises Malformed."""
    length = body_length(data[:HEAD_SIZE])
    body = data[HEAD_SIZE : HEAD_SIZE + length]
    if len(body) < length:
        raise Malformed(f"expected a body of {length} bytes, got {len(body)}")
    return body
