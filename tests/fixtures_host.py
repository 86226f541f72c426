"""A whole host for stories: real bus, real store, legacy daemons, the bridge as a process, a squeezed on the bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.fixtures_dbus import BusDaemon
from tests.fixtures_xenstored import StoreProcess, running_store

ROOT = Path(__file__).parents[1]
HEAD = """
[bus]
address = "{bus}"
[xenstore]
socket = "{store}"
[state]
directory = "{directory}/state"
[control]
socket = "{directory}/control"
"""
SERVICES = """
[services.squeezed]
xenstore = "squeezed"
http = {{ socket = "{directory}/memory", legacy = "{directory}/memory.legacy" }}
reach = "{reach}"
stale_at_start = "{stale}"
[services.xenopsd]
http = {{ socket = "{directory}/xenopsd", legacy = "{directory}/xenopsd.legacy" }}
"""
COMMANDS = """
[services.{name}.legacy]
start = {start}
stop = ["/bin/sh", "-c", "kill $(cat {directory}/{name}.pid)"]
pidfile = "{directory}/{name}.pid"
"""


# xcp-bridge for `python -c`. Whoever runs the tests in the background has SIGINT ignored, which a child would inherit.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from bridges.cli import main
main()
"""


class Host:
    """What runs on the host. Every process is ended by its pid when the test is over."""

    def __init__(self, bus: BusDaemon, store: StoreProcess) -> None:
        self.bus = bus
        self.store = store
        self.directory = bus.directory
        self.settings = self.directory / "bridge.toml"
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._legacy_pidfds: list[int] = []
        self.legacy = self.legacy_commands()
        self.write_settings()

    def legacy_commands(self) -> dict[str, list[str]]:
        """What starts each legacy daemon, by service."""
        squeezed = ["--xenstore", self.store.socket, "--http", f"{self.directory}/memory"]
        return {
            "squeezed": self.example("squeezed", "legacy_squeezed.py", *squeezed),
            "xenopsd": self.example("xenopsd", "legacy_xenopsd.py", "--socket", f"{self.directory}/xenopsd"),
        }

    def example(self, name: str, script: str, *arguments: str) -> list[str]:
        """The command that puts a daemon of the examples into the background."""
        directory = self.directory
        common = ["--executions", f"{directory}/executions", "--background", "--log", f"{directory}/legacy.log"]
        pidfile = ["--pidfile", f"{directory}/{name}.pid"]
        return [sys.executable, f"{ROOT}/examples/{script}", *arguments, *pidfile, *common]

    def write_settings(self, *, reach: str = "xenstore", stale: str = "refuse") -> None:
        """The bridge's settings; `reach` is how it reaches the legacy squeezed, `stale` its stale_at_start."""
        self.settle(SERVICES, reach=reach, stale=stale)

    def settle(self, services: str, **more: object) -> None:
        """Settings with these services, and the commands of the legacy daemons."""
        common = {"bus": self.bus.address, "store": self.store.socket, "directory": self.directory}
        text = (HEAD + services).format(**common, **more)
        for name, command in self.legacy.items():
            text += COMMANDS.format(name=name, start=json.dumps(command), directory=self.directory)
        self.settings.write_text(text)

    def path(self, name: str) -> Path:
        return self.directory / name

    async def start_legacy(self, name: str) -> None:
        """Starts a legacy daemon, beside the one that runs if there is one; returns when it serves."""
        self._remember_legacy(name)
        process = await asyncio.create_subprocess_exec(*self.legacy[name], stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0, self.path("legacy.log").read_text()

    def legacy_pid(self, name: str) -> int:
        return int(self.path(f"{name}.pid").read_text())

    async def end_legacy(self, name: str) -> None:
        """Kills a legacy daemon; returns when nobody can take its process for a living one any more."""
        pid = self.legacy_pid(name)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240 - init collects it, and tells nobody
                await asyncio.sleep(0.02)

    async def start_bridge(self) -> None:
        """Returns when every service has been brought to its stage."""
        ready = self.log("bridge").count(" ready: ")
        await self._spawn("bridge", [sys.executable, "-m", "bridges", "run", "--settings", str(self.settings)])
        await self.until(lambda: self.log("bridge").count(" ready: ") > ready, "bridge")

    async def start_bus_squeezed(self, *more: str) -> None:
        """Returns when the candidate's name has an owner."""
        arguments = ["--bus", self.bus.address, "--xenstore", self.store.socket]
        arguments += ["--executions", str(self.path("executions")), *more]
        ready = self.log("bus").count("is a candidate")
        await self._spawn("bus", [sys.executable, f"{ROOT}/examples/squeezed_on_bus.py", *arguments])
        await self.until(lambda: self.log("bus").count("is a candidate") > ready, "bus")

    async def until(self, condition: Callable[[], bool], name: str = "bridge") -> None:
        """Waits for a condition, as long as the process `name` lives; fails with that process's log."""
        try:
            async with asyncio.timeout(30):
                while not condition():
                    assert self.is_alive(name), self.log(name)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"waited in vain; the log of {name}:\n{self.log(name)}")

    def is_alive(self, name: str) -> bool:
        """Whether a process that we started still runs."""
        return self._processes[name].returncode is None

    def pid(self, name: str) -> int:
        """The pid of a process that we started."""
        return self._processes[name].pid

    async def alarms(self, service: str = "squeezed") -> dict[str, str]:
        """The service's alarms as the bridge reports them."""
        status = await self.control(verb="status")
        alarms: dict[str, str] = status["services"][service]["alarms"]  # type: ignore[index]
        return alarms

    async def until_alarms(self, *names: str, service: str = "squeezed") -> None:
        """Waits until exactly these alarms are raised."""
        async with asyncio.timeout(30):
            while set(await self.alarms(service)) != set(names):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.05)

    async def until_candidate(self, service: str = "squeezed") -> None:
        """Waits until the bridge has heard from the bus that the service has a candidate."""
        async with asyncio.timeout(30):
            while True:
                status = await self.control(verb="status")
                if status["services"][service]["candidate"] is not None:  # type: ignore[index]
                    return
                await asyncio.sleep(0.01)

    async def _spawn(self, name: str, command: list[str]) -> None:
        assert name not in self._processes or not self.is_alive(name), f"{name} runs already"
        with self.path(f"{name}.log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def log(self, name: str) -> str:
        """What a process has written so far, over all of its lives."""
        path = self.path(f"{name}.log")
        return path.read_text() if path.exists() else ""

    async def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends a process that we started and gives its exit status."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        async with asyncio.timeout(20):
            return await process.wait()

    async def cli(self, *arguments: str) -> tuple[int, str, str]:
        """`xcp-bridge ARGUMENTS`: exit status, standard output, standard error."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XCP_BRIDGE_SETTINGS": str(self.settings)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bridges", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
        )  # fmt: skip
        output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    async def control(self, **request: object) -> dict[str, object]:
        """One request on the control socket, as the command line makes it."""
        reader, writer = await asyncio.open_unix_connection(str(self.path("control")))
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer: dict[str, object] = json.loads(await reader.readline())
            return answer
        finally:
            writer.close()
            await writer.wait_closed()

    async def stage(self, service: str, stage: str) -> dict[str, object]:
        """Moves a service past what only compares and whatever its gates say; the answer must be yes."""
        answer = await self.ask_stage(service, stage)
        assert answer["ok"], (answer, self.log("bridge"))
        return answer

    async def ask_stage(self, service: str, stage: str, **more: object) -> dict[str, object]:
        """Asks for a move, as an operator does who has a reason for everything."""
        reasons = {"reason": "test", "skip": "test", "override": "test"}
        return await self.control(verb="stage", service=service, stage=stage, **{**reasons, **more})

    def executions(self) -> Counter[tuple[str, str]]:
        """(function, token) to the number of executions, on whichever side."""
        return Counter((function, token) for _, function, token in self._lines())

    def sides(self) -> Counter[str]:
        """legacy and bus to the number of executions there."""
        return Counter(side for side, _, _ in self._lines())

    def _lines(self) -> list[list[str]]:
        path = self.path("executions")
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    async def stop(self) -> None:
        for name in list(self._processes):
            await self.end(name, signal.SIGTERM if name == "bridge" else signal.SIGKILL)
        for name in self.legacy:
            self._remember_legacy(name)
        for pidfd in self._legacy_pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            while not await asyncio.to_thread(_has_ended, pidfd):
                pass
            os.close(pidfd)

    def _remember_legacy(self, name: str) -> None:
        """Holds on to the daemon that the pid file names, whoever started it: another will overwrite the file."""
        with contextlib.suppress(OSError, ValueError):
            self._legacy_pidfds.append(os.pidfd_open(self.legacy_pid(name)))


AnyHost = TypeVar("AnyHost", bound=Host)


def _has_ended(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 5)[0])


@contextlib.asynccontextmanager
async def running_host(
    kind: type[AnyHost], bus_daemon: BusDaemon, request: pytest.FixtureRequest
) -> AsyncIterator[AnyHost]:
    """A host on the real oxenstored; nothing of ours runs yet."""
    async with running_store("oxenstored", lambda: request.getfixturevalue("xenstored_stub")) as store:
        host = kind(bus_daemon, store)
        try:
            yield host
        finally:
            await host.stop()


@pytest.fixture
async def host(bus_daemon: BusDaemon, request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """A host on the real oxenstored; nothing of ours runs yet."""
    async with running_host(Host, bus_daemon, request) as host:
        yield host
