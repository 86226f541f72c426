"""Taking addresses and giving them back, while clients keep connecting and processes die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xmlrpc_gateway import sockets
from xmlrpc_gateway.errors import AddressTaken
from xmlrpc_gateway.sockets import Returned


class Daemon:
    """A legacy daemon as far as its address goes: it binds its path over whatever is there, and accepts."""

    def __init__(self, path: Path) -> None:
        self.accepted = 0
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(5)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                connection.close()

    def stop(self) -> None:
        """Ends as killed: the file stays."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def address(run_dir: Path) -> tuple[Path, Path]:
    """A service's path, and the one where its legacy daemon is moved to."""
    return run_dir / "memory", run_dir / "memory.legacy"


@pytest.fixture
def daemon(address: tuple[Path, Path]) -> Iterator[Daemon]:
    """A daemon at the path."""
    daemon = Daemon(address[0])
    yield daemon
    daemon.stop()


def connects(path: Path) -> bool:
    """Whether somebody listens at the path."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_takes_and_gives_back(address: tuple[Path, Path], daemon: Daemon) -> None:
    """Callers of the path reach us, the daemon stays reachable under its other name, and nothing is left behind."""
    path, legacy = address
    path.chmod(0o640)
    inode = path.stat().st_ino
    owned = sockets.take(path, legacy)
    assert sockets.is_ours(owned)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())
    assert connects(path)
    owned.socket.accept()[0].close()
    assert legacy.stat().st_ino == inode
    assert connects(legacy)
    assert sockets.give_back(owned) is Returned.GIVEN_BACK
    assert not sockets.is_ours(owned)
    assert path.stat().st_ino == inode
    assert names(path.parent) == ["memory"]
    owned.socket.close()
    assert connects(path)


def test_nobody_is_refused_while_the_address_changes_hands(address: tuple[Path, Path], daemon: Daemon) -> None:
    """A client that connects without pause through a hundred hand-overs is never refused."""
    path, legacy = address
    refused, made, stop = [], [0], threading.Event()

    def connect_on_and_on() -> None:
        while not stop.is_set():
            if connects(path):
                made[0] += 1
            else:
                refused.append(path)

    clients = [threading.Thread(target=connect_on_and_on) for _ in range(2)]
    for client in clients:
        client.start()
    for _ in range(100):
        owned = sockets.take(path, legacy)
        owned.socket.settimeout(0.001)
        for give_back in (False, True):
            if give_back:
                sockets.give_back(owned)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                while True:
                    owned.socket.accept()[0].close()
                    if not give_back:
                        break
        owned.socket.close()
    stop.set()
    for client in clients:
        client.join()
    assert refused == []
    assert made[0] > 100


def test_takes_an_address_where_nothing_is(address: tuple[Path, Path]) -> None:
    """Without a daemon the path is just ours, and afterwards it is gone."""
    path, legacy = address
    owned = sockets.take(path, legacy)
    assert connects(path)
    assert names(path.parent) == ["memory"]
    assert sockets.give_back(owned) is Returned.REMOVED
    assert names(path.parent) == []
    owned.socket.close()


def test_takes_again_after_its_own_crash(address: tuple[Path, Path], daemon: Daemon) -> None:
    """Our dead socket is replaced, and the daemon behind it is not lost."""
    path, legacy = address
    sockets.take(path, legacy).socket.close()
    (path.parent / "memory.new").touch()
    owned = sockets.take(path, legacy)
    assert connects(legacy)
    assert sockets.give_back(owned) is Returned.GIVEN_BACK
    assert connects(path)
    owned.socket.close()


def test_takes_after_a_crash_between_two_steps(address: tuple[Path, Path], daemon: Daemon) -> None:
    """With the daemon's socket under both names already, the rest is done."""
    path, legacy = address
    legacy.hardlink_to(path)
    owned = sockets.take(path, legacy)
    assert connects(legacy)
    assert sockets.give_back(owned) is Returned.GIVEN_BACK
    assert names(path.parent) == ["memory"]
    owned.socket.close()


