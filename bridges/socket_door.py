"""A service's HTTP address: taking it from the legacy daemon, giving it back, noticing that somebody bound it again."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from bridges.calls import Side
from bridges.cutover import Keeper
from bridges.doors import HttpDoor
from bridges.settings import HttpDoorSettings
from bridges.situation import DoorError, Situation
from xmlrpc_gateway import server, sockets
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.errors import AddressTaken, DaemonUnreachable

LOG: Final = logging.getLogger("bridges.socket_door")

BODY_LIMIT: Final = 64 * 1024 * 1024
# Longer than a call can be held.
DRAIN_SECONDS: Final = 40.0


class SocketDoor:
    """The address of one service. `client` reaches the legacy daemon wherever its socket stands now."""

    def __init__(self, situation: Situation, settings: HttpDoorSettings) -> None:
        self._situation = situation
        self._settings = settings
        self._behind_us = DaemonClient(str(settings.legacy))
        self._at_its_path = DaemonClient(str(settings.socket))
        self._owned: sockets.OwnedSocket | None = None
        self._server: server.HttpDoor | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def client(self) -> DaemonClient:
        return self._at_its_path if self._owned is None else self._behind_us

    async def take(self, door: HttpDoor) -> None:
        """Our listener at the path, the legacy daemon's beside it; no moment without one. Raises DoorError."""
        try:
            self._owned = sockets.take(self._settings.socket, self._settings.legacy)
        except (OSError, AddressTaken) as error:
            raise DoorError(f"{self._settings.socket} cannot be taken: {error}") from None
        self._server = server.HttpDoor(
            door.answer,
            manner=door.manner,
            body_limit=BODY_LIMIT,
            answer_too_large=door.too_large,
            answer_others=door.answer_others,
        )
        await self._server.serve_socket(self._owned.socket)
        for host, port in self._settings.listen:
            try:
                await self._server.listen_tcp(host, port)
            except OSError as error:
                await self.give_back()
                raise DoorError(f"tcp:{host}:{port} cannot be listened at: {error.strerror or error}") from None

    async def give_back(self) -> None:
        """The path is the legacy daemon's again, and whoever had reached us has been answered."""
        await self._leave()
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _leave(self) -> None:
        """Gives the path back, if it is ours still; whoever had reached us is answered in the background.

        Their calls may wait at the gate until a move is over, so the move must not wait for them.
        """
        owned, self._owned = self._owned, None
        serving, self._server = self._server, None
        if owned is None or serving is None:
            return
        if sockets.is_ours(owned):
            sockets.give_back(owned)
        await serving.stop_accepting(owned.socket)
        task = asyncio.create_task(self._retire(serving), name=f"retiring door of {self._situation.service}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    @staticmethod
    async def _retire(serving: server.HttpDoor) -> None:
        await serving.drain(DRAIN_SECONDS)
        await serving.close()

    def release_if_legacys(self) -> None:
        """At a start: a path that is the legacy daemon's by our stage, and that a killed bridge held, is given back."""
        if self._situation.meaning.sockets is Keeper.LEGACY:
            done = sockets.release(self._settings.socket, self._settings.legacy)
            if done is not sockets.Returned.NOTHING:
                LOG.warning("%s: %s: %s", self._situation.service, self._settings.socket, done)

    async def look(self, door: HttpDoor) -> None:
        """A legacy daemon that was restarted has bound the path again: it is taken again. Raises DoorError."""
        if self._situation.meaning.sockets is not Keeper.BRIDGE:
            return
        if self._owned is not None and not sockets.is_ours(self._owned):
            LOG.warning("%s: %s was bound by somebody else: taking it again", self._situation.service, self._owned.path)
            if self._situation.meaning.authority is Side.BUS:
                self._situation.alarm("SPLIT_OWNER", f"{self._owned.path} was bound: does a legacy daemon run?")
        await self.take_again(door)

    async def take_again(self, door: HttpDoor) -> None:
        """Takes the path unless it is ours. Raises DoorError."""
        if self._owned is None or not sockets.is_ours(self._owned):
            await self._leave()
            await self.take(door)

    async def drain_daemon(self, timeout: float) -> None:
        """Waits until the legacy daemon has answered those who had connected to it before we took its address.

        Raises DoorError: a daemon that is ended with a caller on the line leaves that call in doubt.
        """
        patience = time.monotonic() + timeout
        while count := sockets.open_connections(self._settings.socket):
            if time.monotonic() > patience:
                raise DoorError(
                    f"{count} callers are still connected to the legacy daemon after {timeout:.0f} s; try again"
                )
            await asyncio.sleep(0.005)  # the kernel has no event for it

    async def daemon_listens(self) -> bool:
        """Whether the legacy daemon accepts connections, at its path or behind us."""
        ours = self._owned is not None and sockets.is_ours(self._owned)
        path = self._settings.legacy if ours else self._settings.socket
        try:
            (await sockets.connect_unix(str(path))).close()
        except (OSError, DaemonUnreachable):
            return False
        return True

    async def close(self) -> None:
        await self._behind_us.close()
        await self._at_its_path.close()
