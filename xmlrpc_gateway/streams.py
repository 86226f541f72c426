"""HTTP that is no call: passed on as it comes, both ways, and never held in memory.

Both ends are plain sockets. A transport of asyncio drops what it has not read yet when a write fails, and that is the
answer of a daemon that refuses a request before it has read all of it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.departures import watching
from xmlrpc_gateway.errors import ClosedSilently, DaemonGone
from xmlrpc_gateway.request_heads import frame_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from xmlrpc_gateway.http_messages import Headers, Peer
    from xmlrpc_gateway.request_heads import RequestHead

LOG: Final = logging.getLogger(__name__)

_BLOCK: Final = 256 * 1024
_LINGER_SECONDS: Final = 5.0
_STATUS: Final = slice(9, 12)  # in "HTTP/1.1 101 ..."
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: closing discards what was not sent, and tells the other end so


class ClientLeft(Exception):
    """The client closed its connection, or it was lost."""


class Stream:
    """One request whose body has not been read, and its client's connection, which ends with it.

    method, target, version, headers    as they were sent
    peer                                a Peer on a Unix socket, "ADDRESS:PORT" on TCP
    is_raw                              client and daemon speak their own protocol after the head
    """

    def __init__(self, head: RequestHead, follows: bytes, connection: socket.socket, peer: Peer | str) -> None:
        self.method = head.method
        self.target = head.target
        self.version = head.version
        self.headers: Headers = head.headers
        self.peer = peer
        self.is_raw = head.is_raw
        self._head = head
        self._follows = follows  # came together with the head
        self._left = head.body_length  # bytes of the request that may still be passed on
        self._is_declined = False
        self._reply = b""  # how the reply began, up to its status
        self._is_answered = False  # the client has got something
        self._is_finished = False  # the daemon ended its answer in order
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def relay(self, daemon: socket.socket, change_head: Callable[[bytes], bytes] = bytes) -> None:
        """Carries the request to the daemon and its answer back, until both are done; the daemon's socket stays open.

        `change_head` gives the head as the daemon is to see it, of the same length.
        Raises ClosedSilently and DaemonGone when the daemon ended before the first byte of its answer: there may be
        another one then. What else becomes of either end is shown to the other one, as far as its kind of socket can.
        """
        up = self._loop.create_task(self._send_up(daemon, change_head))
        down = self._loop.create_task(self._send_down(daemon, up))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            up.cancel()
            down.cancel()
            ends = await asyncio.gather(up, down, return_exceptions=True)
        for end in ends:
            if isinstance(end, ClientLeft):
                path = self.target.partition("?")[0]  # what follows may be a session
                LOG.info("the client of %s %s left: %s", self.method, path[:100], end)
                return
            if isinstance(end, Exception):
                raise end

    async def answer(self, head: bytes, body: bytes) -> None:
        """Answers instead of the daemon, unless the client has got something from that one.

        A client that sends all of its body before it listens hears it too.
        """
        if self._is_answered:
            return
        if self._head.frame:
            head = frame_of(head) + head
        with suppress(OSError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await self._loop.sock_sendall(self._connection, head + body)
                self._connection.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(self._connection, _BLOCK):
                    pass

    def close(self) -> None:
        """Ends the client's connection; within a reply so that it cannot take this for the reply's end."""
        if self._is_answered and not self._is_finished:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._connection.close()

    async def _send_up(self, daemon: socket.socket, change_head: Callable[[bytes], bytes]) -> None:
        """The request, until its client has no more to send or the daemon takes no more. Raises ClientLeft."""
        block = self._follows
        try:
            await self._loop.sock_sendall(daemon, change_head(self._head.ending()))
            while True:
                if passed := block[: self._left]:
                    await self._loop.sock_sendall(daemon, passed)
                    self._left = max(0, self._left - len(passed))
                elif block and self._is_declined:
                    break
                await asyncio.sleep(0)  # either end may always be ready, and others wait
                if not (block := await self._received()):
                    break
            daemon.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # what it said decides

    async def _received(self) -> bytes:
        try:
            return await self._loop.sock_recv(self._connection, _BLOCK)
        except OSError as error:
            raise ClientLeft(str(error)) from error

    async def _send_down(self, daemon: socket.socket, up: asyncio.Task[None]) -> None:
        """The answer, until the daemon has no more to send; `up` ends then. Raises ClientLeft, DaemonError."""
        lost: OSError | None = None
        try:
            while block := await self._loop.sock_recv(daemon, _BLOCK):
                self._look_at(block)
                await self._hand_down(block)
                await asyncio.sleep(0)
        except OSError as error:
            lost = error
        if not self._is_answered:
            if lost is None:
                raise ClosedSilently("the daemon closed the connection without a reply")
            raise DaemonGone(f"the connection was lost: {lost}") from lost
        if lost is None:
            self._is_finished = True
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
            if self._left and not up.done():
                with watching(daemon.fileno(), up.cancel):
                    await asyncio.wait([up])
        up.cancel()
        await self._linger()

    async def _hand_down(self, block: bytes) -> None:
        self._is_answered = True
        try:
            await self._loop.sock_sendall(self._connection, block)
        except OSError as error:
            raise ClientLeft(str(error)) from error

    def _look_at(self, block: bytes) -> None:
        """A daemon that declines to speak another protocol goes on with HTTP: no second request may pass then."""
        if self.is_raw and len(self._reply) < _STATUS.stop:
            self._reply = (self._reply + block)[: _STATUS.stop]
            if len(self._reply) == _STATUS.stop:
                status = self._reply[_STATUS]
                self._is_declined = not (status[:1] == b"2" if self.method == "CONNECT" else status == b"101")
                self._left = 0 if self._is_declined else self._left

    async def _linger(self) -> None:
        """On TCP, closing over bytes that the client still sends would destroy what it was told: it gets time to read.

        They are not read meanwhile: a client must not believe that its body arrived.
        """
        if self._connection.family == socket.AF_UNIX:
            return
        gone = asyncio.Event()
        with watching(self._connection.fileno(), gone.set), suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await gone.wait()
