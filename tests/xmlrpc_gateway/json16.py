"""Recorded exchanges of the framed sockets and of JSON-RPC over HTTP; see tests/golden/json16."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "json16"

# File and the style that its daemon speaks.
WELL_FORMED = [
    ("xenopsd-json16-allcalls", "rpclib"),
    ("xenopsd2013-bin", "rpc-light"),
    ("xenopsd2013-json", "rpc-light"),
    ("squeezed-json16-rpclight2012", "rpc-light"),
]
WITH_ERRORS = [
    ("xenopsd-json16-errors", "rpclib"),
    ("xenopsd2013-bin-errors", "rpc-light"),
    ("xenopsd2013-json-errors", "rpc-light"),
]


@dataclass(frozen=True)
class Recording:
    """One recorded exchange, both directions raw."""

    label: str
    request: bytes
    response: bytes

    @property
    def request_body(self) -> bytes:
        return _body(self.request)

    @property
    def response_body(self) -> bytes:
        return _body(self.response)


def _body(message: bytes) -> bytes:
    """Of HTTP what comes after the headers; of a frame as many bytes as it says in plain digits, else all others."""
    head, blank_line, body = message.partition(b"\r\n\r\n")
    if blank_line and b"HTTP/1." in head:
        return body
    length, body = message[:16], message[16:]
    return body[: int(length)] if length.isdigit() and body else body


def load(name: str) -> list[Recording]:
    """A file of recorded exchanges, by its name without suffix."""
    return [
        Recording(entry["exchange"], base64.b64decode(entry["request"]), base64.b64decode(entry["response"]))
        for entry in map(json.loads, (GOLDEN / f"{name}.jsonl").read_text().splitlines())
    ]
