"""One socket, as it was bound at a path when it was first looked at: whoever binds the path after it is not asked."""

from __future__ import annotations

import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from bridges.replay.http_client import AT_ONCE
from xmlrpc_gateway.errors import DaemonUnreachable
from xmlrpc_gateway.framed import FramedClient

T = TypeVar("T")


class Bound(NamedTuple):
    """A socket at a path. A later one has another time, even if the file system gives it the same number."""

    path: Path
    device: int
    inode: int
    time: int

    @classmethod
    def at(cls, path: Path) -> Bound:
        """What is bound there now. Raises OSError."""
        found = path.stat()
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError("is no socket")
        return cls(path, found.st_dev, found.st_ino, found.st_mtime_ns)

    def check(self) -> None:
        """Raises OSError when it does not stand there any more."""
        if Bound.at(self.path) != self:
            raise OSError(f"{self.path} was bound anew: it is another daemon's now")

    async def declares_sandbox(self) -> str | None:
        """None when SOCKET.sandbox stands beside it, where PATH is a link beside the socket itself; else why not."""
        return self._look()

    def _look(self) -> str | None:
        try:
            beside = Path(f"{self.path.resolve()}.sandbox")
            if not beside.exists():
                return f"there is no {beside}"
            self.check()
        except OSError as error:
            return str(error)
        return None


class FramedToBound(FramedClient):
    """Frames to one socket, and to no later one at its path."""

    def __init__(self, bound: Bound) -> None:
        super().__init__(str(bound.path), limit=AT_ONCE)
        self._bound = bound

    async def exchange(
        self, talk: Callable[[socket.socket], Awaitable[T]], timeout: float | None, *, is_long_poll: bool = False
    ) -> T:
        """As that of `Exchanges`; looked at once connected: the path may have changed hands before."""

        async def checked(connection: socket.socket) -> T:
            try:
                self._bound.check()
            except OSError as error:
                raise DaemonUnreachable(str(error)) from None
            return await talk(connection)

        return await super().exchange(checked, timeout, is_long_poll=is_long_poll)
