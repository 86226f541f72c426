"""What systemd keeps for us: our listeners, so that whoever calls while no bridge runs waits instead of being refused.

A listener at a service's path is put into the file descriptor store of our unit (sd_notify(3), FDSTORE) and comes back
at the next start with those who wait in its queue (sd_listen_fds(3)), as the listeners of a .socket unit do. One that
stands at its path still is gone on with; of one that does not, those who had reached it are answered and it is closed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from xmlrpc_gateway import sockets
from xmlrpc_gateway.sockets import OwnedSocket

LOG: Final = logging.getLogger("bridges.activation")

_FIRST_DESCRIPTOR: Final = 3


class Inherited(NamedTuple):
    """A listener that we were started with, and the name under which it is stored (FDNAME)."""

    name: str
    listener: socket.socket


class Activation:
    """The service manager's part. Without one, which is `Activation()`, nothing is inherited and nothing is kept."""

    def __init__(self, inherited: Sequence[Inherited] = (), manager: str | None = None) -> None:
        self._inherited = list(inherited)
        self._manager = manager

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Activation:
        """What LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES and NOTIFY_SOCKET say; the first three are taken out of it."""
        pid, count, names = (environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
        inherited = []
        if pid == str(os.getpid()) and count.isdecimal():
            given = names.split(":")
            for number in range(int(count)):
                name = given[number] if number < len(given) else ""
                if (found := _listener(_FIRST_DESCRIPTOR + number, name)) is not None:
                    inherited.append(found)
        return cls(inherited, environment.get("NOTIFY_SOCKET"))

    def notify(self, state: str, *descriptors: int) -> bool:
        """Tells systemd (sd_notify(3)); whether it was told."""
        if not self._manager:
            return False
        address = "\0" + self._manager[1:] if self._manager.startswith("@") else self._manager
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            try:
                connection.connect(address)
                socket.send_fds(connection, [state.encode()], descriptors)
            except OSError as error:
                LOG.warning("NOTIFY_SOCKET: %s", error)
                return False
        return True

    def claim(self, path: Path) -> socket.socket | None:
        """The inherited listener that stands at `path` still, once."""
        for found in self._inherited:
            if sockets.stands_at(found.listener, path):
                self._inherited.remove(found)
                return found.listener
        return None

    def holds(self, path: Path) -> bool:
        """Whether an inherited listener stands at `path`."""
        return any(sockets.stands_at(each.listener, path) for each in self._inherited)

    def leftovers(self, path: Path) -> list[socket.socket]:
        """The inherited listeners that were bound for `path`, which is somebody else's by now; no longer stored."""
        found = [each for each in self._inherited if sockets.is_named_for(each.listener, path)]
        for each in found:
            self._inherited.remove(each)
            self._remove(each.name)
        return [each.listener for each in found]

    def keep(self, owned: OwnedSocket) -> bool:
        """Has the listener outlive us, until `forget`; whether it will."""
        return self.notify(f"FDSTORE=1\nFDNAME={_name(owned)}", owned.socket.fileno())

    def forget(self, owned: OwnedSocket) -> None:
        """The listener's path was given back or lost: nobody goes on with it."""
        self._remove(_name(owned))

    def close_rest(self) -> None:
        """Closes what nobody claimed; whoever waits there is refused."""
        for each in self._inherited:
            LOG.warning(
                "inherited listener %r at %s: the bridge does not serve that path now: closed",
                each.name,
                each.listener.getsockname(),
            )
            each.listener.close()
            self._remove(each.name)
        self._inherited.clear()

    def _remove(self, name: str) -> None:
        self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _name(owned: OwnedSocket) -> str:
    """No other file has it as long as the listener lives; without the colon, which FDNAME may not have."""
    return f"{owned.device}-{owned.inode}"


def _listener(descriptor: int, name: str) -> Inherited | None:
    """The Unix stream listener at a descriptor that was handed to us; anything else is closed."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        LOG.warning("inherited descriptor %r (%d) is no socket: %s", name, descriptor, error)
        return None
    found.set_inheritable(False)
    if (found.family, found.type) == (socket.AF_UNIX, socket.SOCK_STREAM) and found.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        return Inherited(name, found)
    LOG.warning("inherited socket %r (%d) is no Unix stream listener: closed", name, descriptor)
    found.close()
    return None
