"""The cost of recording a write before it is dispatched and its result before the answer leaves.

Callers begin and end writes that take no time themselves, so that nothing but the journal is measured. The loop is
closed: a caller waits for the disk before it goes on, and what many wait for together is one commit. The numbers are
those of the file system of --directory; how long it takes to make one page durable there is said first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.daemons import run
from benchmarks.host import interpreter
from bridges import journal
from bridges.durable import Durable
from bridges.journal import Entry, Journal

ENTRY: Final = Entry("xenopsd", "VM.start", "http", "", 3, "live", "bus")
PAGE: Final = bytes(4096)
SYNCS: Final = 100

out = Console(highlight=False, soft_wrap=True) if sys.stdout.isatty() else Console(highlight=False, width=140)


def sync_microseconds(directory: Path) -> float:
    """The median time to append a page to a file and make it durable."""
    took = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(SYNCS):
            begun = time.perf_counter()
            file.write(PAGE)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - begun)
    return statistics.median(took) * 1e6


async def keep_busy(microseconds: int) -> None:
    """All that the loop does for calls that are no writes: it works for so long, looks at its sockets, and works on."""
    while True:
        until = time.perf_counter() + microseconds / 1e6
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(0)


async def measure(directory: Path, callers: int, seconds: float, busy: int) -> dict[str, Any]:
    """What so many callers saw at once, in a new file. A write is one begin and one end."""
    durable = Durable(directory / f"journal-{callers}.sqlite", journal.SCHEMA, 1)
    calls = Journal(durable, lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    took: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()

    async def caller() -> None:
        while (started := time.perf_counter()) - begun < seconds:
            await calls.end(await calls.begin(ENTRY), "answered")
            took.append(time.perf_counter() - started)

    load = asyncio.create_task(keep_busy(busy)) if busy else None
    await asyncio.gather(*(caller() for _ in range(callers)))
    if load is not None:
        load.cancel()
    elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
    durable.close()
    took.sort()
    return {
        "callers": callers,
        "writes": len(took),
        "us_per_write": elapsed / len(took) * 1e6,
        "p50_us": statistics.median(took) * 1e6,
        "p99_us": took[int(len(took) * 0.99)] * 1e6,
        "writes_per_second": len(took) / elapsed,
        "commits_per_write": durable.commits / len(took),
        "cpu_us_per_write": cpu / len(took) * 1e6,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """A line for each number of callers."""
    found = Table(box=None, pad_edge=False)
    for heading in ("callers", "us/write", "p50 us", "p99 us", "writes/s", "commits/write", "CPU us/write"):
        found.add_column(heading, justify="right")
    for row in rows:
        found.add_row(
            str(row["callers"]),
            f"{row['us_per_write']:.1f}",
            f"{row['p50_us']:.0f}",
            f"{row['p99_us']:.0f}",
            f"{row['writes_per_second']:.0f}",
            f"{row['commits_per_write']:.3f}",
            f"{row['cpu_us_per_write']:.1f}",
        )
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The cost of the journal for each write.")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number of callers")
    parser.add_argument("--busy", type=int, default=0, metavar="US", help="a loop busy with other calls, in such steps")
    parser.add_argument("--directory", type=Path, help="on the file system to be measured; default: a temporary one")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    if min(options.callers) < 1:
        parser.error("--callers: at least 1")
    with tempfile.TemporaryDirectory(prefix="xcp-journal-", dir=options.directory) as name:
        directory = Path(name)
        sync = sync_microseconds(directory)
        facts = f"{os.cpu_count()} cores, {interpreter()}, a page is durable at {directory.parent} in {sync:.0f} us"
        out.print(f"{facts}. us/write is the time by the number of writes, p50 and p99 what a caller waits.\n")
        rows = [run(measure(directory, callers, options.seconds, options.busy)) for callers in options.callers]
    out.print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
