"""What large answers, long streams and a start cost with the bridge in between: the second part of `make bench`.

Large answers are xapi's VM.get_all_records; both sides answer with canned bytes (pool.py), and a caller's time ends
with the last byte: what it makes of them is its own affair. docs/benchmarks.md says how to read the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.daemons import run
from benchmarks.directions import out
from benchmarks.host import BENCHMARKS, Machine, Usage, interpreter
from benchmarks.load import PATIENCE, Failed, exchange
from benchmarks.pool import BLOCK, METHOD, SERVICE, UnreadBus, records, session
from dbus_side import names
from dbus_side.errors import BusError
from examples.demo_parts import ROOT, PartFailed, python
from examples.legacy_http import write_call

SMALL: Final = 0  # VMs of the call that is made while a large one is answered
START_SECONDS: Final = 30.0
MB: Final = 1e6
TROUBLE: Final = (Failed, BusError, OSError, TimeoutError)

Ask = Callable[[int], Awaitable[bytes]]


@dataclass(frozen=True)
class Effort:
    """`calls` by number of VMs; `stream` bytes each way, `rounds` times; `starts` of each kind."""

    calls: dict[int, int]
    stream: int
    rounds: int
    starts: int


QUICK: Final = Effort({10: 5, 1000: 3, 5000: 1}, 500_000_000, 1, 2)
WHOLE: Final = Effort({10: 50, 1000: 9, 5000: 5}, 2_000_000_000, 3, 7)


@dataclass(frozen=True)
class Way:
    """A way from a caller to a daemon; `stage` is when it is there, `direct` that the bridge is not on it."""

    title: str
    key: str
    stage: str
    direct: bool = False


PATHS: Final = (
    Way("HTTP caller -> legacy daemon", "legacy", "relay", direct=True),
    Way("bus caller -> bus daemon", "bus", "relay", direct=True),
    Way("HTTP caller -> bridge -> legacy daemon", "passed", "relay"),
    Way("bus caller -> bridge -> legacy daemon", "bus-to-legacy", "relay"),
    Way("XML-RPC caller -> bridge -> bus daemon", "xml-to-bus", "live"),
    Way("JSON-RPC caller -> bridge -> bus daemon", "json-to-bus", "live"),
)


@dataclass
class Account:
    """One path with one size: seconds of each call, and what the bridge used."""

    seconds: list[float] = field(default_factory=list)
    answer: int = 0
    cpu: float = 0.0
    before: int = 0
    peak: int = 0
    others: float | None = None
    error: str | None = None

    def figures(self) -> dict[str, Any]:
        """As reported: milliseconds and bytes; `others_ms` is the longest that a small call waited meanwhile."""
        if self.error is not None or not self.seconds:
            return {"error": self.error or "no calls"}
        return {
            "calls": len(self.seconds),
            "answer_bytes": self.answer,
            "p50_ms": statistics.median(self.seconds) * 1000,
            "cpu_ms": self.cpu / len(self.seconds) * 1000,
            "before_bytes": self.before,
            "peak_bytes": self.peak,
            "others_ms": None if self.others is None else self.others * 1000,
        }


class PoolMachine(Machine):
    """The bridge between a xapi and its callers; squeezed has a door and nobody behind it."""

    def start(self, sizes: list[int]) -> None:
        """Everything but the bridge. Raises PartFailed."""
        self.start_bus_and_store("embedded")
        self._vms = ",".join(map(str, [SMALL, *sizes]))
        self._parts.start_daemon("legacy xapi", self._legacy(), Path(self.at("xapi.pid")))
        candidate = python(BENCHMARKS / "pool.py", "bus", "--bus", self.bus, "--vms", self._vms)
        self.start_part("bus daemon", candidate, "serving")

    def section(self, service: str) -> str:
        """The settings of a service, as deploy/bridge.toml has them."""
        start = self._legacy() if service == SERVICE else ["/bin/true"]
        lines = [f"[services.{service}]", self.legacy_commands(service, start), self.http_door(service)]
        return "\n".join([*lines, 'xenstore = "squeezed"'] if service == "squeezed" else lines)

    def _legacy(self) -> list[str]:
        where = ["--socket", self.at(SERVICE), "--pidfile", self.at("xapi.pid"), "--log", self.at("xapi.log")]
        return python(BENCHMARKS / "pool.py", "legacy", *where, "--background", "--vms", self._vms)


class Answers:
    """Measures VM.get_all_records on every path."""

    def __init__(self, machine: PoolMachine, bus: UnreadBus) -> None:
        self._usage = machine.usage("bridge")
        http, behind = machine.at(SERVICE), machine.at(f"{SERVICE}.legacy")
        self._ask: dict[str, Ask] = {
            "legacy": lambda vms: exchange(behind, _post("/", _xml(vms))),
            "bus": lambda vms: _ask_bus(bus, names.candidate_name(SERVICE), vms),
            "passed": lambda vms: exchange(http, _post("/", _xml(vms))),
            "bus-to-legacy": lambda vms: _ask_bus(bus, names.service_name(SERVICE), vms),
            "xml-to-bus": lambda vms: exchange(http, _post("/", _xml(vms))),
            "json-to-bus": lambda vms: exchange(http, _post("/jsonrpc", _json(vms))),
        }
        self._small: Ask = self._ask["passed"]

    async def measure(self, stage: str, vms: int, calls: int) -> dict[str, Account]:
        """The paths of a stage, in turns; then once more with a caller of small calls beside."""
        paths = [path for path in PATHS if path.stage == stage]
        accounts = {path.key: Account() for path in paths}
        for number in range(-1, calls):
            for path in paths[number % len(paths) :] + paths[: number % len(paths)]:
                await self._attempt(accounts[path.key], self._call(accounts[path.key], path, vms, counts=number >= 0))
        for path in paths:
            if not path.direct:
                await self._attempt(accounts[path.key], self._beside(accounts[path.key], path, vms))
        return accounts

    @staticmethod
    async def _attempt(account: Account, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await work
        except TROUBLE as error:
            account.error = account.error or f"{type(error).__name__}: {error}"[:300]

    async def _call(self, account: Account, path: Way, vms: int, *, counts: bool) -> None:
        """The first call of all is not counted: it compiles what the bridge translates with."""
        if account.error is not None:
            return
        self._usage.reset()
        before, cpu = self._usage.resident(), self._usage.cpu()
        begun = time.perf_counter()
        answer = await self._ask[path.key](vms)
        seconds = time.perf_counter() - begun
        found = answer.count(b"power_state")
        if found != records(vms):
            raise Failed(f"{found} of {records(vms)} records: {_said(answer)}")
        if counts:
            account.seconds.append(seconds)
            account.answer = len(answer)
            account.cpu += self._usage.cpu() - cpu
            account.before = max(account.before, before)
            account.peak = max(account.peak, self._usage.peak())

    async def _beside(self, account: Account, path: Way, vms: int) -> None:
        """How long the slowest small call waits that is made while the large one is answered."""
        if account.error is not None:
            return
        slowest = 0.0
        large = asyncio.create_task(_bytes(self._ask[path.key](vms)))
        try:
            while not large.done():
                begun = time.perf_counter()
                await self._small(SMALL)
                slowest = max(slowest, time.perf_counter() - begun)
        finally:
            large.cancel()
            await asyncio.wait([large])
        account.others = slowest
        large.result()


async def _bytes(answer: Awaitable[bytes]) -> bytes:
    return await answer


async def _ask_bus(bus: UnreadBus, destination: str, vms: int) -> bytes:
    path, interface = names.object_path(SERVICE, "VM"), names.interface_name(SERVICE, "VM")
    member = names.member_name(METHOD.rpartition(".")[2])
    reply = await bus.call(destination, path, interface, member, "s", (session(vms),), timeout=PATIENCE)
    found: bytes = reply.body[0]
    return found


def _xml(vms: int) -> bytes:
    return write_call(METHOD, [session(vms)])


def _json(vms: int) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": METHOD, "params": [session(vms)], "id": 1}).encode()


def _post(target: str, body: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _said(answer: bytes) -> str:
    return answer.partition(b"\r\n\r\n")[2][:200].decode(errors="replace") or "closed without an answer"


def export_seconds(path: str, count: int) -> float:
    """How long it takes to get so many bytes. Raises Failed, OSError."""
    block = bytearray(BLOCK)
    with _dial(path) as connection:
        begun = time.perf_counter()
        connection.sendall(b"GET /export?count=%d HTTP/1.1\r\nhost: localhost\r\n\r\n" % count)
        left = count - len(_head(connection))
        while left > 0 and (size := connection.recv_into(block)):
            left -= size
        if left != 0:
            raise Failed(f"{count - left} of {count} bytes")
        return time.perf_counter() - begun


def import_seconds(path: str, count: int) -> float:
    """How long it takes to put so many bytes and be told so. Raises Failed, OSError."""
    block = memoryview(bytes(BLOCK))
    with _dial(path) as connection:
        begun = time.perf_counter()
        connection.sendall(b"PUT /import HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % count)
        for sent in range(0, count, BLOCK):
            connection.sendall(block[: count - sent])
        _head(connection)
        return time.perf_counter() - begun


def _dial(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(path)
    return connection


def _head(connection: socket.socket) -> bytes:
    """Reads the head of a successful answer; gives what came behind it."""
    received = b""
    while b"\r\n\r\n" not in received:
        block = connection.recv(1 << 16)
        if not block:
            raise Failed(f"closed after {received[:100]!r}")
        received += block
    head, _, rest = received.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise Failed(head.partition(b"\r\n")[0].decode(errors="replace"))
    return rest


def measure_streams(machine: PoolMachine, effort: Effort) -> list[dict[str, Any]]:
    """A long export and a long import, directly and through the bridge, in turns."""
    usage = machine.usage("bridge")
    found = []
    for title, transfer in (("GET /export", export_seconds), ("PUT /import", import_seconds)):
        row: dict[str, Any] = {"stream": title, "bytes": effort.stream}
        direct: list[float] = []
        through: list[float] = []
        try:
            usage.reset()
            row["before_bytes"], cpu = usage.resident(), usage.cpu()
            for _ in range(effort.rounds):
                direct.append(transfer(machine.at(f"{SERVICE}.legacy"), effort.stream))
                through.append(transfer(machine.at(SERVICE), effort.stream))
            row["cpu_s_per_gb"] = (usage.cpu() - cpu) / (effort.rounds * effort.stream / 1e9)
            row |= {"peak_bytes": usage.peak(), "after_bytes": usage.resident()}
            row["mb_per_second"] = effort.stream / MB / statistics.median(through)
            row["direct_mb_per_second"] = effort.stream / MB / statistics.median(direct)
        except TROUBLE as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        found.append(row)
    return found


def start_once(machine: PoolMachine, settings: str, stages: str) -> dict[str, float]:
    """One start: seconds until READY=1, CPU seconds, resident bytes then. Raises Failed, OSError.

    `stages` is what the bridge has to say of its services.
    """
    address = machine.directory / "notify"
    log = machine.directory / "start.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, log.open("wb") as words:
        notified.bind(str(address))
        notified.settimeout(START_SECONDS)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(address)}
        begun = time.perf_counter()
        bridge = subprocess.Popen(
            machine.bridge_command(settings), stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=environment
        )
        try:
            while not notified.recv(4096).startswith(b"READY=1"):
                pass
            seconds = time.perf_counter() - begun
            usage = Usage(bridge.pid)
            said = re.sub(r" \(epoch \d+\)", "", log.read_text().partition("ready: ")[2]).strip()
            if said != stages:
                raise Failed(f"expected a start with {stages!r}, got {said!r}")
            return {"seconds": seconds, "cpu": usage.cpu(), "resident": usage.resident()}
        except TimeoutError:
            raise Failed(f"not ready within {START_SECONDS:.0f} s: {log.read_text()[-200:]}") from None
        finally:
            bridge.terminate()
            bridge.wait(START_SECONDS)
            address.unlink()


def measure_starts(machine: PoolMachine, effort: Effort) -> list[dict[str, Any]]:
    """Starts with and without xapi, in turns; no bridge runs, and xapi is live in the state of the one that did."""
    both = [machine.section("squeezed"), machine.section(SERVICE)]
    kinds = {
        "squeezed off": (both[:1], "state-one"),
        "squeezed off, xapi off": (both, "state-both"),
        "squeezed off, xapi live": (both, "state"),
    }
    runs: dict[str, list[dict[str, float]]] = {title: [] for title in kinds}
    errors: dict[str, str] = {}
    for services, state in kinds.values():
        Path(machine.at(f"{state}.toml")).write_text(machine.settings(services, state))
    for _ in range(effort.starts):
        for title, (_, state) in kinds.items():
            try:
                runs[title].append(start_once(machine, f"{state}.toml", title))
            except (*TROUBLE, subprocess.TimeoutExpired) as error:
                errors[title] = f"{type(error).__name__}: {error}"[:300]
    return [{"services": title, **_medians(runs[title], errors.get(title))} for title in kinds]


def _medians(runs: list[dict[str, float]], error: str | None) -> dict[str, Any]:
    if error is not None:
        return {"error": error}
    return {name: statistics.median(one[name] for one in runs) for name in runs[0]}


def _table(title: str, *headings: str) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        found.add_column(heading, justify="right" if number else "left", overflow="fold")
    return found


def answers_table(vms: int, rows: dict[str, dict[str, Any]]) -> Table:
    """All paths with one number of VMs; a ratio is the path's p50 by that of the direct call."""
    found = _table(
        f"{METHOD} with {vms:,} VMs",
        "path", "answer MB", "p50 ms", "/ legacy", "/ bus", "CPU ms", "before MB", "peak MB", "others wait ms",
    )  # fmt: skip
    for path in PATHS:
        row = rows[path.key]
        if "error" in row:
            found.add_row(path.title, "failed")
            continue
        bases = (rows["legacy"], rows["bus"])
        ratios = ["failed" if "error" in base else f"{row['p50_ms'] / base['p50_ms']:.1f}" for base in bases]
        mine = ["-"] * 4
        if not path.direct:
            mine = [f"{row['cpu_ms']:.0f}", f"{row['before_bytes'] / MB:.0f}", f"{row['peak_bytes'] / MB:.0f}"]
            mine.append("-" if row["others_ms"] is None else f"{row['others_ms']:.0f}")
        found.add_row(path.title, f"{row['answer_bytes'] / MB:.3g}", f"{row['p50_ms']:.1f}", *ratios, *mine)
    return found


