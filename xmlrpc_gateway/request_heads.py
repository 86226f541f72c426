"""The head of a request as legacy clients write it, and as a strict parser wants it."""

from __future__ import annotations

import re
from typing import Final

# Stands in the parser's sight where a client sent no Host; never handed on.
NO_HOST: Final = "absent.host.invalid"
UNBOUNDED: Final = 2**62

_HEAD_LIMIT: Final = 16 * 1024  # a longer head goes to the parser as it is
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")
_HOST: Final = re.compile(rb"\nhost[ \t]*:", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r?\n|$)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_BLANK_LINE: Final = b"\r\n\r\n"


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
