"""The state cannot be read or written: the last committed stage stays, the reason is said, and calls go on."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from bridges.cutover import Stage
from bridges.state import VERSION
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.exported import ObjectTree
from dbus_side.introspection import Method
from tests.live.conftest import Callers
from tests.live.killing import ANSWERED, CANDIDATE1, MEMORY1, OneService, Work, check_doors

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("one_line")]

IN_ITS_OWN_MOUNTS = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
LATER = "2099-01-01T00:00:00.000+00:00"


def database(host: OneService, statement: str) -> None:
    """Changes the state of a bridge that does not run."""
    file = sqlite3.connect(host.path("state") / "state.sqlite", isolation_level=None)
    file.execute(statement)
    file.close()


async def does_not_start(host: OneService) -> str:
    """Why."""
    code, _, errors = await host.cli("run")
    assert code == 1
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize("stage", [Stage.RELAY, Stage.LIVE])
@pytest.mark.parametrize("how", ["missing", "empty", "damaged"])
async def test_a_file_that_cannot_be_read(one: tuple[OneService, Callers, Bus], stage: Stage, how: str) -> None:
    """The stages are those of the copy, calls go on, and nothing is moved until somebody has looked."""
    host, callers, bus = one
    await host.bring_to(stage)
    epoch = (await host.standing())["epoch"]
    await host.end("bridge", signal.SIGKILL)
    file = host.path("state") / "state.sqlite"
    for name in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
        name.unlink(missing_ok=True)
    if how != "missing":
        file.write_bytes(b"" if how == "empty" else b"no database" * 1000)
    await host.start_bridge()
    await host.until_alarms()
    standing = await host.standing()
    assert (standing["stage"], standing["epoch"]) == (stage, epoch)
    assert "the stages are those of stages.json; acknowledge it when they are right" in standing["frozen"]
    assert ("is damaged" if how == "damaged" else "was missing or empty") in standing["frozen"]
    assert len(list(host.path("state").glob("state.damaged-*.sqlite"))) == (how == "damaged")
    await check_doors(host, Work(callers, bus), stage)
    code, _, errors = await host.cli("stage", "squeezed", "off", "--reason", "test")
    assert code == 1
    assert "squeezed is frozen: " in errors
    assert "xcp-bridge acknowledge squeezed, or kill" in errors
    assert (await host.cli("acknowledge", "squeezed", "--reason", "looked"))[0] == 0
    await host.bring_to(Stage.OFF)
    assert (await host.standing())["epoch"] == epoch + (1 if stage is Stage.RELAY else 2)


async def test_nothing_is_left(one: tuple[OneService, Callers, Bus]) -> None:
    """Without the copy too it is a first start: off, and the doors that the bridge before held are the daemon's."""
    host, callers, bus = one
    await host.bring_to(Stage.RELAY)
    await host.end("bridge", signal.SIGKILL)
    shutil.rmtree(host.path("state"))
    await host.start_bridge()
    standing = await host.standing()
    assert (standing["stage"], standing["epoch"], standing["frozen"]) == ("off", 0, None)
    await check_doors(host, Work(callers, bus), Stage.OFF)


async def test_a_start_that_is_refused(one: tuple[OneService, Callers, Bus]) -> None:
    """Newer, damaged without a copy, a directory that cannot be: each is said; the daemon behind the doors goes on."""
    host, callers, bus = one
    await host.bring_to(Stage.RELAY)
    await host.end("bridge")
    file = host.path("state") / "state.sqlite"
    database(host, "PRAGMA user_version=99")
    before = file.read_bytes()
    assert f"written by a newer version (99, known is {VERSION}): use that one" in await does_not_start(host)
    assert file.read_bytes() == before
    database(host, f"PRAGMA user_version={VERSION}")
    await host.start_bridge()
    await check_doors(host, Work(callers, bus), Stage.RELAY)
    await host.end("bridge")
    file.write_bytes(b"no database" * 1000)
    copy = (host.path("state") / "stages.json").read_text()
    (host.path("state") / "stages.json").unlink()
    assert "and there is no stages.json beside it: move it away to begin anew" in await does_not_start(host)
    (host.path("state") / "stages.json").write_text("[]")
    assert "stages.json cannot be read" in await does_not_start(host)
    text = host.settings.read_text()
    host.settings.write_text(text.replace(f"{host.directory}/state", "/proc/nosuch"))
    assert "/proc/nosuch: No such file or directory: check the directory's owner and space" in await does_not_start(
        host
    )
    host.settings.write_text(text)
    for door in ("http", "framed", "tree"):
        assert (await Work(callers, bus).once(door)).outcome == ANSWERED
    file.unlink()
    (host.path("state") / "stages.json").write_text(copy)
    await host.start_bridge()
    await check_doors(host, Work(callers, bus), Stage.RELAY)


