"""One recorded exchange against today's interface: does it fit, and would the bridge carry it? Nothing is sent."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from bridges import dbus_translation, faults, round_trips
from bridges.calls import Value
from bridges.capture import typed
from bridges.capture.records import ANSWERED, UNKNOWN, Complete, Reply, Request
from bridges.comparison import Outcome, cut
from bridges.interfaces.model import Method, Service
from bridges.replay.lint_results import Kind
from bridges.replay.pairs import Exchange
from bridges.xmlrpc_values import Mismatch

_cut: Final = partial(cut, longest=200)  # what a finding tells
_HALVES: Final = {
    Complete.NO_ARGUMENTS: Kind.NO_ARGUMENTS,
    Complete.NO_RESULT: Kind.NO_RESULT,
    Complete.CUT: Kind.CUT,
}
_MISFITS: Final = frozenset({Kind.ARGUMENTS, Kind.RESULT, Kind.FAULT})


class Carriage(StrEnum):
    """What the bridge makes of a call; see `lint_results.MethodRow`."""

    CARRIED = "carried"
    LOSSY = "lossy"
    NOT_CARRIED = "not carried"
    UNTOLD = "untold"


class Note(NamedTuple):
    """Something that was found in an exchange."""

    kind: Kind
    text: str


class Checked(NamedTuple):
    """What became of an exchange. `arguments` and `outcome` are neutral; None where they are not whole."""

    carriage: Carriage
    notes: list[Note]
    arguments: dict[str, Value] | None = None
    outcome: round_trips.Said | None = None


class Checker:
    """The calls of one service, by its interface of today."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._on_bus = dbus_translation.Translation(service)

    def method(self, request: Request) -> Method | None:
        return self.service.method(request.method or request.name)

    def check(self, exchange: Exchange) -> Checked:
        """It never raises: whatever is wrong is a note."""
        request, reply = exchange.request, exchange.reply
        method = self.method(request)
        wrong = _unfit(request, method)
        if wrong is not None:
            if _was_refused(reply):
                return Checked(Carriage.CARRIED, [Note(Kind.REFUSED, f"{wrong.kind}: {wrong.text}")])
            return Checked(Carriage.NOT_CARRIED, [wrong])
        assert method is not None
        notes = _halves(request, reply)
        arguments = self._arguments(method, request, reply, notes)
        outcome = self._outcome(method, request, reply, notes)
        if any(note.kind in _MISFITS for note in notes):
            return Checked(Carriage.NOT_CARRIED, notes, arguments, outcome)
        if arguments is None or outcome is None:
            return Checked(Carriage.UNTOLD, notes, arguments, outcome)
        return Checked(self._carry(method, arguments, outcome.answer, notes), notes, arguments, outcome)

    def _arguments(
        self, method: Method, request: Request, reply: Reply | None, notes: list[Note]
    ) -> dict[str, Value] | None:
        if request.arguments is None or request.complete is not Complete.COMPLETE:
            return None
        try:
            return typed.read_arguments(method, request.arguments)
        except Mismatch as mismatch:
            if not _was_refused(reply) and not _is_redacted(mismatch, request.redacted):
                is_secret = any(p.secret and p.name in mismatch.path for p in method.parameters)
                notes.append(Note(Kind.ARGUMENTS, _why(mismatch, is_secret=is_secret)))
            return None

    def _outcome(
        self, method: Method, request: Request, reply: Reply | None, notes: list[Note]
    ) -> round_trips.Said | None:
        if reply is None:
            return None
        if reply.complete is Complete.UNREAD and request.complete is Complete.COMPLETE:
            notes.append(Note(Kind.RESULT, _cut(reply.note)))
        if reply.complete is not Complete.COMPLETE:
            return None
        try:
            if reply.fault is not None:
                fault = typed.read_fault(method, reply.fault)
                if fault.kind is faults.Kind.UNDECLARED:
                    notes.append(Note(Kind.UNDECLARED, _cut(fault.code)))
                return round_trips.Said(fault)
            return round_trips.Said(typed.read(method.result, reply.result)) if reply.outcome == ANSWERED else None
        except Mismatch as mismatch:
            if not _is_redacted(mismatch, reply.redacted):
                kind = Kind.RESULT if reply.fault is None else Kind.FAULT
                notes.append(Note(kind, _why(mismatch, is_secret=method.secret_result)))
            return None

    def _carry(self, method: Method, arguments: dict[str, Value], outcome: Outcome, notes: list[Note]) -> Carriage:
        trip = round_trips.of_bus(self._on_bus, method, arguments, outcome)
        notes += [
            Note(Kind.LOSS, _cut(f"{lost.path}: {lost.left or 'what it was'} becomes {lost.right}"))
            for lost in trip.differences
        ]
        if trip.differences:
            return Carriage.LOSSY
        # A note: the answer was none of the daemon's own.
        return Carriage.UNTOLD if trip.note else Carriage.CARRIED


def _unfit(request: Request, method: Method | None) -> Note | None:
    """Why it is no call that the bridge can take; None when it is one."""
    if method is None:
        if " " in request.name:  # a page: GET /path
            return Note(Kind.NO_CALL, _cut(request.name))
        kind = Kind.UNKNOWN_METHOD if request.name else Kind.UNREADABLE
        return Note(kind, _cut(request.note or request.name))
    if not method.is_at(request.door):
        return Note(Kind.DOOR, f"at the door {request.door}")
    if request.complete is Complete.UNREAD:
        kind = Kind.ARGUMENTS if request.note.startswith("arguments") else Kind.UNREADABLE
        return Note(kind, _cut(request.note))
    return None


def _was_refused(reply: Reply | None) -> bool:
    return reply is not None and reply.outcome not in (ANSWERED, UNKNOWN)


def _halves(request: Request, reply: Reply | None) -> list[Note]:
    notes = []
    if kind := _HALVES.get(request.complete):
        notes.append(Note(kind, _cut(request.note)))
    if reply is None:
        notes.append(Note(Kind.NO_ANSWER, ""))
    elif (kind := _HALVES.get(reply.complete)) is not None and reply.complete is not request.complete:
        notes.append(Note(kind, _cut(reply.note)))
    return notes


def _is_redacted(mismatch: Mismatch, paths: list[str]) -> bool:
    """Whether it is what stands in the place of a secret that does not fit."""
    place = ".".join(reversed(mismatch.path))
    return any(place == path or place.startswith(f"{path}.") or path.startswith(place) for path in paths)


def _why(mismatch: Mismatch, *, is_secret: bool) -> str:
    text = f"{mismatch.place} is a secret that does not fit" if is_secret else mismatch.for_the_log
    return _cut(text)
