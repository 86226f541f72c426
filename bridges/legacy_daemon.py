"""The legacy daemon of a service: is it there, prove that it ended, start it again."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from typing import Final

from bridges.processes import Process, ProcessError, is_alive
from bridges.settings import LegacyCommands, LegacyUnit

LOG: Final = logging.getLogger("bridges.legacy_daemon")

COMMAND_SECONDS: Final = 30.0


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
        """The running daemon. Raises ProcessError when it does not run."""
        pid = await self.pid()
        if pid is None:
            raise ProcessError(f"the legacy daemon of {self._service} is not running")
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

    async def stop(self, process: Process) -> None:
        """Stops the daemon its own way, and proves that the process ended. Raises ProcessError."""
        match self._settings:
            case LegacyCommands(stop=stop):
                await _run(stop)
            case LegacyUnit(unit):
                await _run(("systemctl", "stop", unit))
            case None:
                raise ProcessError(f"services.{self._service}.legacy is not set: the legacy daemon cannot be stopped")
        if not await process.wait_end(10):
            raise ProcessError(f"the legacy daemon (pid {process.pid}) still runs 10 s after its stop command")

    async def start(self) -> Process:
        """Starts the daemon; it must not clear the service's tree. Raises ProcessError."""
        match self._settings:
            case LegacyCommands(start=start):
                await _run(start)
            case LegacyUnit(unit):
                await self.allow()
                await _run(("systemctl", "start", unit))
            case None:
                raise ProcessError(f"services.{self._service}.legacy is not set: the legacy daemon cannot be started")
        return await self.process()


async def _run(command: tuple[str, ...]) -> str:
    """Runs a command of the settings to its end. Raises ProcessError with its last words."""
    # A file, not a pipe: the daemon that a start command leaves behind keeps its output open.
    with tempfile.TemporaryFile() as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        except OSError as error:
            raise ProcessError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ProcessError(f"{' '.join(command)} did not end within {COMMAND_SECONDS:.0f} s") from None
        output.seek(0)
        text = output.read().decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise ProcessError(f"{' '.join(command)} ended with {process.returncode}: {text[-300:]}")
    return text
