"""A service's tree in xenstore: taking it from the legacy daemon, serving it, giving it back.

The store is the queue and whoever watches executes, so the tree has one owner at any time and moves with the authority.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial
from typing import Final

from bridges.doors import XenstoreDoor
from bridges.faults import Fault, Kind
from bridges.legacy_daemon import LegacyDaemon
from bridges.processes import Process, ProcessError, is_alive
from bridges.situation import DoorError, Situation
from bridges.state import NotWritten, State
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreLost, XenstoreError
from xenstore_rpc.records import EXCEPTION, Request, Response, error_response
from xenstore_rpc.rpc import Server

LOG: Final = logging.getLogger("bridges.tree_door")

TAKE_OVER_SECONDS: Final = 5.0
FENCE_SECONDS: Final = 5.0
# Between two looks at a tree that is not quiet: callers pause for less than this between two calls.
BREATH_SECONDS: Final = 0.001

# What a start finds in the tree bears no time, and nobody says who has seen it.
_NOT_EXECUTED: Final = Fault(
    Kind.UNAVAILABLE, "the request was found at a cold start and its age is unknown: it was not executed"
)
_LEFT_BY_ANOTHER: Final = Fault(
    Kind.IN_DOUBT, "another daemon served the tree and ended with this request in it; it may have been executed"
)
_LEFT_BY_SOMEBODY: Final = Fault(
    Kind.IN_DOUBT, "nobody knows who served the tree before with this request in it; it may have been executed"
)


class TreeDoor:
    """The tree of one service. `tasks` is where serving runs."""

    def __init__(
        self, situation: Situation, state: State, store: Store, tree: str, door: XenstoreDoor, legacy: LegacyDaemon
    ) -> None:
        self._situation = situation
        self._state = state
        self._store = store
        self._tree = tree
        self._door = door
        self._legacy = legacy
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._awaits_successor = False

    def _new_server(self) -> Server:
        return Server(self._store, self._tree, self._door.answer, pid=os.getpid(), on_foreign_pid=self._foreign_pid)

    async def _settle_what_others_left(self, server: Server) -> int:
        """Before we register, or a bridge that is started after us would take all that is left for unseen.

        What another daemon had in its hands is answered as in doubt, and never executed; how many requests that were.
        """
        registered, known = await server.pid(), self._state.registered(self._situation.service)
        if registered is not None and registered == known:
            return 0
        unknown = _LEFT_BY_SOMEBODY if known is None or registered is None else _LEFT_BY_ANOTHER
        return await server.settle_outstanding(partial(self._door.settle_stale, unknown=unknown))

    async def _register(self, server: Server) -> None:
        """Raises NotWritten: who does not know in whose hands its tree was would call executed requests unexecuted."""
        if self._state.registered(self._situation.service) != os.getpid():
            self._state.keep_registered(self._situation.service, os.getpid())
        await server.register()

    def _foreign_pid(self, pid: int) -> None:
        """Somebody else serves the tree: we stop at once, whoever it is. During a way back it is what we wait for."""
        if self._awaits_successor or self._server is None or self._tasks is None:
            return
        self._alarm_split(pid)
        self._tasks.create_task(self._fence(self._server), name=f"fencing the tree of {self._situation.service}")

    def _alarm_split(self, pid: int) -> None:
        text = f"/{self._tree}/pid is {pid}: another daemon serves the tree, so we do not; end it, restart the bridge"
        self._situation.alarm("SPLIT_OWNER", text)

    @staticmethod
    async def _fence(server: Server) -> None:
        """Nothing more is begun; what was begun is answered, or the other would execute it again."""
        await server.drain(FENCE_SECONDS)
        await server.stop()

    async def take(self, process: Process, *, accept_in_doubt: bool) -> None:
        """Freeze-and-check: kills the legacy daemon at a moment when nothing in the tree is unanswered.

        Raises DoorError when no such moment came within 5 s; the daemon then runs on, registered as before.
        """
        server = self._new_server()
        before = await server.pid()
        await self._register(server)
        try:
            unanswered = await self._freeze_quiet(server, process, accept_in_doubt=accept_in_doubt)
            await process.end()
        except BaseException:
            process.thaw()
            if before is not None:
                await self._store.write(f"/{self._tree}/pid", b"%d" % before)
            raise
        for function, request_id in unanswered:
            request = Request(function, request_id, ())
            await server.respond(request, _in_doubt(request))
        self._server = server

    async def _freeze_quiet(self, server: Server, process: Process, *, accept_in_doubt: bool) -> list[tuple[str, str]]:
        """Freezes the daemon while nothing is unanswered; with `accept_in_doubt`, after 5 s, returns what is.

        Looked at before it is frozen as well: a daemon that is stopped at every look answers ever more slowly, while
        its callers go on asking.
        """
        patience = time.monotonic() + TAKE_OVER_SECONDS
        while time.monotonic() < patience:
            if await server.outstanding():
                await asyncio.sleep(BREATH_SECONDS)
                continue
            await process.freeze()
            if not await server.outstanding():
                return []
            process.thaw()
        await process.freeze()
        unanswered = await server.outstanding()
        if unanswered and not accept_in_doubt:
            raise DoorError(
                f"/{self._tree} was never quiet within {TAKE_OVER_SECONDS:.0f} s ({len(unanswered)} unanswered); "
                "the legacy daemon runs on; try again, or --accept-in-doubt"
            )
        return unanswered

    def serve(self, tasks: asyncio.TaskGroup) -> None:
        """Executes the tree's requests from now on; those that waited are served first."""
        assert self._server is not None
        self._tasks = tasks
        self._awaits_successor = False
        self._task = tasks.create_task(self._serve(self._server), name=f"tree of {self._situation.service}")

    async def _serve(self, server: Server) -> None:
        try:
            await server.run()
        except XenstoreError as error:
            self._situation.alarm("TREE_LOST", str(error))

    async def serve_again(self, tasks: asyncio.TaskGroup) -> None:
        """After a way back that was given up: the requests that came meanwhile are served, if nobody else had them."""
        await self.leave()
        server = self._new_server()
        if settled := await self._settle_what_others_left(server):
            LOG.warning("%s: %d requests of the tree are in doubt", self._situation.service, settled)
        await self._register(server)
        self._server = server
        self.serve(tasks)

    async def drain(self, timeout: float) -> bool:
        """No request is begun any more, those begun are answered; what arrives later waits in the store."""
        self._awaits_successor = True
        return self._server is None or await self._server.drain(timeout)

    async def abandon(self, timeout: float) -> None:
        """After its daemon was fenced: calls that are not over in time are answered as in doubt, never left behind."""
        if self._server is not None and not await self._server.drain(timeout):
            count = await self._server.abandon(_in_doubt)
            LOG.warning("%s: %d requests of the tree are in doubt", self._situation.service, count)

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
        try:
            if await self._legacy.pid() is not None:
                return  # two owners: the alarm is raised already
            while not await self._own(stale):
                pass  # the store went away again: all of it once more
        except (ProcessError, XenstoreError, NotWritten) as error:
            self._situation.alarm("TREE_LOST", f"{error}; restart the bridge when that is mended")
        if self._server is not None:
            self.serve(tasks)

    async def _own(self, stale: str) -> bool:
        """False when the store was lost meanwhile. The tree is not ours when another daemon serves it."""
        await self._store.wait_connected()
        server = self._new_server()
        try:
            registered = await server.pid()
            if registered and registered != os.getpid() and is_alive(registered):
                self._alarm_split(registered)
                return True
            settled = await self._settle_what_others_left(server)
            await self._register(server)
            unknown = None if stale == "execute" else _NOT_EXECUTED
            settled += await server.settle_outstanding(partial(self._door.settle_stale, unknown=unknown))
            if settled:
                LOG.warning("%s: %d requests were there before us: answered", self._situation.service, settled)
        except StoreLost:
            return False
        self._server = server
        return True

    async def register_legacy(self, timeout: float) -> None:
        """The legacy daemon's pid where a bridge that was killed in a move had left its own. Raises XenstoreError."""
        await self._store.wait_connected(timeout)
        registered, pid = await self._new_server().pid(), await self._legacy.pid()
        if registered and pid is not None and not is_alive(registered):
            await self._store.write(f"/{self._tree}/pid", b"%d" % pid)

    async def is_registered_by_another(self) -> bool:
        """Whether the pid node names another process than us, and one that runs."""
        pid = await (self._server or self._new_server()).pid()
        return pid is not None and pid not in (0, os.getpid()) and is_alive(pid)


def _in_doubt(_request: Request) -> Response:
    text = "InDoubt: the daemon was replaced with this request in its hands; it may have been executed"
    return error_response(EXCEPTION, text)
