"""Owning a Unix socket's address without a moment in which nobody listens there, and connecting to short queues.

To take PATH from a daemon: listen at PATH.new, hard-link PATH to LEGACY, rename PATH.new to PATH. The daemon keeps its
socket under the name LEGACY. To give it back: rename LEGACY to PATH. Each step is atomic, and after a crash between any
two of them `take` or `release` finds out from the file system what remains to be done. A listener that was handed over
by the process that had bound it is adopted, if PATH is its file still.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from xmlrpc_gateway.errors import AddressTaken

_QUEUE: Final = 1024  # as many as xapi lets wait; xcp-idl services listen with 5
_FIRST_DELAY: Final = 0.001
_LONGEST_DELAY: Final = 0.05
_REMEMBERED: Final = 1024
# linux/netlink.h, sock_diag.h, unix_diag.h: nlmsghdr and unix_diag_req; what precedes the attributes of a reply.
_DIAG: Final = struct.Struct("=IHHII BBHIIIII")
_DIAG_REPLY: Final = 32
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = 1
_ANY_STATE: Final = 0xFFFFFFFF
_ANY_COOKIE: Final = 0xFFFFFFFF
_SHOW_FILE: Final = 2
_SHOW_PEER: Final = 4
_UNIX_DIAG_VFS: Final = 1
_UNIX_DIAG_PEER: Final = 2
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred


@dataclass(frozen=True, slots=True)
class OwnedSocket:
    """A listening socket of ours and where its file stands. `device` and `inode` are the file's when it was bound.

    They cannot be asked of the socket: its descriptor has an inode of its own.
    """

    path: Path
    legacy_path: Path
    socket: socket.socket
    device: int
    inode: int


class Returned(StrEnum):
    """What was done to an address that is not ours any more."""

    GIVEN_BACK = "given back"  # the legacy daemon's socket is at PATH again
    REMOVED = "removed"  # PATH was ours and no daemon stood behind it
    LEFT = "left alone"  # somebody else serves PATH already; a stale LEGACY is gone
    NOTHING = "nothing to do"


def take(path: Path, legacy_path: Path) -> OwnedSocket:
    """Listens at `path`; a daemon that listens there stays reachable at `legacy_path`.

    A socket at `path` that nobody serves, left by a crash of ours or of the daemon, is replaced. Raises AddressTaken
    when another bridge serves it or both paths are served, OSError for what the file system refuses.
    """
    found = _socket_status(path)
    # The same file under both names: an earlier `take` ended after its first step.
    if found is not None and not _same(path, legacy_path) and is_served(path):
        bridge = _bridge_at(path)
        if bridge is None:
            if is_served(legacy_path):
                raise AddressTaken(f"{path} and {legacy_path} are both served: another bridge is at work")
            _link(path, legacy_path)
        else:
            _refuse_if_alive(bridge, path)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(new))
        if found is not None:
            new.chmod(stat.S_IMODE(found.st_mode))
            os.chown(new, found.st_uid, found.st_gid)
        listener.listen(_QUEUE)
        listener.settimeout(0)
        bound = new.stat()
        new.rename(path)
    except BaseException:
        listener.close()
        new.unlink(missing_ok=True)
        raise
    return OwnedSocket(path, legacy_path, listener, bound.st_dev, bound.st_ino)


def adopt(listener: socket.socket, path: Path, legacy_path: Path) -> OwnedSocket:
    """Goes on with a listener whose file is at `path` (see `stands_at`), and with those who wait in its queue.

    Raises FileNotFoundError when the file has gone since.
    """
    listener.settimeout(0)
    listener.listen(_QUEUE)  # again, so that whoever asks who serves the path (SO_PEERCRED) is told of us
    bound = path.lstat()
    return OwnedSocket(path, legacy_path, listener, bound.st_dev, bound.st_ino)


def is_named_for(listener: socket.socket, path: Path) -> bool:
    """Whether a listener was bound at `path` by somebody, or by `take`, wherever its file is now."""
    return listener.getsockname() in (str(path), f"{path}.new")


def stands_at(listener: socket.socket, path: Path) -> bool:
    """Whether the file at `path` is the one that a listener was bound to; False where the kernel does not say.

    As long as the socket lives no other file of its file system gets that inode. The kernel's device is not compared:
    on some file systems stat(2) gives another. Source: sock_diag(7), UNIX_DIAG_VFS: the low 32 bits of the inode.
    """
    found = _diagnosis(listener, _SHOW_FILE, _UNIX_DIAG_VFS)
    if found is None or not is_named_for(listener, path):
        return False
    try:
        return path.lstat().st_ino & 0xFFFFFFFF == int(struct.unpack_from("=I", found)[0])
    except FileNotFoundError:
        return False


def is_ours(owned: OwnedSocket) -> bool:
    """Whether the file at its path is still the socket that we bound; a restarted daemon binds over it."""
    try:
        found = owned.path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (owned.device, owned.inode)


def is_served(path: Path) -> bool:
    """Whether somebody listens there. A full queue counts: it has an owner."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def give_back(owned: OwnedSocket) -> Returned:
    """Puts the daemon's socket back. Ours goes on listening to those already in its queue; its owner closes it."""
    if not is_ours(owned):
        owned.legacy_path.unlink(missing_ok=True)
        return Returned.LEFT
    try:
        owned.legacy_path.rename(owned.path)
    except FileNotFoundError:
        owned.path.unlink()
        return Returned.REMOVED
    return Returned.GIVEN_BACK


