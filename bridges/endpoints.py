"""One service at run time: its doors, its backends and its presence on the bus, put together.

`flip` moves the service from stage to stage by these parts; `run` keeps what the stage demands while the bus, the
store, the sockets' paths and the candidate come and go.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from bridges import dbus_translation, doors, tongues
from bridges.backends import Backend, BusDaemon, LegacyOverDatagrams, LegacyOverSocket, LegacyOverXenstore
from bridges.bus_presence import BusPresence
from bridges.calls import Door, Side
from bridges.cutover import Keeper
from bridges.datagram_door import DatagramAddress
from bridges.dispatch import Dispatch
from bridges.interfaces import model
from bridges.legacy_daemon import LegacyDaemon, LegacyError
from bridges.rpc_doors import FramedSocket, HttpDoor, SocketCalls
from bridges.settings import ServiceSettings
from bridges.situation import DoorError, Situation
from bridges.socket_door import SocketDoor
from bridges.state import Standing
from bridges.tree_door import TreeDoor
from dbus_side.errors import BusError
from dbus_side.exported import ObjectTree
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreLost, XenstoreError
from xenstore_rpc.rpc import Caller
from xmlrpc_gateway.framed import FramedClient

LOG: Final = logging.getLogger("bridges.endpoints")

START_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0
STORE_SECONDS: Final = 5.0
BUS_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 5.0


class Endpoints:
    """One service of this bridge. `sockets` may be empty; `tree` and `datagrams` are None where it has no such door."""

    def __init__(self, settings: ServiceSettings, bus_address: str, store: Store | None) -> None:
        self.settings = settings
        self.name = settings.name
        self.situation = Situation(self.name)
        self.dispatch = Dispatch(self.name)
        self.legacy = LegacyDaemon(self.name, settings.legacy)
        self._store = store if settings.xenstore is not None else None
        self._service = model.load_dialect(self.name, settings.dialect)
        self._tongues = tongues.Tongues(settings)
        on_bus = dbus_translation.Translation(self._service)
        bus_daemon = BusDaemon(self.name, on_bus)
        self._http = self._framed = None
        if settings.http is not None:
            self._http = SocketDoor(self.situation, settings.http, self._tongues.http_client)
        if settings.framed is not None:
            self._framed = SocketDoor(self.situation, settings.framed, FramedClient)
        self.sockets = tuple(door for door in (self._http, self._framed) if door is not None)
        self._backends = doors.Backends(self._legacy_backend(), bus_daemon)
        self._set_doors()
        objects = ObjectTree()
        bus_door = doors.BusDoor(self.dispatch, self._backends, on_bus)
        bus_door.export(objects)
        self.bus = BusPresence(self.situation, bus_address, objects, bus_daemon, bus_door.long_polls())
        self.tree: TreeDoor | None = None
        if settings.xenstore is not None and store is not None:
            xenstore_door = doors.XenstoreDoor(self.dispatch, self._backends, self._service)
            self.tree = TreeDoor(self.situation, store, settings.xenstore, xenstore_door, self.legacy)
        self.datagrams: DatagramAddress | None = None
        if settings.datagram is not None:
            datagram_door = doors.DatagramDoor(self.dispatch, self._backends, self._service)
            self.datagrams = DatagramAddress(self.situation, settings.datagram, datagram_door)
        self._tasks: asyncio.TaskGroup | None = None

    def _legacy_backend(self) -> Backend:
        """The way to the legacy daemon that the settings choose."""
        settings = self.settings
        if settings.reach == "http" and self._http is not None:
            return LegacyOverSocket(self._http.client, *self._tongues.call())
        if settings.reach == "framed" and self._framed is not None:
            return LegacyOverSocket(self._framed.client, *self._tongues.frame())
        if settings.reach == "datagram" and settings.datagram is not None:
            return LegacyOverDatagrams(settings.datagram)
        assert self._store is not None
        assert settings.xenstore is not None
        return LegacyOverXenstore(Caller(self._store, settings.xenstore), self._service)

    def _set_doors(self) -> None:
        """What serves each socket while it is ours."""
        if self._http is not None and self.settings.http is not None:
            manner = self._tongues.manner
            calls = SocketCalls(Door.HTTP, self.dispatch, self._backends, self._service, manner.unreadable)
            listen = self.settings.http.listen
            self._http.door = HttpDoor(calls, manner, self._tongues.at, self._http.client, listen)
        if self._framed is not None:
            framed_calls: SocketCalls[bytes] = SocketCalls(Door.FRAMED, self.dispatch, self._backends, self._service)
            self._framed.door = FramedSocket(framed_calls, self._tongues.frame(), self._framed.client)

    @property
    def tasks(self) -> asyncio.TaskGroup:
        """Where what the service keeps doing runs."""
        assert self._tasks is not None
        return self._tasks

    def enter(self, standing: Standing) -> None:
        """From here on calls go to the authority of that standing."""
        self.situation.standing = standing
        self.dispatch.authority = self.situation.meaning.authority

    async def run(self, standing: Standing, started: asyncio.Event, *, was_cut_off: bool = False) -> None:
        """Brings the service to its stage and keeps it there until cancelled, then closes its doors orderly.

        `was_cut_off`: a crash ended a move of the service, which is not begun or completed by now, by `standing`.
        """
        self.enter(standing)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._open(was_cut_off=was_cut_off)
                started.set()
                while True:
                    await asyncio.sleep(LOOK_SECONDS)
                    async with self.situation.lock:
                        await self._look()
        finally:
            await self._close()

    async def _open(self, *, was_cut_off: bool) -> None:
        """What the stage demands at a start; a part that cannot be had yet raises an alarm and is tried again."""
        if self.situation.meaning.bus is not Keeper.CLOSED:
            self.bus.connect(self.tasks)
        if self.situation.meaning.authority is Side.BUS:
            # Before any other door: what waits there would be answered Unavailable while the bus is being reached.
            await self.bus.wait_there(BUS_SECONDS)
        if self.situation.meaning.tree is Keeper.BRIDGE and self.tree is not None:
            owning = self.tree.own_at_start(self.tasks, self.settings.stale_at_start)
            task = self.tasks.create_task(owning, name=f"tree of {self.name} at start")
            await asyncio.wait([task], timeout=STORE_SECONDS)
        elif self._store is not None:
            with suppress(StoreLost):
                await self._store.wait_connected(STORE_SECONDS)
        if self.situation.meaning.authority is Side.LEGACY:
            await self._let_legacy_rule(was_cut_off=was_cut_off)
        await self._look()
        if self.situation.meaning.bus is not Keeper.CLOSED:
            await self.bus.wait_there(BUS_SECONDS)

    async def _let_legacy_rule(self, *, was_cut_off: bool) -> None:
        """What a bridge that was killed may have left to a legacy daemon: addresses, a freeze, its end."""
        try:
            for door in self.sockets:
                door.release_if_legacys()
            if await self.legacy.thaw() is None and was_cut_off:
                LOG.warning("%s: the legacy daemon had been ended by the move that was cut off: starting it", self.name)
                await self.start_legacy()
            elif was_cut_off:
                await self.legacy.allow()
                if self.tree is not None:
                    await self.tree.register_legacy(STORE_SECONDS)
        except (DoorError, LegacyError, XenstoreError, OSError) as error:
            self.situation.alarm("NO_AUTHORITY", f"{error}; start the legacy daemon, then the bridge")

    async def _look(self) -> None:
        """Is what the stage demands still so?"""
        if self._store is not None:
            if self._store.is_connected:
                self.situation.calm("STORE_LOST")
            else:
                text = f"xenstored at {self._store.address} cannot be reached; tried again until it is back"
                self.situation.alarm("STORE_LOST", text)
        try:
            for door in self.sockets:
                await door.look()
            if self.datagrams is not None:
                await self.datagrams.look()
            await self.bus.look()
            self.situation.calm("DOORS")
            if "NO_AUTHORITY" in self.situation.alarms and self.situation.meaning.authority is Side.LEGACY:
                await self._calm_when_legacy_runs()
        except (DoorError, BusError, OSError) as error:
            self.situation.alarm("DOORS", str(error))

    async def _calm_when_legacy_runs(self) -> None:
        """Somebody has started the legacy daemon that we could not start."""
        with suppress(LegacyError):
            if await self.legacy.pid() is not None:
                self.situation.calm("NO_AUTHORITY")

    async def _close(self) -> None:
        """No new calls, those in flight finish, the sockets go back to the legacy daemon."""
        if self.tree is not None:
            await self.tree.drain(DRAIN_SECONDS)
            await self.tree.leave()
        if self.datagrams is not None:
            await self.datagrams.close()
        await self.give_sockets_back()
        for door in self.sockets:
            await door.close()

    async def take_sockets(self) -> None:
        """All of them or none. Raises DoorError."""
        try:
            for door in self.sockets:
                await door.take()
        except DoorError:
            await self.give_sockets_back()
            raise

    async def give_sockets_back(self) -> None:
        await asyncio.gather(*(door.give_back() for door in self.sockets))

    async def drain_legacy(self, timeout: float) -> None:
        """Waits until the legacy daemon has answered those who are connected to it directly. Raises DoorError."""
        for door in self.sockets:
            await door.drain_daemon(timeout)

    async def start_legacy(self) -> None:
        """Starts the legacy daemon and waits until its doors are its own again, then takes the sockets.

        Raises LegacyError or DoorError.
        """
        process = await self.legacy.start()
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._legacy_is_ready():
                    if process.has_ended:
                        raise LegacyError(f"the legacy daemon (pid {process.pid}) ended right after its start")
                    await asyncio.sleep(0.01)  # neither a bound path nor another's pid node sends us an event
        except TimeoutError:
            raise LegacyError(f"the legacy daemon did not open its doors within {START_SECONDS:.0f} s") from None
        finally:
            process.close()
        for door in self.sockets:
            await door.take_again()

    async def _legacy_is_ready(self) -> bool:
        try:
            registered = self.tree is None or await self.tree.is_registered_by_another()
        except XenstoreError:
            return False
        return registered and all([await door.daemon_listens() for door in self.sockets])

    def status(self) -> dict[str, object]:
        """What the operator sees of this service; JSON-ready."""
        meaning, standing = self.situation.meaning, self.situation.standing
        doors_now = {"bus": str(meaning.bus)}
        if self._http is not None:
            doors_now["http"] = str(meaning.sockets)
        if self._framed is not None:
            doors_now["framed"] = str(meaning.sockets)
        if self.tree is not None:
            doors_now["xenstore"] = str(meaning.tree)
        if self.datagrams is not None:
            doors_now["datagram"] = str(meaning.tree)
        return {
            "service": self.name,
            "stage": str(standing.stage),
            "authority": str(meaning.authority),
            "epoch": standing.epoch,
            "doors": doors_now,
            "candidate": self.bus.owner_of_candidate(),
            "alarms": dict(self.situation.alarms),
            **self.dispatch.status(),
        }
