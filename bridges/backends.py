"""Who can answer a call: the legacy daemon over HTTP or over xenstore, or the bus daemon.

Each backend takes a neutral call and gives the neutral result or raises Fault. None of them ever sends a call twice.
When a write was handed over and its answer did not come, the fault is IN_DOUBT; a read is merely unavailable then.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Final, Protocol

from bridges import dbus_translation, xenstore_translation
from bridges.calls import Call, Door, Side, Value
from bridges.capture.messages import (
    BusAnswer,
    BusCall,
    BusFailure,
    DatagramCall,
    Nothing,
    SocketAnswer,
    SocketCall,
    StoreAnswer,
    StoreCall,
)
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Effect, Service
from bridges.xmlrpc_translation import MethodForm, Translation
from bridges.xmlrpc_values import Mismatch
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusLost, BusRefused, BusTimedOut, MessageTooLarge, SignatureMismatch
from xenstore_rpc.errors import CallTimedOut, ServerNotRegistered, StoreLost, StoreRefused, XenstoreError
from xenstore_rpc.records import Request
from xenstore_rpc.rpc import Caller
from xmlrpc_gateway import datagrams
from xmlrpc_gateway.dialects import Success
from xmlrpc_gateway.encodings import Encoding
from xmlrpc_gateway.errors import BadReply, CodecError, DaemonGone, DaemonTimedOut, DaemonUnreachable

# xenstore clients wait 300 s; a call without a deadline of its own is a long poll, which its caller ends.
LONG_POLL_SECONDS: Final = 24 * 3600.0


class Backend(Protocol):
    """Something that executes calls of one service."""

    async def ask(self, call: Call) -> Value: ...


class RpcClient(Protocol):
    """A legacy daemon's socket: `timeout` in seconds; a long poll waits without holding up other calls."""

    async def call(self, body: bytes, *, timeout: float | None, is_long_poll: bool = False) -> bytes: ...


def remaining_until(deadline: float | None) -> float | None:
    """Seconds until a deadline on the clock of time.monotonic; None: a long poll."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def remaining(call: Call) -> float:
    """Seconds until the call's deadline. Raises Fault TIMED_OUT when it has passed before anything was sent."""
    left = remaining_until(call.deadline)
    if left is None:
        return LONG_POLL_SECONDS
    if left <= 0:
        raise Fault(Kind.TIMED_OUT, f"{call.method.name}: the deadline had passed before the call was sent")
    return left


def unanswered(call: Call, why: str) -> Fault:
    """The fault of a call that was handed over and not answered because its daemon went away."""
    if call.method.effect is Effect.WRITE:
        return Fault(Kind.IN_DOUBT, f"{call.method.name} may have been executed: {why}")
    return Fault(Kind.UNAVAILABLE, f"{call.method.name}: {why}")


def late(call: Call, why: str) -> Fault:
    """The fault of a call that was handed over and not answered by its deadline."""
    if call.method.effect is Effect.WRITE:
        return Fault(Kind.IN_DOUBT, f"{call.method.name} may have been executed: {why}")
    return Fault(Kind.TIMED_OUT, f"{call.method.name}: {why}")


class LegacyOverSocket:
    """The legacy daemon behind its HTTP or framed socket, which `door` says."""

    def __init__(
        self, client: Callable[[], RpcClient], encoding: Encoding, translation: Translation, door: Door = Door.HTTP
    ) -> None:
        self._door = door
        self._client = client
        self._encoding = encoding
        self._translation = translation

    async def ask(self, call: Call) -> Value:
        form = self._translation.of(call.method)
        body = self._write(call, form)
        is_long_poll = call.deadline is None
        trail = call.trail
        if trail is not None:
            trail.asked(Side.LEGACY, self._door, SocketCall((self._encoding, self._translation), body))
        try:
            reply = await self._client().call(body, timeout=remaining(call), is_long_poll=is_long_poll)
        except DaemonUnreachable as error:
            raise Fault(Kind.UNAVAILABLE, f"the legacy daemon cannot be reached: {error}") from None
        except DaemonTimedOut as error:
            raise late(call, f"the legacy daemon did not answer in time: {error}") from None
        except (DaemonGone, BadReply) as error:
            raise unanswered(call, f"the legacy daemon gave no answer: {error}") from None
        if trail is not None:
            trail.answered(SocketAnswer((self._encoding, self._translation), reply))
        try:
            opened = self._encoding.read_reply(reply)
            if isinstance(opened, Success):
                return form.read_result(opened.value)
        except CodecError as error:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{call.method.name} was executed; its answer: {error}") from None
        except Mismatch as mismatch:
            text = f"{call.method.name} was executed; its answer, {mismatch.place}: {mismatch.reason}"
            raise Fault(Kind.NOT_REPRESENTABLE, text) from None
        raise form.read_failure(opened.description)

    def _write(self, call: Call, form: MethodForm) -> bytes:
        try:
            body = self._encoding.write_call(call.method.name, form.write_arguments(call.arguments))
        except CodecError as error:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{call.method.name}: {error}") from None
        limit = self._translation.dialect.request_limit
        if limit is not None and len(body) > limit:
            text = f"{call.method.name}: the call has {len(body)} bytes, the legacy daemon's limit is {limit}"
            raise Fault(Kind.NOT_REPRESENTABLE, text)
        return body


