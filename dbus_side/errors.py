"""Everything this room raises: one tree under BusError."""

from __future__ import annotations

from typing import Any


class BusError(Exception):
    """Root of the room's errors. Their texts name the field and the value and never hold a traceback."""


class NameInvalid(BusError):
    """A bus name, path, interface, member, signature or address that the D-Bus specification does not allow."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind}: not valid in D-Bus: {name[:300]!r}")
        self.kind = kind
        self.name = name


class SignatureMismatch(BusError):
    """A value that its signature does not allow.

    `path` leads to it from the outside (`argument 2.memory_static_max`), `expected` is the D-Bus type in words,
    `got` the value's shape.
    """

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"{path}: expected {expected}, got {got}")
        self.path = path
        self.expected = expected
        self.got = got


class IntrospectionInvalid(BusError):
    """Introspection XML that cannot be used; the text names the element and the line."""


class MessageTooLarge(BusError):
    """A message of `size` bytes over our `limit` (bytes). It was not sent and the connection is unharmed."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"message: expected at most {limit} bytes, got {size}")
        self.size = size
        self.limit = limit


class OutgoingFull(BusError):
    """The queue of unsent bytes is over its `limit`: the signal was not queued."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"outgoing queue: over {limit} bytes wait for the bus to read them")
        self.limit = limit


class BusRefused(BusError):
    """An error reply: one that arrived, or one that a handler raises to have it sent.

    `name` is the D-Bus error name, `body` fits `signature`; by custom its first value is a text for people.
    """

    def __init__(self, name: str, signature: str = "", body: tuple[Any, ...] = ()) -> None:
        super().__init__(f"{name}: {body[0]}" if signature.startswith("s") and body else name)
        self.name = name
        self.signature = signature
        self.body = body


class BusTimedOut(BusError):
    """No answer within the deadline. `sent` is False when the call still waited for room in the outgoing queue."""

    def __init__(self, what: str, timeout: float, *, sent: bool) -> None:
        super().__init__(f"{what}: no answer within {timeout:g} s")
        self.timeout = timeout
        self.sent = sent


class BusLost(BusError):
    """The connection is gone. `sent` is True when bytes of this call may have left: it may have been executed."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the connection to the bus is lost" + ("; the call may have been executed" if sent else ""))
        self.sent = sent


class BusUnreachable(BusError):
    """No connection: nobody listens, authentication or Hello failed, or the deadline for both passed."""
