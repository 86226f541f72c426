"""A service's tree in xenstore: taking it from the legacy daemon, serving it, giving it back.

The store is the queue and whoever watches executes, so the tree has one owner at any time and moves with the authority.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Final

from bridges.cutover import Keeper
from bridges.doors import XenstoreDoor
from bridges.legacy_daemon import LegacyDaemon, Process
from bridges.situation import DoorError, Situation
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import XenstoreError
from xenstore_rpc.records import EXCEPTION, Request, Response, error_response
from xenstore_rpc.rpc import Server

LOG: Final = logging.getLogger("bridges.tree_door")

TAKE_OVER_SECONDS: Final = 5.0
# The frozen daemon needs time of its own to answer, the longer the busier the host is.
BREATH_SECONDS: Final = 0.002


class TreeDoor:
    """The tree of one service. `tasks` is where serving runs."""

    def __init__(self, situation: Situation, store: Store, tree: str, door: XenstoreDoor, legacy: LegacyDaemon) -> None:
        self._situation = situation
        self._store = store
        self._tree = tree
        self._door = door
        self._legacy = legacy
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    def _new_server(self) -> Server:
        return Server(self._store, self._tree, self._door.answer, pid=os.getpid(), on_foreign_pid=self._foreign_pid)

    def _foreign_pid(self, pid: int) -> None:
        """Somebody else serves the tree: we stop at once, whoever it is. During a move it is what we wait for."""
        if self._situation.meaning.tree is Keeper.BRIDGE and not self._situation.lock.locked():
            text = (
                f"/{self._tree}/pid is {pid}: another daemon serves the tree, so we do not; end it, restart the bridge"
            )
            self._situation.alarm("SPLIT_OWNER", text)
            if self._task is not None:
                self._task.cancel()

    async def take(self, process: Process, *, accept_in_doubt: bool) -> None:
        """Freeze-and-check: kills the legacy daemon at a moment when nothing in the tree is unanswered.

        Raises DoorError when no such moment came within 5 s; the daemon then runs on, registered as before.
        """
        server = self._new_server()
        before = await server.pid()
        await server.register()
        try:
            unanswered = await self._freeze_quiet(server, process, accept_in_doubt=accept_in_doubt)
            await self._legacy.kill(process)
        except BaseException:
            process.thaw()
            if before is not None:
                await self._store.write(f"/{self._tree}/pid", b"%d" % before)
            raise
        text = "InDoubt: the daemon was replaced with this request in its hands; it may have been executed"
        for function, request_id in unanswered:
            await server.respond(Request(function, request_id, ()), error_response(EXCEPTION, text))
        self._server = server

    async def _freeze_quiet(self, server: Server, process: Process, *, accept_in_doubt: bool) -> list[tuple[str, str]]:
        """Freezes the daemon while nothing is unanswered; with `accept_in_doubt`, after 5 s, returns what is."""
        patience = time.monotonic() + TAKE_OVER_SECONDS
        while True:
            await process.freeze()
            unanswered = await server.outstanding()
            over = time.monotonic() > patience
            if not unanswered or (over and accept_in_doubt):
                return unanswered
            if over:
                raise DoorError(
                    f"/{self._tree} was never quiet within {TAKE_OVER_SECONDS:.0f} s ({len(unanswered)} unanswered); "
                    "the legacy daemon runs on; try again, or --accept-in-doubt"
                )
            process.thaw()
            await asyncio.sleep(BREATH_SECONDS)

    def serve(self, tasks: asyncio.TaskGroup) -> None:
        """Executes the tree's requests from now on; those that waited are served first."""
        assert self._server is not None
        self._task = tasks.create_task(self._serve(self._server), name=f"tree of {self._situation.service}")

    async def _serve(self, server: Server) -> None:
        try:
            await server.run()
        except XenstoreError as error:
            self._situation.alarm("TREE_LOST", str(error))

    async def serve_again(self, tasks: asyncio.TaskGroup) -> None:
        """After a way back that was given up: the requests that came meanwhile are served."""
        await self.leave()
        self._server = self._new_server()
        await self._server.register()
        self.serve(tasks)

    async def drain(self, timeout: float) -> bool:
        """No request is begun any more, those begun are answered; what arrives later waits in the store."""
        return self._server is None or await self._server.drain(timeout)

    async def leave(self) -> None:
        """Serves no more; the pid node stays until the next owner writes its own."""
        server, self._server = self._server, None
        task, self._task = self._task, None
        if server is not None and task is not None:
            if not task.done():
                await server.stop()
            await asyncio.wait([task])

    async def own_at_start(self, tasks: asyncio.TaskGroup, stale: str) -> None:
        """A cold start in live: the tree is served again once the store is there; `stale` is refuse or execute."""
        if await self._legacy.pid() is not None:
            text = "the legacy daemon runs although the bus daemon is the authority: end it, then restart the bridge"
            self._situation.alarm("SPLIT_OWNER", text)
            return
        await self._store.wait_connected()
        self._server = self._new_server()
        await self._server.register()
        if stale == "refuse" and (refused := await self._server.refuse_outstanding(_too_old)):
            LOG.warning("%s: %d requests were there before us: refused", self._situation.service, refused)
        self.serve(tasks)

    async def is_registered_by_another(self) -> bool:
        """Whether the pid node names another process than us."""
        server = self._server or self._new_server()
        return await server.pid() not in (None, os.getpid())


def _too_old(_request: Request) -> Response:
    text = "Unavailable: the request was found at a cold start and its age is unknown: it was not executed"
    return error_response(EXCEPTION, text)
