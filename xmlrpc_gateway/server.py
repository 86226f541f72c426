"""The door where legacy callers enter: an HTTP server that behaves like the daemon it stands for.

aiohttp's low-level server parses requests and keeps connections. Three of its habits are replaced, since legacy daemons
have others: what it adds to replies (date, server, a charset), what it says to requests it cannot parse, and how it
accepts (here a listener can be given up without losing those who wait in its queue).

A call goes on when its client leaves, unless it is told to end then; its reply is dropped. A stream is a request whose
body is not read: whoever answers it reads it, or passes it on. Full means: with `connection_limit` connections the door
stops accepting, and callers wait in the listener's queue.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from xmlrpc_gateway.connection import Answer, Connection, Reply, head_of, read_body
from xmlrpc_gateway.departures import watching
from xmlrpc_gateway.http_messages import (
    CHARSET,
    CLOSE_SILENTLY,
    Headers,
    HttpReply,
    HttpRequest,
    header,
)
from xmlrpc_gateway.listeners import Listeners
from xmlrpc_gateway.request_heads import NO_HOST

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from xmlrpc_gateway.http_messages import Peer
    from xmlrpc_gateway.manners import HttpManner
    from xmlrpc_gateway.streams import Stream

LOG: Final = logging.getLogger(__name__)

_GZIP_FROM: Final = 1024


class HttpDoor:
    """One service's HTTP server, on any number of listeners. It must be made while an event loop runs.

    answer              gives the reply to a POST; it must not raise
    manner              how the daemon that we stand for behaves
    body_limit          bytes of a request's body, also after decompression
    answer_too_large    gives the reply to a body over the limit, which is not read; default: the manner's
    is_stream           says by method and target whether a request is a stream; default: none is
    answer_stream       answers a stream: relays it and gives None, or gives a reply; it must not raise
    ends_with_client    says of a call whether it is cancelled when its client leaves; default: none is. One that only
                        ended its sending has not left, but on TCP, where nobody can tell the two apart
    """

    def __init__(
        self,
        answer: Callable[[HttpRequest], Awaitable[Answer]],
        *,
        manner: HttpManner,
        body_limit: int,
        answer_too_large: Callable[[str], Awaitable[Answer]] | None = None,
        is_stream: Callable[[str, str], bool] | None = None,
        answer_stream: Callable[[Stream], Awaitable[Answer | None]] | None = None,
        ends_with_client: Callable[[HttpRequest], bool] | None = None,
        connection_limit: int = 1024,
    ) -> None:
        self._answer = answer
        self._manner = manner
        self._body_limit = body_limit
        self._answer_too_large = answer_too_large
        self._is_stream = is_stream
        self._answer_stream = answer_stream
        self._ends_with_client = ends_with_client
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._serve)
        self._listeners = Listeners(self._accepted, limit=connection_limit)
        self._arriving: set[asyncio.Task[object]] = set()
        self._connections: set[Connection] = set()
        self._calls: set[asyncio.Task[object]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._draining = False

    async def listen_unix(self, path: Path) -> socket.socket:
        """Listens at a path where nothing is yet; see sockets.take for one with an owner. Raises OSError."""
        self._draining = False
        return self._listeners.listen_unix(path)

    async def listen_tcp(self, host: str, port: int) -> socket.socket:
        """Listens at a numeric address; port 0 lets the system choose. Raises OSError."""
        self._draining = False
        return self._listeners.listen_tcp(host, port)

    async def serve_socket(self, listener: socket.socket) -> None:
        """Serves a socket that listens already; the door closes it in the end."""
        self._draining = False
        self._listeners.serve(listener)

    async def stop_accepting(self, listener: socket.socket | None = None) -> None:
        """Accepts all who wait in the listener's queue (None: any queue), then closes it. Nobody there is refused."""
        await self._listeners.stop(listener)
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
        return await self._listeners.quiet(timeout)

    async def close(self) -> None:
        """Ends everything: listeners, calls and streams (cancelled), connections."""
        self._listeners.close()
        if self._arriving:
            await asyncio.wait(self._arriving)
        for task in (*self._calls, *self._streams):
            task.cancel()
        for connection in self._connections.copy():
            connection.abort()
        await self._listeners.quiet(None)

    def _accepted(self, connection: socket.socket, peer: Peer | str) -> None:
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: Connection(self, self._server, self._loop, peer), connection),
        )
        self._arriving.add(task)
        task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[object]) -> None:
        self._arriving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.warning("a connection was lost while it was accepted: %s", error)
            self._listeners.ended()

    def opened(self, connection: Connection) -> None:
        """A connection has begun."""
        self._connections.add(connection)

    def ended(self, connection: Connection) -> None:
        """A connection and all its calls have ended."""
        self._connections.discard(connection)
        self._listeners.ended()

    def is_stream(self, method: str, target: str) -> bool:
        """Whether a request is a stream."""
        return self._is_stream is not None and self._is_stream(method, target)

    def carry(self, stream: Stream, connection: Connection) -> None:
        """A stream takes the place of its connection."""
        self._connections.discard(connection)
        task = self._loop.create_task(self._serve_stream(stream))
        self._streams.add(task)
        task.add_done_callback(partial(self._stream_ended, stream))

    def _stream_ended(self, stream: Stream, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which may be cancelled before it has begun.
        stream.close()
        self._streams.discard(task)
        self._listeners.ended()

    async def _serve_stream(self, stream: Stream) -> None:
        assert self._answer_stream is not None
        try:
            answer = await self._answer_stream(stream)
        except Exception:
            LOG.exception("answering a stream failed")
            answer = self._manner.unreadable
        if isinstance(answer, HttpReply):
            head = head_of(answer, self._version(stream.version), self._manner.headers, keeps_open=False)
            await stream.answer(head, b"" if stream.method == "HEAD" else answer.body)

    def refuse(self, request: web.BaseRequest, error: BaseException | None) -> web.StreamResponse:
        """The reply to a request that could not be parsed, and to one whose answer failed."""
        if isinstance(error, HttpProcessingError):
            # Without its text, which shows what the client sent.
            LOG.warning("unreadable HTTP request: %s", type(error).__name__)
        else:
            LOG.error("answering a request failed", exc_info=error)
        version = self._version(_version_of(request))
        return Reply(self._manner.unreadable, version, self._manner.headers, keeps_open=False)

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
        manner = self._manner
        if answer is not CLOSE_SILENTLY and manner.is_own(answer.headers) and self._compresses(request, answer):
            headers = (*(answer.headers or manner.headers), ("Content-Encoding", "gzip"))
            answer = HttpReply(answer.status, headers, gzip.compress(answer.body, compresslevel=1, mtime=0))
        return Reply(answer, self._version(_version_of(request)), manner.headers, keeps_open=keeps_open)

    async def _reply_to(self, request: web.BaseRequest, connection: Connection) -> tuple[Answer, bool]:
        """The reply, and whether it is a call's own, after which the connection may go on."""
        manner = self._manner
        if request.method != "POST" or self.is_stream(request.method, request.raw_path):
            return manner.answer_to(request.method), False
        decoded = ((name.decode(CHARSET), value.decode(CHARSET)) for name, value in request.raw_headers)
        headers = tuple(pair for pair in decoded if pair[1] != NO_HOST)
        length = header(headers, "content-length")
        if header(headers, "transfer-encoding") is not None or length is None:
            return manner.no_length, False
        if int(length) > self._body_limit:
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
        version = _version_of(request)
        numbered = connection.peer, connection.number
        message = HttpRequest(request.method, request.raw_path, version, headers, body, *numbered)
        if self._ends_with_client is not None and self._ends_with_client(message):
            return await self._answer_while_heard(message, connection), True
        return await self._answer(message), True

    async def _answer_while_heard(self, message: HttpRequest, connection: Connection) -> Answer:
        """The reply to a call that is cancelled when its client leaves."""
        call = asyncio.current_task()
        if connection.transport is None or call is None:
            return CLOSE_SILENTLY
        descriptor = connection.transport.get_extra_info("socket").fileno()
        with watching(descriptor, call.cancel, at_half_close=isinstance(connection.peer, str)):
            return await self._answer(message)

    async def _too_large(self, text: str) -> Answer:
        if self._answer_too_large is None:
            return self._manner.too_large
        return await self._answer_too_large(text)

    def _compresses(self, request: web.BaseRequest, reply: HttpReply) -> bool:
        accepted = request.headers.get("Accept-Encoding", "")
        return self._manner.gzip and len(reply.body) > _GZIP_FROM and "gzip" in accepted

    def _version(self, asked: str) -> str:
        return "1.0" if self._manner.mirrors_version and asked < "1.1" else "1.1"


def _version_of(request: web.BaseRequest) -> str:
    return f"{request.version.major}.{request.version.minor}"


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
