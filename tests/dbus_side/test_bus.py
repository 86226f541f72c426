"""The connection, over a real dbus-daemon and with both libraries."""

import asyncio
import logging
import os
import socket

import pytest
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant as NextVariant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbus_side.bus import Bus, MethodCall, NameOutcome, Reply
from dbus_side.errors import (
    BusLost,
    BusRefused,
    BusTimedOut,
    BusUnreachable,
    MessageTooLarge,
    NameInvalid,
    OutgoingFull,
    SignatureMismatch,
)
from dbus_side.signatures import Variant

NAME = "org.xen.xcp.squeezed"
PATH = "/org/xen/xcp/squeezed/Memory"
INTERFACE = "org.xen.xcp.squeezed.Memory1"

pytestmark = pytest.mark.usefixtures("bus_library")


async def echo(call: MethodCall):
    """Give back what came."""
    return call.signature, call.body


@pytest.fixture
async def service(connect):
    """A connection that owns the service name and echoes."""
    bus = await connect()
    bus.serve(echo)
    assert await bus.request_name(NAME) is NameOutcome.OWNER
    return bus


@pytest.fixture
async def client(connect, service):
    """A function that calls the service."""
    bus = await connect()

    def call(signature="", *body, timeout=30.0, member="Echo", destination=NAME):
        return bus.call(destination, PATH, INTERFACE, member, signature, body, timeout=timeout)

    call.bus = bus
    return call


