"""The cost of the bridge in each of its directions, beside its peers, in one run: `make bench`.

Compared with the bridge are (a) the same legacy call made to the legacy daemon directly, (b) the same call on the bus
made to the bus daemon directly, and (c) a shim as one would write it by hand (handwritten.py). Slices of all of them
take turns, so that a drift of the machine meets them all. docs/benchmarks.md says how to read the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calls import CALLS
from benchmarks.host import Host, interpreter
from examples.demo_parts import PartFailed

PAYLOADS: Final = {
    "reserve": "small",
    "query": "small",
    "stat": "typical",
    "text": "10 MB text",
    "records": "10 MB records",
}
LARGE: Final = ("text", "records")
LARGE_SLICES: Final = 2

out = Console(highlight=False, soft_wrap=True) if sys.stdout.isatty() else Console(highlight=False, width=140)


@dataclass(frozen=True)
class Direction:
    """Where the callers of each path call: (door, place). The bridge's stage is relay or live."""

    title: str
    stage: str
    calls: tuple[str, ...]
    bridge: tuple[str, str]
    legacy: tuple[str, str]
    bus: tuple[str, str] | None
    by_hand: tuple[str, str]
    shim: str


DIRECTIONS: Final = (
    Direction(
        "bus caller -> legacy daemon over xenstore", "relay", ("reserve",),
        ("bus", "org.xen.xcp.{service}"), ("store", "direct"), ("bus", "org.xen.xcp.{service}.Candidate"),
        ("bus", "org.xen.xcp.byhand.squeezed"), "bus-to-store",
    ),
    Direction(
        "bus caller -> legacy daemon over HTTP", "relay", ("query", "stat", "text", "records"),
        ("bus", "org.xen.xcp.{service}"), ("http", "{at}/direct"), ("bus", "org.xen.xcp.{service}.Candidate"),
        ("bus", "org.xen.xcp.byhand.xenopsd"), "bus-to-http",
    ),
    Direction(
        "HTTP caller -> legacy daemon, passed through", "relay", ("query", "stat", "text", "records"),
        ("http", "{at}/{service}"), ("http", "{at}/direct"), None, ("http", "{at}/http-relay"), "http-relay",
    ),
    Direction(
        "xenstore caller -> bus daemon", "live", ("reserve",),
        ("store", "{service}"), ("store", "direct"), ("bus", "org.xen.xcp.{service}.Candidate"),
        ("store", "byhand"), "store-to-bus",
    ),
    Direction(
        "HTTP caller -> bus daemon", "live", ("reserve", "stat", "text", "records"),
        ("http", "{at}/{service}"), ("http", "{at}/direct"), ("bus", "org.xen.xcp.{service}.Candidate"),
        ("http", "{at}/http-to-bus"), "http-to-bus",
    ),
)  # fmt: skip


@dataclass
class Account:
    """What one path took, summed over its slices: microseconds of each call, seconds, CPU seconds, peak bytes."""

    latencies: list[int] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float | None = None
    peak: int | None = None
    error: str | None = None

    def figures(self) -> dict[str, Any]:
        """As reported. Latencies in milliseconds; CPU seconds and peak are those of the process in between."""
        if self.error is not None or not self.latencies:
            return {"error": self.error or "no calls"}
        ordered = sorted(self.latencies)
        count = len(ordered)
        return {
            "calls": count,
            "p50_ms": statistics.median(ordered) / 1000,
            "p99_ms": ordered[min(count - 1, int(count * 0.99))] / 1000,
            "calls_per_second": count / self.seconds,
            "cpu_ms_per_call": None if self.cpu is None else self.cpu / count * 1000,
            "peak_bytes": self.peak,
        }


@dataclass(frozen=True)
class Effort:
    """How much is measured: callers, and for each cell how many slices of how many seconds.

    Large payloads are measured by the call: LARGE_SLICES slices of `large_calls` calls a caller, by `large_callers`
    callers at most.
    """

    callers: tuple[int, ...]
    seconds: float
    slices: int
    large_calls: int
    large_callers: int

    def callers_of(self, call: str) -> list[int]:
        """Those that a payload of this size is measured with."""
        if call in LARGE:
            return sorted({min(count, self.large_callers) for count in self.callers})
        return list(self.callers)


class Measurement:
    """Runs the cells of the table."""

    def __init__(self, host: Host, effort: Effort) -> None:
        self._host = host
        self._effort = effort

    def cell(self, direction: Direction, call: str, callers: int) -> dict[str, Any]:
        """All paths of one direction with one payload and number of callers."""
        places = {
            "bridge": direction.bridge,
            "legacy": direction.legacy,
            "bus": direction.bus,
            "by_hand": direction.by_hand,
        }
        paths = {name: place for name, place in places.items() if place is not None}
        accounts = {name: Account() for name in paths}
        for name, process in (("bridge", "bridge"), ("by_hand", direction.shim)):
            self._host.usage(process).reset()
            accounts[name].cpu = 0.0
        large = call in LARGE
        for slice_number in range(-1, LARGE_SLICES if large else self._effort.slices):
            if slice_number < 0 and large:  # what it runs is warm from the smaller ones
                continue
            names = list(paths)
            turn = slice_number % len(names)
            for name in names[turn:] + names[:turn]:
                order = {"call": call, "callers": callers, "seconds": 0.0 if large else self._effort.seconds}
                order["least"] = self._effort.large_calls * callers if large else callers
                if slice_number < 0:
                    order |= {"seconds": 0.0, "least": 4 * callers}
                self._slice(accounts[name], direction, name, paths[name], order, counts=slice_number >= 0)
        for name, process in (("bridge", "bridge"), ("by_hand", direction.shim)):
            accounts[name].peak = self._host.usage(process).peak()
        figures = {name: account.figures() for name, account in accounts.items()}
        return {"direction": direction.title, "call": call, "callers": callers, "paths": figures}

    def _slice(
        self,
        account: Account,
        direction: Direction,
        name: str,
        path: tuple[str, str],
        order: dict[str, Any],
        *,
        counts: bool,
    ) -> None:
        if account.error is not None:
            return
        door, where = path
        service = CALLS[order["call"]].service
        order |= {"door": door, "where": where.format(service=service, at=self._host.directory)}
        process = {"bridge": "bridge", "by_hand": direction.shim}.get(name)
        before = self._host.usage(process).cpu() if process else 0.0
        answer = self._host.load(order)
        if "error" in answer:
            ended = self._host.check(direction.shim)
            account.error = f"{answer['error']}; the shim ended: {ended}" if ended else answer["error"]
        elif counts:
            account.latencies += answer["latencies"]
            account.seconds += answer["seconds"]
            if process and account.cpu is not None:
                account.cpu += self._host.usage(process).cpu() - before


