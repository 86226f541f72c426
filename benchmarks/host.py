"""Everything a measurement needs on this machine: bus, store, canned daemons, the bridge, the shims."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from examples.demo_parts import ROOT, PartFailed, Parts, python

BENCHMARKS: Final = Path(__file__).parent
OXENSTORED: Final = Path("/usr/lib/xen-4.17/bin/oxenstored")
OXENSTORED_SETTINGS: Final = """
pid-file = {0}/store.pid
persistent = false
xenstored-log-file = {0}/store.log
access-log-file = {0}/store.access
quota-maxentity = 1000000
quota-maxwatch = 100000
quota-transaction = 1000
"""
SHIMS: Final = ("http-to-bus", "http-relay", "bus-to-http", "bus-to-store", "store-to-bus")


class Usage:
    """What a process has used so far: CPU seconds, and its largest resident size since `reset`, in bytes."""

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")

    def reset(self) -> None:
        """Forgets the peak."""
        (self._directory / "clear_refs").write_text("5")

    def cpu(self) -> float:
        """User and system time of all its threads, also of those that ended."""
        fields = (self._directory / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> int:
        """Bytes; 0 when it has ended, whose memory nobody knows."""
        return self._memory("VmHWM")

    def resident(self) -> int:
        """Bytes now, as `peak`."""
        return self._memory("VmRSS")

    def _memory(self, name: str) -> int:
        lines = (self._directory / "status").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0) * 1024


class _Processes(Parts):
    def usage(self, name: str) -> Usage:
        return Usage(self._processes[name].pid)

    def end(self, name: str) -> None:
        self._end(self._processes.pop(name))

    def ends(self, name: str, seconds: float) -> bool:
        try:
            self._processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Machine:
    """A bus, a store and the bridge, in one short directory that the caller removes; the rest is its subclass's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bus = f"unix:path={directory}/bus"
        self._parts = _Processes(directory)

    def at(self, name: str) -> str:
        """A path in the directory."""
        return str(self.directory / name)

    def start_bus_and_store(self, store: str) -> None:
        """First of all, since they are ended last. Raises PartFailed."""
        self._start_bus()
        self._start_store(store)

    def start_part(self, name: str, command: list[str], ready: str) -> None:
        """Starts a process and waits until it has written `ready`. Raises PartFailed."""
        self._parts.start(name, command, lambda: ready in self._parts.last_words(name))

    def start_bridge(self, services: list[str]) -> None:
        """The bridge as it is installed, with these sections of settings. Raises PartFailed."""
        Path(self.at("bridge.toml")).write_text(self.settings(services))
        self.start_part("bridge", self.bridge_command("bridge.toml"), "ready")

    def settings(self, services: list[str], state: str = "state") -> str:
        """Where everything of this machine is, and these sections."""
        lines = [
            f'[bus]\naddress = "{self.bus}"',
            f'[xenstore]\nsocket = "{self.at("store")}"',
            f'[state]\ndirectory = "{self.at(state)}"',
            f'[control]\nsocket = "{self.at("control")}"',
        ]
        return "\n".join([*lines, *services]) + "\n"

    def bridge_command(self, settings: str) -> list[str]:
        """How the bridge is run with the settings of that file name."""
        return python("-m", "bridges", "run", "--settings", self.at(settings))

    def legacy_commands(self, name: str, start: list[str]) -> str:
        """The line of settings by which the bridge starts and stops a legacy daemon."""
        pidfile = self.at(f"{name}.pid")
        stop = json.dumps(["/bin/sh", "-c", f"kill $(cat {pidfile})"])
        return f'legacy = {{ start = {json.dumps(start)}, stop = {stop}, pidfile = "{pidfile}" }}'

    def http_door(self, name: str) -> str:
        """The line of settings about a service's HTTP socket."""
        return f'http = {{ socket = "{self.at(name)}", legacy = "{self.at(name)}.legacy" }}'

    def end_bridge(self) -> None:
        """Ends it, and leaves the rest."""
        self._parts.end("bridge")

    def stop(self) -> None:
        """Ends everything that was started, by its process id."""
        self._parts.stop()

    def move(self, service: str, stage: str) -> None:
        """Moves a service. Raises PartFailed."""
        words = ["stage", service, stage, "--settings", self.at("bridge.toml")]
        reasons = [word for option in ("reason", "skip", "override") for word in (f"--{option}", "benchmark")]
        code, output = self._parts.run(python("-m", "bridges", *words, *reasons))
        if code != 0:
            raise PartFailed(f"{service} to {stage}: {output}\n{self._parts.last_words('bridge')}")

    def usage(self, name: str) -> Usage:
        """What the process of that name uses."""
        return self._parts.usage(name)

    def _start_bus(self) -> None:
        configuration = (ROOT / "deploy" / "xcp-bus.conf").read_text()
        user = getpass.getuser()
        for shipped, ours in {
            "unix:path=/run/xcp/bus": self.bus,
            'user="root"': f'user="{user}"',
            "<fork/>": "",
        }.items():
            configuration = configuration.replace(shipped, ours)
        Path(self.at("bus.conf")).write_text(configuration)
        command = ["dbus-daemon", f"--config-file={self.at('bus.conf')}", "--nofork", "--nopidfile"]
        self._parts.start("bus", command, lambda: _listens(self.at("bus")))

    def _start_store(self, kind: str) -> None:
        command = python("-m", "xenstore_rpc.embedded", "--socket", self.at("store"))
        if kind == "oxenstored":
            # Xen's own daemon, unmodified; the library answers what it asks of the hypervisor.
            stub = ROOT / "tests" / "live" / "oxenstored_stub.c"
            subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", self.at("stub.so"), stub, "-ldl"], check=True)
            Path(self.at("store.conf")).write_text(OXENSTORED_SETTINGS.format(self.directory))
            daemon = [OXENSTORED, "--no-fork", "--no-domain-init", "--config-file", self.at("store.conf")]
            variables = [f"LD_PRELOAD={self.at('stub.so')}", f"OXENSTORED_DIRECTORY={self.directory}"]
            Path(self.at("store")).symlink_to("socket")  # the stub puts it there
            command = ["env", *variables, *map(str, daemon)]
        self._parts.start("store", command, lambda: _listens(self.at("store")))


