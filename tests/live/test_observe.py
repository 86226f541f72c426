"""observe: the legacy daemon keeps its doors; what passes there is seen, and nothing of ours is in the way."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from tests.live import ladder

if TYPE_CHECKING:
    from tests.fixtures_host import Host

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("wide_terminal")]
CALLS = 12
CALLER = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


async def calls(callers: Any) -> None:
    """Calls of the tree that leave nothing in the store, one of them refused."""
    for number in range(CALLS - 1):
        assert await callers.ask_store("echo", {"session_id": b"s%d" % number}) == {"session_id": b"s%d" % number}
    assert (await callers.ask_store("reserve-memory", {"session_id": b"s", "kib": b"-1"}))["code"] == b"1003"


async def nodes(callers: Any, path: str = "/") -> set[str]:
    """Every node of the store."""
    found = set()
    for name in await callers.store.directory_or_empty(path):
        below = f"{path.rstrip('/')}/{name}"
        found |= {below, *await nodes(callers, below)}
    return found


async def observed(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = (await ladder.status(host))["observed"]
    return found


async def test_the_tree_is_watched(host: Host, callers: Any) -> None:
    """Exchanges are counted by how much of them was read; the gate wants one that was read whole."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    code, output, _ = await host.cli("stage", "squeezed", "observe", "--reason", "week 0")
    assert code == 0, output
    code, output, _ = await host.cli("stage", "squeezed", "relay", "--dry-run")
    assert code == 3
    assert "no data  observed: 0 exchanges were seen, none of them whole" in output
    await calls(callers)
    async with asyncio.timeout(30):
        while (seen := (await observed(host))["exchanges"])["seen"] < CALLS or seen["open"]:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    assert seen["seen"] == CALLS == seen["complete"] + sum(seen["incomplete"].values()) + seen["lost"]
    assert seen["complete"] > 0
    methods = (await observed(host))["methods"]
    assert methods["echo"]["seen"] == CALLS - 1
    assert methods["reserve_memory"]["seen"] == 1
    code, output, _ = await host.cli("status")
    assert f"exchanges ({CALLS} seen, {seen['complete']} complete" in output
    assert f"of echo {CALLS - 1}, reserve_memory 1" in output
    code, output, _ = await host.cli("stage", "squeezed", "relay", "--dry-run")
    assert code == 0, output
    assert f"pass  observed: {seen['complete']} of {CALLS} exchanges were seen whole" in output
    code, output, _ = await host.cli("stage", "squeezed", "relay", "--reason", "week 1")
    assert code == 0, output


async def test_of_a_socket_who_calls_is_seen(host: Host, callers: Any) -> None:
    """A connection with its process and command; of what it says nothing."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await host.stage("squeezed", "observe")
    for name in ("memory", "memory.json"):
        caller = await asyncio.create_subprocess_exec("python3", "-c", CALLER, str(host.path(name)))
        try:
            async with asyncio.timeout(30):
                while not (socket := (await observed(host))["sockets"][str(host.path(name))])["open"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert socket["callers"] == {f"python3 ({caller.pid})": 1}
            assert socket["payloads"] == 0
        finally:
            caller.kill()
            await caller.wait()
        async with asyncio.timeout(30):
            while (socket := (await observed(host))["sockets"][str(host.path(name))])["open"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (socket["connections"], socket["callers"]) == (1, {f"python3 ({caller.pid})": 1})
    _, output, _ = await host.cli("status")
    assert f"python3 ({caller.pid})" in output
    assert (await observed(host))["exchanges"]["seen"] == 0


async def test_nothing_of_ours_is_there(host: Host, callers: Any) -> None:
    """No node, no file at a door, no name on the bus; killed in the middle of calls, the bridge is missed by nobody."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await calls(callers)
    before = await nodes(callers), {path.name for path in host.directory.iterdir()}
    await host.start_bridge()
    await host.stage("squeezed", "observe")
    await calls(callers)
    assert await nodes(callers) == before[0]
    ours = {"control", "state", "bridge.log"}
    assert {path.name for path in host.directory.iterdir()} - before[1] == ours
    assert int(await callers.store.read("/squeezed/pid")) == host.legacy_pid("squeezed")
    bus = await Bus.connect(host.bus.address)
    try:
        await bus.track_owner(ladder.MEMORY[0], lambda _owner: None)
        assert bus.owner(ladder.MEMORY[0]) is None
    finally:
        await bus.close()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(calls(callers))
        await host.end("bridge", signal.SIGKILL)
    await calls(callers)
    assert (await callers.rpc("memory", "login", "d", "http"))["Status"] == "Success"
    assert (await ladder.framed(callers, "login", "d", "framed"))["error"] is None
    assert await nodes(callers) == before[0]