class Gate:
    """A handler that holds every call until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.entered = asyncio.Queue()

    async def __call__(self, call):
        self.entered.put_nowait(call)
        await self.opened.wait()
        return call.signature, call.body


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", ()),
        ("sxbd", ("žluť", -(2**63), True, 0.1)),
        ("ay", (b"\0\xff",)),
        ("(s(xb))a(ss)", (("a", (1, False)), [("b", "c")])),
        ("a{sv}", ({"memory": Variant("x", 5), "list": Variant("a(sv)", [("a", Variant("ay", b"x"))])},)),
        ("v", (Variant("v", Variant("v", Variant("as", []))),)),
        ("ogyqnut", ("/", "a{sv}", 255, 65535, -32768, 2**32 - 1, 2**64 - 1)),
        ("a{xs}aas", ({1: "a"}, [[], ["x"]])),
    ],
)
async def test_bodies_come_back_as_they_went(client, signature, body):
    """Structs are tuples and variants ours, on either side of the bus."""
    assert await client(signature, *body) == Reply(signature, body)


VARIANTS = st.one_of(
    st.builds(Variant, st.just("x"), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Variant, st.just("s"), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    st.builds(Variant, st.just("ay"), st.binary()),
    st.builds(Variant, st.just("a(sd)"), st.lists(st.tuples(st.just("k"), st.floats(allow_nan=False)), max_size=3)),
    st.builds(Variant, st.just("a{sb}"), st.dictionaries(st.sampled_from("abc"), st.booleans())),
)


async def test_any_record_comes_back(client):
    """Made-up records pass the encoder, a real bus and the decoder unchanged."""
    records = []

    @settings(max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), VARIANTS))
    def collect(record):
        records.append(record)

    collect()
    for record in records:
        assert (await client("a{sv}", record)).body == (record,)


@pytest.mark.parametrize(
    ("signature", "value", "path"),
    [
        ("s", "a\0b", "argument 1"),
        ("s", "\ud800", "argument 1"),
        ("o", "/a/", "argument 1"),
        ("i", 2**31, "argument 1"),
        ("a{sv}", {"memory": Variant("u", -1)}, "argument 1.memory"),
    ],
)
async def test_a_wrong_value_harms_nobody(client, signature, value, path):
    """It is refused before it is marshalled: a call in flight and the connection live on."""
    other = asyncio.create_task(client("s", "other"))
    with pytest.raises(SignatureMismatch) as caught:
        await client(signature, value)
    assert caught.value.path == path
    assert (await other).body == ("other",)
    assert (await client("s", "after")).body == ("after",)


async def test_a_message_over_the_limit_is_refused(connect, service):
    """The bus would disconnect the sender of one over its own limit."""
    bus = await connect(message_limit=10_000)
    with pytest.raises(MessageTooLarge) as caught:
        await bus.call(NAME, PATH, INTERFACE, "Echo", "s", ("x" * 10_000,), timeout=5)
    assert caught.value.limit == 10_000 < caught.value.size
    assert (await bus.call(NAME, PATH, INTERFACE, "Echo", "s", ("x" * 9_000,), timeout=5)).signature == "s"


async def test_a_reply_over_the_limit_is_an_error_reply(connect, client):
    """Its caller hears of it; the service lives on."""
    small = await connect(message_limit=10_000)

    async def answer(_call):
        return "s", ("x" * 20_000,)

    small.serve(answer)
    with pytest.raises(BusRefused) as caught:
        await client(destination=small.unique_name)
    assert caught.value.name == "org.xen.xcp.Error.NotRepresentable"


@pytest.mark.parametrize("limit", [0, 64 * 1024 * 1024 + 1])
async def test_an_impossible_limit_is_refused(bus_address, limit):
    """Over 64 MiB an array could be longer than the protocol allows."""
    with pytest.raises(ValueError, match="message_limit"):
        await Bus.connect(bus_address, message_limit=limit)


@pytest.mark.parametrize(
    ("destination", "path", "interface", "member", "said"),
    [
        ("squeezed", "/a", "a.b", "M", "destination"),
        (NAME, "/a/", "a.b", "M", "object path"),
        (NAME, "/a", "a", "M", "interface"),
        (NAME, "/a", "a.b", "get-all", "member"),
    ],
)
async def test_illegal_names_are_refused(client, destination, path, interface, member, said):
    """The refusal says which name; nothing was sent."""
    with pytest.raises(NameInvalid, match=said):
        await client.bus.call(destination, path, interface, member, timeout=5)
    assert (await client()).body == ()


async def test_an_error_reply_keeps_name_signature_and_arguments(connect, client):
    """What a handler raises is what the caller catches."""
    other = await connect()
    refusal = BusRefused("org.xen.xcp.squeezed.Error.Cannot_free", "sxv", ("no memory", 5, Variant("(s)", ("a",))))

    async def refuse(_call):
        raise refusal

    other.serve(refuse)
    with pytest.raises(BusRefused) as caught:
        await client(destination=other.unique_name)
    got = caught.value
    assert (got.name, got.signature, got.body) == (refusal.name, refusal.signature, refusal.body)


async def wrong_body(_call):
    """A reply that does not fit."""
    return "x", ("no integer",)


async def wrong_refusal(_call):
    """An error reply that does not fit."""
    raise BusRefused("org.xen.xcp.Error.X", "x", ("secret",))


async def wrong_error_name(_call):
    """An error name that is none."""
    raise BusRefused("no-name", "s", ("secret",))


async def defect(_call):
    """A bug."""
    raise RuntimeError("secret")


@pytest.mark.parametrize("handler", [wrong_body, wrong_refusal, wrong_error_name, defect])
async def test_a_defect_is_answered_with_an_id_only(connect, client, caplog, handler):
    """The log has the details under that id."""
    other = await connect()
    other.serve(handler)
    with caplog.at_level(logging.ERROR), pytest.raises(BusRefused) as caught:
        await client(destination=other.unique_name)
    assert caught.value.name == "org.xen.xcp.Error.Internal"
    text = caught.value.body[0]
    assert "secret" not in text
    assert "Traceback" not in text
    assert text.rpartition(" ")[2] in caplog.text


async def test_nothing_served_is_an_unknown_method(connect, client):
    """A connection without a handler answers too."""
    other = await connect()
    with pytest.raises(BusRefused) as caught:
        await client(destination=other.unique_name)
    assert caught.value.name == "org.freedesktop.DBus.Error.UnknownMethod"


async def test_a_call_knows_its_caller(client, service):
    """Sender, address and serial are those of the message."""
    seen = []

    async def look(call):
        seen.append(call)
        return "", ()

    service.serve(look)
    await client("s", "a", member="Look")
    (call,) = seen
    assert call[:6] == (client.bus.unique_name, PATH, INTERFACE, "Look", "s", ("a",))
    assert (call.destination, call.reply_expected) == (NAME, True)
    assert await service.sender_uid(call.sender) == os.geteuid()
    assert await service.sender_uid(call.sender) == os.geteuid()


async def test_the_uid_of_nobody_is_refused(service):
    """A caller that left is no caller with a wrong uid."""
    with pytest.raises(BusRefused, match="NameHasNoOwner"):
        await service.sender_uid(":1.9999")


async def test_a_caller_who_wants_no_reply_gets_none(client, service):
    """The flag is honoured: the call is executed and nothing comes back."""
    gate = Gate()
    service.serve(gate)
    gate.opened.set()
    answer = client.bus._pending[999] = asyncio.get_running_loop().create_future()
    flags = MessageFlag.NO_REPLY_EXPECTED
    message = Message(destination=NAME, path=PATH, interface=INTERFACE, member="X", flags=flags, serial=999)
    client.bus._stream.write(message._marshall())
    assert not (await gate.entered.get()).reply_expected
    assert (await client("s", "after")).body == ("after",)
    assert not answer.done()


async def test_a_deadline_leaves_nothing_behind(client, service):
    """The pending entry goes with the deadline; the late answer is dropped and disturbs nobody."""
    gate = Gate()
    service.serve(gate)
    with pytest.raises(BusTimedOut, match=r"Echo: no answer within 0\.01 s") as caught:
        await client("s", "late", timeout=0.01)
    assert caught.value.sent
    assert not client.bus._pending
    gate.opened.set()
    assert (await client("s", "after")).body == ("after",)


async def test_a_cancelled_call_leaves_nothing_behind(client, service):
    """The caller's own cancellation counts as well."""
    gate = Gate()
    service.serve(gate)
    task = asyncio.create_task(client("s", "x", timeout=None))
    await gate.entered.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not client.bus._pending


