"""The head of a request as legacy clients write it, as a strict parser wants it, and as a stream goes to the daemon."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from xmlrpc_gateway.http_messages import CHARSET, Headers

# Stands in the parser's sight where a client sent no Host; never handed on.
NO_HOST: Final = "absent.host.invalid"
UNBOUNDED: Final = 2**62

_HEAD_LIMIT: Final = 16 * 1024  # a longer head goes to the parser as it is
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")
_HOST: Final = re.compile(rb"\nhost[ \t]*:", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r?\n|$)", re.IGNORECASE)
_NUMBER: Final = re.compile("[0-9]{1,18}")
_CHUNKED: Final = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_BLANKS: Final = " \t"
_BLANK_LINE: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([!-~]+) ([^\r\n]+) HTTP/([0-9]\.[0-9])[ \t]*\r?\n")
# What xapi puts before a request that it hands to another one: the length of the head. The reply is framed likewise.
_FRAME: Final = re.compile(rb"FRAME ([0-9]{12})")
# A line may go on in the next one, if that begins with white space.
_CONNECTION: Final = re.compile(rb"(?<=\n)connection[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE)
# What xapi's clients and browsers never give a body; RFC 9110 knows no meaning for one.
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head as it was sent; `raw` is all of it, with its blank line, `frame` what stood before it.

    is_raw          the connection belongs to client and daemon alone from here on: CONNECT, and an upgrade
    body_length     how many bytes belong to the request after its head; UNBOUNDED: all that comes
    """

    method: str
    target: str
    version: str
    headers: Headers
    raw: bytes
    frame: bytes = b""

    @property
    def is_raw(self) -> bool:
        offers = self._values("upgrade")
        # HTTP/2 is offered by some clients with every request, and known to no legacy daemon.
        return self.method == "CONNECT" or any(offer.lower() != "h2c" for offer in offers)

    @property
    def body_length(self) -> int:
        lengths = self._values("content-length")
        if self.is_raw or self._values("transfer-encoding"):
            return UNBOUNDED
        if not lengths:
            return 0 if self.method in _BODILESS else UNBOUNDED
        return int(lengths[0]) if len(lengths) == 1 and _NUMBER.fullmatch(lengths[0]) else UNBOUNDED

    def ending(self) -> bytes:
        """The head for a daemon that is to end the connection after its reply; nothing else is changed."""
        wishes = [wish.lower() for wish in self._values("connection")]
        if self.is_raw or wishes == ["close"] or (not wishes and self.version == "1.0"):
            return self.frame + self.raw
        line_end = b"\r\n" if self.raw.endswith(b"\r\n") else b"\n"
        kept = _CONNECTION.sub(b"", self.raw)
        raw = kept[: -len(line_end)] + b"connection: close" + line_end + line_end
        return (frame_of(raw) if self.frame else b"") + raw

    def _values(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name]


def frame_of(head: bytes) -> bytes:
    """What stands before a head in a framed exchange."""
    return b"FRAME %012d" % len(head)


def unframed(data: bytes) -> tuple[bytes, bytes]:
    """The frame that data begins with, or nothing, and the rest."""
    found = _FRAME.match(data)
    return (b"", data) if found is None else (found[0], data[found.end() :])


def request_line(data: bytes) -> tuple[str, str] | None:
    """Method and target of the request that data begins with; None if it begins with none."""
    line = _REQUEST_LINE.match(data)
    return None if line is None else (line[1].decode(CHARSET), line[2].decode(CHARSET))


def read_head(data: bytes, frame: bytes = b"") -> tuple[RequestHead, bytes] | None:
    """The head that data begins with, and what follows it; None if there is no whole one."""
    line = _REQUEST_LINE.match(data)
    end = _HEAD_END.search(data, 0, _HEAD_LIMIT)
    if line is None or end is None:
        return None
    headers: list[tuple[str, str]] = []
    for text in _LINE_END.split(data[line.end() : end.start()]):
        name, colon, value = text.decode(CHARSET).partition(":")
        if text[:1] in (b" ", b"\t") and headers:
            before, begun = headers.pop()
            headers.append((before, f"{begun} {text.decode(CHARSET).strip(_BLANKS)}".strip(_BLANKS)))
        elif colon:
            headers.append((name.rstrip(_BLANKS), value.strip(_BLANKS)))
    method, target, version = (part.decode(CHARSET) for part in line.groups())
    return RequestHead(method, target, version, tuple(headers), data[: end.end()], frame), data[end.end() :]


def split_request(data: bytes) -> tuple[bytes, int, bytes] | None:
    """The first request in data that begins with one: what of it is there, how many bytes of it are to come, the rest.

    Its head is mended: CR before LF, a Host in HTTP/1.1. None while the head is incomplete. What cannot be a request is
    given back whole, with all that may follow: refusing it is the parser's business.
    """
    end = _HEAD_END.search(data, 0, _HEAD_LIMIT)
    if end is None:
        if len(data) < _HEAD_LIMIT and data[:1].isalpha():
            return None
        return data, UNBOUNDED, b""
    head = data[: end.start()]
    stop = end.end() + _body_length(head)
    is_sound = end[0] == _BLANK_LINE and _HOST.search(head)
    there = data[:stop] if is_sound else _mended(head) + data[end.end() : stop]
    return there, max(0, stop - len(data)), data[stop:]


def _mended(head: bytes) -> bytes:
    """A request's head with what the parser insists on and legacy clients leave out: CR before LF, Host in HTTP/1.1."""
    lines = _LINE_END.split(head)
    if not _HOST.search(head):
        lines.append(b"Host: " + NO_HOST.encode())
    return b"\r\n".join(lines) + _BLANK_LINE


def _body_length(head: bytes) -> int:
    """How many bytes belong to the request after its head. One that will be refused may take all that comes."""
    length = _LENGTH.search(head)
    if length is not None:
        return int(length[1])
    return UNBOUNDED if _CHUNKED.search(head) else 0
