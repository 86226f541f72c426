"""A rehearsal: what passed the bridge in relay is sent to a bus squeezed, and to one that is broken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from tests.fixtures_dbus import BusDaemon
from tests.fixtures_xenstored import running_store
from tests.live.conftest import MEMORY, Callers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fixtures_host import Host

ROOT = Path(__file__).parents[2]
ROUNDS = 12
# A schedule is not kept where eight tests share two processors; without one the same calls are sent and compared.
PACE = ["--speed", "2"] if os.environ.get("KEEP_REPORTS") else ["--closed", "4"]
MASKS = """
[[mask]]
id = "text-for-people"
where = "squeezed.get_diagnostics:result"
kind = "shape"
reason = "a text for people, which names the process"
owner = "toolstack"
expires = 2099-12-31
"""


class Laboratory:
    """A bus and a store of their own, where recorded calls may do as they like."""

    def __init__(self, bus: BusDaemon, store: str, directory: Path) -> None:
        self.bus = bus
        self.store = store
        self.directory = directory

    @contextlib.asynccontextmanager
    async def squeezed(self, script: str, *more: str) -> AsyncIterator[None]:
        """A squeezed that owns the service's name there."""
        command = [sys.executable, f"{ROOT}/{script}", "--bus", self.bus.address, "--xenstore", self.store, "--settled"]
        process = await asyncio.create_subprocess_exec(
            *command, *more, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(30):
                line = await process.stdout.readline()
            assert b"owns its name" in line, line
            yield
        finally:
            process.terminate()
            await process.wait()


@pytest.fixture
async def laboratory(host: Host, xenstored_stub: Path) -> AsyncIterator[Laboratory]:
    directory = host.path("laboratory")
    directory.mkdir()
    bus = BusDaemon(directory)
    try:
        async with running_store("oxenstored", lambda: xenstored_stub) as store:
            yield Laboratory(bus, store.socket, directory)
    finally:
        bus.kill()


async def mixed_run(callers: Callers) -> None:
    """Three callers at three doors at once, each of a session of its own; some of what they ask is refused."""

    async def at_http(session: str) -> None:
        await callers.rpc("memory", "login", "d", session)
        for _ in range(ROUNDS):
            reserved = (await callers.rpc("memory", "reserve_memory", "d", session, "1024"))["Value"]
            await callers.rpc("memory", "get_diagnostics", "d")
            await callers.rpc("memory", "get_domain_zero_policy", "d")
            await callers.rpc("memory", "delete_reservation", "d", session, reserved)
            failed = await callers.rpc("memory", "transfer_reservation_to_domain", "d", session, reserved, "3")
            assert failed["Status"] == "Failure", failed

    async def on_the_bus(session: str) -> None:
        bus = await Bus.connect(callers.host.bus.address)
        try:
            await bus.call(*MEMORY, "Login", "ss", ("d", session), timeout=30)
            for domid in range(ROUNDS):
                ranged = await bus.call(*MEMORY, "ReserveMemoryRange", "ssxx", ("d", session, 1, 4096), timeout=30)
                transfer = ("d", session, ranged.body[0], domid)
                await bus.call(*MEMORY, "TransferReservationToDomain", "sssx", transfer, timeout=30)
                with contextlib.suppress(BusRefused):
                    await bus.call(*MEMORY, "ReserveMemory", "ssx", ("d", session, -1), timeout=30)
        finally:
            await bus.close()

    async def in_the_store(session: bytes) -> None:
        await callers.ask_store("login", {"service_name": session})
        for _ in range(ROUNDS):
            reserved = await callers.ask_store("reserve-memory", {"session_id": session, "kib": b"64"})
            where = {"session_id": session, **reserved}
            await callers.ask_store("delete-reservation", where)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(at_http("http-session"))
        tasks.create_task(on_the_bus("bus-session"))
        tasks.create_task(in_the_store(b"store-session"))


async def test_what_passed_in_relay_is_replayed(relayed: Callers, laboratory: Laboratory) -> None:
    host = relayed.host
    await relayed.on_bus()
    assert (await host.cli("capture", "start", "squeezed", "--name", "monday"))[0] == 0
    await mixed_run(relayed)
    assert (await host.cli("capture", "stop"))[0] == 0
    code, output, errors = await host.cli("capture", "verify", "monday", "--secrets")
    assert (code, errors) == (0, ""), output

    async def drive(*more: str) -> tuple[int, dict[str, Any]]:
        target = ["--to", f"bus:{laboratory.bus.address}", "--json", *PACE]
        code, output, errors = await host.cli("replay", "drive", "monday", *target, *more)
        assert output, errors
        return code, json.loads(output)

    page, xml, masks = (host.path(name) for name in ("report.html", "report.xml", "masks.toml"))
    masks.write_text(MASKS)
    reports = ["--allow-writes", "--masks", str(masks), "--html", str(page), "--junit", str(xml)]
    async with laboratory.squeezed("examples/squeezed_on_bus.py"):
        target = f"bus:{laboratory.bus.address}"
        code, output, errors = await host.cli("replay", "drive", "monday", "--to", target, "--allow-writes")
    assert (code, output) == (2, "")
    assert "no writes may be sent to org.xen.xcp.squeezed" in errors

    async with laboratory.squeezed("examples/squeezed_on_bus.py", "--sandbox"):
        code, result = await drive(*reports)
    assert (code, result["verdict"]) == (0, "PASS"), result["reasons"]
    assert "PASS" in page.read_text()
    assert not ET.parse(xml).getroot().findall(".//failure")
    keep(page, "replay-pass.html")

    async with laboratory.squeezed("tests/stories/broken_squeezed.py", "--sandbox"):
        code, result = await drive(*reports)
    assert (code, result["verdict"]) == (1, "FAIL"), result["reasons"]
    found = {(row["method"], field["path"]) for row in result["methods"] for field in row["fields"]}
    assert found == {
        ("reserve_memory_range", "result[1]"),
        ("transfer_reservation_to_domain", "fault.code"),
        ("get_domain_zero_policy", "result"),
    }, result
    assert len(ET.parse(xml).getroot().findall(".//failure")) == 4  # of three methods, and the verdict
    keep(page, "replay-fail.html")


def keep(page: Path, name: str) -> None:
    """With KEEP_REPORTS=DIRECTORY the page stays, for docs/examples; its paths are those of an installed bridge."""
    if directory := os.environ.get("KEEP_REPORTS"):
        text = page.read_text().replace(f"{page.parent}/laboratory", "/lab")
        Path(directory, name).write_text(text.replace(f"{page.parent}/state", "/var/lib/xcp-bridge"))
