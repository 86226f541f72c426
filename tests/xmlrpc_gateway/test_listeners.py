"""Accepting up to a limit, giving listeners up, and running out of descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from xmlrpc_gateway.http_messages import Peer
from xmlrpc_gateway.listeners import Listeners


class Door:
    """Takes every connection over and keeps it until the test ends it."""

    def __init__(self, limit: int) -> None:
        self.listeners = Listeners(self._accepted, limit=limit)
        self.peers: list[Peer | str] = []
        self.connections: asyncio.Queue[socket.socket] = asyncio.Queue()

    def _accepted(self, connection: socket.socket, peer: Peer | str) -> None:
        self.peers.append(peer)
        self.connections.put_nowait(connection)

    def end_one(self) -> None:
        self.connections.get_nowait().close()
        self.listeners.ended()

    async def accepted(self, number: int) -> None:
        """Waits until so many connections have been accepted that have not ended."""
        async with asyncio.timeout(5):
            kept = [await self.connections.get() for _ in range(number)]
        for connection in kept:
            self.connections.put_nowait(connection)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """A door of three connections."""
    door = Door(3)
    yield door
    door.listeners.close()
    while not door.connections.empty():
        door.end_one()


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Client sockets that are closed in the end."""
    clients: list[socket.socket] = []
    yield clients
    for client in clients:
        client.close()


def connect(path: Path, number: int) -> list[socket.socket]:
    return [_connected(path) for _ in range(number)]


def _connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


async def test_tells_who_connected(door: Door, run_dir: Path, clients: list[socket.socket]) -> None:
    """On a Unix socket the process, on TCP the address."""
    path = run_dir / "s"
    door.listeners.listen_unix(path)
    clients += connect(path, 1)
    for host in ("127.0.0.1", "::1"):
        listener = door.listeners.listen_tcp(host, 0)
        clients.append(socket.create_connection(listener.getsockname()[:2]))
    await door.accepted(3)
    by_kind = sorted(door.peers, key=str)
    ports = [client.getsockname()[1] for client in clients[1:]]
    assert by_kind == [f"127.0.0.1:{ports[0]}", Peer(os.getuid(), os.getgid(), os.getpid()), f"[::1]:{ports[1]}"]


async def test_accepts_nobody_over_the_limit(door: Door, run_dir: Path, clients: list[socket.socket]) -> None:
    """Those over it wait in the queue, on every listener, and come in one by one as others end."""
    paths = [run_dir / "a", run_dir / "b"]
    for path in paths:
        door.listeners.listen_unix(path)
        clients += connect(path, 2)
    await door.accepted(3)
    assert not await door.listeners.quiet(0.02)
    assert len(door.peers) == 3
    late = socket.socket(socket.AF_UNIX)
    late.bind(str(run_dir / "c"))
    late.listen(5)
    door.listeners.serve(late)  # one that comes while the door is full waits as well
    clients += connect(run_dir / "c", 1)
    for number in (4, 5):
        door.end_one()
        await door.accepted(3)
        assert len(door.peers) == number


async def test_says_when_it_is_quiet(door: Door, run_dir: Path, clients: list[socket.socket]) -> None:
    """Quiet is when every connection has ended; the wait has an end too."""
    assert await door.listeners.quiet(0)
    door.listeners.listen_unix(run_dir / "s")
    clients += connect(run_dir / "s", 2)
    await door.accepted(2)
    door.end_one()
    assert not await door.listeners.quiet(0.01)
    waiting = asyncio.create_task(door.listeners.quiet(None))
    door.end_one()
    assert await waiting


async def test_stops_without_refusing_those_who_wait(door: Door, run_dir: Path, clients: list[socket.socket]) -> None:
    """All in the queue are accepted, over the limit too; whoever comes later is refused, other listeners go on."""
    door.listeners.listen_unix(run_dir / "other")
    path = run_dir / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(20)
    door.listeners.serve(listener)
    clients += connect(path, 12)
    await door.listeners.stop(listener)
    assert len(door.peers) == 12
    with pytest.raises(ConnectionRefusedError):
        connect(path, 1)
    for _ in range(12):
        door.end_one()
    clients += connect(run_dir / "other", 1)
    await door.accepted(1)


async def test_closes_all_listeners(door: Door, run_dir: Path, clients: list[socket.socket]) -> None:
    """After that nobody is accepted, and a connection that ends reopens nothing."""
    path = run_dir / "s"
    door.listeners.listen_unix(path)
    clients += connect(path, 4)
    await door.accepted(3)
    door.listeners.close()
    door.end_one()
    with pytest.raises(ConnectionRefusedError):
        connect(path, 1)
    assert len(door.peers) == 3


async def test_leaves_nothing_when_it_cannot_listen(door: Door, run_dir: Path) -> None:
    """A path that the system refuses raises OSError."""
    with pytest.raises(OSError, match="too long"):
        door.listeners.listen_unix(run_dir / ("x" * 120))
    assert names(run_dir) == []


@pytest.fixture
def few_descriptors() -> Iterator[list[int]]:
    """Fills the process's table of descriptors up to a few; closing what is in the list makes room again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    yield taken
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def use_up(taken: list[int]) -> None:
    """Takes all descriptors that are left below a lowered limit."""
    lowest = os.open("/dev/null", os.O_RDONLY)
    taken.append(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    while True:
        try:
            taken.append(os.dup(lowest))
        except OSError:
            return


@pytest.mark.parametrize("stops", [False, True])
async def test_waits_for_descriptors(
    door: Door,
    run_dir: Path,
    clients: list[socket.socket],
    few_descriptors: list[int],
    caplog: pytest.LogCaptureFixture,
    stops: bool,
) -> None:
    """Whoever connects while there are none waits, also at a listener that is given up, and is accepted then."""
    listener = door.listeners.listen_unix(run_dir / "s")
    clients += connect(run_dir / "s", 2)
    use_up(few_descriptors)
    stopping = asyncio.create_task(door.listeners.stop(listener)) if stops else None
    async with asyncio.timeout(5):
        while "cannot accept a connection" not in caplog.text:  # noqa: ASYNC110 -- the log is all there is to see
            await asyncio.sleep(0.001)
    assert door.peers == []
    while few_descriptors:
        os.close(few_descriptors.pop())
    await door.accepted(2)
    if stopping is not None:
        await stopping
