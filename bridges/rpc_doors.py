"""Where calls enter by a socket: the HTTP door and the framed door of one service.

While the legacy side rules, a call passes through byte for byte; nothing is decoded on the way. When the bus side
does, it is decoded in the socket's tongue, asked of the bus daemon, and answered as the legacy daemon would have. HTTP
that is no call is a stream: the legacy daemon's own affair.
"""

from __future__ import annotations

import logging
import math
import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from bridges import dbus_translation, round_trips
from bridges.afterwards import Afterwards
from bridges.backends import remaining_until
from bridges.calls import Call, Door, Side, Value
from bridges.capture.messages import (
    AS_CALLER,
    HttpCall,
    Nothing,
    PageCall,
    SocketAnswer,
    SocketCall,
)
from bridges.capture.taps import Tap, Trail
from bridges.capture.telling import for_the_log, harmless
from bridges.dispatch import Arrival, Dispatch, arrival, deadline_of
from bridges.doors import Backends, defect, not_kept
from bridges.durable import NotDurable
from bridges.faults import Fault, Kind
from bridges.handles import Home
from bridges.interfaces.model import Effect, Method, Service
from bridges.ledger import Aliases
from bridges.tongues import Tongue
from bridges.xmlrpc_values import Mismatch
from xmlrpc_gateway import server
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.encodings import IncomingCall
from xmlrpc_gateway.errors import (
    BadReply,
    BadScalar,
    ClosedSilently,
    CodecError,
    DaemonGone,
    DaemonTimedOut,
    DaemonUnreachable,
    DuplicateMember,
    OverLimit,
)
from xmlrpc_gateway.framed import FramedClient, FramedDoor
from xmlrpc_gateway.framed_messages import FramedRequest
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, HttpReply, HttpRequest
from xmlrpc_gateway.manners import HttpManner
from xmlrpc_gateway.streams import Stream
from xmlrpc_gateway.xmlrpc_codec import Value as Wire

LOG: Final = logging.getLogger("bridges.doors")

BODY_LIMIT: Final = 64 * 1024 * 1024
LIST_METHODS: Final = "system.listMethods"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")

Reply = TypeVar("Reply", HttpReply, bytes)  # of the carrier: an HTTP reply, or the bytes in a frame
Sent = TypeVar("Sent")


class Beside(NamedTuple):
    """What every call of a service meets beside its way: its handles, what is compared afterwards, the capture."""

    aliases: Aliases
    afterwards: Afterwards
    on_bus: dbus_translation.Translation
    tap: Tap


class Server(Protocol):
    """What serves a listening socket."""

    async def serve_socket(self, listener: socket.socket) -> None: ...

    async def stop_accepting(self, listener: socket.socket | None = None) -> None: ...

    async def drain(self, timeout: float) -> bool: ...

    async def close(self) -> None: ...


class _Passing(NamedTuple):
    """A call that passes the legacy daemon's bytes; `home` is None where no handles are exchanged in them."""

    tongue: Tongue
    method: Method | None
    sent: bytes
    home: Home | None
    deadline: float | None
    trail: Trail | None


class _Said(Fault):
    """A fault whose words on the wire are decided; without a reply, those for what cannot be read."""

    def __init__(self, kind: Kind, text: str, reply: bytes | CloseSilently | None, code: str = "") -> None:
        super().__init__(kind, text, code=code)
        self.reply = reply


