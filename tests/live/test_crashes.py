"""The bridge is killed in relay, in live, with a write in its hands; and what `release` and the next start do.

Moves that are killed at their steps are in test_killed_at_each_step.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridges.cutover import Stage
from tests.live.killing import OneService, Work, check_doors, is_frozen, one_service, until_killed

if TYPE_CHECKING:
    from tests.fixtures_dbus import BusDaemon
    from tests.fixtures_host import Host


async def freeze(host: Host, name: str) -> None:
    """Freezes a legacy daemon, as a bridge that was killed in a take-over leaves it."""
    pid = host.legacy_pid(name)
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        while not is_frozen(pid):  # noqa: ASYNC110 - the kernel tells nobody but its parent
            await asyncio.sleep(0.01)


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
        assert "1 requests were there before us: answered" in host.log("bridge")
    else:
        assert list(response) == ["reservation_id"]
    assert host.executions()["reserve_memory", "found"] == (stale == "execute")
    await moved.every_door()
    assert await host.alarms() == {}


@pytest.mark.parametrize("stale", ["refuse", "execute"])
async def test_another_daemon_served_meanwhile(host: Host, moved: Any, stale: str) -> None:
    """A legacy daemon that somebody started while there was no bridge has ended, with a request in its hands: nobody
    knows whether it was executed, so its caller is told that, and we never execute it."""
    host.write_settings(stale=stale)
    await host.end("bridge", signal.SIGKILL)
    await host.start_legacy("squeezed")
    await moved.ask_store("login", {"service_name": b"another"})
    await freeze(host, "squeezed")
    await moved.request("reserve-memory", "held", {"session_id": b"another", "kib": b"1"})
    await host.end_legacy("squeezed")
    await host.start_bridge()
    response = await moved.response("reserve-memory", "held")
    assert response["code"] == b"2"
    assert response["description"].startswith(b"InDoubt: another daemon served the tree and ended with this request")
    assert host.executions()["reserve_memory", "held"] == 0
    await moved.every_door()
    assert await host.alarms() == {}
    # The tree is ours again: what the next start finds was seen by nobody.
    await host.end("bridge", signal.SIGKILL)
    await moved.request("reserve-memory", "found", {"session_id": b"found", "kib": b"1"})
    await host.start_bridge()
    answer = await moved.response("reserve-memory", "found")
    assert answer.get("description", b"").startswith(b"Unavailable") == (stale == "refuse")
    assert host.executions()["reserve_memory", "found"] == (stale == "execute")


async def in_live(host: OneService, stale: str) -> None:
    """squeezed is live, with that stale_at_start from the next start on."""
    host.write_settings(stale=stale)
    await host.bring_to(Stage.LIVE)


async def in_doubt(host: OneService) -> int:
    """How many calls of squeezed nobody has looked at."""
    count: int = (await host.standing())["in_doubt_open"]
    return count


@pytest.mark.parametrize("stale", ["refuse", "execute"])
async def test_an_answer_that_was_recorded(bus_daemon: BusDaemon, xenstored_stub: Path, stale: str) -> None:
    """Killed between the record of an answer and the store: the next bridge gives the caller that answer."""
    async with one_service(bus_daemon, xenstored_stub) as (host, callers, bus):
        await in_live(host, stale)
        host.break_at("after", "answered")
        await callers.request("reserve-memory", "flying", {"session_id": b"flying", "kib": b"7"})
        await until_killed(host)
        assert not await callers.exists("/squeezed/rpc/response/reserve-memory/flying")
        await host.start_bridge()
        response = await callers.response("reserve-memory", "flying")
        assert [response["reservation_id"].decode()] == await callers.store.directory("/squeezed/state/flying")
        assert host.executions()["reserve_memory", "flying"] == 1
        assert await in_doubt(host) == 0
        await host.until_alarms()
        await check_doors(host, Work(callers, bus), Stage.LIVE)


@pytest.mark.parametrize("stale", ["refuse", "execute"])
@pytest.mark.parametrize(("when", "point", "executions"), [("after", "recorded", 0), ("before", "answered", 1)])
async def test_a_write_without_a_result(
    bus_daemon: BusDaemon, xenstored_stub: Path, stale: str, when: str, point: str, executions: int
) -> None:
    """Killed before or after its execution: InDoubt, never executed again, counted until somebody has looked."""
    async with one_service(bus_daemon, xenstored_stub) as (host, callers, bus):
        await in_live(host, stale)
        host.break_at(when, point)
        await callers.request("reserve-memory", "flying", {"session_id": b"flying", "kib": b"7"})
        await until_killed(host)
        await host.start_bridge()
        response = await callers.response("reserve-memory", "flying")
        assert response["code"] == b"2"
        assert response["description"].startswith(b"InDoubt: ")
        assert "1 calls of the bridge before have no result: in doubt" in host.log("bridge")
        await host.until_alarms()
        await check_doors(host, Work(callers, bus), Stage.LIVE)
        assert await in_doubt(host) == 1
        await host.end("bridge", signal.SIGKILL)
        await host.start_bridge()
        assert await in_doubt(host) == 1

        answer = await host.ask_stage("squeezed", "complete", override=None)
        assert not answer["ok"], answer
        assert "in doubt (fail)" in str(answer["error"])
        findings = (await host.control(verb="doctor"))["findings"]
        assert any("1 calls are in doubt" in finding["text"] for finding in findings)  # type: ignore[attr-defined]
        code, output, errors = await host.cli("acknowledge", "squeezed", "--reason", "looked at it")
        assert (code, errors) == (0, "")
        assert "calls in doubt taken note of: 1" in output
        assert await in_doubt(host) == 0
        answer = await host.ask_stage("squeezed", "complete", override=None)
        assert "in doubt" not in str(answer["error"])
        audit = (await host.control(verb="audit", service="squeezed"))["entries"]
        (line,) = [line for line in audit if line["verb"] == "acknowledge"]  # type: ignore[attr-defined]
        assert (line["reason"], line["outcome"]) == ("looked at it", "was not frozen; 1 calls in doubt")
        await host.end("bridge")
        await host.start_bridge()
        assert await in_doubt(host) == 0
        assert host.executions()["reserve_memory", "flying"] == executions


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
