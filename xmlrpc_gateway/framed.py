"""The framed sockets (`*.json`), from both sides: the door where legacy callers enter, and calls to a legacy daemon.

A connection carries one exchange. What the door cannot read, and a body over its limit, is met as the daemons do: the
connection is closed without a byte. What follows a request is ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.departures import watching
from xmlrpc_gateway.errors import (
    BadReply,
    ClosedSilently,
    CodecError,
    DaemonGone,
    Malformed,
    OverLimit,
)
from xmlrpc_gateway.exchanges import Exchanges
from xmlrpc_gateway.framed_messages import HEAD_SIZE, FramedRequest, body_length, head
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, Peer
from xmlrpc_gateway.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

LOG: Final = logging.getLogger(__name__)

_BLOCK: Final = 256 * 1024
_READ_OFF_BLOCKS: Final = 8
_CLIENT_SECONDS: Final = 300.0  # for a client to send its request, and to take its reply
_REPLY_LIMIT: Final = 512 * 1024 * 1024  # legacy answers know no limit; this is against a daemon gone mad


class FramedDoor:
    """One service's framed socket, on any number of listeners. It must be made while an event loop runs.

    answer              gives the body of a reply, or closes silently; it must not raise
    body_limit          bytes of a request's body
    ends_with_client    whether a call is cancelled when its client leaves (one that only ended its sending has not
                        left); else it goes on, and its reply is dropped
    connection_limit    with so many connections no more are accepted; callers wait in the listener's queue
    """

    def __init__(
        self,
        answer: Callable[[FramedRequest], Awaitable[bytes | CloseSilently]],
        *,
        body_limit: int,
        ends_with_client: Callable[[FramedRequest], bool] | None = None,
        connection_limit: int = 1024,
    ) -> None:
        self._answer = answer
        self._body_limit = body_limit
        self._ends_with_client = ends_with_client
        self._listeners = Listeners(self._accepted, limit=connection_limit)
        self._exchanges: set[asyncio.Task[None]] = set()

    async def listen_unix(self, path: Path) -> socket.socket:
        """Listens at a path where nothing is yet; see sockets.take for one with an owner. Raises OSError."""
        return self._listeners.listen_unix(path)

    async def serve_socket(self, listener: socket.socket) -> None:
        """Serves a Unix socket that listens already; the door closes it in the end."""
        self._listeners.serve(listener)

    async def stop_accepting(self, listener: socket.socket | None = None) -> None:
        """Accepts all who wait in the listener's queue (None: any queue), then closes it. Nobody there is refused."""
        await self._listeners.stop(listener)

    async def drain(self, timeout: float) -> bool:
        """Waits, `timeout` seconds at most, until every connection has had its answer; True if all had."""
        return await self._listeners.quiet(timeout)

    async def close(self) -> None:
        """Ends everything: listeners, calls (cancelled), connections."""
        self._listeners.close()
        for exchange in self._exchanges:
            exchange.cancel()
        await self._listeners.quiet(None)

    def _accepted(self, connection: socket.socket, peer: Peer | str) -> None:
        assert isinstance(peer, Peer), "framed sockets are Unix sockets"

        def ended(exchange: asyncio.Task[None]) -> None:
            self._exchanges.discard(exchange)
            connection.close()
            self._listeners.ended()

        exchange = asyncio.create_task(self._exchange(connection, peer))
        self._exchanges.add(exchange)
        exchange.add_done_callback(ended)

    async def _exchange(self, connection: socket.socket, peer: Peer) -> None:
        body = await self._request_body(connection)
        if body is not None:
            answer = await self._answer_to(FramedRequest(body, peer), connection)
            if answer is not CLOSE_SILENTLY:
                await _reply(connection, answer)
        _read_off(connection)

    async def _request_body(self, connection: socket.socket) -> bytes | None:
        """The body of the connection's request; None if there is nothing to answer."""
        try:
            async with asyncio.timeout(_CLIENT_SECONDS):
                body = await _receive(connection, bytearray(), self._body_limit)
        except Malformed:  # its text shows what the client sent
            LOG.warning("a request could not be read: it does not begin with a length")
            return None
        except (CodecError, OSError) as error:
            LOG.warning("a request could not be read: %s", error or f"it took more than {_CLIENT_SECONDS} s")
            return None
        if body is None:
            LOG.info("a client left before its request was complete")
        return body

    async def _answer_to(self, request: FramedRequest, connection: socket.socket) -> bytes | CloseSilently:
        try:
            if self._ends_with_client is None or not self._ends_with_client(request):
                return await self._answer(request)
            call = asyncio.current_task()
            assert call is not None
            with watching(connection.fileno(), call.cancel):
                return await self._answer(request)
        except Exception:
            LOG.exception("answering a request failed")
            return CLOSE_SILENTLY


