"""The verbs with which an operator looks: explain, audit, handles, doctor, check, status --watch."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sqlite3
import sys
import xmlrpc.client
from typing import TYPE_CHECKING, Any

import pytest

from bridges.candidates import CANDIDATE
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.exported import ObjectTree
from dbus_side.introspection import Argument, Interface, Method
from tests.fixtures_host import INTERRUPTIBLE, ROOT
from tests.live import ladder

if TYPE_CHECKING:
    from tests.fixtures_host import Host

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("wide_terminal")]
RESERVE = ("squeezed", "reserve_memory", "session_id=s", "kib=1")


async def relay(host: Host, **settings: float) -> None:
    ladder.settle(host, **settings)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await host.stage("squeezed", "relay")


async def live(host: Host) -> None:
    await host.start_bus_squeezed()
    await host.until_candidate()
    await host.stage("squeezed", "live")


async def test_explain_at_every_door(host: Host) -> None:
    """Where a call would go, in every stage that is another's; nobody is called."""
    await relay(host, quiet_hours=0)
    ours = "-> executed by the {} side"
    theirs = "-> in {} the {} door is not ours: the {} daemon answers it itself"
    expected = {
        "relay": dict.fromkeys(("http", "framed", "bus"), ours.format("legacy"))
        | {"xenstore": theirs.format("relay", "xenstore", "legacy")},
        "live": dict.fromkeys(("http", "framed", "xenstore"), ours.format("bus"))
        | {"bus": theirs.format("live", "bus", "bus")},
        "complete": {door: f"-> refused: Retired: the {door} door" for door in ("http", "framed", "xenstore")}
        | {"bus": theirs.format("complete", "bus", "bus")},
    }
    for stage, doors in expected.items():
        if stage == "live":
            await live(host)
        elif stage == "complete":
            await host.stage("squeezed", "complete")
        for door, result in doors.items():
            answer: Any = await host.control(verb="explain", service="squeezed", method="reserve_memory", door=door)
            rules = {rule["rule"]: rule for rule in answer["rules"]}
            assert result.removeprefix("-> ") in answer["result"]
            assert rules["candidate"]["text"] == "writes never reach a candidate"
            # Only what the bridge sends to somebody is recorded by it.
            assert ("journal" in rules) is (rules["stage"]["verdict"] == "decides")
        code, output, errors = await host.cli("explain", *RESERVE, "--door", "http")
        assert code == 0, errors
        assert "reserve_memory of squeezed, at the http door" in output
        assert doors["http"] in output
    assert host.executions() == {}
    for words, said in (
        (("squeezed", "reserve_memory", "kib=1"), "reserve_memory needs session_id=..."),
        (("squeezed", "reserve"), "squeezed has no method 'reserve'"),
        (("nosuch", "login"), "no service 'nosuch' in the settings; known: squeezed, xenopsd"),
        (("squeezed",), "explain needs a METHOD, or --call NUMBER, and not both"),
        (("squeezed", "--call", "4711"), "the journal has no call 4711 of squeezed"),
    ):
        code, _, errors = await host.cli("explain", *words)
        assert (code, said in errors) == (2, True), errors


async def test_a_call_in_doubt(host: Host, callers: Any) -> None:
    """A bridge that was killed with a write in its hands: doctor names its number, explain says what is known of it."""
    host.legacy["squeezed"] += ["--slow-ms", "3000"]
    await relay(host)
    body = xmlrpc.client.dumps(("d", "slow", "1"), "reserve_memory").encode()
    call = asyncio.create_task(callers.post("memory", body))
    await host.until(lambda: host.executions()["reserve_memory", "slow"] == 1)
    await host.end("bridge", signal.SIGKILL)
    assert await call == b""
    await host.start_bridge()
    code, output, _ = await host.cli("doctor")
    said = re.search(r"1 calls are in doubt: (\d+) \(reserve_memory\)", output)
    assert said is not None, output
    code, output, _ = await host.cli("explain", "squeezed", "--call", said[1])
    assert code == 0
    assert "reserve_memory of squeezed, at the http door" in output
    assert "-> executed by the legacy side, in epoch 1: InDoubt" in output
    await host.start_bus_squeezed()
    await host.until_candidate()
    code, output, _ = await host.cli("stage", "squeezed", "shadow", "--reason", "r")
    assert "fail  in doubt: 1 calls may have been executed and nobody has looked" in output
    code, output, _ = await host.cli("status")
    assert "1 calls; take note of them: xcp-bridge acknowledge squeezed" in output
    code, output, _ = await host.cli("acknowledge", "squeezed", "--reason", "it was executed")
    assert "calls in doubt taken note of: 1" in output
    assert "in doubt" not in (await host.cli("doctor"))[1]
    _, output, _ = await host.cli("explain", "squeezed", "--call", said[1], "--json")
    assert json.loads(output)["call"]["acknowledged"] == f"uid {os.getuid()}: it was executed"


