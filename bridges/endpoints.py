"""One service at run time: its doors, its backends and its presence on the bus, put together.

`flip` moves the service from stage to stage by these parts; `run` keeps what the stage demands while the bus, the
store, the sockets' paths and the candidate come and go.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from bridges import dbus_translation, doors, gates, processes, round_trips, routing, tongues
from bridges.activation import Activation
from bridges.afterwards import Afterwards
from bridges.backends import Backend, BusDaemon, LegacyOverDatagrams, LegacyOverSocket, LegacyOverXenstore
from bridges.bus_presence import BusPresence
from bridges.calls import Door, Side, Trail
from bridges.capture.recorder import Recorder
from bridges.cutover import Compared, Keeper, Stage, Step, legal_stages
from bridges.datagram_door import DatagramAddress
from bridges.dispatch import Dispatch
from bridges.durable import Durable, NotDurable
from bridges.evidence import Witness
from bridges.gates import Gate
from bridges.interfaces import model
from bridges.journal import Journal
from bridges.ledger import Aliases, Ledger
from bridges.legacy_daemon import LegacyDaemon
from bridges.observing import Observation
from bridges.overhearing import NOT_WATCHED, Overhearing
from bridges.processes import ProcessError
from bridges.rpc_doors import Beside, FramedSocket, HttpDoor, SocketCalls
from bridges.settings import ServiceSettings
from bridges.situation import DoorError, Situation
from bridges.socket_door import SocketDoor
from bridges.state import NotWritten, Order, Standing, State
from bridges.tree_door import TreeDoor
from dbus_side.errors import BusError
from dbus_side.exported import ObjectTree
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreLost, XenstoreError
from xenstore_rpc.records import Request, Response
from xenstore_rpc.rpc import Caller
from xmlrpc_gateway.framed import FramedClient

LOG: Final = logging.getLogger("bridges.endpoints")

START_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0
STORE_SECONDS: Final = 5.0
BUS_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 5.0


class Shared(NamedTuple):
    """What all services of a bridge use. `store` is None where no service has a tree."""

    bus_address: str
    store: Store | None
    state: State
    durable: Durable
    journal: Journal
    ledger: Ledger
    activation: Activation
    recorder: Recorder


class Endpoints:
    """One service of this bridge. `sockets` may be empty; `tree` and `datagrams` are None where it has no such door."""

    def __init__(self, settings: ServiceSettings, shared: Shared) -> None:
        self.settings = settings
        self.name = settings.name
        self._state = shared.state
        self._ledger = shared.ledger
        self._store = shared.store if settings.xenstore is not None else None
        self.situation = Situation(self.name, keep_freeze=self._keep_freeze)
        self.dispatch = Dispatch(self.name, shared.journal)
        self.legacy = LegacyDaemon(self.name, settings.legacy)
        self._service = model.load_dialect(self.name, settings.dialect)
        self._tongues = tongues.Tongues(settings)
        self.on_bus = dbus_translation.Translation(self._service)
        self._tap = shared.recorder.tap(self._service, settings.dialect, self.on_bus)
        bus_daemon, candidate = BusDaemon(self.name, self.on_bus), BusDaemon(self.name, self.on_bus, is_candidate=True)
        self._http = self._framed = None
        if settings.http is not None:
            self._http = SocketDoor(self.situation, settings.http, self._tongues.http_client, shared.activation)
        if settings.framed is not None:
            self._framed = SocketDoor(self.situation, settings.framed, FramedClient, shared.activation)
        self.sockets = tuple(door for door in (self._http, self._framed) if door is not None)
        self._aliases = Aliases(self._service, shared.ledger)
        self._backends = doors.Backends(self._legacy_backend(), bus_daemon, self._aliases)
        self._afterwards = Afterwards(self.dispatch, candidate, self._service)
        self._set_doors()
        objects = ObjectTree()
        bus_door = doors.BusDoor(self.dispatch, self._backends, self.on_bus, self._afterwards, self._tap)
        bus_door.export(objects)
        self.bus = BusPresence(
            self.situation,
            shared.bus_address,
            objects,
            (bus_daemon, candidate),
            bus_door.long_polls(),
            self._note_assumed,
        )
        self.overhearing = Overhearing(self.on_bus, shared.bus_address, self._tap, lambda: self.bus.unique_name)
        self.tree: TreeDoor | None = None
        if settings.xenstore is not None and self._store is not None:
            xenstore_door = doors.XenstoreDoor(self.dispatch, self._backends, self._service, self._tap)
            self.tree = TreeDoor(
                self.situation, shared.state, self._store, settings.xenstore, xenstore_door, self.legacy
            )
        self.datagrams: DatagramAddress | None = None
        if settings.datagram is not None:
            datagram_door = doors.DatagramDoor(self.dispatch, self._backends, self._service, self._tap)
            self.datagrams = DatagramAddress(self.situation, settings.datagram, datagram_door)
        self.observation = self._observation()
        self.witness = Witness(
            self.situation,
            self.dispatch,
            self._afterwards,
            shared.journal,
            shared.durable,
            doors=settings_doors(settings),
            observed=self.observation.counts,
        )
        self._tasks: asyncio.TaskGroup | None = None

    def _keep_freeze(self, why: str) -> None:
        try:
            self._state.freeze(self.name, why)
        except NotWritten as error:
            LOG.error("%s: the freeze is not kept: %s", self.name, error)

    def _legacy_backend(self) -> Backend:
        """The way to the legacy daemon that the settings choose."""
        settings = self.settings
        if settings.reach == "http" and self._http is not None:
            return LegacyOverSocket(self._http.client, *self._tongues.call())
        if settings.reach == "framed" and self._framed is not None:
            return LegacyOverSocket(self._framed.client, *self._tongues.frame(), Door.FRAMED)
        if settings.reach == "datagram" and settings.datagram is not None:
            return LegacyOverDatagrams(settings.datagram)
        assert self._store is not None
        assert settings.xenstore is not None
        return LegacyOverXenstore(Caller(self._store, settings.xenstore), self._service)

    def _set_doors(self) -> None:
        """What serves each socket while it is ours."""
        beside = Beside(self._aliases, self._afterwards, self.on_bus, self._tap)
        if self._http is not None and self.settings.http is not None:
            manner = self._tongues.manner
            calls = SocketCalls(Door.HTTP, self.dispatch, self._backends, self._service, beside, manner.unreadable)
            listen = self.settings.http.listen
            self._http.door = HttpDoor(calls, manner, self._tongues.at, self._http.client, listen)
        if self._framed is not None:
            framed_calls: SocketCalls[bytes] = SocketCalls(
                Door.FRAMED, self.dispatch, self._backends, self._service, beside
            )
            self._framed.door = FramedSocket(framed_calls, self._tongues.frame(), self._framed.client)

    @property
    def tasks(self) -> asyncio.TaskGroup:
        """Where what the service keeps doing runs."""
        assert self._tasks is not None
        return self._tasks

    def enter(self, standing: Standing) -> None:
        """From here on calls go to the authority of that standing, and what its stage compares is gathered anew."""
        self.situation.standing = self.dispatch.standing = standing
        self._tap.enter(standing.stage, standing.epoch)
        self.witness.begin_anew()
        if self._tasks is not None:
            self._arrange_watches()

    async def attend_capture(self) -> bool:
        """After the service was put under capture, or is no longer: whether what the capture wants is seen by now."""
        if self._tasks is not None:
            self._arrange_overhearing()
        return await self.overhearing.until_heard()

    def _arrange_overhearing(self, missed: str = "") -> None:
        wanted = self._tap.is_on and self.situation.meaning.bus is Keeper.DAEMON
        self.overhearing.arrange(self.tasks, wanted=wanted, missed=missed)

    def _arrange_watches(self) -> None:
        """The legacy daemon's own doors are watched in observe and, for its tree, for as long as that is its own; for
        the capture the bus daemon's is."""
        meaning = self.situation.meaning
        self.observation.arrange(
            self.tasks,
            tree=meaning.tree is Keeper.LEGACY and meaning.compared is not Compared.NOTHING,
            sockets=meaning.sockets is Keeper.LEGACY and meaning.compared is not Compared.NOTHING,
        )
        self._arrange_overhearing(NOT_WATCHED)

    async def run(self, standing: Standing, started: asyncio.Event, *, was_cut_off: bool = False) -> None:
        """Brings the service to its stage and keeps it there until cancelled, then closes its doors orderly.

        `was_cut_off`: a crash ended a move of the service, which is not begun or completed by now, by `standing`.
        """
        self.enter(standing)
        self.witness.recall()
        self.situation.frozen = self._state.frozen(self.name)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                tasks.create_task(self._afterwards.run(), name=f"comparisons of {self.name}")
                await self._open(was_cut_off=was_cut_off)
                self._arrange_watches()
                started.set()
                while True:
                    await asyncio.sleep(LOOK_SECONDS)
                    async with self.situation.lock:
                        await self._look()
                    await self.witness.look()
                    self._end_watch()
            finally:  # within: calls that are answered while the doors close need the bus still
                await self._close()
                self._tasks = None  # nothing is begun any more

    async def _open(self, *, was_cut_off: bool) -> None:
        """What the stage demands at a start; a part that cannot be had yet raises an alarm and is tried again."""
        if self.situation.meaning.bus is not Keeper.CLOSED:
            self.bus.connect(self.tasks)
        if self.situation.meaning.authority is Side.BUS:
            # Before any other door: what waits there would be answered Unavailable while the bus is being reached.
            await self.bus.wait_there(BUS_SECONDS)
            await self._keep_legacy_away()
        if self.situation.meaning.tree.is_ours and self.tree is not None:
            owning = self.tree.own_at_start(self.tasks, self.settings.stale_at_start)
            task = self.tasks.create_task(owning, name=f"tree of {self.name} at start")
            await asyncio.wait([task], timeout=STORE_SECONDS)
        elif self._store is not None:
            with suppress(StoreLost):
                await self._store.wait_connected(STORE_SECONDS)
        if self.situation.meaning.authority is Side.LEGACY:
            await self._let_legacy_rule(was_cut_off=was_cut_off)
        self.dispatch.hold()  # the legacy daemon may be another one by now: no call reaches it before that is known
        try:
            await self._look()
            if self.situation.meaning.sockets.is_ours and self.situation.meaning.authority is Side.LEGACY:
                await self._settle_again()
        finally:
            self.dispatch.resume()
        if self.situation.meaning.bus is not Keeper.CLOSED:
            await self.bus.wait_there(BUS_SECONDS)

    async def _keep_legacy_away(self) -> None:
        """A mask lasts until the next boot only, and somebody may have started the daemon meanwhile."""
        try:
            await self.legacy.forbid()
            if (pid := await self.legacy.pid()) is not None:
                text = f"the legacy daemon runs (pid {pid}) although the bus daemon is the authority"
                self.situation.alarm("SPLIT_OWNER", f"{text}: end it, then restart the bridge")
        except (ProcessError, OSError) as error:
            self.situation.alarm("DOORS", str(error))

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
        except (DoorError, ProcessError, XenstoreError, OSError) as error:
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
            taken_away = [door.was_taken_away() for door in self.sockets]
            if any(taken_away) and self.situation.meaning.authority is Side.LEGACY:
                await self._settle_again()  # first: once the path is ours again, calls reach the new process
            for door, is_away in zip(self.sockets, taken_away, strict=True):
                await door.look(was_taken_away=is_away)
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
        with suppress(ProcessError):
            if await self.legacy.pid() is not None:
                self.situation.calm("NO_AUTHORITY")

    def _observation(self) -> Observation:
        """What watches the legacy daemon's own doors; whole exchanges of its tree are compared as what passes us is."""

        def compare(request: Request, response: Response, trail: Trail | None) -> None:
            make = partial(round_trips.of_xenstore, self._service, self.on_bus, request, response)
            self._afterwards.offer(make, trail=trail)

        paths = [door.socket for door in (self.settings.http, self.settings.framed) if door is not None]
        return Observation(self._service, self._store, self.settings.xenstore, paths, compare, self._tap)

    async def _close(self) -> None:
        """No new calls, those in flight finish, the sockets go back to the legacy daemon."""
        if self.tree is not None:
            await self.tree.drain(DRAIN_SECONDS)
            await self.tree.leave()
        if self.datagrams is not None:
            await self.datagrams.close()
        await self.observation.stop()
        await self.overhearing.stop()
        await asyncio.gather(*(door.stop() for door in self.sockets))
        for door in self.sockets:
            await door.close()
        await self.witness.save()

    async def gates(self, target: Stage) -> list[Gate]:
        """What speaks for that stage, or against it. Raises DoorError when a candidate is wanted and is not fit."""
        missing = None
        if target in (Stage.SHADOW, Stage.LIVE):
            missing = await self.bus.check_candidate(self.on_bus)
        evidence = self.witness.evidence(missing)
        return gates.gates(self.situation.standing.stage, target, evidence, quiet_hours=self.settings.quiet_hours)

    async def settle_home(self, side: Side, *, fresh: bool = False) -> None:
        """Handles given out from now on belong to the process behind the authority. Raises DoorError."""
        process = None
        if side is Side.LEGACY:
            process = _known([await door.daemon_pid() for door in self.sockets])
            if process is None:  # a daemon that went to the background after it had listened is known by its settings
                process = _known([await self.legacy.pid()])
        else:
            process = self._state.candidate(self.name)
        try:
            # Who is not known may be another one every time.
            await self._ledger.settle(self.name, side, process or f"unknown {uuid.uuid4()}", fresh=fresh)
        except NotDurable as error:
            raise DoorError(str(error)) from None

    async def _settle_again(self) -> None:
        """The legacy daemon may be another process than the one that gave out handles."""
        with suppress(DoorError, ProcessError, OSError):
            await self.settle_home(Side.LEGACY)

    async def _note_assumed(self, process: str) -> None:
        """A bus daemon takes Assume: what it gives out is its own. Raises DoorError."""
        try:
            self._state.keep_candidate(self.name, process)
        except NotWritten as error:
            raise DoorError(str(error)) from None
        await self.settle_home(Side.BUS)

    async def reservations(self) -> dict[str, bytes]:
        """What the service keeps in the store beside its tree: `SESSION/ID` to KiB, none where there is no such thing.

        Raises XenstoreError.
        """
        if self.settings.xenstore is None or self._store is None:
            return {}
        root, found = f"/{self.settings.xenstore}/state", {}
        for session in await self._store.directory_or_empty(root):
            for reservation in await self._store.directory_or_empty(f"{root}/{session}"):
                found[f"{session}/{reservation}"] = await self._store.read(f"{root}/{session}/{reservation}")
        return found

    def _end_watch(self) -> None:
        watch = self.witness.watch
        if watch is None or not self.witness.watch_is_over(watch):
            return
        self.witness.watch = None
        order = Order("bridge", f"the first calls after move {watch.flip}", verb="watch")
        standing = self.situation.standing
        with suppress(NotWritten):
            self._state.reached(watch.flip, Step.WATCHED)
            self._state.note(self.name, standing, standing.stage, order, self.witness.told(watch))

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

        Raises ProcessError or DoorError.
        """
        process = await self.legacy.start()
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._legacy_is_ready():
                    if process.has_ended:
                        raise ProcessError(f"the legacy daemon (pid {process.pid}) ended right after its start")
                    await asyncio.sleep(0.01)  # neither a bound path nor another's pid node sends us an event
        except TimeoutError:
            raise ProcessError(f"the legacy daemon did not open its doors within {START_SECONDS:.0f} s") from None
        finally:
            process.close()
        for door in self.sockets:
            await door.take_again()
        await self.settle_home(Side.LEGACY, fresh=True)

    async def _legacy_is_ready(self) -> bool:
        try:
            registered = self.tree is None or await self.tree.is_registered_by_another()
        except XenstoreError:
            return False
        return registered and all([await door.daemon_listens() for door in self.sockets])

    def status(self) -> dict[str, object]:
        """What the operator sees of this service; JSON-ready."""
        meaning, standing = self.situation.meaning, self.situation.standing
        doors_now = (Door.BUS, *settings_doors(self.settings))
        return {
            "service": self.name,
            "stage": str(standing.stage),
            "authority": str(meaning.authority),
            "epoch": standing.epoch,
            "doors": {str(door): str(routing.keeper_of(standing.stage, door)) for door in doors_now},
            "candidate": self.bus.owner_of_candidate(),
            "alarms": dict(self.situation.alarms),
            "frozen": self.situation.frozen,
            "moving": self.situation.moving,
            "next": list(legal_stages(standing.stage)),
            **self.dispatch.status(),
            **self.witness.status(),
            **({"observed": self.observation.status()} if meaning.compared is not Compared.NOTHING else {}),
        }


def _known(pids: Iterable[int | None]) -> str | None:
    """The identity of the first process that runs."""
    return next((found for pid in pids if pid and (found := processes.identity(pid))), None)


def settings_doors(settings: ServiceSettings) -> tuple[Door, ...]:
    """The legacy doors that the settings name."""
    named = {
        Door.HTTP: settings.http,
        Door.FRAMED: settings.framed,
        Door.XENSTORE: settings.xenstore,
        Door.DATAGRAM: settings.datagram,
    }
    return tuple(door for door, setting in named.items() if setting is not None)
