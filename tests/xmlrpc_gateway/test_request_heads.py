"""What becomes of request heads on their way to the parser."""

from __future__ import annotations

import pytest

from xmlrpc_gateway.request_heads import NO_HOST, UNBOUNDED, split_request

ABSENT = f"Host: {NO_HOST}\r\n\r\n".encode()
SOUND = b"POST / HTTP/1.1\r\nhost: h\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "split"),
    [
        (SOUND + b"abc", (SOUND + b"abc", 0, b"")),
        (SOUND + b"a", (SOUND + b"a", 2, b"")),
        (SOUND + b"abcPOST", (SOUND + b"abc", 0, b"POST")),
        (SOUND.replace(b"\r\n", b"\n") + b"ab\nc", (SOUND + b"ab\n", 0, b"c")),
        (b"GET / HTTP/1.1\r\n\r\nrest", (b"GET / HTTP/1.1\r\n" + ABSENT, 0, b"rest")),
        (
            b"P / HTTP/1.0\ncontent-length:\t2 \n\nab",
            (b"P / HTTP/1.0\r\ncontent-length:\t2 \r\n" + ABSENT + b"ab", 0, b""),
        ),
        (
            b"P / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",
            (b"P / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", UNBOUNDED - 3, b""),
        ),
        (b"\x16\x03\x01", (b"\x16\x03\x01", UNBOUNDED, b"")),
        (b"G" * 20_000, (b"G" * 20_000, UNBOUNDED, b"")),
        (b"POST / HTTP/1.1\r\nHost: h\r\n", None),
        (b"P", None),
    ],
)
def test_splits(data: bytes, split: tuple[bytes, int, bytes] | None) -> None:
    """The first request comes out sound, with what is missing of it and what follows it."""
    assert split_request(data) == split
