"""The load generator: a process of its own that makes calls when told to, and says how long each took.

    load.py --bus ADDRESS --store SOCKET

Run with the checkout in PYTHONPATH. JSON lines in and out. The loop is closed: every caller waits for its answer
before it calls again, so that a slow server is called less often and its waiting times look better than an open loop
would show them. Every answer is checked for being a success. An HTTP caller connects for every call, as the toolstack's
clients do; the callers at the bus share a connection, as those of one process do, and so do the callers at the store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks.calls import CALLS, Measured
from benchmarks.daemons import run
from dbus_side import names
from dbus_side.bus import Bus
from xenstore_rpc.connection import Store
from xenstore_rpc.rpc import Caller

PATIENCE: Final = 120.0  # seconds for one slice
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

Call = Callable[[], Awaitable[None]]


class Failed(Exception):
    """A call was answered with something else than success."""


def http_call(path: str, measured: Measured) -> Call:
    """POSTs the call to a Unix socket."""
    body = measured.request
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: text/xml\r\n"
    request = head + b"content-length: %d\r\n\r\n%s" % (len(body), body)

    async def call() -> None:
        received = await exchange(path, request)
        if b"Success" not in received[:1000]:
            said = received.partition(b"\r\n\r\n")[2].decode(errors="replace")
            raise Failed(" ".join(re.sub("<[^>]*>", " ", said).split()) or "closed without an answer")

    return call


async def exchange(path: str, request: bytes) -> bytes:
    """The whole answer to a request at a Unix socket, head and all. Raises Failed when it breaks off."""
    with await _connect(path) as connection:
        await asyncio.get_running_loop().sock_sendall(connection, request)
        return await _receive(connection)


async def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:  # the server's queue is full: the kernel tells nobody when it no longer is
            await asyncio.sleep(0.001)
        else:
            return connection


async def _receive(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    blocks: list[bytes] = []
    wanted, size = None, 0
    while wanted is None or size < wanted:
        block = await loop.sock_recv(connection, 1 << 18)
        if not block:
            break
        blocks.append(block)
        size += len(block)
        if wanted is None:
            head = b"".join(blocks)
            end = head.find(b"\r\n\r\n")
            length = _LENGTH.search(head, 0, end) if end >= 0 else None
            wanted = end + 4 + int(length[1]) if length else None
    if wanted is not None and size < wanted:
        raise Failed(f"{size} of {wanted} bytes")
    return b"".join(blocks)


def bus_call(bus: Bus, destination: str, measured: Measured) -> Call:
    """Calls the method at whoever owns the destination."""
    path = names.object_path(measured.service, measured.object)
    interface = names.interface_name(measured.service, measured.object)

    async def call() -> None:
        await bus.call(
            destination, path, interface, measured.member, measured.signature, measured.body, timeout=PATIENCE
        )

    return call


def store_call(store: Store, tree: str) -> Call:
    """Reserves memory through the tree."""
    caller = Caller(store, tree)
    arguments = [("session_id", b"session"), ("kib", b"4096")]

    async def call() -> None:
        response = await caller.call("reserve-memory", arguments, timeout=PATIENCE)
        if response.is_error:
            raise Failed(f"code {response.code}: {response.description}")

    return call


async def closed_loop(call: Call, callers: int, seconds: float, least: int) -> dict[str, Any]:
    """Calls for some time, at least `least` times: latencies in microseconds, and the seconds it took."""
    latencies: list[int] = []
    clock = time.perf_counter_ns
    begun = clock()
    end = begun + int(seconds * 1e9)
    left = least

    async def caller() -> None:
        nonlocal left
        while left > 0 or clock() < end:
            left -= 1
            started = clock()
            await call()
            latencies.append((clock() - started) // 1000)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    return {"latencies": latencies, "seconds": (clock() - begun) / 1e9}


class Generator:
    """Makes what it is told to."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus = bus
        self._store = store

    async def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """One slice of load. A failing call ends it: the answer is {"error": ...} then."""
        measured = CALLS[order["call"]]
        match order["door"]:
            case "http":
                call = http_call(order["where"], measured)
            case "bus":
                call = bus_call(self._bus, order["where"], measured)
            case _:
                call = store_call(self._store, order["where"])
        try:
            return await closed_loop(call, order["callers"], order["seconds"], order["least"])
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
            return {"error": f"{type(error).__name__}: {error}"[:300]}
        except TimeoutError:
            return {"error": f"no answer within {PATIENCE:.0f} s"}


async def serve(options: argparse.Namespace) -> None:
    """Until the end of standard input."""
    bus, store = await Bus.connect(options.bus), Store(options.store)
    await store.connect()
    generator = Generator(bus, store)
    loop = asyncio.get_running_loop()
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await generator.answer(json.loads(line))), flush=True)
    finally:
        await bus.close()
        await store.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Makes load, one slice a line of standard input.")
    parser.add_argument("--bus", required=True)
    parser.add_argument("--store", required=True)
    run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
