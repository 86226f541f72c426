"""The RPC calls in a recorded conversation of a client with the store: all bytes of one connection, both directions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from xenstore_rpc.errors import BadRecord
from xenstore_rpc.packets import Op, Packet, PacketReader
from xenstore_rpc.records import Request, Response

HEADER: Final = 16
_Key = tuple[str, str, str]  # tree, function, request id
_RECORD: Final = re.compile(rb"/([A-Za-z0-9_@-]+)/rpc/(request|response)/([^/\0]+)/([^/\0]+)(?:/([^\0]+))?")


class Conversed(NamedTuple):
    """One call. `response` is None when none was read; `sent` and `received` count the bytes of the connection, in each
    direction, up to the end of the request and of what was read of the response.
    """

    tree: str
    request: Request
    response: Response | None
    sent: int
    received: int


class _Exchange(NamedTuple):
    """An operation and its answer, with the bytes of both directions up to their ends."""

    asked: Packet
    answer: Packet
    sent: int
    received: int


class _Open:
    """A call that is not over: what was written and read of it."""

    def __init__(self) -> None:
        self.sent = 0
        self._received = 0
        self._arguments: dict[str, bytes] = {}
        self._names: list[str] | None = None
        self._results: dict[str, bytes] = {}

    def write(self, name: str, value: bytes, exchange: _Exchange) -> None:
        self.sent = exchange.sent
        if name:
            self._arguments[name] = value

    def read(self, name: str, exchange: _Exchange) -> None:
        if exchange.asked.op == Op.DIRECTORY and not name:
            self._names = exchange.answer.payload.decode("ascii", "replace").split("\0")[:-1]
        elif exchange.asked.op == Op.READ and name:
            self._results[name] = exchange.answer.payload
        else:
            return
        self._received = exchange.received

    def close(self, key: _Key) -> Conversed:
        tree, function, request_id = key
        is_whole = self._names is not None and all(name in self._results for name in self._names)
        response = Response(tuple((name, self._results[name]) for name in self._names or ())) if is_whole else None
        request = Request(function, request_id, tuple(self._arguments.items()))
        return Conversed(tree, request, response, self.sent, self._received)


def looks_like_one(sent: bytes) -> bool:
    """Whether bytes begin with a packet: a small number in four bytes, as no text does."""
    return len(sent) >= HEADER and int.from_bytes(sent[:4], sys.byteorder) <= max(Op)


def calls(sent: bytes, received: bytes) -> Iterator[Conversed]:
    """The calls of one connection, each when its request is removed, the rest at the end. Raises BadRecord."""
    transactions: dict[int, dict[_Key, _Open]] = {}
    begun: dict[_Key, _Open] = {}
    for exchange in _exchanges(sent, received):
        asked = exchange.asked
        if asked.op == Op.TRANSACTION_END:
            written = transactions.pop(asked.transaction, {})
            if asked.payload.startswith(b"T") and exchange.answer.op != Op.ERROR:
                for key, found in written.items():
                    begun[key] = found
                    found.sent = exchange.sent
        elif exchange.answer.op != Op.ERROR and (record := _RECORD.match(asked.payload)) is not None:
            tree, kind, function, request_id, name = (part.decode("ascii", "replace") for part in record.groups(b""))
            key = (tree, function, request_id)
            if kind == "response":
                if key in begun:
                    begun[key].read(name, exchange)
            elif asked.op == Op.RM and key in begun:
                yield begun.pop(key).close(key)
            elif asked.op in (Op.MKDIR, Op.WRITE):
                group = transactions.setdefault(asked.transaction, {}) if asked.transaction else begun
                group.setdefault(key, _Open()).write(name, asked.payload[record.end() + 1 :], exchange)
    for key, found in begun.items():
        yield found.close(key)


def _exchanges(sent: bytes, received: bytes) -> Iterator[_Exchange]:
    """Operations and their answers. The store answers in order; what was not answered any more is left out."""
    asked, answers = PacketReader().feed(sent), PacketReader().feed(received)
    up, down = 0, 0
    waiting = iter(asked)
    for answer in answers:
        down += HEADER + len(answer.payload)
        if answer.op == Op.WATCH_EVENT:
            continue
        packet = next(waiting, None)
        if packet is None or answer.op not in (packet.op, Op.ERROR):
            wanted = "nothing" if packet is None else f"operation {packet.op}"
            raise BadRecord(f"an answer of operation {answer.op} where {wanted} was asked")
        up += HEADER + len(packet.payload)
        yield _Exchange(packet, answer, up, down)
