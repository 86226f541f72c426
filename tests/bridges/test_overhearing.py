"""What bus callers and a daemon in charge say to each other, as it stands in a capture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from bridges.capture.recorder import Recorder
from bridges.capture.records import Complete, Leg, Lost, Record, Reply, Request
from bridges.capture.store import open_capture
from bridges.capture.taps import Tap
from bridges.capture.writing import Limits
from bridges.cutover import Stage
from bridges.dbus_translation import Translation
from bridges.interfaces import model
from bridges.overhearing import CONNECTION_LOST, Overhearing
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusError, BusRefused
from dbus_side.messages import MethodCall
from tests.fixtures_dbus import BusDaemon

SERVICE = "org.xen.xcp.squeezed"
MEMORY = ("/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
PATIENCE = 30


async def answer(call: MethodCall) -> tuple[str, tuple[object, ...]]:
    """A squeezed on the bus, as far as these tests ask."""
    match call.member:
        case "Login":
            return "s", ("the session",)
        case "GetHostReservedMemory":
            return "x", (73728,)
        case "ReserveMemory":
            raise BusRefused(names.error_name("squeezed", "Invalid_memory_value"), "sx", ("too little", -1))
        case _:
            return "", ()


async def daemon(bus_daemon: BusDaemon) -> Bus:
    bus = await Bus.connect(bus_daemon.address)
    bus.serve(answer)
    await bus.request_name(SERVICE)
    return bus


class Watched:
    """squeezed, in live and under capture, and whoever calls it."""

    def __init__(self, recorder: Recorder, tap: Tap, overhearing: Overhearing, tasks: asyncio.TaskGroup, caller: Bus):
        self.recorder = recorder
        self.tap = tap
        self.overhearing = overhearing
        self.tasks = tasks
        self.caller = caller

    async def call(self, member: str, signature: str = "", *body: object, name: str = SERVICE) -> None:
        with suppress(BusRefused):
            await self.caller.call(name, *MEMORY, member, signature, body, timeout=PATIENCE)

    async def recorded(self, events: int) -> None:
        """Waits until so many events stand in the capture or before it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = self.recorder.status()
                assert status is not None
                if status["records"] + status["pending"] >= events:
                    return
                await asyncio.sleep(0.01)


@asynccontextmanager
async def watched(
    bus_daemon: BusDaemon, directory: Path, own: Callable[[], str] = lambda: ""
) -> AsyncIterator[Watched]:
    recorder = Recorder(directory, Limits(), body_limit=1 << 20)
    service = model.load("squeezed")
    translation = Translation(service)
    tap = recorder.tap(service, service.dialect, translation)
    tap.enter(Stage.LIVE, 7)
    working = asyncio.create_task(recorder.run())
    caller = await Bus.connect(bus_daemon.address)
    overhearing = Overhearing(translation, bus_daemon.address, tap, own)
    try:
        async with asyncio.TaskGroup() as tasks:
            await recorder.start(["squeezed"], "one")
            overhearing.arrange(tasks, wanted=True)
            assert await overhearing.until_heard()
            yield Watched(recorder, tap, overhearing, tasks, caller)
            await overhearing.stop()
    finally:
        await caller.close()
        working.cancel()
        await asyncio.wait([working])


def read(directory: Path) -> list[Record]:
    damage: list[str] = []
    found = [record for _, record in open_capture(directory / "one").read(damage.append)]
    assert damage == []
    return found


def pairs(found: list[Record]) -> list[tuple[Request, Reply | None]]:
    replies = {each.re: each for each in found if isinstance(each, Reply)}
    return [(each, replies.get(each.seq)) for each in found if isinstance(each, Request)]


async def test_calls_answers_and_errors(bus_daemon: BusDaemon, tmp_path: Path) -> None:
    """Typed, with who called, by whatever name the daemon is called; what is no call of the service is not there."""
    squeezed = await daemon(bus_daemon)
    async with watched(bus_daemon, tmp_path) as bench:
        await bench.call("GetHostReservedMemory", "s", "d")
        await bench.call("Login", "ss", "d", "xenopsd", name=squeezed.unique_name)
        await bench.call("ReserveMemory", "ssx", "d", "the session", -1)
        await bench.caller.call(SERVICE, "/", "org.freedesktop.DBus.Peer", "Ping", timeout=PATIENCE)
        await bench.call("NotWrittenDown")
        await bench.call("GetHostReservedMemory", "u", 7)
        await bench.recorded(1 + 2 * 4)
        sender = bench.caller.unique_name
    await squeezed.close()
    found = pairs(read(tmp_path))
    assert [request.method for request, _ in found] == [
        "get_host_reserved_memory", "login", "reserve_memory", "get_host_reserved_memory",
    ]  # fmt: skip
    for request, reply in found:
        assert (request.leg, request.door, request.side, request.stage) == (Leg.CALLER, "bus", "bus", "live")
        assert (request.conn, request.peer["name"], request.epoch) == (sender, sender, 7)
        assert reply is not None
    results: list[Any] = [
        reply and (reply.outcome, reply.result, reply.fault and reply.fault.code) for _, reply in found
    ]
    assert results[0] == ("answered", "73728", None)
    assert found[0][0].arguments == {"debug_info": "d"}
    assert found[0][0].native is not None
    assert found[0][0].native["destination"] == SERVICE
    assert (results[1], found[1][0].effect) == (("answered", "the session", None), "write")
    assert found[1][0].native is not None
    assert found[1][0].native["destination"].startswith(":")
    assert (results[2][0], results[2][2]) == ("fault", "Invalid_memory_value")
    assert (found[3][0].arguments, found[3][0].complete) == (None, Complete.UNREAD)


