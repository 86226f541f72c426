"""Heads of requests and replies."""

from __future__ import annotations

import pytest

from xmlrpc_gateway.errors import BadReply
from xmlrpc_gateway.http_messages import header, parse_reply_head, reply_head, request_head


def test_writes_heads_with_names_and_order_untouched() -> None:
    """A head is written exactly as given, duplicates and case included."""
    headers = (("X-b", "1"), ("x-A", "2"), ("X-b", "3"))
    assert request_head("POST", "/a b", "1.0", headers) == b"POST /a b HTTP/1.0\r\nX-b: 1\r\nx-A: 2\r\nX-b: 3\r\n\r\n"
    assert reply_head("1.1", 404, headers[:1]) == b"HTTP/1.1 404 Not Found\r\nX-b: 1\r\n\r\n"
    assert reply_head("1.1", 299, ()) == b"HTTP/1.1 299 Unknown\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "parsed"),
    [
        (b"HTTP/1.1 200 OK", (200, (), None)),
        (b"HTTP/1.0 404 Not Found\r\nContent-Length: 0", (404, (("Content-Length", "0"),), 0)),
        (b"HTTP/1.1 200\ncontent-length:5 \nX:\xe9:b", (200, (("content-length", "5"), ("X", "\u00e9:b")), 5)),
    ],
)
def test_reads_heads(head: bytes, parsed: tuple[object, ...]) -> None:
    """Status, headers as they are, and the body's length are read, with CR LF or LF."""
    assert parse_reply_head(head) == parsed


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"0000000000000072{", "expected an HTTP status line"),
        (b"HTTP/2 200 OK", "expected an HTTP status line"),
        (b"HTTP/1.1 2x0 OK", "expected an HTTP status line"),
        (b"HTTP/1.1 200 OK\r\nnonsense", "expected a header"),
        (b"HTTP/1.1 200 OK\r\n folded: x", "expected a header"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1", "content-length: expected a decimal number, got '-1'"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", "transfer-encoding 'chunked'"),
    ],
)
def test_refuses_heads(head: bytes, says: str) -> None:
    """What is no reply is refused with what was expected."""
    with pytest.raises(BadReply) as caught:
        parse_reply_head(head)
    assert says in str(caught.value)


def test_finds_a_header_in_any_case() -> None:
    """The first header of a name is found whatever its case."""
    assert header((("Host", "a"), ("HOST", "b")), "host") == "a"
    assert header((), "host") is None
