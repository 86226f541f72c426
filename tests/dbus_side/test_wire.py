"""Single messages to and from bytes."""

from __future__ import annotations

import pytest

from dbus_side import frames
from dbus_side.errors import SignatureMismatch
from dbus_side.wire import Head, MessageUnreadable, read_body, read_head, write

CALL = Head(
    kind=frames.METHOD_CALL,
    serial=7,
    reply_serial=0,
    sender=":1.42",
    destination="org.xen.xcp.squeezed",
    path="/org/xen/xcp/squeezed/Memory",
    interface="org.xen.xcp.squeezed.Memory1",
    member="Login",
    error_name="",
    reply_expected=True,
)
ERROR = CALL._replace(
    kind=frames.ERROR, path="", interface="", member="", error_name="a.b", reply_serial=3, reply_expected=False
)
pytestmark = pytest.mark.usefixtures("bus_library")


@pytest.mark.parametrize("head", [CALL, CALL._replace(sender=""), CALL._replace(sender=":1.4321"), ERROR])
@pytest.mark.parametrize(("signature", "body"), [("", ()), ("s", ("text",)), ("xa{sv}", (-5, {}))])
def test_there_and_back(head: Head, signature: str, body: tuple[object, ...]) -> None:
    """Whatever the length of the sender's name, which is put in behind the library's back."""
    wire = write(head, signature, body)
    assert read_head(wire) == head
    assert read_body(wire) == (signature, body)
    assert frames.Splitter().feed(wire) == [wire]


def test_a_head_is_read_without_its_body() -> None:
    wire = write(CALL, "s", ("x" * 100,))
    assert read_head(wire[:-90]) == CALL
    with pytest.raises(MessageUnreadable):
        read_body(wire[:-90])


@pytest.mark.parametrize("wire", [b"", b"l", b"no message at all, of any kind", bytes(64)])
def test_what_is_no_message(wire: bytes) -> None:
    with pytest.raises(MessageUnreadable):
        read_head(wire)
    with pytest.raises(MessageUnreadable):
        read_body(wire)


def test_a_head_without_what_its_kind_must_have() -> None:
    with pytest.raises(MessageUnreadable):
        read_head(b"l\x01\0\x01" + bytes(4) + b"\1\0\0\0" + bytes(4))


def test_what_cannot_be_written() -> None:
    with pytest.raises(MessageUnreadable):
        write(CALL._replace(path="no path"), "", ())
    with pytest.raises(SignatureMismatch):
        write(CALL, "s", (5,))
