"""A stand-in daemon: recorded answers at the doors of a service, as the bridge itself opens them in `live`.

Where it stands is said as in `targets`. It never takes anything from anybody: a socket path that exists, a name that is
owned and a tree of a daemon that lives are refused.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn, Protocol

from bridges import doors, journal, ledger
from bridges.afterwards import Afterwards
from bridges.calls import Door
from bridges.capture.taps import Clock, Tap
from bridges.cutover import Stage
from bridges.datagram_door import DatagramAddress
from bridges.dbus_translation import Translation
from bridges.dispatch import Dispatch
from bridges.durable import Durable
from bridges.ledger import Aliases
from bridges.processes import is_alive
from bridges.reaching import open_bus, open_store
from bridges.replay.recorded import Recorded
from bridges.replay.targets import Chosen
from bridges.rpc_doors import Beside, FramedSocket, HttpDoor, Server, SocketCalls
from bridges.situation import DoorError, Situation
from bridges.state import Standing
from bridges.tongues import Tongues
from dbus_side.errors import BusError
from dbus_side.exported import ObjectTree
from dbus_side.messages import NameOutcome
from xenstore_rpc import rpc
from xenstore_rpc.errors import XenstoreError

DRAIN_SECONDS: Final = 5.0
_QUEUE: Final = 1024
_STANDING: Final = Standing(Stage.LIVE, 1)  # the bus side rules, which is where the recorded answers are


class ServeError(Exception):
    """The stand-in cannot stand there, or not any more; the text says why and what to do."""


class _Opener(Protocol):
    async def open(self, listener: socket.socket) -> Server: ...


async def serve(
    addresses: Sequence[Chosen], recorded: Recorded, stop: asyncio.Event, ready: Callable[[Sequence[str]], None]
) -> None:
    """Answers at all addresses until `stop`; `ready` is told once where. Calls in hand are answered before the end.

    Raises ServeError, and Fault UNAVAILABLE when a bus or a store cannot be reached.
    """
    failed: asyncio.Queue[str] = asyncio.Queue()
    with _stand_in(recorded) as stand_in:
        async with AsyncExitStack() as opened:
            for address in addresses:
                await opened.enter_async_context(stand_in.at(address, failed.put_nowait))
            ready([address.text for address in addresses])
            stopping = asyncio.create_task(stop.wait(), name="stand-in is stopped")
            failing = asyncio.create_task(failed.get(), name="stand-in fails")
            try:
                await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
                if failing.done():
                    raise ServeError(failing.result())
            finally:
                stopping.cancel()
                failing.cancel()
                await asyncio.wait((stopping, failing))


@contextmanager
def _stand_in(recorded: Recorded) -> Iterator[_StandIn]:
    """The parts that the bridge's doors need. What a bridge would keep on disk lasts no longer than this."""
    with tempfile.TemporaryDirectory(prefix="xcp-replay-") as directory:
        durable = Durable(Path(directory) / "records.sqlite", f"{journal.SCHEMA}{ledger.SCHEMA}", 1)
        try:
            yield _StandIn(recorded, durable)
        finally:
            durable.close()


