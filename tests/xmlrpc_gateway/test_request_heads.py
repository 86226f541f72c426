"""What becomes of request heads on their way to the parser."""

from __future__ import annotations

import pytest

from xmlrpc_gateway.request_heads import NO_HOST, UNBOUNDED, read_head, request_line, split_request

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


def test_reads_a_head_as_it_was_sent() -> None:
    """Case, order, duplicates, bytes outside ASCII and continued lines; what follows it is given back."""
    data = b"Put /a b?c HTTP/1.0 \nX: \xe9\xa0 \r\nx:2\n more\nno colon\nCONTENT-Length:\t7\n\nrest"
    found = read_head(data)
    assert found is not None
    head, follows = found
    assert (head.method, head.target, head.version) == ("Put", "/a b?c", "1.0")
    assert head.headers == (("X", "\u00e9\u00a0"), ("x", "2 more"), ("CONTENT-Length", "7"))
    assert head.raw + follows == data
    assert follows == b"rest"
    assert request_line(data) == ("Put", "/a b?c")


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nX: y\r\n", b"GET /\r\n\r\n", b"\0\0 / HTTP/1.1\r\n\r\n"])
def test_what_is_no_head(data: bytes) -> None:
    """An unfinished head, one of before HTTP/1.0 and none at all."""
    assert read_head(data) is None


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"),
        (b"GET / HTTP/1.1\nA: b\n\n", b"GET / HTTP/1.1\nA: b\nconnection: close\n\n"),
        (
            b"PUT / HTTP/1.1\r\nCONNECTION : keep-alive,\r\n\tTE\r\nA: b\r\nConnection: x\r\n\r\n",
            b"PUT / HTTP/1.1\r\nA: b\r\nconnection: close\r\n\r\n",
        ),
        (b"GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", b"GET / HTTP/1.0\r\nconnection: close\r\n\r\n"),
        (
            b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
            b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nconnection: close\r\n\r\n",
        ),
    ],
)
def test_asks_the_daemon_to_end_the_connection(sent: bytes, passed_on: bytes) -> None:
    """One wish about the connection, and the rest as it was, line ends included."""
    found = read_head(sent)
    assert found is not None
    assert found[0].ending() == passed_on


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.0\r\nX-Connection: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\nConnection: Close\r\nC: d\r\n\r\n",
        b"CONNECT /console HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
        b"GET /console HTTP/1.1\nUpgrade: WebSocket\nConnection: Upgrade\n\n",
    ],
)
def test_leaves_a_head_that_needs_no_change(sent: bytes) -> None:
    """Heads that end the connection already, and those after which it is nobody's business."""
    found = read_head(sent)
    assert found is not None
    assert found[0].ending() == sent


def test_counts_a_frame_anew() -> None:
    """The length before a changed head fits it, and stays with an unchanged one."""
    for sent, expected in (
        (b"GET / HTTP/1.1\r\n\r\n", b"FRAME 000000000037GET / HTTP/1.1\r\nconnection: close\r\n\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"FRAME 000000000018GET / HTTP/1.0\r\n\r\n"),
    ):
        found = read_head(sent, b"FRAME %012d" % len(sent))
        assert found is not None
        assert found[0].ending() == expected


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"GET / HTTP/1.1", 0),
        (b"HEAD / HTTP/1.0", 0),
        (b"GET / HTTP/1.1\r\nContent-Length: 3", 3),
        (b"PUT / HTTP/1.1\r\ncontent-length: 0", 0),
        (b"PUT / HTTP/1.1", UNBOUNDED),
        (b"POST / HTTP/1.0", UNBOUNDED),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3", UNBOUNDED),
        (b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4", UNBOUNDED),
        (b"PUT / HTTP/1.1\r\nContent-Length: 3x", UNBOUNDED),
        (b"PUT / HTTP/1.1\r\nContent-Length: " + b"9" * 5000, UNBOUNDED),
        (b"CONNECT / HTTP/1.0", UNBOUNDED),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket", UNBOUNDED),
        (b"GET / HTTP/1.1\r\nUpgrade: h2c", 0),
    ],
)
def test_how_much_belongs_to_a_request(head: bytes, length: int) -> None:
    """By its length; without one, nothing after methods that have no body, and all that comes after others."""
    found = read_head(head + b"\r\n\r\n")
    assert found is not None
    assert found[0].body_length == length
