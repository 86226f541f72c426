"""Other tools' files as records: what kinds there are, and how one is told by its first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bridges.capture import import_access_log, import_dbus, import_exchanges
from bridges.capture.import_access_log import access_log
from bridges.capture.import_dbus import dbus_capture
from bridges.capture.import_exchanges import exchanges
from bridges.capture.imports import Imported
from bridges.capture.store import CaptureError

__all__ = ["ACCESS_LOG", "DBUS", "EXCHANGES", "Imported", "access_log", "dbus_capture", "exchanges", "kind_of"]

ACCESS_LOG: Final = import_access_log.SOURCE
DBUS: Final = import_dbus.SOURCE
EXCHANGES: Final = import_exchanges.SOURCE

_FIRST: Final = {
    b"\xd4\xc3\xb2\xa1": DBUS,
    b"\xa1\xb2\xc3\xd4": DBUS,
    b"\x4d\x3c\xb2\xa1": DBUS,
    b"\xa1\xb2\x3c\x4d": DBUS,
    b"\x0a\x0d\x0d\x0a": DBUS,
    b"\x1f\x8b": ACCESS_LOG,
    b"[": ACCESS_LOG,
    b"{": EXCHANGES,
}


def kind_of(path: Path) -> str:
    """Which kind of file it is. Raises CaptureError, OSError."""
    with path.open("rb") as stream:
        first = stream.read(8)
    if not first:
        raise CaptureError(f"{path}: the file is empty", 3)
    for magic, kind in _FIRST.items():
        if first.startswith(magic):
            return kind
    known = "an access log of oxenstored, a pcap or pcapng file of bus messages, or recorded exchanges (JSON Lines)"
    raise CaptureError(f"{path}: expected {known}; it begins with {first!r}")
