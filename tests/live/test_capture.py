"""Capturing at every door of a running host: what stands in the capture, and what of it the commands show."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridges.capture.records import End, Flip, Header, Leg, Lost, Record, Reply, Request
from bridges.capture.store import open_capture
from bridges.capture.verifying import verify
from bridges.cutover import Stage
from bridges.overhearing import NOT_WATCHED
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from tests.live import ladder
from tests.live.test_handles import exchange, post, xml
from tests.live.test_handles import login as xapi_login

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fixtures_host import Host
    from tests.fixtures_toolstack import Toolstack
    from tests.live.conftest import Callers
    from tests.live.killing import OneService

pytestmark = pytest.mark.timeout(120)
PATIENCE = 30


def captures(host: Host) -> Path:
    return host.path("state") / "captures"


class Found:
    """A capture as it was found, with what was said of its damage."""

    def __init__(self, path: Path) -> None:
        self.damage: list[str] = []
        found = [record for _, record in open_capture(path).read(self.damage.append)]
        self.records: list[Record] = [record for record in found if not isinstance(record, Header)]
        self.requests = [each for each in self.records if isinstance(each, Request)]
        self.replies = {each.re: each for each in self.records if isinstance(each, Reply)}
        self.lost = sum(each.n for each in self.records if isinstance(each, Lost))

    def of(self, **wanted: object) -> list[tuple[Request, Reply | None]]:
        """The legs whose requests have these values."""
        found = [each for each in self.requests if all(getattr(each, name) == wanted[name] for name in wanted)]
        return [(each, self.replies.get(each.seq)) for each in found]

    def legs(self, stage: str) -> set[tuple[str, str, str]]:
        return {(each.service, each.door, str(each.leg)) for each in self.requests if each.stage == stage}

    def check_legs(self) -> None:
        """Every call has its legs under one id, and the caller's comes first; every reply has its request."""
        callers: dict[str, Request] = {}
        for each in self.requests:
            if each.leg in (Leg.CALLER, Leg.OBSERVED):
                assert each.id not in callers
                callers[each.id] = each
            else:
                assert each.id in callers, each
                assert each.method == callers[each.id].method
        by_seq = {each.seq: each for each in self.requests}
        assert all((each.id, each.leg) == (by_seq[re].id, by_seq[re].leg) for re, each in self.replies.items())


async def capture(host: Host, action: str, *services: str, name: str | None = None) -> Any:
    """As the command asks for it."""
    answer = await host.control(verb="capture", action=action, services=services, name=name)
    assert answer["ok"], answer
    return answer


async def until_written(host: Host, count: int = 0) -> dict[str, Any]:
    """Waits until all that came so far is in the file, and so many records; how the capture stands then."""
    async with asyncio.timeout(PATIENCE):
        while True:
            running = (await capture(host, "status"))["running"]
            if not running["pending"] and running["records"] >= count:
                break
            await asyncio.sleep(0.02)
    found: dict[str, Any] = running
    return found


async def until_in_flight(host: Host, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await ladder.status(host))["calls"]["in_flight"] != count:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def shown(host: Host, *arguments: str) -> list[dict[str, Any]]:
    """What `capture show --json` prints."""
    code, output, errors = await host.cli("capture", "show", *arguments, "--json", "--limit", "0")
    assert code == 0, errors
    return [json.loads(line) for line in output.splitlines()]


async def test_every_door_and_leg_is_in_the_capture(relayed: Callers) -> None:
    host = relayed.host
    code, output, errors = await host.cli("capture", "start", "--name", "first")
    assert (code, errors) == (0, ""), output
    assert output == f"capturing squeezed, xenopsd into {host.path('state')}/captures/first\n"
    await relayed.every_door()
    code, output, errors = await host.cli("capture", "stop")
    assert (code, errors) == (0, "")
    assert output.endswith("captures/first closed\n")
    found = await shown(host, "first")
    seen = {(each["request"]["service"], each["request"]["door"], each["request"]["leg"]) for each in found}
    assert seen == {
        ("squeezed", "http", "caller"),
        ("squeezed", "http", "backend"),
        ("squeezed", "xenstore", "observed"),
        ("squeezed", "xenstore", "backend"),
        ("squeezed", "bus", "caller"),
        ("xenopsd", "http", "backend"),
        ("xenopsd", "bus", "caller"),
    }


