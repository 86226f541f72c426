"""A small legacy squeezed, to try the bridge against: the xenstore RPC tree of 2009 and the Memory socket of later.

    python examples/legacy_squeezed.py --xenstore /var/run/xenstored/socket --http /tmp/memory --background ...

It behaves as the real one towards its callers and owns no memory: the host is made up (--host-kib). Reservations live
in the store under /squeezed/state/SESSION/RESERVATION, as decimal KiB, whichever door they came through. One call is
executed at a time. The store is reached through pyxs, on purpose not through this project's own connection.

What differs from the real daemon: transferring a reservation deletes it at either door (the contract of 2009), and
nothing waits for memory to become free. pyxs cannot write values other than printable ASCII: a result that holds any is
an error with code 2. A domain whose node memory/uncooperative exists stands for one that refuses to give memory up.
"""

from __future__ import annotations

import argparse
import copy
import errno
import os
import queue
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyxs
import pyxs.connection
from executions import Executions
from legacy_framed import FramedServer
from legacy_http import Failure, HttpServer, UnknownMethod, Value, integer, marshal_error
from legacy_process import add_options, enter
from pyxs._internal import Packet

T = TypeVar("T")

HOST_RESERVE_KIB = 73728
NO_LIMIT_KIB = 1 << 30
INTEGERS = {"kib", "min", "max", "domid"}

# Function at the xenstore door: arguments in the order in which they are checked, keys of the answer.
XENSTORE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "login": (("service_name",), ("session_id",)),
    "reserve-memory": (("session_id", "kib"), ("reservation_id",)),
    "reserve-memory-range": (("session_id", "min", "max"), ("reservation_id", "kib")),
    "transfer-reservation-to-domain": (("session_id", "reservation_id", "domid"), ()),
    "delete-reservation": (("session_id", "reservation_id"), ()),
    "balance-memory": ((), ()),
}
# Method of the Memory interface: its parameters after debug_info.
MEMORY: dict[str, tuple[str, ...]] = {
    **{function.replace("-", "_"): arguments for function, (arguments, _) in XENSTORE.items()},
    "query_reservation_of_domain": ("session_id", "domid"),
    "get_diagnostics": (),
    "get_host_reserved_memory": (),
    "get_host_initial_free_memory": (),
    "get_domain_zero_policy": (),
}


class Connection(pyxs.connection.UnixSocketConnection):  # type: ignore[misc]  # pyxs has no types
    """oxenstored answers a long listing in one long packet, which the daemons of its time took and pyxs does not."""

    def recv(self) -> Packet:
        """As the original, without its limit of 4096 bytes."""
        op, request_id, transaction, size = Packet._struct.unpack(self.transport.recv(Packet._struct.size))
        payload = self.transport.recv(size) if size else b""
        return Packet(op, b"", request_id, transaction)._replace(size=size, payload=payload)


class Refused(Exception):
    """An error of the service, in the words of both doors."""

    def __init__(self, code: int, description: str, error: Value) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.error = error


