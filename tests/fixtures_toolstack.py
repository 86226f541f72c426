"""A host with the services that the story of squeezed does not have: xapi, framed JSON sockets, perfmon."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fixtures_dbus import BusDaemon
from tests.fixtures_host import ROOT, Host, running_host
from tests.fixtures_xenstored import StoreProcess

STAND_IN = ROOT / "tests" / "live" / "stand_in.py"
SERVICES = """
[services.xapi]
http = {{ socket = "{directory}/xapi", legacy = "{directory}/xapi.legacy", listen = ["tcp:127.0.0.1:{port}"] }}
[services.squeezed]
http = {{ socket = "{directory}/memory", legacy = "{directory}/memory.legacy" }}
framed = {{ socket = "{directory}/memory.json", legacy = "{directory}/memory.json.legacy" }}
reach = "{reach}"
[services.perfmon]
datagram = "{perfmon}"
"""


class Toolstack(Host):
    """The same host with other services.

    `port` is the door's TCP port of xapi, `perfmon` the address of perfmon, `stage_name` the stage that a test wants.
    """

    stage_name = ""

    def __init__(self, bus: BusDaemon, store: StoreProcess) -> None:
        self.port = _free_port()
        self.perfmon = f"@{bus.directory.name}.perfmon"
        super().__init__(bus, store)

    def legacy_commands(self) -> dict[str, list[str]]:
        """As the settings start them."""
        d = self.directory
        xapi = ["legacy_xapi.py", "--socket", f"{d}/xapi", "--vms", "4"]
        squeezed = ["legacy_squeezed.py", "--xenstore", self.store.socket, "--http", f"{d}/memory"]
        squeezed += ["--framed", f"{d}/memory.json"]
        perfmon = ["legacy_perfmon.py", "--address", self.perfmon]
        commands = {"xapi": xapi, "squeezed": squeezed, "perfmon": perfmon}
        return {name: self.example(name, *command) for name, command in commands.items()}

    def write_settings(self, *, reach: str = "framed", stale: str = "refuse") -> None:
        """`reach` is how the bridge reaches the legacy squeezed."""
        self.settle(SERVICES, port=self.port, reach=reach, perfmon=self.perfmon)

    async def start_xapi(self, stage: str) -> None:
        """xapi in a stage of the bridge; a candidate for it is there in `live` alone."""
        await self.start_legacy("xapi")
        await self.start_bridge()
        await self.stage("xapi", "relay")
        if stage == "live":
            await self.start_xapi_candidate()
            await self.stage("xapi", "live")
        self.stage_name = stage

    async def in_flight(self) -> int:
        """How many calls and streams of xapi are in flight."""
        status: Any = await self.control(verb="status")
        count: int = status["services"]["xapi"]["calls"]["in_flight"]
        return count

    async def until_in_flight(self, count: int) -> None:
        """Waits until so many calls and streams of xapi are in flight."""
        async with asyncio.timeout(40):
            while await self.in_flight() != count:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.02)

    async def start_candidate(self, service: str, *more: str) -> None:
        """A candidate on the bus for the service; returns when its name has an owner."""
        arguments = ["--bus", self.bus.address, "--service", service, "--executions", str(self.path("executions"))]
        name = f"candidate-{service}"
        await self._spawn(name, [sys.executable, str(STAND_IN), *arguments, *more])
        await self.until(lambda: "is a candidate" in self.log(name), name)

    async def start_xapi_candidate(self) -> None:
        """xapi on the bus; what it executes is executed by a xapi of its own, at `xapi-behind`."""
        behind = ["legacy_xapi.py", "--socket", f"{self.directory}/xapi-behind", "--vms", "4"]
        command = self.example("xapi-behind", *behind)
        where = command.index("--executions")  # what is behind counts nothing: the candidate did
        self.legacy["xapi-behind"] = [*command[:where], *command[where + 2 :]]
        await self.start_legacy("xapi-behind")
        await self.start_candidate("xapi", "--socket", f"{self.directory}/xapi-behind")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def toolstack(bus_daemon: BusDaemon, request: pytest.FixtureRequest) -> AsyncIterator[Toolstack]:
    """A host on the real oxenstored; nothing of ours runs yet."""
    async with running_host(Toolstack, bus_daemon, request) as host:
        yield host
