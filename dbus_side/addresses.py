"""Bus addresses: `unix:path=/run/xcp/bus`, `unix:abstract=NAME`, `tcp:host=HOST,port=N`, several parted by `;`.

Source: the D-Bus specification, "Server Addresses". Unknown options (`guid`, `family`) are left aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from dbus_side.errors import NameInvalid

_UNIX_LONGEST: Final = 107  # sun_path without its last NUL


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket; an abstract one starts with NUL, as the socket call wants it."""

    path: str


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP listener."""

    host: str
    port: int


def parse(text: str) -> tuple[UnixAddress | TcpAddress, ...]:
    """The addresses in the order in which they are to be tried. Raises NameInvalid naming the part."""
    found = tuple(_one(part) for part in text.split(";") if part)
    if not found:
        raise NameInvalid("bus address", text)
    return found


def _one(part: str) -> UnixAddress | TcpAddress:
    transport, _, rest = part.partition(":")
    options = {key: unquote(value) for key, _, value in (pair.partition("=") for pair in rest.split(",") if pair)}
    if transport == "unix":
        path = options.get("path") or ("\0" + options["abstract"] if options.get("abstract") else "")
        if path and "\0" not in path[1:] and len(path.encode(errors="replace")) <= _UNIX_LONGEST:
            return UnixAddress(path)
    elif transport == "tcp" and options.get("host") and options.get("port", "").isdecimal():
        return TcpAddress(options["host"], int(options["port"]))
    raise NameInvalid("bus address", part)
