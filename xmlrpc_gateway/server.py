"""The door where legacy callers enter: an HTTP server that behaves like the daemon it stands for.

aiohttp's low-level server parses requests and keeps connections. Three of its habits are replaced, since legacy daemons
have others: what it adds to replies (date, server, a charset), what it says to requests it cannot parse, and how it
accepts (here a listener can be given up without losing those who wait in its queue).

A call goes on when its client leaves; its reply is dropped. Full means: with `connection_limit` connections the door
stops accepting, and callers wait in the listener's queue.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from xmlrpc_gateway.http_messages import (
    CHARSET,
    CLOSE_SILENTLY,
    CloseSilently,
    Headers,
    HttpReply,
    HttpRequest,
    Peer,
    header,
    reply_head,
)

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp.abc import AbstractStreamWriter

    from xmlrpc_gateway.manners import HttpManner

LOG: Final = logging.getLogger(__name__)

Answer = HttpReply | CloseSilently

_FIELD_LIMIT: Final = 8190  # bytes of the request line and of one header; xapi's own server takes 1024 in all
_HEADERS_LIMIT: Final = 100
_HEAD_LIMIT: Final = 64 * 1024
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")
_HOST: Final = re.compile(rb"\nhost[ \t]*:", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r?\n|$)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_UNBOUNDED: Final = 2**62
_BLANK_LINE: Final = b"\r\n\r\n"
_NO_HOST: Final = "absent.host.invalid"  # stands in the parser's sight where a client sent no Host; never handed on
_IDLE_SECONDS: Final = 300.0  # as xapi's clients keep their connections
_BODY_SECONDS: Final = 300.0  # as xapi's server of 2012 waits for a read
_LINGER_SECONDS: Final = 5.0  # for a client that must hear "too large" while it still sends
_GZIP_FROM: Final = 1024
_ACCEPT_AT_ONCE: Final = 64
_ACCEPT_PAUSE_SECONDS: Final = 1.0
_JOINED: Final = 64 * 1024  # up to here one write of head and body is cheaper than two
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred


class HttpDoor:
    """One service's HTTP server, on any number of listeners. It must be made while an event loop runs.

    answer              gives the reply to a POST; it must not raise
    manner              how the daemon that we stand for behaves
    body_limit          bytes of a request's body, also after decompression
    answer_too_large    gives the reply to a body over the limit, which is not read; default: the manner's
    answer_others       gives the reply to requests that are no POST; default: the manner's
    """

    def __init__(
        self,
        answer: Callable[[HttpRequest], Awaitable[Answer]],
        *,
        manner: HttpManner,
        body_limit: int,
        answer_too_large: Callable[[str], Awaitable[Answer]] | None = None,
        answer_others: Callable[[HttpRequest], Awaitable[Answer]] | None = None,
        connection_limit: int = 1024,
    ) -> None:
        self._answer = answer
        self._manner = manner
        self._body_limit = body_limit
        self._answer_too_large = answer_too_large
        self._answer_others = answer_others
        self._connection_limit = connection_limit
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._serve)
        self._listeners: set[socket.socket] = set()
        self._paused = False
        self._arriving: set[asyncio.Task[object]] = set()
        self._connections: set[_Connection] = set()
        self._calls: set[asyncio.Task[object]] = set()
        self._draining = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def listen_unix(self, path: Path) -> socket.socket:
        """Listens at a path where nothing is yet; see sockets.take for one with an owner. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(self._connection_limit)
        except OSError:
            listener.close()
            raise
        await self.serve_socket(listener)
        return listener

    async def listen_tcp(self, host: str, port: int) -> socket.socket:
        """Listens at a numeric address; port 0 lets the system choose. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=self._connection_limit)
        await self.serve_socket(listener)
        return listener

    async def serve_socket(self, listener: socket.socket) -> None:
        """Serves a socket that listens already; the door closes it in the end."""
        listener.settimeout(0)
        self._listeners.add(listener)
        self._draining = False
        if not self._paused:
            self._loop.add_reader(listener, self._accept, listener)

    async def stop_accepting(self, listener: socket.socket) -> None:
        """Accepts all who wait in the listener's queue, then closes it. Nobody who had connected is refused."""
        self._listeners.discard(listener)
        self._loop.remove_reader(listener)
        while self._accept_one(listener):
            pass
        listener.close()
        if self._arriving:
            await asyncio.wait(self._arriving)

    async def drain(self, timeout: float) -> bool:
        """Waits, `timeout` seconds at most, until every connection has had its answer; True if all had.

        Idle connections are closed at once, others after their reply; a new one may still make its first call.
        """
        self._draining = True
        for connection in self._connections.copy():
            if connection.idle:
                connection.force_close()
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Ends everything: listeners, calls (cancelled), connections."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        if self._arriving:
            await asyncio.wait(self._arriving)
        for call in self._calls:
            call.cancel()
        for connection in self._connections.copy():
            connection.abort()
        await self._quiet.wait()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            if self._is_full():
                LOG.info("%d connections: no more are accepted until one ends", self._connection_limit)
                self._pause()
                return
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Whether somebody was accepted."""
        try:
            connection, address = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            # Out of descriptors or memory: those who wait keep waiting, which is what the queue is for.
            LOG.error("cannot accept a connection: %s; trying again in %s s", error, _ACCEPT_PAUSE_SECONDS)
            self._pause()
            self._loop.call_later(_ACCEPT_PAUSE_SECONDS, self._resume)
            return False
        connection.settimeout(0)
        peer = _peer(connection, address)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: _Connection(self, self._server, self._loop, peer), connection),
        )
        self._arriving.add(task)
        task.add_done_callback(self._arrived)
        self._quiet.clear()
        return True

    def _arrived(self, task: asyncio.Task[object]) -> None:
        self._arriving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.warning("a connection was lost while it was accepted: %s", error)
        self._settle()

    def _settle(self) -> None:
        if not self._connections and not self._arriving:
            self._quiet.set()
        if self._paused and not self._is_full():
            self._resume()

    def _is_full(self) -> bool:
        return len(self._connections) + len(self._arriving) >= self._connection_limit

    def _pause(self) -> None:
        self._paused = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)

    def opened(self, connection: _Connection) -> None:
        """A connection has begun."""
        self._connections.add(connection)

    def ended(self, connection: _Connection) -> None:
        """A connection and all its calls have ended."""
        self._connections.discard(connection)
        self._settle()

    def refuse(self, request: web.BaseRequest, error: BaseException | None) -> web.StreamResponse:
        """The reply to a request that could not be parsed, and to one whose answer failed."""
        if isinstance(error, HttpProcessingError):
            LOG.warning("unreadable HTTP request: %s", str(error.message)[:200])
        else:
            LOG.error("answering a request failed", exc_info=error)
        return _Reply(self._manner.unreadable, self._version(request), self._manner.headers, keeps_open=False)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        call = asyncio.current_task()
        assert isinstance(connection, _Connection)
        assert call is not None
        self._calls.add(call)
        try:
            answer, was_called = await self._reply_to(request, connection)
        finally:
            self._calls.discard(call)
        keeps_open = (
            was_called
            and self._manner.keep_alive
            and request.keep_alive
            and not self._draining
            and not connection.half_closed
        )
        headers = self._manner.headers
        if answer is not CLOSE_SILENTLY and not answer.headers and self._compresses(request, answer):
            headers = (*headers, ("Content-Encoding", "gzip"))
            answer = HttpReply(answer.status, (), gzip.compress(answer.body, compresslevel=1, mtime=0))
        return _Reply(answer, self._version(request), headers, keeps_open=keeps_open)

    async def _reply_to(self, request: web.BaseRequest, connection: _Connection) -> tuple[Answer, bool]:
        """The reply, and whether it is a call's own, after which the connection may go on."""
        manner = self._manner
        answer = self._answer if request.method == "POST" else self._answer_others
        if answer is None:
            return manner.answer_to(request.method), False
        decoded = ((name.decode(CHARSET), value.decode(CHARSET)) for name, value in request.raw_headers)
        headers = tuple(pair for pair in decoded if pair[1] != _NO_HOST)
        length = header(headers, "content-length")
        if header(headers, "transfer-encoding") is not None or (length is None and request.method == "POST"):
            return manner.no_length, False
        if length is not None and int(length) > self._body_limit:
            return await self._too_large(f"the body has {length} bytes, the limit is {self._body_limit}"), False
        body = await _body(request, connection)
        if body is None:
            return CLOSE_SILENTLY, False
        if header(headers, "content-encoding") == "gzip":
            try:
                body = _decompressed(body, self._body_limit)
            except zlib.error:
                return manner.unreadable, False
            if body is None:
                return await self._too_large(
                    f"the decompressed body exceeds the limit of {self._body_limit} bytes"
                ), False
            headers = _plain(headers, len(body))
        version = f"{request.version.major}.{request.version.minor}"
        message = HttpRequest(request.method, request.raw_path, version, headers, body, connection.peer)
        return await answer(message), True

    async def _too_large(self, text: str) -> Answer:
        if self._answer_too_large is None:
            return self._manner.too_large
        return await self._answer_too_large(text)

    def _compresses(self, request: web.BaseRequest, reply: HttpReply) -> bool:
        accepted = request.headers.get("Accept-Encoding", "")
        return self._manner.gzip and len(reply.body) > _GZIP_FROM and "gzip" in accepted

    def _version(self, request: web.BaseRequest) -> str:
        return "1.0" if self._manner.mirrors_version and request.version < (1, 1) else "1.1"


