"""The small legacy xapi, through the real XenAPI client, raw JSON-RPC and raw bytes, over TCP and the Unix socket."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import xmlrpc.client
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = json.loads((EXAMPLES / "legacy_xapi_model.json").read_text())
NULL = "OpaqueRef:NULL"
PATIENCE = 30
TEXT = "<value>{}</value>"
PLAIN: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, str) and str(int(value)) == value,
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: isinstance(value, float),
    "datetime": lambda value: isinstance(value, xmlrpc.client.DateTime),
}


class Daemon:
    """A running legacy xapi."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.path = directory / "xapi"
        command = [sys.executable, str(EXAMPLES / "legacy_xapi.py"), "--socket", str(self.path), "--tcp-port", "0"]
        command += ["--executions", str(directory / "executions"), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.port = int(self.line.rpartition(":")[2])
        self._open: list[Callable[[], Any]] = []

    def end(self) -> int:
        """Closes the clients too; the daemon's status."""
        for close in self._open:
            close()
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def connect(self, *, unix: bool) -> socket.socket:
        """A raw connection."""
        connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        connection.settimeout(PATIENCE)
        connection.connect(str(self.path) if unix else ("127.0.0.1", self.port))
        return connection

    def raw(self, sent: bytes, *, unix: bool = True) -> bytes:
        """Everything that comes back for these bytes, after which we have no more to say."""
        with self.connect(unix=unix) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def json(self, method: str, *params: Any, **more: Any) -> Any:
        """The reply to a call in JSON-RPC."""
        return json.loads(self.post("/jsonrpc", json.dumps({"method": method, "params": params, "id": 1} | more)))

    def post(self, path: str, body: str) -> bytes:
        """The body of the reply."""
        head = f"POST {path} HTTP/1.0\r\ncontent-length: {len(body.encode())}\r\n\r\n"
        return self.raw((head + body).encode()).partition(b"\r\n\r\n")[2]

    def login(self, *, unix: bool = False, password: str = "xapi") -> Any:
        """A session of the XenAPI client."""
        where = str(self.path).replace("/", "_") + "/" if unix else f"127.0.0.1:{self.port}"
        session = XenAPI.Session(f"http://{where}", transport=XenAPI.UDSTransport() if unix else None)
        self._open.append(session("close"))
        session.login_with_password("root", password, "1.0", "test")
        return session

    def http(self) -> http.client.HTTPConnection:
        """Over TCP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self._open.append(connection.close)
        return connection

    def executions(self) -> Counter[tuple[str, str]]:
        lines = (self.directory / "executions").read_text().splitlines()
        return Counter((name, token) for _, name, token in map(str.split, lines))


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """A function that starts a daemon with more options."""
    directory = Path(f"/tmp/xx{secrets.token_hex(4)}")  # not mkdtemp: XenAPI.py takes `_` in a path for `/`
    directory.mkdir()
    daemons: list[Daemon] = []

    def begin(*options: str) -> Daemon:
        daemons.append(Daemon(directory, *options))
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.end()
    shutil.rmtree(directory)


@pytest.fixture
def daemon(start: Callable[..., Daemon]) -> Daemon:
    """A daemon with three VMs: vm0 and vm2 run."""
    return start()


@pytest.fixture(params=["tcp", "unix"])
def session(daemon: Daemon, request: pytest.FixtureRequest) -> Any:
    """A logged-in client, over both transports."""
    return daemon.login(unix=request.param == "unix")


def fails(call: Callable[..., Any], *params: Any) -> list[str]:
    """The description of the failure that a call ends with."""
    with pytest.raises(XenAPI.Failure) as caught:
        call(*params)
    details: list[str] = caught.value.details
    return details


def fits(of: str, value: Any) -> bool:
    """Whether what the XML-RPC client got is of a type of the data model."""
    if of.endswith(" set"):
        return isinstance(value, list) and all(fits(of[:-4], item) for item in value)
    if of.endswith(" map"):
        inner = of[1:-5].partition(" -> ")[2]
        return isinstance(value, dict) and all(fits(inner, item) for item in value.values())
    if of.startswith("enum "):
        return value in MODEL["enums"][of[5:]]
    if of.endswith(" ref"):
        return isinstance(value, str) and value.startswith("OpaqueRef:")
    return PLAIN[of](value)


def test_records_are_whole_and_typed(session: Any) -> None:
    """Every class answers all of its calls of the kind, and a record has exactly the fields of the model."""
    session.xenapi.task.create("a task", "")
    session.xenapi.message.create("M", 5, "VM", "u", "body")
    seen = set()
    for kind, described in MODEL["classes"].items():
        if "get_all_records" not in described["implied"]:
            continue
        calls = getattr(session.xenapi, kind)
        records = calls.get_all_records()
        assert list(records) == calls.get_all()
        for ref, record in records.items():
            assert calls.get_record(ref) == record
            assert calls.get_by_uuid(record["uuid"]) == ref
            assert list(record) == list(described["fields"])
            wrong = [name for name, (of, *_) in described["fields"].items() if not fits(of, record[name])]
            assert wrong == [], kind
            seen.add(kind)
    assert seen == set(MODEL["classes"]) - {"session", "event", "system", "VIF_metrics", "VBD_metrics"}
    assert session.API_version == "2.21"


def test_the_objects_point_at_each_other(session: Any) -> None:
    """Back references are there from the beginning and follow what is created and destroyed."""
    x = session.xenapi
    (vm,) = x.VM.get_by_name_label("vm0")
    (vbd,) = x.VM.get_VBDs(vm)
    vdi = x.VBD.get_VDI(vbd)
    assert x.VDI.get_VBDs(vdi) == [vbd]
    assert x.VDI.get_name_description(vdi) == ""
    assert vm in x.host.get_resident_VMs(x.VM.get_resident_on(vm))
    assert x.VM.get_name_description(vm) == 'vm0: größer <&> "kleiner"'
    made = x.VBD.create({"VM": vm, "VDI": vdi, "mode": "ro", "userdevice": "1", "unknown": "ignored"})
    assert x.VM.get_VBDs(vm) == [vbd, made]
    assert x.VBD.get_mode(made) == "RO"
    x.VBD.destroy(made)
    assert x.VM.get_VBDs(vm) == [vbd]


def test_refs_are_the_same_every_time(start: Callable[..., Daemon]) -> None:
    """Two daemons that were asked the same have the same objects; sessions are never the same."""
    seen = []
    for _ in range(2):
        daemon = start("--hosts", "2", "--vms", "5")
        session = daemon.login()
        made = session.xenapi.VM.clone(session.xenapi.VM.get_by_name_label("vm1")[0], "copy")
        seen.append((session.xenapi.VM.get_all_records(), session.xenapi.host.get_all(), made))
        seen.append(session.handle)
        daemon.end()
    assert seen[0] == seen[2]
    assert seen[1] != seen[3]
    assert len(seen[0][1]) == 2


def test_passwords_count_over_tcp_only(daemon: Daemon) -> None:
    """The Unix socket believes everybody."""
    with pytest.raises(XenAPI.Failure) as caught:
        daemon.login(password="wrong")
    assert caught.value.details[:2] == ["SESSION_AUTHENTICATION_FAILED", "root"]
    session = daemon.login(unix=True, password="wrong")
    record = session.xenapi.session.get_record(session.handle)
    assert (record["auth_user_name"], record["originator"]) == ("root", "test")


def test_fields_sets_and_maps_change(session: Any) -> None:
    """What is set is read back; a key that is there already is refused, one that is not may be removed."""
    x = session.xenapi
    (vm,) = x.VM.get_by_name_label("vm1")
    assert x.VM.set_name_label(vm, "other") == ""
    assert x.VM.get_by_name_label("other") == [vm]
    x.VM.add_tags(vm, "a")
    x.VM.add_tags(vm, "a")
    x.VM.remove_tags(vm, "example")
    assert x.VM.get_tags(vm) == ["a"]
    x.VM.set_other_config(vm, {"k": "1"})
    uuid = x.VM.get_uuid(vm)
    assert fails(x.VM.add_to_other_config, vm, "k", "2") == ["MAP_DUPLICATE_KEY", "VM", "other_config", uuid, "k"]
    x.VM.remove_from_other_config(vm, "k")
    x.VM.remove_from_other_config(vm, "k")
    x.VM.add_to_other_config(vm, "k", "3")
    assert x.VM.get_other_config(vm) == {"k": "3"}
    x.VM.set_memory_static_max(vm, str(1 << 40))
    assert x.VM.get_memory_static_max(vm) == str(1 << 40)
    x.VM.set_HVM_shadow_multiplier(vm, 0.1)
    assert x.VM.get_HVM_shadow_multiplier(vm) == 0.1
    x.VM.set_actions_after_shutdown(vm, "Restart")
    assert x.VM.get_actions_after_shutdown(vm) == "restart"


def test_messages_hosts_and_plugins(session: Any) -> None:
    """The calls of their own that some classes have."""
    x = session.xenapi
    uuid = x.VM.get_uuid(x.VM.get_by_name_label("vm1")[0])
    mine = x.message.create("M", "3", "VM", uuid, "text")
    other = x.message.create("M", "3", "VM", "another", "text")
    assert list(x.message.get("vm", uuid, xmlrpc.client.DateTime("19700101T00:00:00Z"))) == [mine]
    assert set(x.message.get_since(xmlrpc.client.DateTime("2024-02-29T12:00:00Z"))) == {mine, other}
    assert x.message.get_since(xmlrpc.client.DateTime("29990101T00:00:00Z")) == {}
    x.message.destroy_many([mine, other])
    assert x.message.get_all() == []
    (host,) = x.host.get_all()
    x.host.disable(host)
    assert x.host.get_enabled(host) is False
    x.host.enable(host)
    assert x.host.get_enabled(host) is True
    assert x.host.call_plugin(host, "echo", "f", {"text": "é"}) == "é"
    (pbd, *_) = x.PBD.get_all()
    assert fails(x.PBD.plug, pbd) == ["DEVICE_ALREADY_ATTACHED", pbd]
    x.PBD.unplug(pbd)
    assert x.PBD.get_currently_attached(pbd) is False


def test_errors_have_the_codes_of_the_api(session: Any) -> None:
    """Each with its parameters, as texts."""
    x = session.xenapi
    (vm,) = x.VM.get_by_name_label("vm0")
    host = x.host.get_all()[0]
    for call, params, expected in [
        (x.VM.get_uuid, ("OpaqueRef:x",), ["HANDLE_INVALID", "VM", "OpaqueRef:x"]),
        (x.VM.get_uuid, (host,), ["HANDLE_INVALID", "VM", host]),
        (x.VM.set_affinity, (vm, "OpaqueRef:x"), ["HANDLE_INVALID", "host", "OpaqueRef:x"]),
        (x.VIF.create, ({"VM": "OpaqueRef:x"},), ["HANDLE_INVALID", "VM", "OpaqueRef:x"]),
        (x.VM.get_by_uuid, ("x",), ["UUID_INVALID", "VM", "x"]),
        (x.VM.nonsense, (vm,), ["MESSAGE_METHOD_UNKNOWN", "VM.nonsense"]),
        (x.VM.start, (vm,), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "1"]),
        (x.VM.get_all, (vm,), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_all", "0", "1"]),
        (x.VM.set_order, (vm, "many"), ["FIELD_TYPE_ERROR", "value"]),
        (x.VM.set_order, (vm, str(1 << 63)), ["FIELD_TYPE_ERROR", "value"]),
        (x.VM.start, (vm, "no", False), ["FIELD_TYPE_ERROR", "start_paused"]),
        (x.VM.start, (vm, False, False), ["VM_BAD_POWER_STATE", vm, "halted", "running"]),
        (x.VM.destroy, (vm,), ["VM_BAD_POWER_STATE", vm, "halted", "running"]),
        (x.Async.VM.get_uuid, (vm,), ["Fault", "VM.get_uuid has no asynchronous form"]),
        (x.host.call_plugin, (host, "no", "f", {}), ["XENAPI_MISSING_PLUGIN", "no"]),
        (x.event.inject, ("vm", "OpaqueRef:x"), ["HANDLE_INVALID", "VM", "OpaqueRef:x"]),
    ]:
        assert fails(call, *params) == expected
    refused = fails(x.VM.set_actions_after_shutdown, vm, "dance")
    assert refused[:3] == ["VALUE_NOT_SUPPORTED", "value", "dance"]
    (template,) = (ref for ref, vm in x.VM.get_all_records().items() if vm["is_a_template"])
    assert fails(x.VM.start, template, False, False) == ["VM_IS_TEMPLATE", template]


def test_a_vm_lives_and_dies(session: Any) -> None:
    """Power states follow the operations, and devices, host and metrics follow the power state."""
    x = session.xenapi
    (vm,) = x.VM.get_by_name_label("vm1")
    for operation, params, state in [
        ("start", (True, False), "Paused"),
        ("unpause", (), "Running"),
        ("suspend", (), "Suspended"),
        ("resume", (False, False), "Running"),
        ("clean_reboot", (), "Running"),
        ("clean_shutdown", (), "Halted"),
        ("start_on", (x.host.get_all()[0], False, False), "Running"),
    ]:
        assert getattr(x.VM, operation)(vm, *params) == ""
        assert x.VM.get_power_state(vm) == state
    assert x.VM.get_resident_on(vm) == x.host.get_all()[0]
    assert x.VBD.get_currently_attached(x.VM.get_VBDs(vm)[0]) is True
    assert x.VM_metrics.get_start_time(x.VM.get_metrics(vm)).value > "20240229T12:00:00Z"
    assert "hard_shutdown" in x.VM.get_allowed_operations(vm)
    x.VM.hard_shutdown(vm)
    assert (x.VM.get_resident_on(vm), x.VM.get_domid(vm)) == (NULL, "-1")
    copy = x.VM.clone(vm, "copy")
    assert x.VM.get_VBDs(copy) == []
    assert x.VM.get_uuid(copy) != x.VM.get_uuid(vm)
    made = x.VM.create({"name_label": "made", "memory_static_max": "1024", "VCPUs_max": 2, "is_a_template": False})
    x.VM.start(made, False, False)
    assert x.VM.get_VCPUs_max(made) == "2"
    vbds = x.VM.get_VBDs(vm)
    x.VM.destroy(vm)
    assert fails(x.VM.get_uuid, vm) == ["HANDLE_INVALID", "VM", vm]
    assert fails(x.VBD.get_uuid, vbds[0]) == ["HANDLE_INVALID", "VBD", vbds[0]]


def finished(session: Any, task: str) -> dict[str, Any]:
    """The record of a task that is over, for which we wait by its events."""
    token = ""
    while True:
        batch = session.xenapi.event_from([f"task/{task}"], token, float(PATIENCE))
        token, record = batch["token"], batch["events"][-1]["snapshot"]
        if record["status"] not in ("pending", "cancelling"):
            return dict(record)


def test_one_thing_at_a_time(start: Callable[..., Daemon]) -> None:
    """While a task works on a VM nothing else may, until it is cancelled."""
    session = start("--operation-ms", "600000").login()
    x = session.xenapi
    (vm,) = x.VM.get_by_name_label("vm1")
    task = x.Async.VM.start(vm, False, False)
    assert x.task.get_status(task) == "pending"
    assert x.VM.get_current_operations(vm) == {task: "start"}
    busy = ["OTHER_OPERATION_IN_PROGRESS", "VM", vm, "start", task]
    assert fails(x.VM.hard_shutdown, vm) == fails(x.VM.destroy, vm) == busy
    x.task.cancel(task)
    ended = finished(session, task)
    assert (ended["status"], ended["error_info"]) == ("cancelled", ["TASK_CANCELLED", task])
    assert (x.VM.get_current_operations(vm), x.VM.get_power_state(vm)) == ({}, "Halted")
    assert fails(x.task.cancel, task)[0] == "OPERATION_NOT_ALLOWED"


def test_tasks_end(session: Any) -> None:
    """With nothing, with a result as XML, or with an error."""
    x = session.xenapi
    (vm,) = x.VM.get_by_name_label("vm1")
    task = x.Async.VM.clone(vm, "copy")
    cloned = finished(session, task)
    assert cloned["result"] == TEXT.format(x.VM.get_by_name_label("copy")[0])
    started = finished(session, x.Async.VM.start(vm, False, False))
    assert (started["status"], started["result"], started["progress"]) == ("success", "", 1.0)
    assert x.VM.get_power_state(vm) == "Running"
    again = finished(session, x.Async.VM.start(vm, False, False))
    assert (again["status"], again["error_info"]) == ("failure", ["VM_BAD_POWER_STATE", vm, "halted", "running"])
    x.task.destroy(task)
    assert fails(x.task.get_status, task) == ["HANDLE_INVALID", "task", task]


def test_events_from(session: Any) -> None:
    """Everything at first, then what changed, whole; nothing when the time is over; what went away is named."""
    x = session.xenapi
    everything = x.event_from(["*"], "", 1.0)
    assert re.fullmatch(r"\d{20},\d{20}", everything["token"])
    assert {event["operation"] for event in everything["events"]} == {"add"}
    (vm,) = x.VM.get_by_name_label("vm1")
    assert everything["valid_ref_counts"]["vm"] == len(x.VM.get_all())
    assert everything["valid_ref_counts"]["task"] == 0

    x.VM.set_name_label(vm, "one")
    x.VM.set_name_label(vm, "two")
    x.VM.set_name_label(vm, "two")
    batch = x.event_from(["VM"], everything["token"], 1.0)
    (event,) = batch["events"]
    assert event == {
        "id": str(int(batch["token"][:20])),
        "timestamp": "0.0",
        "class": "vm",
        "operation": "mod",
        "ref": vm,
        "snapshot": x.VM.get_record(vm),
    }
    assert list(batch["valid_ref_counts"]) == ["vm"]

    (other,) = x.VM.get_by_name_label("vm2")
    x.VM.set_name_label(other, "three")
    nothing = x.event_from([f"vm/{vm}"], batch["token"], 0.1)
    assert nothing["events"] == []
    assert nothing["token"] > batch["token"]

    x.VM.destroy(vm)
    gone = [event for event in x.event_from(["vm"], nothing["token"], 1.0)["events"] if event["ref"] == vm]
    assert [(event["operation"], "snapshot" in event) for event in gone] == [("del", False)]
    barrier = x.event.inject("pool", x.pool.get_all()[0])
    assert x.event_from(["pool"], nothing["token"], 1.0)["token"] >= barrier
    assert fails(x.event_from, ["*"], "no", 1.0) == ["EVENT_FROM_TOKEN_PARSE_FAILURE", "no"]
    assert fails(x.event_from, ["*"], f"{10**19:020},{0:020}", 1.0) == ["EVENTS_LOST"]


def test_many_wait_for_one_event(daemon: Daemon) -> None:
    """Every waiter hears of it; over JSON, numbers are numbers."""
    session = daemon.json("session.login_with_password", "root", "")["result"]
    (vm,) = daemon.json("VM.get_by_name_label", session, "vm1")["result"]
    token = daemon.json("event.inject", session, "VM", vm)["result"]
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(daemon.json, "event.from", session, ["vm"], token, PATIENCE) for _ in range(40)]
        while daemon.executions()["event.from", token] < 40:
            assert not any(one.done() for one in waiting)
        daemon.json("VM.set_order", session, vm, 7)
        for one in waiting:
            (event,) = one.result()["result"]["events"]
            assert event["snapshot"]["order"] == 7
            assert one.result()["result"]["valid_ref_counts"] == {"vm": 5}


def test_events_by_registration(session: Any) -> None:
    """`next` tells every change and waits for the first; who falls behind has lost events."""
    x = session.xenapi
    assert fails(x.event.next) == ["SESSION_NOT_REGISTERED", session.handle]
    x.event.register(["vm"])
    (vm,) = x.VM.get_by_name_label("vm1")
    x.VM.set_name_label(vm, "a")
    x.VM.set_name_label(vm, "b")
    assert [event["snapshot"]["name_label"] for event in x.event.next()] == ["a", "b"]
    for number in range(501):
        x.VM.set_order(vm, str(number + 1))
    assert fails(x.event.next) == ["EVENTS_LOST"]
    assert fails(x.event.next) == ["SESSION_NOT_REGISTERED", session.handle]


def test_dropped_sessions(daemon: Daemon) -> None:
    """SIGUSR1 ends them: the client logs in again by itself, who waits for events hears that the session is over."""
    session = daemon.login()
    old = session.handle
    token = session.xenapi.event.inject("pool", session.xenapi.pool.get_all()[0])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(daemon.json, "event.from", old, ["*"], token, float(PATIENCE))
        while not daemon.executions()["event.from", token]:
            assert not waiting.done()
        daemon.process.send_signal(signal.SIGUSR1)
        assert waiting.result()["error"] == ["SESSION_INVALID", old]
    assert session.xenapi.pool.get_all() != []
    assert session.handle != old
    handle = session.handle
    session.xenapi.session.logout()
    assert daemon.json("pool.get_all", handle)["error"] == ["SESSION_INVALID", handle]


def test_json(daemon: Daemon) -> None:
    """Version 1 and 2 in results and errors; ids keep their types; every value has its JSON form."""
    session = daemon.json("session.login_with_password", "root", "")["result"]
    vm = daemon.json("VM.get_by_name_label", session, "vm1")["result"][0]
    for identity in (7, "seven", None):
        reply = daemon.json("VM.get_order", session, vm, id=identity)
        assert reply == {"result": 0, "error": None, "id": identity}
    unknown = daemon.json("VM.no", session)
    assert unknown == {"result": None, "error": ["MESSAGE_METHOD_UNKNOWN", "VM.no"], "id": 1}
    second = daemon.json("VM.set_name_label", session, vm, "é", jsonrpc="2.0")
    assert second == {"jsonrpc": "2.0", "result": "", "id": 1}
    error = {"code": 1, "message": "HANDLE_INVALID", "data": ["VM", "x"]}
    assert daemon.json("VM.get_order", session, "x", jsonrpc="2.0") == {"jsonrpc": "2.0", "error": error, "id": 1}
    record = daemon.json("VM.get_record", session, vm)["result"]
    assert record["name_label"] == "é"
    assert record["memory_static_max"] == 4 << 30
    assert record["HVM_shadow_multiplier"] == 1.0
    assert record["snapshot_time"] == "19700101T00:00:00Z"
    assert record["is_a_template"] is False
    methods = daemon.json("system.listMethods")["result"]
    assert {"VM.start", "VM.get_all_records", "system.listMethods", "event.from"} <= set(methods)


def test_xml_looks_as_rpclib_prints_it(daemon: Daemon) -> None:
    """Compact; only doubles, booleans, times and the counts of `from` have tags; any path and `_` for `.` will do."""

    def ask(path: str, method: str, *params: Any) -> str:
        reply = daemon.post(path, xmlrpc.client.dumps(params, method)).decode()
        before = '<?xml version="1.0"?><methodResponse><params><param><value>'
        after = "</value></param></params></methodResponse>"
        assert reply.startswith(before)
        assert reply.endswith(after)
        return reply.removeprefix(before).removesuffix(after)

    def success(value: str) -> str:
        members = ("Status", "<value>Success</value>"), ("Value", value)
        return f"<struct>{''.join(f'<member><name>{n}</name>{v}</member>' for n, v in members)}</struct>"

    session = daemon.json("session.login_with_password", "root", "")["result"]
    vm = daemon.json("VM.get_by_name_label", session, "vm1")["result"][0]
    assert ask("/", "VM.set_name_label", session, vm, 'a"<&>') == success("<value></value>")
    assert ask("/RPC2", "VM.get_name_label", session, vm) == success("<value>a&quot;&lt;&amp;&gt;</value>")
    assert ask("/any/path", "VM_get_memory_static_max", session, vm) == success("<value>4294967296</value>")
    assert ask("/", "VM.get_is_a_template", session, vm) == success("<value><boolean>0</boolean></value>")
    assert ask("/", "VM.get_HVM_shadow_multiplier", session, vm) == success("<value><double>1</double></value>")
    assert ask("/", "VM.get_VGPUs", session, vm) == success("<value><array><data></data></array></value>")
    assert ask("/", "VM.get_blobs", session, vm) == success("<value><struct></struct></value>")
    time = ask("/", "host.get_servertime", session, daemon.json("host.get_all", session)["result"][0])
    assert re.search(r"<value><dateTime.iso8601>\d{8}T\d\d:\d\d:\d\dZ</dateTime.iso8601></value>", time)
    counts = ask("/", "event.from", session, ["vm"], "", 1.0)
    assert "<member><name>vm</name><value><i4>5</i4></value></member>" in counts
    assert ask("/", "system.listMethods").startswith("<array><data><value>PBD.add_to_other_config</value>")
    failure = ask("/", "VM.no", session)
    assert failure == (
        "<struct><member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name><value>"
        "<array><data><value>MESSAGE_METHOD_UNKNOWN</value><value>VM.no</value></data></array></value></member></struct>"
    )


CALL = b"<methodCall><methodName>system.listMethods</methodName></methodCall>"


def test_http_habits(daemon: Daemon) -> None:
    """Connections stay with 1.1 and close with 1.0; content types are exact; what is wrong gets its page."""
    connection = daemon.http()
    for path, body, of in (("/", CALL, "text/xml"), ("/jsonrpc", b'{"method": "x", "id": 0}', "application/json")):
        connection.request("POST", path, body)
        response = connection.getresponse()
        response.read()
        assert (response.status, response.headers["content-type"], response.headers["connection"]) == (
            200,
            of,
            "keep-alive",
        )
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    connection.request("OPTIONS", "/")
    assert connection.getresponse().read() == b""

    length = b"content-length: %d\r\n\r\n" % len(CALL)
    old = daemon.raw(b"POST / HTTP/1.0\r\n" + length + CALL + b"POST / HTTP/1.0\r\n" + length + CALL)
    assert old.startswith(b"HTTP/1.0 200 OK\r\n")
    assert old.count(b"HTTP/") == 1
    assert daemon.raw((b"POST / HTTP/1.1\r\n" + length + CALL) * 2).count(b"HTTP/1.1 200 OK") == 2
    for unix in (True, False):
        for sent, status in [
            (b"POST / HTTP/1.1\r\n\r\n", b"500"),
            (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"500"),
            (b"POST / HTTP/1.1\r\ncontent-length: 307201\r\n\r\n" + b"x" * 307201, b"500"),
            (b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\njunk", b"500"),
            (b"POST /jsonrpc HTTP/1.1\r\ncontent-length: 4\r\n\r\njunk", b"500"),
            (b"POST /jsonrpc HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}", b"500"),
            (b"what is this\r\n\r\n", b"500"),
            (b"GET /nowhere HTTP/1.1\r\n\r\n", b"403"),
            (b"BREW / HTTP/1.1\r\n\r\n", b"501"),
            (b"GET / HTTP/1.1\r\ncookie: " + b"x" * 1024 + b"\r\n\r\n", b"500" if unix else b"431"),
            (b"GET / HTTP/1.1\r\ncookie: " + b"x" * 100_000 + b"\r\n\r\n", b"500" if unix else b"431"),
            (b"PUT /import HTTP/1.1\r\ncontent-length: 9\r\n\r\nshort", b"" if unix else b"401"),
            (b"GET /export?bytes=9 HTTP/1.1\r\n\r\n", b"200" if unix else b"401"),
        ]:
            assert daemon.raw(sent, unix=unix)[9:12] == status, (sent[:60], unix)


def expected(count: int) -> bytes:
    """What `export` sends: blocks of 64 KiB of their number."""
    return b"".join(number.to_bytes(8, "big") * 8192 for number in range(count // 65536 + 1))[:count]


def test_streams(daemon: Daemon) -> None:
    """Downloads and uploads with and without a length, and the tasks that they were given."""
    session = daemon.login()
    task = session.xenapi.task.create("transfer", "")
    who = f"session_id={session.handle}"
    connection = daemon.http()
    for count in (0, 1, 65536, 1_000_001):
        for flag in ("", "&chunked=1"):
            connection.request("GET", f"/export?bytes={count}&token=t{count}{flag}&{who}")
            response = connection.getresponse()
            assert response.headers["content-length"] == (None if flag else str(count))
            assert response.read() == expected(count)
    data = os.urandom(300_000)
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    connection.request("PUT", f"/import?{who}&task_id={task}", data)
    assert json.loads(connection.getresponse().read()) == told
    assert session.xenapi.task.get_status(task) == "success"
    other = session.xenapi.task.create("transfer", "")
    without = daemon.raw(b"PUT /import HTTP/1.1\r\n\r\n" + data, unix=True)
    assert json.loads(without.partition(b"\r\n\r\n")[2]) == told
    daemon.raw(f"PUT /import?task_id={other} HTTP/1.1\r\ncontent-length: 9\r\n\r\nshort".encode())
    assert session.xenapi.task.get_error_info(other) == ["IMPORT_ERROR", "5 of 9 bytes came"]

    connection.request("GET", "/redirect?to=/blob", headers={"cookie": who})
    response = connection.getresponse()
    assert (response.status, response.headers["location"], response.read()) == (302, "/blob", b"")
    connection.request("GET", "/blob", headers={"authorization": "Basic cm9vdDp4YXBp"})
    assert connection.getresponse().read() == expected(1000)
    connection.request("GET", f"/rrd_updates?{who}")
    assert b"<xport>" in connection.getresponse().read()
    assert daemon.executions()["GET/export", "t65536"] == 2


def test_streams_take_no_memory(daemon: Daemon) -> None:
    """256 MiB out and in again leave no trace in the daemon's peak memory."""
    size = 256 << 20
    reader = daemon.http()
    reader.request("GET", f"/export?bytes={size}", headers={"authorization": "Basic cm9vdDp4YXBp"})
    download = reader.getresponse()
    with daemon.connect(unix=True) as upload:
        upload.sendall(f"PUT /import HTTP/1.1\r\ncontent-length: {size}\r\n\r\n".encode())
        while block := download.read(65536):
            upload.sendall(block)
        upload.shutdown(socket.SHUT_WR)
        assert f'"bytes": {size},' in upload.makefile().read()
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) < 100_000