async def test_what_we_ask_ourselves_is_left_out(bus_daemon: BusDaemon, tmp_path: Path) -> None:
    """It is a leg of the call at whose door it came in."""
    squeezed = await daemon(bus_daemon)
    ours = await Bus.connect(bus_daemon.address)
    async with watched(bus_daemon, tmp_path, lambda: ours.unique_name) as bench:
        await ours.call(SERVICE, *MEMORY, "GetHostReservedMemory", "s", ("ours",), timeout=PATIENCE)
        await bench.call("GetHostReservedMemory", "s", "theirs")
        await bench.recorded(3)
    await ours.close()
    await squeezed.close()
    assert [request.arguments for request, _ in pairs(read(tmp_path))] == [{"debug_info": "theirs"}]


async def test_the_daemon_dies_with_a_call_in_its_hands(bus_daemon: BusDaemon, tmp_path: Path) -> None:
    """The bus answers in its place, and that is the answer in the capture."""
    asked = asyncio.Event()

    async def hang(_call: MethodCall) -> tuple[str, tuple[object, ...]]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    squeezed = await Bus.connect(bus_daemon.address)
    squeezed.serve(hang)
    await squeezed.request_name(SERVICE)
    async with watched(bus_daemon, tmp_path) as bench:
        call = asyncio.create_task(bench.caller.call(SERVICE, *MEMORY, "BalanceMemory", "s", ("d",), timeout=PATIENCE))
        await asked.wait()
        await squeezed.close()
        await asyncio.wait([call])
        assert isinstance(call.exception(), BusError)
        await bench.recorded(3)
    ((request, reply),) = pairs(read(tmp_path))
    assert request.method == "balance_memory"
    assert reply is not None
    assert (reply.outcome, reply.fault is not None) == ("fault", True)


async def test_the_bus_goes_and_comes_back(bus_daemon: BusDaemon, tmp_path: Path) -> None:
    """Nobody knows what was said meanwhile: the capture says so, and goes on."""
    squeezed = await daemon(bus_daemon)
    async with watched(bus_daemon, tmp_path) as bench:
        await bench.call("GetHostReservedMemory", "s", "before")
        await bench.recorded(3)
        bus_daemon.kill()
        await squeezed.close()
        bus_daemon.start()
        squeezed, caller = await daemon(bus_daemon), await Bus.connect(bus_daemon.address)
        await bench.recorded(4)
        assert await bench.overhearing.until_heard()
        await caller.call(SERVICE, *MEMORY, "GetHostReservedMemory", "s", ("after",), timeout=PATIENCE)
        await bench.recorded(6)
    await caller.close()
    await squeezed.close()
    found = read(tmp_path)
    assert [(each.n, each.why, each.service) for each in found if isinstance(each, Lost)] == [
        (0, CONNECTION_LOST, "squeezed")
    ]
    assert [request.arguments for request, _ in pairs(found)] == [{"debug_info": "before"}, {"debug_info": "after"}]


async def test_nobody_listens_any_more(bus_daemon: BusDaemon, tmp_path: Path) -> None:
    """Put out of capture, or no longer in charge, the daemon is not listened to; later it is again."""
    squeezed = await daemon(bus_daemon)
    async with watched(bus_daemon, tmp_path) as bench:
        bench.overhearing.arrange(bench.tasks, wanted=False)
        assert await bench.overhearing.until_heard()
        await bench.call("GetHostReservedMemory", "s", "unheard")
        bench.overhearing.arrange(bench.tasks, wanted=True, missed="on purpose")
        assert await bench.overhearing.until_heard()
        await bench.call("GetHostReservedMemory", "s", "heard")
        await bench.recorded(4)
    await squeezed.close()
    found = read(tmp_path)
    assert [each.why for each in found if isinstance(each, Lost)] == ["on purpose"]
    assert [request.arguments for request, _ in pairs(found)] == [{"debug_info": "heard"}]
