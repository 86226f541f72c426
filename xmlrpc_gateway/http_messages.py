"""One HTTP request, one HTTP reply, and the way legacy daemons refuse to reply; how a head looks on the wire.

Header names keep the case they were sent with, and headers their order and duplicates: a relay must not tidy up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Final

from xmlrpc_gateway.errors import BadReply

Headers = tuple[tuple[str, str], ...]
# Headers are bytes by the protocol; latin-1 maps each byte to a character and back.
CHARSET: Final = "latin-1"
# RFC 9110 7.6.1: meant for the next hop only. `expect` is answered by the door itself.
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class CloseSilently(Enum):
    """The type of CLOSE_SILENTLY, the answer that consists of closing the connection without a byte."""

    CLOSE_SILENTLY = "close silently"


CLOSE_SILENTLY: Final = CloseSilently.CLOSE_SILENTLY


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket when it connected, as the kernel says (SO_PEERCRED)."""

    uid: int
    gid: int
    pid: int


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. `target` is the request line's, untouched; `version` is "1.0" or "1.1"; `body` is never compressed.

    `peer` is a Peer on a Unix socket, "ADDRESS:PORT" on TCP; `connection` is another number for each connection.
    """

    method: str
    target: str
    version: str
    headers: Headers
    body: bytes
    peer: Peer | str
    connection: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One reply. With empty `headers` the door sends those of the daemon it stands for, else exactly these.

    The door adds what frames the reply (content-length, connection) where it is missing.
    """

    status: int
    headers: Headers
    body: bytes


def header(headers: Headers, name: str) -> str | None:
    """The value of the first header of that name (given in lower case), or None."""
    return next((value for found, value in headers if found.lower() == name), None)


def reply_head(version: str, status: int, headers: Headers) -> bytes:
    """The status line and headers of a reply, up to and including the blank line."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/{version} {status} {phrase}", *[f"{name}: {value}" for name, value in headers], "", ""]
    return "\r\n".join(lines).encode(CHARSET)


def request_head(method: str, target: str, version: str, headers: Headers) -> bytes:
    """The request line and headers of a request, up to and including the blank line."""
    lines = [f"{method} {target} HTTP/{version}", *[f"{name}: {value}" for name, value in headers], "", ""]
    return "\r\n".join(lines).encode(CHARSET)


def parse_reply_head(head: bytes) -> tuple[int, Headers, int | None]:
    """Status, headers and body length (None: up to the end of the connection) of a reply's head without its blank line.

    Lines may end in CR LF or LF. Raises BadReply.
    """
    status_line, *lines = head.decode(CHARSET).replace("\r\n", "\n").split("\n")
    version, _, rest = status_line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise BadReply(f"expected an HTTP status line, got {status_line[:60]!r}")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadReply(f"expected a header NAME: VALUE, got {line[:60]!r}")
        headers.append((name, value.strip(" \t")))
    kept = tuple(headers)
    if (coding := header(kept, "transfer-encoding")) is not None:
        raise BadReply(f"expected a reply with a content-length, got transfer-encoding {coding[:60]!r}")
    return int(code), kept, _body_length(kept)


def _body_length(headers: Headers) -> int | None:
    text = header(headers, "content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadReply(f"content-length: expected a decimal number, got {text[:60]!r}")
    return int(text)
