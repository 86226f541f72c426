"""`xcp-bridge kill`: from every stage, and with every part missing that could be asked to give way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from typing import Any

import pytest

from bridges.cutover import Stage
from bridges.processes import is_alive
from dbus_side.bus import Bus
from tests.live.conftest import Callers
from tests.live.killing import (
    ANSWERED,
    CUT,
    IN_DOUBT,
    REFUSED,
    OneService,
    Work,
    check_doors,
    check_other_side,
)

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("one_line")]

LEGACY_RULES = "squeezed is relay: the legacy daemon is the authority"


async def kill(host: OneService, *more: str) -> tuple[int, str, str]:
    """The command: exit status, output, errors."""
    return await host.cli("kill", "squeezed", "--reason", "test", *more)


async def killed(host: OneService, epoch: int, origin: str = "live", *more: str) -> None:
    """The command does it, and says so."""
    code, output, errors = await kill(host, *more)
    assert (code, errors) == (0, ""), (errors, host.log("bridge"))
    assert f"squeezed: {origin} -> relay, epoch {epoch}, calls held for " in output
    assert LEGACY_RULES in output
    standing = await host.standing()
    assert (standing["stage"], standing["authority"], standing["epoch"]) == ("relay", "legacy", epoch)


async def last_audit(host: OneService) -> tuple[str, str, str]:
    """Verb, reason and outcome of the newest line."""
    audit: Any = (await host.control(verb="audit", service="squeezed"))["entries"]
    return audit[-1]["verb"], audit[-1]["reason"], audit[-1]["outcome"]


async def stop(host: OneService) -> int:
    """The bus daemon is frozen; its pid."""
    pid = host.pid("bus")
    os.kill(pid, signal.SIGSTOP)
    return pid


async def ended_by_us(host: OneService) -> None:
    """The bus daemon's process was ended with SIGKILL, and a new one may come."""
    await host.until(lambda: not host.is_alive("bus"))
    assert await host.end("bus") == -signal.SIGKILL
    await host.start_bus_squeezed()


async def all_doors(host: OneService, callers: Callers, bus: Bus) -> None:
    """The legacy daemon executes whatever comes at any door, and the bus daemon nothing."""
    await host.until_alarms()
    await check_doors(host, Work(callers, bus), Stage.RELAY)
    await check_other_side(host, bus, Stage.RELAY)


@pytest.mark.parametrize("stage", [Stage.OFF, Stage.OBSERVE, Stage.RELAY])
async def test_nothing_to_do(one: tuple[OneService, Callers, Bus], stage: Stage) -> None:
    """Legacy is the authority already: it is said, and recorded, and nothing is moved."""
    host, _, _ = one
    if stage is not Stage.OFF:
        await host.stage("squeezed", stage)
    before = await host.standing()
    code, output, errors = await kill(host)
    assert (code, errors) == (0, "")
    assert output.strip() == f"squeezed is {stage}: the legacy daemon is the authority already"
    assert await last_audit(host) == ("kill", "test", "nothing to do")
    after = await host.standing()
    assert (after["stage"], after["epoch"]) == (before["stage"], before["epoch"])


@pytest.mark.parametrize(("stage", "epoch"), [(Stage.SHADOW, 3), (Stage.LIVE, 3), (Stage.COMPLETE, 4)])
async def test_from_every_stage_beyond_relay(one: tuple[OneService, Callers, Bus], stage: Stage, epoch: int) -> None:
    """It ends in relay, whatever the stage, with callers at work."""
    host, callers, bus = one
    await host.stage("squeezed", "relay")
    await host.bring_to(stage)
    work = Work(callers, bus)
    async with asyncio.TaskGroup() as tasks:
        for door in work.doors:
            tasks.create_task(work.go_on(door))
        await work.all_called_again()
        await killed(host, epoch, stage)
        await work.all_called_again()
        work.stop()
    assert await last_audit(host) == ("kill", "test", "done")
    executed = host.executions()
    for call in work.calls:
        assert call.outcome in (ANSWERED, REFUSED), call
        assert executed["reserve_memory", call.token] == (call.outcome == ANSWERED), call
    await all_doors(host, callers, bus)


