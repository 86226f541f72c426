"""A small legacy xenopsd, to try the bridge against: XML-RPC on a Unix socket as rpclib speaks it, VMs in memory.

    python examples/legacy_xenopsd.py --socket /tmp/xenopsd --background --pidfile /tmp/xenopsd.pid

Arguments come in one struct by name, records leave with their members in reverse order, an option is absent or bare, a
long operation answers a task's id at once. What is not in METHODS does not exist: the connection is closed silently.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from executions import Executions
from legacy_http import Failure, HttpServer, UnknownMethod, Value, integer, marshal_error
from legacy_process import add_options, enter

Record = dict[str, Value]

# Arguments that must be there, beside debug_info.
METHODS: dict[str, tuple[str, ...]] = {
    "query": (),
    "VM.add": ("vm",),
    "VM.remove": ("id",),
    "VM.exists": ("id",),
    "VM.stat": ("id",),
    "VM.list": (),
    "VM.start": ("id", "paused"),
    "VM.shutdown": ("id",),
    "VM.pause": ("id",),
    "VM.unpause": ("id",),
    "Task.stat": ("id",),
    "Task.list": (),
    "Task.destroy": ("id",),
    "UPDATES.get": (),
    "UPDATES.last_id": (),
    "DEBUG.trigger": ("cmd", "args"),
}
# Power states that an operation accepts, and the one it leads to; the first is what an error says it expected.
OPERATIONS = {
    "VM.start": (("Halted",), "Running"),
    "VM.shutdown": (("Running", "Paused"), "Halted"),
    "VM.pause": (("Running",), "Paused"),
    "VM.unpause": (("Paused",), "Running"),
}
# The record Vm.t in the order of its declaration, with the defaults that the interface gives.
VM_MEMBERS = (  # noqa: SIM905 -- one name a line would hide the table around it
    "id name ssidref xsdata platformdata bios_strings ty suppress_spurious_page_faults machine_address_size "
    "memory_static_max memory_dynamic_max memory_dynamic_min vcpu_max vcpus scheduler_params on_crash on_shutdown "
    "on_reboot on_softreboot pci_msitranslate pci_power_mgmt has_vendor_device generation_id"
).split()
VM_OPTIONAL = {"machine_address_size", "generation_id"}
VM_DEFAULTS: Record = {"name": "unnamed", "on_softreboot": ["Softreboot"], "has_vendor_device": False}


class Updates:
    """What changed, newest id per object; readers wait for ids above the one they know. Ids start at 1."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], int] = {}
        self.last = 0
        self._changed = threading.Condition()

    def add(self, kind: str, name: str) -> None:
        """Announces that an object changed, appeared or vanished."""
        with self._changed:
            self.last += 1
            self._newest[kind, name] = self.last
            self._changed.notify_all()

    def after(self, known: int, timeout: float | None) -> tuple[list[Value], int]:
        """Objects that changed after `known`, oldest first, and the id to ask with next time."""
        with self._changed:
            self._changed.wait_for(lambda: self.last > known, timeout)
            changed = sorted((number, name) for name, number in self._newest.items() if number > known)
            return [[kind, name] for _, (kind, name) in changed], max(self.last, known)


