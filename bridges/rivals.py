"""Another bridge on the same host, started by mistake: who it is, so that ours can name it and refuse to start."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.messages import NameOutcome
from xmlrpc_gateway.sockets import process_of

_LOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_DRIVER_SECONDS: Final = 5.0


def advice(pid: int | None) -> str:
    """What to do about a bridge that runs already; None: its process is not known."""
    named = "" if pid is None else f" (process {pid})"
    return f"a host has one bridge: end the other{named} first, with `systemctl stop xcp-bridge` or kill"


def holder(path: Path) -> int | None:
    """The process that has locked a file; None when nobody has, or there is no file."""
    try:
        with path.open("rb") as file:
            found = fcntl.fcntl(file, fcntl.F_GETLK, _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return None
    kind, _, _, _, pid = _LOCK.unpack(found)
    return None if kind == fcntl.F_UNLCK else int(pid)


def listener(path: Path) -> int | None:
    """The process that answers at a socket; None when nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None
        return process_of(probe)


async def claim(bus: Bus, name: str) -> str | None:
    """Owns a name of ours. None when it is ours, else a sentence on who has it. Raises BusError."""
    if await bus.request_name(name) in (NameOutcome.OWNER, NameOutcome.ALREADY_OWNER):
        return None
    try:
        pid: int | None = await bus.process_of(name, timeout=_DRIVER_SECONDS)
    except BusRefused:
        pid = None
    return f"{name} is owned by another bridge: {advice(pid)}"
