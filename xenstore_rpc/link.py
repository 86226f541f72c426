"""One connection to a xenstore, from its opening to its loss: a Unix socket or the kernel's character device."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from xenstore_rpc.errors import BadRecord, StoreLost, StoreRefused
from xenstore_rpc.packets import Op
from xenstore_rpc.session import Session, WatchEvent

QUEUE_PAUSE = 0.005
"""Seconds between attempts to connect while the store's queue of connections is full."""


class Link(asyncio.Protocol):
    """One connection from its opening to its loss: pairs requests with futures. Never used again once lost."""

    def __init__(self) -> None:
        self.session = Session()
        self.lost = asyncio.Event()
        self.reason = ""
        self.was_answered = False
        self.on_event: Callable[[WatchEvent], None] = _ignore
        self._loop = asyncio.get_running_loop()
        self._awaited: dict[int, tuple[Op, bytes, asyncio.Future[bytes]]] = {}
        self._outgoing: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def send(self, op: Op, payload: bytes, transaction: int) -> asyncio.Future[bytes]:
        """Queues one operation for this loop turn's send; the reply's payload, StoreRefused or StoreLost."""
        if self.lost.is_set():
            raise StoreLost(f"connection to xenstore lost: {self.reason}", sent=False)
        request_id, packet = self.session.request(op, payload, transaction)
        reply: asyncio.Future[bytes] = self._loop.create_future()
        self._awaited[request_id] = (op, payload, reply)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(packet)
        return reply

    def close(self, reason: str) -> None:
        """Gives the connection up; everything awaited fails with StoreLost(reason)."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        if self._transport is not None:
            self._transport.abort()
        for _, _, reply in self._awaited.values():
            if not reply.done():
                reply.set_exception(StoreLost(f"connection to xenstore lost: {reason}", sent=True))
        self._awaited.clear()
        self._outgoing.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "closed by the store")

    def data_received(self, data: bytes) -> None:
        self.was_answered = True
        try:
            happened = self.session.receive(data)
        except BadRecord as error:
            self.close(str(error))
            return
        for item in happened:
            if isinstance(item, WatchEvent):
                self.on_event(item)
                continue
            op, payload, reply = self._awaited.pop(item.request_id)
            if reply.done():  # nobody waits any more
                continue
            if item.error is None:
                reply.set_result(item.payload)
            else:
                path = payload.partition(b"\0")[0].decode("ascii", "replace")
                reply.set_exception(StoreRefused(item.error, op.name, path))

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None:
            self._transport.writelines(self._outgoing)
            self._outgoing.clear()


class _DeviceTransport(asyncio.Transport):
    """A character device as a transport. The kernel's xenbus driver takes one whole packet per write()."""

    def __init__(self, path: str, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._outgoing: deque[bytes] = deque()
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self._loop.add_reader(self._fd, self._read)
        protocol.connection_made(self)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._outgoing.extend(bytes(data) for data in list_of_data)
        self._write()

    def abort(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._fail(OSError("end of file"))

    def _write(self) -> None:
        while self._outgoing and self._fd >= 0:
            try:
                written = os.write(self._fd, self._outgoing[0])
            except BlockingIOError:
                self._loop.add_writer(self._fd, self._write)
                return
            except OSError as error:
                self._fail(error)
                return
            rest = self._outgoing.popleft()[written:]
            if rest:
                self._outgoing.appendleft(rest)
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)

    def _fail(self, error: OSError) -> None:
        self.abort()
        self._protocol.connection_lost(error)


async def open_link(address: str) -> Link:
    """Connects to a Unix socket or opens a character device; OSError when that fails."""
    link = Link()
    if stat.S_ISCHR(Path(address).stat().st_mode):  # noqa: ASYNC240 - one stat() per connection, of a local name
        _DeviceTransport(address, link)
    else:
        connection = await _connected_socket(address)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=connection)
    return link


async def _connected_socket(address: str) -> socket.socket:
    """A connected Unix socket; waits while the listener's queue is full.

    Xenstore daemons listen with a queue of one. A full queue makes connect() fail with EAGAIN, which asyncio takes for
    "in progress" and then hands out a socket that never was connected (its first read fails with EINVAL).
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                connection.connect(address)
            except BlockingIOError:
                await asyncio.sleep(QUEUE_PAUSE)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _ignore(_event: WatchEvent) -> None:
    """Takes the events that arrive before the Store has taken the link over; there are none."""
