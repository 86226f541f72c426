"""Restarts that refuse nobody: the listeners wait with the service manager, and so does whoever calls meanwhile.

The manager here does what systemd does: it receives FDSTORE on NOTIFY_SOCKET and starts the bridge again with what it
has. See sd_notify(3) and sd_listen_fds(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import xmlrpc.client
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridges.activation import Activation
from tests.fixtures_host import ROOT

if TYPE_CHECKING:
    from tests.fixtures_host import Host

# Puts the descriptors that it was given (the first argument: how many, then their numbers) to 3 and up, and becomes the
# bridge. Moved out of the way first: they may have such a number already.
STARTER = """
import fcntl, os, sys
count = int(sys.argv[1])
spare = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[2 : 2 + count]]
for place, number in enumerate(spare):
    os.dup2(number, 3 + place)
os.closerange(3 + count, 200)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count :]])
"""


class Manager:
    """systemd as far as one unit with a file descriptor store sees it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.stored: dict[str, int] = {}
        self.told: list[str] = []
        self.address = host.path("notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.address))
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 16)
        lines = dict(line.split("=", 1) for line in message.decode().splitlines())
        self.told += lines
        if "FDSTORE" in lines:
            (self.stored[lines["FDNAME"]],) = descriptors
        if "FDSTOREREMOVE" in lines:
            os.close(self.stored.pop(lines["FDNAME"]))

    async def start(self, **more: socket.socket) -> None:
        """Starts the bridge with what is stored, and with the listeners of .socket units; returns when it is ready."""
        given = self.stored | {name: listener.fileno() for name, listener in more.items()}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": str(self.address),
            "LISTEN_FDS": str(len(given)),
            "LISTEN_FDNAMES": ":".join(given),
        }
        numbers = [str(number) for number in given.values()]
        bridge = ["-m", "bridges", "run", "--settings", str(self.host.settings)]
        self.told.clear()
        with self.host.path("bridge.log").open("ab") as log:
            self.host._processes["bridge"] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", STARTER, str(len(given)), *numbers, *bridge),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=tuple(given.values()),
            )
        await self.host.until(lambda: "READY" in self.told)

    async def after_stop(self) -> None:
        """ExecStopPost of the unit."""
        code, _, errors = await self.host.cli("release")
        assert code == 0, errors

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for number in self.stored.values():
            os.close(number)


@pytest.fixture
async def manager(host: Host) -> AsyncIterator[Manager]:
    """The manager of a host; the bridge does not run yet."""
    manager = Manager(host)
    try:
        yield manager
        if host._processes.get("bridge") is not None:
            await host.end("bridge")
    finally:
        manager.close()


@pytest.fixture
async def in_relay(host: Host, callers: Any, manager: Manager) -> Any:
    """The callers of a host where squeezed is in relay and xenopsd is off."""
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await manager.start()
    await host.stage("squeezed", "relay")
    return callers


@pytest.fixture
async def in_live(host: Host, in_relay: Any) -> Any:
    """The callers of a host where squeezed is live."""
    await host.start_bus_squeezed()
    await host.stage("squeezed", "live")
    return in_relay


class Hammer:
    """Callers of one socket who call again as soon as they have their answer, each over a new connection."""

    def __init__(self, callers: Any, count: int = 8) -> None:
        self._callers = callers
        self._numbers = itertools.count()
        self.outcomes: Counter[str] = Counter()
        self._tasks = [asyncio.create_task(self._call_on_and_on()) for _ in range(count)]

    async def _call_on_and_on(self) -> None:
        while True:
            token = f"hammer{next(self._numbers)}"
            self.outcomes[await outcome(self._callers, token)] += 1

    async def until_more(self, wanted: int) -> None:
        """Waits for some more answers."""
        before = self.outcomes["Success"]
        async with asyncio.timeout(30):
            while self.outcomes["Success"] < before + wanted:  # noqa: ASYNC110 - whoever counts tells nobody
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


async def outcome(callers: Any, token: str) -> str:
    """What came of one call of squeezed: Success, Failure with its text, refused, or cut."""
    body = xmlrpc.client.dumps(("d", token, "1"), "reserve_memory").encode()
    try:
        reply = await callers.post("memory", body)
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused"
    if not reply:
        return "cut"
    (value,), _ = xmlrpc.client.loads(reply.partition(b"\r\n\r\n")[2])
    assert isinstance(value, dict)
    return "Success" if value["Status"] == "Success" else f"Failure {value}"


async def waiting(host: Host, callers: Any, *tokens: str) -> list[asyncio.Task[str]]:
    """Calls that have connected, and that nobody answers yet."""
    calls = [asyncio.create_task(outcome(callers, token)) for token in tokens]
    done, _ = await asyncio.wait(calls, timeout=0.2)  # nobody tells that nothing comes
    assert not done, [task.result() for task in done]
    return calls


