"""`xcp-bridge release`: what a bridge that was killed left behind is given back to the legacy daemons."""

from __future__ import annotations

import os
import signal
import socket

from bridges.settings import LegacyCommands, Settings
from xmlrpc_gateway import sockets


class StillRunning(Exception):
    """A bridge answers on the control socket: it holds its addresses itself."""


def release(settings: Settings) -> dict[str, str]:
    """Gives back every socket path, and lets a legacy daemon that a take-over had frozen run on.

    Returns what was done, by place.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(settings.control_socket))
        except OSError:
            pass
        else:
            raise StillRunning(f"a bridge answers at {settings.control_socket}: stop it first")
    done: dict[str, str] = {}
    for service in settings.services.values():
        if service.http is not None:
            done[str(service.http.socket)] = str(sockets.release(service.http.socket, service.http.legacy))
        if isinstance(service.legacy, LegacyCommands) and (pid := _pid(service.legacy)) is not None:
            os.kill(pid, signal.SIGCONT)
            done[f"{service.name} legacy daemon"] = f"runs (pid {pid})"
    return done


def _pid(legacy: LegacyCommands) -> int | None:
    try:
        pid = int(legacy.pidfile.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid
