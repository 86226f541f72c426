"""Files of captured bus messages: pcap and pcapng, link type 231 (DLT_DBUS), one whole D-Bus message a packet.

Sources: the IETF drafts draft-ietf-opsawg-pcap and -pcapng. `dbus-monitor --pcap` writes the first, `busctl capture`
the second, cut to 4096 bytes a message unless it is told otherwise; Wireshark and Bustle read both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

LINK_DBUS: Final = 231
LONGEST: Final = 128 * 1024 * 1024
"""Bytes of the longest packet or block that is read: D-Bus allows no longer message."""

_NANOSECONDS: Final = 1_000_000_000
# The first four bytes say the byte order and the unit of the times.
_MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_SECTION: Final = b"\x0a\x0d\x0d\x0a"
_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE: Final = 1
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_OPTION_RESOLUTION: Final = 9
_OPTION_OFFSET: Final = 14


class PcapInvalid(Exception):
    """A file that is no capture of bus messages, or is broken; the text names the offset in bytes."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(f"at byte {offset}: {text}")
        self.offset = offset


class PcapCut(PcapInvalid):
    """The file ends within a packet: its writer was killed. What stands before is sound."""


class Packet(NamedTuple):
    """One message. `time` in nanoseconds since 1970, None where the file has none; `size` is what it was on the bus,
    `data` what there is of it; `offset` of the packet in the file.
    """

    time: int | None
    size: int
    data: bytes
    offset: int


def read(stream: BinaryIO) -> Iterator[Packet]:
    """The packets of a file, one at a time. Raises PcapInvalid, PcapCut."""
    file = _File(stream)
    magic = file.take(4, "a capture's first bytes")
    if magic in _MAGICS:
        yield from _read_pcap(file, *_MAGICS[magic])
    elif magic == _SECTION:
        yield from _read_pcapng(file)
    else:
        raise PcapInvalid(0, f"expected a pcap or pcapng file, it begins with {magic!r}")


class Writer:
    """Writes a pcap file, little endian, times in nanoseconds: its header at once, then packet by packet."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        stream.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, LONGEST, LINK_DBUS))

    def write(self, time: int, data: bytes) -> None:
        """One message; `time` in nanoseconds since 1970."""
        seconds, rest = divmod(time, _NANOSECONDS)
        self._stream.write(struct.pack("<IIII", seconds, rest, len(data), len(data)) + data)


class _File:
    """A stream that is only read forward, and knows where it is."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0

    def take(self, size: int, what: str) -> bytes:
        """That many bytes. Raises PcapCut."""
        data = self._stream.read(size)
        if len(data) < size:
            raise PcapCut(self.offset, f"expected {size} bytes of {what}, the file ends after {len(data)}")
        self.offset += size
        return data

    def take_if_any(self, size: int, what: str) -> bytes | None:
        """As `take`; None at the end of the file."""
        first = self._stream.read(1)
        if not first:
            return None
        self.offset += 1
        return first + self.take(size - 1, what)


def _read_pcap(file: _File, order: str, unit: int) -> Iterator[Packet]:
    *_, link = struct.unpack(order + "HHiIII", file.take(20, "the file's header"))
    _check_link(link & 0xFFFF, file.offset - 4)
    while True:
        offset = file.offset
        head = file.take_if_any(16, "a packet's header")
        if head is None:
            return
        seconds, fraction, length, size = struct.unpack(order + "IIII", head)
        _check_length(length, offset)
        yield Packet(seconds * _NANOSECONDS + fraction * unit, size, file.take(length, "a packet"), offset)


class _Interface(NamedTuple):
    """What an interface block says: the longest packet (0: any), units a second, seconds to add to all times."""

    longest: int
    resolution: int
    shift: int


