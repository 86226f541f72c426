"""Tasks and positions of xenopsd, reservations of squeezed: what their holders meet when the process behind changes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import xmlrpc.client
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusError
from dbus_side.signatures import Variant
from tests.fixtures_host import Host, running_host
from tests.fixtures_toolstack import Toolstack

if TYPE_CHECKING:
    from tests.fixtures_dbus import BusDaemon

SERVICES = """
[services.xenopsd]
http = {{ socket = "{directory}/xenopsd", legacy = "{directory}/xenopsd.legacy" }}
"""
VM: dict[str, Any] = {
    **{name: {} for name in ("xsdata", "platformdata", "bios_strings")},
    **{name: ["Start"] for name in ("on_crash", "on_shutdown", "on_reboot")},
    **dict.fromkeys(("memory_static_max", "memory_dynamic_max", "memory_dynamic_min"), str(1 << 30)),
    **dict.fromkeys(("suppress_spurious_page_faults", "pci_msitranslate", "pci_power_mgmt"), False),
    "ssidref": "0",
    "vcpu_max": "1",
    "vcpus": "1",
    "scheduler_params": {"affinity": []},
    "ty": ["HVM", {}],
}
ALIAS = re.compile("9([0-9]{6})([0-9]{11})")
PATIENCE = 40

pytestmark = pytest.mark.timeout(180)


class Hypervisor(Toolstack):
    """A host with xenopsd, and one for the bus to have behind it."""

    def legacy_commands(self) -> dict[str, list[str]]:
        script, d = "../tests/live/xenopsd_with_cancel.py", self.directory
        behind = self.example("behind", script, "--socket", f"{d}/behind")
        where = behind.index("--executions")  # what is behind counts nothing: the candidate did
        return {
            "xenopsd": self.example("xenopsd", script, "--socket", f"{d}/xenopsd"),
            "behind": [*behind[:where], *behind[where + 2 :]],
        }

    def write_settings(self, **_more: str) -> None:
        self.settle(SERVICES)

    def settle(self, services: str, **more: object) -> None:
        behind = self.legacy.pop("behind")  # the bridge knows nothing of it
        super().settle(services, **more)
        self.legacy["behind"] = behind

    async def start_relay(self) -> None:
        """A legacy xenopsd, and the bridge in front of it."""
        await self.start_legacy("xenopsd")
        await self.start_bridge()
        await self.stage("xenopsd", "relay")

    async def go_live(self) -> None:
        """xenopsd moves to a candidate, whose tasks are counted by a daemon of its own."""
        await self.start_legacy("behind")
        await self.start_candidate("xenopsd", "--socket", f"{self.directory}/behind")
        await self.until_candidate("xenopsd")
        await self.stage("xenopsd", "live")

    async def ask(self, method: str, where: str = "xenopsd", **arguments: Any) -> Any:
        """A call at a socket, at the door's unless told otherwise: the value, or the failure's description."""
        body = xmlrpc.client.dumps(({"debug_info": "d", **arguments},), method, allow_none=True).encode()
        envelope = await self.post(body, where)
        return envelope.get("Value") if envelope["Status"] == "Success" else envelope["ErrorDescription"]

    async def post(self, body: bytes, where: str = "xenopsd") -> Any:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(str(self.path(where)))
            try:
                writer.write(b"POST / HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                reply = await reader.read()
            finally:
                writer.close()
        (envelope,), _ = xmlrpc.client.loads(reply.partition(b"\r\n\r\n")[2])
        return envelope

    async def begin(self, name: str, where: str = "xenopsd") -> str:
        """A task: a VM of that name is started."""
        assert await self.ask("VM.add", where, vm={**VM, "id": name}) == name
        task: str = await self.ask("VM.start", where, id=name, paused=False)
        async with asyncio.timeout(PATIENCE):
            while (await self.ask("Task.stat", where, id=task))["state"][0] == "Pending":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return task

    async def listed(self) -> list[dict[str, Any]]:
        """`xcp-bridge handles xenopsd`."""
        status, output, errors = await self.cli("handles", "xenopsd", "--json")
        assert status == 0, errors
        rows: list[dict[str, Any]] = json.loads(output)["handles"]
        return rows


@pytest.fixture
async def host(bus_daemon: BusDaemon, request: pytest.FixtureRequest) -> AsyncIterator[Hypervisor]:
    """A host on the real oxenstored; nothing of ours runs yet."""
    async with running_host(Hypervisor, bus_daemon, request) as host:
        yield host


def native_of(alias: str) -> tuple[int, str]:
    """Home and native of a task as callers know it; it must read as a number does in every language."""
    found = ALIAS.fullmatch(alias)
    assert found, alias
    assert str(int(alias)) == alias
    assert int(alias) < 2**62  # OCaml's int
    return int(found[1]), str(int(found[2]))


TASKS = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/Task", "org.xen.xcp.xenopsd.Task1")
VMS = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/VM", "org.xen.xcp.xenopsd.VM1")
UPDATES = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/UPDATES", "org.xen.xcp.xenopsd.UPDATES1")


async def assert_unknown(host: Hypervisor, bus: Bus, task: str) -> None:
    """Nobody has such a task, at either door and whatever is asked of it."""
    for method in ("Task.stat", "Task.cancel", "Task.destroy"):
        assert await host.ask(method, id=task) == ["Does_not_exist", ["task", task]], method
        with pytest.raises(BusError, match="Does_not_exist"):
            await bus.call(*TASKS, method.removeprefix("Task.").title(), "ss", ("d", task), timeout=PATIENCE)


@pytest.fixture
async def bus(host: Hypervisor) -> AsyncIterator[Bus]:
    """A caller on the host's bus."""
    connection = await Bus.connect(host.bus.address)
    yield connection
    await connection.close()


