"""Builds the daemon from its settings, keeps it until SIGTERM, and closes it orderly."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple

from bridges import evidence, journal, ledger, rivals
from bridges.activation import Activation
from bridges.capture.recorder import Recorder
from bridges.capture.writing import Limits
from bridges.control import Control
from bridges.control_doors import BUS_NAME, ControlObject, ControlSocket
from bridges.cutover import MEANINGS
from bridges.durable import Durable, DurableError
from bridges.endpoints import Endpoints, Shared
from bridges.settings import Settings
from bridges.situation import DoorError
from bridges.state import Standing, State, StateError
from dbus_side.bus import Bus
from dbus_side.errors import BusError
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreLost
from xmlrpc_gateway import sockets
from xmlrpc_gateway.errors import AddressTaken

LOG: Final = logging.getLogger("bridges.daemon")

RIVAL_SECONDS: Final = 1.0
RECORDS: Final = "records.sqlite"
RECORDS_VERSION: Final = 1


class StartError(Exception):
    """The daemon cannot start; the text says what is missing and what to do."""


class _Start(NamedTuple):
    """Where a service stands at a start, and whether a crash had cut a move of it off."""

    standing: Standing
    was_cut_off: bool


async def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError, StateError."""
    activation = Activation.from_environment(os.environ)
    try:
        state = State(settings.state_directory)
    except StateError as error:
        other = rivals.holder(settings.state_directory / "state.sqlite")
        if other is None:
            raise
        raise StartError(f"{error}; {rivals.advice(other)}") from None
    try:
        if (other := rivals.listener(settings.control_socket)) is not None:
            where = f"control socket {settings.control_socket}"
            raise StartError(f"{where}: another bridge answers there; {rivals.advice(other)}")
        bus = await _first_bus(settings)
        try:
            _refuse_taken_sockets(settings, activation)
            durable = _records(settings)
            try:
                await _run(settings, state, durable, activation, bus)
            finally:
                durable.close()
        finally:
            if bus is not None:
                await bus.close()
    finally:
        state.close()


def _records(settings: Settings) -> Durable:
    """What is written while calls are carried. Raises StartError."""
    try:
        return Durable(
            settings.state_directory / RECORDS, f"{journal.SCHEMA}{ledger.SCHEMA}{evidence.SCHEMA}", RECORDS_VERSION
        )
    except DurableError as error:
        raise StartError(str(error)) from None


def _refuse_taken_sockets(settings: Settings, activation: Activation) -> None:
    """Raises StartError when another bridge serves a path of ours, whatever bus and state it has."""
    for service in settings.services.values():
        for door in filter(None, (service.http, service.framed)):
            try:
                if not activation.holds(door.socket):
                    sockets.refuse_another_bridge(door.socket)
            except AddressTaken as error:
                raise StartError(str(error)) from None


async def _first_bus(settings: Settings) -> Bus | None:
    """A connection with our name on it; None while there is no bus. Raises StartError when another bridge is there."""
    try:
        bus = await Bus.connect(settings.bus_address)
    except (BusError, OSError) as error:
        LOG.warning("%s", error)
        return None
    try:
        other = await rivals.claim(bus, BUS_NAME)
    except (BusError, OSError) as error:
        LOG.warning("%s", error)
        other = None
    if other is not None:
        await bus.close()
        raise StartError(f"bus {settings.bus_address}: {other}")
    return bus


