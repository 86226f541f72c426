"""Exchanges with a legacy daemon, each on a connection of its own: how many at a time, how long, and how they fail.

Nothing is sent twice. What becomes of an exchange that failed depends on how far it had got: a daemon that could not be
reached has seen nothing of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TypeVar

from xmlrpc_gateway.errors import DaemonGone, DaemonTimedOut, DaemonUnreachable
from xmlrpc_gateway.sockets import connect_unix, leave_behind

T = TypeVar("T")


class Exchanges:
    """What a client has with one legacy daemon, at a Unix socket (`path`) or over TCP (`host`, `port`).

    At most `limit` requests are with the daemon at a time: it has a thread per connection and a queue of 5. The others
    wait, on their own time, and fail as DaemonUnreachable when it is over. Long polls are not counted: they may last
    for hours, and hold up nobody. `left_behind` has the daemon's ends of those that we ended, by inode.
    """

    def __init__(self, path: str | None, host: str = "localhost", port: int = 80, *, limit: int) -> None:
        self.left_behind: set[int] = set()
        self._path = path
        self._host = host
        self._port = port
        self._slots = asyncio.Semaphore(limit)
        self._closed = False

    async def close(self) -> None:
        """Refuses further exchanges; those under way belong to their callers and end with them."""
        self._closed = True

    async def exchange(
        self, talk: Callable[[socket.socket], Awaitable[T]], timeout: float | None, *, is_long_poll: bool = False
    ) -> T:
        """What `talk` gives on a new connection; `timeout` in seconds. Raises DaemonError."""
        self._refuse_if_closed()
        sent = False
        try:
            async with asyncio.timeout(timeout), nullcontext() if is_long_poll else self._slots:
                with await self._connect() as connection:
                    sent = True
                    try:
                        return await talk(connection)
                    except asyncio.CancelledError:
                        if is_long_poll:
                            leave_behind(connection, self.left_behind)
                        raise
        except TimeoutError:
            if sent:
                raise DaemonTimedOut(f"no reply within {timeout} s") from None
            raise self._unreachable(timeout) from None
        except OSError as error:
            if sent:
                raise DaemonGone(f"the connection was lost: {error}") from error
            raise DaemonUnreachable(f"{self._address}: {error}") from error

    async def connect(self, timeout: float | None) -> socket.socket:
        """A connection for whatever the caller does with it; `timeout` in seconds. Raises DaemonUnreachable."""
        self._refuse_if_closed()
        try:
            async with asyncio.timeout(timeout):
                return await self._connect()
        except TimeoutError:
            raise self._unreachable(timeout) from None
        except OSError as error:
            raise DaemonUnreachable(f"{self._address}: {error}") from error

    @property
    def _address(self) -> str:
        return self._path or f"{self._host}:{self._port}"

    def _unreachable(self, timeout: float | None) -> DaemonUnreachable:
        return DaemonUnreachable(f"no connection to {self._address} within {timeout} s")

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise DaemonUnreachable("the connection to the daemon was closed on our side")

    async def _connect(self) -> socket.socket:
        if self._path is not None:
            return await connect_unix(self._path)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        for index, (family, kind, protocol, _, address) in enumerate(found):
            connection = socket.socket(family, kind, protocol)
            connection.settimeout(0)
            try:
                await loop.sock_connect(connection, address)
            except BaseException as error:
                connection.close()
                if not isinstance(error, OSError) or index == len(found) - 1:
                    raise
            else:
                return connection
        raise OSError("the name has no address")
