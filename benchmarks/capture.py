"""What captures cost, and how well they can be replayed: the third part of `make bench`.

Callers of one bridge in relay, with a capture and without, in turns; the store beside a plain file and one stream of
zstd (recorded.py); replays at rising rates (rehearsal.py). docs/benchmarks.md says how to read the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calls import CALLS
from benchmarks.directions import PAYLOADS, out
from benchmarks.host import Host, interpreter
from benchmarks.recorded import MB, measure_store
from benchmarks.rehearsal import Rehearsals
from examples.demo_parts import PartFailed

OFF: Final = "no capture"
ON: Final = "capture"
MONITOR: Final = "dbus-monitor"
PCAP_HEADER: Final = 24
DIRECTIONS: Final = {
    "HTTP caller -> legacy daemon, passed through": ("http", "{at}/{service}", (OFF, ON)),
    "bus caller -> legacy daemon over HTTP": ("bus", "org.xen.xcp.{service}", (OFF, ON, MONITOR)),
}


@dataclass(frozen=True)
class Effort:
    """`slices` of so many `seconds` for each way; `calls` described for the store; replays of `replay` seconds."""

    cells: tuple[tuple[str, int], ...]
    seconds: float
    slices: int
    calls: int
    replay: float


QUICK: Final = Effort((("query", 1), ("query", 16), ("query", 128), ("stat", 16)), 0.4, 2, 3000, 0.8)
FULL: Final = Effort(tuple((call, n) for call in ("query", "stat") for n in (1, 16, 128)), 3.0, 4, 12000, 3.0)


@dataclass
class Account:
    """One way over its slices: microseconds of each call; seconds of load; CPU seconds until all was written."""

    latencies: list[int] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    events: int = 0
    written: int = 0
    lost: int = 0

    def figures(self) -> dict[str, Any]:
        """As reported. `recorded_per_second` is how many calls the bridge turned into records under this load."""
        ordered = sorted(self.latencies)
        count = len(ordered)
        found = {
            "calls": count,
            "p50_ms": statistics.median(ordered) / 1000,
            "p99_ms": ordered[min(count - 1, int(count * 0.99))] / 1000,
            "calls_per_second": count / self.seconds,
            "cpu_ms_per_call": self.cpu / count * 1000,
        }
        if self.events:
            per_call = self.events / count
            found["recorded_per_second"] = self.written / per_call / self.seconds
            found["lost_percent"] = self.lost / self.events * 100
        return found


class CapturedHost(Host):
    """The host of the directions without shims, and what watches it."""

    def _start_shim(self, shim: str) -> None:
        """Nobody calls them here."""

    def capture(self, action: str) -> dict[str, Any]:
        """`xcp-bridge capture start`, `stop` or `status`, without another Python. Raises PartFailed."""
        with socket.socket(socket.AF_UNIX) as control, control.makefile("rw") as lines:
            control.connect(self.at("control"))
            lines.write(json.dumps({"verb": "capture", "action": action, "services": [], "name": None}) + "\n")
            lines.flush()
            answer: dict[str, Any] = json.loads(lines.readline())
        if not answer["ok"]:
            raise PartFailed(f"capture {action}: {answer['error']}")
        return answer

    def forget_captures(self) -> None:
        """Removes what was written, for which there is a limit."""
        shutil.rmtree(self.directory / "state" / "captures")

    def monitor(self) -> None:
        """Starts what is there today to see what passes a bus. Raises PartFailed."""
        log = self._parts.log("monitor")
        command = ["dbus-monitor", "--pcap", "--address", self.bus]
        self._parts.start("monitor", command, lambda: log.stat().st_size >= PCAP_HEADER)

    def end_monitor(self) -> None:
        """Ends it."""
        self._parts.end("monitor")


class Overhead:
    """What callers notice of being recorded."""

    def __init__(self, host: CapturedHost, effort: Effort) -> None:
        self._host = host
        self._effort = effort

    def cell(self, title: str, call: str, callers: int) -> dict[str, Any]:
        """All ways of one direction with one payload and number of callers, in turns."""
        door, where, ways = DIRECTIONS[title]
        place = where.format(service=CALLS[call].service, at=self._host.directory)
        order = {"call": call, "callers": callers, "door": door, "where": place, "least": callers}
        accounts = {way: Account() for way in ways if way != MONITOR or shutil.which(MONITOR)}
        names = list(accounts)
        self._load({**order, "seconds": 0.0, "least": 4 * callers})
        for turn in range(self._effort.slices):
            first = turn % len(names)
            for way in names[first:] + names[:first]:
                self._slice(accounts[way], way, {**order, "seconds": self._effort.seconds})
        figures = {way: account.figures() for way, account in accounts.items()}
        return {"direction": title, "call": call, "callers": callers, "ways": figures}

    def _slice(self, account: Account, way: str, order: dict[str, Any]) -> None:
        host, usage = self._host, self._host.usage("bridge")
        if way == MONITOR:
            host.monitor()
        before = usage.cpu()
        if way == ON:
            host.capture("start")
        answer = self._load(order)
        account.latencies += answer["latencies"]
        account.seconds += answer["seconds"]
        if way == ON:
            running = host.capture("status")["running"]
            lost = sum(sum(why.values()) for why in running["lost"].values())
            account.written += running["records"]
            account.lost += lost
            account.events += running["records"] + running["pending"] + lost
            host.capture("stop")
        account.cpu += usage.cpu() - before
        if way == ON:
            host.forget_captures()
        if way == MONITOR:
            host.end_monitor()

    def _load(self, order: dict[str, Any]) -> dict[str, Any]:
        answer = self._host.load(order)
        if "error" in answer:
            raise PartFailed(f"{order['call']}: {answer['error']}")
        return answer


def overhead_table(title: str, cells: list[dict[str, Any]]) -> Table:
    """One direction. A ratio is by the same without a capture, in the same run."""
    found = _table(
        title, "payload", "callers", "watched by", "p50 ms", "p99 ms", "calls/s", "CPU ms", "/ none: p50", "p99",
        "calls/s", "CPU", "recorded calls/s", "lost %", left=1,
    )  # fmt: skip
    for cell in cells:
        base = cell["ways"][OFF]
        for way, row in cell["ways"].items():
            keys = ("p50_ms", "p99_ms", "calls_per_second", "cpu_ms_per_call")
            ratios = ["-" if way == OFF else f"{row[key] / base[key]:.2f}" for key in keys]
            recorded = [f"{row[key]:.0f}" if key in row else "-" for key in ("recorded_per_second", "lost_percent")]
            numbers = f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['calls_per_second']:.0f}"
            where = (PAYLOADS[cell["call"]], str(cell["callers"])) if way == OFF else ("", "")
            found.add_row(*where, way, *numbers, f"{row['cpu_ms_per_call']:.2f}", *ratios, *recorded)
    return found


def store_table(rows: list[dict[str, Any]]) -> Table:
    """The store. MB are those of the lines, before anything is packed."""
    count = rows[0]["records"]
    found = _table(
        f"{count:,} records of {rows[0]['raw_bytes'] / count:.0f} bytes", "", "write records/s", "MB/s",
        "read records/s", "MB/s", "verify records/s", "bytes a record", "raw / stored", left=1,
    )  # fmt: skip
    for row in rows:
        records, raw = row["records"], row["raw_bytes"]
        speeds = [
            text
            for key in ("write_s", "read_s")
            for text in ((f"{records / row[key]:,.0f}", f"{raw / MB / row[key]:.0f}") if key in row else ("-", "-"))
        ]
        verify = f"{records / row['verify_s']:,.0f}" if "verify_s" in row else "-"
        size = (f"{row['bytes'] / records:.0f}", f"{raw / row['bytes']:.1f}") if "bytes" in row else ("-", "-")
        found.add_row(row["what"], *speeds, verify, *size)
    return found


def replay_table(rows: list[dict[str, Any]]) -> Table:
    """The replays. `late` is how long after its time a call left, held up by nothing but the replay."""
    found = _table(
        "replay drive", "target", "calls/s", "late p50 ms", "p99", "most", "answered p50 ms", "kept", "verdict", left=1
    )
    for row in rows:
        times = [f"{row[key]:.2f}" for key in ("late_p50_ms", "late_p99_ms", "late_most_ms", "took_p50_ms")]
        found.add_row(row["target"], str(row["rate"]), *times, "yes" if row["kept"] else "no", row["verdict"])
    return found


def _table(title: str, *headings: str, left: int) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        found.add_column(heading, justify="right" if number >= left else "left", overflow="fold")
    return found


def measure(directory: Path, effort: Effort) -> dict[str, Any]:
    """Everything, table by table as it is done. Raises PartFailed."""
    cells: list[dict[str, Any]] = []
    host = CapturedHost(directory / "a")
    host.directory.mkdir()
    try:
        host.start("embedded")
        host.move("xenopsd", "relay")
        overhead = Overhead(host, effort)
        for title in DIRECTIONS:
            done = [overhead.cell(title, *cell) for cell in effort.cells]
            out.print(overhead_table(title, done), "")
            cells += done
    finally:
        host.stop()
    store = measure_store(directory, effort.calls)
    out.print(store_table(store), "")
    rehearsals = Rehearsals(directory / "b")
    rehearsals.directory.mkdir()
    try:
        rehearsals.start()
        replays = rehearsals.measure(effort.replay)
    finally:
        rehearsals.stop()
    out.print(replay_table(replays), "")
    return {"overhead": cells, "store": store, "replays": replays}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The cost of captures, and the rates at which they can be replayed.")
    parser.add_argument("--full", action="store_true", help="some minutes: longer slices, all payloads")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    directory = Path(f"/tmp/xcp-cap-{os.getpid()}")  # short, for the paths of sockets
    directory.mkdir(mode=0o700)
    begun = time.monotonic()
    try:
        facts = f"{os.cpu_count()} cores, {interpreter()}, closed loop"
        out.print(f"{facts}. CPU ms are the bridge's for a call, until its records are written.\n")
        found = measure(directory, FULL if options.full else QUICK)
        out.print(f"measured in {time.monotonic() - begun:.0f} s")
        if options.json is not None:
            options.json.write_text(json.dumps({"machine": facts, **found}, indent=1) + "\n")
    except PartFailed as failure:
        sys.exit(f"the benchmark failed: {failure}")
    except KeyboardInterrupt:
        sys.exit("ended")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