class FramedClient(Exchanges):
    """One legacy daemon, at a framed socket."""

    def __init__(self, path: str, *, limit: int = 64) -> None:
        super().__init__(path, limit=limit)

    async def call(self, body: bytes, *, timeout: float | None, is_long_poll: bool = False) -> bytes:
        """Sends a request's body and gives the reply's; `timeout` in seconds. Raises DaemonError."""
        return await self.exchange(lambda connection: _ask(connection, body), timeout, is_long_poll=is_long_poll)


async def _ask(connection: socket.socket, body: bytes) -> bytes:
    """The body of the reply. Raises DaemonGone, BadReply, OSError."""
    # It may have answered or closed without reading everything: what it said decides.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await _send(connection, body)
    received = bytearray()
    try:
        reply = await _receive(connection, received, _REPLY_LIMIT)
    except CodecError as error:
        raise BadReply(f"the reply: {error}") from None
    if reply is not None:
        return reply
    if not received:
        raise ClosedSilently("the daemon closed the connection without a reply")
    raise DaemonGone(f"the connection ended within the reply, after {len(received)} bytes")


async def _send(connection: socket.socket, body: bytes) -> None:
    loop = asyncio.get_running_loop()
    if len(body) <= _BLOCK:
        await loop.sock_sendall(connection, head(body) + body)
    else:
        await loop.sock_sendall(connection, head(body))
        await loop.sock_sendall(connection, body)


async def _receive(connection: socket.socket, received: bytearray, limit: int) -> bytes | None:
    """The body of a message, `limit` bytes at most; None if the connection ends before. Raises CodecError, OSError.

    All that came is in `received`, which is empty at first.
    """
    if not await _fill(connection, received, HEAD_SIZE):
        return None
    length = body_length(bytes(received[:HEAD_SIZE]))
    if length > limit:
        raise OverLimit(f"the body has {length} bytes, the limit is {limit}")
    if not await _fill(connection, received, HEAD_SIZE + length):
        return None
    with memoryview(received) as view:
        return bytes(view[HEAD_SIZE : HEAD_SIZE + length])


async def _fill(connection: socket.socket, received: bytearray, size: int) -> bool:
    """Waits until at least `size` bytes have come; False if the connection ends before."""
    loop = asyncio.get_running_loop()
    while len(received) < size:
        block = await loop.sock_recv(connection, _BLOCK)
        if not block:
            return False
        received += block
    return True


async def _reply(connection: socket.socket, body: bytes) -> None:
    try:
        async with asyncio.timeout(_CLIENT_SECONDS):
            await _send(connection, body)
    except OSError as error:
        LOG.info("a client left before its reply, which is dropped: %s", error or "it did not read")


def _read_off(connection: socket.socket) -> None:
    """Takes what the client sent beyond its request: closing over it, the kernel would tell the client of a reset."""
    with contextlib.suppress(OSError):
        for _ in range(_READ_OFF_BLOCKS):
            if not connection.recv(_BLOCK):
                return