@pytest.mark.parametrize("unix", [True, False])
def test_consoles(daemon: Daemon, unix: bool) -> None:
    """CONNECT, and an upgrade to a web socket, give raw bytes both ways."""
    session = daemon.json("session.login_with_password", "root", "")["result"]
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = f"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-key: {key}\r\n"
    for request, answer in [
        (f"CONNECT /console?session_id={session} HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (f"GET /console?session_id={session} HTTP/1.1\r\n{upgrade}\r\n", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
    ]:
        with daemon.connect(unix=unix) as connection, connection.makefile("rb") as reader:
            connection.sendall(request.encode())
            lines = b"".join(iter(reader.readline, b"\r\n")) + b"\r\n"
            assert lines.endswith(answer)
            data = os.urandom(500_000)
            sender = threading.Thread(target=connection.sendall, args=(data,))
            sender.start()
            assert reader.read(len(data)) == data
            sender.join()
            connection.shutdown(socket.SHUT_WR)
            assert reader.read() == b""
    refused = daemon.raw(b"CONNECT /console HTTP/1.0\r\n\r\n", unix=False)
    assert refused.startswith(b"HTTP/1.1 401")
    assert b"\r\nWWW-Authenticate: Basic" in refused


def test_a_life_in_the_background(start: Callable[..., Daemon]) -> None:
    """One line when it serves, a pid file, an end by SIGTERM; a second one takes the path over."""
    first = start()
    pidfile = first.directory / "pid"
    second = start("--background", "--pidfile", str(pidfile))
    assert re.fullmatch(rf"legacy xapi serves {second.path} and 127\.0\.0\.1:\d+", second.line)
    assert second.process.wait(PATIENCE) == 0
    pidfd = os.pidfd_open(int(pidfile.read_text()))
    try:
        session = second.login(unix=True)
        session.xenapi.VM.set_name_label(session.xenapi.VM.get_by_name_label("vm1")[0], "a name")
        assert second.executions()["VM.set_name_label", "a_name"] == 1
        assert second.executions()["session.login_with_password", "test"] == 1
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    assert first.end() == -signal.SIGTERM
