"""One connection's protocol state: which replies are awaited and which watches are set. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xenstore_rpc.errors import BadRecord
from xenstore_rpc.packets import Op, PacketReader, encode, strings

_REQUEST_IDS = 0xFFFF_FFFF


class Reply(NamedTuple):
    """The store's answer to one request; `error` is an errno name when the store refused, else None."""

    request_id: int
    error: str | None
    payload: bytes


class WatchEvent(NamedTuple):
    """Something happened at or below a watched path; `watch` is the (path, token) it was set with."""

    watch: tuple[str, str]
    path: str


class Session:
    """Gives out request ids, matches replies to them, and finds the watch an event belongs to.

    A request id is never reused while its reply is awaited. Watches are kept by (path, token) because the RPC
    convention uses one fixed token for all: an event carries the changed path, so its watch stands at an ancestor.
    """

    def __init__(self) -> None:
        self._reader = PacketReader()
        self._awaited: dict[int, int] = {}
        self._watches: set[tuple[str, str]] = set()
        self._last_id = 0

    def request(self, op: Op, payload: bytes, transaction: int = 0) -> tuple[int, bytes]:
        """Request id and packet for one operation."""
        request_id = self._last_id
        while True:
            request_id = request_id % _REQUEST_IDS + 1
            if request_id not in self._awaited:
                break
        self._last_id = request_id
        self._awaited[request_id] = op
        return request_id, encode(op, request_id, transaction, payload)

    def watch(self, path: str, token: str) -> None:
        """From now on events of this watch are reported; to be called before the WATCH request is sent."""
        self._watches.add((path, token))

    def unwatch(self, path: str, token: str) -> None:
        """Events of this watch are no longer reported, although some may still arrive."""
        self._watches.discard((path, token))

    def receive(self, data: bytes) -> list[Reply | WatchEvent]:
        """What the bytes say, in order. BadRecord when they are no packets or answer nothing we asked."""
        happened: list[Reply | WatchEvent] = []
        for packet in self._reader.feed(data):
            if packet.op == Op.WATCH_EVENT:
                happened.extend(self._events(packet.payload))
                continue
            asked = self._awaited.pop(packet.request_id, None)
            if asked is None or packet.op not in {asked, Op.ERROR}:
                raise BadRecord(f"reply of operation {packet.op} to request {packet.request_id}, which awaits {asked}")
            error = packet.payload.rstrip(b"\0").decode("ascii", "replace") if packet.op == Op.ERROR else None
            happened.append(Reply(packet.request_id, error, packet.payload))
        return happened

    def _events(self, payload: bytes) -> Iterator[WatchEvent]:
        fields = strings(payload)
        if len(fields) < 2:
            raise BadRecord(f"watch event with {len(fields)} fields, expected path and token")
        path, token = fields[:2]
        place = path
        while True:
            if (place, token) in self._watches:
                yield WatchEvent((place, token), path)
            if place in {"/", ""} or not place.startswith("/"):
                return
            place = place.rpartition("/")[0] or "/"
