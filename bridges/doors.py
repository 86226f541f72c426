"""Where calls enter: the bus door, the xenstore door and the datagram door of one service (sockets: `rpc_doors`).

A door turns what came into a neutral call, hands it to dispatch, and says the answer or the fault in its own protocol's
words.
"""

from __future__ import annotations

import itertools
import json
import logging
from functools import partial
from typing import Final

from bridges import dbus_translation, round_trips, xenstore_translation
from bridges.afterwards import Afterwards
from bridges.backends import Backend
from bridges.calls import Call, Door, Side, Value
from bridges.capture.messages import BusAnswer, BusCall, BusFailure, DatagramCall, Nothing, StoreAnswer, StoreCall
from bridges.capture.taps import Tap, Trail
from bridges.capture.telling import Teller, for_the_log
from bridges.dispatch import Dispatch, arrival
from bridges.durable import NotDurable
from bridges.faults import Fault, Kind
from bridges.handles import NOTHING
from bridges.interfaces.model import Method, Service
from bridges.ledger import Aliases
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


def not_kept(method: Method, error: NotDurable) -> Fault:
    """The fault of a call whose handle is not in the ledger: a caller must not be given it."""
    text = f"{method.name} was executed; its handle cannot be kept, so it cannot be given out: {error}"
    return Fault(Kind.IN_DOUBT, text)


class Backends:
    """Who to ask on each side. Handles that one daemon alone knows have their aliases outside of it."""

    def __init__(self, legacy: Backend, bus: Backend, aliases: Aliases) -> None:
        self._legacy = legacy
        self._bus = bus
        self._aliases = aliases

    async def ask(self, side: Side, call: Call) -> Value:
        backend = self._legacy if side is Side.LEGACY else self._bus
        home = self._aliases.home
        if home is None or self._aliases.plan(call.method) is NOTHING:
            return await self._ask(backend, call)
        sent = self._aliases.inward(call, home)
        value = await self._ask(backend, sent)
        try:
            return await self._aliases.outward(sent, value, home)
        except NotDurable as error:
            raise not_kept(call.method, error) from None

    @staticmethod
    async def _ask(backend: Backend, call: Call) -> Value:
        try:
            return await backend.ask(call)
        except Fault as fault:
            if call.trail is not None:
                call.trail.failed(fault)
            raise


class BusDoor:
    """The service's objects on the bus, for as long as its daemon is a legacy one."""

    def __init__(
        self,
        dispatch: Dispatch,
        backends: Backends,
        translation: dbus_translation.Translation,
        afterwards: Afterwards,
        tap: Tap,
    ) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._translation = translation
        self._afterwards = afterwards
        self._tap = tap

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
        async def handle(message: MethodCall, member: introspection.Method) -> tuple[object, ...]:
            return await self._answer(message, self._translation.members(object_name)[member.name])

        return handle

    async def _answer(self, message: MethodCall, method: Method) -> tuple[object, ...]:
        """The out arguments of the reply. Raises BusRefused."""
        form = self._translation.of(method)
        arrived = arrival(Door.BUS, method, request=f"{message.sender}/{message.serial}")
        arguments: dict[str, Value] = {}
        trail = None
        if self._tap.is_on:
            seen = BusCall(form, message.destination, message.sender, message.serial, message.body)
            trail = self._tap.came(Door.BUS, seen, method, peer=message.sender, conn=message.sender)

        async def work(side: Side) -> Value:
            arguments.update(form.read_arguments(message.body))
            return await self._backends.ask(side, Call(method, arguments, Door.BUS, arrived.deadline, trail))

        try:
            value = await self._dispatch.run(arrived, work)
            make = partial(round_trips.of_bus, self._translation, method, arguments, value)
            self._afterwards.offer(make, trail=trail)
            said = form.write_result(value)
            if trail is not None:
                trail.left(BusAnswer(form, form.output_signature, said))
        except Fault as fault:
            make = partial(round_trips.of_bus, self._translation, method, arguments, fault)
            self._afterwards.offer(make, trail=trail)
            refusal = form.write_fault(fault)
        except Exception as error:
            refusal = form.write_fault(defect(f"{method.service} {method.name} at the bus door", error))
        else:
            return said
        if trail is not None:
            trail.left(BusFailure(form, refusal))
        raise refusal


