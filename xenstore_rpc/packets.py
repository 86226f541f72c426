"""Packets, paths and payloads of the xenstore wire protocol.

A packet is four 32-bit words in host byte order (operation, request id, transaction id, payload length) and the
payload. Numbers: Xen's public header io/xs_wire.h; those above SET_TARGET were tried against the daemons of Xen 4.17.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import NamedTuple

from xenstore_rpc.errors import BadRecord, InvalidPath, ValueTooLong

PAYLOAD_LIMIT = 4096
"""Longest payload a store takes, in bytes. Replies may be longer: oxenstored lists 300 long names in one packet."""

REPLY_LIMIT = 64 * 1024 * 1024
"""A length above this is a stream that lost its packet borders, not a reply."""

PATH_LIMIT = 3072
"""Longest absolute path in bytes (io/xs_wire.h)."""


class Op(IntEnum):
    """Operation numbers."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Packet(NamedTuple):
    """One packet; `op` is a plain number because a peer may send one that we do not know."""

    op: int
    request_id: int
    transaction: int
    payload: bytes


_HEADER = struct.Struct("=IIII")


def encode(op: int, request_id: int, transaction: int, payload: bytes) -> bytes:
    """The packet's bytes. The payload's length is the caller's business: stores refuse more than PAYLOAD_LIMIT."""
    return _HEADER.pack(op, request_id, transaction, len(payload)) + payload


class PacketReader:
    """Cuts a byte stream into packets, whatever pieces it arrives in."""

    def __init__(self, limit: int = REPLY_LIMIT) -> None:
        """`limit`: longest payload accepted, in bytes."""
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Packets completed by `data`. BadRecord when a header announces more than the limit."""
        buffer = self._buffer
        buffer += data
        packets: list[Packet] = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            op, request_id, transaction, length = _HEADER.unpack_from(buffer, start)
            if length > self._limit:
                raise BadRecord(
                    f"packet of operation {op} announces {length} bytes, at most {self._limit} are accepted"
                )
            end = start + _HEADER.size + length
            if end > len(buffer):
                break
            packets.append(Packet(op, request_id, transaction, bytes(buffer[start + _HEADER.size : end])))
            start = end
        del buffer[:start]
        return packets


_NAME = re.compile(r"[A-Za-z0-9_@-]+")
_PATH = re.compile(r"/|(?:/[A-Za-z0-9_@-]+)+")
_SPECIAL = re.compile(r"@[A-Za-z]+")


def check_name(field: str, name: str) -> str:
    """`name` itself when it can be one node name; InvalidPath names `field` otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidPath(field, name, "a node name of letters, digits and -_@")
    return name


def path_payload(path: str) -> bytes:
    """An absolute path, NUL-terminated, as most operations take it. InvalidPath when no store would accept it."""
    if not _PATH.fullmatch(path) or len(path) > PATH_LIMIT:
        raise InvalidPath("path", path, f"/NAME/NAME..., names of letters, digits and -_@, at most {PATH_LIMIT} bytes")
    return path.encode("ascii") + b"\0"


def watch_payload(path: str, token: str) -> bytes:
    """Path and token of WATCH and UNWATCH; the path may also be one of the store's own events (@releaseDomain)."""
    where = path.encode("ascii") + b"\0" if _SPECIAL.fullmatch(path) else path_payload(path)
    if not token.isascii() or not token.isprintable():
        raise InvalidPath("token", token, "printable ASCII text")
    return where + token.encode("ascii") + b"\0"


def write_payload(path: str, value: bytes) -> bytes:
    """Path and value of WRITE; the value is raw bytes without a terminator. ValueTooLong when both do not fit."""
    where = path_payload(path)
    if len(where) + len(value) > PAYLOAD_LIMIT:
        raise ValueTooLong(path, len(value), PAYLOAD_LIMIT - len(where))
    return where + value


def strings(payload: bytes) -> list[str]:
    """NUL-terminated strings of a reply. Bytes above ASCII survive as surrogate escapes."""
    return payload.decode("ascii", "surrogateescape").split("\0")[:-1]