class _Connection(web.RequestHandler):
    """One client's connection.

    peer            who is at the other end
    idle            it has had its replies and sent nothing since
    half_closed     it will send no more, and may still wait for a reply
    reads_body      a request's body is being waited for
    replies         how many it was given
    """

    def __init__(self, door: HttpDoor, server: web.Server, loop: asyncio.AbstractEventLoop, peer: Peer | str) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=_IDLE_SECONDS,
            access_log=None,  # type: ignore[arg-type]  # documented to switch it off, typed as if it could not be
            max_line_size=_FIELD_LIMIT,
            max_field_size=_FIELD_LIMIT,
            max_headers=_HEADERS_LIMIT,
            lingering_time=_LINGER_SECONDS,
            auto_decompress=False,
        )
        self.peer = peer
        self.idle = False
        self.half_closed = False
        self.reads_body = False
        self.replies = 0
        self._door = door
        # What has come of a request's head; None within a request, whose head was looked at.
        self._head: bytes | None = b""
        self._left = 0  # bytes of the request's body that are still to come
        self._surplus = b""  # what was sent after the request
        self._is_running = False
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._door.opened(self)

    def data_received(self, data: bytes) -> None:
        """Gives the parser one request at a time, its head mended.

        What follows a request is kept until its reply was written: an error in it must not take the first one along.
        Empty data is the library's own way of saying that there is room again for what the parser keeps back.
        """
        if data and self._head is not None:
            self.idle = False
            data = self._begin(self._head + data)
            if not data:
                return
        elif len(data) > self._left:
            self._surplus += data[self._left :]
            data = data[: self._left]
            self._left = 0
            if self.transport is not None:
                self.transport.pause_reading()
        else:
            self._left -= len(data)
        super().data_received(data)

    def _begin(self, data: bytes) -> bytes:
        """What the parser gets of data that begins with a request; nothing while its head is incomplete."""
        end = _HEAD_END.search(data, 0, _HEAD_LIMIT)
        if end is None:
            if len(data) < _HEAD_LIMIT and data[:1].isalpha():
                self._head = data
                return b""
            self._head, self._left = None, _UNBOUNDED
            return data
        self._head = None
        head = data[: end.start()]
        stop = end.end() + _body_length(head)
        self._left = max(0, stop - len(data))
        self._surplus = data[stop:]
        if end[0] == _BLANK_LINE and _HOST.search(head):
            return data[:stop]
        return _mended(head) + data[end.end() : stop]

    def eof_received(self) -> bool:  # type: ignore[override]  # the library always closes
        """A client that shut down its sending side after a whole request still gets its reply."""
        self.half_closed = True
        return self._request_count > self.replies and not self.reads_body

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._is_lost = True
        if not self._is_running:
            self._door.ended(self)

    async def start(self) -> None:
        """Serves the connection's requests; it outlives the connection while a call runs whose client has left."""
        self._is_running = True
        try:
            await super().start()
        finally:
            self._is_running = False
            if self._is_lost:
                self._door.ended(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The reply to what could not be parsed, and to defects."""
        return self._door.refuse(request, exc)

    def replied(self, *, keeps_open: bool) -> None:
        """A reply was written; what the client had sent after its request comes next."""
        self.replies += 1
        if self.half_closed:
            self._lingering_time = 0.0  # nothing more can come that would have to be read off
        if keeps_open:
            self.idle = True
            self._head = b""
            if self._surplus and self.transport is not None:
                data, self._surplus = self._surplus, b""
                self.transport.resume_reading()
                self.data_received(data)

    def abort(self) -> None:
        """Ends the connection with whatever is on its way."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()


class _Reply(web.StreamResponse):
    """A reply in exactly our bytes."""

    def __init__(self, answer: Answer, version: str, headers: Headers, *, keeps_open: bool) -> None:
        super().__init__()
        self._answer = answer
        self._http_version = version
        self._own_headers = headers
        self._keeps_open = keeps_open

    @property
    def keep_alive(self) -> bool:
        return self._keeps_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Writes all of it. Raises ConnectionError where there is nothing to write, or nobody to write it to."""
        connection = request.protocol
        assert isinstance(connection, _Connection)
        if self._answer is CLOSE_SILENTLY:
            raise ConnectionAbortedError("closed without a reply, as the daemon would")
        if connection.transport is None:
            LOG.info("a client left before its reply, which is dropped")
            raise ConnectionResetError("the client has left")
        body = self._answer.body
        head = reply_head(self._http_version, self._answer.status, self._framed(self._answer))
        if len(body) <= _JOINED:
            await request.writer.write(head + body)
        else:
            await request.writer.write(head)
            await request.writer.write(body)
        connection.replied(keeps_open=self._keeps_open)
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Everything was written by `prepare`."""

    def _framed(self, reply: HttpReply) -> Headers:
        headers = reply.headers or self._own_headers
        if header(headers, "content-length") is None:
            headers = (("content-length", str(len(reply.body))), *headers)
        if not self._keeps_open:
            return (*headers, ("connection", "close"))
        if self._http_version == "1.0":
            return (*headers, ("connection", "keep-alive"))
        return headers


async def _body(request: web.BaseRequest, connection: _Connection) -> bytes | None:
    """The request's body as it was sent; None if it did not come."""
    content = request.content
    if content.is_eof():
        return await content.read()
    if connection.half_closed:
        return None
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.reads_body = True
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await content.read()
    except (OSError, RequestPayloadError):
        LOG.info("a request ended before its body did")
        return None
    finally:
        connection.reads_body = False


def _decompressed(body: bytes, limit: int) -> bytes | None:
    """The content of a gzip body; None if it has more than `limit` bytes. Raises zlib.error."""
    decompressor = zlib.decompressobj(wbits=31)
    content = decompressor.decompress(body, limit + 1)
    if len(content) > limit:
        return None
    if not decompressor.eof:
        raise zlib.error("the body ends too early")
    return content


def _plain(headers: Headers, length: int) -> Headers:
    """The headers of a request whose body was decompressed."""
    kept = tuple(pair for pair in headers if pair[0].lower() not in ("content-encoding", "content-length"))
    return (("content-length", str(length)), *kept)


def _mended(head: bytes) -> bytes:
    """A request's head with what the parser insists on and legacy clients leave out: CR before LF, Host in HTTP/1.1."""
    lines = _LINE_END.split(head)
    if not _HOST.search(head):
        lines.append(b"Host: " + _NO_HOST.encode())
    return b"\r\n".join(lines) + _BLANK_LINE


def _body_length(head: bytes) -> int:
    """How many bytes belong to the request after its head. One that will be refused may take all that comes."""
    length = _LENGTH.search(head)
    if length is not None:
        return int(length[1])
    return _UNBOUNDED if _CHUNKED.search(head) else 0


def _peer(connection: socket.socket, address: tuple[object, ...]) -> Peer | str:
    if connection.family == socket.AF_UNIX:
        pid, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return Peer(uid, gid, pid)
    return f"[{address[0]}]:{address[1]}" if connection.family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