def _read_pcapng(file: _File) -> Iterator[Packet]:
    order = "<"
    interfaces: list[_Interface] = []
    kind: bytes | None = _SECTION
    while kind is not None:
        offset = file.offset - 4
        if kind == _SECTION:
            order = _read_section(file)
            interfaces = []
        else:
            number = int.from_bytes(kind, "little" if order == "<" else "big")
            body = _read_block(file, order, offset)
            if number == _INTERFACE:
                interfaces.append(_read_interface(body, order, offset))
            elif number in (_ENHANCED_PACKET, _SIMPLE_PACKET):
                try:
                    yield _read_packet(number, body, order, interfaces, offset)
                except struct.error:
                    raise PcapInvalid(offset, f"a packet block of {len(body)} bytes is too short") from None
        kind = file.take_if_any(4, "a block's type")


def _read_section(file: _File) -> str:
    """The byte order of a section; the rest of its header says nothing that is needed."""
    offset = file.offset - 4
    length = file.take(4, "a section header")
    magic = file.take(4, "a section header")
    order = _ORDERS.get(magic)
    if order is None:
        raise PcapInvalid(offset, f"expected a pcapng section header, its byte order magic is {magic!r}")
    (size,) = struct.unpack(order + "I", length)
    if size < 28 or size % 4:
        raise PcapInvalid(offset, f"a section header cannot be {size} bytes long")
    _check_length(size, offset)
    file.take(size - 12, "a section header")
    return order


def _read_block(file: _File, order: str, offset: int) -> bytes:
    """A block's body. The length stands before and behind it."""
    (size,) = struct.unpack(order + "I", file.take(4, "a block's length"))
    if size < 12 or size % 4:
        raise PcapInvalid(offset, f"a block cannot be {size} bytes long")
    _check_length(size, offset)
    body = file.take(size - 12, "a block")
    (again,) = struct.unpack(order + "I", file.take(4, "a block's second length"))
    if again != size:
        raise PcapInvalid(offset, f"a block is {size} bytes long by its beginning and {again} by its end")
    return body


def _read_interface(body: bytes, order: str, offset: int) -> _Interface:
    if len(body) < 8:
        raise PcapInvalid(offset, f"an interface block of {len(body)} bytes is too short")
    link, _, longest = struct.unpack_from(order + "HHI", body)
    _check_link(link, offset)
    resolution, shift, place = 1_000_000, 0, 8
    while place + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, place)
        value = body[place + 4 : place + 4 + size]
        place += 4 + size + (-size & 3)
        if code == _OPTION_RESOLUTION and len(value) == 1:
            resolution = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == _OPTION_OFFSET and len(value) == 8:
            (shift,) = struct.unpack(order + "q", value)
    return _Interface(longest, resolution, shift)


def _read_packet(number: int, body: bytes, order: str, interfaces: list[_Interface], offset: int) -> Packet:
    index, time = 0, None
    if number == _ENHANCED_PACKET:
        index, high, low, length, size = struct.unpack_from(order + "IIIII", body)
        start = 20
    else:
        (size,) = struct.unpack_from(order + "I", body)
        length, start = size, 4
    if index >= len(interfaces):
        raise PcapInvalid(offset, f"a packet of interface {index}, the section has {len(interfaces)}")
    interface = interfaces[index]
    if number == _ENHANCED_PACKET:
        time = (high << 32 | low) * _NANOSECONDS // interface.resolution + interface.shift * _NANOSECONDS
    elif interface.longest:
        length = min(size, interface.longest)
    if start + length > len(body):
        raise PcapInvalid(offset, f"a packet of {length} bytes in a block that holds {len(body) - start}")
    return Packet(time, size, body[start : start + length], offset)


def _check_link(link: int, offset: int) -> None:
    if link != LINK_DBUS:
        raise PcapInvalid(offset, f"expected link type {LINK_DBUS} (D-Bus messages), got {link}")


def _check_length(length: int, offset: int) -> None:
    if length > LONGEST:
        raise PcapInvalid(offset, f"expected at most {LONGEST} bytes in a packet, got {length}")
