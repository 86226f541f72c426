"""Who is connected to a socket of another process, seen from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from xmlrpc_gateway import callers as module
from xmlrpc_gateway import sockets
from xmlrpc_gateway.callers import Callers, Connection

CLIENT = """
import socket, sys
connections = []
for line in sys.stdin:
    if line == "open\\n":
        connections.append(socket.socket(socket.AF_UNIX))
        connections[-1].connect(sys.argv[1])
    else:
        connections.pop(0).close()
    print("done", flush=True)
"""


class Client:
    """Another process that opens connections and closes them, oldest first."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.command = Path(f"/proc/{self.pid}/comm").read_text().strip()

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        self._process.communicate(timeout=20)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(50)
        listener.settimeout(20)
        yield listener


@pytest.fixture
def client(run_dir: Path) -> Iterator[Callable[[], Client]]:
    """Starts clients of the socket `memory`."""
    clients: list[Client] = []

    def start() -> Client:
        clients.append(Client(run_dir / "memory"))
        return clients[-1]

    yield start
    for each in clients:
        each.end()


def test_connections_and_their_processes(run_dir: Path, client: Callable[[], Client]) -> None:
    """Each accepted connection of other processes with pid and name, until it is closed; nobody else's socket."""
    path = run_dir / "memory"
    with listening(path) as listener, listening(run_dir / "other"), ExitStack() as accepted:
        callers = Callers(path)
        assert callers.connections() == []
        first, second = client(), client()
        first.tell("open")
        assert callers.connections() == []  # waits to be accepted
        daemon_ends = []
        for who in (first, second, second):
            if who is second:
                who.tell("open")
            connection, _ = listener.accept()
            accepted.enter_context(connection)
            daemon_ends.append(connection)
        found = {connection.inode: connection for connection in callers.connections()}
        inodes = [os.fstat(connection.fileno()).st_ino for connection in daemon_ends]
        assert sorted(found) == sorted(inodes)
        assert [found[inode].pid for inode in inodes] == [first.pid, second.pid, second.pid]
        assert {found[inode].command for inode in inodes} == {first.command}
        assert [found[inode].peer_inode for inode in inodes] == [sockets.peer_inode(each) for each in daemon_ends]
        first.tell("close")
        daemon_ends[0].close()
        assert {connection.inode for connection in callers.connections()} == set(inodes[1:])


def test_processes_are_looked_through_seldom(
    run_dir: Path, client: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second connection of a known process is found at once; an unknown one waits for the next full look."""
    monkeypatch.setattr(module, "SCAN_PAUSE", 3600.0)
    path = run_dir / "memory"
    with listening(path) as listener, ExitStack() as accepted:

        def pids() -> list[int | None]:
            accepted.enter_context(listener.accept()[0])
            return sorted((each.pid for each in callers.connections()), key=lambda pid: pid or 0)

        callers = Callers(path)
        known, unknown = client(), client()
        known.tell("open")
        assert pids() == [known.pid]
        known.tell("open")
        assert pids() == [known.pid, known.pid]
        unknown.tell("open")
        assert pids() == [None, known.pid, known.pid]
        callers._scan_at = 0.0
        assert None not in {each.pid for each in callers.connections()}


def test_a_daemon_that_bound_another_name_of_the_directory(run_dir: Path, client: Callable[[], Client]) -> None:
    """As /var/run/NAME for /run/NAME; a socket of the same name elsewhere is another one."""
    (run_dir / "real").mkdir()
    (run_dir / "link").symlink_to("real")
    (run_dir / "memory").symlink_to("real/memory")
    with listening(run_dir / "link" / "memory") as listener:
        who = client()
        who.tell("open")
        with listener.accept()[0]:
            assert [each.pid for each in Callers(run_dir / "real" / "memory").connections()] == [who.pid]
            (run_dir / "elsewhere").mkdir()
            assert Callers(run_dir / "elsewhere" / "memory").connections() == []


def test_a_caller_that_has_ended_has_no_process(run_dir: Path, client: Callable[[], Client]) -> None:
    """Its connection is seen as long as the daemon keeps it; the peer and the process are not known."""
    path = run_dir / "memory"
    with listening(path) as listener:
        who = client()
        who.tell("open")
        with listener.accept()[0] as connection:
            who.end()
            inode = os.fstat(connection.fileno()).st_ino
            found = Callers(path).connections()
        assert found == [Connection(inode, None, None, "")]
