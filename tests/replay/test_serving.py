"""A stand-in: recorded answers at every door, strictly, and nothing that was anybody else's."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridges.calls import Call, Door, Tagged, Value
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.replay.bindings import Bindings
from bridges.replay.driving import Drive, drive
from bridges.replay.pairs import Exchange
from bridges.replay.planning import Order
from bridges.replay.recorded import Recorded, leave_out
from bridges.replay.serving import ServeError, serve
from bridges.replay.targets import Target, choose, open_target
from dbus_side.bus import Bus
from tests.fixtures_xenstored import running_store
from tests.replay.exchanged import exchange, method, short_directory
from tests.replay.test_driving import Notes
from xenstore_rpc.connection import Store
from xmlrpc_gateway import datagrams

RESERVED, RESERVE = "get_host_reserved_memory", "reserve_memory"
TOO_MUCH = Fault(Kind.DECLARED, "no", code="Cannot_free_this_much_memory", argument=(9, 3))


def reserve(kib: int, answer: Value | Fault, **more: Any) -> Exchange:
    """A recorded reservation."""
    return exchange("squeezed", RESERVE, {"debug_info": "then", "session_id": "me", "kib": kib}, answer, **more)


def recording() -> list[Exchange]:
    """Two answers to one read, two to one write, a fault."""
    return [
        exchange("squeezed", RESERVED, {"debug_info": "then"}, 7),
        reserve(5, "r1"),
        exchange("squeezed", RESERVED, {"debug_info": "later"}, 8),
        reserve(5, "r2"),
        reserve(9, TOO_MUCH),
        exchange("squeezed", "balance_memory", {"debug_info": "then"}, None),
    ]


@pytest.fixture
def directory() -> Iterator[Path]:
    """For sockets."""
    with short_directory() as found:
        yield found


@pytest.fixture
def lines() -> list[str]:
    """What was told of unmatched calls."""
    return []


@pytest.fixture
def recorded(lines: list[str]) -> Recorded:
    """The answers of the recording."""
    found = Recorded(model.load("squeezed"), lines.append)
    assert found.load(recording()) == 6
    return found


@asynccontextmanager
async def standing(recorded: Recorded, *where: str) -> AsyncIterator[None]:
    """A stand-in at these addresses, orderly ended."""
    stop, ready = asyncio.Event(), asyncio.Event()

    def note(texts: Sequence[str]) -> None:
        assert len(texts) == len(where)
        ready.set()

    addresses = [choose(None, recorded.service.name, each) for each in where]
    serving = asyncio.create_task(serve(addresses, recorded, stop, note))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        await serving
    try:
        yield
    finally:
        stop.set()
        await serving


def names_in(directory: Path) -> list[str]:
    """What stands there."""
    return sorted(path.name for path in directory.iterdir())


async def ask(target: Target, name: str, **arguments: Value) -> Value | Fault:
    """A call as somebody makes it today."""
    called = method(target.interface.name, name)
    if any(p.name == "debug_info" for p in called.parameters):
        arguments["debug_info"] = "now"
    try:
        return await target.backend.ask(Call(called, arguments, target.door, time.monotonic() + 10))
    except Fault as fault:
        return fault


def said(answer: Value | Fault) -> tuple[Any, ...]:
    assert isinstance(answer, Fault), answer
    return answer.kind, answer.code, answer.argument


async def converse(target: Target) -> None:
    """What the recording has is answered in its order, and no more than that."""
    assert [await ask(target, RESERVED) for _ in range(3)] == [7, 8, 8]
    assert [await ask(target, RESERVE, session_id="me", kib=5) for _ in range(2)] == ["r1", "r2"]
    assert said(await ask(target, RESERVE, session_id="me", kib=9)) == (TOO_MUCH.kind, TOO_MUCH.code, (9, 3))
    third = await ask(target, RESERVE, session_id="me", kib=5)
    assert isinstance(third, Fault)
    assert "it was not made so often in the capture" in third.sentence
    for arguments in ({"session_id": "me", "kib": 6}, {"session_id": "you", "kib": 5}):
        other = await ask(target, RESERVE, **arguments)
        assert isinstance(other, Fault)
        assert "no call with these arguments is in the capture" in other.sentence


def check(recorded: Recorded, lines: list[str], door: str) -> None:
    """The summary after `converse`."""
    found = recorded.summary()
    assert found.served == {RESERVED: 3, RESERVE: 3}
    assert found.unmatched == {RESERVE: 3}
    assert found.never_asked == {"balance_memory": 1}
    assert found.unusable == {}
    assert [line.partition(":")[0] for line in lines] == [f"squeezed {RESERVE} at the {door} door"] * 3


@pytest.mark.parametrize("form", ["http", "framed"])
async def test_at_a_socket(form: str, recorded: Recorded, lines: list[str], directory: Path) -> None:
    """HTTP and frames, by the real doors; the socket goes with the stand-in."""
    where = f"{form}:{directory}/memory"
    async with standing(recorded, where), open_target(choose(None, "squeezed", where)) as target:
        await converse(target)
    check(recorded, lines, form)
    assert names_in(directory) == []


async def test_on_the_bus(recorded: Recorded, lines: list[str], bus_address: str) -> None:
    """At the service's name, which is free again afterwards."""
    where = f"bus:{bus_address}"
    async with standing(recorded, where), open_target(choose(None, "squeezed", where)) as target:
        await converse(target)
        check(recorded, lines, "bus")
        assert said(await ask(target, RESERVE, session_id="me", kib=6))[0] is Kind.UNAVAILABLE
    bus = await Bus.connect(bus_address)
    await bus.track_owner("org.xen.xcp.squeezed", lambda _owner: None)
    assert bus.owner("org.xen.xcp.squeezed") is None
    await bus.close()


