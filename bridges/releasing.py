"""`xcp-bridge release`: what a bridge that was killed left behind is given back to the legacy daemons."""

from __future__ import annotations

from bridges import rivals
from bridges.legacy_daemon import LegacyDaemon
from bridges.processes import ProcessError, is_alive
from bridges.settings import ServiceSettings, Settings
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import XenstoreError
from xmlrpc_gateway import sockets
from xmlrpc_gateway.errors import AddressTaken


class StillRunning(Exception):
    """A bridge answers on the control socket: it holds its addresses itself."""


async def release(settings: Settings) -> dict[str, str]:
    """Gives back every socket path and pid node, and lets a legacy daemon that a take-over had frozen run on.

    Returns what was done, by place. One service's trouble is said in its place and does not keep the others.
    """
    if rivals.listener(settings.control_socket) is not None:
        raise StillRunning(f"a bridge answers at {settings.control_socket}: stop it first")
    done: dict[str, str] = {}
    for service in settings.services.values():
        for door in filter(None, (service.http, service.framed)):
            try:
                done[str(door.socket)] = str(sockets.release(door.socket, door.legacy))
            except (OSError, AddressTaken) as error:
                done[str(door.socket)] = f"could not be given back: {error}"
        try:
            pid = await LegacyDaemon(service.name, service.legacy).thaw()
            if pid is not None:
                done[f"{service.name} legacy daemon"] = f"runs (pid {pid})"
                await _register(settings, service, pid, done)
        except (ProcessError, XenstoreError) as error:
            done[f"{service.name} legacy daemon"] = f"could not be looked after: {error}"
    return done


async def _register(settings: Settings, service: ServiceSettings, pid: int, done: dict[str, str]) -> None:
    """The daemon's pid in place of that of a bridge which was killed in a move. Raises XenstoreError."""
    if service.xenstore is None:
        return
    node = f"/{service.xenstore}/pid"
    store = Store(settings.xenstore_socket)
    await store.connect()
    try:
        if not is_alive(int(await store.read(node))):
            await store.write(node, b"%d" % pid)
            done[node] = f"is {pid} again"
    except ValueError:
        done[node] = "holds no number: restart the legacy daemon"
    finally:
        await store.close()
