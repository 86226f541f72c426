"""The legacy daemon of a service: is it there, freeze it, prove that it ended, start it again.

A pid can be used again by another process; a pidfd cannot. Everything that must not hit a stranger goes through one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import tempfile
from pathlib import Path
from typing import Final

from bridges.settings import LegacyCommands, LegacyUnit

LOG: Final = logging.getLogger("bridges.legacy_daemon")

COMMAND_SECONDS: Final = 30.0


class LegacyError(Exception):
    """The legacy daemon could not be brought to where it must be; the text says what is so and what was expected."""


class Process:
    """One running process, held by its pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise LegacyError(f"there is no process {pid}") from None
        except PermissionError:
            raise LegacyError(f"no permission for process {pid}") from None

    def close(self) -> None:
        os.close(self._pidfd)

    @property
    def has_ended(self) -> bool:
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; a process that has ended meanwhile is fine."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            LOG.info("process %d ended before %s reached it", self.pid, number.name)

    async def freeze(self) -> None:
        """SIGSTOP, and wait until every thread of it stands. Raises LegacyError when it ended instead."""
        self.send(signal.SIGSTOP)
        # The kernel tells nobody but a parent that a process has stopped: its state is looked at, at first without a
        # pause, since what callers send meanwhile looks unanswered to a take-over.
        for look in range(2000):
            if self.has_ended:
                raise LegacyError(f"the legacy daemon (pid {self.pid}) ended by itself")
            if self._is_stopped():
                return
            await asyncio.sleep(0 if look < 50 else 0.001)
        raise LegacyError(f"the legacy daemon (pid {self.pid}) did not stop within 2 s of SIGSTOP")

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    async def wait_end(self, timeout: float) -> bool:
        """True once the kernel says that the process has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(timeout):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True

    def _is_stopped(self) -> bool:
        try:
            threads = list(Path(f"/proc/{self.pid}/task").iterdir())
            return all(_state(thread / "stat") in "TtZX" for thread in threads)
        except OSError:
            return False


def is_alive(pid: int) -> bool:
    """Whether the process runs, frozen or not; one that ended and was not collected does not."""
    try:
        return _state(Path(f"/proc/{pid}/stat")) not in "ZX"
    except OSError:
        return False


def _state(stat: Path) -> str:
    # The name in parentheses may hold blanks and parentheses itself: the state follows the last one.
    return stat.read_text().rpartition(")")[2].split()[0]


class LegacyDaemon:
    """The daemon as its settings describe it; without settings it can be neither stopped nor started by us."""

    def __init__(self, service: str, settings: LegacyUnit | LegacyCommands | None) -> None:
        self._service = service
        self._settings = settings

    @property
    def is_movable(self) -> bool:
        return self._settings is not None

    async def pid(self) -> int | None:
        """The daemon's pid, or None when it is known not to run."""
        match self._settings:
            case LegacyCommands(pidfile=pidfile):
                try:
                    pid = int(pidfile.read_text())
                except (OSError, ValueError):
                    return None
            case LegacyUnit(unit):
                pid = int(await _run(("systemctl", "show", "--property=MainPID", "--value", unit)) or 0)
            case None:
                return None
        return pid if pid > 0 and is_alive(pid) else None

    async def process(self) -> Process:
        """The running daemon. Raises LegacyError when it does not run."""
        pid = await self.pid()
        if pid is None:
            raise LegacyError(f"the legacy daemon of {self._service} is not running")
        return Process(pid)

    async def thaw(self) -> int | None:
        """Lets a daemon run on that a killed bridge had frozen. Its pid, None when it does not run."""
        pid = await self.pid()
        if pid is None:
            return None
        process = Process(pid)
        try:
            process.thaw()
        finally:
            process.close()
        return pid

    async def forbid(self) -> None:
        """Masks the unit until the next boot, so that nobody starts the daemon beside the bus daemon."""
        if isinstance(self._settings, LegacyUnit):
            await _run(("systemctl", "mask", "--runtime", self._settings.unit))

    async def allow(self) -> None:
        if isinstance(self._settings, LegacyUnit):
            await _run(("systemctl", "unmask", "--runtime", self._settings.unit))

    async def kill(self, process: Process) -> None:
        """SIGKILL, proved by the pidfd."""
        process.send(signal.SIGKILL)
        if not await process.wait_end(10):
            raise LegacyError(f"the legacy daemon (pid {process.pid}) did not end within 10 s of SIGKILL")

    async def stop(self, process: Process) -> None:
        """Stops the daemon its own way, and proves that the process ended. Raises LegacyError."""
        match self._settings:
            case LegacyCommands(stop=stop):
                await _run(stop)
            case LegacyUnit(unit):
                await _run(("systemctl", "stop", unit))
            case None:
                raise LegacyError(f"services.{self._service}.legacy is not set: the legacy daemon cannot be stopped")
        if not await process.wait_end(10):
            raise LegacyError(f"the legacy daemon (pid {process.pid}) still runs 10 s after its stop command")

    async def start(self) -> Process:
        """Starts the daemon; it must not clear the service's tree. Raises LegacyError."""
        match self._settings:
            case LegacyCommands(start=start):
                await _run(start)
            case LegacyUnit(unit):
                await self.allow()
                await _run(("systemctl", "start", unit))
            case None:
                raise LegacyError(f"services.{self._service}.legacy is not set: the legacy daemon cannot be started")
        return await self.process()


async def _run(command: tuple[str, ...]) -> str:
    """Runs a command of the settings to its end. Raises LegacyError with its last words."""
    # A file, not a pipe: the daemon that a start command leaves behind keeps its output open.
    with tempfile.TemporaryFile() as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        except OSError as error:
            raise LegacyError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise LegacyError(f"{' '.join(command)} did not end within {COMMAND_SECONDS:.0f} s") from None
        output.seek(0)
        text = output.read().decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise LegacyError(f"{' '.join(command)} ended with {process.returncode}: {text[-300:]}")
    return text
