"""Where calls enter: the HTTP door, the xenstore door and the bus door of one service.

A door turns what came into a neutral call, hands it to dispatch, and says the answer or the fault in its own protocol's
words. While the legacy side rules, HTTP passes through byte for byte; nothing is decoded on the way.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from bridges import dbus_translation, xenstore_translation, xmlrpc_translation
from bridges.backends import Backend
from bridges.calls import Call, Door, Side, Value
from bridges.dispatch import Dispatch
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Service
from dbus_side import introspection
from dbus_side.exported import MethodHandler
from dbus_side.messages import MethodCall
from xenstore_rpc.records import EXCEPTION, Request, Response, error_response
from xmlrpc_gateway import dialects, manners, xmlrpc_codec
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.errors import (
    BadReply,
    BadScalar,
    ClosedSilently,
    CodecError,
    DaemonGone,
    DaemonTimedOut,
    DaemonUnreachable,
    DuplicateMember,
)
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, HttpReply, HttpRequest

LOG: Final = logging.getLogger("bridges.doors")
_ids: Final = itertools.count(1)


def defect(where: str, error: Exception) -> Fault:
    """Logs an unexpected exception under an id; the caller gets the id, never the traceback."""
    number = next(_ids)
    LOG.error("defect %d in %s", number, where, exc_info=error)
    return Fault(Kind.INTERNAL, f"internal error {number}; the bridge's log has the details")


def deadline_of(method: Method) -> float | None:
    return None if method.deadline is None else time.monotonic() + method.deadline


class Backends:
    """Who to ask on each side."""

    def __init__(self, legacy: Backend, bus: Backend) -> None:
        self._legacy = legacy
        self._bus = bus

    async def ask(self, side: Side, call: Call) -> Value:
        return await (self._legacy if side is Side.LEGACY else self._bus).ask(call)


class BusDoor:
    """The service's objects on the bus, for as long as its daemon is a legacy one."""

    def __init__(self, dispatch: Dispatch, backends: Backends, translation: dbus_translation.Translation) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._translation = translation

    def objects(self) -> list[tuple[str, introspection.Interface, MethodHandler]]:
        """Path, interface and handler of every object to export."""
        described = dbus_translation.interfaces(self._translation)
        return [
            (self._translation.of(methods[0]).path, described[name], self._handler(methods))
            for name, methods in self._translation.service.objects.items()
        ]

    def _handler(self, methods: tuple[Method, ...]) -> MethodHandler:
        by_member = {self._translation.of(method).member: method for method in methods}
        return lambda message, member: self._answer(message, by_member[member.name])

    async def _answer(self, message: MethodCall, method: Method) -> tuple[object, ...]:
        """The out arguments of the reply. Raises BusRefused."""
        form = self._translation.of(method)
        deadline = deadline_of(method)

        async def work(side: Side) -> Value:
            call = Call(method, form.read_arguments(message.body), Door.BUS, deadline)
            return await self._backends.ask(side, call)

        try:
            return form.write_result(await self._dispatch.run(Door.BUS, deadline, work))
        except Fault as fault:
            raise form.write_fault(fault) from None
        except Exception as error:
            raise form.write_fault(defect(f"{method.service} {method.name} at the bus door", error)) from None


class XenstoreDoor:
    """The service's tree in the store, while the bus side rules."""

    def __init__(self, dispatch: Dispatch, backends: Backends, service: Service) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._service = service

    async def answer(self, request: Request) -> Response:
        """The response to a request; it never raises but for cancellation."""
        arguments: dict[str, Value] = {}
        try:
            method = xenstore_translation.method_of(self._service, request)
            arguments = xenstore_translation.read_arguments(method, request)
            call = Call(method, arguments, Door.XENSTORE, deadline_of(method))
            value = await self._dispatch.run(Door.XENSTORE, call.deadline, lambda side: self._backends.ask(side, call))
            return xenstore_translation.write_response(method, value)
        except Fault as fault:
            LOG.info("%s %s at the xenstore door: %s", self._service.name, request.function, fault.sentence)
            return xenstore_translation.write_fault(self._service, arguments, fault)
        except Exception as error:
            unexpected = defect(f"{self._service.name} {request.function} at the xenstore door", error)
            return error_response(EXCEPTION, unexpected.sentence)


class _Said(Fault):
    """A fault whose words on the wire are decided: the reply, or the silent close."""

    def __init__(self, kind: Kind, text: str, reply: HttpReply | CloseSilently) -> None:
        super().__init__(kind, text)
        self.reply = reply


