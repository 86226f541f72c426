"""One connection to the bus.

Of the library (library.py) the `Message` is used, marshalled and unmarshalled; no proxies, no exported classes. The
socket is ours (stream.py), because what both libraries do with it was measured to be unfit for a daemon: a full socket
buffer (EAGAIN) is fatal to the connection, dbus-next then keeps the socket open and the name owned, a call has no
deadline and leaves its entry behind, connecting blocks the loop (dbus-next), and one incoming message that the library
cannot read ends the connection (dbus-fast: an array inside 64 variants, which the bus lets pass). Here such a message
is answered with an error.

What is bounded, and what full means
    unsent bytes   over 4 MiB who sends a call or a reply waits, within its deadline; over 64 MiB a signal is refused
    running calls  `limit` of `serve`: one more is answered org.xen.xcp.Error.Busy at once
    message size   `message_limit` of `connect`: MessageTooLarge; the connection is unharmed
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from dbus_side import addresses, frames, names
from dbus_side.errors import (
    BusError,
    BusLost,
    BusRefused,
    BusTimedOut,
    BusUnreachable,
    MessageTooLarge,
    NameInvalid,
    OutgoingFull,
)
from dbus_side.library import Library, loaded
from dbus_side.messages import (
    Handler,
    MethodCall,
    NameOutcome,
    OwnerChanged,
    Reply,
    SignalMessage,
    Subscription,
)
from dbus_side.signatures import decoder, encoder
from dbus_side.stream import Stream

__all__ = ["Bus", "MethodCall", "NameOutcome", "Reply", "SignalMessage", "Subscription"]

MESSAGE_LIMIT: Final = 32 * 1024 * 1024  # bytes; half of what deploy/xcp-bus.conf allows
RUNNING_LIMIT: Final = 1000

_HIGHEST_MESSAGE_LIMIT: Final = 64 * 1024 * 1024  # no array may be longer, so that none has to be measured
_REFUSE_ABOVE: Final = 64 * 1024 * 1024
_LAST_SERIAL: Final = 2**32 - 1
_REMEMBERED_UIDS: Final = 4096
_CLOSE_TIMEOUT: Final = 5.0  # seconds
_DRIVER_TIMEOUT: Final = 25.0  # seconds for the bus's own methods, libdbus's default
_DRIVER: Final = "org.freedesktop.DBus"
_DRIVER_PATH: Final = "/org/freedesktop/DBus"
_MONITORING: Final = "org.freedesktop.DBus.Monitoring"

_log = logging.getLogger(__name__)


class Bus:
    """A connection. Made by `connect`, of use until it is lost or closed; a new one is a new Bus."""

    def __init__(self, library: Library, message_limit: int) -> None:
        """For `connect` only."""
        self._library = library
        self._message_limit = message_limit
        self._loop = asyncio.get_running_loop()
        self._stream = Stream(self._receive, self._lost)
        self._serial = 0
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        self._handler: Handler | None = None
        self._limit = RUNNING_LIMIT
        self._running: set[asyncio.Task[None]] = set()
        self._owners: dict[str, str | None] = {}
        self._trackers: dict[str, list[OwnerChanged]] = {}
        self._subscriptions: dict[tuple[str, str], list[Subscription]] = {}
        self._uids: dict[str, int] = {}
        self._on_copy: Callable[[bytes], None] | None = None
        self.closed = asyncio.Event()
        self.unique_name = ""

    @classmethod
    async def connect(cls, address: str, *, timeout: float = 5.0, message_limit: int = MESSAGE_LIMIT) -> Bus:
        """Connect, authenticate (EXTERNAL) and say Hello, all within `timeout` seconds.

        `message_limit`: bytes of the largest message that is sent, up to 64 MiB. Raises NameInvalid for the address,
        BusUnreachable for everything else that fails.
        """
        if not 0 < message_limit <= _HIGHEST_MESSAGE_LIMIT:
            raise ValueError(f"message_limit: expected 1 to {_HIGHEST_MESSAGE_LIMIT} bytes, got {message_limit}")
        candidates = addresses.parse(address)
        bus = cls(loaded(), message_limit)
        try:
            async with asyncio.timeout(timeout):
                await bus._stream.open(candidates)
                bus.unique_name = (await bus._ask_driver("Hello", "", ())).body[0]
        except TimeoutError:
            raise BusUnreachable(f"bus {address}: no answer within {timeout:g} s") from None
        except (OSError, EOFError, BusError) as error:
            raise BusUnreachable(f"bus {address}: {getattr(error, 'strerror', None) or error}") from None
        finally:
            if not bus.unique_name:
                bus._stream.abort()
        return bus

    async def close(self) -> None:
        """Send what is queued (within 5 s), end the connection, cancel the calls that are still being answered."""
        self._stream.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.closed.wait()
        except TimeoutError:
            self._stream.abort()
            await self.closed.wait()
        running = self._running - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def wait_lost(self) -> None:
        """Return when the connection is gone, whoever ended it."""
        await self.closed.wait()

    # Calls out

    async def call(
        self,
        destination: str,
        path: str,
        interface: str | None,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        timeout: float | None,
    ) -> Reply:
        """Call a method; `timeout` in seconds, None waits as long as the connection lasts.

        Raises NameInvalid, SignatureMismatch or MessageTooLarge (nothing was sent), BusRefused (the error reply),
        BusTimedOut, BusLost. A late answer to a call that timed out is dropped.
        """
        _check_call(destination, path, interface, member)
        serial = self._next_serial()
        wire = self._marshal(
            signature,
            body,
            message_type=self._library.types.METHOD_CALL,
            serial=serial,
            destination=destination,
            path=path,
            interface=interface,
            member=member,
        )
        deadline = None if timeout is None else self._loop.time() + timeout
        if self._stream.full:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._stream.room()
            except TimeoutError:
                raise BusTimedOut(f"{destination} {member}", timeout or 0, sent=False) from None
        self._stream.write(wire)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[serial] = future
        timer = None
        if deadline is not None and timeout is not None:
            timer = self._loop.call_at(deadline, _expire, future, f"{destination} {member}", timeout)
        try:
            return await future
        finally:
            self._pending.pop(serial, None)
            if timer is not None:
                timer.cancel()

    def emit(self, path: str, interface: str, member: str, signature: str = "", body: tuple[Any, ...] = ()) -> None:
        """Send a signal to whoever subscribed. It never waits.

        Raises NameInvalid, SignatureMismatch, MessageTooLarge, OutgoingFull, BusLost.
        """
        _check_call(None, path, interface, member)
        wire = self._marshal(
            signature,
            body,
            message_type=self._library.types.SIGNAL,
            serial=self._next_serial(),
            path=path,
            interface=interface,
            member=member,
        )
        if self._stream.unsent > _REFUSE_ABOVE:
            raise OutgoingFull(_REFUSE_ABOVE)
        self._stream.write(wire)

    # Names and their owners

    async def request_name(
        self, name: str, *, allow_replacement: bool = False, replace_existing: bool = False, queue: bool = False
    ) -> NameOutcome:
        """Ask to own a name; without `queue` it is EXISTS when another owns it. Raises BusRefused (policy)."""
        flags = 1 * allow_replacement | 2 * replace_existing | 4 * (not queue)
        return NameOutcome((await self._ask_driver("RequestName", "su", (name, flags))).body[0])

    async def release_name(self, name: str) -> bool:
        """Give a name up, or leave its queue. False when it was not ours."""
        released = 1
        return bool((await self._ask_driver("ReleaseName", "s", (name,))).body[0] == released)

    async def track_owner(self, name: str, on_change: OwnerChanged) -> None:
        """Know from now on who owns a name: `owner(name)`, and `on_change` with each later owner (None: nobody)."""
        known = self._trackers.setdefault(name, [])
        known.append(on_change)
        if len(known) > 1:
            if name not in self._owners:
                self._note_owner_if_new(name, await self._find_owner(name))
            return
        try:
            await self._ask_driver("AddMatch", "s", (_owner_rule(name),))
            self._note_owner_if_new(name, await self._find_owner(name))
        except BaseException:
            known.remove(on_change)
            raise

    async def untrack(self, name: str, on_change: OwnerChanged) -> None:
        """Undo one `track_owner`."""
        known = self._trackers[name]
        known.remove(on_change)
        if not known:
            del self._trackers[name]
            self._owners.pop(name, None)
            await self._ask_driver("RemoveMatch", "s", (_owner_rule(name),))

    def owner(self, name: str) -> str | None:
        """The unique name that owns a tracked name now; None: nobody. KeyError when it is not tracked."""
        return self._owners[name]

    async def sender_uid(self, sender: str) -> int:
        """The Unix user of a connection (its unique name). Raises BusRefused when it is gone."""
        uid = self._uids.get(sender)
        if uid is None:
            uid = int((await self._ask_driver("GetConnectionUnixUser", "s", (sender,))).body[0])
            if len(self._uids) >= _REMEMBERED_UIDS:
                self._uids.pop(next(iter(self._uids)))
            self._uids[sender] = uid  # a bus never gives a unique name twice: it stays true
        return uid

    async def process_of(self, name: str, *, timeout: float = _DRIVER_TIMEOUT) -> int:
        """The process id of a name's owner. Raises BusRefused when it has none."""
        reply = await self._ask_driver("GetConnectionUnixProcessID", "s", (name,), timeout=timeout)
        return int(reply.body[0])

    async def queued_owners(self, name: str, *, timeout: float = _DRIVER_TIMEOUT) -> list[str]:
        """The owner of a name and who waits for it; nobody when it has no owner."""
        try:
            return list((await self._ask_driver("ListQueuedOwners", "s", (name,), timeout=timeout)).body[0])
        except BusRefused:
            return []

    # Signals in

    async def subscribe(
        self,
        interface: str,
        member: str,
        callback: Callable[[SignalMessage], None],
        *,
        sender: str | None = None,
        path: str | None = None,
    ) -> Subscription:
        """Have `callback` called for every such signal; it must not block, and what it raises is logged.

        `sender` may be a well-known name: then signals of its owner at the time count.
        """
        _check_call(sender, path or "/", interface, member)
        wanted = Subscription(sender, path, interface, member, callback)
        if sender is not None and not sender.startswith(":") and sender != _DRIVER:
            await self.track_owner(sender, _ignore_owner)
        await self._ask_driver("AddMatch", "s", (_signal_rule(wanted),))
        self._subscriptions.setdefault((interface, member), []).append(wanted)
        return wanted

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Undo one `subscribe`."""
        self._subscriptions[subscription.interface, subscription.member].remove(subscription)
        await self._ask_driver("RemoveMatch", "s", (_signal_rule(subscription),))
        sender = subscription.sender
        if sender is not None and not sender.startswith(":") and sender != _DRIVER:
            await self.untrack(sender, _ignore_owner)

    # What passes between others

    async def monitor(self, rules: tuple[str, ...], on_copy: Callable[[bytes], None], *, timeout: float = 5.0) -> None:
        """Become a monitor: `on_copy` gets every message that one of the match rules takes, whole, whoever it is for.

        It must not block, and what it raises is logged. The connection is of no other use from then on: whoever
        monitors may not send. Raises BusRefused (the bus lets its own user and root), BusTimedOut, BusLost.
        """
        self._on_copy = on_copy  # the first copies come right behind the answer
        try:
            await self.call(
                _DRIVER, _DRIVER_PATH, _MONITORING, "BecomeMonitor", "asu", (list(rules), 0), timeout=timeout
            )
        except BaseException:
            self._on_copy = None
            raise

    # Calls in

    def serve(self, handler: Handler, *, limit: int = RUNNING_LIMIT) -> None:
        """Answer incoming calls with `handler`, at most `limit` at a time, each in a task of its own.

        It gives the reply's signature and body, or raises BusRefused. Anything else it raises is logged under an id,
        and the caller gets org.xen.xcp.Error.Internal with that id. A handler runs to its end even when the connection
        is lost meanwhile; `close` cancels it.
        """
        self._handler = handler
        self._limit = limit

    async def _answer(self, handler: Handler, call: MethodCall) -> None:
        try:
            signature, body = await handler(call)
            wire = self._reply(call, signature, body) if call.reply_expected else None
        except BusRefused as refusal:
            wire = self._refusal(call, refusal)
        except MessageTooLarge as error:
            wire = self._refusal(call, BusRefused(names.bridge_error("NotRepresentable"), "s", (f"reply: {error}",)))
        except Exception:
            wire = self._refusal(call, _internal(f"{call.interface}.{call.member} at {call.path}"))
        if wire is None or not call.reply_expected:
            return
        try:
            await self._stream.room()
            self._stream.write(wire)
        except BusLost:
            _log.info("%s.%s: the connection was lost before the answer left", call.interface, call.member)

    def _reply(self, call: MethodCall, signature: str, body: tuple[Any, ...]) -> bytes:
        return self._marshal(
            signature,
            body,
            message_type=self._library.types.METHOD_RETURN,
            flags=self._library.no_reply,
            serial=self._next_serial(),
            destination=call.sender,
            reply_serial=call.serial,
        )

    def _refusal(self, call: MethodCall, refusal: BusRefused) -> bytes:
        if names.is_interface(refusal.name):
            try:
                return self._error(call, refusal)
            except BusError:
                _log.warning("the error reply %s to %s cannot be sent", refusal.name, call.member, exc_info=True)
        return self._error(call, _internal(f"the error reply {refusal.name!r} to {call.member}"))

    def _error(self, call: MethodCall, refusal: BusRefused) -> bytes:
        return self._marshal(
            refusal.signature,
            refusal.body,
            message_type=self._library.types.ERROR,
            flags=self._library.no_reply,
            serial=self._next_serial(),
            destination=call.sender,
            reply_serial=call.serial,
            error_name=refusal.name,
        )

    # Messages in

    def _receive(self, frame: bytes) -> None:
        if self._on_copy is not None and not self._pending:
            _guarded(self._on_copy, frame)
            return
        try:
            message = self._library.unmarshal(frame)
            body = decoder(message.signature)(message.body)
        except Exception:
            _log.warning("a message of %d bytes cannot be read", len(frame), exc_info=True)
            self._receive_unreadable(frame)
            return
        self._dispatch(frame, message, body)

    def _dispatch(self, frame: bytes, message: Any, body: tuple[Any, ...]) -> None:
        kind = frame[1]
        if kind in (frames.METHOD_RETURN, frames.ERROR):
            future = self._pending.pop(message.reply_serial, None)
            if future is None or future.done():
                return
            if kind == frames.METHOD_RETURN:
                future.set_result(Reply(message.signature, body))
            else:
                future.set_exception(BusRefused(message.error_name, message.signature, body))
        elif kind == frames.METHOD_CALL:
            self._admit(_call_of(frame, message, body))
        elif kind == frames.SIGNAL:
            self._deliver(
                SignalMessage(message.sender, message.path, message.interface, message.member, message.signature, body)
            )

    def _receive_unreadable(self, frame: bytes) -> None:
        """The body is beyond the library (or the whole message is): only its own call may suffer."""
        refusal = BusRefused(names.bridge_error("NotRepresentable"), "s", ("the message body cannot be read here",))
        try:
            message = self._library.unmarshal(frames.without_body(frame))
        except Exception:
            _log.exception("a message of %d bytes cannot be read at all: dropped", len(frame))
            return
        if frame[1] == frames.METHOD_CALL:
            call = _call_of(frame, message, ())
            if call.reply_expected:
                self._stream.write(self._error(call, refusal))
        elif (future := self._pending.pop(message.reply_serial, None)) is not None and not future.done():
            future.set_exception(refusal)

    def _admit(self, call: MethodCall) -> None:
        if self._handler is not None and len(self._running) < self._limit:
            task = self._loop.create_task(self._answer(self._handler, call), name=f"bus call {call.member}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        elif call.reply_expected:
            if self._handler is None:
                refusal = BusRefused("org.freedesktop.DBus.Error.UnknownMethod", "s", ("nothing is served here",))
            else:
                text = f"{self._limit} calls are running: not executed"
                refusal = BusRefused(names.bridge_error("Busy"), "s", (text,))
            # Not queued behind the callers who wait: the bus bounds how many answers it lets us owe.
            self._stream.write(self._error(call, refusal))

    def _deliver(self, signal: SignalMessage) -> None:
        if signal.sender == _DRIVER and signal.member == "NameOwnerChanged" and signal.interface == _DRIVER:
            name, _, new = signal.body
            if name in self._trackers:
                self._note_owner(name, new or None)
        for wanted in self._subscriptions.get((signal.interface, signal.member), ()):
            if (wanted.path is None or wanted.path == signal.path) and (
                wanted.sender is None or signal.sender in (wanted.sender, self._owners.get(wanted.sender))
            ):
                _guarded(wanted.callback, signal)

    def _note_owner(self, name: str, owner: str | None) -> None:
        self._owners[name] = owner
        for on_change in tuple(self._trackers[name]):
            _guarded(on_change, owner)

    def _note_owner_if_new(self, name: str, owner: str | None) -> None:
        # A signal that came while we asked is newer than the answer.
        self._owners.setdefault(name, owner)

    async def _find_owner(self, name: str) -> str | None:
        try:
            return str((await self._ask_driver("GetNameOwner", "s", (name,))).body[0])
        except BusRefused as refusal:
            if refusal.name == "org.freedesktop.DBus.Error.NameHasNoOwner":
                return None
            raise

    # Plumbing

    async def _ask_driver(
        self, member: str, signature: str, body: tuple[Any, ...], *, timeout: float = _DRIVER_TIMEOUT
    ) -> Reply:
        return await self.call(_DRIVER, _DRIVER_PATH, _DRIVER, member, signature, body, timeout=timeout)

    def _marshal(self, signature: str, body: tuple[Any, ...], **fields: Any) -> bytes:
        encoded = encoder(signature)(body, self._library.variant)
        message = self._library.message(signature=signature, body=encoded, **fields)
        wire: bytes = message._marshall(negotiate_unix_fd=False)  # the libraries' only way to bytes; see _library
        if len(wire) > self._message_limit:
            raise MessageTooLarge(len(wire), self._message_limit)
        return wire

    def _next_serial(self) -> int:
        self._serial = self._serial % _LAST_SERIAL + 1
        return self._serial

    def _lost(self) -> None:
        self.closed.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BusLost(sent=True))
        self._pending.clear()


@lru_cache(4096)
def _check_call(destination: str | None, path: str, interface: str | None, member: str) -> None:
    if destination is not None and not names.is_bus_name(destination):
        raise NameInvalid("destination", destination)
    if not names.is_object_path(path):
        raise NameInvalid("object path", path)
    if interface is not None and not names.is_interface(interface):
        raise NameInvalid("interface", interface)
    if not names.is_member(member):
        raise NameInvalid("member", member)


def _call_of(frame: bytes, message: Any, body: tuple[Any, ...]) -> MethodCall:
    return MethodCall(
        message.sender,
        message.path,
        message.interface,
        message.member,
        message.signature,
        body,
        message.serial,
        message.destination,
        not frame[2] & frames.NO_REPLY_EXPECTED,
    )


def _expire(future: asyncio.Future[Reply], what: str, timeout: float) -> None:
    if not future.done():
        future.set_exception(BusTimedOut(what, timeout, sent=True))


def _internal(what: str) -> BusRefused:
    """For the caller an id; for the log the id and the exception that is being handled."""
    identity = secrets.token_hex(6)
    _log.exception("internal error %s: %s", identity, what)
    return BusRefused(names.bridge_error("Internal"), "s", (f"internal error, in the log under {identity}",))


def _guarded(callback: Callable[[Any], None], value: Any) -> None:
    try:
        callback(value)
    except Exception:
        _log.exception("a callback of the bus failed")


def _ignore_owner(_owner: str | None) -> None:
    """`owner()` is asked instead."""


def _owner_rule(name: str) -> str:
    return (
        f"type='signal',sender='{_DRIVER}',path='{_DRIVER_PATH}',interface='{_DRIVER}',"
        f"member='NameOwnerChanged',arg0='{name}'"
    )


def _signal_rule(wanted: Subscription) -> str:
    rule = f"type='signal',interface='{wanted.interface}',member='{wanted.member}'"
    if wanted.sender is not None:
        rule += f",sender='{wanted.sender}'"
    if wanted.path is not None:
        rule += f",path='{wanted.path}'"
    return rule
