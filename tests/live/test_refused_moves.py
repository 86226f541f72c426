"""Moves that are refused: the service stands where it stood, every door works, nothing is executed twice."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridges.cutover import Stage
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.exported import ObjectTree
from dbus_side.introspection import Argument, Interface, Method
from tests.live.killing import CANDIDATE1, MEMORY1, Work, check_doors, one_service, until_killed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures_dbus import BusDaemon
    from tests.fixtures_host import Host

MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
ROOT = Path(__file__).parents[2]


async def refused(host: Host, stage: str, service: str = "squeezed", **more: object) -> str:
    """The sentence with which a move is refused."""
    answer = await host.ask_stage(service, stage, **more)
    assert not answer["ok"], answer
    return str(answer["error"])


async def test_what_cannot_be_asked(host: Host, relayed: Any) -> None:
    """Unknown services and stages, illegal jumps, no candidate, no reason; garbage on the control socket."""
    assert "no service 'xapi'" in await refused(host, "relay", "xapi")
    assert "no stage 'alive'" in await refused(host, "alive")
    assert "already relay" in await refused(host, "relay")
    assert "nobody owns org.xen.xcp.squeezed.Candidate" in await refused(host, "shadow")
    assert "nobody owns org.xen.xcp.squeezed.Candidate" in await refused(host, "live")
    assert "skips shadow: move to shadow, or --skip REASON" in await refused(host, "live", skip=None)
    await host.stage("squeezed", "off")
    assert "more than one step forward; next is observe, relay (with --skip REASON)" in await refused(host, "live")
    await host.stage("squeezed", "relay")
    for request, words in (
        ({"verb": "dance"}, "unknown verb 'dance'"),
        ({"verb": "stage"}, "service: expected text, got None"),
        ({"verb": "stage", "service": "squeezed", "stage": 7}, "stage: expected text, got 7"),
        ({"verb": "stage", "service": "squeezed", "stage": "live"}, "needs a reason"),
        ({"verb": "stage", "service": "squeezed", "stage": "live", "reason": " "}, "needs a reason"),
        ({"verb": "audit", "service": 7}, "service: expected text"),
        ({"verb": "audit", "limit": -1}, "limit: expected a number, 0 or more"),
        ({"verb": "stage", "service": "squeezed", "stage": "off", "reason": "r", "skip": 7}, "skip: expected text"),
    ):
        answer = await host.control(**request)
        assert not answer["ok"]
        assert words in str(answer["error"]), answer
    for sent in (b"\xff\xfe\n", b"[]\n", b"{}\n", b"null\n", b"{" * 10000 + b"\n"):
        assert b'"ok": false' in await control(host, sent)
    assert await control(host, b"x" * 100_000 + b"\n") == b""
    await relayed.every_door()
    audit = (await host.control(verb="audit", service="squeezed"))["entries"]
    assert audit[0]["outcome"] == "done"  # type: ignore[index]
    assert any("refused: nobody owns" in str(entry["outcome"]) for entry in audit)  # type: ignore[attr-defined]


async def control(host: Host, sent: bytes) -> bytes:
    """One answer line of the control socket to any bytes."""
    reader, writer = await asyncio.open_unix_connection(str(host.path("control")))
    try:
        writer.write(sent)
        return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()


class FalseCandidate:
    """A daemon that owns the candidate's name and does not keep to the protocol."""

    def __init__(self, bus: Bus, refuses: set[str]) -> None:
        self._bus = bus
        self._refuses = refuses
        self.heard: list[str] = []

    async def answer(self, _call: object, method: Method) -> tuple[Any, ...]:
        self.heard.append(method.name)
        if method.name in self._refuses:
            raise BusRefused("com.example.Error.No", "s", ("not today",))
        if method.name == "Yield":
            await self._bus.release_name(names.service_name("squeezed"))
        return ()

    def serve(self, candidate: Interface, memory: Interface, epoch: int | None = 0) -> None:
        """Offers these interfaces; without an epoch the property is not there."""
        objects = ObjectTree()
        properties = {} if epoch is None else {"Epoch": lambda: epoch}
        objects.add("/org/xen/xcp/squeezed", candidate, self.answer, properties)
        objects.add("/org/xen/xcp/squeezed/Memory", memory, self.answer)
        self._bus.serve(objects.answer)


