"""A capture as a sequence chart in Mermaid's language: who called whom, how long it took, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from bridges.calls import Door
from bridges.capture import records
from bridges.capture.records import Flip, Leg, Lost, Record, Reply, Request
from bridges.capture.store import Place

CALLS: Final = 200
"""Calls that a chart shows unless it is told otherwise: a browser draws that many."""

_TEXT: Final = 80  # characters
# Mermaid ends a statement at `;`, reads `#...;` as a character, and takes what follows `%%` for a comment.
_ESCAPES: Final = str.maketrans({"#": "#35;", ";": "#59;", "%": "#37;", "\n": " ", "\r": " ", "<": "#lt;", ">": "#gt;"})
_BRIDGE: Final = "bridge"


def mermaid(found: Iterable[tuple[Place, Record]], *, limit: int = CALLS) -> Iterator[str]:
    """The lines of a chart, the first `limit` calls and what happened among them; a note tells how many are left out.

    An arrow with a cross is a fault, a dotted one an answer.
    """
    yield "sequenceDiagram"
    chart = _Chart()
    left_out = 0
    for _, record in found:
        if isinstance(record, Request):
            if record.id not in chart.shown and record.leg in (Leg.CALLER, Leg.OBSERVED):
                if len(chart.shown) >= limit:
                    left_out += 1
                    continue
                chart.shown.add(record.id)
            if record.id in chart.shown:
                yield from chart.request(record)
        elif isinstance(record, Reply):
            yield from chart.reply(record)
        elif isinstance(record, Flip | Lost) and not left_out:
            yield from chart.event(record)
    if not chart.shown:
        yield from chart.note("no calls")
    if left_out:
        yield from chart.note(f"{left_out} more calls are left out")


class _Chart:
    """What was drawn: the calls by id, the arrows whose answer is to come by their request's seq."""

    def __init__(self) -> None:
        self.shown: set[str] = set()
        self._participants: dict[str, str] = {}
        self._arrows: dict[int, tuple[str, str]] = {}

    def request(self, record: Request) -> Iterator[str]:
        caller = f"{_caller(record)} ({record.door})"
        daemon = f"{record.service}, {record.side or 'daemon'}"
        match record.leg:
            case Leg.CALLER:
                origin, target = caller, _BRIDGE
            case Leg.BACKEND:
                origin, target = _BRIDGE, daemon
            case Leg.CANDIDATE:
                origin, target = _BRIDGE, f"{record.service}, candidate"
            case Leg.OBSERVED:
                origin, target = caller, daemon
        for name in (origin, target):
            yield from self._declare(name)
        ends = self._arrows[record.seq] = self._participants[origin], self._participants[target]
        yield f"    {ends[0]}->>{ends[1]}: {_text(f'{record.service} {record.method or record.name}')}"

    def reply(self, record: Reply) -> Iterator[str]:
        if (ends := self._arrows.pop(record.re, None)) is None:
            return
        origin, target = ends
        said, failed = record.outcome, record.outcome == records.CLOSED
        if record.fault is not None:
            said, failed = record.fault.code or record.fault.kind, True
        elif record.note == records.AS_CALLERS:
            said = record.note
        arrow = "--x" if failed else "-->>"
        yield f"    {target}{arrow}{origin}: {_text(f'{said}, {record.us / 1000:g} ms')}"

    def event(self, record: Flip | Lost) -> Iterator[str]:
        if isinstance(record, Lost):
            count = f"{record.n} records" if record.n else "records"
            yield from self.note(f"{record.service} {count} lost: {record.why}".strip())
        elif record.origin == record.target:
            yield from self.note(f"{record.service}: capture begins in {record.target}")
        else:
            yield from self.note(f"{record.service}: {record.origin} to {record.target}, epoch {record.epoch}")

    def note(self, text: str) -> Iterator[str]:
        yield from self._declare(_BRIDGE)
        yield f"    Note over {self._participants[_BRIDGE]}: {_text(text)}"

    def _declare(self, name: str) -> Iterator[str]:
        if name not in self._participants:
            short = self._participants[name] = f"p{len(self._participants) + 1}"
            yield f"    participant {short} as {_text(name)}"


def _caller(record: Request) -> str:
    """The best that is known of who called."""
    for key in ("command", "name", "pid", "address"):
        if known := record.peer.get(key):
            return f"pid {known}" if key == "pid" else str(known)
    # Over sockets each call has a connection of its own.
    return f"connection {record.conn}" if record.conn and record.door == Door.XENSTORE else "callers"


def _text(text: str) -> str:
    return (text if len(text) <= _TEXT else f"{text[:_TEXT]}...").translate(_ESCAPES)
