"""complete: legacy doors say that they are closed for good, and bus callers reach the daemon itself."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from tests.fixtures_host import ROOT
from tests.live import ladder

if TYPE_CHECKING:
    from tests.fixtures_host import Host

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("wide_terminal")]
RETIRED = "Retired: the {} door of squeezed is closed: call org.xen.xcp.squeezed on the bus"


async def start_settled(host: Host) -> None:
    """A squeezed on the bus whose migration is complete."""
    arguments = ["--bus", host.bus.address, "--xenstore", host.store.socket, "--settled"]
    command = [sys.executable, f"{ROOT}/examples/squeezed_on_bus.py", *arguments]
    await host._spawn("bus", [*command, "--executions", str(host.path("executions"))])
    await host.until(lambda: "owns its name" in host.log("bus"), "bus")


async def refused_at_every_legacy_door(callers: Any) -> None:
    """Each says it as its daemon says an error; nothing is executed."""
    reply = await callers.rpc("memory", "reserve_memory", "d", "late", "1")
    assert reply == {"Status": "Failure", "ErrorDescription": ["Internal_error", RETIRED.format("http")]}
    reply = await ladder.framed(callers, "reserve_memory", "d", "late", 1)
    assert reply == {"result": None, "error": ["Internal_error", RETIRED.format("framed")], "id": 0}
    nodes = await callers.ask_store("reserve-memory", {"session_id": b"late", "kib": b"1"})
    assert nodes == {"code": b"2", "description": RETIRED.format("xenstore").encode()}
    assert callers.host.executions()["reserve_memory", "late"] == 0


async def test_quiet_doors_are_wanted(host: Host, callers: Any) -> None:
    """A week by default: a door that was used a moment ago speaks against it; each door has its gate."""
    await ladder.live(host)
    code, output, errors = await host.cli("stage", "squeezed", "complete", "--reason", "week 4")
    assert code == 1
    for door in ("http", "framed", "xenstore"):
        assert f"fail  {door} unused: no call for 0.0 h, 168 h are wanted" in output
    assert "squeezed stays live: not through the gates: http unused (fail)" in errors
    assert (await ladder.status(host))["stage"] == "live"
    assert (await callers.rpc("memory", "login", "d", "s"))["Status"] == "Success"


async def test_the_doors_are_closed_and_open_again(host: Host, callers: Any) -> None:
    """Refused calls are counted, bus callers are served by the daemon, the checklist is told; back by two ways."""
    await ladder.live(host, quiet_hours=0)
    code, output, _ = await host.cli("stage", "squeezed", "complete", "--reason", "week 4")
    assert code == 0, output
    assert "squeezed: live -> complete, epoch 3" in output
    assert "what is left to do" in output
    for words in ("1. the legacy doors of squeezed answer Retired", "5. remove services.squeezed from the settings"):
        assert words in output
    _, again, _ = await host.cli("stage", "squeezed")
    assert "5. remove services.squeezed from the settings" in again
    assert "what is left to do" not in (await host.cli("stage", "xenopsd"))[1]
    bus = await Bus.connect(host.bus.address)
    try:
        await refused_at_every_legacy_door(callers)
        found = await ladder.status(host)
        assert found["calls"]["refused"] == 3
        assert found["faults"] == {"Retired": 3}
        assert found["doors"] == {"bus": "bus daemon", "http": "retired", "framed": "retired", "xenstore": "retired"}
        assert all(0 <= found["unused"][door] < 60 for door in ("http", "framed", "xenstore"))
        assert len(found["checklist"]) == 5
        await bus.track_owner(ladder.MEMORY[0], lambda _owner: None)
        assert bus.owner(ladder.MEMORY[0]) == found["candidate"]
        assert (await host.cli("capture", "start", "squeezed", "--name", "late"))[0] == 0
        assert len((await ladder.write(callers, bus, "bus", "reserve_memory", session_id="s", kib=1))[0]) == 36
        assert (await host.cli("capture", "stop"))[0] == 0
        assert re.search(r"bus +bus .* reserve_memory\(", (await host.cli("capture", "show", "late"))[1])
        assert (await ladder.status(host))["calls"]["admitted"] == 0
        code, output, _ = await host.cli("status")
        assert "3 refused" in output
        assert "3 Retired" in output
        await host.stage("squeezed", "live")
        assert len((await ladder.write(callers, bus, "http", "reserve_memory", session_id="s", kib=1))[0]) == 36
        assert len((await ladder.write(callers, bus, "xenstore", "reserve_memory", session_id="s", kib=1))[0]) == 36
        assert host.sides() == {"bus": 3}
        await host.stage("squeezed", "complete")
        await refused_at_every_legacy_door(callers)
        await host.stage("squeezed", "relay")
        for door in ladder.DOORS:
            assert len((await ladder.write(callers, bus, door, "reserve_memory", session_id="s", kib=1))[0]) == 36
        assert host.sides() == {"bus": 3, "legacy": 4}
        await host.until_alarms()
    finally:
        await bus.close()


async def test_a_daemon_on_its_own(host: Host, callers: Any) -> None:
    """No candidate, but the owner of its name from its start: in complete that is as good, whenever we start."""
    await ladder.live(host, quiet_hours=0)
    await host.stage("squeezed", "complete")
    await host.end("bus")
    await host.until_alarms("NO_AUTHORITY")
    await start_settled(host)
    await host.until_alarms()
    bus = await Bus.connect(host.bus.address)
    try:
        assert len((await ladder.write(callers, bus, "bus", "reserve_memory", session_id="s", kib=1))[0]) == 36
        await refused_at_every_legacy_door(callers)
        await host.end("bridge")
        await host.start_bridge()
        await host.until_alarms()
        assert len((await ladder.write(callers, bus, "bus", "reserve_memory", session_id="s", kib=1))[0]) == 36
        await refused_at_every_legacy_door(callers)
        assert (await ladder.status(host))["candidate"] is None
        _, output, _ = await host.cli("doctor")
        said = re.sub(r"\s+", " ", output)
        assert "squeezed (complete): authority bus, nothing is wrong" in said
        # The bridge cannot take the name from a daemon that does not let it: the service stands where it stood.
        answer = await host.ask_stage("squeezed", "relay")
        assert not answer["ok"], answer
        assert (await ladder.status(host))["stage"] == "complete"
        assert len((await ladder.write(callers, bus, "bus", "reserve_memory", session_id="s", kib=1))[0]) == 36
        await refused_at_every_legacy_door(callers)
        # With a candidate there is a way back again.
        await host.end("bus")
        await host.until_alarms("NO_AUTHORITY")
        await host.start_bus_squeezed()
        await host.until_alarms()
        await host.stage("squeezed", "relay")
        assert len((await ladder.write(callers, bus, "http", "reserve_memory", session_id="s", kib=1))[0]) == 36
    finally:
        await bus.close()
    assert host.sides() == {"bus": 3, "legacy": 1}
