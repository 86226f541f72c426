"""Where calls enter: the bus door, the xenstore door and the datagram door of one service (sockets: `rpc_doors`).

A door turns what came into a neutral call, hands it to dispatch, and says the answer or the fault in its own protocol's
words.
"""

from __future__ import annotations

import itertools
import logging
import time
from functools import partial
from typing import Final

from bridges import dbus_translation, xenstore_translation
from bridges.backends import Backend
from bridges.calls import Call, Door, Side, Value
from bridges.dispatch import Dispatch
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Service
from dbus_side import introspection, names
from dbus_side.exported import MethodHandler, ObjectTree
from dbus_side.messages import MethodCall
from xenstore_rpc.records import EXCEPTION, Request, Response, error_response

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

    def long_polls(self) -> frozenset[tuple[str, str]]:
        """Path and member of the methods that wait for as long as their callers do."""
        service = self._translation.service
        forms = (self._translation.of(m) for name in service.long_polls if (m := service.method(name)) is not None)
        return frozenset((form.path, form.member) for form in forms)

    def export(self, tree: ObjectTree) -> None:
        """Answers every object of the service in the tree; its methods are looked up when the first call comes."""
        service = self._translation.service
        for name in service.objects:
            tree.add_described(
                names.object_path(service.name, name),
                names.interface_name(service.name, name, service.version),
                partial(dbus_translation.interface_of, self._translation, name),
                self._handler(name),
            )

    def _handler(self, object_name: str) -> MethodHandler:
        by_member: dict[str, Method] = {}

        async def handle(message: MethodCall, member: introspection.Method) -> tuple[object, ...]:
            if not by_member:
                methods = self._translation.service.object_methods(object_name)
                by_member.update({self._translation.of(method).member: method for method in methods})
            return await self._answer(message, by_member[member.name])

        return handle

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


class DatagramDoor:
    """The service's datagram address, while the bus side rules: a datagram is a command, and is never answered."""

    def __init__(self, dispatch: Dispatch, backends: Backends, service: Service) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._service = service

    async def receive(self, payload: bytes) -> None:
        """Makes the call that the datagram stands for; what comes of it is in the log."""
        text = payload.decode("utf-8", "backslashreplace")
        method = self._service.method(text)
        if method is None:
            LOG.warning("%s: unknown command %r at the datagram door", self._service.name, text[:100])
            return
        call = Call(method, {}, Door.DATAGRAM, deadline_of(method))
        try:
            await self._dispatch.run(Door.DATAGRAM, call.deadline, lambda side: self._backends.ask(side, call))
        except Fault as fault:
            LOG.warning("%s %s at the datagram door: %s", self._service.name, text, fault.sentence)
        except Exception as error:
            defect(f"{self._service.name} {text} at the datagram door", error)
