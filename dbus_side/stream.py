"""The socket of a bus connection: authentication, whole messages in, bytes out. It knows no D-Bus library.

A full socket buffer is nothing special here: asyncio keeps the rest and writes on when the bus reads again, and who
sends waits in `room` meanwhile. Messages sent in the same turn of the loop leave together after the first: a system
call for each was most of the cost of a call when many run at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final, cast

from dbus_side.addresses import TcpAddress, UnixAddress
from dbus_side.errors import BusLost
from dbus_side.frames import Splitter, StreamBroken

_WAIT_ABOVE: Final = 4 * 1024 * 1024  # unsent bytes
_TOGETHER: Final = 256 * 1024  # bytes that are gathered at most before they are sent
_LONGEST_LINE: Final = 16 * 1024  # bytes of one line of the authentication

_log = logging.getLogger(__name__)


class Stream(asyncio.Protocol):
    """One socket, opened once. `receive` gets every whole message, `lost` is called once when the socket is closed."""

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._ending = False
        self._gathered = bytearray()
        self._first_left = False  # whether this turn of the loop has sent already

    async def open(self, candidates: tuple[UnixAddress | TcpAddress, ...]) -> None:
        """Connect to the first address that answers, and authenticate. Raises the last one's OSError or EOFError."""
        for candidate in candidates[:-1]:
            try:
                return await self._open(candidate)
            except (OSError, EOFError) as error:
                _log.info("bus %s: %s; trying the next address", candidate, error)
        return await self._open(candidates[-1])

    async def _open(self, address: UnixAddress | TcpAddress) -> None:
        loop = asyncio.get_running_loop()
        unix = isinstance(address, UnixAddress)
        connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        try:
            connection.setblocking(False)  # noqa: FBT003 - the socket's own signature
            where = address.path if isinstance(address, UnixAddress) else (address.host, address.port)
            await loop.sock_connect(connection, where)
            await _authenticate(loop, connection)
            # uvloop tells the two apart even for a socket that is connected already.
            attach = loop.create_unix_connection if unix else loop.create_connection
            await attach(lambda: self, sock=connection)
        except BaseException:
            connection.close()
            raise

    @property
    def full(self) -> bool:
        """Whether senders have to wait."""
        return not self._writable.is_set()

    @property
    def unsent(self) -> int:
        """Bytes that the bus has not taken yet, but for the few that are gathered."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def room(self) -> None:
        """Wait until there is room, or the connection is lost."""
        while not self._writable.is_set():
            await self._writable.wait()

    def write(self, wire: bytes) -> None:
        """Send, now or when the bus reads again. Raises BusLost when the connection is gone."""
        if self._transport is None or self._ending or self._transport.is_closing():
            raise BusLost(sent=False)
        if not self._first_left:
            self._first_left = True
            asyncio.get_running_loop().call_soon(self._end_turn)
            self._transport.write(wire)
            return
        self._gathered += wire
        if len(self._gathered) > _TOGETHER:
            self._send_gathered()

    def _end_turn(self) -> None:
        self._first_left = False
        self._send_gathered()

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        # uvloop's raises once it is closed, which it is before connection_lost was heard of by everybody
        if gathered and self._transport is not None and not self._transport.is_closing():
            self._transport.write(gathered)

    def close(self) -> None:
        """End after what is unsent has left."""
        self._ending = True
        self._send_gathered()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the socket is ours."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=_WAIT_ABOVE)
        self._transport = transport
        self._writable.set()

    def pause_writing(self) -> None:
        """Asyncio: more than the limit is unsent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Asyncio: a quarter of the limit is left."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes."""
        try:
            for frame in self._splitter.feed(data):
                self._receive(frame)
        except StreamBroken:
            _log.exception("the bus sent bytes that are no D-Bus message: connection ended")
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Asyncio: the socket is closed."""
        self._ending = True
        self._writable.set()
        self._lost()


async def _authenticate(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """EXTERNAL: the bus asks the kernel who we are. Source: the D-Bus specification, "Authentication Protocol".

    The user id is sent in decimal digits, each byte of those in hexadecimal. After BEGIN come messages.
    """
    user = str(os.geteuid()).encode().hex()
    await loop.sock_sendall(connection, f"\0AUTH EXTERNAL {user}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        data = await loop.sock_recv(connection, 512)
        if not data:
            raise EOFError("closed during authentication")
        answer += data
        if len(answer) > _LONGEST_LINE:
            raise EOFError("authentication: the answer has no end")
    if not answer.startswith(b"OK "):
        raise EOFError(f"authentication refused: {answer[:100]!r}")
    await loop.sock_sendall(connection, b"BEGIN\r\n")
