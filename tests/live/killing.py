"""A host whose bridge can be killed at a chosen point, callers at all of its doors, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import xmlrpc.client
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridges.calls import Side
from bridges.cutover import MEANINGS, Stage
from bridges.processes import is_alive
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.introspection import Interface, from_xml
from tests.fixtures_dbus import BusDaemon
from tests.fixtures_host import ROOT, Host
from tests.fixtures_xenstored import running_store
from tests.live.conftest import MEMORY, Callers

PATIENCE = 30.0
SERVICES = """
[services.squeezed]
xenstore = "squeezed"
http = {{ socket = "{directory}/memory", legacy = "{directory}/memory.legacy" }}
framed = {{ socket = "{directory}/json", legacy = "{directory}/json.legacy" }}
reach = "http"
stale_at_start = "{stale}"
"""
CANDIDATE = "org.xen.xcp.squeezed.Candidate"
NOBODY_THERE = ("ServiceUnknown", "NameHasNoOwner")


def published(name: str) -> Interface:
    """An interface as it is written down."""
    return from_xml(resources.files("dbus_side.idl").joinpath(f"{name}.xml").read_text()).interfaces[0]


CANDIDATE1, MEMORY1 = published("org.xen.xcp.Candidate1"), published("org.xen.xcp.squeezed.Memory1")
_tokens = itertools.count()
ANSWERED, REFUSED, IN_DOUBT, CUT = "answered", "refused", "in doubt", "cut"


class OneService(Host):
    """A host with squeezed alone, at every door that it can have, and a bridge that can be killed at a point."""

    slow = ("--slow-ms", "3")

    def legacy_commands(self) -> dict[str, list[str]]:
        doors = ["--http", f"{self.directory}/memory", "--framed", f"{self.directory}/json", *self.slow]
        command = self.example("squeezed", "legacy_squeezed.py", "--xenstore", self.store.socket, *doors)
        return {"squeezed": command}

    def write_settings(self, *, reach: str = "http", stale: str = "refuse") -> None:
        self.settle(SERVICES.replace('"http"', f'"{reach}"'), stale=stale)

    async def start_bridge(self) -> None:
        ready = self.log("bridge").count(" ready: ")
        runner = f"{ROOT}/tests/live/killed_bridge.py"
        await self._spawn("bridge", [sys.executable, runner, str(self.settings), str(self.path("fault"))])
        await self.until(lambda: self.log("bridge").count(" ready: ") > ready, "bridge")

    def break_at(self, when: str, point: str) -> None:
        """Lets the bridge be killed there; it never sees half of the file."""
        self.path("fault.new").write_text(f"{when} {point}")
        self.path("fault.new").rename(self.path("fault"))

    async def standing(self) -> dict[str, Any]:
        """What the bridge says of squeezed."""
        found: dict[str, Any] = (await self.control(verb="status"))["services"]["squeezed"]  # type: ignore[index]
        return found

    async def bring_to(self, stage: Stage) -> None:
        """Moves squeezed until it stands there."""
        while (here := Stage((await self.standing())["stage"])) is not stage:
            there = stage
            if stage is Stage.COMPLETE and here is not Stage.LIVE:
                there = Stage.LIVE
            if here is Stage.OFF:
                there = Stage.RELAY
            await self.stage("squeezed", there)


class Call(NamedTuple):
    """One call that a caller has made: what came of it, and when it was begun on the loop's clock."""

    door: str
    token: str
    outcome: str
    began: float
    said: str


