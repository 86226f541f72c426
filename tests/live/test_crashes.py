"""The bridge is killed: in relay, in live, in the middle of a move; and what `release` and the next start do."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridges.cutover import STEPS, Stage, Step
from bridges.state import Order, Standing, State

if TYPE_CHECKING:
    from tests.fixtures_host import Host

ORDER = Order("test", "cut off")


def is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


async def freeze(host: Host, name: str) -> None:
    """Freezes a legacy daemon, as a bridge that was killed in a take-over leaves it."""
    pid = host.legacy_pid(name)
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        while not is_frozen(pid):  # noqa: ASYNC110 - the kernel tells nobody but its parent
            await asyncio.sleep(0.01)


def cut_off(host: Host, origin: Stage, target: Stage, step: Step) -> None:
    """The state of a bridge that was killed right after a step of a move of squeezed was made durable."""
    state = State(host.path("state"))
    try:
        standing = state.standing("squeezed")
        assert standing.stage is origin
        flip = state.begin("squeezed", standing, target, ORDER)
        if step is Step.COMMITTED:
            state.commit(flip, "squeezed", Standing(target, standing.epoch + 1))
        else:
            state.reached(flip, step)
    finally:
        state.close()


async def test_killed_in_relay_and_released(host: Host, relayed: Any) -> None:
    """`release` gives the sockets back and legacy callers reach their daemon; a new bridge takes them again."""
    await host.end("bridge", signal.SIGKILL)
    code, output, _ = await host.cli("release")
    assert code == 0
    assert f"{host.path('memory')}: given back" in output.replace("\n", "")
    assert (await relayed.rpc("memory", "login", "d", "released"))["Status"] == "Success"
    assert not host.path("memory.legacy").exists()
    code, output, _ = await host.cli("release")
    assert code == 0
    assert "nothing to do" in output
    await host.start_bridge()
    await host.until(host.path("memory.legacy").exists)
    await relayed.every_door()
    code, _, errors = await host.cli("release")
    assert code == 1
    assert "a bridge answers" in errors


async def test_killed_in_relay_and_restarted(host: Host, relayed: Any) -> None:
    """Without `release` a new bridge takes over from the sockets that the old one left."""
    await host.end("bridge", signal.SIGKILL)
    await host.start_bridge()
    await relayed.every_door()
    assert await host.alarms() == {}


@pytest.mark.parametrize("stale", ["refuse", "execute"])
async def test_killed_in_live(host: Host, moved: Any, stale: str) -> None:
    """Requests that a new bridge finds are refused or executed by `stale_at_start`; then every door works."""
    host.write_settings(stale=stale)
    await host.end("bridge", signal.SIGKILL)
    await moved.request("reserve-memory", "found", {"session_id": b"found", "kib": b"1"})
    await host.start_bridge()
    response = await moved.response("reserve-memory", "found")
    if stale == "refuse":
        assert response["code"] == b"2"
        assert response["description"].startswith(b"Unavailable: the request was found at a cold start")
        assert "1 requests were there before us: refused" in host.log("bridge")
    else:
        assert list(response) == ["reservation_id"]
    assert host.executions()["reserve_memory", "found"] == (stale == "execute")
    await moved.every_door()
    assert await host.alarms() == {}


async def test_killed_with_calls_in_flight_in_live(host: Host, relayed: Any) -> None:
    """A call that the bus daemon had is not sent again by the next bridge."""
    await host.start_bus_squeezed("--slow-ms", "500")
    await host.stage("squeezed", "live")
    await relayed.request("reserve-memory", "flying", {"session_id": b"flying", "kib": b"1"})
    await host.until(lambda: host.executions()["reserve_memory", "flying"] == 1)
    await host.end("bridge", signal.SIGKILL)
    await host.start_bridge()
    response = await relayed.response("reserve-memory", "flying")
    assert response["code"] == b"2"
    await relayed.every_door()
    assert host.executions()["reserve_memory", "flying"] == 1


@pytest.mark.parametrize("step", STEPS)
async def test_cut_off_on_the_way_to_live(host: Host, relayed: Any, step: Step) -> None:
    """relay to live: the old stage with the legacy daemon running, or the new one; every door works in either."""
    await host.end("bridge", signal.SIGKILL)
    cut_off(host, Stage.RELAY, Stage.LIVE, step)
    fenced = STEPS.index(step) >= STEPS.index(Step.FENCED)
    if fenced:
        await host.end_legacy("squeezed")
    elif step is Step.DRAINED:  # in the middle of the freeze-and-check, our pid in the tree
        await relayed.connect_store()
        await relayed.store.write("/squeezed/pid", b"4194304")
        await freeze(host, "squeezed")
    await host.start_bus_squeezed()
    await host.start_bridge()
    status = await host.control(verb="status")
    assert status["services"]["squeezed"]["stage"] == ("live" if fenced else "relay")  # type: ignore[index]
    await host.until_alarms()
    await relayed.every_door()
    assert host.sides()["bus" if fenced else "legacy"] >= 3
    assert host.sides()["legacy" if fenced else "bus"] == (1 if fenced else 0)  # xenopsd's


async def test_the_legacy_daemon_was_killed_before_the_fence_was_durable(host: Host, relayed: Any) -> None:
    """relay to live, cut off between the kill and its record: not begun, so the legacy daemon is started again."""
    await host.end("bridge", signal.SIGKILL)
    cut_off(host, Stage.RELAY, Stage.LIVE, Step.DRAINED)
    await host.end_legacy("squeezed")
    await host.start_bridge()
    assert "had been ended by the move that was cut off: starting it" in host.log("bridge")
    await host.until_alarms()
    await relayed.every_door()
    assert host.sides() == {"legacy": 4}


@pytest.mark.parametrize("step", STEPS)
async def test_cut_off_on_the_way_back(host: Host, moved: Any, step: Step) -> None:
    """live to relay: the bus daemon goes on, or the legacy daemon is started; every door works in either."""
    await host.end("bridge", signal.SIGKILL)
    fenced = STEPS.index(step) >= STEPS.index(Step.FENCED)
    cut_off(host, Stage.LIVE, Stage.RELAY, step)
    if fenced:  # it has yielded: a new candidate is not in charge either
        await host.end("bus")
        await host.start_bus_squeezed()
    if STEPS.index(step) > STEPS.index(Step.FENCED):
        await host.start_legacy("squeezed")
    await host.start_bridge()
    status = await host.control(verb="status")
    assert status["services"]["squeezed"]["stage"] == ("relay" if fenced else "live")  # type: ignore[index]
    await host.until_alarms()
    await moved.every_door()
    assert host.sides()["legacy" if fenced else "bus"] >= 3


@pytest.mark.parametrize("step", [None, Step.COMMITTED])
async def test_cut_off_while_the_sockets_change_hands(host: Host, relayed: Any, step: Step | None) -> None:
    """off to relay before its commit, relay to off after it: off, and the socket is the legacy daemon's again."""
    await host.end("bridge", signal.SIGKILL)
    if step is None:
        state = State(host.path("state"))
        state.commit(
            state.begin("squeezed", state.standing("squeezed"), Stage.OFF, ORDER), "squeezed", Standing(Stage.OFF, 2)
        )
        state.begin("squeezed", Standing(Stage.OFF, 2), Stage.RELAY, ORDER)
        state.close()
    else:
        cut_off(host, Stage.RELAY, Stage.OFF, step)
    await host.start_bridge()
    assert not host.path("memory.legacy").exists()
    assert (await relayed.rpc("memory", "login", "d", "alone"))["Status"] == "Success"
    await host.stage("squeezed", "relay")
    await relayed.every_door()


