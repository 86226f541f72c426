"""Who is connected to a Unix socket that is not ours: by looking, now and then.

Not a byte of what is said there is seen. A connection that comes and goes between two looks is missed, and so is one
that its daemon has not accepted. Whoever has ended before we looked for it has no process here, nor has a process of
another PID namespace.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from xmlrpc_gateway.sockets import peer_of

REMEMBERED_PROCESSES: Final = 8
"""Callers of before, which are looked at first: mostly it is one of them again."""

SCAN_PAUSE: Final = 1.0
SCAN_SHARE: Final = 100
"""All processes are looked through once in SCAN_PAUSE seconds, and for a hundredth of the time, at most."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that the daemon has accepted: its socket's inode, that of the other end, and whose that is.

    `peer_inode` and `pid` are None where they are not known, `command` is then empty. It is the program's short name:
    arguments may hold passwords.
    """

    inode: int
    peer_inode: int | None
    pid: int | None
    command: str


class Callers:
    """Those who are connected to the socket that a daemon has bound at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Source: unix(7), /proc/net/unix: state 03 is connected; accepted sockets have the name that was bound.
        self._row = re.compile(rb" 03 +(\d+) (/[^\n]*)" + re.escape(b"/" + os.fsencode(path.name)) + rb"\n")
        self._known: dict[int, Connection] = {}
        self._processes: dict[int, None] = {}
        self._scan_at = 0.0

    def connections(self) -> list[Connection]:
        """The connections of now. Reads /proc, which takes a while: for a thread of its own. Not at the same time."""
        self._known = {inode: self._known.get(inode) or _connection(inode) for inode in self._inodes()}
        wanted = {each.peer_inode: each for each in self._known.values() if each.pid is None}
        for peer, pid in self._owners({peer for peer in wanted if peer is not None}):
            found = wanted[peer]
            self._known[found.inode] = replace(found, pid=pid, command=command_of(pid))
            self._remember(pid)
        return list(self._known.values())

    def _inodes(self) -> list[int]:
        rows = self._row.findall(Path("/proc/net/unix").read_bytes())
        # A daemon may have bound /var/run/NAME where we say /run/NAME.
        directory = self.path.parent.resolve()
        ours = {parent for parent in {parent for _, parent in rows} if Path(os.fsdecode(parent)).resolve() == directory}
        return [int(inode) for inode, parent in rows if parent in ours]

    def _owners(self, wanted: set[int]) -> Iterator[tuple[int, int]]:
        """Socket inode and process, of those that are found."""
        yield from _held(self._processes.copy(), wanted)
        began = time.monotonic()
        if wanted and began >= self._scan_at:
            yield from _held((int(entry) for entry in os.listdir("/proc") if entry.isdecimal()), wanted)  # noqa: PTH208
            now = time.monotonic()
            self._scan_at = now + max(SCAN_PAUSE, SCAN_SHARE * (now - began))

    def _remember(self, pid: int) -> None:
        self._processes.pop(pid, None)
        self._processes[pid] = None
        if len(self._processes) > REMEMBERED_PROCESSES:
            del self._processes[next(iter(self._processes))]


def _connection(inode: int) -> Connection:
    return Connection(inode, peer_of(inode), None, "")


def _held(processes: Iterable[int], wanted: set[int]) -> Iterator[tuple[int, int]]:
    """Which of the wanted socket inodes each process has open; those are taken out of `wanted`."""
    for pid in processes:
        if not wanted:
            return
        with suppress(OSError):  # it has ended, or is not ours to look at
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    target = os.readlink(descriptor.path)  # noqa: PTH115 - of thousands, without an object for each
                    inode = int(target[8:-1]) if target.startswith("socket:[") else 0
                    if inode in wanted:
                        wanted.discard(inode)
                        yield inode, pid


def command_of(pid: int) -> str:
    """The short name of a process's program; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").rstrip("\n")
    except OSError:
        return ""
