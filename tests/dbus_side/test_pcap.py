"""Files of captured messages: every byte order and unit of both formats, and what becomes of broken ones."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest

from dbus_side.pcap import LONGEST, Packet, PcapCut, PcapInvalid, Writer, read

TIME = 1795627904_123456789


def packets(data: bytes) -> list[Packet]:
    return list(read(BytesIO(data)))


def pcap(order: str, magic: int, fraction: int, data: bytes, *, link: int = 231, size: int | None = None) -> bytes:
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    return head + struct.pack(order + "IIII", 1795627904, fraction, len(data), size or len(data)) + data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, *options: tuple[int, bytes], longest: int = 0, link: int = 231) -> bytes:
    body = struct.pack(order + "HHI", link, 0, longest)
    for code, value in options:
        body += struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(order, 1, body)


def enhanced(order: str, units: int, data: bytes, size: int | None = None, index: int = 0) -> bytes:
    head = struct.pack(order + "IIIII", index, units >> 32, units & 0xFFFFFFFF, len(data), size or len(data))
    return block(order, 6, head + data + bytes(-len(data) % 4))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("magic", "fraction", "time"), [(0xA1B2C3D4, 123456, TIME - 789), (0xA1B23C4D, 123456789, TIME)]
)
def test_pcap_in_both_orders_and_units(order: str, magic: int, fraction: int, time: int) -> None:
    assert packets(pcap(order, magic, fraction, b"message", size=9)) == [Packet(time, 9, b"message", 24)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "units", "time"),
    [
        ((), 1795627904_123456, TIME - 789),
        (((9, b"\x09"),), TIME, TIME),
        (((9, b"\x03"),), 1795627904_123, TIME - 456789),
        (((9, b"\x8a"),), 1795627904 * 1024 + 512, 1795627904_500000000),
        (((2, b"name"), (9, b"\x06"), (0, b"")), 1795627904_123456, TIME - 789),
    ],
)
def test_pcapng_in_both_orders_and_any_unit(
    order: str, options: tuple[tuple[int, bytes], ...], units: int, time: int
) -> None:
    data = section(order) + interface(order, *options) + enhanced(order, units, b"message", 4000)
    ((found_time, size, message, offset),) = packets(data)
    assert (found_time, size, message) == (time, 4000, b"message")
    assert data[offset:].startswith(struct.pack(order + "I", 6))


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_shifts_times_and_skips_other_blocks(order: str) -> None:
    shift = struct.pack(order + "q", -4)
    data = section(order) + block(order, 5, b"statistics!!") + interface(order, (14, shift))
    data += block(order, 0x80000001, b"") + enhanced(order, 5_000_001, b"m")
    assert packets(data)[0].time == 1_000_001_000


def test_simple_packets_have_no_time_and_are_cut_by_the_interface() -> None:
    whole = block("<", 3, struct.pack("<I", 3) + b"abc\0")
    cut = block("<", 3, struct.pack("<I", 9) + b"abcd")
    found = packets(section("<") + interface("<", longest=4) + whole + cut)
    assert [(each.time, each.size, each.data) for each in found] == [(None, 3, b"abc"), (None, 9, b"abcd")]


def test_a_second_section_has_interfaces_and_an_order_of_its_own() -> None:
    one = section("<") + interface("<") + enhanced("<", 1, b"one")
    other = section(">") + interface(">", (9, b"\x09")) + enhanced(">", 1, b"two")
    assert [(each.time, each.data) for each in packets(one + other)] == [(1000, b"one"), (1, b"two")]
    with pytest.raises(PcapInvalid, match="a packet of interface 0, the section has 0"):
        packets(one + section(">") + enhanced(">", 1, b"two"))


@pytest.mark.parametrize(
    "whole", [pcap("<", 0xA1B2C3D4, 1, b"message"), section(">") + interface(">") + enhanced(">", 1, b"m")]
)
def test_a_file_that_ends_anywhere(whole: bytes) -> None:
    """Every cut is noticed, but for one between two packets."""
    sound = {24, len(whole)} if whole[0] == 0xD4 else {28, 28 + 20, len(whole)}
    for length in range(len(whole) + 1):
        if length in sound:
            packets(whole[:length])
        else:
            with pytest.raises(PcapCut, match=r"at byte \d+: expected"):
                packets(whole[:length])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GIF89a......", "at byte 0: expected a pcap or pcapng file"),
        (pcap("<", 0xA1B2C3D4, 1, b"m", link=1), "at byte 20: expected link type 231"),
        (section("<") + interface("<", link=1), "at byte 28: expected link type 231"),
        (
            pcap("<", 0xA1B2C3D4, 1, b"m")[:32] + struct.pack("<I", LONGEST + 1) + bytes(9),
            "at byte 24: expected at most",
        ),
        (section("<") + struct.pack("<II", 6, 7), "at byte 28: a block cannot be 7 bytes long"),
        (section("<")[:8] + bytes(20), "at byte 0: expected a pcapng section header"),
        (
            section("<") + interface("<")[:-4] + b"\0\0\0\0",
            "at byte 28: a block is 20 bytes long by its beginning and 0",
        ),
        (section("<") + interface("<") + block("<", 6, b"abcd"), "at byte 48: a packet block of 4 bytes is too short"),
        (section("<") + interface("<") + block("<", 3, struct.pack("<I", 99)), "at byte 48: a packet of 99 bytes in a"),
        (section("<") + block("<", 1, b""), "at byte 28: an interface block of 0 bytes is too short"),
    ],
)
def test_a_broken_file_is_refused_at_its_place(data: bytes, text: str) -> None:
    with pytest.raises(PcapInvalid, match=text):
        packets(data)


def test_what_is_written_can_be_read() -> None:
    stream = BytesIO()
    writer = Writer(stream)
    writer.write(TIME, b"one")
    writer.write(TIME + 1, b"")
    found = packets(stream.getvalue())
    assert [(each.time, each.size, each.data) for each in found] == [(TIME, 3, b"one"), (TIME + 1, 0, b"")]