async def test_a_frozen_daemon_is_thawed_by_release(host: Host, relayed: Any) -> None:
    """It runs, its sockets are its own, and its pid stands in the tree instead of the dead bridge's."""
    await host.end("bridge", signal.SIGKILL)
    await relayed.connect_store()
    await relayed.store.write("/squeezed/pid", b"4194304")
    await freeze(host, "squeezed")
    code, output, errors = await host.cli("release")
    assert code == 0, errors
    pid = host.legacy_pid("squeezed")
    assert f"runs (pid {pid})" in output
    assert f"/squeezed/pid: is {pid} again" in output
    assert (await relayed.rpc("memory", "login", "d", "thawed"))["Status"] == "Success"
    assert int(await relayed.store.read("/squeezed/pid")) == pid


async def test_a_frozen_daemon_is_thawed_by_the_next_start(host: Host, relayed: Any) -> None:
    """Whatever froze it."""
    await host.end("bridge", signal.SIGKILL)
    await freeze(host, "squeezed")
    await freeze(host, "xenopsd")
    await host.start_bridge()
    await relayed.every_door()


async def test_a_move_is_killed_for_real(host: Host, relayed: Any) -> None:
    """SIGKILL at moments of a real move to live: old or new stage each time, nothing doubled, the next move works."""
    await host.start_bus_squeezed()
    for delay in (0.0, 0.002, 0.01, 0.03):
        move = asyncio.create_task(host.ask_stage("squeezed", "live"))
        await asyncio.sleep(delay)  # the moment to hit, no condition
        await host.end("bridge", signal.SIGKILL)
        await asyncio.wait([move])
        move.exception()
        await host.start_bridge()
        await host.until_alarms()
        await relayed.every_door()
        status = await host.control(verb="status")
        if status["services"]["squeezed"]["stage"] == "live":  # type: ignore[index]
            await host.stage("squeezed", "relay")
            await relayed.every_door()
    await host.stage("squeezed", "live")
    await relayed.every_door()
    assert set(host.executions().values()) == {1}
