"""The callers of the demo, one a direction. Each calls without a pause longer than 10 ms and gives every call a token.

None of them repeats a call that may have been sent: what a caller gets is what it noted in the ledger.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import itertools
import os
import queue
import socket
import threading
import time
import uuid
import xmlrpc.client
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyxs

from dbus_side.bus import Bus
from dbus_side.errors import BusError

PAUSE = 0.01
PATIENCE = 30.0


@dataclass(frozen=True)
class Call:
    """One call as its caller saw it; `error` is None when it was answered with a result."""

    direction: str
    function: str
    token: str
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Places:
    """Where the callers call."""

    bus: str
    store: Path
    memory: Path
    vm: str


class Ledger:
    """All calls of all callers."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._added = threading.Condition()

    def add(self, call: Call) -> None:
        """Notes a call that is over."""
        with self._added:
            self.calls.append(call)
            self._added.notify_all()

    def wait_for_more(self, directions: list[str], count: int) -> None:
        """Returns when every direction has had `count` more calls. Raises TimeoutError naming one that had not."""
        with self._added:
            wanted = {name: n + count for name, n in self._counts(directions).items()}
            self._added.wait_for(lambda: not self._behind(wanted), PATIENCE)
            if behind := self._behind(wanted):
                raise TimeoutError(f"{behind[0]}: no {count} calls were answered within {PATIENCE:.0f} s")

    def _behind(self, wanted: dict[str, int]) -> list[str]:
        counts = self._counts(list(wanted))
        return [name for name, count in wanted.items() if counts[name] < count]

    def _counts(self, directions: list[str]) -> dict[str, int]:
        found = Counter(call.direction for call in self.calls)
        return {name: found[name] for name in directions}


class Caller(ABC):
    """One direction: makes calls, each with a token of its own, until `stop` is set, and notes them."""

    def __init__(self, direction: str, ledger: Ledger, stop: threading.Event) -> None:
        self.direction = direction
        self._ledger = ledger
        self._stop = stop
        self._numbers = itertools.count(1)
        self._prefix = uuid.uuid4().hex[:8]

    @abstractmethod
    def run(self, places: Places) -> None:
        """Calls until it is time to stop."""

    def tokens(self) -> Iterator[str]:
        """Tokens, a little apart, until it is time to stop."""
        while not self._stop.wait(PAUSE):
            yield f"{self._prefix}-{next(self._numbers)}"

    def note(self, function: str, token: str, begun: float, error: str | None) -> None:
        """One call is over; `begun` is what time.monotonic said before it."""
        self._ledger.add(Call(self.direction, function, token, time.monotonic() - begun, error))

    def attempt(self, function: str, token: str, work: Callable[..., Any], *arguments: Any) -> None:
        """Runs one call and notes it, whatever became of it."""
        begun = time.monotonic()
        try:
            work(*arguments)
        except (OSError, RuntimeError, pyxs.PyXSError, xmlrpc.client.Error, http.client.HTTPException) as error:
            self.note(function, token, begun, f"{type(error).__name__}: {error}")
        else:
            self.note(function, token, begun, None)


class XenstoreCaller(Caller):
    """Calls squeezed through the tree, step by step as the OCaml client did, over pyxs."""

    def run(self, places: Places) -> None:
        """A reservation, and a login that drops it."""
        with pyxs.Client(unix_socket_path=str(places.store)) as client:
            for token in self.tokens():
                reservation = {"session_id": token, "kib": "1024"}
                self.attempt("reserve_memory", token, self._call, client, "reserve-memory", reservation)
                self.attempt("login", token, self._call, client, "login", {"service_name": token})

    def _call(self, client: pyxs.Client, function: str, arguments: dict[str, str]) -> None:
        os.kill(int(client.read(b"/squeezed/pid")), 0)
        identity = str(uuid.uuid4())
        request = f"/squeezed/rpc/request/{function}/{identity}"
        response = f"/squeezed/rpc/response/{function}/{identity}"
        while True:
            client.transaction()
            client.mkdir(request.encode())
            for name, value in arguments.items():
                client.write(f"{request}/{name}".encode(), value.encode())
            if client.commit():
                break
        with client.monitor() as monitor:
            monitor.watch(response.encode(), identity.encode())
            self._wait(client, monitor, response)
        results = {
            name.decode(): client.read(f"{response}/".encode() + name).decode()
            for name in client.list(response.encode())
        }
        # The request first: without its response it would be new work.
        client.delete(request.encode())
        client.delete(response.encode())
        if {"code", "description"} <= results.keys():
            raise RuntimeError(f"code {results['code']}: {results['description']}")

    def _wait(self, client: pyxs.Client, monitor: pyxs.Monitor, response: str) -> None:
        try:
            while not client.exists(response.encode()):
                monitor.events.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError(f"no response within {PATIENCE:.0f} s") from None


