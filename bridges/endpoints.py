"""All that one service has at run time: its doors, its backends, its connection to the bus, its tree in the store.

`flip` moves a service from stage to stage with the operations here; `run` keeps what the stage demands while the bus, the
store, the sockets' paths and the candidate come and go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Final

from bridges import dbus_translation, doors, xmlrpc_translation
from bridges.backends import BusDaemon, LegacyOverHttp, LegacyOverXenstore
from bridges.cutover import MEANINGS, Keeper, Stage
from bridges.dispatch import Dispatch
from bridges.interfaces import model
from bridges.legacy_daemon import LegacyDaemon, LegacyError, Process
from bridges.settings import ServiceSettings
from bridges.state import Standing
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusError, BusRefused, BusUnreachable
from dbus_side.exported import ObjectTree
from dbus_side.messages import NameOutcome
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import XenstoreError
from xenstore_rpc.records import EXCEPTION, Request, error_response
from xenstore_rpc.rpc import Caller, Server
from xmlrpc_gateway import dialects, manners, sockets
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.errors import AddressTaken, DaemonUnreachable
from xmlrpc_gateway.server import HttpDoor

LOG: Final = logging.getLogger("bridges.endpoints")

CANDIDATE: Final = "org.xen.xcp.Candidate1"
CANDIDATE_SECONDS: Final = 10.0
TAKE_OVER_SECONDS: Final = 5.0
START_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0
STORE_SECONDS: Final = 5.0
BODY_LIMIT: Final = 64 * 1024 * 1024


class DoorError(Exception):
    """An address or a daemon is not as a move needs it; the text says what is so and what to do."""


class Endpoints:
    """One service of this bridge."""

    def __init__(self, settings: ServiceSettings, bus_address: str, store: Store | None) -> None:
        self.settings = settings
        self.name = settings.name
        self.standing = Standing(Stage.OFF, 0)
        self.dispatch = Dispatch(self.name)
        self.legacy = LegacyDaemon(self.name, settings.legacy)
        self.alarms: dict[str, str] = {}
        self.lock = asyncio.Lock()
        self._bus_address = bus_address
        self._store = store
        service = model.load(self.name)
        on_bus = dbus_translation.Translation(service)
        self._xml = xmlrpc_translation.Translation(
            dialects.DIALECTS[settings.http.dialect if settings.http else "rpclib"]
        )
        self._bus_daemon = BusDaemon(self.name, on_bus)
        http = settings.http
        # Where the legacy daemon's socket stands while ours is at its path, and where it stands otherwise.
        self._behind_us = DaemonClient(str(http.legacy)) if http else None
        self._at_its_path = DaemonClient(str(http.socket)) if http else None
        backends = doors.Backends(self._legacy_backend(service), self._bus_daemon)
        self._bus_door = doors.BusDoor(self.dispatch, backends, on_bus)
        self._objects = ObjectTree()
        for path, interface, answer in self._bus_door.objects():
            self._objects.add(path, interface, answer)
        self._xenstore_door = doors.XenstoreDoor(self.dispatch, backends, service)
        self._http_door = (
            doors.HttpDoor(self.dispatch, backends, service, self._xml, self._legacy_client) if http else None
        )
        self._http_server: HttpDoor | None = None
        self._owned_socket: sockets.OwnedSocket | None = None
        self._tree: Server | None = None
        self._tree_task: asyncio.Task[None] | None = None
        self._bus: Bus | None = None
        self._bus_task: asyncio.Task[None] | None = None
        self._bus_ready = asyncio.Event()
        self._owner_changed = asyncio.Event()
        self._assumed_by: str | None = None
        self._tasks: asyncio.TaskGroup | None = None

    def _legacy_backend(self, service: model.Service) -> LegacyOverHttp | LegacyOverXenstore:
        if self.settings.http is not None and (self.settings.reach == "http" or self.settings.xenstore is None):
            return LegacyOverHttp(self._legacy_client, self._xml)
        assert self._store is not None
        assert self.settings.xenstore is not None
        return LegacyOverXenstore(Caller(self._store, self.settings.xenstore), service)

    def _legacy_client(self) -> DaemonClient:
        client = self._behind_us if self._owned_socket is not None else self._at_its_path
        assert client is not None
        return client

    # ------------------------------------------------------------------ life

    async def run(self, standing: Standing, started: asyncio.Event) -> None:
        """Brings the service to its stage and keeps it there until cancelled, then closes its doors orderly."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._enter_at_start(standing)
                started.set()
                await self._look_after()
        finally:
            await self._leave()

    async def _enter_at_start(self, standing: Standing) -> None:
        meaning = MEANINGS[standing.stage]
        if meaning.bus is not Keeper.CLOSED:
            self.connect_bus()
        if meaning.sockets is Keeper.BRIDGE:
            await self.take_sockets()
        self.enter(standing)
        if meaning.tree is Keeper.BRIDGE and self.settings.xenstore is not None:
            assert self._tasks is not None
            owning = self._tasks.create_task(self._own_tree_at_start(), name=f"tree of {self.name}")
            await asyncio.wait([owning], timeout=STORE_SECONDS)

    def enter(self, standing: Standing) -> None:
        """From here on calls go to the authority of that standing."""
        self.standing = standing
        self.dispatch.authority = MEANINGS[standing.stage].authority

    async def _leave(self) -> None:
        """What a stop does: no new calls, those in flight finish, the sockets go back to the legacy daemon."""
        if self._tree is not None:
            await self._tree.drain(5)
            await self._tree.stop()
        await self.give_sockets_back()
        for client in (self._behind_us, self._at_its_path):
            if client is not None:
                await client.close()
        if self._bus is not None:
            await self._bus.close()

    async def _look_after(self) -> None:
        """Every second: is what the stage demands still so?"""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with self.lock:
                try:
                    await self._look()
                except (DoorError, LegacyError, BusError, XenstoreError, OSError) as error:
                    LOG.warning("%s: %s", self.name, error)

    async def _look(self) -> None:
        meaning = MEANINGS[self.standing.stage]
        owned = self._owned_socket
        if meaning.sockets is Keeper.BRIDGE and owned is not None and not sockets.is_ours(owned):
            LOG.warning("%s: %s was bound by somebody else: taking it again", self.name, owned.path)
            if meaning.authority.value == "bus":
                self.alarms["SPLIT_OWNER"] = f"{owned.path} was bound again: a legacy daemon may be running"
            await self.give_sockets_back(restore=False)
            await self.take_sockets()
        if meaning.bus is Keeper.BRIDGE and self._bus_ready.is_set():
            await self._own_name_again()

    # ------------------------------------------------------------------ bus

    def connect_bus(self) -> None:
        """Starts keeping this service's own connection to the bus."""
        if self._bus_task is None:
            assert self._tasks is not None
            self._bus_task = self._tasks.create_task(self._keep_bus(), name=f"bus of {self.name}")

    async def disconnect_bus(self) -> None:
        task, self._bus_task = self._bus_task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_bus(self) -> None:
        pause = 0.1
        try:
            while True:
                try:
                    await self._be_on_bus()
                    pause = 0.1
                except (BusError, OSError) as error:
                    LOG.warning("%s: bus: %s; next try in %.1f s", self.name, error, pause)
                    self.alarms["BUS_LOST"] = str(error)
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
        finally:
            bus, self._bus, self._bus_daemon.bus = self._bus, None, None
            self._bus_ready.clear()
            if bus is not None:
                await bus.close()

    async def _be_on_bus(self) -> None:
        bus = await Bus.connect(self._bus_address)
        self._bus = self._bus_daemon.bus = bus
        try:
            bus.serve(self._objects.answer)
            await bus.track_owner(names.candidate_name(self.name), self._owner_change)
            await bus.track_owner(names.service_name(self.name), self._owner_change)
            self._assumed_by = None
            if MEANINGS[self.standing.stage].bus is Keeper.BRIDGE:
                await self._own_name_again()
            self._bus_ready.set()
            self.alarms.pop("BUS_LOST", None)
            async with asyncio.TaskGroup() as watching:
                keeper = watching.create_task(self._keep_candidate(bus), name=f"candidate of {self.name}")
                await bus.wait_lost()
                keeper.cancel()
            raise BusUnreachable("the connection was lost")
        finally:
            self._bus_ready.clear()
            self._bus = self._bus_daemon.bus = None
            await bus.close()

    def _owner_change(self, _owner: str | None) -> None:
        self._owner_changed.set()

    async def _keep_candidate(self, bus: Bus) -> None:
        """In live, a candidate that appears gets Assume: the bus daemon was restarted, or we were."""
        while True:
            async with self.lock:
                owner = bus.owner(names.candidate_name(self.name))
                if owner is None:
                    self._assumed_by = None
                elif self.standing.stage is Stage.LIVE and owner != self._assumed_by:
                    try:
                        await self.assume(self.standing.epoch)
                        self.alarms.pop("NO_AUTHORITY", None)
                    except (DoorError, BusError) as error:
                        LOG.warning("%s: Assume: %s", self.name, error)
                if self.standing.stage is Stage.LIVE and owner is None:
                    self.alarms["NO_AUTHORITY"] = (
                        "the bus daemon is gone; its callers get Unavailable until it comes back"
                    )
            await self._owner_changed.wait()
            self._owner_changed.clear()

    async def on_bus(self) -> Bus:
        """The connection, waited for. Raises DoorError."""
        try:
            async with asyncio.timeout(CANDIDATE_SECONDS):
                await self._bus_ready.wait()
        except TimeoutError:
            raise DoorError(f"the bus at {self._bus_address} cannot be reached") from None
        assert self._bus is not None
        return self._bus

    async def own_name(self, *, replace: bool = False) -> None:
        """Owns the service's name, without ALLOW_REPLACEMENT and never queued. Raises DoorError when another owns it."""
        bus = await self.on_bus()
        name = names.service_name(self.name)
        outcome = await bus.request_name(name, replace_existing=replace)
        if outcome not in (NameOutcome.OWNER, NameOutcome.ALREADY_OWNER):
            raise DoorError(
                f"{name} is owned by {bus.owner(name)}; that daemon must leave the name before the bridge can hold it"
            )

    async def _own_name_again(self) -> None:
        assert self._bus is not None
        name = names.service_name(self.name)
        if self._bus.owner(name) == self._bus.unique_name:
            return
        outcome = await self._bus.request_name(name)
        if outcome in (NameOutcome.OWNER, NameOutcome.ALREADY_OWNER):
            self.alarms.pop("NAME_TAKEN", None)
        else:
            self.alarms["NAME_TAKEN"] = f"{name} is owned by {self._bus.owner(name)} although legacy is the authority"

    async def release_name(self) -> None:
        bus = await self.on_bus()
        await bus.release_name(names.service_name(self.name))

    # ------------------------------------------------------------------ candidate

    async def candidate(self) -> str:
        """The unique name of the bus daemon under migration. Raises DoorError when there is none."""
        bus = await self.on_bus()
        name = names.candidate_name(self.name)
        owner = bus.owner(name)
        if owner is None:
            raise DoorError(f"nobody owns {name}: start the bus daemon of {self.name} first")
        return owner

    async def assume(self, epoch: int) -> None:
        """Tells the candidate that it is the authority, and sees that it stands in the name's queue. Raises DoorError."""
        owner = await self.candidate()
        await self._tell_candidate(owner, "Assume", epoch)
        bus = await self.on_bus()
        name = names.service_name(self.name)
        if bus.owner(name) != owner and owner not in await _queued_owners(bus, name):
            raise DoorError(f"the candidate took Assume but did not request {name}")
        self._assumed_by = owner

    async def yield_(self, epoch: int) -> None:
        """Tells the bus daemon that it is the authority no more; when this returns it has finished what it had."""
        bus = await self.on_bus()
        owner = bus.owner(names.candidate_name(self.name))
        self._assumed_by = None
        if owner is not None:
            await self._tell_candidate(owner, "Yield", epoch)

    async def _tell_candidate(self, owner: str, member: str, epoch: int) -> None:
        bus = await self.on_bus()
        path = names.service_path(self.name)
        try:
            await bus.call(owner, path, CANDIDATE, member, "t", (epoch,), timeout=CANDIDATE_SECONDS)
        except BusError as error:
            raise DoorError(f"the candidate {owner} did not accept {member}({epoch}): {error}") from None

    async def hand_name_over(self) -> None:
        """Releases the name to the queued candidate and sees that it owns it. Raises DoorError."""
        bus = await self.on_bus()
        name, wanted = names.service_name(self.name), await self.candidate()
        await bus.release_name(name)
        try:
            async with asyncio.timeout(CANDIDATE_SECONDS):
                while bus.owner(name) != wanted:
                    self._owner_changed.clear()
                    await self._owner_changed.wait()
        except TimeoutError:
            raise DoorError(f"{name} did not pass to the candidate {wanted}") from None

    # ------------------------------------------------------------------ sockets

    async def take_sockets(self) -> None:
        """Our listener at the service's path, the legacy daemon's beside it; no moment without one. Raises DoorError."""
        http = self.settings.http
        if http is None or self._http_door is None:
            return
        try:
            self._owned_socket = sockets.take(http.socket, http.legacy)
        except (OSError, AddressTaken) as error:
            raise DoorError(f"{http.socket} cannot be taken: {error}") from None
        server = HttpDoor(
            self._http_door.answer,
            manner=manners.rpclib(self.name),
            body_limit=BODY_LIMIT,
            answer_too_large=self._http_door.too_large,
        )
        await server.serve_socket(self._owned_socket.socket)
        for host, port in http.listen:
            await server.listen_tcp(host, port)
        self._http_server = server

    async def give_sockets_back(self, *, restore: bool = True) -> None:
        """The path is the legacy daemon's again; connections that reached us are still answered."""
        owned, self._owned_socket = self._owned_socket, None
        server, self._http_server = self._http_server, None
        if owned is None or server is None:
            return
        if restore and sockets.is_ours(owned):
            sockets.give_back(owned)
        await server.stop_accepting(owned.socket)
        await server.drain(START_SECONDS)
        await server.close()

    # ------------------------------------------------------------------ tree

    def _store_of(self) -> Store:
        assert self._store is not None
        return self._store

    def _tree_server(self) -> Server:
        assert self.settings.xenstore is not None
        return Server(
            self._store_of(),
            self.settings.xenstore,
            self._xenstore_door.answer,
            pid=os.getpid(),
            on_foreign_pid=self._foreign_pid,
        )

    def _foreign_pid(self, pid: int) -> None:
        """Somebody else serves the tree: we stop at once, whoever it is."""
        if MEANINGS[self.standing.stage].tree is Keeper.BRIDGE and not self.lock.locked():
            self.alarms["SPLIT_OWNER"] = (
                f"/{self.settings.xenstore}/pid is {pid}: another daemon serves the tree; we do not"
            )
            LOG.error("%s: %s", self.name, self.alarms["SPLIT_OWNER"])
            if self._tree_task is not None:
                self._tree_task.cancel()

    async def take_tree(self, process: Process, *, accept_in_doubt: bool) -> None:
        """Freeze-and-check: kills the legacy daemon at a moment when nothing in the tree is unanswered.

        Raises DoorError when no such moment came within 5 s; the daemon then runs on as before.
        """
        server = self._tree_server()
        before = await server.pid()
        await server.register()
        patience = time.monotonic() + TAKE_OVER_SECONDS
        try:
            while True:
                await process.freeze()
                unanswered = await server.outstanding()
                if not unanswered or (accept_in_doubt and time.monotonic() > patience):
                    break
                process.thaw()
                if time.monotonic() > patience:
                    raise DoorError(
                        f"the tree was never quiet within {TAKE_OVER_SECONDS:.0f} s ({len(unanswered)} requests unanswered); "
                        "the legacy daemon runs on"
                    )
                await asyncio.sleep(0.002)  # the daemon needs time of its own to answer
            await self.legacy.kill(process)
        except BaseException:
            process.thaw()
            if before is not None:
                await self._store_of().write(f"/{self.settings.xenstore}/pid", b"%d" % before)
            raise
        for function, request_id in unanswered:
            text = "InDoubt: the daemon was replaced with this request in its hands; it may have been executed"
            await server.respond(Request(function, request_id, ()), error_response(EXCEPTION, text))
        self._tree = server

    def serve_tree(self) -> None:
        """Executes the tree's requests from now on; those that waited are served first."""
        assert self._tree is not None
        assert self._tasks is not None
        self._tree_task = self._tasks.create_task(self._serve(self._tree), name=f"tree of {self.name}")

    async def _serve(self, server: Server) -> None:
        try:
            await server.run()
        except XenstoreError as error:
            LOG.error("%s: the tree is not served: %s", self.name, error)
            self.alarms["TREE_LOST"] = str(error)

    async def drain_tree(self, timeout: float) -> bool:
        """No request is begun any more, those begun are answered; what arrives later waits in the store."""
        return self._tree is None or await self._tree.drain(timeout)

    async def leave_tree(self) -> None:
        """After the legacy daemon registered: the tree is its own."""
        server, self._tree = self._tree, None
        if server is not None:
            await server.stop()
        if self._tree_task is not None:
            self._tree_task.cancel()
            await asyncio.wait([self._tree_task])
            self._tree_task = None

    async def serve_tree_again(self) -> None:
        """After a move that was given up: requests that came meanwhile are served."""
        if self._tree is not None:
            await self.leave_tree()
            self._tree = self._tree_server()
            self.serve_tree()

    async def _own_tree_at_start(self) -> None:
        """A cold start in live: the tree is served again, once the store is there."""
        if await self.legacy.pid() is not None:
            text = "the legacy daemon runs although the bus daemon is the authority: stop it, then restart the bridge"
            self.alarms["SPLIT_OWNER"] = text
            LOG.error("%s: %s", self.name, text)
            return
        await self._store_of().wait_connected()
        server = self._tree_server()
        await server.register()
        if self.settings.stale_at_start == "refuse":
            text = "Unavailable: the request was found at a cold start, its age is unknown: not executed"
            if refused := await server.refuse_outstanding(lambda _request: error_response(EXCEPTION, text)):
                LOG.warning("%s: %d requests were there before us: refused", self.name, refused)
        self._tree = server
        self.serve_tree()

    # ------------------------------------------------------------------ legacy daemon

    async def start_legacy(self) -> None:
        """Starts the legacy daemon and waits until its doors are its own again, then takes the sockets. Raises LegacyError."""
        process = await self.legacy.start()
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._legacy_is_ready():
                    if process.has_ended:
                        raise LegacyError(f"the legacy daemon (pid {process.pid}) ended right after its start")
                    await asyncio.sleep(
                        0.01
                    )  # neither a bound path nor a pid node of another process sends us an event
        except TimeoutError:
            raise LegacyError(f"the legacy daemon did not open its doors within {START_SECONDS:.0f} s") from None
        finally:
            process.close()
        if self._owned_socket is not None and not sockets.is_ours(self._owned_socket):
            await self.give_sockets_back(restore=False)
            await self.take_sockets()

    async def _legacy_is_ready(self) -> bool:
        if self._tree is not None and await self._tree.pid() in (None, os.getpid()):
            return False
        http, owned = self.settings.http, self._owned_socket
        if http is None or owned is None:
            return True
        path = http.legacy if sockets.is_ours(owned) else http.socket
        try:
            (await sockets.connect_unix(str(path))).close()
        except (OSError, DaemonUnreachable):
            return False
        return True

    # ------------------------------------------------------------------ status

    def status(self) -> dict[str, object]:
        """What the operator sees of this service; JSON-ready."""
        meaning = MEANINGS[self.standing.stage]
        counters = self.dispatch.counters
        bus = self._bus
        doors_now: dict[str, str] = {"bus": meaning.bus}
        if self.settings.http is not None:
            doors_now["http"] = meaning.sockets
        if self.settings.xenstore is not None:
            doors_now["xenstore"] = meaning.tree
        return {
            "service": self.name,
            "stage": self.standing.stage,
            "authority": meaning.authority,
            "epoch": self.standing.epoch,
            "doors": doors_now,
            "candidate": bus.owner(names.candidate_name(self.name)) if bus is not None else None,
            "calls": {
                "admitted": counters.admitted,
                "answered": counters.answered,
                "in_flight": self.dispatch.in_flight,
                "in_doubt": counters.in_doubt,
                "abandoned": counters.abandoned,
                "held": self.dispatch.held,
                "refused": counters.refused,
            },
            "by_door": dict(counters.by_door),
            "by_side": dict(counters.by_side),
            "faults": dict(counters.faults),
            "alarms": dict(self.alarms),
        }


async def _queued_owners(bus: Bus, name: str) -> list[str]:
    """The unique names that wait for a name; empty also when nobody owns it."""
    driver = "org.freedesktop.DBus"
    try:
        reply = await bus.call(
            driver, "/org/freedesktop/DBus", driver, "ListQueuedOwners", "s", (name,), timeout=CANDIDATE_SECONDS
        )
    except BusRefused:
        return []
    return list(reply.body[0])