async def test_the_audit(host: Host) -> None:
    """Who, why, from where, to where, and what came of it; nobody can change a line."""
    await relay(host)
    for arguments in (("live",), ("live", "--skip", "no reads yet"), ("shadow", "--override", "nobody calls")):
        assert (await host.cli("stage", "squeezed", *arguments, "--reason", "week 2"))[0] == 1
    assert (await host.cli("kill", "squeezed", "--reason", "practice"))[0] == 0
    await host.control(verb="acknowledge", service="squeezed", reason="nothing to see")
    _, output, _ = await host.cli("audit", "squeezed", "--json")
    lines = json.loads(output)
    assert {line["who"] for line in lines} == {f"uid {os.getuid()}"}
    assert [(line["verb"], line["origin"], line["target"]) for line in lines] == [
        ("stage", "off", "relay"),
        ("stage", "relay", "live"),
        ("stage", "relay", "live"),
        ("stage", "relay", "shadow"),
        ("kill", "relay", "relay"),
        ("acknowledge", "relay", "relay"),
    ]
    assert "done" in lines[0]["outcome"]
    assert all(line["outcome"].startswith("refused: ") for line in lines[1:4])
    assert [(line["reason"], line["skip"], line["override"]) for line in lines[1:4]] == [
        ("week 2", None, None),
        ("week 2", "no reads yet", None),
        ("week 2", None, "nobody calls"),
    ]
    _, output, _ = await host.cli("audit", "squeezed", "--limit", "2")
    assert "week 2" not in output
    assert max(map(len, output.splitlines())) <= 100
    await host.end("bridge")
    with sqlite3.connect(host.path("state") / "state.sqlite") as database:
        for statement in ("DELETE FROM audit", "UPDATE audit SET who = 'nobody'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
    database.close()


async def test_reservations_are_adopted(host: Host, callers: Any) -> None:
    """Their ids are the same on both sides of a move, and either side deletes what the other gave out."""
    await relay(host)
    bus = await Bus.connect(host.bus.address)
    try:
        given = {
            door: (await ladder.write(callers, bus, door, "reserve_memory", session_id=f"s-{door}", kib=4))[0]
            for door in ladder.DOORS
        }
        assert await reservations(host) == {(f"s-{door}", given[door], "4") for door in given}
        _, output, _ = await host.cli("handles", "squeezed")
        assert all(reservation in output for reservation in given.values())
        await live(host)
        assert await reservations(host) == {(f"s-{door}", given[door], "4") for door in given}
        for door in ("http", "bus"):
            arguments = {"session_id": f"s-{door}", "reservation_id": given.pop(door)}
            await ladder.write(callers, bus, door, "delete_reservation", **arguments)
        given["new"] = (await ladder.write(callers, bus, "framed", "reserve_memory", session_id="s-new", kib=4))[0]
        await host.stage("squeezed", "relay")
        assert await reservations(host) == {(f"s-{door}", given[door], "4") for door in given}
        for door in list(given):
            arguments = {"session_id": f"s-{door}", "reservation_id": given.pop(door)}
            await ladder.write(callers, bus, "http", "delete_reservation", **arguments)
        assert await reservations(host) == set()
        _, output, _ = await host.cli("handles", "squeezed")
        assert output == "squeezed has given out no handle that is kept\n"
    finally:
        await bus.close()


async def reservations(host: Host) -> set[tuple[str, str, str]]:
    _, output, _ = await host.cli("handles", "squeezed", "--json")
    return {(row["session"], row["id"], row["kib"]) for row in json.loads(output)["reservations"]}


VM: dict[str, Any] = {
    **{name: {} for name in ("xsdata", "platformdata", "bios_strings")},
    **{name: ["Start"] for name in ("on_crash", "on_shutdown", "on_reboot")},
    **dict.fromkeys(("memory_static_max", "memory_dynamic_max", "memory_dynamic_min"), "1073741824"),
    **dict.fromkeys(("suppress_spurious_page_faults", "pci_msitranslate", "pci_power_mgmt"), False),
    "id": "web",
    "name": "web",
    "ssidref": "0",
    "vcpu_max": "1",
    "vcpus": "1",
    "scheduler_params": {"priority": [], "affinity": []},
    "ty": ["HVM", {}],
}


async def test_tasks_have_aliases(host: Host, callers: Any) -> None:
    """The caller's task has another number than the daemon's; both are in the list, and the caller's is understood."""
    await relay(host)
    await host.start_legacy("xenopsd")
    await host.stage("xenopsd", "relay")
    added = await callers.rpc("xenopsd", "VM.add", {"debug_info": "d", "vm": VM})
    assert added["Status"] == "Success", added
    started = await callers.rpc("xenopsd", "VM.start", {"debug_info": "d", "id": "web", "paused": False})
    task = started["Value"]
    found = await callers.rpc("xenopsd", "Task.stat", {"debug_info": "d", "id": task})
    assert found["Value"]["id"] == task
    _, output, _ = await host.cli("handles", "xenopsd", "--json")
    (row,) = json.loads(output)["handles"]
    assert (row["kind"], row["handle"], row["native"], row["side"]) == ("task", task, "1", "legacy")
    assert task != "1"
    _, output, _ = await host.cli("handles", "xenopsd")
    assert task in output
    assert "=1" in output


async def candidate(bus: Bus, interface: Interface, epoch: int) -> None:
    """Owns the candidate's name and offers Memory1 by that interface."""

    async def answer(*_call: object) -> tuple[Any, ...]:
        return ()

    objects = ObjectTree()
    objects.add("/org/xen/xcp/squeezed", CANDIDATE, answer, {"Epoch": lambda: epoch})
    objects.add("/org/xen/xcp/squeezed/Memory", interface, answer)
    bus.serve(objects.answer)
    await bus.request_name(names.candidate_name("squeezed"))


SHORT_LOGIN = Method("Login", (Argument("debug_info", "s"),))


@pytest.mark.parametrize(
    ("epoch", "methods", "said"),
    [
        (99, (), "says epoch 99, squeezed is in epoch 1"),
        (0, (SHORT_LOGIN,), r"offers .*\.Memory1\.Login\(s\) -> \(\), written down is"),
        (0, (), r"does not offer Memory\.GetDiagnostics, Memory\.Login, Memory\.ReserveMemory"),
    ],
)
async def test_a_candidate_that_is_not_fit(host: Host, epoch: int, methods: tuple[Method, ...], said: str) -> None:
    """doctor says so before anybody tries to move."""
    await relay(host)
    bus = await Bus.connect(host.bus.address)
    try:
        await candidate(bus, Interface("org.xen.xcp.squeezed.Memory1", methods), epoch)
        await host.until_candidate()
        _, output, _ = await host.cli("doctor")
        (line,) = [line for line in output.splitlines() if "squeezed candidate" in line]
        assert re.search(said, line), output
    finally:
        await bus.close()


async def test_a_path_that_cannot_be_taken_again(host: Host, callers: Any) -> None:
    """Somebody put something else at the path of a door: it is told until it is gone."""
    await relay(host)
    path = host.path("memory")
    path.unlink()
    path.mkdir()
    await host.until_alarms("DOORS")
    code, output, _ = await host.cli("doctor")
    assert code == 1
    assert re.search(rf"wrong  squeezed \(relay\): DOORS: {path} cannot be taken", output), output
    assert "-> correct the path or the daemon that the text names" in output
    path.rmdir()
    await host.until_alarms()
    assert (await callers.rpc("memory", "login", "d", "s"))["Status"] == "Success"


async def test_a_message_switch_in_use(host: Host) -> None:
    """doctor tells of it too: calls that go through it pass our doors by."""
    await relay(host)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        answer = b'{"permanent_queues": {"org.xen.xapi.memory": {}}}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, str(host.path("switch"))):
        _, output, _ = await host.cli("doctor", "--message-switch", str(host.path("switch")))
    assert "squeezed has the queue org.xen.xapi.memory" in output


LIMIT = '<limit name="max_replies_per_connection">{}</limit>'


async def test_the_limits_of_the_bus(host: Host) -> None:
    """The configuration that the running bus daemon was started with, and what it includes, is looked at."""
    configuration = host.directory / "bus.conf"
    shipped = configuration.read_text()
    included = host.directory / "xcp-bus.d"
    included.mkdir()
    for limit, in_include, verdict, said in (
        ("50000", "", "ok", "max_replies_per_connection 50000"),
        (None, "", "warning", f"{configuration} does not set max_replies_per_connection"),
        ("128", "", "warning", "sets max_replies_per_connection 128, 50000 are wanted"),
        ("50000", "64", "warning", "sets max_replies_per_connection 64, 50000 are wanted"),
        (None, "60000", "ok", "max_replies_per_connection 60000"),
    ):
        host.bus.kill()
        configuration.write_text(shipped.replace(LIMIT.format("50000"), LIMIT.format(limit) if limit else ""))
        more = LIMIT.format(in_include) if in_include else ""
        (included / "local.conf").write_text(f"<busconfig>{more}</busconfig>")
        host.bus.start()
        _, output, _ = await host.cli("check", "--json")
        (finding,) = [each for each in json.loads(output) if each["place"] == f"bus limits (pid {host.bus.pid})"]
        assert finding["verdict"] == verdict, finding
        assert said in finding["text"]
        assert ("deploy/xcp-bus.conf" in finding["mend"]) is (verdict == "warning")


async def test_the_status_is_watched(host: Host, callers: Any) -> None:
    """On a terminal the picture is drawn again; Ctrl-C ends it quietly."""
    await relay(host)
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XCP_BRIDGE_SETTINGS": str(host.settings), "TERM": "xterm"}
    command = [sys.executable, "-c", INTERRUPTIBLE, "status", "--watch"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    try:
        shown = await until_shown(terminal, b"0 answered")
        assert b"squeezed" in shown
        assert (await callers.rpc("memory", "login", "d", "s"))["Status"] == "Success"
        await until_shown(terminal, b"1 answered")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    finally:
        os.close(terminal)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_shown(terminal: int, wanted: bytes) -> bytes:
    """What a terminal shows, up to these words."""
    shown = b""
    async with asyncio.timeout(30):
        while wanted not in shown:
            shown += await asyncio.to_thread(os.read, terminal, 65536)
    return shown