class Squeezed:
    """The service: every public method is one of the wire, takes checked values and gives a tuple of results."""

    def __init__(self, client: pyxs.Client, tree: str, host_kib: int | None) -> None:
        self._client = client
        self._state = f"/{tree}/state"
        self._host_kib = host_kib

    def login(self, service_name: str) -> tuple[Value, ...]:
        """Drops every reservation that this service made under its name."""
        self._delete(self._path(service_name))
        return (service_name,)

    def reserve_memory(self, session_id: str, kib: int) -> tuple[Value, ...]:
        """Records a reservation of exactly that much."""
        self._check_amount("kib", kib)
        self._check_free(kib)
        return (self._reserve(session_id, kib),)

    def reserve_memory_range(self, session_id: str, minimum: int, maximum: int) -> tuple[Value, ...]:
        """Records a reservation of as much as there is, between both amounts."""
        self._check_amount("min", minimum)
        self._check_amount("max", maximum)
        if maximum < minimum:
            raise _invalid("min", minimum)
        self._check_free(minimum)
        kib = maximum if self._host_kib is None else min(maximum, self._free())
        return (self._reserve(session_id, kib), kib)

    def delete_reservation(self, session_id: str, reservation_id: str) -> tuple[Value, ...]:
        """Succeeds also when there is no such reservation."""
        self._delete(self._path(session_id, reservation_id))
        return ()

    def transfer_reservation_to_domain(self, session_id: str, reservation_id: str, domid: int) -> tuple[Value, ...]:
        """The reservation becomes the domain's memory."""
        path = self._path(session_id, reservation_id)
        kib = self._read(path)
        if kib is None:
            raise Refused(1002, reservation_id, ["Unknown_reservation", reservation_id])
        memory = f"/local/domain/{domid}/memory"
        self._client.write(f"{memory}/initial-reservation".encode(), kib)
        self._client.write(f"{memory}/reservation-id".encode(), reservation_id.encode())
        self._delete(path)
        return ()

    def query_reservation_of_domain(self, session_id: str, domid: int) -> tuple[Value, ...]:
        """The reservation that a domain was given."""
        found = self._read(f"/local/domain/{domid}/memory/reservation-id")
        if found is None:
            raise Refused(2, f"No_reservation in {session_id}", "No_reservation")
        return (found.decode(),)

    def balance_memory(self) -> tuple[Value, ...]:
        """There is nothing to balance."""
        return ()

    def get_diagnostics(self) -> tuple[Value, ...]:
        """Text for people."""
        limit = "no limit" if self._host_kib is None else f"{self._free()} of {self._host_kib} KiB free"
        return (f"legacy squeezed, pid {os.getpid()}, {limit}",)

    def get_host_reserved_memory(self) -> tuple[Value, ...]:
        """KiB."""
        return (HOST_RESERVE_KIB,)

    def get_host_initial_free_memory(self) -> tuple[Value, ...]:
        """Bytes."""
        return ((self._host_kib or NO_LIMIT_KIB) * 1024,)

    def get_domain_zero_policy(self) -> tuple[Value, ...]:
        """Bytes."""
        return (["Auto_balloon", [512 << 20, 4 << 30]],)

    def _check_amount(self, argument: str, kib: int) -> None:
        if kib < 0:
            raise _invalid(argument, kib)

    def _check_free(self, kib: int) -> None:
        if self._host_kib is None or kib <= (free := self._free()):
            return
        if unwilling := [int(domid) for domid in self._list("/local/domain") if self._is_uncooperative(domid)]:
            raise Refused(1001, ",".join(map(str, unwilling)), ["Domains_refused_to_cooperate", list(unwilling)])
        raise Refused(1000, f"{kib},{free}", ["Cannot_free_this_much_memory", [kib, free]])

    def _is_uncooperative(self, domid: str) -> bool:
        return self._read(f"/local/domain/{domid}/memory/uncooperative") is not None

    def _free(self) -> int:
        assert self._host_kib is not None
        sessions = (f"{self._state}/{session}" for session in self._list(self._state))
        paths = (f"{session}/{reservation}" for session in sessions for reservation in self._list(session))
        return self._host_kib - sum(int(self._read(path) or b"0") for path in paths)

    def _reserve(self, session_id: str, kib: int) -> str:
        reservation_id = str(uuid.uuid4())
        self._client.write(self._path(session_id, reservation_id).encode(), str(kib).encode())
        return reservation_id

    def _path(self, *parts: str) -> str:
        return "/".join((self._state, *parts))

    def _read(self, path: str) -> bytes | None:
        return _unless_missing(lambda: bytes(self._client.read(path.encode())), None)

    def _list(self, path: str) -> list[str]:
        return _unless_missing(lambda: [name.decode() for name in self._client.list(path.encode())], [])

    def _delete(self, path: str) -> None:
        _unless_missing(lambda: self._client.delete(path.encode()), None)


def _invalid(argument: str, value: int) -> Refused:
    # The old door names the argument, the later one its value.
    return Refused(1003, argument, ["Invalid_memory_value", value])


def _unless_missing(operation: Callable[[], T], otherwise: T) -> T:
    try:
        return operation()
    except pyxs.PyXSError as error:
        if error.args[0] != errno.ENOENT:
            raise
        return otherwise


