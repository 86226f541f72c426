"""The closed list of ways in which a call can fail, and what each is called on the bus.

DECLARED            a constructor of the service's own error type, with typed arguments
UNDECLARED          an error of the service that is not written down: its code and native arguments, kept
UNKNOWN_METHOD      the service has no such method; each dialect has its own look for it
INVALID_ARGUMENT    an argument is missing, mistyped or out of range; nothing was executed
UNAVAILABLE         the authority cannot be reached; nothing was executed
BUSY                a bound was reached (held too long, too many in flight); nothing was executed
TIMED_OUT           the deadline passed and nothing was changed
IN_DOUBT            it may have been executed; never retried by us
NOT_REPRESENTABLE   the value exists on one side only (duplicate keys, control bytes in XML, ...)
RETIRED             the door is closed for good
INTERNAL            a defect of ours; the log has the details under the id in the text
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bridges.calls import Value


class Kind(StrEnum):
    """Kinds of faults; the value is the last element of our own error names on the bus."""

    DECLARED = "Declared"
    UNDECLARED = "Undeclared"
    UNKNOWN_METHOD = "UnknownMethod"
    INVALID_ARGUMENT = "InvalidArgument"
    UNAVAILABLE = "Unavailable"
    BUSY = "Busy"
    TIMED_OUT = "TimedOut"
    IN_DOUBT = "InDoubt"
    NOT_REPRESENTABLE = "NotRepresentable"
    RETIRED = "Retired"
    INTERNAL = "Internal"


class Fault(Exception):
    """A call's failure, neutral of protocol.

    `code` is the service's own code as on the wire (DECLARED, UNDECLARED), else empty. `argument` is what the
    constructor carries, by its declared type (DECLARED), or the list of what followed the code on the wire, None when
    nothing did (UNDECLARED).
    """

    def __init__(self, kind: Kind, text: str, *, code: str = "", argument: Value = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.code = code
        self.argument = argument

    def __repr__(self) -> str:
        return f"Fault({self.kind}, {self.text!r}, code={self.code!r}, argument={self.argument!r})"

    @property
    def sentence(self) -> str:
        """The fault as one text, for protocols that have nothing but a text: `Unavailable: ...`."""
        return f"{self.kind}: {self.text}"


OURS: Final = frozenset(
    {
        Kind.INVALID_ARGUMENT,
        Kind.UNAVAILABLE,
        Kind.BUSY,
        Kind.TIMED_OUT,
        Kind.IN_DOUBT,
        Kind.NOT_REPRESENTABLE,
        Kind.RETIRED,
        Kind.INTERNAL,
    }
)

# What D-Bus itself says for the same things. NoReply and Disconnected come when the daemon died with the call in hand.
FROM_DBUS: Final = {
    "org.freedesktop.DBus.Error.UnknownMethod": Kind.UNKNOWN_METHOD,
    "org.freedesktop.DBus.Error.UnknownObject": Kind.UNKNOWN_METHOD,
    "org.freedesktop.DBus.Error.UnknownInterface": Kind.UNKNOWN_METHOD,
    "org.freedesktop.DBus.Error.InvalidArgs": Kind.INVALID_ARGUMENT,
    "org.freedesktop.DBus.Error.InvalidSignature": Kind.INVALID_ARGUMENT,
    "org.freedesktop.DBus.Error.ServiceUnknown": Kind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.NameHasNoOwner": Kind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.AccessDenied": Kind.UNAVAILABLE,
    "org.freedesktop.DBus.Error.LimitsExceeded": Kind.BUSY,
    "org.freedesktop.DBus.Error.NoReply": Kind.IN_DOUBT,
    "org.freedesktop.DBus.Error.Disconnected": Kind.IN_DOUBT,
    "org.freedesktop.DBus.Error.Timeout": Kind.IN_DOUBT,
    "org.freedesktop.DBus.Error.TimedOut": Kind.IN_DOUBT,
}
