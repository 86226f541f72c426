"""Single messages to and from bytes, without a connection: for files of captured messages.

The library is the one that `bus` uses. Head and body are read apart, so that a body which is of no interest, or is cut,
is never decoded.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, NamedTuple

from dbus_side import frames
from dbus_side.errors import BusError
from dbus_side.library import loaded
from dbus_side.signatures import decoder, encoder

# Source: the D-Bus specification, "Header Fields".
_REQUIRED: Final = {
    frames.METHOD_CALL: ("path", "member"),
    frames.METHOD_RETURN: ("reply_serial",),
    frames.ERROR: ("error_name", "reply_serial"),
    frames.SIGNAL: ("path", "interface", "member"),
}
_FIXED: Final = 16
_LENGTHS: Final = Struct("<4xI4xI")  # of the body, and of the header's fields
_SENDER: Final = b"\x07\x01s\0"  # the field's code, and that it is a string


class MessageUnreadable(BusError):
    """Bytes that are no D-Bus message, or whose body does not fit its signature."""


class Head(NamedTuple):
    """What stands before a message's body. `kind` is one of `frames`; what a message has not is "" or 0."""

    kind: int
    serial: int
    reply_serial: int
    sender: str
    destination: str
    path: str
    interface: str
    member: str
    error_name: str
    reply_expected: bool


def read_head(frame: bytes) -> Head:
    """The head of a message of which at least the head is there. Raises MessageUnreadable."""
    try:
        alone = frames.without_body(frame)
        message = loaded().unmarshal(alone)
        head = Head(
            kind=alone[1],
            serial=message.serial,
            reply_serial=message.reply_serial or 0,
            sender=message.sender or "",
            destination=message.destination or "",
            path=message.path or "",
            interface=message.interface or "",
            member=message.member or "",
            error_name=message.error_name or "",
            reply_expected=not alone[2] & frames.NO_REPLY_EXPECTED,
        )
    except Exception:  # whatever the library makes of arbitrary bytes
        raise MessageUnreadable("the head of a message cannot be read") from None
    if missing := [name for name in _REQUIRED.get(head.kind, ()) if not getattr(head, name)]:
        raise MessageUnreadable(f"the head of a message has no {missing[0]}")
    return head


def read_body(frame: bytes) -> tuple[str, tuple[Any, ...]]:
    """Signature and body of a whole message. Raises MessageUnreadable."""
    try:
        message = loaded().unmarshal(frame)
        return message.signature, decoder(message.signature)(message.body)
    except Exception:  # its text may show a value
        raise MessageUnreadable("the body of a message cannot be read") from None


def write(head: Head, signature: str, body: tuple[Any, ...]) -> bytes:
    """A message's bytes, little endian. Raises SignatureMismatch, MessageUnreadable (a name that D-Bus forbids)."""
    library = loaded()
    encoded = encoder(signature)(body, library.variant)
    given = {
        name: value
        for name in ("destination", "path", "interface", "member", "error_name", "reply_serial")
        if (value := getattr(head, name))
    }
    if not head.reply_expected:
        given["flags"] = library.no_reply
    try:
        message = library.message(
            signature=signature,
            body=encoded,
            message_type=library.types(head.kind),
            serial=head.serial,
            **given,
        )
        wire: bytes = message._marshall(negotiate_unix_fd=False)
    except Exception:
        raise MessageUnreadable("a message cannot be written") from None
    return _with_sender(wire, head.sender) if head.sender else wire


def _with_sender(wire: bytes, sender: str) -> bytes:
    """A message as the bus delivers it: it adds who sent it, which the library never writes."""
    _, size = _LENGTHS.unpack_from(wire)
    fields = wire[_FIXED : _FIXED + size]
    fields += bytes(-size & 7) + _SENDER + len(sender).to_bytes(4, "little") + sender.encode() + b"\0"
    body = wire[_FIXED + size + (-size & 7) :]
    return wire[: _FIXED - 4] + len(fields).to_bytes(4, "little") + fields + bytes(-len(fields) & 7) + body
