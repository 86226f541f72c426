"""The byte stream of a bus cut into messages.

Source: the D-Bus specification, "Message Format": 16 fixed bytes (byte order, type, flags, version, body length,
serial, length of the header fields), the fields padded to 8, the body.
Cutting is done here and not in the library, so that a message the library cannot read harms only itself.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
SIGNAL: Final = 4
NO_REPLY_EXPECTED: Final = 1

_FIXED: Final = 16
_LONGEST: Final = 128 * 1024 * 1024
_LENGTHS: Final = {ord("l"): Struct("<4xI4xI"), ord("B"): Struct(">4xI4xI")}


class StreamBroken(Exception):
    """Bytes that are no D-Bus message: nothing after them can be read."""


class Splitter:
    """Collects bytes and gives back whole messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, in order. Raises StreamBroken."""
        buffer = self._buffer
        buffer += data
        found: list[bytes] = []
        start, end = 0, len(buffer)
        while end - start >= _FIXED:
            length = _length(buffer, start)
            if end - start < length:
                break
            found.append(bytes(memoryview(buffer)[start : start + length]))
            start += length
        if start:
            del buffer[:start]
        return found


def without_body(frame: bytes) -> bytes:
    """The same message with an empty body: tells who sent it when the body cannot be read."""
    lengths = _LENGTHS[frame[0]]
    _, fields = lengths.unpack_from(frame)
    return frame[:4] + bytes(4) + frame[8 : _FIXED + fields + (-fields & 7)]


def _length(buffer: bytearray, start: int) -> int:
    lengths = _LENGTHS.get(buffer[start])
    if lengths is None:
        raise StreamBroken(f"byte order: expected 'l' or 'B', got {buffer[start]:#x}")
    body, fields = lengths.unpack_from(buffer, start)
    length = int(_FIXED + fields + (-fields & 7) + body)
    if length > _LONGEST:
        raise StreamBroken(f"message: expected at most {_LONGEST} bytes, got {length}")
    return length
