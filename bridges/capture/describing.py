"""What came and went becomes records: typed by the interface, redacted, and in the protocol's own words.

It happens after the messages were handed over, one after the other in their order. Nothing here raises for what it is
given. What was not read is not shown: of a message that cannot be read, and of every answer to a call that was not
read, a record has no byte, since what is secret in it cannot be told.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from bridges import dbus_translation
from bridges.calls import Door, Value
from bridges.capture import natives, records, typed
from bridges.capture.legs import Answered, Asked, Closed, Context, LegReader, Native, NotSeen
from bridges.capture.legs_of_bus import BusLeg
from bridges.capture.legs_of_sockets import DatagramLeg, SocketLeg
from bridges.capture.legs_of_store import StoreLeg
from bridges.capture.messages import (
    AsCaller,
    BusCall,
    DatagramCall,
    HttpCall,
    Message,
    Nothing,
    PageCall,
    Said,
    SocketCall,
    StoreCall,
)
from bridges.capture.records import ANSWERED, CLOSED, UNKNOWN, Complete, Leg
from bridges.capture.redaction import Redactor
from bridges.capture.unreadable import Unread
from bridges.comparison import Outcome, has_secrets
from bridges.faults import Fault
from bridges.interfaces.model import Method, Service
from xmlrpc_gateway.dialects import DIALECTS
from xmlrpc_gateway.http_messages import Peer

OPEN_LIMIT: Final = 65536
BODY_LIMIT: Final = 1024 * 1024
_NAME_CHARACTERS: Final = 100
_FAULT: Final = "fault"
_LEFT_OUT: Final = "what the interface does not read was left out"
_NOT_ANEW: Final = "its native form cannot be written from what is kept"
_UNREAD_CALL: Final = "its call was not read, so nothing of it is kept"


class Seen(NamedTuple):
    """A request in one leg of a call; times in nanoseconds. `command` is the peer's, where it is a known process."""

    call: str
    leg: Leg
    door: Door
    message: Message
    ts: int
    mono: int
    side: str
    stage: str
    epoch: int
    conn: str
    peer: Peer | str | None
    method: Method | None
    effect: str
    command: str = ""


class Heard(NamedTuple):
    """The answer in a leg."""

    call: str
    leg: Leg
    message: Message
    ts: int
    mono: int
    side: str
    epoch: int


class _OpenLeg(NamedTuple):
    """A request whose answer has not come."""

    reader: LegReader
    seq: int
    mono: int
    door: Door


class _Call:
    """A call with open legs. `hidden`: a request of it was not read, so what its answers repeat is not known."""

    __slots__ = ("hidden", "legs", "secrets")

    def __init__(self) -> None:
        self.hidden = False
        self.legs: dict[Leg, _OpenLeg] = {}
        self.secrets: frozenset[str] = frozenset()


class _Form(NamedTuple):
    """What a record says of a message in the protocol's own words."""

    native: Native | None
    rewritten: bool = False
    note: str = ""