class SocketCalls(Generic[Reply]):
    """The calls of one socket of one service, whatever carries their bytes.

    `unreadable` is how the legacy daemon answers what is no call.
    """

    def __init__(
        self,
        door: Door,
        dispatch: Dispatch,
        backends: Backends,
        service: Service,
        beside: Beside,
        unreadable: Reply | CloseSilently = CLOSE_SILENTLY,
    ) -> None:
        self._door = door
        self._dispatch = dispatch
        self._backends = backends
        self._service = service
        self._aliases, self._afterwards, self._on_bus, self._tap = beside
        self._unreadable: Reply | CloseSilently = unreadable

    def is_long_poll(self, tongue: Tongue, body: bytes) -> bool:
        """Whether a body calls a method that waits as long as its caller does: without parsing, for a wrong guess costs
        nothing here."""
        method = self._find(tongue, tongue.encoding.method_of(body))
        return method is not None and method.deadline is None

    async def answer(
        self,
        tongue: Tongue,
        request: HttpRequest | FramedRequest,
        relay: Callable[[bytes, float | None], Awaitable[Reply | CloseSilently]],
    ) -> Reply | bytes | CloseSilently:
        """While legacy rules what `relay` gave, called with the seconds left (None: a long poll); else our reply."""
        name = self._name_in(tongue, request.body)
        method = self._find(tongue, name)
        arrived = arrival(self._door, method, harmless(name) if method is None else name)
        if not self._tap.is_on:
            return await self._answer(tongue, request.body, relay, method, arrived, None)
        trail = self._begin(tongue, request, method)
        answer = await self._answer(tongue, request.body, relay, method, arrived, trail)
        if trail is not None:
            trail.left(SocketAnswer(tongue, answer))
        return answer

    def _begin(self, tongue: Tongue, request: HttpRequest | FramedRequest, method: Method | None) -> Trail | None:
        if isinstance(request, HttpRequest):
            seen, conn = HttpCall(tongue, request), str(request.connection)
            return self._tap.came(self._door, seen, method, peer=request.peer, conn=conn)
        return self._tap.came(self._door, SocketCall(tongue, request.body), method, peer=request.peer)

    async def _answer(
        self,
        tongue: Tongue,
        body: bytes,
        relay: Callable[[bytes, float | None], Awaitable[Reply | CloseSilently]],
        method: Method | None,
        arrived: Arrival,
        trail: Trail | None,
    ) -> Reply | bytes | CloseSilently:
        async def work(side: Side) -> Reply | bytes | CloseSilently:
            if side is Side.LEGACY:
                home = self._aliases.home
                sent = body if home is None else self._aliases.text_inward(method, body, home)
                if sent is not None:
                    if trail is not None:
                        message = AS_CALLER if sent is body else SocketCall(tongue, sent)
                        trail.asked(side, self._door, message)
                    passing = _Passing(tongue, method, sent, home, arrived.deadline, trail)
                    return await self._pass(passing, partial(relay, sent))
            return await self._translate(tongue, body, side, trail)

        try:
            return await self._dispatch.run(arrived, work)
        except Fault as fault:
            name = f"{self._service.name} {'' if method is None else method.name}".rstrip()
            LOG.info("%s at the %s door: %s", name, self._door, for_the_log(fault))
            if not isinstance(fault, _Said):
                return self._refused(tongue, body, fault)
            return self._unreadable if fault.reply is None else fault.reply
        except Exception as error:
            return self._refused(tongue, body, defect(f"{self._service.name} at the {self._door} door", error))

    async def _pass(
        self, passing: _Passing, relay: Callable[[float | None], Awaitable[Reply | CloseSilently]]
    ) -> Reply | CloseSilently:
        """What the legacy daemon said to a call that passes as it came; could the bus carry it, is seen after."""
        tongue, method, sent, home, deadline, trail = passing
        try:
            reply = await self.relay(method, deadline, relay)
        except Fault as fault:
            if trail is not None:
                trail.failed(fault)
            raise
        if isinstance(reply, CloseSilently):
            if trail is not None:
                trail.answered(AS_CALLER)
            return reply
        said = body_of(reply)
        make = partial(round_trips.of_socket, self._service, self._on_bus, tongue, self._door, sent, said)
        self._afterwards.offer(make, len(sent) + len(said), trail)
        shown = said
        if home is not None and method is not None:
            try:
                shown = await self._aliases.text_outward(method, sent, said, home)
            except NotDurable as error:
                if trail is not None:
                    trail.answered(SocketAnswer(tongue, said))
                raise not_kept(method, error) from None
        if trail is not None:
            trail.answered(AS_CALLER if shown is said else SocketAnswer(tongue, said))
        return reply if shown is said else with_body(reply, shown)

    @staticmethod
    async def relay(
        method: Method | None, deadline: float | None, relay: Callable[[float | None], Awaitable[Sent]]
    ) -> Sent | CloseSilently:
        """What the legacy daemon said. Raises Fault."""
        try:
            return await relay(remaining_until(deadline))
        except DaemonUnreachable as error:
            raise Fault(Kind.UNAVAILABLE, f"the legacy daemon cannot be reached: {error}") from None
        except ClosedSilently:
            return CLOSE_SILENTLY
        except (DaemonGone, DaemonTimedOut, BadReply) as error:
            name = method.name if method is not None else "the call"
            text = f"{name} may have been executed: the legacy daemon gave no answer: {error}"
            raise Fault(Kind.IN_DOUBT, text) from None

    async def stream(
        self,
        arrived: Arrival,
        relay: Callable[[float | None], Awaitable[None]],
        *,
        refused: Reply | CloseSilently,
        unreachable: Reply | CloseSilently,
    ) -> Reply | CloseSilently | None:
        """None once `relay` has carried a stream; `refused` while the bus side rules, which has no such thing."""

        async def work(side: Side) -> Reply | CloseSilently | None:
            return refused if side is Side.BUS else await self.relay(None, arrived.deadline, relay)

        trail = self._tap.came(self._door, PageCall(arrived.name), None)
        if trail is not None:
            trail.left(Nothing())
        try:
            return await self._dispatch.run(arrived, work)
        except Fault as fault:
            LOG.info("%s: a stream at the %s door: %s", self._service.name, self._door, for_the_log(fault))
            return unreachable
        except Exception as error:
            defect(f"{self._service.name}: a stream at the {self._door} door", error)
            return unreachable

    def head_inward(self, head: bytes) -> bytes:
        """The head of what is no call, as the legacy daemon is to see it: it may name a session."""
        return self._aliases.head_inward(head)

    def too_large(self, tongue: Tongue, text: str) -> bytes | CloseSilently:
        """The reply to a body over the limit, which was never read."""
        LOG.info("%s at the %s door: %s", self._service.name, self._door, harmless(text))
        return self._refused(tongue, b"", Fault(Kind.INVALID_ARGUMENT, text))

    def _name_in(self, tongue: Tongue, body: bytes) -> str:
        """The method that a body calls. Where handles must be exchanged, one that is spelt unusually is read for it."""
        name = tongue.encoding.method_of(body)
        if not name and self._service.handles:
            with suppress(CodecError):
                name = tongue.encoding.read_call(body).method
        return name

    def _find(self, tongue: Tongue, name: str) -> Method | None:
        method = self._service.method(name)
        if method is None and tongue.translation.dialect.has_aliases:
            method = self._service.method_by_alias(name)
        return method

    async def _translate(self, tongue: Tongue, body: bytes, side: Side, trail: Trail | None) -> bytes | CloseSilently:
        encoding, translation = tongue
        incoming = self._read_call(tongue, body)
        if incoming.method == LIST_METHODS and translation.dialect.has_aliases:
            return encoding.write_bare(incoming.reply_to, list(self._service.method_names))
        method, arguments = self._read_arguments(tongue, incoming)
        form = translation.of(method)
        try:
            value = await self._backends.ask(side, Call(method, arguments, self._door, deadline_of(method), trail))
            make = partial(round_trips.of_bus, self._on_bus, method, arguments, value)
            self._afterwards.offer(make, len(body), trail)
            return encoding.write_success(incoming.reply_to, form.write_result(value))
        except CodecError as error:
            text = f"{method.name} was executed; its answer: {error}"
            fault = Fault(Kind.NOT_REPRESENTABLE, text)
            raise _Said(fault.kind, text, self._failure(tongue, incoming, translation.refusal(fault))) from None
        except Fault as fault:
            if fault.kind is Kind.UNKNOWN_METHOD:
                raise self._unknown(tongue, incoming) from None
            reply = self._failure(tongue, incoming, form.write_failure(fault))
            raise _Said(fault.kind, f"{method.name}: {fault.text}", reply, fault.code) from None

    def _read_call(self, tongue: Tongue, body: bytes) -> IncomingCall:
        """What cannot be read is refused as the legacy daemon refuses it."""
        try:
            return tongue.encoding.read_call(body)
        except (DuplicateMember, OverLimit) as error:
            raise Fault(Kind.NOT_REPRESENTABLE, str(error)) from None
        except BadScalar as error:
            mismatch = Mismatch(error.reason)
            mismatch.path = [error.place]
            failure = tongue.translation.marshal_error(mismatch, "")
            raise _Said(Kind.INVALID_ARGUMENT, str(error), tongue.encoding.write_failure(None, failure)) from None
        except CodecError as error:
            reply = tongue.encoding.refusal(error)
            raise _Said(Kind.INVALID_ARGUMENT, f"unreadable call: {error}", reply) from None

    def _read_arguments(self, tongue: Tongue, incoming: IncomingCall) -> tuple[Method, dict[str, Value]]:
        method = self._find(tongue, incoming.method)
        if method is None or not method.is_at(self._door):
            raise self._unknown(tongue, incoming)
        try:
            return method, tongue.translation.of(method).read_arguments(incoming.params)
        except Mismatch as mismatch:
            text = f"{method.name}, {mismatch.for_the_log}"  # `login_with_password: x` would look like a secret
            failure = tongue.translation.marshal_error(mismatch, incoming.method)
            raise _Said(Kind.INVALID_ARGUMENT, text, self._failure(tongue, incoming, failure)) from None

    def _unknown(self, tongue: Tongue, incoming: IncomingCall) -> _Said:
        name, translation = incoming.method, tongue.translation
        closes = translation.dialect.unknown_method == "close"
        reply = CLOSE_SILENTLY if closes else self._failure(tongue, incoming, translation.unknown_method(name))
        # What stands in quotes is left out of the log: a name that looks like one tells nobody's secret.
        shown = name if _NAME.fullmatch(name) else repr(name[:100])
        return _Said(Kind.UNKNOWN_METHOD, f"unknown method {shown}", reply)

    def _refused(self, tongue: Tongue, body: bytes, fault: Fault) -> bytes:
        """A fault that came before the call was read, or a defect: the caller's id is looked for in the body."""
        try:
            reply_to = tongue.encoding.read_call(body).reply_to
        except CodecError:
            reply_to = None
        return tongue.encoding.write_failure(reply_to, tongue.translation.refusal(fault))

    @staticmethod
    def _failure(tongue: Tongue, incoming: IncomingCall, failure: Wire) -> bytes:
        try:
            return tongue.encoding.write_failure(incoming.reply_to, failure)
        except CodecError as error:
            fault = Fault(Kind.NOT_REPRESENTABLE, f"{incoming.method} failed; its error: {error}")
            return tongue.encoding.write_failure(incoming.reply_to, tongue.translation.refusal(fault))