async def test_more_calls_than_the_limit_are_busy_at_once(client, service):
    """The ones inside are not disturbed."""
    gate = Gate()
    service.serve(gate, limit=3)
    inside = [asyncio.create_task(client("x", number)) for number in range(3)]
    for _ in inside:
        await gate.entered.get()
    with pytest.raises(BusRefused) as caught:
        await client("x", 3)
    assert caught.value.name == "org.xen.xcp.Error.Busy"
    gate.opened.set()
    assert [(await task).body for task in inside] == [(0,), (1,), (2,)]
    assert (await client("x", 4)).body == (4,)


@pytest.mark.parametrize("size", [4_000, 250_000])
async def test_a_full_socket_buffer_is_survived(client, size):
    """120 calls at once fill the buffers of the client, of the service and of the bus."""
    text = "x" * size
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client("sx", text, number)) for number in range(120)]
    assert [task.result().body[1] for task in tasks] == list(range(120))
    assert (await client("s", "after")).body == ("after",)


async def test_a_burst_of_signals_arrives_in_order(connect, service):
    """20 000 signals without a pause."""
    listener = await connect()
    seen = []
    all_there = asyncio.Event()

    def note(signal):
        seen.append(signal.body[0])
        if len(seen) == 20_000:
            all_there.set()

    await listener.subscribe(INTERFACE, "Tick", note, sender=NAME, path=PATH)
    for number in range(20_000):
        service.emit(PATH, INTERFACE, "Tick", "x", (number,))
    await all_there.wait()
    assert seen == list(range(20_000))


