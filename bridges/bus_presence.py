"""A service on the bus: its own connection, its name, and the candidate that is to own the name one day.

One connection per service, since a bus policy's `send_destination` matches every name of a connection. The bridge is
never queued for a name. A connection that was lost is made anew; the name and the candidate are looked after again.
In complete a daemon that owns the name by itself, without Assume, is as good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from bridges import candidates, dbus_translation
from bridges.backends import BusDaemon
from bridges.calls import Side
from bridges.candidates import PATIENCE
from bridges.capture.telling import harmless
from bridges.cutover import Keeper, Stage
from bridges.faults import Kind
from bridges.situation import DoorError, Situation
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusError, BusRefused, BusUnreachable
from dbus_side.exported import ObjectTree
from dbus_side.messages import MethodCall, NameOutcome

LOG: Final = logging.getLogger("bridges.bus_presence")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


class BusPresence:
    """One service's part of the bus. `daemons` are the backends that use the same connection.

    `long_polls` has path and member of the methods that wait for as long as their callers do. `on_assumed` is told the
    process that has taken Assume, before it can own the name.
    """

    def __init__(
        self,
        situation: Situation,
        address: str,
        objects: ObjectTree,
        daemons: tuple[BusDaemon, ...],
        long_polls: frozenset[tuple[str, str]],
        on_assumed: Callable[[str], Awaitable[None]],
    ) -> None:
        self._situation = situation
        self._address = address
        self._objects = objects
        self._daemons = daemons
        self._long_polls = long_polls
        self._on_assumed = on_assumed
        self._name = names.service_name(situation.service)
        self._candidate_name = names.candidate_name(situation.service)
        self._bus: Bus | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._owner_changed = asyncio.Event()
        self._assumed_by: str | None = None

    def connect(self, tasks: asyncio.TaskGroup) -> None:
        """Starts keeping the connection."""
        if self._task is None:
            self._task = tasks.create_task(self._keep(), name=f"bus of {self._situation.service}")

    async def disconnect(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            self._ready.clear()

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._be_there()
            except (BusError, OSError) as error:
                self._situation.alarm("BUS_LOST", str(error))
            pause = FIRST_PAUSE if self._ready.is_set() else min(LONGEST_PAUSE, pause * 2)
            self._ready.clear()
            await asyncio.sleep(pause)

    async def _be_there(self) -> None:
        bus = await Bus.connect(self._address)
        try:
            bus.serve(self._answer)
            await bus.track_owner(self._candidate_name, self._note_owner)
            await bus.track_owner(self._name, self._note_owner)
            self._assumed_by = None
            self._use(bus)
            if self._situation.meaning.bus is Keeper.BRIDGE:
                await self._own_again(bus)
            self._ready.set()
            self._situation.calm("BUS_LOST")
            async with asyncio.TaskGroup() as watching:
                keeper = watching.create_task(self._keep_candidate(bus), name=f"candidate of {self._situation.service}")
                await bus.wait_lost()
                keeper.cancel()
            raise BusUnreachable("the connection was lost")
        finally:
            self._use(None)
            await bus.close()

    @property
    def unique_name(self) -> str:
        """Ours on the bus, empty while we are not there."""
        return "" if self._bus is None else self._bus.unique_name

    def _use(self, bus: Bus | None) -> None:
        self._bus = bus
        for daemon in self._daemons:
            daemon.bus = bus

    async def _answer(self, call: MethodCall) -> tuple[str, tuple[Any, ...]]:
        """The reply to a call at the bus door; what is refused, by us or by the service, is a line in the log."""
        try:
            if (call.path, call.member) in self._long_polls and self._bus is not None:
                return await self._answer_while_there(self._bus, call)
            return await self._objects.answer(call)
        except BusRefused as refusal:
            is_services_own = refusal.name.startswith(names.error_prefix(self._situation.service))
            shown = refusal.name if is_services_own else harmless(str(refusal))
            LOG.info("%s %s at the bus door: %s", self._situation.service, call.member, shown)
            raise

    async def _answer_while_there(self, bus: Bus, call: MethodCall) -> tuple[str, tuple[Any, ...]]:
        """As the objects answer, but no longer than the caller is on the bus: a long poll may never end by itself."""
        work = asyncio.create_task(self._objects.answer(call), name=f"long poll of {call.sender}")

        def note(owner: str | None) -> None:
            if owner is None:
                work.cancel()

        try:
            await bus.track_owner(call.sender, note)
            try:
                await asyncio.wait([work])
            finally:
                await bus.untrack(call.sender, note)
        finally:
            work.cancel()
        if work.cancelled():
            raise BusRefused(names.bridge_error(Kind.UNAVAILABLE), "s", ("the caller has left",))
        return work.result()

    def _note_owner(self, _owner: str | None) -> None:
        self._owner_changed.set()

    async def _keep_candidate(self, bus: Bus) -> None:
        """In live, a candidate that appears gets Assume: the bus daemon was restarted, or we were."""
        situation = self._situation
        while True:
            async with situation.lock:
                owner = bus.owner(self._candidate_name)
                if owner is None:
                    self._assumed_by = None
                if situation.meaning.authority is Side.BUS:
                    if owner is None and self._stands_alone(bus):
                        situation.calm("NO_AUTHORITY")
                    elif owner is None:
                        situation.alarm(
                            "NO_AUTHORITY", "the bus daemon is gone; callers get Unavailable until it is back"
                        )
                    elif owner != self._assumed_by or bus.owner(self._name) == bus.unique_name:
                        try:
                            await self.assume(situation.standing.epoch)
                            if bus.owner(self._name) == bus.unique_name:
                                await self.hand_name_over()
                            situation.calm("NO_AUTHORITY")
                        except (DoorError, BusError) as error:
                            situation.alarm("NO_AUTHORITY", str(error))
            await self._owner_changed.wait()
            self._owner_changed.clear()

    def _stands_alone(self, bus: Bus) -> bool:
        return self._situation.standing.stage is Stage.COMPLETE and bus.owner(self._name) not in (None, bus.unique_name)

    async def look(self) -> None:
        """What the stage demands, once more: a name may be free by now, a candidate that failed may be fit."""
        if self._situation.meaning.authority is Side.BUS and "NO_AUTHORITY" in self._situation.alarms:
            self._owner_changed.set()
        if self._situation.meaning.bus is Keeper.BRIDGE and self._bus is not None:
            await self._own_again(self._bus)

    async def _own_again(self, bus: Bus) -> None:
        if bus.owner(self._name) == bus.unique_name:
            return
        outcome = await bus.request_name(self._name)
        if outcome in (NameOutcome.OWNER, NameOutcome.ALREADY_OWNER):
            self._situation.calm("NAME_TAKEN")
        else:
            owner = bus.owner(self._name)
            self._situation.alarm("NAME_TAKEN", f"{self._name} is owned by {owner} although legacy is the authority")

    async def wait_there(self, timeout: float) -> None:
        """Returns once the service is on the bus, or after `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._ready.wait()

    async def connection(self) -> Bus:
        """The connection, waited for. Raises DoorError."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._ready.wait()
        except TimeoutError:
            raise DoorError(f"the bus at {self._address} cannot be reached") from None
        if self._bus is None:
            raise DoorError(f"the bus at {self._address} was lost")
        return self._bus

    async def own_name(self, *, replace: bool = False) -> None:
        """Owns the service's name, without ALLOW_REPLACEMENT. Raises DoorError when another owns it."""
        bus = await self.connection()
        outcome = await bus.request_name(self._name, replace_existing=replace)
        if outcome not in (NameOutcome.OWNER, NameOutcome.ALREADY_OWNER):
            raise DoorError(f"{self._name} is owned by {bus.owner(self._name)}; that daemon must leave it first")

    async def leave_name(self) -> None:
        """Nobody calls us by the service's name any more; what came before is in our hands. Without a bus it is so."""
        if self._bus is not None:
            with suppress(BusError):
                await self._bus.release_name(self._name)

    async def candidate(self) -> str:
        """The unique name of the bus daemon under migration. Raises DoorError when there is none."""
        owner = (await self.connection()).owner(self._candidate_name)
        if owner is None:
            raise DoorError(f"nobody owns {self._candidate_name}: start the bus daemon first")
        return owner

    async def assume(self, epoch: int) -> None:
        """Tells the candidate that it is the authority, and sees that it has asked for the name. Raises DoorError."""
        owner = await self.candidate()
        bus = await self.connection()
        if (process := await candidates.process(bus, owner)) is not None:
            await self._on_assumed(process)
        await candidates.tell(bus, owner, self._situation.service, "Assume", epoch)
        if bus.owner(self._name) != owner and owner not in await bus.queued_owners(self._name, timeout=PATIENCE):
            raise DoorError(f"the candidate took Assume but did not request {self._name}")
        self._assumed_by = owner

    @property
    def is_there(self) -> bool:
        """Whether the service has its connection to the bus."""
        return self._bus is not None

    async def yield_(self, epoch: int) -> bool:
        """Tells the bus daemon that it is the authority no more; when this returns it has finished what it had.

        False when there is nobody on the bus to tell. Raises DoorError.
        """
        bus = await self.connection()
        owner = bus.owner(self._candidate_name)
        self._assumed_by = None
        if owner is not None:
            await candidates.tell(bus, owner, self._situation.service, "Yield", epoch)
        return owner is not None

    async def hand_name_over(self) -> None:
        """Releases the name to the queued candidate and sees that it owns it. Raises DoorError."""
        bus = await self.connection()
        wanted = await self.candidate()
        await bus.release_name(self._name)
        try:
            async with asyncio.timeout(PATIENCE):
                while bus.owner(self._name) != wanted:
                    self._owner_changed.clear()
                    await self._owner_changed.wait()
        except TimeoutError:
            raise DoorError(f"{self._name} did not pass to the candidate {wanted}") from None

    async def check_candidate(self, translation: dbus_translation.Translation) -> tuple[str, ...]:
        """The methods that the candidate does not offer. Raises DoorError when it is not fit to be the authority."""
        owner = await self.candidate()
        bus = await self.connection()
        try:
            if owner == bus.owner(self._name) or owner in await bus.queued_owners(self._name, timeout=PATIENCE):
                text = f"the candidate {owner} has asked for {self._name} before Assume: it may execute writes already"
                raise DoorError(f"{text}; end it and mend it")
            await candidates.check_epoch(bus, owner, self._situation.service, self._situation.standing.epoch)
            return await candidates.missing(bus, owner, translation)
        except BusError as error:
            raise DoorError(f"the candidate {owner} does not answer as a candidate does: {error}") from None

    def owner_of_candidate(self) -> str | None:
        """The candidate's unique name as far as is known now."""
        return None if self._bus is None else self._bus.owner(self._candidate_name)
