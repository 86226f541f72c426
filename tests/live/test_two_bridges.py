"""A second bridge on one host, started by mistake: it refuses in plain words, and the first one goes on unharmed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from tests.fixtures_dbus import BusDaemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures_host import Host

BRIDGE = "org.xen.xcp.bridge"


def other_settings(host: Host, *parts: str, bus: str | None = None) -> Path:
    """The host's settings, with a path of their own for each of these parts and, perhaps, another bus."""
    text = host.settings.read_text()
    for part in parts:
        text = text.replace(f'{host.directory}/{part}"', f'{host.directory}/other-{part}"')
    if bus is not None:
        text = text.replace(host.bus.address, bus)
    path = host.path("other.toml")
    path.write_text(text)
    return path


async def refusal(host: Host, settings: Path) -> str:
    """What a bridge with these settings says when it refuses to start, at once and with exit code 1."""
    async with asyncio.timeout(20):
        code, output, errors = await host.cli("run", "--settings", str(settings))
    assert code == 1
    assert output == ""
    assert "Traceback" not in errors
    return errors.replace("\n", " ")


def names(host: Host) -> dict[str, int]:
    """The sockets of the host and their inodes."""
    return {path.name: path.stat().st_ino for path in host.directory.iterdir() if path.is_socket()}


@pytest.fixture
def other_bus(host: Host) -> Iterator[BusDaemon]:
    """A second bus on the host."""
    directory = host.path("b")
    directory.mkdir()
    bus = BusDaemon(directory)
    try:
        yield bus
    finally:
        bus.kill()


async def test_the_same_settings(host: Host, relayed: Any) -> None:
    """The state is locked; the message names the process that has it."""
    before = names(host)
    errors = await refusal(host, host.settings)
    assert "another bridge is running with it" in errors
    assert f"end the other (process {host.pid('bridge')}) first" in errors
    assert names(host) == before
    await relayed.every_door()


async def test_the_same_state_but_another_control_socket(host: Host, relayed: Any) -> None:
    """As with the same settings."""
    before = names(host)
    errors = await refusal(host, other_settings(host, "control"))
    assert f"{host.path('state')}/state.sqlite" in errors
    assert f"(process {host.pid('bridge')})" in errors
    assert names(host) == before
    await relayed.every_door()


async def test_the_same_control_socket(host: Host, relayed: Any) -> None:
    """Whoever answers there is named."""
    before = names(host)
    errors = await refusal(host, other_settings(host, "state"))
    assert f"control socket {host.path('control')}: another bridge answers there" in errors
    assert f"end the other (process {host.pid('bridge')}) first" in errors
    assert names(host) == before
    await relayed.every_door()


async def test_the_same_bus(host: Host, relayed: Any) -> None:
    """State and control socket are its own, the bridge's name is not: the bus says whose it is."""
    before = names(host)
    errors = await refusal(host, other_settings(host, "state", "control"))
    assert f"bus {host.bus.address}: {BRIDGE} is owned by another bridge" in errors
    assert f"end the other (process {host.pid('bridge')}) first" in errors
    assert names(host) == before
    await relayed.every_door()


async def test_the_bus_comes_later_with_another_bridge_on_it(host: Host) -> None:
    """A bridge that had no bus at its start raises ANOTHER_BRIDGE for every service, until the other has left."""
    host.bus.kill()
    await host.start_bridge()
    os.kill(host.pid("bridge"), signal.SIGSTOP)  # so that the other one is there first
    host.bus.start()
    other = await Bus.connect(host.bus.address)
    try:
        await other.request_name(BRIDGE)
        os.kill(host.pid("bridge"), signal.SIGCONT)
        for service in ("squeezed", "xenopsd"):
            await host.until_alarms("ANOTHER_BRIDGE", service=service)
        alarm = (await host.alarms())["ANOTHER_BRIDGE"]
        assert f"{BRIDGE} is owned by another bridge" in alarm
        assert f"end the other (process {os.getpid()}) first" in alarm
        assert f"squeezed: ANOTHER_BRIDGE: {alarm}" in host.log("bridge")
    finally:
        await other.close()
    for service in ("squeezed", "xenopsd"):
        await host.until_alarms(service=service)
    bus = await Bus.connect(host.bus.address)
    try:
        await bus.track_owner(BRIDGE, lambda _owner: None)
        assert bus.owner(BRIDGE) is not None
    finally:
        await bus.close()


@pytest.mark.parametrize("stage", ["relay", "live"])
async def test_the_same_sockets_on_another_bus(host: Host, relayed: Any, other_bus: BusDaemon, stage: str) -> None:
    """Nothing but a path is shared: whoever serves it is named, whether a legacy daemon stands behind it or not."""
    if stage == "live":
        await host.start_bus_squeezed()
        await host.stage("squeezed", "live")
    before = names(host)
    errors = await refusal(host, other_settings(host, "state", "control", bus=other_bus.address))
    assert f"{host.path('memory')} is served by another bridge (process {host.pid('bridge')})" in errors
    assert "end one of the two" in errors
    assert names(host) == before
    await relayed.every_door()
    assert await host.alarms() == {}


async def test_the_same_sockets_moved_later(host: Host, callers: Any, other_bus: BusDaemon) -> None:
    """Both were started with every service at off; the second to move it, and a release beside it, are refused."""
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    settings = other_settings(host, "state", "control", bus=other_bus.address)
    await host._spawn("second", [sys.executable, "-m", "bridges", "run", "--settings", str(settings)])
    await host.until(lambda: " ready: " in host.log("second"), "second")
    for service in ("squeezed", "xenopsd"):
        await host.stage(service, "relay")
    before = names(host)
    before.pop("other-control")
    taken = f"is served by another bridge (process {host.pid('bridge')}): end one of the two"
    move = ("stage", "squeezed", "relay", "--reason", "by mistake", "--skip", "by mistake", "--settings", str(settings))
    code, output, errors = await host.cli(*move)
    assert code == 1, (output, errors)
    assert taken in " ".join((output + errors).split())
    assert "Traceback" not in host.log("second")
    assert await host.end("second") == 0
    code, output, _ = await host.cli("release", "--settings", str(settings))
    assert f"{host.path('memory')}: could not be given back: {host.path('memory')} {taken}" in " ".join(output.split())
    assert names(host) == before
    await callers.every_door()
    assert await host.alarms() == {}