async def test_in_the_store(lines: list[str]) -> None:
    """The tree is served, by pid, and left empty-handed."""
    recorded = Recorded(model.load("squeezed"), lines.append)
    calls = [exchange("squeezed", "login", {"debug_info": "d", "service_name": "me"}, "s1"), reserve(5, "r1")]
    assert recorded.load([*calls, reserve(9, TOO_MUCH)]) == 3
    async with running_store("embedded", Path) as process:
        where = f"xenstore:{process.socket}"
        async with standing(recorded, where), open_target(choose(None, "squeezed", where)) as target:
            assert await ask(target, "login", service_name="me") == "s1"
            assert await ask(target, RESERVE, session_id="me", kib=5) == "r1"
            assert said(await ask(target, RESERVE, session_id="me", kib=9))[1] == TOO_MUCH.code
            used_up = await ask(target, RESERVE, session_id="me", kib=5)
            assert isinstance(used_up, Fault)
            assert "Unavailable: reserve_memory: it was not made so often in the capture" in used_up.text
        store = Store(process.socket)
        await store.connect()
        assert await store.directory("/squeezed") == ["rpc"]
        assert await store.directory_or_empty("/squeezed/rpc/request/login") == []
        await store.close()
    assert recorded.summary().unmatched == {RESERVE: 1}


async def test_at_datagrams(lines: list[str], directory: Path) -> None:
    """A command is taken; nothing comes back, and what is not recorded is a line."""
    recorded = Recorded(model.load("perfmon"), lines.append)
    recorded.load([exchange("perfmon", "refresh", {}, None)])
    address = f"@{directory.name}"
    async with standing(recorded, f"datagram:{address}"):
        await datagrams.send(address, b"refresh", timeout=5)
        await datagrams.send(address, b"debug_mem", timeout=5)
        async with asyncio.timeout(10):
            while not (recorded.summary().served and lines):  # noqa: ASYNC110 -- datagrams are not answered
                await asyncio.sleep(0.01)
    assert recorded.summary().served == {"refresh": 1}
    assert lines == ["perfmon debug_mem at the datagram door: no such call is in the capture"]


async def test_several_doors_share_the_answers(recorded: Recorded, directory: Path) -> None:
    """Each recorded answer is given once, whatever door asked."""
    where = [f"http:{directory}/memory", f"framed:{directory}/memory.json"]
    async with standing(recorded, *where):
        answers = []
        for each in where:
            async with open_target(choose(None, "squeezed", each)) as target:
                answers.append(await ask(target, RESERVE, session_id="me", kib=5))
    assert answers == ["r1", "r2"]