@pytest.mark.parametrize("is_frozen", [True, False])
async def test_without_the_bus(one: tuple[OneService, Callers, Bus], is_frozen: bool) -> None:
    """Nobody can be told to yield: the process is ended, or has ended by itself; legacy callers are served at once."""
    host, callers, _ = one
    await host.bring_to(Stage.LIVE)
    if is_frozen:  # it would end by itself with its bus
        await stop(host)
    host.bus.kill()
    await host.until_alarms("BUS_LOST")
    if not is_frozen:
        await host.until(lambda: not host.is_alive("bus"))
    await killed(host, 3)
    work = Work(callers, one[2])
    for door in ("http", "framed", "tree"):
        assert (await work.once(door)).outcome == ANSWERED
    assert set(await host.alarms()) == {"BUS_LOST"}
    host.bus.start()
    if is_frozen:
        await ended_by_us(host)
    else:
        assert await host.end("bus") == 1
        await host.start_bus_squeezed()
    bus = await Bus.connect(host.bus.address)
    try:
        await all_doors(host, callers, bus)
    finally:
        await bus.close()


async def test_a_candidate_that_takes_no_yield(one: tuple[OneService, Callers, Bus]) -> None:
    """It is frozen with calls in its hands: they are in doubt, its process is ended, legacy executes none of them."""
    host, callers, bus = one
    await host.bring_to(Stage.LIVE)
    await host.end("bus")
    await host.start_bus_squeezed("--slow-ms", "60000")
    await host.until_alarms()
    work = Work(callers, bus)
    flying = [asyncio.create_task(work.once(door)) for door in work.doors]
    await host.until(lambda: any("reserve_memory" in key for key in host.executions()))
    await callers.until_exists("/squeezed/rpc/request/reserve-memory")
    async with asyncio.timeout(30):
        while (await host.standing())["calls"]["in_flight"] < 3:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.01)
    await stop(host)
    move = asyncio.create_task(killed(host, 3))
    async with asyncio.timeout(30):
        while not (await host.standing())["calls"]["held"]:  # of those who come now the last one waits at the gate
            flying.append(asyncio.create_task(work.once("http")))
            await asyncio.sleep(0.2)
    await move
    *lost, held = [await call for call in flying]
    assert {(call.door, call.outcome) for call in lost} == {
        ("http", IN_DOUBT), ("framed", IN_DOUBT), ("tree", IN_DOUBT), ("bus", CUT),
    }  # fmt: skip
    assert held.outcome == ANSWERED
    assert "ending the bus daemon's process" in host.log("bridge")
    await ended_by_us(host)
    await all_doors(host, callers, bus)
    executed = {token: count for (_, token), count in host.executions().items()}
    assert all(executed.get(call.token, 0) <= 1 for call in lost)
    assert (await host.standing())["in_doubt_open"] == len(lost) - 1  # those on the bus are the bus daemon's own


async def test_a_candidate_that_has_gone(one: tuple[OneService, Callers, Bus]) -> None:
    """Its process has ended, which is proved by what was remembered of it."""
    host, callers, bus = one
    await host.bring_to(Stage.LIVE)
    await host.end("bus", signal.SIGKILL)
    await host.until_alarms("NO_AUTHORITY")
    await killed(host, 3)
    await host.start_bus_squeezed()
    await all_doors(host, callers, bus)


async def test_a_process_that_nobody_knows(one: tuple[OneService, Callers, Bus]) -> None:
    """Refused with what to do; and with --accept-in-doubt it is done."""
    host, callers, _ = one
    await host.bring_to(Stage.LIVE)
    pid = await stop(host)
    host.bus.kill()
    await host.end("bridge")
    database = sqlite3.connect(host.path("state") / "state.sqlite", isolation_level=None)
    database.execute("UPDATE service SET candidate = NULL")
    database.close()
    await host.start_bridge()
    code, output, errors = await kill(host)
    assert (code, output) == (1, "")
    assert "squeezed stays live: nobody knows the bus daemon's process" in errors
    assert "end it by hand, then again with --accept-in-doubt" in errors
    assert (await host.standing())["stage"] == "live"
    assert is_alive(pid)
    assert await host.end("bus", signal.SIGKILL) == -signal.SIGKILL
    await killed(host, 3, "live", "--accept-in-doubt")
    host.bus.start()
    await host.start_bus_squeezed()
    bus = await Bus.connect(host.bus.address)
    try:
        await all_doors(host, callers, bus)
    finally:
        await bus.close()