async def test_a_task_by_its_alias(host: Hypervisor, bus: Bus) -> None:
    """Callers of both doors know it by the same one, in every answer that speaks of it, and can do all with it."""
    await host.start_relay()
    task = await host.begin("one")
    assert native_of(task) == (1, "1")
    record = await host.ask("Task.stat", id=task)
    assert record["id"] == task
    assert record == {**await host.ask("Task.stat", "xenopsd.legacy", id="1"), "id": task}
    assert [each["id"] for each in await host.ask("Task.list")] == [task]
    _, changed, cursor = await host.ask("UPDATES.get", timeout="1")
    assert ["Task", task] in changed
    assert int(cursor) >> 40 == 1
    assert int(await host.ask("UPDATES.last_id")) == int(cursor)
    (on_bus,) = (await bus.call(*TASKS, "Stat", "ss", ("d", task), timeout=PATIENCE)).body
    assert on_bus["id"].value == task
    options = {"timeout": Variant("x", 1)}
    _, changed, after = (await bus.call(*UPDATES, "Get", "sa{sv}", ("d", options), timeout=PATIENCE)).body
    assert ["Task", task] in [[tag, name.value] for tag, name in changed]
    assert after == int(cursor)
    (other,) = (await bus.call(*VMS, "Pause", "ss", ("d", "one"), timeout=PATIENCE)).body
    assert native_of(other) == (1, "2")
    _, changed, _ = await host.ask("UPDATES.get", last_id=cursor, timeout="5")
    assert ["Task", other] in changed
    assert ["Task", task] not in changed
    assert await host.ask("Task.cancel", id=other) is None
    assert (await host.ask("Task.stat", id=other))["state"][0] == "Failed"
    assert [(row["handle"], row["native"], row["home"], row["state"]) for row in await host.listed()] == [
        (task, "1", 1, "live"),
        (other, "2", 1, "live"),
    ]
    assert await host.ask("Task.destroy", id=task) is None
    assert (await bus.call(*TASKS, "Destroy", "ss", ("d", other), timeout=PATIENCE)).body == ()
    assert await host.listed() == []
    for method in ("Task.stat", "Task.cancel", "Task.destroy"):
        assert (await host.ask(method, id=task))[0] == "Does_not_exist"