async def test_driving_a_stand_in(recorded: Recorded, directory: Path) -> None:
    """What was recorded is answered as it was recorded."""
    where = f"framed:{directory}/memory"
    notes = Notes()
    calls = recording()
    async with standing(recorded, where):
        (directory / "memory.sandbox").touch()
        async with open_target(choose(None, "squeezed", where)) as target:
            options = Drive(closed=1, allow_writes=True)
            stop = asyncio.Event()
            await drive(calls, target, options, notes, Bindings({}), Order(), notes.note, stop)
    outcomes = list(notes.outcomes.values())
    assert outcomes[:4] == [7, "r1", 8, "r2"]
    assert said(outcomes[4])[1] == TOO_MUCH.code
    assert outcomes[5] is None
    assert recorded.summary().never_asked == {}


async def test_what_belongs_to_others_is_refused(recorded: Recorded, directory: Path, bus_address: str) -> None:
    """A path that exists, an owned name, a living daemon's tree; none of it is touched."""
    (directory / "file").write_text("mine")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as commands:
        other.bind(str(directory / "socket"))
        commands.bind(f"\0{directory.name}")
        owner = await Bus.connect(bus_address)
        await owner.request_name("org.xen.xcp.squeezed")
        async with running_store("embedded", Path) as process:
            store = Store(process.socket)
            await store.connect()
            await store.write("/squeezed/pid", b"%d" % os.getppid())
            for where, expected in (
                (f"http:{directory}/file", "file exists: end its daemon"),
                (f"framed:{directory}/socket", "socket exists: end its daemon"),
                (f"http:{directory}/no/socket", "No such file"),
                ("http://127.0.0.1:1/", "a stand-in listens at Unix sockets only"),
                (f"bus:{bus_address}", "org.xen.xcp.squeezed is owned by another daemon"),
                (f"xenstore:{process.socket}", f"/squeezed is served by process {os.getppid()}"),
                (f"datagram:@{directory.name}", "is taken by another process"),
            ):
                with pytest.raises(ServeError, match=expected):
                    async with standing(recorded, f"http:{directory}/first", where):
                        pass
            assert await store.read("/squeezed/pid") == b"%d" % os.getppid()
            await store.close()
        await owner.close()
    assert names_in(directory) == ["file", "socket"]
    assert (directory / "file").read_text() == "mine"


async def test_another_daemon_comes_to_the_tree(recorded: Recorded) -> None:
    """Two cannot serve one tree: the stand-in ends, and leaves the other's pid."""
    async with running_store("embedded", Path) as process:
        store = Store(process.socket)
        await store.connect()
        ready = asyncio.Event()
        addresses = [choose(None, "squeezed", f"xenstore:{process.socket}")]
        serving = asyncio.create_task(serve(addresses, recorded, asyncio.Event(), lambda _texts: ready.set()))
        async with asyncio.timeout(10):
            await ready.wait()
            await store.write("/squeezed/pid", b"%d" % os.getppid())
            with pytest.raises(ServeError, match="another daemon serves the tree"):
                await serving
        assert await store.read("/squeezed/pid") == b"%d" % os.getppid()
        await store.close()


async def test_fields_that_were_redacted_are_not_compared(lines: list[str]) -> None:
    """Any value stands for what the recording does not have; everything else must be the same."""
    recorded = Recorded(model.load("xapi"), lines.append)
    arguments: dict[str, Value] = {
        "session_id": "OpaqueRef:5ec3e700-0000-4000-8000-000000000000",
        "host": "h", "device_config": {"target": "t", "chappassword": "(secret)"}, "type": "lvmoiscsi",
        "sm_config": {},
    }  # fmt: skip
    redacted = ["arguments.session_id", "arguments.device_config{*}"]
    assert recorded.load([exchange("xapi", "SR.probe", arguments, "<xml/>", redacted=redacted)]) == 1
    asked = {**arguments, "session_id": "OpaqueRef:1", "device_config": {"target": "u", "chappassword": "x"}}
    assert await recorded.ask(Call(method("xapi", "SR.probe"), asked, Door.HTTP, None)) == "<xml/>"
    for other in ({"host": "g"}, {"device_config": {"target": "u"}}):
        with pytest.raises(Fault, match="no call with these arguments"):
            await recorded.ask(Call(method("xapi", "SR.probe"), {**asked, **other}, Door.HTTP, None))