def changed(interface: Interface, member: str, method: Method | None) -> Interface:
    """The interface with another method in that one's place, or without it."""
    methods = [method if each.name == member else each for each in interface.methods]
    return dataclasses.replace(interface, methods=tuple(each for each in methods if each is not None))


async def no_candidate_interface(_bus: Bus) -> FalseCandidate:
    """Owns the name, serves nothing."""
    return FalseCandidate(_bus, set())


async def no_epoch(bus: Bus) -> FalseCandidate:
    """Does not say from which epoch it comes."""
    candidate = FalseCandidate(bus, set())
    candidate.serve(dataclasses.replace(CANDIDATE1, properties=()), MEMORY1, None)
    return candidate


async def later_epoch(bus: Bus) -> FalseCandidate:
    """Has yielded in an epoch that this bridge has not come to."""
    candidate = FalseCandidate(bus, set())
    candidate.serve(CANDIDATE1, MEMORY1, 99)
    return candidate


async def wrong_signature(bus: Bus) -> FalseCandidate:
    """Forgets how much to reserve."""
    candidate = FalseCandidate(bus, set())
    arguments = (Argument("debug_info", "s"), Argument("session_id", "s"))
    method = Method("ReserveMemory", arguments, (Argument("reservation_id", "s"),))
    candidate.serve(CANDIDATE1, changed(MEMORY1, "ReserveMemory", method))
    return candidate


async def queued_for_the_name(bus: Bus) -> FalseCandidate:
    """Waits for the service's name, and would own it when the bridge dies."""
    candidate = FalseCandidate(bus, set())
    candidate.serve(CANDIDATE1, MEMORY1)
    await bus.request_name(names.service_name("squeezed"), queue=True)
    return candidate


async def refuses_assume(bus: Bus) -> FalseCandidate:
    """Says no to Assume."""
    candidate = FalseCandidate(bus, {"Assume"})
    candidate.serve(CANDIDATE1, MEMORY1)
    return candidate


async def ignores_the_name(bus: Bus) -> FalseCandidate:
    """Takes Assume and never asks for the service's name."""
    candidate = FalseCandidate(bus, set())
    candidate.serve(CANDIDATE1, MEMORY1)
    return candidate


@pytest.mark.parametrize(
    ("kind", "words", "heard"),
    [
        (no_candidate_interface, "does not answer as a candidate does", None),
        (no_epoch, "has no property Epoch", None),
        (later_epoch, "says epoch 99, squeezed is in epoch 1: its state is another's, or ours is older", None),
        (
            wrong_signature,
            "offers org.xen.xcp.squeezed.Memory1.ReserveMemory(ss) -> (s), written down is (ssx) -> (s)",
            None,
        ),
        (queued_for_the_name, "has asked for org.xen.xcp.squeezed before Assume: it may execute writes already", None),
        (refuses_assume, "not today", ["Assume"]),
        (ignores_the_name, "did not request org.xen.xcp.squeezed", ["Assume", "Yield"]),
    ],
)
async def test_a_candidate_that_fails(
    host: Host, relayed: Any, kind: Callable[[Bus], Any], words: str, heard: list[str] | None
) -> None:
    """Unfit: nothing is touched. Found out by Assume: the legacy daemon is brought back, and executes what was held."""
    bus = await Bus.connect(host.bus.address)
    try:
        candidate = await kind(bus)
        await bus.request_name(names.candidate_name("squeezed"))
        await host.until_candidate()
        before = host.legacy_pid("squeezed")
        calls = [
            asyncio.create_task(relayed.rpc("memory", "reserve_memory", "d", f"held{number}", "1"))
            for number in range(20)
        ]
        sentence = await refused(host, "live")
        assert words in sentence
        assert "squeezed stays relay" in sentence
        assert [(await call)["Status"] for call in calls] == ["Success"] * 20
        assert (host.legacy_pid("squeezed") == before) == (heard is None)
        assert candidate.heard == (heard or [])
        await host.until_alarms()
        await relayed.every_door()
        executed = host.executions()
        assert [executed["reserve_memory", f"held{number}"] for number in range(20)] == [1] * 20
        assert host.sides()["bus"] == 0
    finally:
        await bus.close()
    await host.start_bus_squeezed()
    await host.stage("squeezed", "live")
    await relayed.every_door()


