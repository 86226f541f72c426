"""A small legacy xapi, to try the bridge against: XenAPI with made-up objects, as real clients know it.

    python examples/legacy_xapi.py --socket /tmp/xapi --tcp-port 0 --vms 3 --background --pidfile /tmp/xapi.pid

It has the classes and calls of legacy_xapi_model.json; what is not there is MESSAGE_METHOD_UNKNOWN. Over TCP a login
needs the password. SIGUSR1 ends every session, so that the next call of each client fails with SESSION_INVALID. The
token of a call in the log of executions is its last text: the value that is set, the name or the ref that is asked for.

What differs from the real xapi: a wrong password is refused at once, sessions and tasks are never collected, there are
no roles and no slaves, constructors take any record, nothing but the VM's power state restricts an operation.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from executions import Executions
from legacy_process import add_options, enter
from legacy_xapi_http import Connection, xml_value
from legacy_xapi_objects import NULL, Call, Database, DateTime, Failure, Int32, Model, Record, Row, Value
from legacy_xapi_population import populate

BATCH_SECONDS = 0.05
QUEUE_LIMIT = 500  # events that wait for `event.next`
# Power states that an operation on a VM accepts, and the one it leads to.
OPERATIONS = {
    "start": (("Halted",), "Running"),
    "start_on": (("Halted",), "Running"),
    "pause": (("Running",), "Paused"),
    "unpause": (("Paused",), "Running"),
    "suspend": (("Running",), "Suspended"),
    "resume": (("Suspended",), "Running"),
    "clean_reboot": (("Running",), "Running"),
    "hard_reboot": (("Running", "Paused"), "Running"),
    "clean_shutdown": (("Running",), "Halted"),
    "shutdown": (("Running", "Paused", "Suspended"), "Halted"),
    "hard_shutdown": (("Running", "Paused", "Suspended"), "Halted"),
}


@dataclass(frozen=True, slots=True)
class Context:
    """Who calls: the session, if the call has one, and the task that it runs in."""

    session: str
    task: str
    trusted: bool


@dataclass(slots=True)
class Queue:
    """What a session registered for, and what happened since its last `event.next`."""

    classes: set[str] = field(default_factory=set)
    events: list[Value] = field(default_factory=list)
    is_lost: bool = False


class Xapi:
    """The service: calls by name, and what the transfers over HTTP need."""

    def __init__(self, database: Database, executions: Executions, options: argparse.Namespace) -> None:
        self._db = database
        self._model = database.model
        self._executions = executions
        self._password: str = options.password
        self._slow = options.slow_ms / 1000
        self._operation = options.operation_ms / 1000
        self._queues: dict[str, Queue] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._domids = 100
        self._master = next(iter(database.tables["host"]))
        database.listeners.append(self._notice)

    async def call(self, method: str, params: list[Value], *, trusted: bool) -> Value:
        """The result of a call. Raises Failure."""
        name = method.removeprefix("Async.")
        call = self._model.calls.get(self._model.aliases.get(name, name))
        if call is None:
            raise Failure("MESSAGE_METHOD_UNKNOWN", method)
        most = len(call.params) + call.session
        if not most - call.optional <= len(params) <= most:
            mandatory = len(call.params) - call.optional
            raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", method, str(mandatory), str(len(params) - 1))
        if name != method and not call.is_async:
            raise Failure("Fault", f"{name} has no asynchronous form")
        context = Context(self._session(params[0]) if call.session else "", "", trusted)
        arguments = self._read(call, params[call.session :])
        texts = [text for of, text in arguments.items() if isinstance(text, str) and of not in {"pwd", "version"}]
        self._executions.count(method, texts[-1] if texts else "")
        await asyncio.sleep(self._slow)
        if name == method:
            return await self._execute(call, context, arguments)
        return self._begin(method, call, context, arguments)

    def admit(self, name: str, query: dict[str, str], password: str | None, *, trusted: bool) -> None:
        """Lets a transfer begin; its token is in its query. Raises SESSION_INVALID."""
        if not trusted and password != self._password:
            self._session(query.get("session_id", ""))
        self._executions.count(name, query.get("token", ""))

    def finish(self, query: dict[str, str], failure: list[Value] | None = None) -> None:
        """A transfer is over: the task that it was given ends."""
        if query.get("task_id") in self._db.tables["task"]:
            self._end_task(
                query["task_id"], {"status": "failure" if failure else "success", "error_info": failure or []}
            )

    def drop_sessions(self) -> None:
        """Nobody is logged in any more; who waits for events hears of it."""
        for session in [*self._db.tables["session"]]:
            self._db.delete("session", session)
        self._queues.clear()
        self._db.wake()

    def _session(self, ref: Value) -> str:
        if ref not in self._db.tables["session"]:
            raise Failure("SESSION_INVALID", str(ref))
        return str(ref)

    def _read(self, call: Call, values: list[Value]) -> Record:
        given = zip(call.params.items(), values, strict=False)
        arguments = {name: self._model.read(of, value, name) for (name, of), value in given}
        self._check_refs(call.params, arguments)
        return arguments

    def _check_refs(self, types: dict[str, str], values: Record) -> None:
        for name, value in values.items():
            kind = types[name].removesuffix(" ref")
            if types[name].endswith(" ref") and kind in self._db.tables and (value != NULL or name == "self"):
                self._db.row(kind, value)

    async def _execute(self, call: Call, context: Context, arguments: Record) -> Value:
        own: Callable[[Context, Record], Any] | None = getattr(self, f"_{call.kind}_{call.name}".lower(), None)
        if call.kind == "VM" and call.name in OPERATIONS:
            return await self._operate(call.name, context, arguments)
        if own is None:
            return self._field(call, arguments) if call.field else self._plain(call, arguments)
        result: Value = own(context, arguments)
        return await result if inspect.isawaitable(result) else result

    def _plain(self, call: Call, arguments: Record) -> Value:
        """The calls that most classes have."""
        table = self._db.tables[call.kind]
        match call.name:
            case "get_all":
                return [*table]
            case "get_all_records":
                return {ref: row.record for ref, row in table.items()}
            case "get_record":
                return self._db.row(call.kind, arguments["self"]).record
            case "get_by_name_label":
                return [ref for ref, row in table.items() if row.record["name_label"] == arguments["label"]]
            case "get_by_uuid":
                found = next((ref for ref, row in table.items() if row.record["uuid"] == arguments["uuid"]), None)
                if found is None:
                    raise Failure("UUID_INVALID", call.kind, str(arguments["uuid"]))
                return found
            case "create":
                (given,) = arguments.values()
                assert isinstance(given, dict)
                self._check_refs(self._model.fields[call.kind], given)
                return self._db.insert(call.kind, **given)
            case "destroy":
                self._db.delete(call.kind, arguments["self"])
            case "plug" | "unplug":
                attached = {"currently_attached": call.name == "plug"}
                if attached.items() <= self._db.row(call.kind, arguments["self"]).record.items():
                    word = "ATTACHED" if call.name == "plug" else "DETACHED"
                    raise Failure(f"DEVICE_ALREADY_{word}", str(arguments["self"]))
                self._db.change(call.kind, arguments["self"], **attached)
        return ""

    def _field(self, call: Call, arguments: Record) -> Value:
        """Reads or changes one field; sets and maps also by one element."""
        ref, *values = arguments.values()
        row = self._db.row(call.kind, ref)
        old, new = row.record[call.field], values[-1] if values else None
        if call.verb == "get_":
            return old
        if isinstance(old, dict) and call.verb != "set_":
            key = str(values[0])
            if call.verb == "add_to_" and key in old:
                raise Failure("MAP_DUPLICATE_KEY", call.kind, call.field, str(row.record["uuid"]), key)
            new = old | {key: new} if call.verb == "add_to_" else {n: v for n, v in old.items() if n != key}
        elif isinstance(old, list) and call.verb != "set_":
            rest = [value for value in old if value != new]
            new = [*rest, new] if call.verb == "add_" else rest
        self._db.change(call.kind, ref, **{call.field: new})
        return ""

    def _begin(self, method: str, call: Call, context: Context, arguments: Record) -> str:
        """Leaves the work to a task and gives its ref."""
        task = self._new_task(method, "", allowed_operations=["cancel"])
        work = self._execute(call, replace(context, task=task), arguments)
        self._running[task] = asyncio.create_task(self._work(task, work, call.result))
        return task

    async def _work(self, task: str, work: Awaitable[Value], of: str) -> None:
        try:
            result = await work
            outcome: Record = {"status": "success", "result": "" if of == "void" else xml_value(result)}
        except Failure as failure:
            outcome = {"status": "failure", "error_info": failure.description}
        except asyncio.CancelledError:
            outcome = {"status": "cancelled", "error_info": ["TASK_CANCELLED", task]}
        del self._running[task]
        if task in self._db.tables["task"]:
            self._end_task(task, outcome)

    def _new_task(self, label: str, description: str, **more: Value) -> str:
        more |= {"name_label": label, "name_description": description, "resident_on": self._master}
        return self._db.insert("task", created=DateTime.now(), type="<none/>", **more)

    def _end_task(self, task: str, outcome: Record) -> None:
        ended: Record = {"progress": 1.0, "finished": DateTime.now(), "allowed_operations": []}
        self._db.change("task", task, **ended, **outcome)

    def _session_login_with_password(self, context: Context, arguments: Record) -> str:
        user = str(arguments["uname"])
        if not context.trusted and arguments["pwd"] != self._password:
            raise Failure("SESSION_AUTHENTICATION_FAILED", user, "Authentication failure")
        now: Record = {"last_active": DateTime.now(), "validation_time": DateTime.now()}
        who: Record = {"this_host": self._master, "is_local_superuser": True, "auth_user_name": user}
        return self._db.insert("session", originator=arguments.get("originator", ""), **now, **who)

    def _session_logout(self, context: Context, _arguments: Record) -> str:
        self._db.delete("session", context.session)
        self._queues.pop(context.session, None)
        self._db.wake()
        return ""

    def _system_listmethods(self, _context: Context, _arguments: Record) -> Value:
        return [*sorted(self._model.calls)]

    def _host_get_servertime(self, _context: Context, _arguments: Record) -> Value:
        return DateTime.now()

    def _host_enable(self, _context: Context, arguments: Record) -> Value:
        self._db.change("host", arguments["host"], enabled=True)
        return ""

    def _host_disable(self, _context: Context, arguments: Record) -> Value:
        self._db.change("host", arguments["host"], enabled=False)
        return ""

    def _host_call_plugin(self, _context: Context, arguments: Record) -> Value:
        """There is one plugin, `echo`, that gives its argument `text` back."""
        if arguments["plugin"] != "echo":
            raise Failure("XENAPI_MISSING_PLUGIN", str(arguments["plugin"]))
        assert isinstance(arguments["args"], dict)
        return arguments["args"].get("text", "")

    def _task_create(self, _context: Context, arguments: Record) -> Value:
        return self._new_task(str(arguments["label"]), str(arguments["description"]))

    def _task_cancel(self, _context: Context, arguments: Record) -> Value:
        task = str(arguments["task"])
        if self._db.row("task", task).record["status"] != "pending":
            raise Failure("OPERATION_NOT_ALLOWED", "the task is over")
        if task in self._running:
            self._running[task].cancel()
        else:
            self._db.change("task", task, status="cancelling")
        return ""

    def _message_create(self, _context: Context, arguments: Record) -> Value:
        return self._db.insert("message", timestamp=DateTime.now(), **arguments)

    def _message_destroy_many(self, _context: Context, arguments: Record) -> Value:
        assert isinstance(arguments["messages"], list)
        for ref in arguments["messages"]:
            self._db.delete("message", ref)
        return ""

    def _message_get(self, _context: Context, arguments: Record) -> Value:
        since = str(arguments.pop("since")).replace("-", "")
        records = {ref: row.record for ref, row in self._db.tables["message"].items()}
        newer = {ref: record for ref, record in records.items() if str(record["timestamp"]) >= since}
        return {ref: record for ref, record in newer.items() if arguments.items() <= record.items()}

    _message_get_since = _message_get

    def _vm_create(self, _context: Context, arguments: Record) -> Value:
        assert isinstance(arguments["args"], dict)
        self._check_refs(self._model.fields["VM"], arguments["args"])
        metrics = self._db.insert("VM_metrics", last_updated=DateTime.now())
        vm = self._db.insert("VM", **arguments["args"] | {"metrics": metrics, "power_state": "Halted"})
        self._allow(vm)
        return vm

    def _vm_clone(self, _context: Context, arguments: Record) -> Value:
        record = self._idle(str(arguments["vm"]), ("Halted",)).record
        own = {"uuid", "VBDs", "VIFs", "consoles", "snapshots", "children", "current_operations", "guest_metrics"}
        copied = {name: value for name, value in record.items() if name not in own}
        metrics = self._db.insert("VM_metrics", last_updated=DateTime.now())
        return self._db.insert("VM", **copied | {"name_label": arguments["new_name"], "metrics": metrics})

    def _vm_destroy(self, _context: Context, arguments: Record) -> Value:
        """What belongs to the VM goes with it, but for its disks."""
        record = self._idle(str(arguments["self"]), ("Halted",)).record
        for kind, name in (("VBD", "VBDs"), ("VIF", "VIFs"), ("console", "consoles")):
            for ref in _refs(record, name):
                self._db.delete(kind, ref)
        for kind, name in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
            if record[name] != NULL:
                self._db.delete(kind, record[name])
        self._db.delete("VM", arguments["self"])
        return ""

    def _idle(self, vm: str, states: tuple[str, ...]) -> Row:
        """A VM in one of these power states that nothing else is done with. Raises Failure."""
        row = self._db.row("VM", vm)
        busy, state = row.record["current_operations"], str(row.record["power_state"])
        if isinstance(busy, dict) and busy:
            ((task, operation),) = busy.items()
            raise Failure("OTHER_OPERATION_IN_PROGRESS", "VM", vm, str(operation), task)
        if state not in states:
            raise Failure("VM_BAD_POWER_STATE", vm, ", ".join(states).lower(), state.lower())
        return row

    async def _operate(self, operation: str, context: Context, arguments: Record) -> Value:
        """Takes its time, then moves the VM to its next power state."""
        vm = str(arguments["vm"])
        states, after = OPERATIONS[operation]
        if self._db.row("VM", vm).record["is_a_template"]:
            raise Failure("VM_IS_TEMPLATE", vm)
        self._idle(vm, states)
        self._db.change("VM", vm, current_operations={context.task or f"OpaqueRef:{uuid.uuid4()}": operation})
        try:
            await asyncio.sleep(self._operation)
        finally:
            self._db.change("VM", vm, current_operations={})
        after = "Paused" if arguments.get("start_paused") else after
        alive = after in ("Running", "Paused")
        self._domids += 1
        host = (arguments.get("host") or self._master) if alive else NULL
        self._db.change("VM", vm, power_state=after, resident_on=host, domid=self._domids if alive else -1)
        record = self._db.row("VM", vm).record
        for kind, name in (("VBD", "VBDs"), ("VIF", "VIFs")):
            for ref in _refs(record, name):
                self._db.change(kind, ref, currently_attached=alive)
        if operation in ("start", "start_on"):
            self._db.change("VM_metrics", record["metrics"], start_time=DateTime.now())
        self._allow(vm)
        return ""

    def _allow(self, vm: str) -> None:
        state = self._db.row("VM", vm).record["power_state"]
        allowed: list[Value] = [name for name, (states, _) in OPERATIONS.items() if state in states]
        self._db.change("VM", vm, allowed_operations=allowed + (["clone", "destroy"] if state == "Halted" else []))

    def _notice(self, event: Record) -> None:
        for queue in self._queues.values():
            if queue.classes & {"*", event["class"]}:
                queue.events.append(event)
                queue.is_lost = len(queue.events) > QUEUE_LIMIT

    def _event_register(self, context: Context, arguments: Record) -> Value:
        self._queues.setdefault(context.session, Queue()).classes |= _lower(arguments["classes"])
        return ""

    def _event_unregister(self, context: Context, arguments: Record) -> Value:
        queue = self._queues.get(context.session, Queue())
        queue.classes -= _lower(arguments["classes"])
        if not queue.classes:
            self._queues.pop(context.session, None)
        return ""

    async def _event_next(self, context: Context, _arguments: Record) -> Value:
        """At least one event, however long that takes."""
        while True:
            queue = self._queues.get(self._session(context.session))
            if queue is None:
                raise Failure("SESSION_NOT_REGISTERED", context.session)
            if queue.is_lost:
                del self._queues[context.session]
                raise Failure("EVENTS_LOST")
            if queue.events:
                await asyncio.sleep(BATCH_SECONDS)
                events, queue.events = queue.events, []
                return events
            await self._db.news()

    async def _event_from(self, context: Context, arguments: Record) -> Value:
        """What changed since the token, as soon as there is something; nothing when the time is over."""
        token, seconds, classes = str(arguments["token"]), arguments["timeout"], _lower(arguments["classes"])
        since, comma, rest = token.partition(",")
        if token and not (since.isdecimal() and comma and rest.isdecimal()):
            raise Failure("EVENT_FROM_TOKEN_PARSE_FAILURE", token)
        for one in classes:
            if one.count("/") > 1:
                raise Failure("EVENT_SUBSCRIPTION_PARSE_FAILURE", one)
        assert isinstance(seconds, float)
        known = int(since) if token else -1
        kinds = {one.partition("/")[0] for one in classes}

        def wanted(row: Row) -> bool:
            kind = row.kind.lower()
            return not classes.isdisjoint({"*", kind, f"{kind}/{row.ref.lower()}"})

        try:
            async with asyncio.timeout(seconds):
                while not self._db.changes(known, wanted):
                    await self._db.news()
                    self._session(context.session)
                await asyncio.sleep(0 if kinds == {"task"} else BATCH_SECONDS)
        except TimeoutError:
            pass
        self._session(context.session)
        tables = {kind.lower(): table for kind, table in self._db.tables.items()}
        counts: Record = {kind: Int32(len(table)) for kind, table in tables.items() if kinds & {"*", kind}}
        return {"events": [*self._db.changes(known, wanted)], "valid_ref_counts": counts, "token": self._token()}

    def _event_get_current_id(self, _context: Context, _arguments: Record) -> Value:
        return self._db.generation

    def _event_inject(self, _context: Context, arguments: Record) -> Value:
        kind, ref = str(arguments["class"]), str(arguments["ref"])
        name = self._model.kinds.get(kind.lower())
        if name is None:
            raise Failure("HANDLE_INVALID", kind, ref)
        self._db.touch(name, ref)
        return self._token()

    def _token(self) -> str:
        return f"{self._db.generation:020},{0:020}"


def _refs(record: Record, name: str) -> list[Value]:
    refs = record[name]
    assert isinstance(refs, list)
    return refs


def _lower(classes: Value) -> set[str]:
    assert isinstance(classes, list)
    return {str(name).lower() for name in classes}


async def serve(options: argparse.Namespace, serving: Callable[[str], None]) -> None:
    """Serves until the process ends."""
    database = Database(Model())
    populate(database, options.hosts, options.vms)
    xapi = Xapi(database, Executions(options.executions), options)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, xapi.drop_sessions)

    async def local(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(xapi, reader, writer, trusted=True).serve()

    async def remote(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(xapi, reader, writer, trusted=False).serve()

    options.socket.unlink(missing_ok=True)
    servers = [await asyncio.start_unix_server(local, options.socket, backlog=128)]
    line = f"legacy xapi serves {options.socket}"
    if options.tcp_port is not None:
        servers.append(await asyncio.start_server(remote, "127.0.0.1", options.tcp_port, backlog=128))
        line += f" and 127.0.0.1:{servers[1].sockets[0].getsockname()[1]}"
    serving(line)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    """Runs the daemon until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small legacy xapi.")
    parser.add_argument("--socket", type=Path, required=True, help="where to serve; who comes this way is trusted")
    parser.add_argument("--tcp-port", type=int, help="serve this port of 127.0.0.1 too; 0 is any free one")
    parser.add_argument("--password", default="xapi", help="what a login over TCP needs")
    parser.add_argument("--hosts", type=int, default=1, help="in the pool, at least 1")
    parser.add_argument("--vms", type=int, default=3, help="every other one runs")
    parser.add_argument("--operation-ms", type=int, default=0, help="milliseconds that an operation on a VM takes")
    add_options(parser)
    options = parser.parse_args()
    serving = enter(options)
    try:
        asyncio.run(serve(options, serving))
    except OSError as error:
        sys.exit(f"legacy xapi: {options.socket}: {error.strerror}")


if __name__ == "__main__":
    main()
