"""One call each way, on real parts: the shortest proof that the house stands."""

from __future__ import annotations

import asyncio
import json
import subprocess
import xmlrpc.client
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING, Any

import pyxs

if TYPE_CHECKING:
    from tests.fixtures_host import Host


class UnixConnection(HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket(AF_UNIX)
        self.sock.connect(self._path)


def over_http(path: Path, method: str, *params: object) -> Any:
    """One XML-RPC call as a legacy caller makes it."""
    connection = UnixConnection(path)
    try:
        connection.request("POST", str(path), xmlrpc.client.dumps(params, method, allow_none=True))
        (value,), _ = xmlrpc.client.loads(connection.getresponse().read())
        return value
    finally:
        connection.close()


def over_xenstore(store: str, function: str, request_id: str, **arguments: str) -> dict[str, str]:
    """One call as a legacy client makes it, through pyxs; it waits by watching the response."""
    request, response = (
        f"/squeezed/rpc/request/{function}/{request_id}",
        f"/squeezed/rpc/response/{function}/{request_id}",
    )
    with pyxs.Client(unix_socket_path=store) as client:
        client.transaction()
        client.mkdir(request.encode())
        for name, value in arguments.items():
            client.write(f"{request}/{name}".encode(), value.encode())
        assert client.commit()
        with client.monitor() as monitor:
            monitor.watch(response.encode(), b"X")
            for _ in monitor.wait():
                if client.exists(response.encode()):
                    break
        result = {
            name.decode(): client[f"{response}/{name.decode()}".encode()].decode()
            for name in client.list(response.encode())
        }
        client.delete(request.encode())
        client.delete(response.encode())
    return result


def over_bus(address: str, interface: str, path: str, member: str, signature: str, *arguments: str) -> Any:
    """One call as busctl makes it; the body of the answer."""
    service = ".".join(interface.split(".")[:4])
    command = [
        "busctl",
        f"--address={address}",
        "--json=short",
        "call",
        service,
        path,
        interface,
        member,
        signature,
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"] if done.stdout.strip() else []


async def test_one_call_each_way(host: Host) -> None:
    """All four directions answer, and each call is executed once, by the side that is in charge."""
    memory = ("org.xen.xcp.squeezed.Memory1", "/org/xen/xcp/squeezed/Memory")
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.stage("xenopsd", "relay")
    # A bus caller reaches services that have not moved: squeezed over xenstore, xenopsd over HTTP.
    (reservation,) = await asyncio.to_thread(
        over_bus, host.bus.address, *memory, "ReserveMemory", "ssx", "d", "bus1", "4096"
    )
    assert len(reservation) == 36
    xenops = ("org.xen.xcp.xenopsd.Xenops1", "/org/xen/xcp/xenopsd/Xenops")
    (query,) = await asyncio.to_thread(over_bus, host.bus.address, *xenops, "Query", "s", "bus2")
    assert query["name"]["data"] == "legacy xenopsd"
    # A legacy caller passes through to the legacy daemon.
    answer = await asyncio.to_thread(over_http, host.path("memory"), "reserve_memory", "d", "http1", "8192")
    assert answer["Status"] == "Success", answer
    # The service moves; legacy callers reach the bus daemon.
    await host.start_bus_squeezed()
    await host.stage("squeezed", "live")
    answer = await asyncio.to_thread(over_http, host.path("memory"), "reserve_memory", "d", "http2", "8192")
    assert answer["Status"] == "Success", (answer, host.log("bridge"), host.log("bus"))
    answer = await asyncio.to_thread(
        over_xenstore, host.store.socket, "reserve-memory", "r1", session_id="xs1", kib="16384"
    )
    assert len(answer["reservation_id"]) == 36, answer
    await asyncio.to_thread(over_bus, host.bus.address, *memory, "ReserveMemory", "ssx", "d", "bus3", "4096")
    executions = host.executions()
    tokens = {("reserve_memory", token) for token in ("bus1", "http1", "http2", "xs1", "bus3")} | {("query", "bus2")}
    assert executions == dict.fromkeys(tokens, 1)
    assert host.sides() == {"legacy": 3, "bus": 3}