class HttpDoor:
    """The service's HTTP socket. `tongue_of` says how calls look at a request's target.

    `listen` are numeric TCP addresses at which the door listens too.
    """

    def __init__(
        self,
        calls: SocketCalls[HttpReply],
        manner: HttpManner,
        tongue_of: Callable[[str], Tongue],
        legacy: Callable[[], DaemonClient],
        listen: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self._calls = calls
        self._manner = manner
        self._tongue_of = tongue_of
        self._legacy = legacy
        self._listen = listen

    async def open(self, listener: socket.socket) -> Server:
        """Serves the listener and the TCP addresses. Raises OSError; the listener is closed then."""
        serving = server.HttpDoor(
            self.answer,
            manner=self._manner,
            body_limit=BODY_LIMIT,
            answer_too_large=self.too_large,
            is_stream=self._is_stream,
            answer_stream=self.answer_stream,
            ends_with_client=lambda request: self._calls.is_long_poll(self._tongue_of(request.target), request.body),
        )
        await serving.serve_socket(listener)
        for host, port in self._listen:
            try:
                await serving.listen_tcp(host, port)
            except OSError as error:
                await serving.close()
                raise OSError(error.errno, f"tcp:{host}:{port}: {error.strerror}") from None
        return serving

    async def answer(self, request: HttpRequest) -> HttpReply | CloseSilently:
        """The reply on the wire, or the silent close with which the legacy daemon answers what it cannot read."""
        tongue = self._tongue_of(request.target)

        async def relay(body: bytes, timeout: float | None) -> HttpReply | CloseSilently:
            sent = request if body is request.body else replace(request, body=body)
            return await self._legacy().forward(sent, timeout=timeout, is_long_poll=timeout is None)

        return self._reply(tongue, await self._calls.answer(tongue, request, relay))

    async def answer_stream(self, stream: Stream) -> HttpReply | CloseSilently | None:
        """HTTP that is no call: relayed (None), or what the legacy daemon would say that knows no such page."""

        async def relay(_timeout: float | None) -> None:
            await self._legacy().relay(stream, change_head=self._calls.head_inward)

        # A console ends with a move, whoever watches it connects again; an import or export has all the time it needs.
        effect = Effect.READ if stream.method in ("GET", "HEAD") else Effect.WRITE
        page = harmless(f"{stream.method} {stream.target.partition('?')[0]}")
        arrived = Arrival(Door.HTTP, page, effect, None if stream.is_raw else math.inf)
        return await self._calls.stream(
            arrived, relay, refused=self._manner.answer_to(stream.method), unreachable=self._manner.unreachable
        )

    async def too_large(self, text: str) -> HttpReply | CloseSilently:
        """The reply to a body over the limit, which was never read."""
        tongue = self._tongue_of("/")
        return self._reply(tongue, self._calls.too_large(tongue, text))

    def _is_stream(self, method: str, target: str) -> bool:
        return not self._manner.is_call(method, target)

    def _reply(self, tongue: Tongue, answer: HttpReply | bytes | CloseSilently) -> HttpReply | CloseSilently:
        if not isinstance(answer, bytes):
            return answer
        return HttpReply(200, self._manner.headers_for(tongue.encoding.content_type), answer)


class FramedSocket:
    """The service's socket of frames: 16 digits of length, then JSON."""

    def __init__(self, calls: SocketCalls[bytes], tongue: Tongue, legacy: Callable[[], FramedClient]) -> None:
        self._calls = calls
        self._tongue = tongue
        self._legacy = legacy

    async def open(self, listener: socket.socket) -> Server:
        """Serves the listener."""
        serving = FramedDoor(
            self.answer,
            body_limit=BODY_LIMIT,
            ends_with_client=lambda request: self._calls.is_long_poll(self._tongue, request.body),
        )
        await serving.serve_socket(listener)
        return serving

    async def answer(self, request: FramedRequest) -> bytes | CloseSilently:
        """The reply's body, or the silent close with which the legacy daemon answers what it cannot read."""

        async def relay(body: bytes, timeout: float | None) -> bytes:
            return await self._legacy().call(body, timeout=timeout, is_long_poll=timeout is None)

        return await self._calls.answer(self._tongue, request, relay)


def body_of(reply: HttpReply | bytes) -> bytes:
    """The body of a carrier's reply."""
    return reply if isinstance(reply, bytes) else reply.body


def with_body(reply: Reply, body: bytes) -> Reply:
    """The same reply with another body of the same length."""
    return body if isinstance(reply, bytes) else replace(reply, body=body)
