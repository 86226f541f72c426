"""Parts of the host that are missing at the start or end while the bridge runs, and their return."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import xmlrpc.client
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from xmlrpc_gateway.sockets import process_of

if TYPE_CHECKING:
    from tests.fixtures_host import Host

MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
XENOPS = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/Xenops", "org.xen.xcp.xenopsd.Xenops1")


async def refused(host: Host, target: tuple[str, str, str], member: str, signature: str, body: tuple[Any, ...]) -> str:
    """The error that a call on the bus gets."""
    bus = await Bus.connect(host.bus.address)
    try:
        with pytest.raises(BusRefused) as error:
            await bus.call(*target, member, signature, body, timeout=30)
    finally:
        await bus.close()
    return str(error.value)


async def until_served(callers: Any) -> None:
    """Waits until the daemon in charge has found its store again, which is its own affair."""
    async with asyncio.timeout(30):
        while (await callers.rpc("memory", "login", "d", "w"))["Status"] != "Success":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_no_bus_at_the_start(host: Host, relayed: Any) -> None:
    """The bridge starts and stays up, serves the HTTP door, says what is missing; with the bus all doors work."""
    await host.end("bridge")
    host.bus.kill()
    await host.start_bridge()
    await host.until_alarms("BUS_LOST")
    assert (await relayed.rpc("memory", "login", "d", "without-bus"))["Status"] == "Success"
    answer = await host.ask_stage("squeezed", "live")
    assert "cannot be reached" in str(answer["error"])
    host.bus.start()
    await relayed.on_bus()
    await host.until_alarms()
    await relayed.every_door()


async def test_the_bus_dies_in_relay(host: Host, relayed: Any) -> None:
    """HTTP callers notice nothing; the names are owned again on the new bus."""
    await relayed.every_door()
    host.bus.kill()
    await host.until_alarms("BUS_LOST")
    assert (await relayed.rpc("memory", "login", "d", "without-bus"))["Status"] == "Success"
    host.bus.start()
    await relayed.on_bus()
    await host.until_alarms()
    await relayed.every_door()
    assert "Traceback" not in host.log("bridge")


async def test_the_bus_dies_in_live(host: Host, relayed: Any) -> None:
    """In flight: InDoubt, once executed. After it: Unavailable. With bus and daemon back: everything works."""
    await host.start_bus_squeezed("--slow-ms", "2000")
    await host.stage("squeezed", "live")
    http = asyncio.create_task(relayed.rpc("memory", "reserve_memory", "d", "flying", "1"))
    await relayed.request("reserve-memory", "flying", {"session_id": b"flying-tree", "kib": b"1"})
    await host.until(lambda: host.executions()["reserve_memory", "flying"] == 1)
    host.bus.kill()
    answer = await http
    assert answer["Status"] == "Failure"
    assert "InDoubt" in answer["ErrorDescription"][1]
    response = await relayed.response("reserve-memory", "flying")
    assert response["code"] == b"2"
    assert response["description"].startswith((b"InDoubt: reserve_memory may have been", b"Unavailable"))
    answer = await relayed.rpc("memory", "reserve_memory", "d", "nobody", "1")
    assert "Unavailable" in answer["ErrorDescription"][1]
    response = await relayed.ask_store("reserve-memory", {"session_id": b"nobody", "kib": b"1"})
    assert response["description"].startswith(b"Unavailable")
    await host.end("bus", signal.SIGKILL)
    host.bus.start()
    await host.start_bus_squeezed()
    await relayed.on_bus()
    await host.until_alarms()
    await relayed.every_door()
    executed = host.executions()
    assert executed["reserve_memory", "flying"] == 1
    assert executed["reserve_memory", "flying-tree"] <= 1
    assert executed["reserve_memory", "nobody"] == 0


async def test_the_bus_daemon_dies_in_live(host: Host, relayed: Any) -> None:
    """In flight: InDoubt. After it: Unavailable, and nothing falls back. A new one gets Assume, and calls work."""
    await host.start_bus_squeezed("--slow-ms", "2000")
    await host.stage("squeezed", "live")
    http = asyncio.create_task(relayed.rpc("memory", "reserve_memory", "d", "flying", "1"))
    await host.until(lambda: host.executions()["reserve_memory", "flying"] == 1)
    await host.end("bus", signal.SIGKILL)
    assert "InDoubt" in (await http)["ErrorDescription"][1]
    await host.until_alarms("NO_AUTHORITY")
    assert "Unavailable" in (await relayed.rpc("memory", "login", "d", "nobody"))["ErrorDescription"][1]
    response = await relayed.ask_store("reserve-memory", {"session_id": b"nobody", "kib": b"1"})
    assert response["description"].startswith(b"Unavailable")
    assert "ServiceUnknown" in await refused(host, MEMORY, "Login", "ss", ("d", "nobody"))
    assert host.sides()["legacy"] == 0
    await host.start_bus_squeezed()
    await relayed.on_bus()
    await host.until_alarms()
    await relayed.every_door()
    assert host.executions()["reserve_memory", "flying"] == 1
    assert host.executions()["login", "nobody"] == 0


async def test_no_xenstored_at_the_start(host: Host, relayed: Any) -> None:
    """The bridge starts and stays up, with an alarm; calls that need the store are Unavailable until it is there."""
    await host.end("bridge")
    await host.store.kill()
    await host.start_bridge()
    await host.until_alarms("STORE_LOST")
    await relayed.on_bus()
    assert "Unavailable" in await refused(host, MEMORY, "Login", "ss", ("d", "nobody"))
    await host.store.start()
    await host.start_legacy("squeezed")
    await host.until_alarms()
    await relayed.every_door()
    assert host.executions()["login", "nobody"] == 0


async def test_no_xenstored_at_a_start_in_live(host: Host, moved: Any) -> None:
    """The bridge starts without it; when the store is there, the tree is registered and served."""
    await host.end("bridge")
    await host.store.kill()
    await host.start_bridge()
    await host.until_alarms("STORE_LOST")
    assert (await moved.rpc("memory", "get_host_reserved_memory", "d"))["Status"] == "Success"
    await host.store.start()
    await host.until_alarms()
    await host.until(lambda: host.is_alive("bus"), "bus")
    await moved.connect_store()
    await moved.until_exists("/squeezed/pid")
    await until_served(moved)
    await moved.every_door()


@pytest.mark.parametrize("stage", ["relay", "live"])
async def test_xenstored_dies(host: Host, relayed: Any, stage: str) -> None:
    """It comes back empty: the bridge is there again, registers where it serves, and calls work."""
    if stage == "live":
        await host.start_bus_squeezed()
        await host.stage("squeezed", "live")
    await relayed.every_door()
    await host.store.kill()
    await host.until_alarms("STORE_LOST")
    answer = await relayed.rpc("memory", "reserve_memory", "d", "nobody", "1")
    if stage == "live":
        assert "Unavailable" in answer["ErrorDescription"][1]
    assert "Unavailable" in await refused(host, MEMORY, "ReserveMemory", "ssx", ("d", "nobody", 1))
    await host.store.start()
    if stage == "relay":
        await host.start_legacy("squeezed")  # it ends with its store, and somebody starts it again
    await host.until_alarms()
    await relayed.until_exists("/squeezed/pid")
    await until_served(relayed)
    await relayed.every_door()
    assert "Traceback" not in host.log("bridge")


async def test_xenstored_dies_with_a_call_in_flight(host: Host, relayed: Any) -> None:
    """relay: a caller on the bus hears InDoubt, since the daemon may have the request."""
    host.legacy["squeezed"] += ["--slow-ms", "1000"]
    await host.end_legacy("squeezed")
    await host.start_legacy("squeezed")
    call = asyncio.create_task(refused(host, MEMORY, "ReserveMemory", "ssx", ("d", "flying", 1)))
    await host.until(lambda: host.executions()["reserve_memory", "flying"] == 1)
    await host.store.kill()
    assert "InDoubt" in await call
    await host.store.start()
    await host.start_legacy("squeezed")
    await host.until_alarms()
    await relayed.every_door()
    assert host.executions()["reserve_memory", "flying"] == 1


async def test_the_legacy_daemon_behind_http_dies(host: Host, relayed: Any) -> None:
    """In flight: the connection ends as it would without us, InDoubt on the bus. Started again it is taken again."""
    host.legacy["xenopsd"] += ["--slow-ms", "1000"]
    await host.end_legacy("xenopsd")
    assert "Unavailable" in (await relayed.rpc("xenopsd", "query", "d"))["ErrorDescription"][1]
    assert "Unavailable" in await refused(host, XENOPS, "Query", "s", ("d",))
    await host.start_legacy("xenopsd")
    await host.until(lambda: "was bound by somebody else: taking it again" in host.log("bridge"))
    await relayed.every_door()
    start = xmlrpc.client.dumps(({"debug_info": "flying", "id": "x", "paused": False},), "VM.start")
    bus_body = ("flying-bus", "x", False)
    http = asyncio.create_task(relayed.post("xenopsd", start.encode()))
    bus = asyncio.create_task(
        refused(host, (XENOPS[0], "/org/xen/xcp/xenopsd/VM", "org.xen.xcp.xenopsd.VM1"), "Start", "ssb", bus_body)
    )
    await host.until(lambda: host.executions().total() and host.executions()["VM.start", "flying"] == 1)
    await host.until(lambda: host.executions()["VM.start", "flying-bus"] == 1)
    await host.end_legacy("xenopsd")
    assert "InDoubt" in await bus
    assert b"InDoubt" in await http
    await host.start_legacy("xenopsd")
    await host.until(lambda: host.log("bridge").count("was bound by somebody else") == 2)
    await relayed.every_door()
    assert host.executions()["VM.start", "flying"] == host.executions()["VM.start", "flying-bus"] == 1


async def test_the_legacy_daemon_is_about_to_bind_its_path(host: Host, relayed: Any) -> None:
    """Between its unlink and its bind, and between its bind and its listen, the path is left alone, or the daemon would
    not start; then it is taken again. A path that stays away is ours once more."""
    path, behind = host.path("xenopsd"), host.path("xenopsd.legacy")
    left_alone = f"{path} is served by nobody: left to whoever binds it now"
    await host.end_legacy("xenopsd")
    path.unlink()
    await host.until(lambda: left_alone in host.log("bridge"))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        its_own = path.stat().st_ino
        await host.until(lambda: path.stat().st_ino != its_own)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(behind))
            daemon.accept()[0].close()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        await host.until(lambda: host.log("bridge").count(left_alone) == 2)
        daemon.listen()
        await host.until(lambda: host.log("bridge").count("was bound by somebody else: taking it again") == 2)
    path.unlink()
    await host.until(lambda: host.log("bridge").count("was bound by somebody else: taking it again") == 3)
    await host.start_legacy("xenopsd")
    await host.until(lambda: host.log("bridge").count("was bound by somebody else: taking it again") == 4)
    await relayed.every_door()
    assert await host.alarms() == {}


def listener(path: Path) -> int | None:
    """The process that listens there, None when nobody does."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(ConnectionRefusedError, FileNotFoundError):
        connection.connect(str(path))
        return process_of(connection)
    return None


async def test_the_legacy_daemon_behind_the_tree_dies(host: Host, relayed: Any) -> None:
    """Unavailable while it is away; a call in flight is answered by the daemon's successor, who finds the request."""
    await host.end_legacy("squeezed")
    assert "Unavailable" in await refused(host, MEMORY, "Login", "ss", ("d", "nobody"))
    await host.start_legacy("squeezed")
    os.kill(host.legacy_pid("squeezed"), signal.SIGSTOP)
    bus = await Bus.connect(host.bus.address)
    try:
        call = asyncio.create_task(bus.call(*MEMORY, "ReserveMemory", "ssx", ("d", "flying", 1), timeout=30))
        await relayed.connect_store()
        await relayed.until_exists("/squeezed/rpc/request/reserve-memory")
        await host.end_legacy("squeezed")
        await host.start_legacy("squeezed")
        assert len((await call).body[0]) == 36
    finally:
        await bus.close()
    assert host.executions()["reserve_memory", "flying"] == 1
    await host.until(lambda: listener(host.path("memory")) == host.pid("bridge"))
    await host.until_alarms()
    await relayed.every_door()