# --- all the way to the bus ------------------------------------------------------------------------------------------


@asynccontextmanager
async def calling(callers: Callers, count: int) -> AsyncIterator[None]:
    """Callers at the HTTP door who call one after the other, each answered well."""
    stop = asyncio.Event()

    async def go_on() -> None:
        while not stop.is_set():
            reply = await callers.rpc("memory", "get_host_reserved_memory", "d")
            assert reply["Status"] == "Success", reply

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(go_on())
        try:
            yield
        finally:
            stop.set()


def is_whole(request: Request, reply: Reply | None) -> bool:
    """Whether both messages of an observed exchange were read to their end."""
    return request.leg is Leg.OBSERVED and reply is not None and {request.complete, reply.complete} == {"complete"}


async def test_a_service_moves_while_it_is_under_capture(host: Host, callers: Callers) -> None:
    """Each call has its legs under one id, in its stage; one that was held is answered in the new epoch."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await capture(host, "start", "squeezed", name="way")
    await host.stage("squeezed", "relay")
    bus = await Bus.connect(host.bus.address)
    try:
        await ladder.reads(callers, bus, 2)
        await host.start_bus_squeezed()
        await host.until_candidate()
        await host.stage("squeezed", "shadow")
        await ladder.reads(callers, bus, 2)
        await ladder.until(host, "round_trips", pending=0)
        counts = await ladder.until(host, "comparison", pending=0)
        assert counts["dropped"] == {}
        async with calling(callers, 4):
            await host.stage("squeezed", "live")
        await ladder.reads(callers, bus, 2)
    finally:
        await bus.close()
    status = await ladder.status(host)
    assert status["capture"] == {"name": "way", "lost": {}, "trouble": ""}
    assert await host.end("bridge") == 0
    found = Found(captures(host) / "way")
    assert (found.damage, found.lost) == ([], 0)
    assert verify(open_capture(captures(host) / "way")).is_whole
    found.check_legs()
    overheard = found.of(leg=Leg.CALLER, stage="live", door="bus")
    assert len(found.of(leg=Leg.CALLER)) == status["calls"]["admitted"] + len(overheard)
    assert [(request.arguments, reply and reply.result) for request, reply in overheard] == [
        ({"debug_info": f"bus{number}"}, str(ladder.RESERVED_KIB)) for number in range(2)
    ]
    assert [(each.n, each.why) for each in found.records if isinstance(each, Lost)] == [(0, NOT_WATCHED)]
    end = found.records[-1]
    assert isinstance(end, End)
    assert end.why == "the bridge ended"
    relay = {("http", "caller"), ("http", "backend"), ("framed", "caller"), ("framed", "backend")}
    relay |= {("bus", "caller"), ("xenstore", "observed")}
    assert found.legs("relay") == {("squeezed", *each) for each in relay}
    assert found.legs("shadow") == {("squeezed", *each) for each in relay | {("bus", "candidate")}}
    callers_of_live = {("http", "caller"), ("framed", "caller"), ("xenstore", "caller"), ("bus", "caller")}
    assert found.legs("live") == {("squeezed", *each) for each in callers_of_live | {("bus", "backend")}}

    # Of the tree's exchanges those that were read whole are asked, whenever that is told.
    ours = [leg for leg in found.of(stage="shadow") if leg[0].arguments != {"debug_info": "d"}]
    candidate = [leg for leg in ours if leg[0].leg is Leg.CANDIDATE]
    known = [request for request, reply in ours if request.leg is Leg.CALLER or is_whole(request, reply)]
    assert Counter(request.id for request, _ in candidate) == Counter(request.id for request in known)
    assert len(candidate) >= counts["sent"] >= 6
    assert {request.method for request, _ in candidate} >= counts["methods"].keys()
    assert all(reply is not None and reply.outcome == "answered" for _, reply in candidate)

    flips = [(each.origin, each.target) for each in found.records if isinstance(each, Flip)]
    assert flips == [("off", "off"), ("off", "relay"), ("relay", "shadow"), ("shadow", "live")]
    epoch = 0
    for each in found.records:
        if isinstance(each, Flip):
            epoch, stage = each.epoch, each.target
        elif isinstance(each, Request):
            assert (each.epoch, each.stage) == (epoch, stage)
        elif isinstance(each, Reply):
            assert each.epoch == epoch
    held = [
        (request, reply)
        for request, reply in found.of(leg=Leg.CALLER)
        if reply is not None and reply.epoch > request.epoch
    ]
    assert held
    for request, reply in held:
        assert (request.stage, request.side, reply.side) == ("shadow", "legacy", "bus")
        ((backend, answer),) = found.of(leg=Leg.BACKEND, id=request.id)
        assert (backend.stage, backend.door, backend.side) == ("live", "bus", "bus")
        assert answer is not None
        assert (answer.result, answer.epoch) == (reply.result, reply.epoch)


async def test_the_bus_is_heard_until_the_way_back_is_over(host: Host, callers: Callers) -> None:
    """Whoever owned the name meanwhile: each call on the bus is there once, with its answer."""
    await ladder.live(host)
    await capture(host, "start", "squeezed", name="back")
    bus, made, is_back = await Bus.connect(host.bus.address), Counter[str](), False

    async def go_on(name: str) -> None:
        while not is_back or made.total() < 200:
            made[text := f"{name} {made.total()}"] += 1
            await bus.call(*ladder.MEMORY, "GetHostReservedMemory", "s", (text,), timeout=PATIENCE)

    async with asyncio.TaskGroup() as tasks:
        for name in "abcd":
            tasks.create_task(go_on(name))
        await host.stage("squeezed", "relay")
        is_back = True
    await bus.close()
    await capture(host, "stop", "squeezed")
    found = Found(captures(host) / "back").of(leg=Leg.CALLER, door="bus")
    assert Counter(request.arguments["debug_info"] for request, _ in found if request.arguments) == made
    assert all(reply is not None and reply.outcome == "answered" for _, reply in found)
    assert {request.side for request, _ in found} == {"bus", "legacy"}


# --- faults and crashes ----------------------------------------------------------------------------------------------


async def test_faults_and_the_end_of_the_bridge(one: tuple[OneService, Callers, Bus]) -> None:
    """The daemon is gone, and was killed with calls in its hands: both legs say so. What a killed bridge leaves is
    readable, and nobody in the way of the next one."""
    host, callers, bus = one
    await host.bring_to(Stage.RELAY)
    await capture(host, "start", name="one")
    pid = host.legacy_pid("squeezed")
    os.kill(pid, signal.SIGSTOP)
    http = asyncio.create_task(callers.rpc("memory", "login", "d", "x"))
    on_bus = asyncio.create_task(bus.call(*ladder.MEMORY, "Login", "ss", ("d", "x"), timeout=PATIENCE))
    await until_in_flight(host, 2)
    assert (await until_written(host, 5))["records"] == 5  # from here on they are in the daemon's hands
    await host.end_legacy("squeezed")
    assert "InDoubt" in str(await http)
    with pytest.raises(BusRefused, match="InDoubt"):
        await on_bus
    assert "Unavailable" in str(await callers.rpc("memory", "get_host_reserved_memory", "d"))
    with pytest.raises(BusRefused, match="Unavailable"):
        await bus.call(*ladder.MEMORY, "GetHostReservedMemory", "s", ("d",), timeout=PATIENCE)
    running = await until_written(host, 17)  # four calls of two legs, each with its answer
    assert (running["records"], running["lost"], running["trouble"]) == (17, {}, "")
    await host.end("bridge", signal.SIGKILL)

    found = Found(captures(host) / "one")
    assert found.damage == ["000001.jsonl.zst: has no end: it was not closed"]
    assert len(found.records) == 17
    found.check_legs()
    for method, kind in (("login", "InDoubt"), ("get_host_reserved_memory", "Unavailable")):
        legs = found.of(method=method)
        assert sorted((request.door, str(request.leg)) for request, _ in legs) == [
            ("bus", "caller"), ("http", "backend"), ("http", "backend"), ("http", "caller"),
        ]  # fmt: skip
        for request, reply in legs:
            assert reply is not None
            assert reply.fault is not None
            if request.leg is Leg.CALLER and request.door == "http":
                assert reply.fault.code == "Internal_error"
                assert kind in str(reply.fault.argument)
            else:
                assert reply.fault.kind == kind

    code, output, _ = await host.cli("capture", "list", "--json")
    assert code == 0
    (row,) = json.loads(output)
    assert (row["capture"], row["state"]) == ("one", "not closed: the bridge was ended")
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await capture(host, "start", name="two")
    for _ in range(3):
        await callers.rpc("memory", "get_host_reserved_memory", "d")
    await capture(host, "stop")
    assert len(Found(captures(host) / "two").of(leg=Leg.CALLER)) == 3


# --- other doors -----------------------------------------------------------------------------------------------------


async def test_sessions_pages_and_datagrams(toolstack: Toolstack) -> None:
    """A session has another token in each leg; of a page there is the target alone, of a datagram no answer."""
    host = toolstack
    await host.start_legacy("perfmon")
    await host.start_xapi("relay")
    await host.stage("perfmon", "relay")
    await host.start_candidate("perfmon")
    await host.stage("perfmon", "live")
    await capture(host, "start", "xapi", "perfmon", name="one")
    session = await xapi_login(host)
    for _ in range(2):
        await post(host, "/", xml("VM.get_all", session))
    await exchange(host, f"GET /blob?session_id={session}&x=hunter2 HTTP/1.0\r\n\r\n".encode())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for payload in (b"refresh", b"hunter2"):
            sender.sendto(payload, host.perfmon.replace("@", "\0", 1))
    await host.until(lambda: "at the datagram door" in host.log("bridge"))
    await host.until(lambda: host.sides()["bus"] == 1)
    await until_written(host)
    await capture(host, "stop")
    found = Found(captures(host) / "one")
    assert (found.damage, found.lost) == ([], 0)
    found.check_legs()
    calls = found.of(method="VM.get_all")
    tokens: dict[Leg, set[object]] = {leg: set() for leg in (Leg.CALLER, Leg.BACKEND)}
    for request, reply in calls:
        assert request.arguments is not None
        assert reply is not None
        tokens[request.leg].add(request.arguments["session_id"])
    assert len(calls) == 4
    assert len(tokens[Leg.CALLER]) == len(tokens[Leg.BACKEND]) == 1
    assert tokens[Leg.CALLER] != tokens[Leg.BACKEND]
    ((login, said),) = found.of(method="session.login_with_password", leg=Leg.CALLER)
    ((_, behind),) = found.of(method="session.login_with_password", leg=Leg.BACKEND)
    assert said is not None
    assert behind is not None
    assert ({said.result}, {behind.result}) == (tokens[Leg.CALLER], tokens[Leg.BACKEND])
    assert login.peer["address"].startswith("127.0.0.1:")
    ((page, reply),) = found.of(name="GET /blob")
    assert (page.service, page.complete, page.arguments) == ("xapi", "unread", None)
    assert reply is not None
    assert reply.complete == "no result"
    datagrams = found.of(service="perfmon", door="datagram")
    assert [(request.method, request.complete) for request, _ in datagrams] == [("refresh", "complete"), ("", "unread")]
    assert len(found.of(service="perfmon", leg=Leg.BACKEND, door="bus", id=datagrams[0][0].id)) == 1
    for path in (captures(host) / "one").iterdir():
        await assert_absent(path, session, "hunter2")


async def assert_absent(path: Path, *texts: str) -> None:
    done = await asyncio.create_subprocess_exec(
        "zstdcat", "-f", str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    content, _ = await done.communicate()
    assert content
    for text in texts:
        assert text.encode() not in content, (path, text)


# --- what is watched, and what the commands say ----------------------------------------------------------------------


async def test_observed_exchanges_and_the_commands(host: Host, callers: Callers, one_line: None) -> None:
    """Whole exchanges and those of which less was seen; started without a bridge, twice, and by a wrong name."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    code, _, errors = await host.cli("capture", "start")
    assert code == 3
    assert "no bridge answers" in errors
    await host.start_bridge()
    await host.stage("squeezed", "observe")
    for arguments, status, text in (
        (("--name", "../x"), 2, "name: expected up to 100 letters, digits, dots, dashes or underscores, got '../x'"),
        (("squeezed", "squeezed", "--name", "one"), 0, "capturing squeezed into"),
        ((), 1, "squeezed is under capture already, in one"),
    ):
        code, output, errors = await host.cli("capture", "start", *arguments)
        assert code == status, (arguments, output, errors)
        assert text in output + errors
    for number in range(5):
        assert await callers.ask_store("echo", {"session_id": b"s%d" % number}) == {"session_id": b"s%d" % number}
    os.kill(host.pid("bridge"), signal.SIGSTOP)
    for _ in range(5):
        await callers.ask_store("echo", {"session_id": b"unseen"})
    os.kill(host.pid("bridge"), signal.SIGCONT)
    await callers.ask_store("echo", {"session_id": b"last"})
    async with asyncio.timeout(PATIENCE):
        while (seen := (await ladder.status(host))["observed"]["exchanges"])["open"] or seen["seen"] < 11:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await until_written(host, 2 * seen["seen"] + 1)
    (captures(host) / "foreign").mkdir()
    (captures(host) / "foreign" / "000001.jsonl.zst").write_bytes(b"\x89PNG")
    (captures(host) / "a file").write_text("x")
    code, output, errors = await host.cli("status")
    assert re.search(r"capture +into one", output), output
    code, output, errors = await host.cli("capture", "list", "--json")
    assert code == 0, errors
    rows = {row["capture"]: row["state"] for row in json.loads(output)}
    assert rows.keys() == {"one", "foreign"}
    assert rows["one"] == "running: squeezed; 0 pending, 0 lost"
    assert "is no segment of a capture but a PNG image" in rows["foreign"]
    await capture(host, "stop")
    answer = await host.control(verb="capture", action="stop")
    assert answer == {"ok": False, "error": "no capture is running", "refused": True}

    found = Found(captures(host) / "one")
    assert (found.damage, found.lost, len(found.records)) == ([], 0, 2 * seen["seen"] + 2)
    found.check_legs()
    observed = found.of(leg=Leg.OBSERVED, method="echo")
    assert len(observed) == len(found.requests) == seen["seen"]
    kinds: Counter[str] = Counter()
    for request, reply in observed:
        assert reply is not None
        whole = "no arguments", "no result"
        asked, answered = str(request.complete) not in whole, str(reply.complete) not in whole
        kinds[{(True, True): "complete", (False, True): "no arguments", (True, False): "no response"}.get(
            (asked, answered), "identity"
        )] += 1  # fmt: skip
        assert (request.arguments is not None) == asked
        if asked and answered:
            assert request.arguments is not None
            assert list(request.arguments.values()) == [reply.result]
    assert {"complete": seen["complete"], **seen["incomplete"]} == {**dict.fromkeys(seen["incomplete"], 0), **kinds}
    assert kinds["complete"] >= 1
    assert kinds.total() > kinds["complete"]
