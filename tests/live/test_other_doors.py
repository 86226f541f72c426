"""The framed JSON sockets and perfmon's datagrams: as doors for legacy callers, and as the way to a legacy daemon."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from dbus_side.bus import Bus
from tests.fixtures_toolstack import Toolstack

MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
PERFMON = ("org.xen.xcp.perfmon", "/org/xen/xcp/perfmon/Perfmon", "org.xen.xcp.perfmon.Perfmon1")
PATIENCE = 30


def frame(body: bytes) -> bytes:
    return b"%016d%s" % (len(body), body)


async def exchange(host: Toolstack, sent: bytes, *, ends: bool = False) -> bytes:
    """What comes back at squeezed's framed socket, up to the end of the connection."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(str(host.path("memory.json")))
        try:
            writer.write(sent)
            if ends:
                writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def call(host: Toolstack, method: str, *params: Any, number: Any = 7) -> dict[str, Any]:
    reply = await exchange(host, frame(json.dumps({"method": method, "params": params, "id": number}).encode()))
    assert int(reply[:16]) == len(reply) - 16
    found: dict[str, Any] = json.loads(reply[16:])
    return found


@pytest.fixture
async def bus(toolstack: Toolstack) -> Any:
    """A caller on the bus."""
    found = await Bus.connect(toolstack.bus.address)
    yield found
    await found.close()


async def test_framed_callers_and_a_framed_daemon(toolstack: Toolstack, bus: Bus) -> None:
    """Relayed byte for byte, translated when the bus daemon rules, and back; a bus caller reaches the legacy daemon."""
    host = toolstack
    await host.start_legacy("squeezed")
    asked = frame(b'{"method":"get_host_reserved_memory","params":["direct"],"id":7}')
    direct = await exchange(host, asked)
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    assert await exchange(host, asked) == direct
    found = await call(host, "reserve_memory_range", "relay-1", "xapi", 1024, 4096)
    assert (found["error"], found["id"]) == (None, 0)
    reply = await bus.call(*MEMORY, "GetHostReservedMemory", "s", ("over-frames",), timeout=PATIENCE)
    assert f"{reply.body[0]}" in direct.decode()
    await host.start_bus_squeezed()
    await host.stage("squeezed", "live")
    found = await call(host, "reserve_memory_range", "live-1", "xapi", 1024, 4096)
    assert found["error"] is None
    reservation, kib = found["result"]
    assert type(kib) is int
    assert (await call(host, "delete_reservation", "live-2", "xapi", reservation))["result"] is None
    found = await call(host, "reserve_memory", "live-3", "xapi", -5)
    assert found["error"] == ["Invalid_memory_value", -5]
    await host.stage("squeezed", "relay")
    assert await exchange(host, asked) == direct
    executed = host.executions()
    assert executed["reserve_memory_range", "xapi"] == 2
    assert executed["delete_reservation", "xapi"] == 1
    await host.stage("squeezed", "off")
    assert await exchange(host, asked) == direct


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"              75" + b" " * 75, id="blanks in the length"),
        pytest.param(b"abcdefghijklmnop{}", id="no length"),
        pytest.param(b"9999999999999999{}", id="over the limit"),
        pytest.param(frame(b"not json"), id="no JSON"),
        pytest.param(frame(b"[]"), id="a batch"),
        pytest.param(frame(b'{"method":"nosuch","params":["d"],"id":1}'), id="unknown method"),
        pytest.param(frame(b'{"method":"balance_memory","params":["d"],"id":null}'), id="no id"),
        pytest.param(b"0000000000000100{}", id="short body"),
    ],
)
async def test_bad_frames(framed_live: Toolstack, sent: bytes) -> None:
    """The daemon that rpclib's was closes without a byte; the next caller is answered."""
    assert await exchange(framed_live, sent, ends=True) == b""
    assert (await call(framed_live, "get_host_reserved_memory", "next"))["error"] is None


@pytest.fixture
async def framed_live(toolstack: Toolstack) -> Toolstack:
    """squeezed on the bus, with its framed socket."""
    await toolstack.start_legacy("squeezed")
    await toolstack.start_bridge()
    await toolstack.stage("squeezed", "relay")
    await toolstack.start_bus_squeezed()
    await toolstack.stage("squeezed", "live")
    return toolstack


async def test_perfmon(toolstack: Toolstack, bus: Bus) -> None:
    """Its address stays its own until the bus daemon rules; then our datagrams become calls; and back."""
    host = toolstack

    def send(payload: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(payload, host.perfmon.replace("@", "\0", 1))

    def executed(side: str) -> int:
        return host.sides()[side]

    await host.start_legacy("perfmon")
    await host.start_bridge()
    await host.stage("perfmon", "relay")
    send(b"refresh")
    await host.until(lambda: executed("legacy") == 1)
    reply = await bus.call(*PERFMON, "DebugMem", timeout=PATIENCE)
    assert reply.body == ()
    await host.until(lambda: executed("legacy") == 2)
    await host.start_candidate("perfmon")
    answer = await host.ask_stage("perfmon", "live", dry_run=True)
    assert "bind the datagram address" in str(answer["plan"])
    await host.stage("perfmon", "live")
    await host.until(lambda: _is_bound(host.perfmon))
    send(b"refresh")
    send(b"nonsense")
    send(b"debug_mem")
    await host.until(lambda: executed("bus") == 2)
    await host.until(lambda: "unknown command of 8 bytes" in host.log("bridge"))
    await bus.call(*PERFMON, "Refresh", timeout=PATIENCE)
    await host.until(lambda: executed("bus") == 3)
    await host.stage("perfmon", "relay")
    send(b"refresh")
    await host.until(lambda: executed("legacy") == 3)
    assert executed("bus") == 3


def _is_bound(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address.replace("@", "\0", 1))
        except ConnectionRefusedError:
            return False
    return True