class Xenopsd:
    """The service: `answer` is the whole of it."""

    def __init__(self, executions: Executions, slow_ms: int) -> None:
        self._executions = executions
        self._slow_ms = slow_ms
        self._lock = threading.Lock()
        self._vms: dict[str, Record] = {}
        self._states: dict[str, str] = {}
        self._tasks: dict[str, Record] = {}
        self._task_count = 0
        self._domids: dict[str, int] = {}
        self._updates = Updates()
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        threading.Thread(target=self._operate, daemon=True).start()

    def answer(self, method: str, params: list[Value]) -> Value:
        """The result of a call. Raises UnknownMethod, Failure."""
        needed = METHODS.get(method)
        if needed is None:
            raise UnknownMethod(method)
        arguments = self._arguments(method, params)
        for name in ("debug_info", *needed):
            if name not in arguments:
                raise marshal_error(f"Expecting named argument '{name}'")
        self._executions.count(method, str(arguments["debug_info"]))
        time.sleep(self._slow_ms / 1000)
        if method == "UPDATES.get":
            return self._get_updates(arguments)
        with self._lock:
            if method in OPERATIONS:
                return self._begin(method, arguments)
            handler: Callable[[Record], Value] = getattr(self, "_" + method.lower().replace(".", "_"))
            return handler(arguments)

    def _arguments(self, method: str, params: list[Value]) -> Record:
        if params and isinstance(params[0], dict):
            return params[0]
        if method == "query" and len(params) == 2:
            return {"debug_info": params[0]}  # peers before 2018
        raise marshal_error("Marshalling error: Expecting dict as first argument when named parameters exist")

    def _query(self, _arguments: Record) -> Value:
        return {
            "instance_id": "6f2d7f6e-legacy",
            "features": ["VM"],
            "version": "0.1",
            "vendor": "example",
            "name": "legacy xenopsd",
        }

    def _vm_add(self, arguments: Record) -> Value:
        given = arguments["vm"]
        if not isinstance(given, dict):
            raise marshal_error("Expected dict, got a value")
        vm = VM_DEFAULTS | {name.lower(): value for name, value in given.items()}
        for member in VM_MEMBERS:
            if member not in vm and member not in VM_OPTIONAL:
                raise marshal_error(f"Undefined field: Expecting '{member}'")
        identity = str(vm["id"])
        if identity in self._vms:
            raise Failure(["Already_exists", ["vm", identity]])
        self._vms[identity] = {member: vm[member] for member in reversed(VM_MEMBERS) if member in vm}
        self._states[identity] = "Halted"
        self._updates.add("Vm", identity)
        return identity

    def _vm_remove(self, arguments: Record) -> Value:
        identity = self._known(arguments)
        if self._states[identity] != "Halted":
            raise Failure(["Bad_power_state", [self._states[identity], "Halted"]])
        del self._vms[identity], self._states[identity]
        self._updates.add("Vm", identity)
        return None

    def _vm_exists(self, arguments: Record) -> Value:
        return arguments["id"] in self._vms

    def _vm_stat(self, arguments: Record) -> Value:
        return self._described(self._known(arguments))

    def _vm_list(self, _arguments: Record) -> Value:
        return [self._described(identity) for identity in self._vms]

    def _task_stat(self, arguments: Record) -> Value:
        return self._task(arguments)

    def _task_list(self, _arguments: Record) -> Value:
        return list(self._tasks.values())

    def _task_destroy(self, arguments: Record) -> Value:
        del self._tasks[str(self._task(arguments)["id"])]
        return None

    def _updates_last_id(self, _arguments: Record) -> Value:
        return self._updates.last

    def _debug_trigger(self, arguments: Record) -> Value:
        raise Failure(["Unimplemented", arguments["cmd"]])

    def _get_updates(self, arguments: Record) -> Value:
        """Waits for news; for ever without a timeout. Without last_id everything known is news."""
        try:
            known = integer(arguments.get("last_id", "0"))
            timeout = integer(arguments["timeout"]) if "timeout" in arguments else None
        except ValueError as error:
            raise marshal_error(f"Expected int, got '{error}'") from None
        if "last_id" not in arguments and self._updates.last == 0:
            return [[], [], 0]
        changed, following = self._updates.after(known, timeout)
        return [[], changed, following]

    def _known(self, arguments: Record) -> str:
        identity = str(arguments["id"])
        if identity not in self._vms:
            raise Failure(["Does_not_exist", ["VM", identity]])
        return identity

    def _task(self, arguments: Record) -> Record:
        identity = str(arguments["id"])
        if identity not in self._tasks:
            raise Failure(["Does_not_exist", ["task", identity]])
        return self._tasks[identity]

    def _begin(self, method: str, arguments: Record) -> str:
        """Checks the power state, and leaves the work to the worker: the caller gets the task's id at once."""
        identity = self._known(arguments)
        accepted, leads_to = OPERATIONS[method]
        if self._states[identity] not in accepted:
            raise Failure(["Bad_power_state", [self._states[identity], accepted[0]]])
        self._task_count += 1
        task: Record = {
            "cancellable": False,
            "backtrace": "",
            "debug_info": {},
            "subtasks": {},
            "state": ["Pending", 0.0],
            "ctime": datetime.now(UTC).timestamp(),
            "dbg": arguments["debug_info"],
            "id": str(self._task_count),
        }
        self._tasks[str(task["id"])] = task
        self._updates.add("Task", str(task["id"]))
        begun = time.monotonic()

        def finish() -> None:
            with self._lock:
                if identity in self._states:
                    self._states[identity] = leads_to
                    self._domids.setdefault(identity, len(self._domids) + 1)
                task["state"] = ["Completed", {"duration": time.monotonic() - begun}]
            self._updates.add("Vm", identity)
            self._updates.add("Task", str(task["id"]))

        self._work.put(finish)
        return str(task["id"])

    def _operate(self) -> None:
        while True:
            self._work.get()()

    def _described(self, identity: str) -> Value:
        vm, power = self._vms[identity], self._states[identity]
        alive = power in ("Running", "Paused")
        memory = vm["memory_static_max"] if alive else 0
        state: Record = {
            "numa_node_memory": [],
            "numa_nodes": 0,
            "numa_optimised": False,
            "featureset": "",
            "domain_type": "Domain_PV",
            "nested_virt": False,
            "nomigrate": False,
            "hvm": False,
            "last_start_time": 0.0,
            "pv_drivers_detected": alive,
            "xsdata_state": {},
            "guest_agent": {},
            "uncooperative_balloon_driver": False,
            "rtc_timeoffset": "0",
            "shadow_multiplier_target": 1.0,
            "vcpu_target": vm["vcpus"],
            "memory_limit": memory,
            "memory_actual": memory,
            "memory_target": memory,
            "consoles": [],
            "domids": [self._domids[identity]] if alive else [],
            "power_state": power,
        }
        return [vm, state]


def main() -> None:
    """Runs the daemon until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small legacy xenopsd.")
    parser.add_argument("--socket", type=Path, required=True, help="where to serve")
    add_options(parser)
    options = parser.parse_args()
    serving = enter(options)
    try:
        service = Xenopsd(Executions(options.executions), options.slow_ms)
        server = HttpServer(options.socket, "xenopsd", service.answer)
    except OSError as error:
        sys.exit(f"legacy xenopsd: {options.socket}: {error.strerror}")
    serving(f"legacy xenopsd serves {options.socket}")
    server.serve_forever()


if __name__ == "__main__":
    main()