async def test_a_recorded_fault_with_a_redacted_argument(lines: list[str]) -> None:
    """It is the fault that it was, with what it carried."""
    recorded = Recorded(model.load("xenopsd"), lines.append)
    fault = Fault(Kind.DECLARED, "no", code="Does_not_exist", argument=("task", "17"))
    task = exchange("xenopsd", "Task.stat", {"debug_info": "d", "task": "17"}, fault, redacted=["task"])
    assert recorded.load([task]) == 1
    called = method("xenopsd", task.request.method)
    with pytest.raises(Fault) as caught:
        await recorded.ask(Call(called, {"debug_info": "e", "task": "99"}, Door.HTTP, None))
    assert caught.value.code == "Does_not_exist"


LEFT_OUT = {
    "members": ("a.b", {"a": {"b": 1, "c": 2}}, {"a": {"b": None, "c": 2}}),
    "a place in a tuple": ("a[1]", {"a": [1, 2]}, {"a": [1, None]}),
    "elements": ("a[*].b", {"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": None}, {"b": None}]}),
    "values": ("a{*}", {"a": {"x": 1, "y": 2}}, {"a": {"x": None, "y": None}}),
    "keys": ("a{#}", {"a": {"x": 1}}, {"a": None}),
    "what a constructor carries": ("a.Disk[0]", {"a": ["Disk", ["p", "q"]]}, {"a": ["Disk", [None, "q"]]}),
    "a value of its own": ("a", {"a": [1], "b": 1}, {"a": None, "b": 1}),
    "nothing of the kind": ("a.b[0]", {"a": "text"}, {"a": "text"}),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_path_leaves_out(name: str) -> None:
    """Paths are those of differences."""
    path, value, expected = LEFT_OUT[name]
    assert leave_out(value, path) == expected


def test_what_cannot_be_used_is_counted(lines: list[str]) -> None:
    """Half pairs, unknown methods, arguments that were not seen; other services are passed over."""
    recorded = Recorded(model.load("squeezed"), lines.append)
    half = reserve(1, "r")._replace(reply=None)
    unknown = exchange("squeezed", RESERVED, {"debug_info": "d"}, 7)
    request = unknown.request
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    strange = unknown._replace(request=type(request)(**{**fields, "method": "", "name": "nosuch"}))
    unseen = unknown._replace(request=type(request)(**{**fields, "arguments": None}))
    other = exchange("perfmon", "refresh", {}, None)
    assert recorded.load([half, strange, unseen, other]) == 0
    assert recorded.summary().unusable == {
        "no answer was recorded": 1,
        "no such method": 1,
        "arguments not recorded": 1,
    }


async def test_equal_answers_are_kept_once(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is on what differs, and reaching it is said."""
    from bridges.replay import recorded as module

    monkeypatch.setattr(module, "LIMIT_BYTES", 2000)
    recorded = Recorded(model.load("squeezed"), lines.append)
    assert recorded.load(reserve(5, "same") for _ in range(500)) == 500
    with pytest.raises(module.TooMuch, match="choose fewer methods"):
        recorded.load(reserve(5, f"r{i}") for i in range(500))


def test_a_union_is_recorded_as_it_is(lines: list[str]) -> None:
    """Answers go back into the neutral form."""
    recorded = Recorded(model.load("squeezed"), lines.append)
    policy = Tagged("Auto_balloon", (1, 2))
    recorded.load([exchange("squeezed", "get_domain_zero_policy", {"debug_info": "d"}, policy)])
    call = Call(method("squeezed", "get_domain_zero_policy"), {"debug_info": "x"}, Door.BUS, None)
    assert asyncio.run(recorded.ask(call)) == policy