async def test_killed_on_the_way_back_behind_the_fence(bus_daemon: BusDaemon, xenstored_stub: Path) -> None:
    """The candidate refused, and the bridge ends before the legacy daemon is started: the next one starts it."""
    async with one_service(bus_daemon, xenstored_stub) as (host, callers, bus):
        await host.end("bus")
        await host.stage("squeezed", "relay")
        candidate = await refuses_assume(bus)
        await bus.request_name(names.candidate_name("squeezed"))
        await host.until_candidate()
        before = host.legacy_pid("squeezed")
        host.break_at("after", "drained 2")
        with contextlib.suppress(json.JSONDecodeError, ConnectionError):
            await host.ask_stage("squeezed", "live")
        await until_killed(host)
        assert candidate.heard == ["Assume"]
        await host.start_bridge()
        assert "had been ended by the move that was cut off: starting it" in host.log("bridge")
        assert host.legacy_pid("squeezed") != before
        await host.until_alarms()
        standing = await host.standing()
        assert (standing["stage"], standing["epoch"]) == ("relay", 1)
        caller = await Bus.connect(bus_daemon.address)
        try:
            await check_doors(host, Work(callers, caller), Stage.RELAY)
        finally:
            await caller.close()


async def test_a_daemon_that_owns_the_name_already(host: Host, callers: Any) -> None:
    """off to relay: the bus door cannot be ours, so the sockets are not taken either."""
    await host.start_legacy("squeezed")
    await host.start_bridge()
    bus = await Bus.connect(host.bus.address)
    try:
        await bus.request_name(names.service_name("squeezed"))
        sentence = await refused(host, "relay")
        assert f"org.xen.xcp.squeezed is owned by {bus.unique_name}; that daemon must leave it first" in sentence
        assert not host.path("memory.legacy").exists()
        assert (await callers.rpc("memory", "login", "d", "directly"))["Status"] == "Success"
        await bus.release_name(names.service_name("squeezed"))
        await host.stage("squeezed", "relay")
    finally:
        await bus.close()


async def test_gates_that_say_no(host: Host, relayed: Any) -> None:
    """No data is 3, a red gate is 1, each with what it says; nothing is moved until somebody says why."""
    order = ("stage", "squeezed", "shadow", "--reason", "test")
    bus = await Bus.connect(host.bus.address)
    try:
        candidate = FalseCandidate(bus, set())
        candidate.serve(CANDIDATE1, MEMORY1)
        await bus.request_name(names.candidate_name("squeezed"))
        await host.until_candidate()
        code, output, errors = await host.cli(*order)
        assert code == 3, (output, errors)
        assert "not through the gates: round trips (no data); or --override REASON" in errors
        assert "round trips: nothing was compared yet" in output

        candidate.serve(CANDIDATE1, changed(MEMORY1, "BalanceMemory", None))
        code, output, errors = await host.cli(*order)
        assert code == 1, (output, errors)
        assert "round trips (no data), candidate (fail)" in errors
        assert "does not offer Memory.BalanceMemory" in output
        code, output, errors = await host.cli(*order, "--dry-run")
        assert (code, errors) == (1, "")
        assert "does not offer Memory.BalanceMemory" in output
        status: Any = await host.control(verb="status")
        assert status["services"]["squeezed"]["stage"] == "relay"

        code, output, errors = await host.cli(*order, "--override", "nobody balances")
        assert (code, errors) == (0, "")
        assert "squeezed: relay -> shadow, epoch 2" in output
        audit: Any = (await host.control(verb="audit", service="squeezed"))["entries"]
        assert [line["outcome"].partition(":")[0] for line in audit] == ["done", "refused", "refused", "done"]
        assert audit[-1]["override"] == "nobody balances"
        assert candidate.heard == []
    finally:
        await bus.close()
    await relayed.every_door()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("accept", [False, True])