class HttpCaller(Caller):
    """Calls squeezed's Memory interface on its Unix socket, with the standard library's XML-RPC."""

    def run(self, places: Places) -> None:
        """As the caller at the tree."""
        transport = UnixTransport(places.memory)
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as squeezed:
            for token in self.tokens():
                self.attempt("reserve_memory", token, _checked, squeezed.reserve_memory, "demo", token, "1024")
                self.attempt("login", token, _checked, squeezed.login, "demo", token)


class UnixTransport(xmlrpc.client.Transport):
    """XML-RPC on a Unix socket; one connection a call, as the OCaml clients do."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:  # noqa: FBT001, FBT002 -- the overridden signature
        """Once: the standard library sends a call again when the connection breaks, executed or not."""
        return self.single_request(host, handler, request_body, verbose)

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """Only connecting is tried again, as the OCaml clients do when a daemon starts: nothing was sent yet."""
        patience = time.monotonic() + PATIENCE
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._path))
            except OSError as error:
                connection.close()
                if error.errno not in {errno.ENOENT, errno.ECONNREFUSED} or time.monotonic() > patience:
                    raise
                time.sleep(PAUSE)
                continue
            self.close()
            found = http.client.HTTPConnection(str(host))
            found.sock = connection
            self._connection = host, found
            return found


def _checked(method: Callable[..., Any], *arguments: str) -> None:
    envelope = method(*arguments)
    if envelope["Status"] != "Success":
        raise RuntimeError(str(envelope["ErrorDescription"]))


class BusCaller(Caller):
    """Calls services on the bus, whoever stands behind their names."""

    def run(self, places: Places) -> None:
        """On an event loop of this thread."""
        asyncio.run(self._run(places))

    async def _run(self, places: Places) -> None:
        bus = await Bus.connect(places.bus)
        try:
            await self.call(bus, places)
        finally:
            await bus.close()

    @abstractmethod
    async def call(self, bus: Bus, places: Places) -> None:
        """Calls until it is time to stop."""

    async def note_call(
        self, target: Member, function: str, token: str, member: str, signature: str, body: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        begun = time.monotonic()
        try:
            answer = await target.call(member, signature, body)
        except BusError as error:
            self.note(function, token, begun, str(error))
            return None
        self.note(function, token, begun, None)
        return answer


class SqueezedCaller(BusCaller):
    """Calls squeezed on the bus."""

    async def call(self, bus: Bus, places: Places) -> None:
        """As the caller at the tree."""
        memory = Member(bus, "squeezed", "Memory")
        for token in self.tokens():
            await self.note_call(memory, "reserve_memory", token, "ReserveMemory", "ssx", ("demo", token, 1024))
            await self.note_call(memory, "login", token, "Login", "ss", ("demo", token))


class XenopsdCaller(BusCaller):
    """Calls xenopsd on the bus, as xapi would: a long operation's task is watched and destroyed."""

    async def call(self, bus: Bus, places: Places) -> None:
        """Starts a VM and shuts it down, over and over."""
        vm = Member(bus, "xenopsd", "VM")
        for start, token in zip(itertools.cycle((True, False)), self.tokens(), strict=False):
            if start:
                task = await self.note_call(vm, "VM.start", token, "Start", "ssb", (token, places.vm, False))
            else:
                task = await self.note_call(vm, "VM.shutdown", token, "Shutdown", "ssa{sv}", (token, places.vm, {}))
            if task is not None:
                await self._finish(Member(bus, "xenopsd", "Task"), token, task[0])

    async def _finish(self, tasks: Member, token: str, task: str) -> None:
        for number in itertools.count(1):
            look = f"{token}-{number}"
            stat = await self.note_call(tasks, "Task.stat", look, "Stat", "ss", (look, task))
            if stat is None or stat[0]["state"].value[0] != "Pending":
                break
        await self.note_call(tasks, "Task.destroy", token, "Destroy", "ss", (token, task))


@dataclass(frozen=True)
class Member:
    """An object of a service on the bus."""

    bus: Bus
    service: str
    name: str

    async def call(self, member: str, signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
        """Calls a method of the object's interface."""
        service = f"org.xen.xcp.{self.service}"
        path = f"/{service}.{self.name}".replace(".", "/")
        interface = f"{service}.{self.name}1"
        return (await self.bus.call(service, path, interface, member, signature, body, timeout=PATIENCE)).body