def streams_table(rows: list[dict[str, Any]]) -> Table:
    """Streams in relay."""
    found = _table(
        f"streams of {rows[0]['bytes'] / 1e9:.3g} GB in relay",
        "request", "MB/s", "direct MB/s", "bridge / direct", "CPU s per GB", "before MB", "peak MB", "after MB",
    )  # fmt: skip
    for row in rows:
        if "error" in row:
            found.add_row(row["stream"], "failed")
            continue
        speeds = row["mb_per_second"], row["direct_mb_per_second"]
        memory = [f"{row[name] / MB:.1f}" for name in ("before_bytes", "peak_bytes", "after_bytes")]
        ratio = f"{speeds[0] / speeds[1]:.2f}"
        found.add_row(row["stream"], *(f"{s:.0f}" for s in speeds), ratio, f"{row['cpu_s_per_gb']:.2f}", *memory)
    return found


def starts_table(rows: list[dict[str, Any]]) -> Table:
    """Starts, until READY=1."""
    found = _table("start of the bridge, from exec to READY=1", "services", "ms", "CPU ms", "resident MB")
    for row in rows:
        if "error" in row:
            found.add_row(row["services"], "failed")
        else:
            numbers = (row["seconds"] * 1000, row["cpu"] * 1000, row["resident"] / MB)
            found.add_row(row["services"], *(f"{number:.0f}" for number in numbers))
    return found


