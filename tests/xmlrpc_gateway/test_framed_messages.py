"""Lengths as OCaml reads them."""

from __future__ import annotations

import pytest

from tests.xmlrpc_gateway.json16 import WELL_FORMED, load
from xmlrpc_gateway.errors import Malformed
from xmlrpc_gateway.framed_messages import HEAD_SIZE, body_length, head


@pytest.mark.parametrize(
    ("found", "length"),
    [
        (b"0000000000000072", 72),
        (b"0000000000000000", 0),
        (b"9999999999999999", 9999999999999999),
        (b"0000000000000_75", 75),
        (b"7_______________", 7),
        (b"+000000000000075", 75),
        (b"-000000000000000", 0),
        (b"0x0000000000004b", 75),
        (b"0X0000000000_04B", 75),
        (b"0o00000000000113", 75),
        (b"0b00000001001011", 75),
        (b"0u00000000000075", 75),
        (b"+0x000000000004b", 75),
    ],
)
def test_reads(found: bytes, length: int) -> None:
    """Digits with underscores after the first, signs and the four prefixes."""
    assert len(found) == HEAD_SIZE
    assert body_length(found) == length


@pytest.mark.parametrize(
    "found",
    [
        b"              75",
        b"75              ",
        b"75\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
        b"abcdefghijklmnop",
        b"_000000000000075",
        b"0x_000000000004b",
        b"0x0000000000004g",
        b"0o00000000000118",
        b"0b00000000000002",
        b"0d00000000000075",
        b"-000000000000001",
        b"-0x0000000000001",
        b"--00000000000000",
        b"0000000000000.75",
        b"00000000000000e5",
        b"POST / HTTP/1.1\r",
        b"\xd9\xa1" * 8,
    ],
)
def test_refuses(found: bytes) -> None:
    """Blanks, junk and negative numbers are no length; the error shows what came."""
    assert len(found) == HEAD_SIZE
    with pytest.raises(Malformed, match="expected a length") as caught:
        body_length(found)
    assert repr(found) in str(caught.value)


@pytest.mark.parametrize("name", ["xenopsd-json16-allcalls", "xenopsd2013-bin", "squeezed-json16-rpclight2012"])
def test_recorded_lengths_survive(name: str) -> None:
    """Real clients and daemons write the length as we do."""
    assert name in dict(WELL_FORMED)
    for recording in load(name):
        for message in (recording.request, recording.response):
            assert body_length(message[:HEAD_SIZE]) == len(message) - HEAD_SIZE
            assert head(message[HEAD_SIZE:]) == message[:HEAD_SIZE]