class Executor:
    """Lets one call run at a time, whichever door it came through, and counts it."""

    def __init__(self, executions: Executions, slow_ms: int) -> None:
        self._executions = executions
        self._slow_ms = slow_ms
        self._one_at_a_time = threading.Lock()

    def run(self, method: str, token: str, work: Callable[[], T]) -> T:
        """Executes a call; what `work` raises is the caller's business."""
        with self._one_at_a_time:
            self._executions.count(method, token)
            time.sleep(self._slow_ms / 1000)
            return work()


class XenstoreDoor:
    """The server of the tree /TREE/rpc: single-threaded, requests before the watch are served too."""

    def __init__(self, client: pyxs.Client, tree: str, squeezed: Squeezed, executor: Executor) -> None:
        self._client = client
        self._squeezed = squeezed
        self._executor = executor
        self._tree = tree
        self._requests = f"/{tree}/rpc/request"
        self._responses = f"/{tree}/rpc/response"
        self._heard: dict[str, set[str]] = {}

    def open(self) -> pyxs.Monitor:
        """Registers, then watches."""
        self._client.write(f"/{self._tree}/pid".encode(), str(os.getpid()).encode())
        monitor = self._client.monitor()
        monitor.watch(self._requests.encode(), b"X")
        return monitor

    def serve(self, monitor: pyxs.Monitor) -> None:
        """Answers requests until the process ends. An event says only that there may be something new."""
        while True:
            self._hear(monitor.events.get().path)
            while True:
                try:
                    self._hear(monitor.events.get_nowait().path)
                except queue.Empty:
                    break
            # All of the work is found before any of it is begun.
            for function, request_id in self._unanswered():
                self._respond(function, request_id, self._execute(function, request_id))

    def _hear(self, path: bytes) -> None:
        parts = path.decode().removeprefix(self._requests).split("/")
        if len(parts) > 2:
            self._heard.setdefault(parts[1], set()).add(parts[2])

    def _unanswered(self) -> list[tuple[str, str]]:
        # Responses first: a call that its caller clears away between both listings would look like a new one.
        work = []
        for function in self._list(self._requests) or ():
            answered = self._list(f"{self._responses}/{function}")
            requests = self._list(f"{self._requests}/{function}")
            if requests is None:  # the C xenstored wants to be asked for it in parts, which pyxs cannot do
                requests = [
                    r for r in self._heard.get(function, ()) if self._exists(f"{self._requests}/{function}/{r}")
                ]
            if answered is None:
                answered = [r for r in requests if self._exists(f"{self._responses}/{function}/{r}")]
            self._heard[function] = set(requests)
            work += [(function, request_id) for request_id in requests if request_id not in answered]
        return work

    def _execute(self, function: str, request_id: str) -> dict[str, str]:
        if function not in XENSTORE and function != "echo":
            return _error(1, function)
        try:
            path = f"{self._requests}/{function}/{request_id}"
            found = {name: self._read(f"{path}/{name}") for name in self._list(path) or ()}
            token = found.get("session_id", found.get("service_name", "-"))
            if function == "echo":
                return self._executor.run(function, token, lambda: found)
            names, keys = XENSTORE[function]
            missing = next((name for name in names if name not in found), None)
            if missing is not None:
                return _error(3, missing)
            values = [_typed(name, found[name]) for name in names]
            method = function.replace("-", "_")
            result = self._executor.run(method, token, lambda: getattr(self._squeezed, method)(*values))
            return {key: str(value) for key, value in zip(keys, result, strict=True)}
        except Refused as refused:
            return _error(refused.code, refused.description)
        except (pyxs.PyXSError, ValueError) as error:
            return _error(2, f'Failure("{_reason(error)}")')

    def _respond(self, function: str, request_id: str, results: dict[str, str]) -> None:
        path = f"{self._responses}/{function}/{request_id}"
        if not all(value.isascii() and value.isprintable() for value in results.values()):
            results = _error(2, "a value that pyxs cannot write")
        while True:
            self._client.transaction()
            self._client.mkdir(path.encode())
            for name, value in results.items():
                # pyxs refuses to write nothing; a new directory holds nothing.
                if value:
                    self._client.write(f"{path}/{name}".encode(), value.encode())
                else:
                    self._client.mkdir(f"{path}/{name}".encode())
            if self._client.commit():
                return

    def _list(self, path: str) -> list[str] | None:
        """Names below a node, none when it is missing; None when the store says that they are too many (E2BIG)."""
        try:
            return [name.decode() for name in self._client.list(path.encode())]
        except pyxs.PyXSError as error:
            if error.args[0] not in {errno.ENOENT, errno.E2BIG}:
                raise
            return [] if error.args[0] == errno.ENOENT else None

    def _read(self, path: str) -> str:
        return bytes(self._client.read(path.encode())).decode("utf-8", "backslashreplace")

    def _exists(self, path: str) -> bool:
        return bool(self._client.exists(path.encode()))


