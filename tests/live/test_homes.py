"""Whose handles are known while the process behind a service is replaced, or seems to be."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusError
from tests.live.test_task_handles import PATIENCE, TASKS, VM, Hypervisor, bus, host, native_of

__all__ = ["bus", "host"]  # fixtures

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def asking(bus: Bus, task: str) -> AsyncIterator[list[str]]:
    """Callers that ask for a task all the while: what they were told, `dbg` of the task or the error's name."""
    told: list[str] = []
    stop = asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            try:
                (record,) = (await bus.call(*TASKS, "Stat", "ss", ("d", task), timeout=PATIENCE)).body
                told.append(record["dbg"].value)
            except BusError as error:
                told.append(str(error).partition(":")[0])

    async with asyncio.TaskGroup() as callers:
        for number in range(6):
            callers.create_task(keep_asking(), name=f"caller {number}")
        try:
            yield told
        finally:
            stop.set()


async def until_refused(told: list[str]) -> None:
    """Waits until the callers are told that there is no such task."""
    async with asyncio.timeout(PATIENCE):
        while not told or not told[-1].endswith("Does_not_exist"):  # noqa: ASYNC110 - other tasks' work
            await asyncio.sleep(0.01)


async def replace(host: Hypervisor) -> None:
    """A new process, that has a task of the same number."""
    await host.end_legacy("xenopsd")
    await host.start_legacy("xenopsd")
    await host.ask("VM.add", vm={**VM, "id": "other"})
    await host.ask("VM.start", id="other", paused=False, debug_info="another's")


async def test_no_call_meets_a_new_process_with_an_old_task(host: Hypervisor, bus: Bus) -> None:
    """Not even while the bridge takes the path again."""
    await host.start_relay()
    task = await host.begin("one")
    async with asking(bus, task) as told:
        await replace(host)
        await until_refused(told)
    assert "another's" not in told


async def test_nor_while_the_bridge_starts(host: Hypervisor, bus: Bus) -> None:
    """The process was replaced while no bridge was there."""
    await host.start_relay()
    task = await host.begin("one")
    await host.end("bridge", signal.SIGKILL)
    await replace(host)
    async with asking(bus, task) as told:
        await host.start_bridge()
        await until_refused(told)
    assert "another's" not in told


async def test_a_legacy_daemon_beside_the_one_on_the_bus(host: Hypervisor) -> None:
    """Whoever binds the path while the bus rules is an alarm, and takes nobody's tasks away."""
    await host.start_relay()
    await host.go_live()
    task = await host.begin("one")
    await host.start_legacy("xenopsd")
    await host.until_alarms("SPLIT_OWNER", service="xenopsd")
    assert (await host.ask("Task.stat", id=task))["id"] == task
    assert native_of(task) == (2, "1")
    assert (await host.ask("Task.stat", id="1"))[0] == "Does_not_exist"
