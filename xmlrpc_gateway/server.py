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
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from xmlrpc_gateway.connection import Answer, Connection, Reply, read_body
from xmlrpc_gateway.http_messages import (
    CHARSET,
    CLOSE_SILENTLY,
    Headers,
    HttpReply,
    HttpRequest,
    Peer,
    header,
)
from xmlrpc_gateway.request_heads import NO_HOST

if TYPE_CHECKING:
    from pathlib import Path

    from xmlrpc_gateway.manners import HttpManner

LOG: Final = logging.getLogger(__name__)

_GZIP_FROM: Final = 1024
_ACCEPT_AT_ONCE: Final = 64
_ACCEPT_PAUSE_SECONDS: Final = 1.0
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
        self._connections: set[Connection] = set()
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
            self._loop.connect_accepted_socket(lambda: Connection(self, self._server, self._loop, peer), connection),
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

    def opened(self, connection: Connection) -> None:
        """A connection has begun."""
        self._connections.add(connection)

    def ended(self, connection: Connection) -> None:
        """A connection and all its calls have ended."""
        self._connections.discard(connection)
        self._settle()

    def refuse(self, request: web.BaseRequest, error: BaseException | None) -> web.StreamResponse:
        """The reply to a request that could not be parsed, and to one whose answer failed."""
        if isinstance(error, HttpProcessingError):
            LOG.warning("unreadable HTTP request: %r", str(error.message)[:200])
        else:
            LOG.error("answering a request failed", exc_info=error)
        return Reply(self._manner.unreadable, self._version(request), self._manner.headers, keeps_open=False)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        call = asyncio.current_task()
        assert isinstance(connection, Connection)
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
        return Reply(answer, self._version(request), headers, keeps_open=keeps_open)

    async def _reply_to(self, request: web.BaseRequest, connection: Connection) -> tuple[Answer, bool]:
        """The reply, and whether it is a call's own, after which the connection may go on."""
        manner = self._manner
        answer = self._answer if request.method == "POST" else self._answer_others
        if answer is None:
            return manner.answer_to(request.method), False
        decoded = ((name.decode(CHARSET), value.decode(CHARSET)) for name, value in request.raw_headers)
        headers = tuple(pair for pair in decoded if pair[1] != NO_HOST)
        length = header(headers, "content-length")
        if header(headers, "transfer-encoding") is not None or (length is None and request.method == "POST"):
            return manner.no_length, False
        if length is not None and int(length) > self._body_limit:
            return await self._too_large(f"the body has {length} bytes, the limit is {self._body_limit}"), False
        body = await read_body(request, connection)
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


def _peer(connection: socket.socket, address: tuple[object, ...]) -> Peer | str:
    if connection.family == socket.AF_UNIX:
        pid, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return Peer(uid, gid, pid)
    return f"[{address[0]}]:{address[1]}" if connection.family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
