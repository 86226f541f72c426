"""A service's socket: taking it from the legacy daemon, giving it back, noticing that somebody bound it again."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from bridges.activation import Activation
from bridges.calls import Side
from bridges.cutover import Keeper
from bridges.rpc_doors import Server
from bridges.settings import SocketSettings
from bridges.situation import DoorError, Situation
from xmlrpc_gateway import sockets
from xmlrpc_gateway.errors import AddressTaken, DaemonUnreachable

LOG: Final = logging.getLogger("bridges.socket_door")

# Longer than a call can be held.
DRAIN_SECONDS: Final = 40.0


class Client(Protocol):
    """What reaches a legacy daemon at its socket; `left_behind` has the daemon's ends of long polls that we ended."""

    left_behind: set[int]

    async def close(self) -> None: ...


AnyClient = TypeVar("AnyClient", bound=Client)


class Door(Protocol):
    """What serves the socket while it is ours."""

    async def open(self, listener: socket.socket) -> Server: ...


class SocketDoor(Generic[AnyClient]):
    """The address of one socket of a service. `client` reaches the legacy daemon wherever its socket stands now.

    `connect` makes a client of a path; `door` is set before the address is taken. `activation` keeps the listener for
    the next bridge.
    """

    door: Door

    def __init__(
        self,
        situation: Situation,
        settings: SocketSettings,
        connect: Callable[[str], AnyClient],
        activation: Activation,
    ) -> None:
        self._situation = situation
        self._activation = activation
        self._settings = settings
        self._behind_us = connect(str(settings.legacy))
        self._at_its_path = connect(str(settings.socket))
        self._owned: sockets.OwnedSocket | None = None
        self._is_kept = False
        self._is_vacant = False  # at the last look nobody served the path
        self._server: Server | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def client(self) -> AnyClient:
        return self._at_its_path if self._owned is None else self._behind_us

    async def take(self) -> None:
        """Our listener at the path, the legacy daemon's beside it; no moment without one. Raises DoorError.

        A listener that we inherited and that stands at the path is gone on with, and those who wait there are served.
        """
        path, legacy = self._settings.socket, self._settings.legacy
        try:
            inherited = self._activation.claim(path)
            owned = sockets.take(path, legacy) if inherited is None else sockets.adopt(inherited, path, legacy)
        except (OSError, AddressTaken) as error:
            raise DoorError(f"{path} cannot be taken: {error}") from None
        self._owned = owned
        if self._server is not None:  # it goes on at its other addresses, and with those whom it had accepted
            await self._server.serve_socket(owned.socket)
        else:
            try:
                self._server = await self.door.open(owned.socket)
            except OSError as error:
                self._owned = None
                sockets.give_back(owned)
                raise DoorError(f"{path} cannot be served: {error.strerror or error}") from None
        self._is_kept = inherited is not None or self._activation.keep(owned)
        for stale in self._activation.leftovers(path):
            LOG.info("%s: %s: those who wait at an earlier listener are served", self._situation.service, path)
            await self._server.serve_socket(stale)
            await self._server.stop_accepting(stale)

    async def give_back(self) -> None:
        """The path is the legacy daemon's again, and whoever had reached us has been answered."""
        await self._leave()
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def stop(self) -> None:
        """The process ends: as `give_back`, but what no legacy daemon could serve is left to the next bridge."""
        await self._leave(for_next=self._is_kept and self._situation.meaning.authority is Side.BUS)
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _leave(self, *, for_next: bool = False) -> None:
        """Gives the path back, if it is ours still; whoever had reached us is answered in the background.

        Their calls may wait at the gate until a move is over, so the move must not wait for them.
        """
        owned, self._owned = self._owned, None
        serving, self._server = self._server, None
        if serving is None:
            return
        if owned is not None and not (for_next and sockets.is_ours(owned)):
            if sockets.is_ours(owned):
                sockets.give_back(owned)
            self._activation.forget(owned)
        await serving.stop_accepting()
        task = asyncio.create_task(self._retire(serving), name=f"retiring door of {self._situation.service}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    @staticmethod
    async def _retire(serving: Server) -> None:
        await serving.drain(DRAIN_SECONDS)
        await serving.close()

    def release_if_legacys(self) -> None:
        """At a start: a path that is the legacy daemon's by our stage, and that a killed bridge held, is given back.

        Raises DoorError when another bridge holds it.
        """
        if self._situation.meaning.sockets is Keeper.LEGACY:
            try:
                done = sockets.release(self._settings.socket, self._settings.legacy)
            except AddressTaken as error:
                raise DoorError(str(error)) from None
            if done is not sockets.Returned.NOTHING:
                LOG.warning("%s: %s: %s", self._situation.service, self._settings.socket, done)

    def was_taken_away(self) -> bool:
        """Whether the path is somebody else's; asked at every look.

        A legacy daemon that starts unlinks the path, binds it and listens: taken from it in between it would end with
        "address in use", or go on at a socket without a name. So a path that nobody serves is left alone for one look.
        """
        path, was_vacant = self._settings.socket, self._is_vacant
        self._is_vacant = False
        if self._owned is None or sockets.is_ours(self._owned):
            return False
        if was_vacant or self._situation.meaning.authority is Side.BUS or sockets.is_served(path):
            return True
        LOG.info("%s: %s is served by nobody: left to whoever binds it now", self._situation.service, path)
        self._is_vacant = True
        return False

    async def look(self, *, was_taken_away: bool) -> None:
        """A legacy daemon that was restarted has bound the path again: it is taken again. Raises DoorError."""
        if not self._situation.meaning.sockets.is_ours or self._is_vacant:
            return
        if self._owned is not None and was_taken_away:
            LOG.warning("%s: %s was bound by somebody else: taking it again", self._situation.service, self._owned.path)
            if self._situation.meaning.authority is Side.BUS:
                self._situation.alarm("SPLIT_OWNER", f"{self._owned.path} was bound: does a legacy daemon run?")
        await self.take_again()

    async def take_again(self) -> None:
        """Takes the path unless it is ours. Raises DoorError."""
        if self._owned is not None and sockets.is_ours(self._owned):
            return
        lost, self._owned = self._owned, None
        if lost is not None and self._server is not None:
            self._activation.forget(lost)
            await self._server.stop_accepting(lost.socket)
        await self.take()

    async def drain_daemon(self, timeout: float) -> None:
        """Waits until the legacy daemon has answered those who had connected to it before we took its address.

        Raises DoorError: a daemon that is ended with a caller on the line leaves that call in doubt.
        """
        patience = time.monotonic() + timeout
        while count := self._strangers():
            if time.monotonic() > patience:
                raise DoorError(
                    f"{count} callers are still connected to the legacy daemon after {timeout:.0f} s; try again"
                )
            await asyncio.sleep(0.005)  # the kernel has no event for it

    def _strangers(self) -> int:
        """How many connections the legacy daemon has that somebody waits at, or that it may still work for."""
        found = sockets.open_connections(self._settings.socket)
        ended = self._behind_us.left_behind | self._at_its_path.left_behind
        return sum(count for inode, count in found.items() if inode not in ended)

    async def daemon_listens(self) -> bool:
        """Whether the legacy daemon accepts connections, at its path or behind us."""
        return await self.daemon_pid() is not None

    async def daemon_pid(self) -> int | None:
        """The process that listens at its path or behind us, None when nobody does."""
        ours = self._owned is not None and sockets.is_ours(self._owned)
        path = self._settings.legacy if ours else self._settings.socket
        try:
            connection = await sockets.connect_unix(str(path))
        except (OSError, DaemonUnreachable):
            return None
        with connection:
            return sockets.process_of(connection)

    async def close(self) -> None:
        await self._behind_us.close()
        await self._at_its_path.close()