class _StandIn:
    """One service's doors over recorded answers."""

    def __init__(self, recorded: Recorded, durable: Durable) -> None:
        service = recorded.service
        self._service = service
        self._dispatch = Dispatch(service.name, journal.Journal(durable, _now))
        self._dispatch.standing = _STANDING
        # No home is ever settled, so handles pass as they were recorded.
        self._aliases = Aliases(service, ledger.Ledger(durable, _now))
        self._backends = doors.Backends(recorded, recorded, self._aliases)
        self._afterwards = Afterwards(self._dispatch, recorded, service)
        self._on_bus = Translation(service)
        self._tap = Tap(service.name, Clock(time.time_ns, time.monotonic_ns), lambda *_event: None)

    @asynccontextmanager
    async def at(self, address: Chosen, fail: Callable[[str], None]) -> AsyncIterator[None]:
        """Stands at one address. Raises ServeError."""
        if address.url is not None:
            raise ServeError(f"{address.text}: expected http:PATH: a stand-in listens at Unix sockets only")
        match address.door:
            case Door.BUS:
                opening = self._on_the_bus(address, fail)
            case Door.XENSTORE:
                opening = self._in_the_store(address, fail)
            case Door.DATAGRAM:
                opening = self._at_datagrams(address)
            case Door.HTTP:
                opening = _at_socket(address.socket, self._http(address))
            case Door.FRAMED:
                opening = _at_socket(address.socket, self._framed(address))
        async with opening:
            yield

    def _http(self, address: Chosen) -> HttpDoor:
        tongues = Tongues(address.service)
        beside = Beside(self._aliases, self._afterwards, self._on_bus, self._tap)
        unreadable = tongues.manner.unreadable
        calls = SocketCalls(Door.HTTP, self._dispatch, self._backends, self._service, beside, unreadable)
        return HttpDoor(calls, tongues.manner, tongues.at, _nobody)

    def _framed(self, address: Chosen) -> FramedSocket:
        beside = Beside(self._aliases, self._afterwards, self._on_bus, self._tap)
        calls: SocketCalls[bytes] = SocketCalls(Door.FRAMED, self._dispatch, self._backends, self._service, beside)
        return FramedSocket(calls, Tongues(address.service).frame(), _nobody)

    @asynccontextmanager
    async def _on_the_bus(self, address: Chosen, fail: Callable[[str], None]) -> AsyncIterator[None]:
        objects = ObjectTree()
        doors.BusDoor(self._dispatch, self._backends, self._on_bus, self._afterwards, self._tap).export(objects)
        async with open_bus(address.settings.bus_address) as bus:
            bus.serve(objects.answer)
            try:
                outcome = await bus.request_name(address.bus_name)
            except BusError as error:
                raise ServeError(f"{address.bus_name} cannot be owned: {error}") from None
            if outcome is not NameOutcome.OWNER:
                raise ServeError(f"{address.bus_name} is owned by another daemon: end it, or choose another bus")

            async def watch() -> None:
                await bus.wait_lost()
                fail(f"the connection to the bus {address.settings.bus_address} was lost")

            watching = asyncio.create_task(watch(), name="bus of the stand-in")
            try:
                yield
                with suppress(BusError):  # a bus that is gone has no names
                    await bus.release_name(address.bus_name)
                await self._dispatch.drain(DRAIN_SECONDS)
            finally:
                watching.cancel()
                await asyncio.wait([watching])

    @asynccontextmanager
    async def _in_the_store(self, address: Chosen, fail: Callable[[str], None]) -> AsyncIterator[None]:
        tree = address.service.xenstore
        assert tree is not None
        door = doors.XenstoreDoor(self._dispatch, self._backends, self._service, self._tap)

        def foreign(pid: int) -> None:
            fail(f"/{tree}/pid is {pid}: another daemon serves the tree")

        async with open_store(address.settings.xenstore_socket) as store:
            server = rpc.Server(store, tree, door.answer, pid=os.getpid(), on_foreign_pid=foreign)
            try:
                registered = await server.pid()
                if registered and registered != os.getpid() and is_alive(registered):
                    raise ServeError(f"/{tree} is served by process {registered}: end it, or choose another tree")
                await server.register()
            except XenstoreError as error:
                raise ServeError(f"/{tree} cannot be served: {error}") from None
            serving = asyncio.create_task(server.run(), name="tree of the stand-in")
            try:
                yield
                await server.drain(DRAIN_SECONDS)
            finally:
                await server.stop()
                await asyncio.wait([serving])
                with suppress(XenstoreError):  # a store that is gone has taken the node with it
                    if await server.pid() == os.getpid():
                        await store.rm(f"/{tree}/pid")

    @asynccontextmanager
    async def _at_datagrams(self, address: Chosen) -> AsyncIterator[None]:
        assert address.service.datagram is not None
        door = doors.DatagramDoor(self._dispatch, self._backends, self._service, self._tap)
        bound = DatagramAddress(Situation(self._service.name, _STANDING), address.service.datagram, door)
        try:
            await bound.look()
        except DoorError as error:
            raise ServeError(str(error)) from None
        try:
            yield
        finally:
            await bound.close()


@asynccontextmanager
async def _at_socket(path: Path, door: _Opener) -> AsyncIterator[None]:
    with _listener(path) as listener:
        server = await door.open(listener)
        try:
            yield
            await server.stop_accepting()
            await server.drain(DRAIN_SECONDS)
        finally:
            await server.close()


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    """A listener at a path where nothing is, which goes with it, if it is ours still. Raises ServeError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServeError(f"{path} exists: end its daemon and remove it, or choose another path") from None
        raise ServeError(f"{path} cannot be served: {error.strerror or error}") from None
    bound = path.lstat()
    listener.listen(_QUEUE)
    listener.settimeout(0)
    try:
        yield listener
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), bound):
                path.unlink()


def _nobody() -> NoReturn:
    """The legacy daemon behind a door: there is none, and nothing is ever passed on."""
    raise AssertionError("a stand-in passes nothing on")


def _now() -> str:
    return ""