async def until_moving(host: OneService, order: asyncio.Task[Any]) -> None:
    """Waits until the move is on its way; it must not be over."""
    async with asyncio.timeout(30):
        while (await host.standing())["moving"] is None:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.01)
    assert not order.done()


@pytest.mark.parametrize(
    "origin",
    [Stage.SHADOW, Stage.RELAY],
)
async def test_while_a_flip_runs(one: tuple[OneService, Callers, Bus], origin: Stage) -> None:
    """A kill waits for the flip that is on its way, and brings the service back from where that has led."""
    host, callers, bus = one
    host.slow = ("--slow-ms", "1500")
    host.legacy = host.legacy_commands()
    await host.end_legacy("squeezed")
    await host.start_legacy("squeezed")
    await host.stage("squeezed", "relay")
    await host.bring_to(origin)
    epoch = (await host.standing())["epoch"]
    work = Work(callers, bus)
    drained = asyncio.create_task(work.once("http"))
    await host.until(lambda: host.executions().total() == 1)
    move = asyncio.create_task(host.stage("squeezed", "live"))
    await until_moving(host, move)
    answer = await host.ask_stage("squeezed", "relay")
    assert f"squeezed is being moved already: {origin} to live by uid" in str(answer["error"])
    assert "wait for it, then again" in str(answer["error"])
    try:
        await killed(host, epoch + 2)
    finally:
        await move
        assert (await drained).outcome == ANSWERED
    await all_doors(host, callers, bus)


async def test_while_a_flip_brings_it_back(one: tuple[OneService, Callers, Bus]) -> None:
    """The way back that is on its way does what the kill was for."""
    host, callers, bus = one
    await host.bring_to(Stage.LIVE)
    await host.end("bus")
    await host.start_bus_squeezed("--slow-ms", "1500")
    await host.until_alarms()
    drained = asyncio.create_task(Work(callers, bus).once("http"))
    await host.until(lambda: host.executions().total() == 1)
    move = asyncio.create_task(host.stage("squeezed", "relay"))
    await until_moving(host, move)
    code, output, errors = await kill(host)
    assert (code, errors) == (0, "")
    assert LEGACY_RULES in output
    assert await last_audit(host) == ("kill", "test", "nothing to do")
    await move
    assert (await drained).outcome == ANSWERED
    assert (await host.standing())["epoch"] == 3
    await all_doors(host, callers, bus)


async def test_while_frozen(one: tuple[OneService, Callers, Bus]) -> None:
    """An invariant was violated: no stage can be ordered, a kill can."""
    host, callers, bus = one
    await host.bring_to(Stage.LIVE)
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    try:
        await callers.store.write("/squeezed/pid", b"%d" % other.pid)
        await host.until_alarms("SPLIT_OWNER")
    finally:
        other.kill()
        await other.wait()
    code, _, errors = await host.cli("stage", "squeezed", "relay", "--reason", "test")
    assert code == 1
    assert "squeezed is frozen: SPLIT_OWNER: " in errors
    assert "xcp-bridge acknowledge squeezed, or kill" in errors
    await killed(host, 3)
    assert (await host.standing())["frozen"] is not None
    code, output, _ = await host.cli("acknowledge", "squeezed", "--reason", "looked")
    assert (code, "squeezed no longer frozen (SPLIT_OWNER" in output) == (0, True)
    await all_doors(host, callers, bus)


async def test_a_legacy_daemon_that_does_not_start(one: tuple[OneService, Callers, Bus]) -> None:
    """Legacy is the authority all the same, with an alarm until somebody has started it."""
    host, callers, bus = one
    await host.bring_to(Stage.LIVE)
    text = host.settings.read_text()
    host.settings.write_text(text.replace('examples/legacy_squeezed.py"', 'examples/nosuch.py"'))
    await host.end("bridge")
    await host.start_bridge()
    await killed(host, 3)
    await host.until_alarms("NO_AUTHORITY")
    assert "the legacy daemon did not start" in (await host.alarms())["NO_AUTHORITY"]
    assert "start it by hand" in (await host.alarms())["NO_AUTHORITY"]
    assert (await Work(callers, bus).once("http")).outcome == REFUSED
    await host.start_legacy("squeezed")
    await all_doors(host, callers, bus)