async def test_a_tree_that_never_gets_quiet(host: Host, relayed: Any, accept: bool) -> None:
    """Refused with the daemon running and registered; or, accepted, the pending request is answered InDoubt."""
    await host.start_bus_squeezed()
    host.legacy["squeezed"] += ["--slow-ms", "6000"]
    await host.end_legacy("squeezed")
    await host.start_legacy("squeezed")
    await host.until(lambda: "taking it again" in host.log("bridge"))
    host.legacy["squeezed"] = host.legacy["squeezed"][:-2]
    await relayed.request("reserve-memory", "pending", {"session_id": b"pending", "kib": b"1"})
    await host.until(lambda: host.executions()["reserve_memory", "pending"] == 1)
    if accept:
        answer = await host.ask_stage("squeezed", "live", accept_in_doubt=True)
        assert answer["ok"], answer
        response = await relayed.response("reserve-memory", "pending")
        assert response["code"] == b"2"
        assert response["description"].startswith(b"InDoubt: ")
        await relayed.every_door()
        assert host.sides()["bus"] == 3
    else:
        sentence = await refused(host, "live")
        assert "was never quiet within 5 s (1 unanswered)" in sentence
        pid = host.legacy_pid("squeezed")
        assert int(await relayed.store.read("/squeezed/pid")) == pid
        assert list(await relayed.response("reserve-memory", "pending")) == ["reservation_id"]
        assert host.sides()["bus"] == 0
        await relayed.every_door()
    assert host.executions()["reserve_memory", "pending"] == 1


async def test_a_long_poll_ends_when_its_service_moves(host: Host, relayed: Any) -> None:
    """UPDATES.get in flight at relay to off is answered, and the next one is the daemon's."""
    body = xmlrpc.client.dumps(({"debug_info": "poll", "last_id": 0},), "UPDATES.get").encode()
    poll = asyncio.create_task(relayed.post("xenopsd", body))
    bus = await Bus.connect(host.bus.address)
    try:
        updates = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/UPDATES", "org.xen.xcp.xenopsd.UPDATES1")
        on_bus = asyncio.create_task(bus.call(*updates, "Get", "sa{sv}", ("bus-poll", {}), timeout=60))
        await host.until(lambda: host.executions()["UPDATES.get", "poll"] == 1)
        await host.stage("xenopsd", "off")
        assert b"Unavailable: xenopsd is being moved: the wait was ended, ask again" in await poll
        await asyncio.wait([on_bus])
    finally:
        await bus.close()
    assert (await relayed.rpc("xenopsd", "UPDATES.last_id", {"debug_info": "d"}))["Status"] == "Success"
    await host.stage("xenopsd", "relay")
    await relayed.every_door()


async def test_a_second_bridge(host: Host, relayed: Any) -> None:
    """It refuses to start, with the same state and with the same control socket; the first one goes on."""
    code, _, errors = await host.cli("run")
    assert code == 1
    assert "another bridge is running with it" in errors
    text = host.settings.read_text()
    host.settings.write_text(text.replace(f"{host.directory}/state", f"{host.directory}/other"))
    code, _, errors = await host.cli("run")
    assert code == 1
    assert "another bridge answers there" in errors
    host.settings.write_text(text)
    assert "Traceback" not in errors
    await relayed.every_door()


async def test_another_daemon_takes_the_tree_in_live(host: Host, moved: Any) -> None:
    """SPLIT_OWNER: we serve the tree no more, at this start and the next; when the other is gone, a restart heals."""
    # A live process that says the tree is its own, and answers nothing.
    await moved.connect_store()
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    try:
        await moved.store.write("/squeezed/pid", b"%d" % other.pid)
        await host.until_alarms("SPLIT_OWNER")
        await moved.request("reserve-memory", "theirs", {"session_id": b"theirs", "kib": b"1"})
        assert (await moved.rpc("memory", "login", "d", "over-http"))["Status"] == "Success"
        assert not await moved.exists("/squeezed/rpc/response/reserve-memory/theirs")
        await host.end("bridge")
        await host.start_bridge()
        await host.until_alarms("SPLIT_OWNER")
        assert int(await moved.store.read("/squeezed/pid")) == other.pid
    finally:
        other.kill()
        await other.wait()
    assert host.executions()["reserve_memory", "theirs"] == 0
    await host.end("bridge")
    await host.start_bridge()
    await host.until_alarms()
    assert (await moved.response("reserve-memory", "theirs"))["code"] == b"2"
    await moved.every_door()