async def measure(machine: PoolMachine, effort: Effort) -> dict[str, Any]:
    """Everything, table by table as it is done. Raises PartFailed."""
    bus = await UnreadBus.connect(machine.bus)
    try:
        answers = Answers(machine, bus)
        machine.move(SERVICE, "relay")
        streams = await asyncio.to_thread(measure_streams, machine, effort)
        _show(streams_table(streams), streams, "stream")
        accounts = {vms: await answers.measure("relay", vms, calls) for vms, calls in effort.calls.items()}
        await asyncio.to_thread(machine.move, SERVICE, "live")
        cells = []
        for vms, calls in effort.calls.items():
            accounts[vms] |= await answers.measure("live", vms, calls)
            rows = {path.key: accounts[vms][path.key].figures() for path in PATHS}
            _show(answers_table(vms, rows), [{"path": path.title, **rows[path.key]} for path in PATHS], "path")
            cells.append({"vms": vms, "paths": rows})
    finally:
        await bus.close()
    machine.end_bridge()
    starts = await asyncio.to_thread(measure_starts, machine, effort)
    _show(starts_table(starts), starts, "services")
    return {"answers": cells, "streams": streams, "starts": starts}


def _show(table: Table, rows: list[dict[str, Any]], name: str) -> None:
    out.print(table, "")
    for row in rows:
        if "error" in row:
            out.print(f"failed: {row[name]}: {row['error']}", markup=False)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Large answers, long streams and starts, with the bridge in between.")
    parser.add_argument("--quick", action="store_true", help="under 40 seconds: fewer calls, shorter streams")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    options = parser.parse_args()
    effort = QUICK if options.quick else WHOLE
    directory = Path(f"/tmp/xcp-large-{os.getpid()}")  # short, for the paths of sockets
    directory.mkdir(mode=0o700)
    machine = PoolMachine(directory)
    begun = time.monotonic()
    try:
        machine.start(list(effort.calls))
        machine.start_bridge([machine.section("squeezed"), machine.section(SERVICE)])
        facts = f"{os.cpu_count()} cores, {interpreter()}, one caller"
        out.print(f"{facts}. CPU, memory and the wait of others are the bridge's.\n")
        found = run(measure(machine, effort))
        out.print(f"measured in {time.monotonic() - begun:.0f} s")
        if options.json is not None:
            options.json.write_text(json.dumps({"machine": facts, **found}, indent=1) + "\n")
    except PartFailed as failure:
        sys.exit(f"the benchmark failed: {failure}")
    except KeyboardInterrupt:
        sys.exit("ended")
    finally:
        machine.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