def _reason(error: Exception) -> str:
    return f"invalid path {error.args[0].decode()}" if isinstance(error, pyxs.InvalidPath) else str(error)


def _error(code: int, description: str) -> dict[str, str]:
    printable = "".join(char if char.isascii() and char.isprintable() else "?" for char in description)
    return {"code": str(code), "description": printable}


def _typed(name: str, text: str) -> str | int:
    if name not in INTEGERS:
        return text
    try:
        return integer(text)
    except ValueError:
        raise ValueError("int_of_string" if name == "domid" else "Int64.of_string") from None


def memory_door(squeezed: Squeezed, executor: Executor) -> Callable[[str, list[Value]], Value]:
    """The Memory interface: positional parameters, debug_info first."""

    def answer(method: str, params: list[Value]) -> Value:
        names = MEMORY.get(method)
        if names is None:
            raise UnknownMethod(method)
        if len(params) < len(names) + 1:
            raise marshal_error("Incorrect number of arguments")
        values: list[str | int] = []
        for name, value in zip(names, params[1:], strict=False):
            if not isinstance(value, str):
                raise marshal_error(f"Expected string, got '{value}'")
            try:
                values.append(_typed(name, value))
            except ValueError:
                raise marshal_error(f"Expected int64, got 'S({value})'") from None
        try:
            token = str(values[0] if values else params[0])
            result: tuple[Value, ...] = executor.run(method, token, lambda: getattr(squeezed, method)(*values))
        except Refused as refused:
            raise Failure(refused.error) from None
        except (pyxs.PyXSError, ValueError) as error:
            raise Failure(["Internal_error", _reason(error)]) from None
        return None if not result else result[0] if len(result) == 1 else list(result)

    return answer


def main() -> None:
    """Runs the daemon until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small legacy squeezed.")
    parser.add_argument("--xenstore", required=True, help="xenstored's socket")
    parser.add_argument("--tree", default="squeezed", help="the tree to serve, without slashes")
    parser.add_argument("--http", type=Path, help="where to serve the Memory interface as well")
    parser.add_argument("--framed", type=Path, help="where to serve the Memory interface in frames of JSON")
    parser.add_argument("--host-kib", type=int, help="memory of the made-up host in KiB; without it there is no end")
    add_options(parser)
    options = parser.parse_args()
    serving = enter(options)
    try:
        client = pyxs.Client(router=pyxs.Router(Connection(options.xenstore)))
        client.connect()
        squeezed = Squeezed(copy.copy(client), options.tree, options.host_kib)
        executor = Executor(Executions(options.executions), options.slow_ms)
        door = XenstoreDoor(client, options.tree, squeezed, executor)
        memory = memory_door(squeezed, executor)
        servers: list[socketserver.BaseServer] = []
        if options.http is not None:
            servers.append(HttpServer(options.http, "squeezed", memory))
        if options.framed is not None:
            servers.append(FramedServer(options.framed, memory))
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        monitor = door.open()
    except (pyxs.PyXSError, OSError) as error:
        sys.exit(f"legacy squeezed: {error}")
    threading.Thread(target=_end_with, args=(client.router.thread,), daemon=True).start()
    served = [f"/{options.tree}", *(str(path) for path in (options.http, options.framed) if path)]
    serving(f"legacy squeezed serves {' and '.join(served)}")
    door.serve(monitor)


def _end_with(router: threading.Thread) -> None:
    """Without the store pyxs would let every caller wait for ever."""
    router.join()
    print("legacy squeezed: the connection to xenstored is lost", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
