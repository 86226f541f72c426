"""shadow: the candidate is asked every read too, off the callers' path, and never a write."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from tests.live import ladder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fixtures_host import Host

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("wide_terminal")]


@pytest.fixture
async def bus(host: Host) -> AsyncIterator[Bus]:
    """A caller on the bus."""
    bus = await Bus.connect(host.bus.address)
    yield bus
    await bus.close()


async def shadow(host: Host, *options: str) -> None:
    """squeezed in shadow, beside a candidate with these options."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.start_bus_squeezed(*options)
    await host.until_candidate()
    await host.stage("squeezed", "shadow")


def on_bus(host: Host) -> list[str]:
    """The methods that the candidate has executed."""
    return [function for side, function, _ in host._lines() if side == "bus"]


async def test_reads_of_all_doors_reach_it_and_no_write(host: Host, callers: Any, bus: Bus) -> None:
    """Reads are compared and agree; of all the writes of squeezed, at all of its doors, it has executed none."""
    await shadow(host)
    await ladder.reads(callers, bus, 3)
    await ladder.writes(callers, bus)
    counts = await ladder.until(host, "comparison", pending=0, different=0)
    # Three doors are ours; of the tree's exchanges those that were read whole are asked.
    assert counts["methods"]["get_host_reserved_memory"] == {"same": 9, "different": 0}
    await ladder.until(host, "round_trips", pending=0)
    # How many of the tree's exchanges can be read whole, and when they are told, is the store's and the machine's
    # affair: one is enough.
    async with asyncio.timeout(30):
        tree, counts, executed = 0, {"sent": 0}, []
        while not tree or counts["pending"] or not counts["sent"] == 9 + tree == len(executed):
            if not tree:
                await callers.ask_store("echo", {"session_id": b"once more"})
            status = await ladder.status(host)
            tree, counts = status["observed"]["methods"]["echo"].get("complete", 0), status["comparison"]
            executed = on_bus(host)
    assert counts["same"] == counts["sent"], counts
    assert sorted(set(executed)) == ["echo", "get_host_reserved_memory"]
    await host.until_alarms()
    code, output, _ = await host.cli("stage", "squeezed", "live", "--dry-run")
    assert code == 0, output
    assert re.search("pass  reads: 0 of [0-9]+ differ", output)


async def test_a_candidate_that_hangs_is_in_nobodys_way(host: Host, callers: Any, bus: Bus) -> None:
    """Frozen: every caller is answered meanwhile; what is too much is dropped and counted, the rest is compared."""
    await shadow(host)
    os.kill(host.pid("bus"), signal.SIGSTOP)
    before = (await ladder.status(host))["calls"]["answered"]
    await ladder.reads(callers, bus, 30)
    frozen = await ladder.status(host)
    assert on_bus(host) == []
    assert frozen["calls"]["answered"] - before == 90
    await ladder.until(host, "round_trips", pending=0)
    counts = (await ladder.status(host))["comparison"]
    assert ladder.adds_up(counts, "sent")
    assert (counts["same"], counts["different"]) == (0, 0)
    assert counts["pending"] == 64
    assert counts["dropped"] == {"queue full": counts["sent"] - 64}
    os.kill(host.pid("bus"), signal.SIGCONT)
    counts = await ladder.until(host, "comparison", pending=0)
    assert counts["different"] == 0
    assert counts["same"] + counts["dropped"].get("timed out", 0) == 64
    assert len(on_bus(host)) == 64


async def test_a_slow_candidate_that_is_killed(host: Host, callers: Any, bus: Bus) -> None:
    """Callers have their answers before it has executed one; killed, what it has and what follows has no candidate."""
    await shadow(host, "--slow-ms", "2000")
    await ladder.reads(callers, bus, 5)
    assert (await ladder.status(host))["comparison"]["same"] == 0
    await host.until(lambda: len(on_bus(host)) >= 15, "bus")
    await host.end("bus", signal.SIGKILL)
    await ladder.reads(callers, bus, 2)
    await ladder.until(host, "round_trips", pending=0)
    counts = await ladder.until(host, "comparison", pending=0)
    assert counts["dropped"] == {"no candidate": counts["sent"]}
    assert counts["sent"] >= 7 * 3
    _, output, _ = await host.cli("status")
    assert f"{counts['sent']} sent, 0 same, 0 different, 0 pending, {counts['sent']} dropped" in output
    assert "no candidate" in output


async def test_a_candidate_that_answers_otherwise(host: Host, callers: Any, bus: Bus) -> None:
    """The field's path and both values are in the status and in the log; the gate is red until somebody says why."""
    await shadow(host, "--host-kib", "1000")
    assert (await callers.rpc("memory", "get_host_initial_free_memory", "d"))["Value"] == str(1 << 40)
    assert (await callers.rpc("memory", "get_host_reserved_memory", "d"))["Status"] == "Success"
    counts = await ladder.until(host, "comparison", pending=0, sent=2)
    assert (counts["same"], counts["different"]) == (1, 1)
    expected = {"count": 1, "legacy": str(1 << 40), "bus": "1024000"}
    assert counts["fields"] == {"get_host_initial_free_memory result": expected}
    told = f"get_host_initial_free_memory is answered otherwise by the candidate: result: legacy {1 << 40}, bus 1024000"
    assert told in host.log("bridge")
    code, output, _ = await host.cli("status")
    said = re.sub(r"\s+", " ", output)
    assert f"get_host_initial_free_memory result differs, 1 times: legacy {1 << 40}, bus 1024000" in said
    code, output, errors = await host.cli("stage", "squeezed", "live", "--reason", "week 3")
    assert code == 1
    assert "fail  reads: 1 of 2 differ, most often get_host_initial_free_memory result" in output
    assert "squeezed stays shadow" in errors
    assert host.sides()["bus"] == 2
    code, output, _ = await host.cli("stage", "squeezed", "live", "--reason", "week 3", "--override", "another host")
    assert code == 0, output