async def test_killed_in_live(host: Host, manager: Manager, in_live: Any) -> None:
    """Nobody is refused at any moment; who calls while no bridge runs is answered by the next one, executed once."""
    assert len(manager.stored) == 1
    kept = manager.stored.copy()
    inode = host.path("memory").stat().st_ino
    hammer = Hammer(in_live)
    try:
        for life in range(2):
            await hammer.until_more(50)
            await host.end("bridge", signal.SIGKILL)
            await manager.after_stop()
            calls = await waiting(host, in_live, *(f"down{life}-{number}" for number in range(30)))
            await manager.start()
            assert set(await asyncio.gather(*calls)) == {"Success"}
            await hammer.until_more(50)
    finally:
        await hammer.stop()
    assert hammer.outcomes["refused"] == 0
    # What was in its hands when it was killed: one of each caller, at most, in each life.
    assert hammer.outcomes["cut"] <= 16
    assert set(hammer.outcomes) <= {"Success", "cut", "refused"}
    assert set(host.executions().values()) == {1}
    assert manager.stored == kept
    assert host.path("memory").stat().st_ino == inode
    assert "inherited listener" not in host.log("bridge")


async def test_restarted_in_live(host: Host, manager: Manager, in_live: Any) -> None:
    """An orderly restart loses no call either: each is answered by the old bridge or by the new one."""
    hammer = Hammer(in_live)
    try:
        for _ in range(2):
            await hammer.until_more(50)
            assert await host.end("bridge") == 0
            await manager.after_stop()
            calls = await waiting(host, in_live, "between")
            await manager.start()
            await asyncio.gather(*calls)
            await hammer.until_more(50)
    finally:
        await hammer.stop()
    assert set(hammer.outcomes) == {"Success"}, hammer.outcomes
    assert "are refused" not in host.log("bridge")


async def test_killed_in_relay(host: Host, manager: Manager, in_relay: Any) -> None:
    """`release` gives the path to the legacy daemon; those who had connected before are answered by the next bridge."""
    kept = manager.stored.copy()
    assert len(kept) == 1
    await host.end("bridge", signal.SIGKILL)
    calls = await waiting(host, in_relay, "before-release")
    await manager.after_stop()
    assert await outcome(in_relay, "direct") == "Success"
    await manager.start()
    assert await asyncio.gather(*calls) == ["Success"]
    assert "those who wait at an earlier listener are served" in host.log("bridge")
    assert await outcome(in_relay, "after") == "Success"
    assert host.path("memory.legacy").exists()
    assert len(manager.stored) == 1
    assert manager.stored.keys() != kept.keys()
    assert set(host.executions().values()) == {1}


async def test_killed_in_relay_without_release(host: Host, manager: Manager, in_relay: Any) -> None:
    """The path is our listener's still: the next bridge goes on with it, and the legacy daemon stays behind it."""
    kept = manager.stored.copy()
    await host.end("bridge", signal.SIGKILL)
    calls = await waiting(host, in_relay, "waiting")
    await manager.start()
    assert await asyncio.gather(*calls) == ["Success"]
    assert manager.stored == kept
    assert await host.alarms() == {}
    assert host.sides() == {"legacy": 1}


async def test_what_is_given_back_is_not_kept(host: Host, manager: Manager, in_relay: Any) -> None:
    """A stop in relay and a move to off end the listener's storage."""
    assert await host.end("bridge") == 0
    assert manager.stored == {}
    assert await outcome(in_relay, "direct") == "Success"
    await manager.start()
    assert len(manager.stored) == 1
    await host.stage("squeezed", "off")
    await host.until(lambda: manager.stored == {})


async def test_the_daemon_binds_its_path_again(host: Host, manager: Manager, in_relay: Any) -> None:
    """The listener that lost its path is kept no more, the one that took it again is."""
    before = len(manager.told)
    await host.end_legacy("squeezed")
    await host.start_legacy("squeezed")
    # Not by their names: the new listener's file may get the inode of the one that was let go.
    await host.until(lambda: "FDSTORE" in manager.told[before:])
    assert [line for line in manager.told[before:] if line.startswith("FDSTORE")] == ["FDSTOREREMOVE", "FDSTORE"]
    assert len(manager.stored) == 1
    assert await outcome(in_relay, "after") == "Success"


async def test_a_listener_that_nobody_names(host: Host, manager: Manager) -> None:
    """It is closed, a line says so, and it is stored no more; the descriptors are not left to a legacy daemon."""
    path = host.path("strange")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connected:
        listener.bind(str(path))
        listener.listen()
        manager.stored["strange"] = os.dup(listener.fileno())
        await manager.start(connected=connected)
    assert "strange" not in manager.stored
    log = host.log("bridge")
    assert f"inherited listener 'strange' at {path}: the bridge does not serve that path now: closed" in log
    assert "inherited socket 'connected' (4) is no Unix stream listener: closed" in log
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(path))


async def test_the_listener_of_a_socket_unit(host: Host, manager: Manager, in_live: Any) -> None:
    """Bound at the path by systemd itself: it is served, and not stored twice."""
    await host.end("bridge", signal.SIGKILL)
    os.close(manager.stored.popitem()[1])
    path = host.path("memory")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        inode = path.stat().st_ino
        calls = await waiting(host, in_live, "waiting")
        await manager.start(memory=listener)
        assert await asyncio.gather(*calls) == ["Success"]
    assert path.stat().st_ino == inode
    assert manager.stored == {}


def test_descriptors_of_another_process(tmp_path: Path) -> None:
    """LISTEN_PID names somebody else: nothing is taken, and nothing is handed on."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        environment = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "HOME": "/"}
        activation = Activation.from_environment(environment)
        assert environment == {"HOME": "/"}
        assert activation.claim(tmp_path / "memory") is None
        assert activation.leftovers(tmp_path / "memory") == []
        activation.close_rest()
        assert listener.fileno() >= 0
