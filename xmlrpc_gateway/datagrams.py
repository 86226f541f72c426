"""Control sockets that take datagrams at an abstract address and never answer: perfmon's.

Source: scripts/perfmon of xen-api: AF_UNIX, address NUL + "perfmon", 256 bytes read of each datagram.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.errors import AddressTaken, DaemonUnreachable, OverLimit

if TYPE_CHECKING:
    from collections.abc import Callable

LOG: Final = logging.getLogger(__name__)

SIZE: Final = 256
"""How many bytes of a datagram are read; the rest is lost."""

_AT_ONCE: Final = 64
_AT_ONCE_AT_LAST: Final = 4096  # more than any queue holds, but no senders without pause can keep us


class DatagramDoor:
    """The receiving end. It must be opened while an event loop runs.

    name        of the address; an `@` before it stands for the NUL, as such addresses are written
    receive     is given each datagram, cut off after SIZE bytes
    """

    def __init__(self, name: str, receive: Callable[[bytes], None]) -> None:
        self._name = name
        self._receive = receive
        self._socket: socket.socket | None = None

    async def open(self) -> None:
        """Takes the address. Raises AddressTaken when somebody has it, OSError for what the system refuses."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        door.settimeout(0)
        try:
            door.bind(_address(self._name))
        except OSError as error:
            door.close()
            if error.errno == errno.EADDRINUSE:
                raise AddressTaken(f"the address {self._name} is taken by another process") from None
            raise
        self._socket = door
        asyncio.get_running_loop().add_reader(door, self._read, door, _AT_ONCE)

    async def close(self) -> None:
        """Gives the address up, after what waits at it was received."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._read(self._socket, _AT_ONCE_AT_LAST)
            self._socket.close()
            self._socket = None

    def _read(self, door: socket.socket, at_most: int) -> None:
        for _ in range(at_most):
            try:
                payload = door.recv(SIZE)
            except BlockingIOError:
                return
            try:
                self._receive(payload)
            except Exception:
                LOG.exception("receiving a datagram at %s failed", self._name)


async def send(name: str, payload: bytes, *, timeout: float | None) -> None:
    """Sends a datagram, waiting `timeout` seconds at most while the receiver's queue is full.

    Raises OverLimit for one that would be cut off, DaemonUnreachable when nobody has the address or takes it in time.
    """
    if len(payload) > SIZE:
        raise OverLimit(f"the datagram has {len(payload)} bytes, {SIZE} of them are read")
    try:
        async with asyncio.timeout(timeout):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(0)
                sender.connect(_address(name))
                await asyncio.get_running_loop().sock_sendall(sender, payload)
    except TimeoutError:
        raise DaemonUnreachable(f"{name}: its queue was full for {timeout} s") from None
    except OSError as error:
        raise DaemonUnreachable(f"{name}: {error}") from error


def _address(name: str) -> str:
    return f"\0{name.removeprefix('@')}"