async def bridge_with(host: OneService, mount: str) -> None:
    """Starts the bridge with another file system at its state directory, which it alone sees."""
    trial = await asyncio.create_subprocess_exec(*IN_ITS_OWN_MOUNTS, "mount -t tmpfs none /mnt")
    if await trial.wait():
        pytest.skip("this machine lets nobody mount a small file system of his own")
    ready = host.log("bridge").count(" ready: ")
    command = f'{mount} && exec "$0" -m bridges run --settings "$1"'
    await host._spawn("bridge", [*IN_ITS_OWN_MOUNTS, command, sys.executable, str(host.settings)])
    await host.until(lambda: host.log("bridge").count(" ready: ") > ready or not host.is_alive("bridge"))


async def test_a_directory_that_cannot_be_written(one: tuple[OneService, Callers, Bus]) -> None:
    """Read-only at the start: it is refused."""
    host, _, _ = one
    await host.end("bridge")
    state = host.path("state")
    await bridge_with(host, f"mount --bind {state} {state} && mount -o remount,bind,ro {state}")
    await host.until(lambda: not host.is_alive("bridge"))
    assert await host.end("bridge") == 1
    assert f"{state}/state.sqlite: disk I/O error: check the directory's owner and space" in host.log("bridge")
    assert "Traceback" not in host.log("bridge")
    await host.start_bridge()


async def check_refused(host: OneService, stage: Stage, answer: dict[str, object]) -> None:
    """The move was not made, and the sentence says what stays, why, and what to do."""
    assert not answer["ok"], answer
    assert f"squeezed stays {stage}: {host.path('state')}/state.sqlite cannot be written: " in str(answer["error"])
    assert "free space there, or correct its owner, then again" in str(answer["error"])
    assert (await host.standing())["stage"] == stage


async def said_of_hold(host: OneService) -> str:
    """What the rule says that holds calls while a service is moved."""
    answer: Any = await host.control(verb="explain", service="squeezed", method="get_diagnostics", door="http")
    return str(answer["rules"][0]["text"])


async def test_no_more_can_be_written(one: tuple[OneService, Callers, Bus]) -> None:
    """No file of the bridge may grow: a move is refused, whether it is not begun or was on its way; reads go on."""
    host, callers, bus = one
    host.slow = ("--slow-ms", "1000")
    host.legacy = host.legacy_commands()
    await host.end_legacy("squeezed")
    await host.start_legacy("squeezed")
    await host.bring_to(Stage.RELAY)
    pid, daemon = host.pid("bridge"), host.legacy_pid("squeezed")
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    work = Work(callers, bus)

    def limit() -> None:
        size = (host.path("state") / "state.sqlite-wal").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))

    limit()
    await check_refused(host, Stage.RELAY, await host.ask_stage("squeezed", "live"))
    assert (await callers.rpc("memory", "get_host_reserved_memory", "d"))["Status"] == "Success"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    drained = asyncio.create_task(work.once("http"))
    await host.until(lambda: host.executions().total() == 2)
    move = asyncio.create_task(host.ask_stage("squeezed", "live"))
    async with asyncio.timeout(30):
        while "the call waits" not in await said_of_hold(host):  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.01)
    limit()
    held = asyncio.create_task(callers.rpc("memory", "get_host_reserved_memory", "d"))
    await check_refused(host, Stage.RELAY, await move)
    assert (await drained).outcome == ANSWERED
    assert (await held)["Status"] == "Success"
    assert host.legacy_pid("squeezed") == daemon
    assert host.is_alive("bridge")
    await host.until_alarms("STATE")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    await host.stage("squeezed", "live")
    await host.until_alarms()
    await check_doors(host, work, Stage.LIVE)


