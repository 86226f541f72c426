"""Bus addresses."""

import pytest

from dbus_side.addresses import TcpAddress, UnixAddress, parse
from dbus_side.errors import NameInvalid


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("unix:path=/run/xcp/bus", (UnixAddress("/run/xcp/bus"),)),
        ("unix:path=/a%20b,guid=00ff", (UnixAddress("/a b"),)),
        ("unix:abstract=xcp", (UnixAddress("\0xcp"),)),
        ("tcp:host=127.0.0.1,port=99,family=ipv4", (TcpAddress("127.0.0.1", 99),)),
        ("unix:path=/a;tcp:host=h,port=1;", (UnixAddress("/a"), TcpAddress("h", 1))),
    ],
)
def test_good_addresses(text, found):
    """Transports, options, escapes and lists."""
    assert parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        "/run/xcp/bus",
        "unix:",
        "unix:path=",
        "unix:dir=/tmp",
        "unix:path=/a%00b",
        "unix:path=/" + "x" * 200,
        "tcp:host=h",
        "tcp:host=h,port=x",
        "ssh:host=h",
    ],
)
def test_bad_addresses(text):
    """The refusal says that it is the address."""
    with pytest.raises(NameInvalid, match="bus address"):
        parse(text)