@pytest.fixture
async def deaf_bus(tmp_path_factory):
    """A listener that authenticates, answers Hello and then reads nothing more."""
    import shutil
    import tempfile
    from pathlib import Path

    directory = Path(tempfile.mkdtemp(prefix="xd", dir="/tmp"))
    writers = []

    async def accept(reader, writer):
        writers.append(writer)
        await reader.readline()
        writer.write(b"OK 00\r\n")
        await reader.readline()
        await reader.readexactly(16)
        writer.write(Message.new_method_return(Message("a.b", "/", "a.b", "M", serial=1), "s", [":1.7"])._marshall())
        writer.transport.pause_reading()

    server = await asyncio.start_unix_server(accept, directory / "bus")
    yield f"unix:path={directory}/bus"
    server.close()
    for writer in writers:
        writer.transport.abort()
    await server.wait_closed()
    shutil.rmtree(directory)


async def test_callers_wait_for_room_within_their_deadline(deaf_bus):
    """The queue of unsent bytes is bounded: later calls never enter it, signals are refused."""
    bus = await Bus.connect(deaf_bus)
    chunk = "x" * 1_000_000
    calls = [bus.call(NAME, PATH, INTERFACE, "M", "s", (chunk,), timeout=0.3) for _ in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, BusTimedOut) for outcome in outcomes)
    assert [outcome.sent for outcome in outcomes] == sorted((outcome.sent for outcome in outcomes), reverse=True)
    assert not outcomes[-1].sent
    assert bus._stream.unsent < 6_000_000
    while bus._stream.unsent <= 64 * 1024 * 1024:
        bus.emit(PATH, INTERFACE, "Tick", "s", (chunk,))
    with pytest.raises(OutgoingFull):
        bus.emit(PATH, INTERFACE, "Tick", "s", (chunk,))
    bus._stream.abort()
    await bus.wait_lost()


# Names


async def test_a_taken_name_is_never_queued_for_silently(connect, service):
    """Without `queue` it is EXISTS; with it QUEUED, and the name comes when it is released."""
    other = await connect()
    assert await other.request_name(NAME) is NameOutcome.EXISTS
    assert await service.request_name(NAME) is NameOutcome.ALREADY_OWNER
    assert await other.request_name(NAME, queue=True) is NameOutcome.QUEUED
    owned = asyncio.Event()
    await other.track_owner(NAME, lambda owner: owned.set() if owner == other.unique_name else None)
    assert other.owner(NAME) == service.unique_name
    assert await service.release_name(NAME)
    await owned.wait()
    assert not await service.release_name(NAME)


async def test_a_replaceable_name_is_replaced(connect):
    """ALLOW_REPLACEMENT on one side, REPLACE_EXISTING on the other."""
    first, second = await connect(), await connect()
    assert await first.request_name(NAME, allow_replacement=True) is NameOutcome.OWNER
    assert await second.request_name(NAME) is NameOutcome.EXISTS
    assert await second.request_name(NAME, replace_existing=True) is NameOutcome.OWNER


async def test_an_owner_is_followed(connect):
    """Known at once, then by signal; two trackers are told, and each can leave."""
    watcher, owner = await connect(), await connect()
    changes = asyncio.Queue()
    others = []
    await watcher.track_owner(NAME, changes.put_nowait)
    await watcher.track_owner(NAME, others.append)
    assert watcher.owner(NAME) is None
    await owner.request_name(NAME)
    assert await changes.get() == owner.unique_name == watcher.owner(NAME)
    await watcher.untrack(NAME, others.append)
    await owner.close()
    assert await changes.get() is None
    assert others == [owner.unique_name]
    await watcher.untrack(NAME, changes.put_nowait)
    with pytest.raises(KeyError):
        watcher.owner(NAME)


async def test_a_foreign_name_is_refused_by_policy(connect):
    """Only names of the toolstack can be owned."""
    bus = await connect()
    with pytest.raises(BusRefused, match="AccessDenied"):
        await bus.request_name("com.example.Other")


