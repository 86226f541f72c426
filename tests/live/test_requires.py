"""The order between services, and what freezes one: two owners of an address are told at once and stay told."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from tests.live import ladder

if TYPE_CHECKING:
    from tests.fixtures_host import Host

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("wide_terminal")]


async def refused(host: Host, service: str, stage: str) -> str:
    """The sentence with which an operator's move is refused."""
    code, _, errors = await host.cli(
        "stage", service, stage, "--reason", "test", "--skip", "test", "--override", "test"
    )
    assert code == 1
    return errors


async def frozen(host: Host) -> str:
    """Why squeezed is frozen; empty when it is not."""
    return (await ladder.status(host))["frozen"] or ""


async def test_one_service_after_the_other(host: Host, callers: Any) -> None:
    """What is required is named with the verb that is missing, both ways; a kill goes first and says who is left."""
    ladder.settle(host, requires=("squeezed.live",))
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    await host.stage("xenopsd", "observe")
    sentence = await refused(host, "xenopsd", "relay")
    assert "xenopsd requires squeezed.live: squeezed is off; xcp-bridge stage squeezed live first" in sentence
    await host.stage("squeezed", "relay")
    code, _, errors = await host.cli("stage", "xenopsd", "relay", "--dry-run")
    assert (code, "squeezed is relay" in errors) == (1, True)
    await host.start_bus_squeezed()
    await host.until_candidate()
    await host.stage("squeezed", "live")
    await host.stage("xenopsd", "relay")
    for stage in ("relay", "off"):
        sentence = await refused(host, "squeezed", stage)
        assert f"xenopsd requires more of squeezed than {stage}: move that back first" in sentence
    code, output, _ = await host.cli("kill", "squeezed", "--reason", "it hangs")
    assert code == 0
    assert "squeezed is relay: the legacy daemon is the authority" in output
    assert "these were to be moved after it only: xenopsd" in re.sub(r"\s+", " ", output)
    assert (await ladder.status(host, "xenopsd"))["stage"] == "relay"
    await callers.every_door()
    await host.stage("xenopsd", "off")
    outcomes: Any = (await host.control(verb="audit"))["entries"]
    assert sum("requires" in each["outcome"] for each in outcomes) == 3


async def test_a_legacy_daemon_is_started_by_hand_in_live(host: Host, callers: Any) -> None:
    """Frozen at once and over a restart; only a kill moves it; acknowledged, it can be moved again."""
    await ladder.live(host)
    await host.start_legacy("squeezed")
    pid = host.legacy_pid("squeezed")
    await host.until_alarms("SPLIT_OWNER")
    assert f"SPLIT_OWNER: /squeezed/pid is {pid}: another daemon serves the tree" in await frozen(host)
    # What comes by the sockets, which are ours again, is executed by the authority.
    await host.until(lambda: "memory was bound by somebody else: taking it again" in host.log("bridge"))
    for door in ("http", "framed"):
        assert await eventually(callers, host, door) == "bus"
    code, output, _ = await host.cli("doctor")
    assert code == 1
    assert "wrong  squeezed (live): SPLIT_OWNER: " in output
    assert "-> end the daemon that the text names, restart the bridge, then xcp-bridge acknowledge; or kill" in output
    sentence = await refused(host, "squeezed", "relay")
    assert "squeezed is frozen: SPLIT_OWNER" in sentence
    assert "xcp-bridge acknowledge squeezed, or kill" in sentence
    _, output, _ = await host.cli("status")
    assert "frozen" in output
    await host.end("bridge")
    await host.start_bridge()
    assert "SPLIT_OWNER" in await frozen(host)
    await host.until_alarms("SPLIT_OWNER")
    assert "is frozen" in await refused(host, "squeezed", "relay")
    await host.end_legacy("squeezed")
    code, output, errors = await host.cli("kill", "squeezed", "--reason", "two owners")
    assert code == 0, errors
    assert "SPLIT_OWNER" in await frozen(host)
    assert "is frozen" in await refused(host, "squeezed", "off")
    code, output, _ = await host.cli("acknowledge", "squeezed", "--reason", "the other one is gone")
    assert code == 0
    assert "squeezed no longer frozen (SPLIT_OWNER" in output
    assert await frozen(host) == ""
    for door in ("http", "framed", "xenstore"):
        assert await side_of(callers, host, door) == "legacy"
    await host.until_alarms()
    await host.stage("squeezed", "live")
    assert await side_of(callers, host, "xenstore") == "bus"


_numbers = iter(range(1000))


async def side_of(callers: Any, host: Host, door: str) -> str:
    """Who executes a write at that door, once."""
    token = f"side{next(_numbers)}"
    bus = await Bus.connect(host.bus.address)
    try:
        await ladder.write(callers, bus, door, "login", service_name=token)
    finally:
        await bus.close()
    (side,) = [side for side, _, what in host._lines() if what == token]
    return side


async def eventually(callers: Any, host: Host, door: str) -> str:
    """Who executes a write at that door once its path is ours again."""
    async with asyncio.timeout(30):
        while (side := await side_of(callers, host, door)) != "bus":  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    return side


async def test_somebody_owns_the_name_in_relay(host: Host, callers: Any) -> None:
    """The name was free while the bridge was down: alarm and freeze; the legacy doors go on; a free name is taken."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.end("bridge")
    other = await Bus.connect(host.bus.address)
    try:
        await other.request_name(ladder.MEMORY[0])
        await host.start_bridge()
        await host.until_alarms("NAME_TAKEN")
        text = f"org.xen.xcp.squeezed is owned by {other.unique_name} although legacy is the authority"
        assert await frozen(host) == f"NAME_TAKEN: {text}"
        for door in ("http", "framed", "xenstore"):
            assert await side_of(callers, host, door) == "legacy"
        assert "is frozen: NAME_TAKEN" in await refused(host, "squeezed", "off")
        _, output, _ = await host.cli("doctor", "--json")
        mends = {finding["mend"] for finding in json.loads(output)}
        assert "end the daemon that owns the name; then xcp-bridge acknowledge" in mends
        code, output, _ = await host.cli("kill", "squeezed", "--reason", "two owners")
        assert (code, "the legacy daemon is the authority already" in output) == (0, True)
    finally:
        await other.close()
    await host.until_alarms()
    assert await side_of(callers, host, "bus") == "legacy"
    await host.end("bridge")
    await host.start_bridge()
    await host.until_alarms()
    assert (await frozen(host)).startswith("NAME_TAKEN: ")
    assert "is frozen: NAME_TAKEN" in await refused(host, "squeezed", "off")
    await host.control(verb="acknowledge", service="squeezed", reason="it has left")
    await host.stage("squeezed", "off")