async def test_a_legacy_daemon_is_started_by_hand_in_relay(host: Host, relayed: Any) -> None:
    """It binds its path again; within seconds the path is ours again, and calls reach it all the while."""
    await host.start_legacy("xenopsd")  # a second one: the first keeps a socket without a name
    await host.until(lambda: "was bound by somebody else: taking it again" in host.log("bridge"))
    await relayed.every_door()


@pytest.mark.timeout(120)
async def test_a_legacy_daemon_that_does_not_start_again(host: Host, moved: Any) -> None:
    """live to relay: the bus daemon goes on; held calls are executed once, there."""
    text = host.settings.read_text()
    broken = text.replace('examples/legacy_squeezed.py"', 'examples/nosuch.py"')
    assert broken != text
    host.settings.write_text(broken)
    await host.end("bridge")
    await host.start_bridge()
    calls = [asyncio.create_task(moved.rpc("memory", "reserve_memory", "d", f"held{n}", "1")) for n in range(20)]
    assert "ended with 2" in await refused(host, "relay")
    assert [(await call)["Status"] for call in calls] == ["Success"] * 20
    await host.until_alarms()
    await moved.every_door()
    assert [host.executions()["reserve_memory", f"held{n}"] for n in range(20)] == [1] * 20
    assert host.sides()["legacy"] == 1  # xenopsd's


async def test_the_candidate_dies_in_the_middle(host: Host, relayed: Any) -> None:
    """relay to live while the candidate is frozen and then killed: the legacy daemon is the authority again."""
    await host.start_bus_squeezed()
    pid = host.pid("bus")
    os.kill(pid, signal.SIGSTOP)
    move = asyncio.create_task(refused(host, "live"))
    await host.until(lambda: not Path(f"/proc/{host.legacy_pid('squeezed')}").exists() or move.done())
    await host.end("bus", signal.SIGKILL)
    assert "squeezed stays relay" in await move
    await host.until_alarms()
    await relayed.every_door()
    assert host.sides()["bus"] == 0


async def test_a_way_back_that_is_given_up(host: Host, callers: Any) -> None:
    """The legacy daemon came up without its socket, and with a request of the tree in its hands when it was ended: the
    bus daemon goes on, and does not execute that one again."""
    socket = str(host.path("memory"))
    good = host.legacy["squeezed"]
    await host.start_legacy("squeezed")
    host.legacy["squeezed"] = [str(host.path("elsewhere")) if each == socket else each for each in good]
    host.legacy["squeezed"] += ["--slow-ms", "60000"]
    host.write_settings()
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.start_bus_squeezed()
    await host.stage("squeezed", "live")
    await callers.connect_store()
    move = asyncio.create_task(host.ask_stage("squeezed", "relay"))
    async with asyncio.timeout(30):
        while await callers.store.read("/squeezed/pid") == b"%d" % host.pid("bridge"):  # noqa: ASYNC110 - it is ended by force
            await asyncio.sleep(0.01)
    await callers.request("reserve-memory", "once", {"session_id": b"once", "kib": b"1"})
    await host.until(lambda: host.executions()["reserve_memory", "once"] == 1)
    answer = await move
    assert not answer["ok"], answer
    response = await callers.response("reserve-memory", "once")
    assert response["description"].startswith(b"InDoubt: another daemon served the tree")
    assert host.executions()["reserve_memory", "once"] == 1
    assert "reservation_id" in await callers.ask_store("reserve-memory", {"session_id": b"next", "kib": b"1"})
    assert host.sides()["bus"] == 1
