"""The parts of the demo as processes: started one after the other, ended in the reverse order, by their own ids."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_SECONDS = 20.0
STOP_SECONDS = 20.0


class PartFailed(Exception):
    """A part did not start, or ended: its name and what to read."""


class Parts:
    """Everything that was started, with a log for each in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pidfiles: list[Path] = []
        # Modules are found also when the packages are not installed; children need no terminal.
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self, name: str, command: list[str], is_ready: Callable[[], bool]) -> None:
        """Starts a process in the foreground of nobody and returns when it is ready. Raises PartFailed."""
        with self.log(name).open("wb") as log:
            try:
                self._processes[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
                )
            except OSError as error:
                raise PartFailed(f"{name}: {command[0]} cannot be run: {error.strerror}") from None
        patience = time.monotonic() + START_SECONDS
        while not is_ready():
            if self._processes[name].poll() is not None:
                raise PartFailed(f"{name} ended with {self._processes[name].returncode}\n{self.last_words(name)}")
            if time.monotonic() > patience:
                raise PartFailed(f"{name} was not ready within {START_SECONDS:.0f} s\n{self.last_words(name)}")
            time.sleep(0.02)

    def start_daemon(self, name: str, command: list[str], pidfile: Path) -> None:
        """Runs a start command that leaves a daemon behind. Raises PartFailed."""
        self._pidfiles.append(pidfile)
        code, output = self.run(command)
        if code != 0:
            raise PartFailed(f"{name} did not start: {output}\n{self.last_words(name)}")

    def run(self, command: list[str]) -> tuple[int, str]:
        """Runs a command to its end: its exit code and what it wrote."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env=self._environment,
            check=False,
        )
        return done.returncode, done.stdout.strip("\n")

    def log(self, name: str) -> Path:
        """Where a part writes."""
        return self._directory / f"{name.replace(' ', '-')}.log"

    def last_words(self, name: str) -> str:
        """The end of a part's log."""
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()[-8:]
        except OSError:
            lines = []
        return "\n".join(f"  {name}: {line}" for line in lines) or f"  {name}: wrote nothing"

    def check(self) -> None:
        """Raises PartFailed when one of them has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise PartFailed(f"{name} ended with {process.returncode}\n{self.last_words(name)}")

    def stop(self) -> None:
        """Ends them all: the bridge lets its callers and the legacy daemons go first, the bus and the store go last."""
        names = list(reversed(self._processes))
        for name in names[:-2]:
            self._end(self._processes[name])
        for pidfile in self._pidfiles:
            _end_daemon(pidfile, self._directory)
        for name in names[-2:]:
            self._end(self._processes[name])

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_daemon(pidfile: Path, directory: Path) -> None:
    """Ends the daemon of a pid file; it is nobody's child here, so a pidfd says when it is over."""
    try:
        pid = int(pidfile.read_text())
        daemon = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        # The bridge may have ended it long ago, and its id may be another's by now.
        if str(directory) not in Path(f"/proc/{pid}/cmdline").read_text():
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(daemon, number)
            if select.select([daemon], [], [], STOP_SECONDS)[0]:
                return
    except (ProcessLookupError, FileNotFoundError):
        return
    finally:
        os.close(daemon)


def python(*arguments: str | Path) -> list[str]:
    """A command that runs Python as this process does."""
    return [sys.executable, *map(str, arguments)]
