"""The wire session without a wire."""

from __future__ import annotations

import pytest

from xenstore_rpc.errors import BadRecord
from xenstore_rpc.packets import Op, encode
from xenstore_rpc.session import Reply, Session, WatchEvent


def event(path: str, token: str) -> bytes:
    return encode(Op.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode())


def test_replies_find_their_requests_in_any_order() -> None:
    """Replies carry the request id; an error is a reply too."""
    session = Session()
    first, packet = session.request(Op.READ, b"/a\0")
    second, _ = session.request(Op.RM, b"/b\0", 5)
    assert packet == encode(Op.READ, first, 0, b"/a\0")
    stream = encode(Op.ERROR, second, 5, b"EACCES\0") + encode(Op.READ, first, 0, b"value")
    assert session.receive(stream) == [Reply(second, "EACCES", b"EACCES\0"), Reply(first, None, b"value")]


@pytest.mark.parametrize(
    "stray", [encode(Op.READ, 99, 0, b""), encode(Op.WRITE, 1, 0, b"OK\0"), encode(Op.WATCH_EVENT, 0, 0, b"/a")]
)
def test_what_was_not_asked_is_a_bad_record(stray: bytes) -> None:
    """A reply to nothing, to another operation, and an event without its fields end the session."""
    session = Session()
    session.request(Op.READ, b"/a\0")
    with pytest.raises(BadRecord):
        session.receive(stray)


def test_request_ids_wrap_and_skip_those_awaited() -> None:
    """After 2**32-1 ids come around, and one that is still awaited is not given out."""
    session = Session()
    assert session.request(Op.READ, b"/a\0")[0] == 1
    session._last_id = 0xFFFF_FFFF
    assert session.request(Op.READ, b"/a\0")[0] == 2


def test_events_belong_to_the_watches_at_or_above_the_path() -> None:
    """Path and token find the watch, however many share the token."""
    session = Session()
    for path in ("/s/1", "/s/2", "/", "@releaseDomain"):
        session.watch(path, "X")
    session.watch("/s/1", "other")
    assert session.receive(event("/s/1/deep/er", "X")) == [
        WatchEvent(("/s/1", "X"), "/s/1/deep/er"),
        WatchEvent(("/", "X"), "/s/1/deep/er"),
    ]
    assert session.receive(event("@releaseDomain", "X")) == [WatchEvent(("@releaseDomain", "X"), "@releaseDomain")]
    session.unwatch("/", "X")
    assert session.receive(event("/s/3", "X")) == []
