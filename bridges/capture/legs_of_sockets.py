"""Calls over HTTP and in frames, and by datagram."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from bridges.calls import Value
from bridges.capture import legs, natives
from bridges.capture.legs import Answered, Asked, Closed, Context, Json, Native
from bridges.capture.messages import DatagramCall, HttpCall, SocketAnswer, SocketCall
from bridges.capture.unreadable import Unread, misfit_argument, misfit_result, undecoded
from bridges.comparison import Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method
from bridges.xmlrpc_translation import MethodForm
from bridges.xmlrpc_values import Mismatch
from xmlrpc_gateway import jsonrpc_codec
from xmlrpc_gateway.dialects import Failure, Success
from xmlrpc_gateway.encodings import JsonEncoding
from xmlrpc_gateway.errors import CodecError
from xmlrpc_gateway.http_messages import CloseSilently, Headers, HttpReply, HttpRequest
from xmlrpc_gateway.jsonrpc_codec import ReplyTo
from xmlrpc_gateway.xmlrpc_codec import Value as Wire

_OK: Final = 200
_MEMBERS: Final = frozenset({"method", "params", "result", "error", "id", "jsonrpc"})
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SocketLeg(legs.LegReader):
    """A call over HTTP or in a frame."""

    def __init__(self, context: Context, message: HttpCall | SocketCall, method: Method | None, door: str) -> None:
        super().__init__("" if method is None else method.name, method)
        self._service = context.service
        self._redactor = context.redactor
        self._door = door
        self._encoding, self._translation = message.tongue
        self._has_head = isinstance(message, HttpCall)
        self._reply_to: ReplyTo | None = None

    def ask(self, message: HttpCall | SocketCall) -> Asked:
        body = message.body
        try:
            incoming = self._encoding.read_call(body)
        except CodecError as error:
            raise undecoded(error) from None
        self.name, self._reply_to = incoming.method, incoming.reply_to
        self.method = method = self._find(incoming.method)
        if method is None:
            raise Unread("no method of the service")
        form = self._translation.of(method)
        try:
            arguments = form.read_arguments(incoming.params)
        except Mismatch as mismatch:
            raise misfit_argument(method, mismatch) from None
        request = message.request if isinstance(message, HttpCall) else None
        return Asked(
            arguments,
            lambda: self._request_native(request, natives.text(body)),
            lambda others: self._request_native(request, self._call_anew(form, others)),
            _covers(incoming.params, form.write_arguments(arguments)) and self._is_plain(body),
        )

    def _find(self, name: str) -> Method | None:
        method = self._service.method(name)
        if method is None and self._translation.dialect.has_aliases:
            method = self._service.method_by_alias(name)
        return None if method is None or not method.is_at(self._door) else method

    def _is_plain(self, body: bytes) -> bool:
        """Whether a message has nothing around its values that its readers pass over: comments, further members."""
        if not isinstance(self._encoding, JsonEncoding):
            return b"<!" not in body
        try:
            return _members.decode(body).keys() <= _MEMBERS
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False

    def _request_native(self, request: HttpRequest | None, body: Json) -> Native:
        if request is None:
            return {"body": body}
        line = f"{request.method} {self._redactor.target(request.target)} HTTP/{request.version}"
        return {"line": natives.clean(line), "headers": self._headers(request.headers), "body": body}

    def _headers(self, headers: Headers) -> list[list[str]]:
        return [[natives.clean(name), natives.clean(value)] for name, value in self._redactor.headers(headers)]

    def _call_anew(self, form: MethodForm, arguments: dict[str, Value]) -> str:
        params = form.write_arguments(arguments)
        encoding, to = self._encoding, self._reply_to
        if to is None or not isinstance(encoding, JsonEncoding):
            return encoding.write_call(self.name, params).decode()
        style = replace(encoding.style, echoes=encoding.style.echoes and to.version == 2)
        number = to.id if isinstance(to.id, int) else 0
        return jsonrpc_codec.encode_call(self.name, params, number, style).decode()

    def answer(self, message: SocketAnswer) -> Answered | Closed:
        said = self._read(message.reply)
        if isinstance(said, Closed):
            return said
        method, reply = self.method, message.reply
        assert method is not None
        assert not isinstance(reply, CloseSilently)
        body = reply if isinstance(reply, bytes) else reply.body
        form = self._translation.of(method)
        outcome: Outcome
        if isinstance(said, Success):
            try:
                outcome = form.read_result(said.value)
            except Mismatch as mismatch:
                raise misfit_result(method, mismatch) from None
            is_whole = _covers(said.value, form.write_result(outcome))
        else:
            outcome = form.read_failure(said.description)
            is_whole = _covers(said.description, form.write_failure(outcome))
        return Answered(
            outcome,
            lambda: self._reply_native(reply, natives.text(body)),
            lambda other: self._reply_native(reply, self._reply_anew(form, other)),
            is_whole and self._is_plain(body),
        )

    def outline(self, message: SocketAnswer) -> Answered | Closed:
        said = self._read(message.reply)
        match said:
            case Closed():
                return said
            case Failure(str(code) | [str(code), *_]):
                if code == self._translation.dialect.unknown_method:
                    return legs.outline(Fault(Kind.UNKNOWN_METHOD, "", code=code))
                return legs.outline(legs.fault_of(self._service, code))
            case Failure():
                return legs.outline(legs.fault_of(self._service, ""))
        return legs.outline(None)

    def _read(self, reply: HttpReply | bytes | CloseSilently) -> Success | Failure | Closed:
        if isinstance(reply, CloseSilently):
            return Closed()
        try:
            return self._encoding.read_reply(reply if isinstance(reply, bytes) else reply.body)
        except CodecError as error:
            if isinstance(reply, HttpReply) and reply.status != _OK:
                raise Unread(f"no reply of the service: HTTP status {reply.status}") from None
            raise undecoded(error) from None

    def _reply_native(self, reply: HttpReply | bytes, body: Json) -> Native:
        if isinstance(reply, HttpReply):
            return {"status": reply.status, "headers": self._headers(reply.headers), "body": body}
        return {"status": _OK, "headers": [], "body": body} if self._has_head else {"body": body}

    def _reply_anew(self, form: MethodForm, outcome: Outcome) -> str:
        to = self._reply_to
        if to is not None and isinstance(to.id, str):
            to = replace(to, id=0)  # whatever it says: the call had a secret
        if isinstance(outcome, Fault):
            return self._encoding.write_failure(to, form.write_failure(outcome)).decode()
        return self._encoding.write_success(to, form.write_result(outcome)).decode()


class DatagramLeg(legs.LegReader):
    """A datagram: its text is the method's name."""

    def __init__(self, context: Context, message: DatagramCall) -> None:
        method = context.service.method(message.payload.decode("utf-8", "replace"))
        super().__init__("" if method is None else method.name, method)

    def ask(self, message: DatagramCall) -> Asked:
        if self.method is None:
            raise Unread("no command of the service")
        native = {"payload": self.name}
        return Asked({}, lambda: native, lambda _: native)


def _covers(wire: Wire, back: Wire) -> bool:
    """Whether all that was on the wire is in what was read of it, by what we would write for that."""
    if wire == back:
        return True
    match wire:
        case dict():
            return (
                isinstance(back, dict)
                and wire.keys() == back.keys()
                and all(_covers(item, back[name]) for name, item in wire.items())
            )
        case [tag, *rest] if isinstance(back, str):  # a constructor with nothing behind it, or a null
            return tag == back and not any(item is not None for item in rest)
        case list():
            return isinstance(back, list) and len(wire) == len(back) and all(map(_covers, wire, back))
        case str():  # a number that is written in another way
            return isinstance(back, (int, float)) or (isinstance(back, str) and back.lstrip("-").isdecimal())
    return not isinstance(back, (dict, list))
