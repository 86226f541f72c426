"""Moving squeezed to the bus and back, ten times, while callers call at every door."""

from __future__ import annotations

import asyncio
import xmlrpc.client
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from dbus_side.bus import Bus
from xenstore_rpc.connection import Store
from xenstore_rpc.rpc import Caller

if TYPE_CHECKING:
    from tests.fixtures_host import Host

CALLS = 2000
MOVES = 10


async def http_call(path: str, method: str, *params: object) -> object:
    """One XML-RPC call over a connection of its own, as legacy clients make it: a refused connect is tried again.

    A legacy daemon that is started unlinks the path and binds it: in between nobody listens, which its clients know.
    """
    body = xmlrpc.client.dumps(params, method).encode()
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(path)
            break
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            await asyncio.sleep(0.001)
    try:
        writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        reply = await reader.read()
    finally:
        writer.close()
    (value,), _ = xmlrpc.client.loads(reply.partition(b"\r\n\r\n")[2])
    return value


@pytest.mark.timeout(300)
async def test_every_call_is_answered_and_executed_once(host: Host) -> None:
    """8 callers, 2 per direction, 2,000 calls each or more, 10 moves there and back: none lost, none doubled."""
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.stage("xenopsd", "relay")
    await host.start_bus_squeezed()
    moved = asyncio.Event()
    answered: list[tuple[str, str]] = []
    memory = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
    xenops = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/Xenops", "org.xen.xcp.xenopsd.Xenops1")
    bus, store = await Bus.connect(host.bus.address), Store(host.store.socket)
    await store.connect()

    async def at_xenstore(token: str) -> None:
        arguments = [("session_id", token.encode()), ("kib", b"1")]
        response = await Caller(store, "squeezed").call("reserve-memory", arguments, timeout=60)
        assert [name for name, _ in response.results] == ["reservation_id"], response
        answered.append(("reserve_memory", token))

    async def at_http(token: str) -> None:
        value = await http_call(str(host.path("memory")), "reserve_memory", "d", token, "1")
        assert isinstance(value, dict)
        assert value["Status"] == "Success", value
        answered.append(("reserve_memory", token))

    async def at_bus(token: str) -> None:
        reply = await bus.call(*memory, "ReserveMemory", "ssx", ("d", token, 1), timeout=60)
        assert len(reply.body[0]) == 36
        answered.append(("reserve_memory", token))

    async def at_bus_for_http(token: str) -> None:
        reply = await bus.call(*xenops, "Query", "s", (token,), timeout=60)
        assert reply.signature == "a{sv}"
        answered.append(("query", token))

    async def caller(name: str, call: Callable[[str], Awaitable[None]]) -> None:
        made = 0
        while made < CALLS or not moved.is_set():
            await call(f"{name}-{made}")
            made += 1

    async def mover() -> None:
        for _ in range(MOVES):
            await host.stage("squeezed", "live")
            await host.stage("squeezed", "relay")
        moved.set()

    try:
        async with asyncio.TaskGroup() as tasks:
            for name, call in (("x", at_xenstore), ("h", at_http), ("b", at_bus), ("q", at_bus_for_http)):
                for number in (1, 2):
                    tasks.create_task(caller(f"{name}{number}", call))
            tasks.create_task(mover())
    finally:
        await bus.close()
        await store.close()
    assert len(answered) >= 8 * CALLS
    assert host.executions() == dict.fromkeys(answered, 1)
    assert all(count > 0 for count in host.sides().values())
    status = await host.control(verb="status")
    for service in status["services"].values():  # type: ignore[attr-defined]
        calls = service["calls"]
        assert calls["admitted"] == calls["answered"] + calls["in_flight"] + calls["in_doubt"] + calls["abandoned"]
        assert calls["in_doubt"] == calls["abandoned"] == calls["refused"] == 0
        assert service["alarms"] == {}
