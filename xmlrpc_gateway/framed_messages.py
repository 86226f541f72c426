"""One message of the framed sockets (`*.json`): sixteen characters of length, then the body; one exchange a connection.

The daemons write the length in decimal digits and read it as OCaml reads an integer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.errors import Malformed

if TYPE_CHECKING:
    from xmlrpc_gateway.http_messages import Peer

HEAD_SIZE: Final = 16
# OCaml's int_of_string; within sixteen characters no number is too large for it.
_INTEGER: Final = re.compile(
    rb"([+-]?)(?:0[xX]([0-9a-fA-F][0-9a-fA-F_]*)|0[oO]([0-7][0-7_]*)|0[bB]([01][01_]*)|(?:0[uU])?([0-9][0-9_]*))"
)
_BASES: Final = (16, 8, 2, 10)  # of the regular expression's groups


@dataclass(frozen=True, slots=True)
class FramedRequest:
    """One request: its body without the length, and who sent it."""

    body: bytes
    peer: Peer


def head(body: bytes) -> bytes:
    """The length that goes before a body."""
    return b"%016d" % len(body)


def body_length(found: bytes) -> int:
    """The body's length by the sixteen bytes before it. Raises Malformed."""
    match = _INTEGER.fullmatch(found)
    if match is None:
        raise Malformed(f"expected a length in {HEAD_SIZE} characters, got {found!r}")
    sign, *texts = match.groups()
    length = next(int(text.replace(b"_", b""), base) for text, base in zip(texts, _BASES, strict=True) if text)
    if sign == b"-" and length:
        raise Malformed(f"expected a length, got the negative {found!r}")
    return length