async def test_a_call_that_is_spelt_unusually(host: Hypervisor) -> None:
    """No look at its beginning says which method it calls; its task is exchanged all the same."""
    await host.start_relay()
    task = await host.begin("one")
    for method, named in (("Task.stat", {"id": task}), ("VM.pause", {"id": "one"})):
        body = xmlrpc.client.dumps(({"debug_info": "d", **named},), method).encode()
        envelope = await host.post(body.replace(b"?>", b"?><!-- a comment -->", 1))
        assert envelope["Status"] == "Success", envelope
        value = envelope["Value"]
        assert native_of(value if isinstance(value, str) else value["id"])[0] == 1


async def test_a_task_of_before_the_bridge(host: Hypervisor, bus: Bus) -> None:
    """Its holder goes on with the native while that daemon rules; afterwards nobody takes it for one of his own."""
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    assert await host.begin("one") == "1"
    _, _, cursor = await host.ask("UPDATES.get", timeout="1")
    await host.stage("xenopsd", "relay")
    assert (await host.ask("Task.stat", id="1"))["id"] == "900000100000000001"
    _, changed, _ = await host.ask("UPDATES.get", last_id=cursor, timeout="0")
    assert changed == []
    await host.go_live()
    assert native_of(await host.begin("two")) == (2, "1")
    assert await host.ask("Task.stat", id="1") == ["Does_not_exist", ["task", "800000000000000001"]]
    await host.stage("xenopsd", "relay")
    assert native_of(await host.begin("three")) == (3, "1")
    assert await host.ask("Task.stat", id="1") == ["Does_not_exist", ["task", "800000000000000001"]]
    with pytest.raises(BusError, match="Does_not_exist"):
        await bus.call(*TASKS, "Stat", "ss", ("d", "1"), timeout=PATIENCE)


async def test_tasks_and_positions_over_a_move(host: Hypervisor, bus: Bus) -> None:
    """The next process counts from the beginning: what the last one gave out is nobody's, positions begin anew."""
    await host.start_relay()
    first = await host.begin("one")
    _, _, cursor = await host.ask("UPDATES.get", timeout="1")
    for _ in range(20):  # the position is then one that the next daemon will not come to
        assert native_of(await host.ask("VM.pause", id="one"))
        assert native_of(await host.ask("VM.unpause", id="one"))
    _, _, cursor = await host.ask("UPDATES.get", last_id=cursor, timeout="1")
    await host.go_live()
    # A bus caller asks the bus daemon itself, which has never heard of an alias either.
    await assert_unknown(host, bus, first)
    second = await host.begin("two")
    assert native_of(second) == (2, "1")
    await assert_unknown(host, bus, first)
    _, changed, after = await host.ask("UPDATES.get", last_id=cursor, timeout="5")
    assert {("Vm", "two"), ("Task", second)} <= {(kind, name) for kind, name in changed}
    assert int(after) >> 40 == 2
    assert (await host.ask("Task.stat", "behind", id="1"))["id"] == "1"
    await host.stage("xenopsd", "relay")
    third = await host.begin("three")
    assert native_of(third) == (3, "1")
    for gone in (first, second):
        await assert_unknown(host, bus, gone)
    assert (await host.ask("Task.stat", id=third))["id"] == third
    for position in (cursor, after):
        _, changed, _ = await host.ask("UPDATES.get", last_id=position, timeout="5")
        assert ["Task", third] in changed
    rows = {row["handle"]: (row["home"], row["side"], row["state"]) for row in await host.listed()}
    assert (rows[first], rows[second]) == ((1, "legacy", "fenced"), (2, "bus", "fenced"))
    assert rows[third] == (3, "legacy", "live")
    _, table, _ = await host.cli("handles", "xenopsd")
    assert third in table


