"""Calls to a legacy daemon, and relays to it byte for byte, of whole requests and of streams.

A connection per request and nothing sent twice: legacy daemons serve one request and close. The exchange is written on
the event loop's socket calls and not with an HTTP client library, because the bytes are the contract (header names and
order untouched, the socket's path as target, nothing added) and because an answer that does not come must be told apart
by how far the request had got. It also costs half of aiohttp's time (measured one at a time: 220 us against 440 us).
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.errors import (
    BadReply,
    ClosedSilently,
    DaemonGone,
)
from xmlrpc_gateway.exchanges import Exchanges
from xmlrpc_gateway.http_messages import (
    CLOSE_SILENTLY,
    HOP_BY_HOP,
    CloseSilently,
    HttpReply,
    HttpRequest,
    parse_reply_head,
    request_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from xmlrpc_gateway.streams import Stream

_BLOCK: Final = 256 * 1024
_BODILESS: Final = frozenset({204, 304})
_HEAD_LIMIT: Final = 64 * 1024
_REPLY_LIMIT: Final = 512 * 1024 * 1024  # legacy answers know no limit; this is against a daemon gone mad
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


class DaemonClient(Exchanges):
    """One legacy daemon, at a Unix socket (`path`) or over TCP (`host`, `port`).

    `target` is where calls are POSTed; by default at the socket's path, on TCP at `/`.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        host: str = "localhost",
        port: int = 80,
        target: str | None = None,
        limit: int = 64,
        user_agent: str = "xcp-dbus-bridge",
    ) -> None:
        super().__init__(path, host, port, limit=limit)
        self._user_agent = user_agent
        self._target = target or path or "/"

    async def call(self, body: bytes, *, timeout: float | None, is_long_poll: bool = False) -> bytes:
        """POSTs a call and gives the body of the reply. Raises DaemonError.

        `timeout` in seconds.
        """
        headers = (("content-length", str(len(body))), ("host", self._host), ("user-agent", self._user_agent))
        head = request_head("POST", self._target, "1.1", headers)
        reply = await self._exchange(head, body, timeout, is_long_poll=is_long_poll)
        if reply is CLOSE_SILENTLY:
            raise ClosedSilently("the daemon closed the connection without a reply")
        if reply.status != 200:
            raise BadReply(f"expected HTTP status 200, got {reply.status}: {reply.body[:200]!r}")
        return reply.body

    async def forward(
        self, request: HttpRequest, *, timeout: float | None, is_long_poll: bool = False
    ) -> HttpReply | CloseSilently:
        """Relays a request as it is and gives the reply as it is, but for headers of one hop. Raises DaemonError."""
        headers = tuple(pair for pair in request.headers if pair[0].lower() not in HOP_BY_HOP)
        head = request_head(request.method, request.target, request.version, headers)
        bodiless = request.method == "HEAD"
        reply = await self._exchange(head, request.body, timeout, bodiless=bodiless, is_long_poll=is_long_poll)
        if reply is CLOSE_SILENTLY:
            return reply
        kept = tuple(pair for pair in reply.headers if pair[0].lower() not in HOP_BY_HOP)
        return HttpReply(reply.status, kept, reply.body)

    async def relay(
        self, stream: Stream, *, timeout: float | None = None, change_head: Callable[[bytes], bytes] = bytes
    ) -> None:
        """Passes a stream on, and its answer back, until both are done; `timeout` is for the connection, in seconds.

        `change_head` gives its head as the daemon is to see it, of the same length.
        Raises DaemonUnreachable when nothing was sent, ClosedSilently and DaemonGone when nothing was answered: the
        stream's client can still be given an answer then.
        """
        with await self.connect(timeout) as connection:
            await stream.relay(connection, change_head)

    async def _exchange(
        self, head: bytes, body: bytes, timeout: float | None, *, bodiless: bool = False, is_long_poll: bool
    ) -> HttpReply | CloseSilently:
        async def talk(connection: socket.socket) -> HttpReply | CloseSilently:
            await _send(connection, head, body)
            return await _receive(connection, bodiless=bodiless)

        return await self.exchange(talk, timeout, is_long_poll=is_long_poll)


async def _send(connection: socket.socket, head: bytes, body: bytes) -> None:
    loop = asyncio.get_running_loop()
    try:
        if len(body) <= _BLOCK:
            await loop.sock_sendall(connection, head + body)
        else:
            await loop.sock_sendall(connection, head)
            await loop.sock_sendall(connection, body)
    except (BrokenPipeError, ConnectionResetError):
        # It may have answered without reading everything (a body over its limit): what it said decides.
        pass


async def _receive(connection: socket.socket, *, bodiless: bool) -> HttpReply | CloseSilently:
    """The reply; the answer to HEAD is `bodiless`. Raises DaemonGone, BadReply, OSError."""
    received = bytearray()
    while (end := _HEAD_END.search(received)) is None:
        if len(received) > _HEAD_LIMIT:
            raise BadReply(f"expected the end of the headers within {_HEAD_LIMIT} bytes")
        if not await _more(connection, received):
            if not received:
                return CLOSE_SILENTLY
            raise DaemonGone(f"the connection ended within the headers of the reply, after {len(received)} bytes")
    status, headers, length = parse_reply_head(bytes(received[: end.start()]))
    start = end.end()
    if bodiless or status in _BODILESS:
        return HttpReply(status, headers, b"")
    wanted = _REPLY_LIMIT if length is None else length
    if wanted > _REPLY_LIMIT:
        raise BadReply(f"content-length: {wanted} bytes, the limit is {_REPLY_LIMIT}")
    while len(received) - start < wanted:
        if not await _more(connection, received):
            if length is None:
                return HttpReply(status, headers, bytes(received[start:]))
            raise DaemonGone(f"the connection ended after {len(received) - start} of {length} bytes of the reply")
    if length is None:
        raise BadReply(f"the reply exceeds the limit of {_REPLY_LIMIT} bytes")
    with memoryview(received) as view:
        return HttpReply(status, headers, bytes(view[start : start + length]))


async def _more(connection: socket.socket, received: bytearray) -> bool:
    """Waits for bytes and appends them; False at the end of the connection."""
    block = await asyncio.get_running_loop().sock_recv(connection, _BLOCK)
    received += block
    return bool(block)
