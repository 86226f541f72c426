"""Callers of a host's doors, on the wire: what they send is theirs to choose, right or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import xmlrpc.client
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusError
from xenstore_rpc.connection import Store, Transaction

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures_dbus import BusDaemon
    from tests.fixtures_host import Host
    from tests.live.killing import OneService

MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
XENOPS = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/Xenops", "org.xen.xcp.xenopsd.Xenops1")
BRIDGE = "org.xen.xcp.bridge"
PATIENCE = 30


class Callers:
    """Everybody who calls at this host's doors."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._tokens = itertools.count()
        self._store: Store | None = None

    async def raw(self, path: Path, sent: bytes, *, half_close: bool = False) -> bytes:
        """What comes back for these bytes, up to the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(sent)
                if half_close:
                    writer.write_eof()
                try:
                    await writer.drain()
                    return await reader.read()
                except ConnectionError:
                    return b""
            finally:
                writer.close()

    async def post(self, name: str, body: bytes) -> bytes:
        """The reply to a POST at the socket of that name, head and all."""
        return await self.raw(
            self.host.path(name), b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )

    async def rpc(self, name: str, method: str, *params: Any) -> dict[str, Any]:
        """The envelope of one XML-RPC call."""
        reply = await self.post(name, xmlrpc.client.dumps(params, method, allow_none=True).encode())
        (value,), _ = xmlrpc.client.loads(reply.partition(b"\r\n\r\n")[2])
        assert isinstance(value, dict), value
        return value

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    async def connect_store(self) -> None:
        self._store = Store(self.host.store.socket)
        await self._store.connect(PATIENCE)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    async def request(self, function: str, request_id: str, arguments: dict[str, bytes]) -> None:
        """Puts a request into the tree, as legacy clients do; nothing waits for its response."""
        if self._store is None:
            await self.connect_store()
        where = f"/squeezed/rpc/request/{function}/{request_id}"

        async def body(tx: Transaction) -> None:
            await tx.mkdir(where)
            for name, value in arguments.items():
                await tx.write(f"{where}/{name}", value)

        await self.store.transact(body)

    async def until_exists(self, path: str) -> None:
        """Waits until the node is there."""
        await self.store.wait_connected(PATIENCE)
        watch = await self.store.watch(path)
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self.exists(path):
                    await watch.next()
        finally:
            await watch.cancel()

    async def response(self, function: str, request_id: str) -> dict[str, bytes]:
        """Waits for the response to a request, and clears both away."""
        where = f"/squeezed/rpc/response/{function}/{request_id}"
        await self.until_exists(where)
        found = {name: await self.store.read(f"{where}/{name}") for name in await self.store.directory(where)}
        await self.store.rm(f"/squeezed/rpc/request/{function}/{request_id}")
        await self.store.rm(where)
        return found

    async def ask_store(self, function: str, arguments: dict[str, bytes]) -> dict[str, bytes]:
        """One call at the tree."""
        request_id = f"r{next(self._tokens)}"
        await self.request(function, request_id, arguments)
        return await self.response(function, request_id)

    async def exists(self, path: str) -> bool:
        """Whether the node is there."""
        parent, _, name = path.rpartition("/")
        return name in await self.store.directory_or_empty(parent)

    async def busctl(self, target: tuple[str, str, str], member: str, signature: str = "", *arguments: str) -> str:
        """`busctl call`: what it prints, on either output."""
        return await self.command(
            "busctl",
            f"--address={self.host.bus.address}",
            "call",
            *target,
            member,
            *filter(None, [signature]),
            *arguments,
        )

    async def gdbus(self, target: tuple[str, str, str], member: str, *arguments: str) -> str:
        """`gdbus call`: what it prints, on either output."""
        name, path, interface = target
        options = ("--dest", name, "--object-path", path, "--method", f"{interface}.{member}")
        return await self.command("gdbus", "call", "--address", self.host.bus.address, *options, *arguments)

    async def command(self, *command: str) -> str:
        """What a program of somebody else's prints."""
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout.strip()

    async def on_bus(self) -> None:
        """Waits until the bridge and both services have their names on the bus."""
        driver = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
        found: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while not {BRIDGE, MEMORY[0], XENOPS[0]} <= found:
                with contextlib.suppress(BusError):
                    bus = await Bus.connect(self.host.bus.address)
                    try:
                        found = set((await bus.call(*driver, "ListNames", timeout=PATIENCE)).body[0])
                    finally:
                        await bus.close()

    async def every_door(self) -> None:
        """A right call at every door of squeezed and xenopsd: each is answered, and executed once."""
        await self.on_bus()
        number = next(self._tokens)
        at_http, at_tree, at_bus, xenopsd = (f"{door}{number}" for door in ("http", "tree", "bus", "xenopsd"))
        bus = await Bus.connect(self.host.bus.address)
        try:
            async with asyncio.TaskGroup() as tasks:
                http = tasks.create_task(self.rpc("memory", "reserve_memory", "d", at_http, "1"))
                tree = tasks.create_task(
                    self.ask_store("reserve-memory", {"session_id": at_tree.encode(), "kib": b"1"})
                )
                memory = tasks.create_task(
                    bus.call(*MEMORY, "ReserveMemory", "ssx", ("d", at_bus, 1), timeout=PATIENCE)
                )
                query = tasks.create_task(bus.call(*XENOPS, "Query", "s", (xenopsd,), timeout=PATIENCE))
        finally:
            await bus.close()
        assert http.result()["Status"] == "Success", http.result()
        assert list(tree.result()) == ["reservation_id"], tree.result()
        assert len(memory.result().body[0]) == 36
        assert query.result().signature == "a{sv}"
        executed = self.host.executions()
        assert [executed["reserve_memory", token] for token in (at_http, at_tree, at_bus)] == [1, 1, 1]
        assert executed["query", xenopsd] == 1


@pytest.fixture
async def callers(host: Host) -> AsyncIterator[Callers]:
    """The callers of a host."""
    callers = Callers(host)
    try:
        yield callers
    finally:
        await callers.close()


@pytest.fixture
async def relayed(host: Host, callers: Callers) -> Callers:
    """The callers of a host where squeezed and xenopsd are in relay."""
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.stage("xenopsd", "relay")
    return callers


@pytest.fixture
async def moved(relayed: Callers) -> Callers:
    """The callers of a host where squeezed is live on the bus, xenopsd in relay."""
    await relayed.host.start_bus_squeezed()
    await relayed.host.stage("squeezed", "live")
    return relayed


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 columns, without colours."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences in one line, without colours."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
async def one(bus_daemon: BusDaemon, xenstored_stub: Path) -> AsyncIterator[tuple[OneService, Callers, Bus]]:
    """A host in `off`, its callers, and one of them on the bus."""
    from tests.live.killing import one_service  # it has its callers from here

    async with one_service(bus_daemon, xenstored_stub) as found:
        yield found