class Describer:
    """The records of one service, for one capture.

    Calls whose answer has not come are remembered, `open_limit` of them; the oldest are forgotten. `body_limit` is in
    bytes: a larger message is not read.
    """

    def __init__(
        self,
        service: Service,
        dialect: str,
        on_bus: dbus_translation.Translation,
        redactor: Redactor,
        body_limit: int = BODY_LIMIT,
        *,
        open_limit: int = OPEN_LIMIT,
    ) -> None:
        lenient = dbus_translation.Translation(service)
        lenient.callers_values = lenient.values
        self._service = service
        self._context = Context(service, on_bus, lenient, redactor)
        self._redactor = redactor
        self._body_limit = body_limit
        self._open_limit = open_limit
        self._codes = service.errors.keys() | {DIALECTS[dialect].unknown_method}
        self._calls: dict[str, _Call] = {}

    # ---- requests

    def request(self, seen: Seen, seq: int) -> records.Request:
        """The record of a request."""
        call = self._calls.get(seen.call)
        if call is None:
            if len(self._calls) >= self._open_limit:
                del self._calls[next(iter(self._calls))]
            call = self._calls[seen.call] = _Call()
        message = seen.message
        if isinstance(message, AsCaller) and (caller := call.legs.get(Leg.CALLER)) is not None:
            reader = caller.reader
        else:
            reader = _leg_of(self._context, message, seen.method, str(seen.door))
        call.legs[seen.leg] = _OpenLeg(reader, seq, seen.mono, seen.door)
        told = self._read_request(call, reader, message)
        method = reader.method
        return records.Request(
            seq=seq,
            id=seen.call,
            leg=seen.leg,
            ts=str(seen.ts),
            mono=str(seen.mono),
            service=self._service.name,
            door=str(seen.door),
            name=self._name(call, reader),
            method="" if method is None else method.name,
            effect=str(method.effect) if method is not None else seen.effect,
            side=seen.side,
            stage=seen.stage,
            epoch=seen.epoch,
            conn=seen.conn,
            peer=_peer(seen, message),
            size=message.size,
            **told,
        )

    def _read_request(self, call: _Call, reader: LegReader, message: Message) -> dict[str, Any]:
        if isinstance(message, AsCaller):
            return {"note": records.AS_CALLERS}
        if message.size > self._body_limit:
            call.hidden = True
            return {"complete": Complete.CUT}
        try:
            asked = reader.ask(message)
            if asked.arguments is None:
                call.hidden |= reader.method is None or has_secrets(reader.method)
                return {"native": asked.native(), "complete": Complete.NO_ARGUMENTS}
            return self._asked(call, reader, asked, asked.arguments)
        except Unread as unread:
            call.hidden = True
            return {"complete": Complete.UNREAD, "note": str(unread)}
        except Exception as error:
            call.hidden = True
            return {"complete": Complete.UNREAD, "note": f"defect: {type(error).__name__}"}

    def _asked(self, call: _Call, reader: LegReader, asked: Asked, arguments: dict[str, Value]) -> dict[str, Any]:
        method = reader.method
        assert method is not None
        redacted = self._redactor.arguments(self._service, method, arguments)
        call.secrets |= redacted.secrets
        form = _form(asked, redacted.value, is_changed=bool(redacted.paths))
        typed_form = typed.write_arguments(method, redacted.value)
        return {"arguments": typed_form, "redacted": redacted.paths, **form._asdict()}

    def _name(self, call: _Call, reader: LegReader) -> str:
        """As on the wire; of one that is not written down no more than a line of text."""
        if reader.method is not None:
            return reader.name
        printable = "".join(filter(str.isprintable, reader.name[: 4 * _NAME_CHARACTERS]))
        return self._redactor.text(printable[:_NAME_CHARACTERS], call.secrets)

    # ---- replies

    def reply(self, heard: Heard, seq: int) -> records.Reply | None:
        """The record of an answer; None when its request is not known."""
        call = self._calls.get(heard.call)
        leg = None if call is None else call.legs.pop(heard.leg, None)
        if call is None or leg is None:
            return None
        told = self._read_reply(call, leg, heard.message)
        if not call.legs:
            del self._calls[heard.call]
        method = leg.reader.method
        return records.Reply(
            seq=seq,
            id=heard.call,
            leg=heard.leg,
            ts=str(heard.ts),
            mono=str(heard.mono),
            service=self._service.name,
            door=str(leg.door),
            re=leg.seq,
            us=max(0, heard.mono - leg.mono) // 1000,
            method="" if method is None else method.name,
            side=heard.side,
            epoch=heard.epoch,
            size=heard.message.size,
            **told,
        )

    def _read_reply(self, call: _Call, leg: _OpenLeg, message: Message) -> dict[str, Any]:
        reader = leg.reader
        try:
            match message:
                case AsCaller():
                    return {"outcome": UNKNOWN, "note": records.AS_CALLERS}
                case Nothing() if leg.door is Door.DATAGRAM and reader.method is not None:
                    return {"outcome": ANSWERED}
                case Nothing():
                    return {"outcome": UNKNOWN, "complete": Complete.NO_RESULT}
                case Said(fault):
                    return self._hide(fault) if call.hidden else self._failed(call, reader.method, fault)
            if message.size > self._body_limit:
                return {"outcome": UNKNOWN, "complete": Complete.CUT}
            answer = reader.outline(message) if call.hidden else reader.answer(message)
            match answer:
                case Closed():
                    return {"outcome": CLOSED}
                case NotSeen():
                    return {"outcome": UNKNOWN, "complete": Complete.NO_RESULT}
                case Answered(outcome) if call.hidden:
                    return self._hide(outcome)
            return self._answered(call, reader, answer)
        except Unread as unread:
            return {"outcome": UNKNOWN, "complete": Complete.UNREAD, "note": str(unread)}
        except Exception as error:
            return {"outcome": UNKNOWN, "complete": Complete.UNREAD, "note": f"defect: {type(error).__name__}"}

    def _answered(self, call: _Call, reader: LegReader, answer: Answered) -> dict[str, Any]:
        method, outcome = reader.method, answer.outcome
        assert method is not None
        if isinstance(outcome, Fault):
            return self._failed(call, method, outcome, answer)
        redacted = self._redactor.result(self._service, method, outcome, call.secrets)
        call.secrets |= redacted.secrets
        form = _form(answer, redacted.value, is_changed=bool(redacted.paths))
        result = typed.write(method.result, redacted.value)
        return {"outcome": ANSWERED, "result": result, "redacted": redacted.paths, **form._asdict()}

    def _failed(
        self, call: _Call, method: Method | None, fault: Fault, answer: Answered | None = None
    ) -> dict[str, Any]:
        shown, paths = self._redactor.fault(self._service, method, fault, call.secrets)
        fault_form = typed.write_fault(method, shown)
        if not shown.text.isascii():
            fault_form = msgspec.structs.replace(fault_form, text=natives.clean(shown.text))
        told = {"outcome": _FAULT, "fault": fault_form, "redacted": paths}
        if answer is None:
            return told
        return told | _form(answer, shown, is_changed=bool(paths) or shown.text != fault.text)._asdict()

    def _hide(self, outcome: Outcome) -> dict[str, Any]:
        """Of an answer to what was not read: whether it is a failure, and which one the interface calls it."""
        told: dict[str, Any] = {"outcome": ANSWERED, "complete": Complete.UNREAD, "note": _UNREAD_CALL}
        if isinstance(outcome, Fault):
            code = outcome.code if outcome.code in self._codes else ""
            told |= {"outcome": _FAULT, "fault": records.Fault(str(outcome.kind), code)}
        return told


