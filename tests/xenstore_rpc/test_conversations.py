"""The calls in recorded connections of clients."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from xenstore_rpc.conversations import Conversed, calls, looks_like_one
from xenstore_rpc.errors import BadRecord
from xenstore_rpc.packets import Op, encode
from xenstore_rpc.records import Request, Response

RECORDED = Path(__file__).parents[1] / "golden" / "xenstore" / "squeezed-2012.jsonl"
REQUEST = b"/squeezed/rpc/request/f/1"
RESPONSE = b"/squeezed/rpc/response/f/1"
OK = b"OK\0"


def talk(*exchanges: tuple[Op, int, bytes, bytes]) -> tuple[bytes, bytes]:
    """Operation, transaction, payload and answer of each; an answer that begins with E is an error."""
    sent = b"".join(encode(op, 0, tx, payload) for op, tx, payload, _ in exchanges)
    received = b"".join(
        encode(Op.ERROR if answer.startswith(b"E") else op, 0, tx, answer) for op, tx, _, answer in exchanges
    )
    return sent, received


def test_recorded_sessions_of_2012() -> None:
    """Seven sessions, one of which holds no call; each is whole, its request as it was and its answer as it was."""
    found: list[Conversed] = []
    for line in RECORDED.read_text().splitlines():
        session = json.loads(line)
        sent, received = (base64.b64decode(session[name]) for name in ("request", "response"))
        assert looks_like_one(sent)
        found += calls(sent, received)
    echo = Request("echo", "26c49bbe-dce7-46fe-b28b-3f3193cd1e69", (("a", b"b"), ("c", b"d")))
    assert found[0] == Conversed("squeezed", echo, Response((("a", b"b"), ("c", b"d"))), 311, 581)
    assert [(each.request.function, each.response) for each in found[1:]] == [
        ("reserve-memory", Response((("code", b"3"), ("description", b"kib")))),
        ("reserve-memory", Response((("code", b"3"), ("description", b"session_id")))),
        ("reserve-memory-range", Response((("code", b"1003"), ("description", b"min")))),
        ("delete-reservation", Response(())),
        ("balance-memory", Response(())),
    ]


def test_only_what_was_committed_counts() -> None:
    mkdir = (Op.MKDIR, 1, REQUEST + b"\0", OK)
    write = (Op.WRITE, 1, REQUEST + b"/a\0b", OK)
    whole = [Conversed("squeezed", Request("f", "1", (("a", b"b"),)), None, 126, 0)]
    assert list(calls(*talk(mkdir, write))) == []
    assert list(calls(*talk(mkdir, write, (Op.TRANSACTION_END, 1, b"F\0", OK)))) == []
    assert list(calls(*talk(mkdir, write, (Op.TRANSACTION_END, 1, b"T\0", b"EAGAIN\0")))) == []
    (found,) = calls(*talk(mkdir, write, (Op.TRANSACTION_END, 1, b"T\0", OK)))
    assert [found._replace(sent=126)] == whole
    (found,) = calls(*talk(mkdir, (Op.WRITE, 1, REQUEST + b"/a\0b", b"EINVAL\0"), (Op.TRANSACTION_END, 1, b"T\0", OK)))
    assert found.request.arguments == ()


def test_a_response_that_was_read_in_part_is_none() -> None:
    begun = (Op.MKDIR, 0, REQUEST + b"\0", OK)
    listed = (Op.DIRECTORY, 0, RESPONSE + b"\0", b"x\0y\0")
    (found,) = calls(*talk(begun, listed, (Op.READ, 0, RESPONSE + b"/x\0", b"1")))
    assert found.response is None
    (found,) = calls(
        *talk(begun, listed, (Op.READ, 0, RESPONSE + b"/y\0", b"2"), (Op.READ, 0, RESPONSE + b"/x\0", b"1"))
    )
    assert found.response == Response((("x", b"1"), ("y", b"2")))


def test_an_answer_to_nothing_is_refused() -> None:
    sent, received = talk((Op.MKDIR, 0, REQUEST + b"\0", OK))
    with pytest.raises(BadRecord, match="where nothing was asked"):
        list(calls(sent, received * 2))
    with pytest.raises(BadRecord, match="where operation 12 was asked"):
        list(calls(sent, encode(Op.READ, 0, 0, b"x")))


@pytest.mark.parametrize("data", [b"", b"POST / HTTP/1.1\r\n\r\n", b"0000000000000002{}", b"\x16\0\0"])
def test_other_bytes_do_not_look_like_one(data: bytes) -> None:
    assert not looks_like_one(data)