class Filler:
    """A candidate that takes Assume as it should, and fills the bridge's disk."""

    def __init__(self, bus: Bus, directory: Path) -> None:
        self._bus = bus
        self._file = directory / "filler"
        self.heard: list[str] = []

    async def serve(self) -> None:
        objects = ObjectTree()
        objects.add("/org/xen/xcp/squeezed", CANDIDATE1, self._answer, {"Epoch": lambda: 0})
        objects.add("/org/xen/xcp/squeezed/Memory", MEMORY1, self._answer)
        self._bus.serve(objects.answer)
        await self._bus.request_name(names.candidate_name("squeezed"))

    async def _answer(self, _call: object, method: Method) -> tuple[Any, ...]:
        self.heard.append(method.name)
        name = names.service_name("squeezed")
        if method.name == "Assume":
            await self._bus.request_name(name, allow_replacement=True, queue=True)
            self.fill()
        elif method.name == "Yield":
            await self._bus.release_name(name)
        return ()

    def fill(self) -> None:
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(file, bytes(512))
        except OSError:
            pass
        finally:
            os.close(file)

    def empty(self) -> None:
        self._file.unlink()


async def test_a_disk_that_fills_up_behind_the_fence(one: tuple[OneService, Callers, Bus]) -> None:
    """relay to live cannot be committed: the candidate yields, the legacy daemon is brought back, calls go on."""
    host, callers, _ = one
    await host.end("bus")
    await host.end("bridge")
    await bridge_with(host, f"mount -t tmpfs -o size=3m none {host.path('state')}")
    await host.bring_to(Stage.RELAY)
    before = host.legacy_pid("squeezed")
    bus = await Bus.connect(host.bus.address)
    caller = await Bus.connect(host.bus.address)
    try:
        filler = Filler(bus, Path(f"/proc/{host.pid('bridge')}/root{host.path('state')}"))
        await filler.serve()
        await host.until_candidate()
        answer = await host.ask_stage("squeezed", "live")
        await check_refused(host, Stage.RELAY, answer)
        assert filler.heard == ["Assume", "Yield"]
        assert host.legacy_pid("squeezed") != before
        assert (await callers.rpc("memory", "get_host_reserved_memory", "d"))["Status"] == "Success"
        answer = await host.ask_stage("squeezed", "live")
        assert not answer["ok"]
        filler.empty()
        await host.until_alarms()
        await check_doors(host, Work(callers, caller), Stage.RELAY)
        await host.end("bridge", signal.SIGKILL)
    finally:
        await bus.close()
        await caller.close()


async def test_the_clock_is_set_back(one: tuple[OneService, Callers, Bus]) -> None:
    """What was recorded comes from the future: moves and calls go on, the audit keeps its order, no door is unused."""
    host, callers, bus = one
    await host.bring_to(Stage.LIVE)
    await host.end("bridge")
    database(
        host,
        "INSERT INTO audit (time, service, verb, origin, target, epoch, who, reason, outcome) "
        f"VALUES ('{LATER}', 'squeezed', 'stage', 'off', 'relay', 1, 'uid 0', 'from the future', 'done')",
    )
    database(host, f"UPDATE service SET changed = '{LATER}'")
    records = sqlite3.connect(host.path("state") / "records.sqlite", isolation_level=None)
    records.execute("""UPDATE evidence SET data = json_set(data, '$.ours_since.http', ?)""", (LATER,))
    records.close()
    await host.start_bridge()
    await host.until_alarms()
    work = Work(callers, bus)
    standing = await host.standing()
    assert standing["unused"]["http"] < 0
    answer = await host.ask_stage("squeezed", "complete", override=None)
    assert "http unused (no data)" in str(answer["error"])
    await check_doors(host, work, Stage.LIVE)
    await host.bring_to(Stage.RELAY)
    await check_doors(host, work, Stage.RELAY)
    audit: Any = (await host.control(verb="audit", service="squeezed"))["entries"]
    assert [line["reason"] for line in audit][-3:] == ["from the future", "test", "test"]
    assert [line["id"] for line in audit] == sorted(line["id"] for line in audit)
    assert (await host.standing())["epoch"] == 3