def test_notices_a_restarted_daemon(address: tuple[Path, Path], daemon: Daemon) -> None:
    """A daemon that binds over our path is seen, taken again, and left alone when we had not noticed."""
    path, legacy = address
    first = sockets.take(path, legacy)
    daemon.stop()
    restarted = Daemon(path)
    assert not sockets.is_ours(first)
    second = sockets.take(path, legacy)
    first.socket.close()
    assert connects(legacy)
    restarted.stop()
    again = Daemon(path)
    assert sockets.give_back(second) is Returned.LEFT
    second.socket.close()
    assert names(path.parent) == ["memory"]
    assert connects(path)
    again.stop()
    path.unlink()
    assert not sockets.is_ours(second)


def test_does_not_take_from_another_bridge(address: tuple[Path, Path], daemon: Daemon) -> None:
    """Both names served means that somebody took the address before us: the daemon's name must survive."""
    path, legacy = address
    owned = sockets.take(path, legacy)
    with pytest.raises(AddressTaken, match="another bridge"):
        sockets.take(path, legacy)
    assert sockets.is_ours(owned)
    assert connects(legacy)
    assert sockets.give_back(owned) is Returned.GIVEN_BACK
    owned.socket.close()


def test_takes_no_other_file(address: tuple[Path, Path]) -> None:
    """A file that is no socket is refused and left."""
    address[0].write_text("precious")
    with pytest.raises(AddressTaken, match="expected a socket"):
        sockets.take(*address)
    assert address[0].read_text() == "precious"


def test_leaves_nothing_when_it_cannot_listen(address: tuple[Path, Path]) -> None:
    """A path that the system refuses raises OSError."""
    path = address[0].with_name("x" * 120)
    with pytest.raises(OSError, match="too long"):
        sockets.take(path, address[1])
    assert names(path.parent) == []


def test_releases_for_a_killed_process(address: tuple[Path, Path], daemon: Daemon) -> None:
    """After kill -9 of the owner a fresh process gives the address back, once."""
    path, legacy = address
    script = "import sys; from pathlib import Path; from xmlrpc_gateway import sockets\n"
    script += "owned = sockets.take(*map(Path, sys.argv[1:])); print('taken', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(legacy)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"taken\n"
        assert connects(path)
        owner.kill()
    assert not connects(path)
    assert sockets.release(path, legacy) is Returned.GIVEN_BACK
    assert connects(path)
    assert names(path.parent) == ["memory"]
    assert sockets.release(path, legacy) is Returned.NOTHING
    assert connects(path)


def test_releases_what_is_half_done_or_overtaken(address: tuple[Path, Path], daemon: Daemon) -> None:
    """A link that was not followed by a taking, and one that a restarted daemon overtook, are only removed."""
    path, legacy = address
    legacy.hardlink_to(path)
    (path.parent / "memory.new").touch()
    assert sockets.release(path, legacy) is Returned.LEFT
    assert names(path.parent) == ["memory"]
    sockets.take(path, legacy).socket.close()
    daemon.stop()
    restarted = Daemon(path)
    assert sockets.release(path, legacy) is Returned.LEFT
    assert connects(path)
    restarted.stop()


def test_releases_a_path_that_is_gone(address: tuple[Path, Path], daemon: Daemon) -> None:
    """Where the path itself is missing the daemon's socket takes its place."""
    path, legacy = address
    path.rename(legacy)
    assert sockets.release(path, legacy) is Returned.GIVEN_BACK
    assert connects(path)


def test_counts_the_connections_of_a_listener(run_dir: Path) -> None:
    """Connections count while they wait and after they were accepted, by the name of the binding."""
    path = run_dir / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        assert sockets.open_connections(path).total() == 0
        client.connect(str(path))
        path.rename(run_dir / "moved")
        assert sockets.open_connections(path).total() == 1
        accepted, _ = listener.accept()
        assert sockets.open_connections(path).total() == 1
        accepted.close()
        assert sockets.open_connections(path).total() == 0


async def test_connects_when_the_queue_has_room(run_dir: Path) -> None:
    """A connection that is given is a real one, also after waiting at a full queue."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "s"))
        listener.listen(0)
        first = await sockets.connect_unix(str(run_dir / "s"))
        second = asyncio.create_task(sockets.connect_unix(str(run_dir / "s")))
        done, _ = await asyncio.wait([second], timeout=0.02)
        assert not done
        listener.accept()[0].close()
        connected = await second
        connected.send(b"x")
        with listener.accept()[0] as accepted:
            assert accepted.recv(1) == b"x"
        first.close()
        connected.close()
