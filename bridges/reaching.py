"""A way to a service's daemon for one caller of ours: opened, used for its calls, closed. Tools use it; the bridge does
not, which keeps its connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol, TypeVar

from bridges import dbus_translation
from bridges.backends import Backend, BusDaemon, LegacyOverDatagrams, LegacyOverSocket, LegacyOverXenstore, RpcClient
from bridges.calls import Door
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.settings import HttpDoorSettings, ServiceSettings, Settings, SocketSettings
from bridges.tongues import Tongues
from dbus_side.bus import Bus
from dbus_side.errors import BusError
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import XenstoreError
from xenstore_rpc.rpc import Caller
from xmlrpc_gateway.framed import FramedClient


class NoSuchDoor(Exception):
    """The service has no such door in the settings."""


class SocketClient(RpcClient, Protocol):
    """What calls a socket."""

    async def close(self) -> None: ...


class Way(NamedTuple):
    """Who is asked at which door, and the connection behind it where it is one that lasts."""

    backend: Backend
    door: Door
    bus: Bus | None = None
    store: Store | None = None


def _http_client(settings: ServiceSettings, http: HttpDoorSettings) -> SocketClient:
    return Tongues(settings).http_client(str(http.socket))


def _framed_client(framed: SocketSettings) -> SocketClient:
    return FramedClient(str(framed.socket))


Client = TypeVar("Client", bound=SocketClient)
MakeHttpClient = Callable[[ServiceSettings, HttpDoorSettings], SocketClient]
MakeFramedClient = Callable[[SocketSettings], SocketClient]
OURS: Final[MakeHttpClient] = _http_client
OURS_IN_FRAMES: Final[MakeFramedClient] = _framed_client


@asynccontextmanager
async def open_way(
    settings: Settings,
    service: ServiceSettings,
    door: Door,
    http_client: MakeHttpClient = OURS,
    framed_client: MakeFramedClient = OURS_IN_FRAMES,
) -> AsyncIterator[Way]:
    """A way to the service at that door.

    Raises NoSuchDoor, and Fault UNAVAILABLE when the bus or the store cannot be reached.
    """
    interface = model.load_dialect(service.name, service.dialect)
    tongues = Tongues(service)
    match door:
        case Door.BUS:
            daemon = BusDaemon(service.name, dbus_translation.Translation(interface))
            async with open_bus(settings.bus_address) as daemon.bus:
                yield Way(daemon, door, bus=daemon.bus)
        case Door.HTTP if service.http is not None:
            async with _closing(http_client(service, service.http)) as http:
                yield Way(LegacyOverSocket(lambda: http, *tongues.call()), door)
        case Door.FRAMED if service.framed is not None:
            async with _closing(framed_client(service.framed)) as framed:
                yield Way(LegacyOverSocket(lambda: framed, *tongues.frame(), Door.FRAMED), door)
        case Door.DATAGRAM if service.datagram is not None:
            yield Way(LegacyOverDatagrams(service.datagram), door)
        case Door.XENSTORE if service.xenstore is not None:
            async with open_store(settings.xenstore_socket) as store:
                yield Way(LegacyOverXenstore(Caller(store, service.xenstore), interface), door, store=store)
        case _:
            raise NoSuchDoor(f"{service.name} has no {door} door in the settings")


@asynccontextmanager
async def open_bus(address: str) -> AsyncIterator[Bus]:
    """A connection to the bus. Raises Fault UNAVAILABLE."""
    try:
        bus = await Bus.connect(address)
    except (BusError, OSError) as error:
        raise Fault(Kind.UNAVAILABLE, str(error)) from None
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def open_store(socket: str) -> AsyncIterator[Store]:
    """A connection to xenstored. Raises Fault UNAVAILABLE."""
    store = Store(socket)
    try:
        await store.connect()
    except (XenstoreError, OSError) as error:
        raise Fault(Kind.UNAVAILABLE, f"xenstored {socket}: {error}") from None
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def _closing(client: Client) -> AsyncIterator[Client]:
    try:
        yield client
    finally:
        await client.close()
