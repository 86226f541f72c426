"""Packets, paths and payloads."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenstore_rpc.errors import BadRecord, InvalidPath, ValueTooLong
from xenstore_rpc.packets import (
    PAYLOAD_LIMIT,
    Op,
    Packet,
    PacketReader,
    check_name,
    encode,
    path_payload,
    strings,
    watch_payload,
    write_payload,
)

WORDS = st.integers(0, 2**32 - 1)
PACKETS = st.builds(Packet, WORDS, WORDS, WORDS, st.binary(max_size=9000))


@given(st.lists(PACKETS, max_size=4), st.lists(st.integers(1, 5000), max_size=30))
def test_packets_survive_any_fragmentation(packets: list[Packet], cuts: list[int]) -> None:
    """However the stream is cut, the same packets come out, long payloads included."""
    stream = b"".join(encode(*packet) for packet in packets)
    reader = PacketReader()
    received = []
    for cut in cuts:
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received + reader.feed(stream) == packets


def test_header_is_four_words_in_host_order() -> None:
    """The layout is operation, request id, transaction id, length."""
    assert encode(Op.READ, 7, 9, b"/a\0") == struct.pack("=4I", 2, 7, 9, 3) + b"/a\0"


def test_absurd_length_is_a_bad_record() -> None:
    """A header that announces more than the limit is noticed at once, not waited for."""
    with pytest.raises(BadRecord, match="announces 70 bytes"):
        PacketReader(64).feed(struct.pack("=4I", 2, 0, 0, 70))


@pytest.mark.parametrize(("name", "number"), [("SET_TARGET", 19), ("RESET_WATCHES", 21), ("DIRECTORY_PART", 22)])
def test_operation_numbers_of_the_public_header(name: str, number: int) -> None:
    """The numbers behind the gap of the removed RESTRICT are those of io/xs_wire.h."""
    assert Op[name] == number


@pytest.mark.parametrize("path", ["/", "/a", "/a/b-c_d@E/0"])
def test_paths_are_nul_terminated(path: str) -> None:
    """A good path goes out as it is."""
    assert path_payload(path) == path.encode() + b"\0"


@pytest.mark.parametrize("path", ["", "//", "a", "/a/", "/a//b", "/a b", "/ä", "/a\n", "/a\0", "@releaseDomain"])
def test_bad_paths_name_the_field(path: str) -> None:
    """A bad path is refused with field, value and what was expected."""
    with pytest.raises(InvalidPath, match=r"^path: .* expected /NAME/NAME"):
        path_payload(path)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a.b", "ü", "a\n"])
def test_bad_names_name_the_field(name: str) -> None:
    """A bad node name is refused with the caller's word for it."""
    with pytest.raises(InvalidPath, match=r"^argument: "):
        check_name("argument", name)


def test_watch_payload_takes_special_paths_and_printable_tokens() -> None:
    """The store's own events are watchable; a token with a NUL would become a third field."""
    assert watch_payload("@releaseDomain", "X") == b"@releaseDomain\0X\0"
    with pytest.raises(InvalidPath, match=r"^token: "):
        watch_payload("/a", "X\0")


def test_write_payload_has_no_terminator_and_a_limit() -> None:
    """Path and value share one packet of 4096 bytes."""
    assert write_payload("/a", b"v\0") == b"/a\0v\0"
    assert len(write_payload("/a", b"v" * 4093)) == PAYLOAD_LIMIT
    with pytest.raises(ValueTooLong) as caught:
        write_payload("/a", b"v" * 4094)
    assert (caught.value.path, caught.value.size, caught.value.limit) == ("/a", 4094, 4093)


def test_strings_keep_odd_bytes() -> None:
    """Bytes above ASCII are kept, and no string at all is an empty list."""
    assert strings(b"a\0\xff\0") == ["a", "\udcff"]
    assert strings(b"") == []