def pack(response: Response) -> bytes:
    """A response as it is kept for a caller who is answered after a crash."""
    return json.dumps([[name, value.decode("latin-1")] for name, value in response.results]).encode()


def unpack(kept: bytes) -> Response:
    """The response that `pack` kept."""
    return Response(tuple((name, text.encode("latin-1")) for name, text in json.loads(kept)))


class XenstoreDoor:
    """The service's tree in the store, while the bus side rules."""

    def __init__(self, dispatch: Dispatch, backends: Backends, service: Service, tap: Tap) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._service = service
        self._tap = tap
        self._teller = Teller(service)

    async def answer(self, request: Request) -> Response:
        """The response to a request; it never raises but for cancellation."""
        if not self._tap.is_on:
            return await self._answer(request, None)
        method = self._service.by_xenstore_function.get(request.function)
        seen = StoreCall(request, request.function, request.request_id)
        trail = self._tap.came(Door.XENSTORE, seen, method)
        response = await self._answer(request, trail)
        if trail is not None:
            trail.left(StoreAnswer(response))
        return response

    async def _answer(self, request: Request, trail: Trail | None) -> Response:
        name, arguments = request.function, dict[str, Value]()
        try:
            method = xenstore_translation.method_of(self._service, request)
            arguments = xenstore_translation.read_arguments(method, request)
            arrived = arrival(Door.XENSTORE, method, request=request.request_id)
            call = Call(method, arguments, Door.XENSTORE, arrived.deadline, trail)

            def response(answer: Value | Fault) -> Response:
                if isinstance(answer, Fault):
                    return xenstore_translation.write_fault(self._service, arguments, answer)
                return xenstore_translation.write_response(method, answer)

            def keep(answer: Value | Fault) -> bytes | None:
                """Not with a secret: the caller of such a call is told after a crash that it is in doubt."""
                return None if self._teller.has_secrets(method, arguments, answer) else pack(response(answer))

            value = await self._dispatch.run(arrived, lambda side: self._backends.ask(side, call), keep=keep)
            return response(value)
        except Fault as fault:
            LOG.info("%s %s at the xenstore door: %s", self._service.name, name, for_the_log(fault))
            return xenstore_translation.write_fault(self._service, arguments, fault)
        except Exception as error:
            unexpected = defect(f"{self._service.name} {name} at the xenstore door", error)
            return error_response(EXCEPTION, unexpected.sentence)

    async def settle_stale(self, request: Request, unknown: Fault | None) -> Response | None:
        """The answer to a request that was there before us; None: it was never begun and shall be executed now.

        What the journal knows was begun, and is never begun again. `unknown` is the answer to all else, None for no
        answer.
        """
        found = await self._dispatch.recorded(request.request_id)
        if found is not None and found.kept is not None:
            return unpack(found.kept)
        if found is not None:
            text = "the bridge ended with this request in its hands; it may have been executed"
            return error_response(EXCEPTION, Fault(Kind.IN_DOUBT, text).sentence)
        return None if unknown is None else error_response(EXCEPTION, unknown.sentence)


class DatagramDoor:
    """The service's datagram address, while the bus side rules: a datagram is a command, and is never answered."""

    def __init__(self, dispatch: Dispatch, backends: Backends, service: Service, tap: Tap) -> None:
        self._dispatch = dispatch
        self._backends = backends
        self._service = service
        self._tap = tap

    async def receive(self, payload: bytes) -> None:
        """Makes the call that the datagram stands for; what comes of it is in the log."""
        text = payload.decode("utf-8", "backslashreplace")
        method = self._service.method(text)
        trail = self._tap.came(Door.DATAGRAM, DatagramCall(payload), method)
        if trail is not None:
            trail.left(Nothing())
        if method is None:
            LOG.warning("%s: unknown command of %d bytes at the datagram door", self._service.name, len(payload))
            return
        arrived = arrival(Door.DATAGRAM, method)
        call = Call(method, {}, Door.DATAGRAM, arrived.deadline, trail)
        try:
            await self._dispatch.run(arrived, lambda side: self._backends.ask(side, call))
        except Fault as fault:
            LOG.warning("%s %s at the datagram door: %s", self._service.name, text, for_the_log(fault))
        except Exception as error:
            defect(f"{self._service.name} {text} at the datagram door", error)
