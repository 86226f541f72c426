"""The byte stream cut into messages."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbus_side.frames import Splitter, StreamBroken, without_body

ORDERS = {"<": b"l", ">": b"B"}


def message(order: str, fields: bytes, body: bytes) -> bytes:
    """A message with made-up header fields; the splitter does not look into them."""
    padding = bytes(-len(fields) % 8)
    return ORDERS[order] + b"\1\0\1" + pack(order + "III", len(body), 7, len(fields)) + fields + padding + body


MESSAGES = st.builds(message, st.sampled_from("<>"), st.binary(max_size=30), st.binary(max_size=40))


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 50))
def test_any_pieces_give_the_same_messages(sent, size):
    """Where the stream is cut into pieces makes no difference, nor does the byte order."""
    stream = b"".join(sent)
    splitter = Splitter()
    found = [frame for at in range(0, len(stream), size) for frame in splitter.feed(stream[at : at + size])]
    assert found == sent


@pytest.mark.parametrize("order", ["<", ">"])
def test_without_body(order):
    """The body goes, the header stays."""
    assert without_body(message(order, b"abcde", b"body")) == message(order, b"abcde", b"")


@pytest.mark.parametrize("start", [b"HTTP/1.1 400 Bad", message("<", b"", b"")[:12] + pack("<I", 2**31)])
def test_what_is_no_message_breaks_the_stream(start):
    """A wrong byte order mark or an impossible length: nothing after it could be read."""
    with pytest.raises(StreamBroken):
        Splitter().feed(start)