def table(direction: Direction, cells: list[dict[str, Any]]) -> Table:
    """The cells of one direction. A ratio is the bridge's number by the other path's."""
    found = Table(title=direction.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in (
        "payload", "callers", "p50 ms", "p99 ms", "calls/s", "CPU ms", "peak MB", "added ms",
        "p50: /legacy", "/bus", "/by hand", "calls/s: /legacy", "/bus", "/by hand", "CPU: /by hand",
    ):  # fmt: skip
        found.add_column(heading, justify="left" if heading == "payload" else "right", overflow="fold")
    for cell in cells:
        paths = cell["paths"]
        bridge, legacy = paths["bridge"], paths["legacy"]
        if "error" in bridge:
            found.add_row(PAYLOADS[cell["call"]], str(cell["callers"]), "failed")
            continue
        added = "-" if "error" in legacy else f"{bridge['p50_ms'] - legacy['p50_ms']:.2f}"
        found.add_row(
            PAYLOADS[cell["call"]],
            str(cell["callers"]),
            f"{bridge['p50_ms']:.2f}",
            f"{bridge['p99_ms']:.2f}",
            f"{bridge['calls_per_second']:.4g}",
            f"{bridge['cpu_ms_per_call']:.2f}",
            f"{bridge['peak_bytes'] / 1e6:.0f}",
            added,
            *(_ratio(paths, other, "p50_ms") for other in ("legacy", "bus", "by_hand")),
            *(_ratio(paths, other, "calls_per_second") for other in ("legacy", "bus", "by_hand")),
            _ratio(paths, "by_hand", "cpu_ms_per_call"),
        )
    return found


def _ratio(paths: dict[str, Any], other: str, figure: str) -> str:
    if other not in paths:
        return "-"
    if "error" in paths[other]:
        return "failed"
    divisor = paths[other][figure]
    return f"{paths['bridge'][figure] / divisor:.2f}" if divisor else "-"


def measure(host: Host, effort: Effort, chosen: str) -> list[dict[str, Any]]:
    """Everything, table by table as it is done. Raises PartFailed."""
    cells: list[dict[str, Any]] = []
    measurement = Measurement(host, effort)
    for stage in ("relay", "live"):
        for service in ("squeezed", "xenopsd"):
            host.move(service, stage)
        for direction in DIRECTIONS:
            if direction.stage != stage or chosen not in direction.title:
                continue
            done = [
                measurement.cell(direction, call, callers)
                for call in direction.calls
                for callers in effort.callers_of(call)
            ]
            out.print(table(direction, done), "")
            for cell in done:
                for name, figures in cell["paths"].items():
                    if "error" in figures:
                        what = f"{PAYLOADS[cell['call']]}, {cell['callers']} callers, {name.replace('_', ' ')}"
                        out.print(f"failed: {what}: {figures['error']}", markup=False)
            cells += done
    return cells


def _callers(text: str) -> tuple[int, ...]:
    counts = tuple(int(word) for word in text.split(","))
    if not counts or min(counts) < 1:
        raise ValueError(text)
    return counts


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The cost of the bridge in each direction, beside its peers.")
    parser.add_argument("--quick", action="store_true", help="under two minutes (the default)")
    parser.add_argument("--full", action="store_true", help="longer slices, and more callers of the large payloads")
    parser.add_argument("--callers", type=_callers, default=(1, 16, 128), help="such as 1,16,128")
    parser.add_argument("--direction", default="", help="only directions whose title holds this text")
    parser.add_argument("--store", choices=("embedded", "oxenstored"), default="embedded")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    if options.quick and options.full:
        parser.error("--quick or --full")
    effort = Effort(options.callers, 2.0, 5, 2, 4) if options.full else Effort(options.callers, 0.25, 2, 1, 1)
    directory = Path(f"/tmp/xcp-bench-{os.getpid()}")  # short, for the paths of sockets
    directory.mkdir(mode=0o700)
    host = Host(directory)
    begun = time.monotonic()
    try:
        host.start(options.store)
        facts = f"{os.cpu_count()} cores, {interpreter()}, store {options.store}, closed loop"
        out.print(f"{facts}. CPU ms and peak MB are the bridge's; a ratio is the bridge by the other path.\n")
        cells = measure(host, effort, options.direction)
        out.print(f"measured in {time.monotonic() - begun:.0f} s")
        if options.json is not None:
            options.json.write_text(json.dumps({"machine": facts, "cells": cells}, indent=1) + "\n")
    except PartFailed as failure:
        sys.exit(f"the benchmark failed: {failure}")
    except KeyboardInterrupt:
        sys.exit("ended")
    finally:
        host.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