class Work:
    """Callers who call at every door, one call after the other, and note what came of each."""

    def __init__(self, callers: Callers, bus: Bus) -> None:
        self._callers = callers
        self._bus = bus
        self._stopping = False
        self.calls: list[Call] = []
        self.doors: dict[str, Callable[[str], Awaitable[tuple[str, str]]]] = {
            "http": self._http,
            "framed": self._framed,
            "tree": self._tree,
            "bus": self._on_bus,
        }

    async def once(self, door: str) -> Call:
        """One call at a door."""
        token, began = f"{door}{next(_tokens)}", asyncio.get_running_loop().time()
        async with asyncio.timeout(PATIENCE):
            outcome, said = await self.doors[door](token)
        call = Call(door, token, outcome, began, said)
        self.calls.append(call)
        return call

    async def go_on(self, door: str) -> None:
        """Calls until `stop`; a breath between two calls, or the tree would never be quiet."""
        while not self._stopping:
            await self.once(door)
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        self._stopping = True

    async def all_called_again(self) -> None:
        """Waits until at every door a call has come to its end that began after now."""
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout(PATIENCE):
            while {call.door for call in self.calls if call.began > now} < self.doors.keys():  # noqa: ASYNC110 - others append
                await asyncio.sleep(0.01)

    async def _http(self, token: str) -> tuple[str, str]:
        body = xmlrpc.client.dumps(("d", token, "1"), "reserve_memory").encode()
        sent = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        return await self._at_socket("memory", sent)

    async def _framed(self, token: str) -> tuple[str, str]:
        body = json.dumps({"method": "reserve_memory", "params": ["d", token, "1"], "id": 7}).encode()
        return await self._at_socket("json", b"%016d%s" % (len(body), body))

    async def _at_socket(self, name: str, sent: bytes) -> tuple[str, str]:
        try:
            reply = await self._callers.raw(self._callers.host.path(name), sent)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            return REFUSED, repr(error)
        return (_meaning(reply.decode()), reply.decode()) if reply else (CUT, "")

    async def _tree(self, token: str) -> tuple[str, str]:
        results = await self._callers.ask_store("reserve-memory", {"session_id": token.encode(), "kib": b"1"})
        if "reservation_id" in results:
            return ANSWERED, ""
        return _meaning(results["description"].decode()), str(results)

    async def _on_bus(self, token: str) -> tuple[str, str]:
        try:
            await self._bus.call(*MEMORY, "ReserveMemory", "ssx", ("d", token, 1), timeout=PATIENCE)
        except BusRefused as error:
            if error.name.endswith(NOBODY_THERE):
                return REFUSED, str(error)
            return (CUT if error.name.endswith("NoReply") else _meaning(error.name)), str(error)
        return ANSWERED, ""


def _meaning(said: str) -> str:
    """What an answer in a door's own words says of the call."""
    if "InDoubt" in said:
        return IN_DOUBT
    if any(word in said for word in ("Unavailable", "Busy", "Retired")):
        return REFUSED
    return ANSWERED if any(word in said for word in ("Success", '"error":null', '"error": null')) else f"what? {said}"


@asynccontextmanager
async def one_service(bus_daemon: BusDaemon, stub: Path) -> AsyncIterator[tuple[OneService, Callers, Bus]]:
    """A host in `off` with squeezed on either side, its callers, and a connection for one on the bus."""
    async with running_store("oxenstored", lambda: stub) as store:
        host = OneService(bus_daemon, store)
        callers = Callers(host)
        try:
            await host.start_legacy("squeezed")
            await host.start_bridge()
            await host.start_bus_squeezed(*host.slow)
            await callers.connect_store()
            bus = await Bus.connect(bus_daemon.address)
            try:
                yield host, callers, bus
            finally:
                await bus.close()
        finally:
            await callers.close()
            await host.stop()


async def until_killed(host: OneService) -> float:
    """Waits until the bridge has killed itself; when that was, on the loop's clock."""
    async with asyncio.timeout(PATIENCE):
        while host.is_alive("bridge"):  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.01)
    died = asyncio.get_running_loop().time()
    assert await host.end("bridge") == -signal.SIGKILL
    return died


def check_calls(host: OneService, calls: list[Call], died: float) -> None:
    """Every call was executed at most once, and its caller was told the truth."""
    executed = {token: count for (_, token), count in host.executions().items()}
    for call in calls:
        times = executed.get(call.token, 0)
        match call.outcome:
            case "answered":
                assert times == 1, call
            case "refused":
                assert times == 0, call
            case "in doubt":
                assert times <= 1, call
            case "cut":  # what the killed bridge had in its hands
                assert times <= 1, call
                assert call.began <= died, call
            case _:
                pytest.fail(str(call))


async def check_doors(host: OneService, work: Work, stage: Stage) -> None:
    """Every door does what the stage says, and the authority alone executes."""
    meaning, before = MEANINGS[stage], host.sides()
    expected = {"http": ANSWERED, "framed": ANSWERED, "tree": ANSWERED, "bus": ANSWERED}
    if stage is Stage.COMPLETE:
        expected |= {"http": REFUSED, "framed": REFUSED, "tree": REFUSED}
    if stage is Stage.OFF:
        expected["bus"] = REFUSED
    async with asyncio.timeout(PATIENCE):
        for door, outcome in expected.items():
            while (call := await work.once(door)).outcome != outcome:
                assert call.outcome == REFUSED, call
    executed = host.sides() - before
    assert set(executed) == {str(meaning.authority)}, executed


async def check_other_side(host: OneService, bus: Bus, stage: Stage) -> None:
    """The side that is not the authority refuses writes, or is not there."""
    pid = host.legacy_pid("squeezed")
    if MEANINGS[stage].authority is Side.BUS:
        assert not is_alive(pid)
        return
    with pytest.raises(BusRefused, match="not in charge"):
        await bus.call(CANDIDATE, *MEMORY[1:], "ReserveMemory", "ssx", ("d", "wrong-side", 1), timeout=PATIENCE)
    assert host.executions()["reserve_memory", "wrong-side"] == 0
    assert not is_frozen(pid)


def is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
