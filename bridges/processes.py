"""Processes that must not be mistaken: freeze one, end one, prove that it ended.

A pid can be used again by another process; a pidfd cannot. Everything that must not hit a stranger goes through one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
from functools import cache
from pathlib import Path
from typing import Final

LOG: Final = logging.getLogger("bridges.processes")

END_SECONDS: Final = 10.0


class ProcessError(Exception):
    """A process is not as it must be; the text says what is so and what was expected."""


class Process:
    """One running process, held by its pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise ProcessError(f"there is no process {pid}") from None
        except PermissionError:
            raise ProcessError(f"no permission for process {pid}") from None

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
        """SIGSTOP, and wait until every thread of it stands. Raises ProcessError when it ended instead."""
        self.send(signal.SIGSTOP)
        # The kernel tells nobody but a parent that a process has stopped: its state is looked at, at first without a
        # pause, since what callers send meanwhile looks unanswered to a take-over.
        for look in range(2000):
            if self.has_ended:
                raise ProcessError(f"process {self.pid} ended by itself")
            if self._is_stopped():
                return
            await asyncio.sleep(0 if look < 50 else 0.001)
        raise ProcessError(f"process {self.pid} did not stop within 2 s of SIGSTOP")

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

    async def end(self) -> None:
        """SIGKILL, proved by the pidfd. Raises ProcessError."""
        self.send(signal.SIGKILL)
        if not await self.wait_end(END_SECONDS):
            raise ProcessError(f"process {self.pid} did not end within {END_SECONDS:.0f} s of SIGKILL")

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


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def identity(pid: int) -> str | None:
    """`PID:START:BOOT`, which no other process ever has here; None when it does not run. START as in proc(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}:{_boot()}"


def find(known: str) -> Process | None:
    """The process of an `identity`; None is the proof that it has ended."""
    pid = int(known.partition(":")[0])
    try:
        process = Process(pid)
    except ProcessError:
        return None
    if identity(pid) != known:  # read after it is held: the number cannot have changed hands in between
        process.close()
        return None
    return process
