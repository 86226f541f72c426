"""Legacy daemons of other dialects behind the bridge: JSON-RPC over HTTP (cluster), and xenopsd of 2013.

The daemons here answer as those were recorded; what they were asked is looked at to the byte.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from tests.fixtures_host import Host

PATIENCE = 30
SERVICES = """
[bus]
address = "{bus}"
[state]
directory = "{directory}/state"
[control]
socket = "{directory}/control"
[services.cluster]
http = {{ socket = "{directory}/cluster.json" }}
[services.xenopsd]
dialect = "rpclib-2012"
framed = {{ socket = "{directory}/xenopsd.json" }}
"""
OLD_XENOPSD = {
    "query": '{"name": "xenops", "vendor": "XCP", "version": "0.1", "features": [], "instance_id": "f4ac03b6"}',
    "TASK.stat": '{"id": "17", "debug_info": {"a": "b"}, "ctime": 1372000000.500000, "state": ["Pending", 0.500000], '
    '"subtasks": {}}',
}

Answer = Callable[[str], Awaitable[str]]
Serve = Callable[[str, Callable[[bytes], bytes]], Awaitable[list[bytes]]]


@pytest.fixture
async def serve(host: Host) -> AsyncIterator[Serve]:
    """Starts a daemon at a path that reads one request a connection; gives the list of what it was asked."""
    servers: list[asyncio.Server] = []

    async def start(name: str, answer: Callable[[bytes], bytes]) -> list[bytes]:
        asked: list[bytes] = []

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                asked.append(await read_request(reader))
                writer.write(answer(asked[-1]))
                await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        servers.append(await asyncio.start_unix_server(connected, str(host.path(name))))
        return asked

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """A frame, or an HTTP request with its length."""
    start = await reader.readexactly(16)
    if start.isdigit():
        return start + await reader.readexactly(int(start))
    head = start + await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None
    return head + await reader.readexactly(int(length[1]))


@pytest.fixture
async def bridge(host: Host) -> Host:
    """A bridge of both services."""
    host.settings.write_text(SERVICES.format(bus=host.bus.address, directory=host.directory))
    return host


async def post(path: Path, body: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        return (await reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer.close()


async def test_json_over_http(bridge: Host, serve: Serve) -> None:
    """cluster: a bus caller is translated to JSON-RPC 1.0; a legacy caller passes through."""

    def answer(request: bytes) -> bytes:
        call = json.loads(request.partition(b"\r\n\r\n")[2])
        reply: dict[str, Any] = {"result": None, "error": ["InternalError", "no cluster"], "id": 0}
        if call["method"] == "UPDATES.get":
            reply = {"result": ["changed"], "error": None, "id": 0}
        body = json.dumps(reply, separators=(",", ":")).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nuser-agent: cluster\r\n\r\n%s" % (len(body), body)

    asked = await serve("cluster.json", answer)
    await bridge.start_bridge()
    await bridge.stage("cluster", "relay")
    direct = b'{"method":"diagnostics","params":[{"dbg":"direct"}],"id":9}'
    assert json.loads(await post(bridge.path("cluster.json"), direct))["error"] == ["InternalError", "no cluster"]
    assert asked[-1].endswith(direct)
    bus = await Bus.connect(bridge.bus.address)
    name, path = "org.xen.xcp.cluster", "/org/xen/xcp/cluster"
    try:
        where = (name, f"{path}/UPDATES", f"{name}.UPDATES1")
        reply = await bus.call(*where, "Get", "sd", ("d", 1.0), timeout=PATIENCE)
        assert reply.body == (["changed"],)
        sent = json.loads(asked[-1].partition(b"\r\n\r\n")[2])
        assert (sent["method"], sent["params"]) == ("UPDATES.get", [{"timeout": 1.0, "dbg": "d"}])
        with pytest.raises(BusRefused) as refused:
            await bus.call(name, f"{path}/Cluster", f"{name}.Cluster1", "Leave", "s", ("d",), timeout=PATIENCE)
        assert refused.value.name == "org.xen.xcp.cluster.Error.InternalError"
        assert refused.value.body[1:] == ("no cluster",)
    finally:
        await bus.close()


async def test_a_daemon_of_2013(bridge: Host, serve: Serve) -> None:
    """Its interface is version 0 on the bus; options are lists, arguments positions, floats have six decimals."""

    def answer(request: bytes) -> bytes:
        method = json.loads(request[16:])["method"]
        result = OLD_XENOPSD.get(method)
        body = f'{{"result": {result}, "error": null, "id": 0}}'
        if result is None:
            body = f'{{"result": null, "error": ["Unknown_RPC", "{method}"], "id": 0}}'
        return b"%016d%s" % (len(body), body.encode())

    asked = await serve("xenopsd.json", answer)
    await bridge.start_bridge()
    await bridge.stage("xenopsd", "relay")
    bus = await Bus.connect(bridge.bus.address)
    name, path = "org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd"
    try:
        reply = await bus.call(name, f"{path}/Xenops", f"{name}.Xenops0", "Query", "s", ("d",), timeout=PATIENCE)
        assert reply.body[0]["vendor"].value == "XCP"
        assert asked[-1].endswith(b'{"method": "query", "params": ["d", null], "id": 1}')
        reply = await bus.call(name, f"{path}/TASK", f"{name}.TASK0", "Stat", "ss", ("d", "17"), timeout=PATIENCE)
        assert reply.body[0]["state"].value == ("Pending", ("d", 0.5))
        with pytest.raises(BusRefused) as refused:
            await bus.call(name, f"{path}/VM", f"{name}.VM0", "Stat", "ss", ("d", "x"), timeout=PATIENCE)
        assert refused.value.name == "org.xen.xcp.xenopsd.Error.Unknown_RPC"
        with pytest.raises(BusRefused) as refused:
            await bus.call(name, f"{path}/VM", f"{name}.VM1", "Stat", "ss", ("d", "x"), timeout=PATIENCE)
        assert refused.value.name == "org.freedesktop.DBus.Error.UnknownInterface"
    finally:
        await bus.close()
