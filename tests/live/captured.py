"""Captures as tests want them, whole and broken, and `xcp-bridge` as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
from typer.testing import CliRunner

from bridges.capture.records import ANSWERED, End, Header, Leg, Record, Reply, Request, encode
from bridges.capture.writing import Limits, Writer, write_all
from bridges.cli import app
from bridges.interfaces import model
from tests.fixtures_host import INTERRUPTIBLE, ROOT

BEGAN = 1_795_600_000 * 10**9
BOOTED = 10**12
MILLISECOND = 1_000_000
INTERFACES = {"squeezed": model.digest("squeezed", "rpclib")}


_SETTINGS = ("XCP_BRIDGE_SETTINGS", "XCP_BRIDGE_CANARY", "FORCE_COLOR")
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    output: str
    errors: str


def environment(**more: str) -> dict[str, str]:
    """As on a host without settings; 100 columns without colours."""
    bare = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**bare, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1", **more}


class Command:
    """`xcp-bridge ARGUMENTS`; ended with the block."""

    def __init__(self, *arguments: str | Path, **more: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**more),
        )  # fmt: skip

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self.output, self.errors):
            stream.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def errors(self) -> IO[bytes]:
        assert self._process.stderr is not None
        return self._process.stderr

    def until_reading(self, path: Path) -> None:
        """Waits until it ends orderly on a signal, and has a file open, or one of a directory, which it then reads."""
        deadline = time.monotonic() + 30
        while not (self._takes_sigterm() and self._has_open(path)):
            assert time.monotonic() < deadline
            assert self._process.poll() is None, self.errors.read()
            time.sleep(0.002)

    def _has_open(self, path: Path) -> bool:
        return any(_is_open(descriptor, path) for descriptor in Path(f"/proc/{self.pid}/fd").iterdir())

    def _takes_sigterm(self) -> bool:
        """Whether it has a handler for it: it has none until it reads, and takes SIGINT with the same one."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> Said:
        """What it said to its end."""
        output, errors = self._process.communicate(timeout=50)
        return Said(self._process.returncode, output.decode(), errors.decode())


def _is_open(descriptor: Path, path: Path) -> bool:
    try:
        return path in ((found := descriptor.readlink()), found.parent)
    except OSError:
        return False


def run(*arguments: str | Path, **more: str) -> Said:
    """`xcp-bridge ARGUMENTS` to its end in this process; what it does not catch itself is raised here."""
    given: dict[str, str | None] = {**dict.fromkeys(_SETTINGS), "COLUMNS": "100", "NO_COLOR": "1", **more}
    result = CliRunner().invoke(app, list(map(str, arguments)), env=given, catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


def peak(*arguments: str | Path) -> int:
    """The largest resident size of a command in KiB."""
    command = [sys.executable, "-c", _PEAK, sys.executable, "-m", "bridges", *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, env=environment(), check=True, timeout=50).stdout)


# ---- records


def header(*, host: str = "h" * 32, schema: int = 1) -> Callable[[int, str], Header]:
    def make(segment: int, chain: str) -> Header:
        return Header(
            schema, "xcp-bridge 0", host, "b" * 32, str(BEGAN), str(BOOTED), segment, chain,
            interfaces=INTERFACES, dialects={"squeezed": "rpclib"},
        )  # fmt: skip

    return make


def calls(count: int, method: str = "get_diagnostics", text: str = "text", **more: Any) -> Iterator[Request | Reply]:
    """So many calls and answers, 10 ms apart."""
    settings = {"service": "squeezed", "door": "http", "method": method, **more}
    for number in range(count):
        seq, at = 2 * number + 1, number * 10 * MILLISECOND
        yield Request(
            seq=seq, id=str(number), leg=Leg.CALLER, ts=str(BEGAN + at), mono=str(BOOTED + at), name=method,
            effect="read", side="legacy", stage="relay", conn="c1", arguments={"debug_info": "d"}, size=100, **settings,
        )  # fmt: skip
        at += 2 * MILLISECOND
        yield Reply(
            seq=seq + 1, id=str(number), leg=Leg.CALLER, ts=str(BEGAN + at), mono=str(BOOTED + at), re=seq, us=2000,
            outcome=ANSWERED, side="legacy", result=f"{text} {number}", size=50, **settings,
        )  # fmt: skip


def shifted(found: Iterator[Request | Reply], first: int, *, ts: int = 0, mono: int = 0) -> Iterator[Request | Reply]:
    """The same, with clocks that jump by so many nanoseconds at a record."""
    yield from islice(found, first)
    for each in found:
        yield msgspec.structs.replace(each, ts=str(int(each.ts) + ts), mono=str(int(each.mono) + mono))


def write(directory: Path, found: Iterator[Request | Reply], segment_bytes: int = 1 << 30, **of_header: Any) -> Path:
    """A closed capture; its first segment is returned."""
    limits = Limits(segment_bytes=segment_bytes)
    write_all(directory, header(**of_header), found, limits)
    return directory / "000001.jsonl.zst"


def write_lines(directory: Path, lines: list[bytes]) -> None:
    """A closed capture of lines that need not be records."""
    writer = Writer(directory, header(), Limits(), lambda: 0.0)
    writer.write(lines, 1)
    end: Record = End(len(lines) + 1, str(BEGAN), str(BOOTED), len(lines))
    writer.close(encode(end), len(lines) + 1)


def damaged(directory: Path, change: Callable[[bytearray], bytearray], count: int = 300) -> Path:
    """A capture of so many calls whose only segment was changed."""
    segment = write(directory, calls(count))
    segment.write_bytes(change(bytearray(segment.read_bytes())))
    return directory


def mixed(directory: Path) -> Path:
    """Segments of two hosts in one directory."""
    write(directory, calls(10))
    other = write(directory.with_name("other"), calls(10), host="g" * 32)
    shutil.move(other, directory / "000002.jsonl.zst")
    return directory
