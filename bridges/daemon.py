"""Builds the daemon from its settings, keeps it until SIGTERM, and closes it orderly."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import Final, NamedTuple

from bridges.control import BUS_NAME, Control, ControlObject, ControlSocket
from bridges.cutover import MEANINGS
from bridges.endpoints import Endpoints
from bridges.settings import Settings
from bridges.situation import DoorError
from bridges.state import Standing, State
from dbus_side.bus import Bus
from dbus_side.errors import BusError
from dbus_side.messages import NameOutcome
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreLost

LOG: Final = logging.getLogger("bridges.daemon")


class StartError(Exception):
    """The daemon cannot start; the text says what is missing and what to do."""


class _Start(NamedTuple):
    """Where a service stands at a start, and whether a crash had cut a move of it off."""

    standing: Standing
    was_cut_off: bool


async def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartError, StateError."""
    state = State(settings.state_directory)
    try:
        await _run(settings, state)
    finally:
        state.close()


async def _run(settings: Settings, state: State) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = Store(settings.xenstore_socket) if any(s.xenstore for s in settings.services.values()) else None
    services = {name: Endpoints(service, settings.bus_address, store) for name, service in settings.services.items()}
    starts: dict[str, _Start] = {}
    for name in services:
        standing, story = state.recover(name)
        starts[name] = _Start(standing, was_cut_off=story is not None)
        if story is not None:
            LOG.warning("%s: %s", name, story)
    control = Control(services, state)
    control_object = ControlObject(control)
    control_socket = ControlSocket(settings.control_socket, control)
    try:
        await control_socket.open()
    except OSError as error:
        raise StartError(f"control socket {settings.control_socket}: {error}") from None
    try:
        await _serve(settings, services, starts, store, control_object, stop)
    finally:
        await control_socket.close()
        if store is not None:
            await store.close()
        notify("STOPPING=1")


async def _serve(
    settings: Settings,
    services: dict[str, Endpoints],
    starts: dict[str, _Start],
    store: Store | None,
    control_object: ControlObject,
    stop: asyncio.Event,
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_on_bus(settings, control_object), name="control bus")]
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
            LOG.info(
                "ready: %s",
                ", ".join(f"{n} {s.standing.stage} (epoch {s.standing.epoch})" for n, s in starts.items())
                or "no services",
            )
            notify(f"READY=1\nSTATUS={len(services)} services")
            await stop.wait()
            LOG.info("stopping")
            notify("STOPPING=1")
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


async def _on_bus(settings: Settings, control_object: ControlObject) -> None:
    """Keeps the bridge's own object on the bus; the control socket works without it."""
    pause = 0.1
    while True:
        try:
            bus = await Bus.connect(settings.bus_address)
            try:
                await control_object.serve(bus)
                outcome = await bus.request_name(BUS_NAME)
                if outcome not in (NameOutcome.OWNER, NameOutcome.ALREADY_OWNER):
                    LOG.error("%s is owned by another bridge", BUS_NAME)
                pause = 0.1
                await bus.wait_lost()
            finally:
                await bus.close()
        except (BusError, OSError) as error:
            LOG.warning("%s; next try in %.1f s", error, pause)
        await asyncio.sleep(pause)
        pause = min(5.0, pause * 2)


def notify(state: str) -> None:
    """Tells systemd (sd_notify(3)); without NOTIFY_SOCKET it does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.sendto(state.encode(), address)
        except OSError as error:
            LOG.warning("NOTIFY_SOCKET: %s", error)