async def test_a_hand_over_under_load_loses_no_call(connect):
    """The new daemon queues, the old owner releases, again and again: every call is answered once."""
    owners = [await connect(), await connect()]
    caller = await connect()
    served = [0, 0]

    def handler(index):
        async def answer(call):
            served[index] += 1
            return call.signature, call.body

        return answer

    for index, bus in enumerate(owners):
        bus.serve(handler(index))
    await owners[0].request_name(NAME, allow_replacement=True)
    over = asyncio.Event()
    answered = []

    async def load(worker):
        number = 0
        while not over.is_set():
            reply = await caller.call(NAME, PATH, INTERFACE, "Echo", "xx", (worker, number), timeout=30)
            assert reply.body == (worker, number)
            answered.append(reply)
            number += 1

    async with asyncio.TaskGroup() as group:
        for worker in range(16):
            group.create_task(load(worker))
        for turn in range(20):
            old, new = owners[turn % 2], owners[1 - turn % 2]
            assert await new.request_name(NAME, allow_replacement=True, queue=True) is NameOutcome.QUEUED
            before = served[1 - turn % 2]
            assert await old.release_name(NAME)
            while served[1 - turn % 2] == before:
                await caller.call(NAME, PATH, INTERFACE, "Echo", timeout=30)
        over.set()
    assert all(served)
    assert sum(served) >= len(answered)


# Signals


async def test_signals_are_filtered(connect, service):
    """By sender, path, interface and member; a callback that fails disturbs nobody."""
    listener, stranger = await connect(), await connect()
    seen = asyncio.Queue()
    everything = asyncio.Queue()

    def fail(_signal):
        raise RuntimeError("a defect of the callback")

    await listener.subscribe(INTERFACE, "Tick", fail)
    wanted = await listener.subscribe(INTERFACE, "Tick", seen.put_nowait, sender=NAME, path=PATH)
    await listener.subscribe(INTERFACE, "Tick", everything.put_nowait)
    stranger.emit(PATH, INTERFACE, "Tick", "s", ("stranger",))
    assert (await everything.get()).body == ("stranger",)
    service.emit("/other", INTERFACE, "Tick", "s", ("other path",))
    service.emit(PATH, INTERFACE, "Tock", "s", ("other member",))
    service.emit(PATH, INTERFACE, "Tick", "s", ("wanted",))
    signal = await seen.get()
    assert (signal.body, signal.sender) == (("wanted",), service.unique_name)
    await listener.unsubscribe(wanted)
    service.emit(PATH, INTERFACE, "Tick", "s", ("last",))
    while (await everything.get()).body != ("last",):
        pass
    assert seen.empty()


# Faults


async def test_a_killed_bus_fails_all_calls_in_flight(client, service, bus_daemon):
    """Each caller hears at once that the call may have been executed; nothing hangs."""
    gate = Gate()
    service.serve(gate)
    calls = [asyncio.create_task(client("x", number, timeout=None)) for number in range(50)]
    for _ in calls:
        await gate.entered.get()
    bus_daemon.kill()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, BusLost) and outcome.sent for outcome in outcomes)
    await asyncio.gather(client.bus.wait_lost(), service.wait_lost())
    with pytest.raises(BusLost) as caught:
        await client("x", 1)
    assert not caught.value.sent
    with pytest.raises(BusLost):
        service.emit(PATH, INTERFACE, "Tick")
    gate.opened.set()


async def test_a_lost_connection_frees_its_name(connect, service):
    """No socket stays open behind a dead connection: the name has no owner the moment it is gone."""
    watcher = await connect()
    changes = asyncio.Queue()
    await watcher.track_owner(NAME, changes.put_nowait)
    service._stream.abort()
    await service.wait_lost()
    assert await changes.get() is None


async def test_close_sends_what_is_queued(connect):
    """A megabyte of signals written just before the end arrives."""
    listener, sender = await connect(), await connect()
    seen = []
    last = asyncio.Event()

    def note(signal):
        seen.append(len(signal.body[0]))
        if len(seen) == 100:
            last.set()

    await listener.subscribe(INTERFACE, "Tick", note)
    for _ in range(100):
        sender.emit(PATH, INTERFACE, "Tick", "s", ("x" * 100_000,))
    await sender.close()
    await last.wait()
    assert seen == [100_000] * 100


