"""The whole migration of a service, on this machine, without Xen and without touching anything of it: `make demo`.

A private bus, a small xenstored, a legacy squeezed and a legacy xenopsd, a squeezed that lives on the bus, and the
bridge between them. Callers of all four directions call without pause while squeezed moves to the bus and back, twice.
Every call bears a token and both daemons write down what they execute: at the end both accounts are compared, and the
demo succeeds (exit code 0) only if no call was lost and none was executed twice.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_callers import Call, HttpCaller, Ledger, Places, SqueezedCaller, UnixTransport, XenopsdCaller, XenstoreCaller
from demo_parts import ROOT, PartFailed, Parts, python
from legacy_http import Value, read_reply, write_call
from rich.console import Console
from rich.table import Table

CALLS_BETWEEN_MOVES = 40
ROUND_TRIPS = 2
XENSTORE, HTTP = "xenstore -> squeezed", "XML-RPC -> squeezed"
ON_BUS, TO_XENOPSD = "D-Bus -> squeezed", "D-Bus -> xenopsd"
VM = "b1f0c3a2-0000-4000-8000-000000000001"

out = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Move:
    """One move as the bridge reported it."""

    origin: str
    target: str
    epoch: int
    held_ms: float


class Demo:
    """The story; each method is a scene."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bus = f"unix:path={directory}/bus"
        self.parts = Parts(directory)
        self.moves: list[Move] = []
        self.is_complete = False
        self._legacy = {
            "squeezed": self._legacy_command("squeezed", xenstore="store", http="memory"),
            "xenopsd": self._legacy_command("xenopsd", socket="xenopsd"),
        }

    def _legacy_command(self, name: str, **doors: str) -> list[str]:
        places = doors | {"pidfile": f"{name}.pid", "executions": "executions", "log": f"legacy-{name}.log"}
        options = [word for option, place in places.items() for word in (f"--{option}", self.at(place))]
        return python(ROOT / "examples" / f"legacy_{name}.py", *options, "--background")

    def at(self, name: str) -> Path:
        """A path of the demo; all are in one directory that is removed in the end."""
        return self.directory / name

    def start(self) -> None:
        """Everything that is there before the bridge comes, then the bridge, then the new daemon. Raises PartFailed."""
        parts = self.parts
        configuration = (ROOT / "deploy" / "xcp-bus.conf").read_text()
        for shipped, ours in {
            "unix:path=/run/xcp/bus": self.bus,
            'user="root"': f'user="{getpass.getuser()}"',
            "<fork/>": "",
        }.items():
            configuration = configuration.replace(shipped, ours)
        self.at("bus.conf").write_text(configuration)
        bus = ["dbus-daemon", f"--config-file={self.directory}/bus.conf", "--nofork", "--nopidfile"]
        parts.start("bus", bus, lambda: _listens(self.bus.removeprefix("unix:path=")))
        store = python("-m", "xenstore_rpc.embedded", "--socket", self.at("store"))
        parts.start("xenstored", store, lambda: _listens(self.at("store")))
        for name, command in self._legacy.items():
            parts.start_daemon(f"legacy {name}", command, self.at(f"{name}.pid"))
        self.at("bridge.toml").write_text(self._settings())
        bridge = python("-m", "bridges", "run", "--settings", self.at("bridge.toml"))
        parts.start("bridge", bridge, lambda: self.bridge("status")[0] == 0)
        options: list[str | Path] = [
            "--bus",
            self.bus,
            "--xenstore",
            self.at("store"),
            "--executions",
            self.at("executions"),
        ]
        on_bus = python(ROOT / "examples" / "squeezed_on_bus.py", *options)
        parts.start("squeezed on the bus", on_bus, lambda: "candidate" in parts.last_words("squeezed on the bus"))

    def _settings(self) -> str:
        lines = [
            f'[bus]\naddress = "{self.bus}"',
            f'[xenstore]\nsocket = "{self.at("store")}"',
            f'[state]\ndirectory = "{self.at("state")}"',
            f'[control]\nsocket = "{self.at("control")}"',
        ]
        for name, socket_name in (("squeezed", "memory"), ("xenopsd", "xenopsd")):
            pidfile = self.at(f"{name}.pid")
            stop = ["/bin/sh", "-c", f"kill $(cat {pidfile})"]
            start = json.dumps(self._legacy[name])
            lines.append(f"[services.{name}]")
            lines.append(f'legacy = {{ start = {start}, stop = {json.dumps(stop)}, pidfile = "{pidfile}" }}')
            path = self.at(socket_name)
            lines.append(f'http = {{ socket = "{path}", legacy = "{path}.legacy" }}')
            lines += ['xenstore = "squeezed"'] if name == "squeezed" else []
        return "\n".join(lines) + "\n"

    def bridge(self, *arguments: str) -> tuple[int, str]:
        """Runs the command xcp-bridge."""
        settings = self.at("bridge.toml")
        return self.parts.run(python("-m", "bridges", *arguments, "--settings", settings))

    def move(self, service: str, stage: str, reason: str) -> None:
        """Moves a service and says so. Raises PartFailed."""
        skip = ("--skip", "a demonstration has no week for observe and shadow")
        code, output = self.bridge("stage", service, stage, "--reason", reason, *skip, "--json")
        if code != 0:
            raise PartFailed(f"xcp-bridge stage {service} {stage}: {output}\n{self.parts.last_words('bridge')}")
        for receipt in json.loads(output):
            held = receipt["held_seconds"] * 1000
            self.moves.append(Move(receipt["origin"], receipt["target"], receipt["epoch"], held))
            out.print(f"  {service}: {receipt['origin']} -> {receipt['target']}, calls held for {held:.0f} ms")

    def call_and_move(self) -> list[Call]:
        """Callers of all directions at work, squeezed moving to and fro under them: all of their calls."""
        ledger, stop = Ledger(), threading.Event()
        self._add_vm()
        callers = [
            XenstoreCaller(XENSTORE, ledger, stop),
            HttpCaller(HTTP, ledger, stop),
            SqueezedCaller(ON_BUS, ledger, stop),
            XenopsdCaller(TO_XENOPSD, ledger, stop),
        ]
        directions = [caller.direction for caller in callers]
        places = Places(self.bus, self.at("store"), self.at("memory"), VM)
        threads = [threading.Thread(target=caller.run, args=(places,), daemon=True) for caller in callers]
        for thread in threads:
            thread.start()
        try:
            for _ in range(ROUND_TRIPS):
                for stage, reason in (("live", "the new squeezed takes over"), ("relay", "and gives back")):
                    ledger.wait_for_more(directions, CALLS_BETWEEN_MOVES)
                    self.parts.check()
                    self.move("squeezed", stage, reason)
            ledger.wait_for_more(directions, CALLS_BETWEEN_MOVES)
        except TimeoutError as error:
            raise PartFailed(f"{error}\n{self.parts.last_words('bridge')}") from None
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return ledger.calls

    def _add_vm(self) -> None:
        """A halted VM for the callers of xenopsd, made through the bridge's HTTP door."""
        vm: dict[str, Value] = {
            **{name: {} for name in ("xsdata", "platformdata", "bios_strings")},
            **{name: ["Start"] for name in ("on_crash", "on_shutdown", "on_reboot")},
            **dict.fromkeys(("memory_static_max", "memory_dynamic_max", "memory_dynamic_min"), 1 << 30),
            **dict.fromkeys(("suppress_spurious_page_faults", "pci_msitranslate", "pci_power_mgmt"), False),
            "id": VM,
            "ssidref": 0,
            "vcpu_max": 1,
            "vcpus": 1,
            "scheduler_params": {"affinity": []},
            "ty": ["HVM", {}],
        }
        connection = UnixTransport(self.at("xenopsd")).make_connection("localhost")
        connection.request("POST", "/", write_call("VM.add", [{"debug_info": "demo", "vm": vm}]))
        read_reply(connection.getresponse().read())
        connection.close()

    def account(self, calls: list[Call]) -> bool:
        """Prints who called, who answered, and what is missing or too many. True when nothing is."""
        executed: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for line in self.at("executions").read_text().splitlines():
            side, function, token = line.split(" ")
            executed[function, token][side] += 1
        table = Table("direction", "calls", "by legacy", "by bus daemon", "slowest", "lost", "doubled", box=None)
        lost_calls, doubled_calls = [], []
        for direction in (XENSTORE, HTTP, ON_BUS, TO_XENOPSD):
            made = [call for call in calls if call.direction == direction]
            sides = Counter(side for call in made for side in executed[call.function, call.token].elements())
            lost = [call for call in made if call.error or not executed[call.function, call.token]]
            doubled = [call for call in made if executed[call.function, call.token].total() > 1]
            slowest = max((call.seconds for call in made), default=0.0)
            numbers = (len(made), sides["legacy"], sides["bus"], f"{slowest * 1000:.0f} ms", len(lost), len(doubled))
            table.add_row(direction, *map(str, numbers))
            lost_calls += lost
            doubled_calls += doubled
        moves = Table("move of squeezed", "epoch", "new calls held for", box=None)
        for move in self.moves:
            moves.add_row(f"{move.origin} -> {move.target}", str(move.epoch), f"{move.held_ms:.0f} ms")
        out.print("", moves, "", table, "", sep="\n")
        for call in lost_calls[:5]:
            out.print(f"lost: {call.direction}: {call.function} {call.token}: {call.error}", markup=False)
        for call in doubled_calls[:5]:
            out.print(f"doubled: {call.direction}: {call.function} {call.token}", markup=False)
        out.print(f"{len(calls)} calls, lost {len(lost_calls)}, doubled {len(doubled_calls)}")
        return not lost_calls and not doubled_calls

    def invite(self) -> None:
        """Lines to paste into another terminal."""
        settings = self.at("bridge.toml")
        bus, bridge = f"busctl --address={self.bus}", f"PYTHONPATH={ROOT} {sys.executable} -m bridges"
        if (installed := Path(sys.executable).with_name("xcp-bridge")).exists():
            bridge = str(installed)
        memory = "org.xen.xcp.squeezed /org/xen/xcp/squeezed/Memory org.xen.xcp.squeezed.Memory1"
        out.print("\nEverything keeps running; Ctrl-C ends it. In another terminal:\n")
        for line in (
            f"{bus} tree org.xen.xcp.squeezed",
            f"{bus} call {memory} ReserveMemory ssx me my-service 4096",
            f"{bus} introspect org.xen.xcp.xenopsd /org/xen/xcp/xenopsd/VM",
            f"XENSTORED_PATH={self.at('store')} xenstore-ls -s /squeezed",
            f"{bridge} status --settings {settings}",
            f"{bridge} stage squeezed live --reason 'to see it' --settings {settings}",
            f"{bridge} stage squeezed relay --reason 'and back' --settings {settings}",
            f"tail -f {self.at('executions')}",
        ):
            out.print(f"  {line}", markup=False)

    def play(self, *, keep: bool) -> None:
        """The whole story. Raises PartFailed."""
        out.print("starting a bus, a xenstored, legacy daemons, the bridge and a squeezed on the bus")
        self.start()
        code, report = self.bridge("check")
        out.print(report, markup=False)
        if code != 0:
            raise PartFailed("xcp-bridge check is not content")
        for service in ("squeezed", "xenopsd"):
            self.move(service, "relay", "the bridge comes between callers and daemon")
        self.moves.clear()
        out.print("moving squeezed while callers of all directions are at work")
        self.is_complete = self.account(self.call_and_move())
        if keep:
            self.invite()
            threading.Event().wait()


def _listens(path: str | Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _interrupt(*_signal: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Moves a service to D-Bus and back under load, on this machine.")
    parser.add_argument("--keep", action="store_true", help="keep everything running until Ctrl-C")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    # Short, for the paths of sockets; XenAPI.py cannot reach a path with an underscore.
    directory = Path(f"/tmp/xcp-demo-{os.getpid()}")
    directory.mkdir(mode=0o700)
    demo = Demo(directory)
    try:
        demo.play(keep=options.keep)
    except PartFailed as failure:
        out.print(f"the demo failed: {failure}", markup=False)
    except KeyboardInterrupt:
        out.print("ending")
    finally:
        demo.parts.stop()
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if demo.is_complete else 1)


if __name__ == "__main__":
    main()