class Host(Machine):
    """All that the directions need: canned daemons of two services, the shims, the load generator."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._generator: subprocess.Popen[str] | None = None

    def start(self, store: str) -> None:
        """Starts everything; services are in stage off. Raises PartFailed."""
        self.start_bus_and_store(store)
        for service in ("squeezed", "xenopsd"):
            self._parts.start_daemon(f"legacy {service}", self._legacy(service), Path(self.at(f"{service}.pid")))
        direct = ["--http", self.at("direct"), "--store", self.at("store"), "--tree", "direct"]
        self.start_part("legacy direct", python(BENCHMARKS / "daemons.py", "legacy", *direct), "canned legacy daemon")
        self.start_part("bus daemon", python(BENCHMARKS / "daemons.py", "bus", "--bus", self.bus), "serving")
        self.start_bridge([self._settings_of(service) for service in ("squeezed", "xenopsd")])
        for shim in SHIMS:
            self._start_shim(shim)
        self._generator = subprocess.Popen(
            python(BENCHMARKS / "load.py", "--bus", self.bus, "--store", self.at("store")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def stop(self) -> None:
        """Ends everything that was started, by its process id."""
        if self._generator is not None:
            assert self._generator.stdin is not None
            self._generator.stdin.close()
            try:
                self._generator.wait(10)
            except subprocess.TimeoutExpired:
                self._generator.kill()
                self._generator.wait()
        super().stop()

    def check(self, shim: str) -> str | None:
        """After a failed call: starts the shim again if it ended over it, and gives its last words.

        Raises PartFailed when another part has ended.
        """
        if not self._parts.ends(shim, 1.0):
            self._parts.check()
            return None
        words = self._parts.last_words(shim)
        self._start_shim(shim)
        self._parts.check()
        return words

    def load(self, order: dict[str, Any]) -> dict[str, Any]:
        """One slice of load, made by the generator. Raises PartFailed when a part has ended."""
        generator = self._generator
        assert generator is not None and generator.stdin is not None and generator.stdout is not None  # noqa: PT018 -- all or none
        generator.stdin.write(json.dumps(order) + "\n")
        generator.stdin.flush()
        line = generator.stdout.readline()
        if not line:
            raise PartFailed("the load generator ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start_shim(self, shim: str) -> None:
        options = {"bus": self.bus, "socket": self.at(shim), "legacy": self.at("direct")}
        if "store" in shim:
            options |= {"store": self.at("store"), "tree": "direct" if shim == "bus-to-store" else "byhand"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.start_part(shim, python(BENCHMARKS / "handwritten.py", shim, *words), "serving")

    def _legacy(self, service: str) -> list[str]:
        options = ["--http", self.at(service), "--pidfile", self.at(f"{service}.pid"), "--background"]
        options += ["--store", self.at("store"), "--tree", "squeezed"] if service == "squeezed" else []
        return python(BENCHMARKS / "daemons.py", "legacy", *options, "--log", self.at(f"{service}.log"))

    def _settings_of(self, service: str) -> str:
        lines = [f"[services.{service}]", self.legacy_commands(service, self._legacy(service)), self.http_door(service)]
        lines += ['xenstore = "squeezed"', 'reach = "xenstore"'] if service == "squeezed" else []
        return "\n".join(lines)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def interpreter() -> str:
    """The Python that everything runs on."""
    return f"Python {sys.version.split()[0]}"