def release(path: Path, legacy_path: Path) -> Returned:
    """Gives an address back on behalf of a process that ended without doing so.

    Raises AddressTaken when a bridge that lives serves the path, OSError for what the file system refuses.
    """
    refuse_another_bridge(path)
    path.with_name(f"{path.name}.new").unlink(missing_ok=True)
    if _socket_status(legacy_path) is None:
        return Returned.NOTHING
    if _same(path, legacy_path) or (is_served(path) and not is_served(legacy_path)):
        # Never taken, or the daemon was restarted meanwhile and bound its path itself.
        legacy_path.unlink()
        return Returned.LEFT
    legacy_path.rename(path)
    return Returned.GIVEN_BACK


def refuse_another_bridge(path: Path) -> None:
    """Raises AddressTaken when `path` is served by a bridge that lives."""
    bridge = _bridge_at(path)
    if bridge is not None:
        _refuse_if_alive(bridge, path)


def open_connections(path: Path) -> Counter[int]:
    """The connections of the listener that was bound at `path`, by inode; those that it has not accepted yet are 0.

    The kernel keeps the name of the binding whatever the file is called now: our own listener, bound at PATH.new, is
    told apart from the daemon's. Source: unix(7), /proc/net/unix; states 02 (waiting to be accepted), 03 (connected).
    """
    return Counter(inode for inode, state, name in _unix_sockets() if name == str(path) and state in ("02", "03"))


def leave_behind(connection: socket.socket, left: set[int]) -> None:
    """Notes the other end of a connection that we are about to close before its daemon has answered.

    A daemon that waits for news notices that only when it has some. `left` keeps the inodes of such ends as long as the
    kernel has them.
    """
    if (inode := peer_inode(connection)) is not None:
        left.intersection_update({inode for inode, _, _ in _unix_sockets()} if len(left) >= _REMEMBERED else left)
        left.add(inode)


def _unix_sockets() -> Iterator[tuple[int, str, str]]:
    """Inode, state and name of every Unix socket that has a name."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        row = line.split(maxsplit=7)
        if len(row) == 8:
            yield int(row[6]), row[5], row[7]


def peer_inode(connection: socket.socket) -> int | None:
    """The inode of the socket at the other end of a Unix connection; None where the kernel does not say."""
    found = _diagnosis(connection, _SHOW_PEER, _UNIX_DIAG_PEER)
    return _number(found)


def peer_of(inode: int) -> int | None:
    """As peer_inode, of a Unix socket that need not be ours."""
    return _number(_attribute(inode, _SHOW_PEER, _UNIX_DIAG_PEER))


def _number(attribute: bytes | None) -> int | None:
    return None if attribute is None else int(struct.unpack_from("=I", attribute)[0]) or None


def _diagnosis(asked: socket.socket, show: int, wanted: int) -> bytes | None:
    """One attribute of a Unix socket of ours, as the kernel tells it; None where it does not."""
    if asked.family != socket.AF_UNIX:
        return None
    return _attribute(os.fstat(asked.fileno()).st_ino, show, wanted)


def _attribute(inode: int, show: int, wanted: int) -> bytes | None:
    """Source: sock_diag(7): one message of AF_UNIX by inode, answered with the attributes that `show` names."""
    request = _DIAG.pack(
        _DIAG.size, _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0,
        socket.AF_UNIX, 0, 0, _ANY_STATE, inode, show, _ANY_COOKIE, _ANY_COOKIE,
    )  # fmt: skip
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.send(request)
            reply = kernel.recv(4096)
    except OSError:
        return None
    if struct.unpack_from("=H", reply, 4)[0] != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _DIAG_REPLY
    while at + 4 <= len(reply):
        length, kind = struct.unpack_from("=HH", reply, at)
        if kind == wanted:
            return reply[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return None


def process_of(connection: socket.socket) -> int:
    """The process at the other end of a Unix connection; of one that we made, the process that called listen(2)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


async def connect_unix(path: str) -> socket.socket:
    """A connected non-blocking stream socket; waits while the listener's queue is full. Raises OSError.

    On Unix sockets a full queue is EAGAIN, which is not "in progress": asyncio's own connect takes it for success
    (measured with 3.11: 34 of 40 such connections were none). How long to wait is for the caller to limit.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(0)
        delay = _FIRST_DELAY
        while True:
            try:
                connection.connect(path)
            except BlockingIOError:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _socket_status(path: Path) -> os.stat_result | None:
    """The status of the socket at `path`, through symbolic links; None if there is nothing. Raises AddressTaken."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        raise AddressTaken(f"{path}: expected a socket, got a file of another kind")
    return found


def _bridge_at(path: Path) -> int | None:
    """The process that listens at `path` if it took the path as we do: its listener has the name PATH.new.

    It may have ended: the service manager keeps its listener for the next one.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        # Not the whole name: the other may know the directory by another one.
        if Path(os.fsdecode(probe.getpeername())).name != f"{path.name}.new":
            return None
        return process_of(probe)


def _refuse_if_alive(bridge: int, path: Path) -> None:
    if Path(f"/proc/{bridge}").exists():
        raise AddressTaken(f"{path} is served by another bridge (process {bridge}): end one of the two")


def _same(path: Path, legacy_path: Path) -> bool:
    """Whether both are names of one file. Renaming one to the other would then do nothing."""
    try:
        return path.samefile(legacy_path)
    except FileNotFoundError:
        return False


def _link(path: Path, legacy_path: Path) -> None:
    """Makes `legacy_path` another name of `path`, in one step even where a stale socket has that name."""
    spare = legacy_path.with_name(f"{legacy_path.name}.new")
    spare.unlink(missing_ok=True)
    spare.hardlink_to(path)
    spare.rename(legacy_path)
