"""Accepting connections: what the doors have in common.

asyncio's own servers cannot give a listener up without losing those who wait in its queue, and accept without a limit.
Full means here: with `limit` connections nobody is accepted, and callers wait in the listener's queue.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.http_messages import Peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOG: Final = logging.getLogger(__name__)

_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 10.0
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred


class Listeners:
    """The listeners of one door, and how many connections it has. It must be made while an event loop runs.

    accepted    takes a connection over, with its peer: a Peer on a Unix socket, "ADDRESS:PORT" on TCP. When that
                connection is over, the door calls `ended`
    limit       how many connections there may be at a time
    """

    def __init__(self, accepted: Callable[[socket.socket, Peer | str], None], *, limit: int) -> None:
        self._accepted = accepted
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._listeners: set[socket.socket] = set()
        self._paused = False
        self._connections = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def listen_unix(self, path: Path) -> socket.socket:
        """Listens at a path where nothing is yet; see sockets.take for one with an owner. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(self._limit)
        except OSError:
            listener.close()
            raise
        self.serve(listener)
        return listener

    def listen_tcp(self, host: str, port: int) -> socket.socket:
        """Listens at a numeric address; port 0 lets the system choose. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=self._limit)
        self.serve(listener)
        return listener

    def serve(self, listener: socket.socket) -> None:
        """Serves a socket that listens already, and closes it in the end."""
        listener.settimeout(0)
        self._listeners.add(listener)
        self._loop.add_reader(listener, self._accept, listener)

    async def stop(self, listener: socket.socket | None = None) -> None:
        """Accepts all who wait in the listener's queue, over the limit too, then closes it; without one, every one.

        Nobody who had connected is refused, unless the system is out of descriptors for longer than ten seconds.
        """
        for stopping in tuple(self._listeners) if listener is None else (listener,):
            await self._stop(stopping)

    async def _stop(self, listener: socket.socket) -> None:
        self._listeners.discard(listener)
        self._loop.remove_reader(listener)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._accept_all(listener)
        except TimeoutError:
            LOG.error("those who wait at %s are refused", listener.getsockname())
        finally:
            listener.close()

    async def quiet(self, timeout: float | None) -> bool:
        """Waits, `timeout` seconds at most, until all connections have ended; True if they have."""
        try:
            async with asyncio.timeout(timeout):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def ended(self) -> None:
        """A connection that was accepted is over."""
        self._connections -= 1
        if not self._connections:
            self._quiet.set()
        if not self._is_full:
            self._resume()

    def close(self) -> None:
        """Closes all listeners; connections are their door's."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> None:
        try:
            for _ in range(_AT_ONCE):
                if self._is_full:
                    LOG.info("%d connections: no more are accepted until one ends", self._limit)
                    self._pause()
                    return
                if not self._accept_one(listener):
                    return
        except OSError as error:
            # Those who wait keep waiting, which is what the queue is for.
            LOG.error("cannot accept a connection: %s; trying again in %s s", error, _PAUSE_SECONDS)
            self._pause()
            self._loop.call_later(_PAUSE_SECONDS, self._resume)

    async def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                if not self._accept_one(listener):
                    return
                await asyncio.sleep(0)
            except OSError as error:
                LOG.error("cannot accept a connection: %s; trying again in %s s", error, _PAUSE_SECONDS)
                await asyncio.sleep(_PAUSE_SECONDS)

    def _accept_one(self, listener: socket.socket) -> bool:
        """Whether somebody waited. Raises OSError when the system is out of descriptors or memory."""
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        connection.settimeout(0)
        self._connections += 1
        self._quiet.clear()
        self._accepted(connection, _peer(connection, address))
        return True

    @property
    def _is_full(self) -> bool:
        return self._connections >= self._limit

    def _pause(self) -> None:
        self._paused = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)


def _peer(connection: socket.socket, address: tuple[object, ...]) -> Peer | str:
    if connection.family == socket.AF_UNIX:
        pid, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return Peer(uid, gid, pid)
    return f"[{address[0]}]:{address[1]}" if connection.family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