class LegacyOverDatagrams:
    """The legacy daemon behind its datagram address: a method is its name in a datagram, and nothing comes back."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def ask(self, call: Call) -> Value:
        payload = call.method.name.encode()
        if call.trail is not None:
            call.trail.asked(Side.LEGACY, Door.DATAGRAM, DatagramCall(payload))
        try:
            await datagrams.send(self._address, payload, timeout=remaining(call))
        except (DaemonUnreachable, OSError) as error:
            raise Fault(Kind.UNAVAILABLE, f"the legacy daemon cannot be reached: {error}") from None
        if call.trail is not None:
            call.trail.answered(Nothing())
        return None


_OURS: Final = uuid.uuid4().hex[:12]


def _own_request() -> str:
    """The id of a request that we make: a uuid whose end tells it from others' as long as this process lives."""
    return f"{str(uuid.uuid4())[:24]}{_OURS}"


def is_own_request(request_id: str) -> bool:
    """Whether we made a request of the tree."""
    return request_id.endswith(_OURS)


class LegacyOverXenstore:
    """The legacy daemon behind its tree in the store."""

    def __init__(self, caller: Caller, service: Service) -> None:
        self._caller = caller
        self._service = service

    async def ask(self, call: Call) -> Value:
        function, arguments = xenstore_translation.write_arguments(call.method, call.arguments)
        request_id, trail = _own_request(), call.trail
        if trail is not None:
            request = Request(function, request_id, tuple(arguments))
            trail.asked(Side.LEGACY, Door.XENSTORE, StoreCall(request, function, request_id))
        try:
            response = await self._caller.call(function, arguments, timeout=remaining(call), request_id=request_id)
        except ServerNotRegistered as error:
            raise Fault(Kind.UNAVAILABLE, str(error)) from None
        except CallTimedOut as error:
            raise late(call, f"the legacy daemon did not answer in time: {error}") from None
        except StoreLost as error:
            if error.sent:
                raise unanswered(call, f"the connection to xenstored was lost: {error}") from None
            raise Fault(Kind.UNAVAILABLE, f"xenstored cannot be reached: {error}") from None
        except StoreRefused as error:
            raise unanswered(call, f"xenstored refused: {error}") from None
        except XenstoreError as error:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{call.method.name}: {error}") from None
        if trail is not None:
            trail.answered(StoreAnswer(response))
        return xenstore_translation.read_response(self._service, call.method, call.arguments, response)


class BusDaemon:
    """The daemon that owns the service's name on the bus, or its candidate's. `bus` is exchanged when it was lost."""

    def __init__(self, service: str, translation: dbus_translation.Translation, *, is_candidate: bool = False) -> None:
        self.bus: Bus | None = None
        self._name = names.candidate_name(service) if is_candidate else names.service_name(service)
        self._is_candidate = is_candidate
        self._translation = translation

    async def ask(self, call: Call) -> Value:
        form = self._translation.of(call.method)
        if self.bus is None:
            raise Fault(Kind.UNAVAILABLE, "the bus cannot be reached")
        body, trail = form.write_arguments(call.arguments), call.trail
        if trail is not None:
            seen = BusCall(form, self._name, self.bus.unique_name, 0, body)
            trail.asked(Side.BUS, Door.BUS, seen, is_candidate=self._is_candidate)
        try:
            reply = await self.bus.call(
                self._name,
                form.path,
                form.interface,
                form.member,
                form.input_signature,
                body,
                timeout=remaining(call),
            )
        except BusRefused as refusal:
            if trail is not None:
                trail.answered(BusFailure(form, refusal), is_candidate=self._is_candidate)
            raise form.read_fault(refusal) from None
        except SignatureMismatch as mismatch:
            raise dbus_translation.not_representable(call.method.name, mismatch) from None
        except MessageTooLarge as error:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{call.method.name}: {error}") from None
        except BusTimedOut:
            raise late(call, "the bus daemon did not answer in time") from None
        except BusLost as error:
            if error.sent:
                raise unanswered(call, "the connection to the bus was lost") from None
            raise Fault(Kind.UNAVAILABLE, "the bus cannot be reached") from None
        if trail is not None:
            trail.answered(BusAnswer(form, reply.signature, reply.body), is_candidate=self._is_candidate)
        return form.read_result(reply.signature, reply.body)
