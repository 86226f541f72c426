"""Foreign callers and the daemons of examples/ with options of the test's own."""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from dbus_side.bus import Bus
from examples.legacy_http import Failure, Value, read_reply, write_call
from tests.fixtures_host import ROOT, Host
from xenstore_rpc.connection import Store
from xenstore_rpc.rpc import Caller

AskHttp = Callable[..., Awaitable[Value]]
AskTree = Callable[..., Awaitable[dict[str, str]]]
StartOnBus = Callable[..., Awaitable[Bus]]


def _exchange(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def exchange() -> Callable[[Path, bytes], Awaitable[bytes]]:
    """A function that sends bytes to a Unix socket and gives everything that comes back until the other side closes."""

    async def send(path: Path, request: bytes) -> bytes:
        return await asyncio.to_thread(_exchange, path, request)

    return send


@pytest.fixture
def ask_http() -> AskHttp:
    """A function that makes an XML-RPC call at a Unix socket: the value, or the Failure's description in a tuple."""

    async def ask(path: Path, method: str, *params: Value) -> Value | tuple[str, Value]:
        body = write_call(method, list(params))
        head = f"POST {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\nhost: localhost\r\n\r\n".encode()
        reply = await asyncio.to_thread(_exchange, path, head + body)
        if not reply:
            raise http.client.RemoteDisconnected
        try:
            return read_reply(reply.partition(b"\r\n\r\n")[2])
        except Failure as failure:
            return ("failure", failure.description)

    return ask


@pytest.fixture
async def store(host: Host) -> AsyncIterator[Store]:
    """A connection to the host's store."""
    connection = Store(host.store.socket)
    await connection.connect()
    yield connection
    await connection.close()


@pytest.fixture
def ask_tree(store: Store) -> AskTree:
    """A function that calls squeezed through the tree: the answer's keys and texts."""

    async def ask(function: str, **arguments: str) -> dict[str, str]:
        encoded = [(name, value.encode()) for name, value in arguments.items()]
        response = await Caller(store, "squeezed").call(function, encoded, timeout=20)
        return {name: value.decode() for name, value in response.results}

    return ask


@pytest.fixture
async def start_on_bus(host: Host) -> AsyncIterator[StartOnBus]:
    """A function that starts squeezed_on_bus with more options and gives a connection that waited for the candidate."""
    bus = await Bus.connect(host.bus.address)

    async def start(*options: str) -> Bus:
        owned = asyncio.Event()
        await bus.track_owner("org.xen.xcp.squeezed.Candidate", lambda _owner: owned.set())
        command = [sys.executable, f"{ROOT}/examples/squeezed_on_bus.py", "--bus", host.bus.address]
        command += ["--xenstore", host.store.socket, "--executions", str(host.path("executions")), *options]
        await host._spawn("bus", command)
        async with asyncio.timeout(20):
            await owned.wait()
        return bus

    yield start
    await bus.close()