async def test_a_daemon_that_was_restarted_behind_us(host: Hypervisor, bus: Bus) -> None:
    """Once it is noticed, tasks and positions of the process before it are nobody's."""
    await host.start_relay()
    task = await host.begin("one")
    _, _, cursor = await host.ask("UPDATES.get", timeout="1")
    await host.end_legacy("xenopsd")
    await host.start_legacy("xenopsd")
    async with asyncio.timeout(PATIENCE):
        while [row["state"] for row in await host.listed()][:1] != ["fenced"]:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    assert native_of(await host.begin("two")) == (2, "1")
    await assert_unknown(host, bus, task)
    _, changed, _ = await host.ask("UPDATES.get", last_id=cursor, timeout="5")
    assert ["Vm", "two"] in changed


async def test_an_alias_outlives_the_bridge(host: Hypervisor, bus: Bus) -> None:
    """It is durable before the reply leaves: a bridge that is killed at that moment knows it when it is back."""
    await host.start_relay()
    for number in range(1, 4):
        task = await host.begin(f"vm{number}")
        await host.end("bridge", signal.SIGKILL)
        await host.start_bridge()
        assert native_of(task) == (1, str(number))
        assert (await host.ask("Task.stat", id=task))["id"] == task
    assert [row["native"] for row in await host.listed()] == ["1", "2", "3"]


MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")


@pytest.fixture
async def memory(bus_daemon: BusDaemon, request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """A host with squeezed in relay, and a squeezed on the bus that could take over."""
    async with running_host(Host, bus_daemon, request) as host:
        host.write_settings(reach="http")  # the tree has no way to ask for a domain's reservation
        for name in ("squeezed", "xenopsd"):
            await host.start_legacy(name)
        await host.start_bridge()
        await host.stage("squeezed", "relay")
        await host.start_bus_squeezed()
        await host.until_candidate()
        yield host


async def test_reservations_over_moves(memory: Host) -> None:
    """They are in the store and keep their ids: what one side reserved the other one transfers and deletes."""
    bus = await Bus.connect(memory.bus.address)

    async def ask(member: str, signature: str, *arguments: Any) -> Any:
        body = (await bus.call(*MEMORY, member, signature, ("d", *arguments), timeout=PATIENCE)).body
        return body[0] if body else None

    async def kept() -> set[tuple[str, str]]:
        status, output, errors = await memory.cli("handles", "squeezed", "--json")
        assert status == 0, errors
        return {(row["id"], row["kib"]) for row in json.loads(output)["reservations"]}

    try:
        one, two, three = [await ask("ReserveMemory", "ssx", "s", kib) for kib in (1000, 2000, 3000)]
        before = {(one, "1000"), (two, "2000"), (three, "3000")}
        assert await kept() == before
        await memory.stage("squeezed", "live")
        assert await kept() == before
        assert "squeezed: 3 reservations adopted" in memory.log("bridge")
        await ask("TransferReservationToDomain", "sssx", "s", one, 7)
        await ask("DeleteReservation", "sss", "s", two)
        assert await ask("QueryReservationOfDomain", "ssx", "s", 7) == one
        four = await ask("ReserveMemory", "ssx", "s", 4000)
        before = await kept()
        assert {(three, "3000"), (four, "4000")} <= before
        assert two not in {name for name, _ in before}
        await memory.stage("squeezed", "relay")
        assert await kept() == before
        assert await ask("QueryReservationOfDomain", "ssx", "s", 7) == one
        await ask("TransferReservationToDomain", "sssx", "s", four, 8)
        assert await ask("QueryReservationOfDomain", "ssx", "s", 8) == four
        await ask("DeleteReservation", "sss", "s", three)
        assert three not in {name for name, _ in await kept()}
    finally:
        await bus.close()