async def test_close_ends_running_handlers(connect):
    """No task outlives its connection's close; the caller is told by the bus."""
    served, caller = await connect(), await connect()
    gate = Gate()
    served.serve(gate)
    call = asyncio.create_task(caller.call(served.unique_name, PATH, INTERFACE, "M", timeout=30))
    await gate.entered.get()
    await served.close()
    assert not served._running
    with pytest.raises(BusRefused, match="NoReply"):
        await call


def hostile(destination, kind="call"):
    """A message that the bus lets pass and dbus-fast cannot read: an array inside 64 variants."""
    value = NextVariant("ai", [1])
    for _ in range(63):
        value = NextVariant("v", value)
    common = {"signature": "v", "body": [value], "serial": 77_777, "path": PATH, "interface": INTERFACE, "member": "M"}
    if kind == "call":
        return Message(destination=destination, **common)._marshall()
    return Message(message_type=MessageType.SIGNAL, **common)._marshall()


async def test_a_hostile_call_harms_only_itself(connect, client, service, bus_library):
    """Whoever sends a body that the library cannot read gets an error; the connection and its calls live on."""
    attacker = await connect()
    answer = attacker._loop.create_future()
    attacker._pending[77_777] = answer
    attacker._stream.write(hostile(NAME))
    if bus_library == "dbus-fast":
        with pytest.raises(BusRefused, match=r"NotRepresentable.*cannot be read"):
            await answer
    else:
        # dbus-next reads it; what cannot be sent back is then a defect's answer.
        with pytest.raises(BusRefused, match="Internal"):
            await answer
    assert (await client("s", "after")).body == ("after",)


async def test_a_hostile_signal_harms_nobody(connect, service):
    """It is dropped, the next one arrives."""
    listener = await connect()
    seen = asyncio.Queue()
    await listener.subscribe(INTERFACE, "M", seen.put_nowait)
    service._stream.write(hostile(None, "signal"))
    service.emit(PATH, INTERFACE, "M", "s", ("after",))
    while (await seen.get()).body != ("after",):
        pass


# Connecting


async def test_nobody_listens(tmp_path):
    """The error names the address."""
    with pytest.raises(BusUnreachable, match=r"/none: .*No such file"):
        await Bus.connect(f"unix:path={tmp_path}/none")


async def test_the_next_address_is_tried(bus_address):
    """A list is tried in its order."""
    bus = await Bus.connect(f"unix:path=/nonexistent/bus;{bus_address}")
    assert bus.unique_name.startswith(":")
    await bus.close()


async def test_connecting_has_a_deadline():
    """A listener that never answers is no bus."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind("\0xcp-bus-test-silent")
        silent.listen()
        with pytest.raises(BusUnreachable, match="no answer within"):
            await Bus.connect("unix:abstract=xcp-bus-test-silent", timeout=0.05)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"REJECTED EXTERNAL\r\n", "refused"), (b"", "closed"), (b"x" * 20_000, "no end"), (b"OK 00\r\nHTTP", "lost")],
)
async def test_a_listener_that_is_no_bus(answer, said):
    """Refused, closed, endless or nonsense: told, and the socket is closed."""

    async def accept(reader, writer):
        await reader.readline()
        writer.write(answer[: answer.find(b"\n") + 1] or answer)
        if b"OK" in answer:
            await reader.readline()
            writer.write(b"HTTP/1.1 400 Bad Request\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(accept, "\0xcp-bus-test-wrong")
    with pytest.raises(BusUnreachable, match=said):
        await Bus.connect("unix:abstract=xcp-bus-test-wrong")
    server.close()
    await server.wait_closed()


async def test_an_unknown_library_is_refused(bus_address, monkeypatch):
    """The setting is named with its choices."""
    monkeypatch.setenv("XCP_BUS_LIBRARY", "sdbus")
    with pytest.raises(ValueError, match=r"XCP_BUS_LIBRARY: expected one of dbus-fast, dbus-next, got 'sdbus'"):
        await Bus.connect(bus_address)