async def _run(settings: Settings, state: State, durable: Durable, activation: Activation, bus: Bus | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = Store(settings.xenstore_socket) if any(s.xenstore for s in settings.services.values()) else None
    calls, handles = journal.Journal(durable, _now), ledger.Ledger(durable, _now)
    for name, count in calls.recover().items():
        LOG.warning("%s: %d calls of the bridge before have no result: in doubt", name, count)
    capture = settings.capture
    limits = Limits(total_bytes=capture.total_bytes, age_seconds=capture.age_seconds)
    recorder = Recorder(capture.directory, limits, body_limit=capture.body_bytes)
    shared = Shared(settings.bus_address, store, state, durable, calls, handles, activation, recorder)
    services = {name: Endpoints(service, shared) for name, service in settings.services.items()}
    starts: dict[str, _Start] = {}
    for name in services:
        standing, story = state.recover(name)
        starts[name] = _Start(standing, was_cut_off=story is not None)
        if story is not None:
            LOG.warning("%s: %s", name, story)
    control = Control(services, state, calls, handles, recorder)
    control_object = ControlObject(control)
    control_socket = ControlSocket(settings.control_socket, control)
    try:
        await control_socket.open()
    except OSError as error:
        raise StartError(f"control socket {settings.control_socket}: {error}") from None
    try:
        async with _recording(recorder):
            await _serve(settings, services, starts, store, control_object, stop, activation, bus)
    finally:
        await control_socket.close()
        if store is not None:
            await store.close()


@asynccontextmanager
async def _recording(recorder: Recorder) -> AsyncIterator[None]:
    """What is captured is written, to the last answer of the last door."""
    task = asyncio.create_task(recorder.run(), name="capture")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


async def _serve(
    settings: Settings,
    services: dict[str, Endpoints],
    starts: dict[str, _Start],
    store: Store | None,
    control_object: ControlObject,
    stop: asyncio.Event,
    activation: Activation,
    bus: Bus | None,
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_on_bus(settings, control_object, services, bus), name="control bus")]
            if store is not None:
                running.append(tasks.create_task(_reach(store), name="xenstore"))
            started = []
            for name, endpoints in services.items():
                event = asyncio.Event()
                started.append(event)
                task = tasks.create_task(_keep(endpoints, starts[name], event), name=f"service {name}")
                running.append(task)
            for event in started:
                await event.wait()
            activation.close_rest()
            LOG.info(
                "ready: %s",
                ", ".join(f"{n} {s.standing.stage} (epoch {s.standing.epoch})" for n, s in starts.items())
                or "no services",
            )
            activation.notify(f"READY=1\nSTATUS={len(services)} services")
            await stop.wait()
            LOG.info("stopping")
            activation.notify("STOPPING=1")
            for task in running:
                task.cancel()
    except* (DoorError, StartError) as group:
        raise StartError("; ".join(str(error) for error in group.exceptions)) from None


async def _keep(endpoints: Endpoints, start: _Start, started: asyncio.Event) -> None:
    stage = start.standing.stage
    LOG.info("%s: %s, authority %s", endpoints.name, stage, MEANINGS[stage].authority)
    await endpoints.run(start.standing, started, was_cut_off=start.was_cut_off)


async def _reach(store: Store) -> None:
    """Connects to xenstored, however long it is missing; once connected, the Store heals by itself."""
    while True:
        try:
            await store.connect()
        except StoreLost as error:
            LOG.warning("%s", error)
        else:
            return


async def _on_bus(
    settings: Settings, control_object: ControlObject, services: dict[str, Endpoints], bus: Bus | None
) -> None:
    """Keeps the bridge's own object on the bus; the control socket works without it. `bus`: the first connection."""
    pause = 0.1
    while True:
        try:
            bus = bus or await Bus.connect(settings.bus_address)
            try:
                await control_object.serve(bus)
                await _own_name(bus, services)
                pause = 0.1
                await bus.wait_lost()
            finally:
                await bus.close()
                bus = None
        except (BusError, OSError) as error:
            LOG.warning("%s; next try in %.1f s", error, pause)
        await asyncio.sleep(pause)
        pause = min(5.0, pause * 2)


async def _own_name(bus: Bus, services: dict[str, Endpoints]) -> None:
    """Returns when the bridge's name is ours; while another has it every service says so."""
    while (other := await rivals.claim(bus, BUS_NAME)) is not None:
        for endpoints in services.values():
            endpoints.situation.alarm("ANOTHER_BRIDGE", other)
        await asyncio.sleep(RIVAL_SECONDS)
    for endpoints in services.values():
        endpoints.situation.calm("ANOTHER_BRIDGE")