def _leg_of(context: Context, message: Any, method: Method | None, door: str) -> LegReader:
    """The reader of a leg that begins with this message; `method` is what the door took it for."""
    match message:
        case HttpCall() | SocketCall():
            return SocketLeg(context, message, method, door)
        case StoreCall():
            return StoreLeg(context, message)
        case BusCall():
            return BusLeg(context, message, method)
        case DatagramCall():
            return DatagramLeg(context, message)
        case PageCall():
            return LegReader(message.head, None)
    return LegReader("", method)


def _form(message: Asked | Answered, value: Any, *, is_changed: bool) -> _Form:
    """The native form: as it was, where nothing was changed and nothing in it is unknown; else written anew."""
    if message.is_whole and not is_changed:
        return _Form(message.native())
    try:
        native = message.anew(value)
    except Exception:  # a mark in a secret's place need not fit the protocol
        return _Form(None, note=_NOT_ANEW)
    return _Form(native, rewritten=True, note="" if is_changed else _LEFT_OUT)


def _peer(seen: Seen, message: Message) -> dict[str, Any]:
    match peer := seen.peer:
        case Peer():
            known = {"uid": peer.uid, "pid": peer.pid}
            return known | {"command": seen.command} if seen.command else known
        case None:
            return {"name": message.sender} if isinstance(message, BusCall) and message.sender else {}
    return {"name" if isinstance(message, BusCall) else "address": peer}