class HttpDoor:
    """The service's XML-RPC socket: passed through while legacy rules, translated when the bus side does."""

    def __init__(
        self,
        dispatch: Dispatch,
        backends: Backends,
        service: Service,
        translation: xmlrpc_translation.Translation,
        legacy: Callable[[], DaemonClient],
    ) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._service = service
        self._translation = translation
        self._legacy = legacy
        self.manner = manners.rpclib(service.name)

    async def answer(self, request: HttpRequest) -> HttpReply | CloseSilently:
        """The reply on the wire, or the silent close with which the legacy daemon answers what it cannot read."""
        method = self._service.method(_method_name(request.body))
        deadline = deadline_of(method) if method is not None else time.monotonic() + _UNKNOWN_SECONDS

        async def work(side: Side) -> HttpReply | CloseSilently:
            if side is Side.LEGACY:
                return await self._relay(request, method, deadline)
            return await self._translate(request)

        return await self._run(deadline, work)

    async def answer_others(self, request: HttpRequest) -> HttpReply | CloseSilently:
        """A request that is no POST: the legacy daemon's own affair, and answered as it would when it is gone."""
        deadline = time.monotonic() + _UNKNOWN_SECONDS

        async def work(side: Side) -> HttpReply | CloseSilently:
            if side is Side.LEGACY:
                return await self._relay(request, None, deadline)
            return self.manner.answer_to(request.method)

        return await self._run(deadline, work)

    async def too_large(self, text: str) -> HttpReply | CloseSilently:
        """The reply to a body over the limit, which was never read."""
        LOG.info("%s at the http door: %s", self._service.name, text)
        return _failure(xmlrpc_translation.internal_error(Fault(Kind.INVALID_ARGUMENT, text)))

    async def _run(
        self, deadline: float | None, work: Callable[[Side], Awaitable[HttpReply | CloseSilently]]
    ) -> HttpReply | CloseSilently:
        try:
            return await self._dispatch.run(Door.HTTP, deadline, work)
        except Fault as fault:
            LOG.info("%s at the http door: %s", self._service.name, fault.sentence)
            return fault.reply if isinstance(fault, _Said) else _failure(xmlrpc_translation.internal_error(fault))
        except Exception as error:
            unexpected = defect(f"{self._service.name} at the http door", error)
            return _failure(xmlrpc_translation.internal_error(unexpected))

    async def _relay(
        self, request: HttpRequest, method: Method | None, deadline: float | None
    ) -> HttpReply | CloseSilently:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return await self._legacy().forward(request, timeout=timeout)
        except DaemonUnreachable as error:
            raise Fault(Kind.UNAVAILABLE, f"the legacy daemon cannot be reached: {error}") from None
        except ClosedSilently:
            return CLOSE_SILENTLY
        except (DaemonGone, DaemonTimedOut, BadReply) as error:
            name = method.name if method is not None else "the call"
            raise Fault(
                Kind.IN_DOUBT, f"{name} may have been executed: the legacy daemon gave no answer: {error}"
            ) from None

    async def _translate(self, request: HttpRequest) -> HttpReply | CloseSilently:
        method, arguments = self._read(request)
        form = self._translation.of(method)
        try:
            value = await self._backends.ask(Side.BUS, Call(method, arguments, Door.HTTP, deadline_of(method)))
            return _reply(xmlrpc_codec.encode_response(dialects.success(form.write_result(value))))
        except CodecError as error:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{method.name} was executed; its answer: {error}") from None
        except Fault as fault:
            if fault.kind is Kind.UNKNOWN_METHOD:
                raise self._unknown(method.name) from None
            raise _Said(fault.kind, f"{method.name}: {fault.text}", _failure(form.write_failure(fault))) from None

    def _read(self, request: HttpRequest) -> tuple[Method, dict[str, Value]]:
        """The method and its arguments. What cannot be read is refused as the legacy daemon refuses it."""
        try:
            name, params = xmlrpc_codec.decode_call(request.body)
        except DuplicateMember as error:
            raise Fault(Kind.NOT_REPRESENTABLE, str(error)) from None
        except BadScalar as error:
            description: xmlrpc_codec.Value = ["Internal_error", f'Idl.MarshalError("{error.reason}")']
            raise _Said(Kind.INVALID_ARGUMENT, str(error), _failure(description)) from None
        except CodecError as error:
            raise _Said(Kind.INVALID_ARGUMENT, f"unreadable call: {error}", CLOSE_SILENTLY) from None
        method = self._service.method(name)
        if method is None or (method.doors and Door.HTTP not in method.doors):
            raise self._unknown(name)
        try:
            return method, self._translation.of(method).read_arguments(params)
        except xmlrpc_translation.Mismatch as mismatch:
            description = xmlrpc_translation.marshal_error(mismatch, name, self._translation.dialect)
            text = f"{name}: {mismatch.place}: {mismatch.reason}"
            raise _Said(Kind.INVALID_ARGUMENT, text, _failure(description)) from None

    def _unknown(self, name: str) -> _Said:
        code = self._translation.dialect.unknown_method
        reply = CLOSE_SILENTLY if code == "close" else _failure([code, name])
        return _Said(Kind.UNKNOWN_METHOD, f"unknown method {name[:100]!r}", reply)


_UNKNOWN_SECONDS: Final = 300.0
_OPENING: Final = b"<methodName>"


def _method_name(body: bytes) -> str:
    """The method's name without parsing: for the deadline only, in which a wrong guess costs nothing."""
    start = body.find(_OPENING, 0, 512)
    if start < 0:
        return ""
    start += len(_OPENING)
    return body[start : body.find(b"<", start, start + 256)].decode("ascii", "replace")


def _reply(body: bytes) -> HttpReply:
    return HttpReply(200, (), body)


def _failure(description: xmlrpc_codec.Value) -> HttpReply:
    return _reply(xmlrpc_codec.encode_response(dialects.failure(description)))
