"""One client's connection to a door, and the replies written to it: aiohttp's request handler with other habits.

What aiohttp's parser refuses although legacy clients send it is mended on the way in, replies are written in exactly
our bytes, and a client that shut down its sending side still hears the answer. A stream leaves the handler: its socket
goes on without it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, Headers, HttpReply, Peer, header, reply_head
from xmlrpc_gateway.request_heads import frame_of, read_head, request_line, split_request, unframed
from xmlrpc_gateway.streams import Stream

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

LOG: Final = logging.getLogger(__name__)

Answer = HttpReply | CloseSilently
_numbers: Final = itertools.count(1)

_FIELD_LIMIT: Final = 8190  # bytes of the request line and of one header; xapi's own server takes 1024 in all
_HEADERS_LIMIT: Final = 100
_IDLE_SECONDS: Final = 300.0  # as xapi's clients keep their connections
_BODY_SECONDS: Final = 300.0  # as xapi's server of 2012 waits for a read
_LINGER_SECONDS: Final = 5.0  # for a client that must hear "too large" while it still sends
_JOINED: Final = 64 * 1024  # up to here one write of head and body is cheaper than two


class Owner(Protocol):
    """Who is told of connections."""

    def opened(self, connection: Connection) -> None:
        """A connection has begun."""

    def ended(self, connection: Connection) -> None:
        """A connection and all its calls have ended."""

    def is_stream(self, method: str, target: str) -> bool:
        """Whether a request is a stream."""

    def carry(self, stream: Stream, connection: Connection) -> None:
        """A stream takes the place of its connection, whose end is not told."""

    def refuse(self, request: web.BaseRequest, error: BaseException | None) -> web.StreamResponse:
        """The reply to a request that could not be parsed, and to one whose answer failed."""


class Connection(web.RequestHandler):
    """One client's connection.

    peer            who is at the other end
    number          another one for each connection of this process
    idle            it has had its replies and sent nothing since
    half_closed     it will send no more, and may still wait for a reply
    is_framed       its request came in a frame, and so must the reply
    reads_body      a request's body is being waited for
    replies         how many it was given
    """

    def __init__(self, owner: Owner, server: web.Server, loop: asyncio.AbstractEventLoop, peer: Peer | str) -> None:
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
        self.number = next(_numbers)
        self.idle = False
        self.half_closed = False
        self.is_framed = False
        self.reads_body = False
        self.replies = 0
        self._owner = owner
        # What has come of a request's head; None within a request, whose head was looked at.
        self._head: bytes | None = b""
        self._left = 0  # bytes of the request's body that are still to come
        self._surplus = b""  # what was sent after the request
        self._leaving: Stream | None = None  # goes on when the replies before it have been written
        self._is_running = False
        self._is_lost = False
        self._is_carried = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """Gives the parser one request at a time, its head mended.

        What follows a request is kept until its reply was written: an error in it must not take the first one along.
        Empty data is the library's own way of saying that there is room again for what the parser keeps back.
        """
        if data and self._head is not None:
            data = (self._head + data).lstrip(b"\r\n")  # some clients end a body with an empty line
            if not data:
                return
            self.idle = False
            frame, bare = unframed(data)
            split = split_request(bare)
            if split is None:
                self._head = data
                return
            self._head = None
            self.is_framed = bool(frame)
            if self._leaves(bare, frame):
                return
            data, self._left, self._surplus = split
        elif len(data) > self._left:
            self._surplus += data[self._left :]
            data = data[: self._left]
            self._left = 0
            if self.transport is not None:
                self.transport.pause_reading()
        else:
            self._left -= len(data)
        super().data_received(data)

    def _leaves(self, data: bytes, frame: bytes) -> bool:
        """Whether a stream begins, which then leaves: the library closes its descriptor, and the stream has its own."""
        line = request_line(data)
        if line is None or not self._owner.is_stream(*line):
            return False
        found = read_head(data, frame)
        if found is None or self.transport is None:
            return False
        try:
            descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        except OSError as error:
            LOG.error("cannot carry a stream: %s", error)
            self.force_close()
            return True
        connection = socket.socket(fileno=descriptor)
        connection.settimeout(0)
        self._leaving = Stream(*found, connection, self.peer)
        self.transport.close()
        return True

    def eof_received(self) -> bool:  # type: ignore[override]  # the library always closes
        """A client that shut down its sending side after a whole request still gets its reply."""
        self.half_closed = True
        return self._request_count > self.replies and not self.reads_body

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._is_lost = True
        stream, self._leaving = self._leaving, None
        if stream is not None and exc is None:
            self._is_carried = True
            self._owner.carry(stream, self)
        elif stream is not None:
            stream.close()
        if not self._is_running:
            self._end()

    async def start(self) -> None:
        """Serves the connection's requests; it outlives the connection while a call runs whose client has left."""
        self._is_running = True
        try:
            await super().start()
        finally:
            self._is_running = False
            if self._is_lost:
                self._end()

    def _end(self) -> None:
        if not self._is_carried:
            self._owner.ended(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The reply to what could not be parsed, and to defects."""
        return self._owner.refuse(request, exc)

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
        if self._leaving is not None:
            self._leaving.close()
            self._leaving = None
        self.force_close()
        if transport is not None:
            transport.abort()


class Reply(web.StreamResponse):
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
        assert isinstance(connection, Connection)
        if self._answer is CLOSE_SILENTLY:
            raise ConnectionAbortedError("closed without a reply, as the daemon would")
        if connection.transport is None:
            LOG.info("a client left before its reply, which is dropped")
            raise ConnectionResetError("the client has left")
        body = self._answer.body
        head = head_of(self._answer, self._http_version, self._own_headers, keeps_open=self._keeps_open)
        if connection.is_framed:
            head = frame_of(head) + head
        if len(body) <= _JOINED:
            await request.writer.write(head + body)
        else:
            await request.writer.write(head)
            await request.writer.write(body)
        connection.replied(keeps_open=self._keeps_open)
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Everything was written by `prepare`."""


def head_of(reply: HttpReply, version: str, own_headers: Headers, *, keeps_open: bool) -> bytes:
    """The head of a reply with what frames it; `own_headers` are those of a reply without any."""
    headers = reply.headers or own_headers
    if header(headers, "content-length") is None:
        headers = (("content-length", str(len(reply.body))), *headers)
    if not keeps_open:
        headers = (*headers, ("connection", "close"))
    elif version == "1.0":
        headers = (*headers, ("connection", "keep-alive"))
    return reply_head(version, reply.status, headers)


async def read_body(request: web.BaseRequest, connection: Connection) -> bytes | None:
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
