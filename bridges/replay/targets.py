"""Whom recorded calls are sent to, and whether it says of itself that it is a sandbox.

    bus                    the service's name on the settings' bus, or another name
    legacy                 the door by which the settings reach the legacy daemon
    bus:ADDRESS            the same on another bus
    http:PATH              a Unix socket; http://HOST:PORT/ over TCP
    framed:PATH            a Unix socket of frames
    xenstore:SOCKET        the service's tree in the store behind that socket
    datagram:@ADDRESS      an abstract address

A target declares itself a sandbox in its own words: on the bus by the property `Sandbox` of org.xen.xcp.Sandbox1 at
/org/xen/xcp/SERVICE, which the process answers that owns the name; for a socket by a file SOCKET.sandbox beside it; in
the store by the node /TREE/sandbox with the value 1. TCP and datagrams have no such place: never a sandbox.

Driven is who was there when the target was opened: the process that owned the name, the socket that was bound at the
path, for writes the process that served the tree. Whoever comes in its place has declared nothing, and is not asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from bridges.backends import Backend, BusDaemon
from bridges.calls import Door
from bridges.dbus_translation import Translation
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.reaching import NoSuchDoor, Way, open_way
from bridges.replay.bound import Bound, FramedToBound
from bridges.replay.http_client import AT_ONCE, HttpxClient, load
from bridges.settings import HttpDoorSettings, ServiceSettings, Settings, SocketSettings
from dbus_side import addresses, introspection, names
from dbus_side.bus import Bus
from dbus_side.errors import BusError, NameInvalid
from dbus_side.signatures import Variant
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreLost, StoreRefused, XenstoreError

SANDBOX: Final = introspection.Interface(
    name="org.xen.xcp.Sandbox1", properties=(introspection.Property("Sandbox", "b", "read"),)
)
WITHOUT_SETTINGS: Final = "bus:ADDRESS, http:PATH, http://HOST:PORT/, framed:PATH, xenstore:SOCKET or datagram:@ADDRESS"
FORMS: Final = f"bus, legacy, {WITHOUT_SETTINGS}"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_PATIENCE: Final = 10.0  # seconds
_HTTP_PORT: Final = 80


class WrongTarget(Exception):
    """What was given names no target; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An address as it was named, before anything is opened. `url` is where HTTP calls go over TCP."""

    settings: Settings
    service: ServiceSettings
    door: Door
    text: str
    bus_name: str = ""
    url: str | None = None

    @property
    def socket(self) -> Path:
        """Of a socket door: its path."""
        found = self.service.framed if self.door is Door.FRAMED else self.service.http
        assert found is not None
        return found.socket


@dataclass(frozen=True, slots=True)
class Target:
    """An open target. `description` is for the report.

    `declares_sandbox` gives None when the target says that it is one, else why it counts as none; to be asked before
    every write. `at_once` is how many calls may be with the target at a time, None: any number.
    """

    backend: Backend
    door: Door
    interface: model.Service
    description: str
    declares_sandbox: Callable[[], Awaitable[str | None]]
    at_once: int | None = None


class _Process(BusDaemon):
    """One process on the bus: whoever takes the name after it has not said that it is a sandbox, and is not driven."""

    def __init__(self, bus: Bus, owner: str, interface: model.Service) -> None:
        super().__init__(interface.name, Translation(interface))
        self.bus: Bus = bus
        self._name = owner
        self._path = names.service_path(interface.name)
        self._has_declared = False

    async def declares_sandbox(self) -> str | None:
        """What a process said of itself holds as long as it lives: its own name on the bus is never another's."""
        if self._has_declared:
            return None
        asked = (SANDBOX.name, "Sandbox")
        try:
            reply = await self.bus.call(self._name, self._path, _PROPERTIES, "Get", "ss", asked, timeout=_PATIENCE)
        except BusError as error:
            return f"the target does not say that it is a sandbox: {error}"
        self._has_declared = reply.body == (Variant("b", True),)  # noqa: FBT003 -- the value of a property
        return None if self._has_declared else "the target says that it is no sandbox"


@asynccontextmanager
async def open_target(chosen: Chosen) -> AsyncIterator[Target]:
    """A way to a target. Raises WrongTarget, and Fault UNAVAILABLE when nobody is there; see `knock` for sockets."""
    bound = _bound(chosen)
    http, framed = partial(_http_client, url=chosen.url, bound=bound), partial(_framed_client, bound)
    try:
        async with open_way(chosen.settings, chosen.service, chosen.door, http, framed) as way:
            if chosen.door is Door.HTTP:
                await load()
            yield await _target(chosen, way, bound)
    except NoSuchDoor as error:
        raise WrongTarget(f"{chosen.text}: {error}") from None


async def knock(chosen: Chosen) -> None:
    """Raises Fault UNAVAILABLE where nobody listens at a socket or port: else every call would be a difference."""
    if chosen.door not in (Door.HTTP, Door.FRAMED):
        return
    try:
        async with asyncio.timeout(_PATIENCE):
            if chosen.url is None:
                _, writer = await asyncio.open_unix_connection(str(chosen.socket))
            else:
                url = httpx.URL(chosen.url)
                _, writer = await asyncio.open_connection(url.host, url.port or _HTTP_PORT)
    except TimeoutError:
        raise Fault(Kind.UNAVAILABLE, f"nobody answers within {_PATIENCE:g} s") from None
    except (OSError, ValueError) as error:  # a path with a NUL, or too long for a socket
        raise Fault(Kind.UNAVAILABLE, f"cannot be reached: {getattr(error, 'strerror', None) or error}") from None
    writer.close()


async def _target(chosen: Chosen, way: Way, bound: Bound | None) -> Target:
    interface = model.load_dialect(chosen.service.name, chosen.service.dialect)
    of = partial(Target, door=chosen.door, interface=interface, description=chosen.text)
    if way.bus is not None:
        process = _Process(way.bus, await _owner(way.bus, chosen.bus_name), interface)
        return of(process, declares_sandbox=process.declares_sandbox)
    if way.store is not None:
        tree = f"/{chosen.service.xenstore}"
        try:
            served_by = await _node(way.store, f"{tree}/pid")
        except XenstoreError as error:
            raise Fault(Kind.UNAVAILABLE, f"{tree} cannot be read: {error}") from None
        return of(way.backend, declares_sandbox=partial(_tree_declares, way.store, tree, served_by))
    declares = partial(_never, chosen.text) if bound is None else bound.declares_sandbox
    return of(way.backend, declares_sandbox=declares, at_once=AT_ONCE)


def choose(
    settings: Settings | None,
    service: str,
    to: str,
    *,
    name: str | None = None,
    tree: str | None = None,
    dialect: str | None = None,
) -> Chosen:
    """What an address in one of the forms above means for a service. Raises WrongTarget.

    `name` is another one on the bus (`org.xen.xcp.squeezed.Candidate`). `tree` and `dialect` are those of the settings,
    else the service's own name and today's dialect.
    """
    return _choose(settings, _service(settings, service, tree, dialect), to, name)


def _service(settings: Settings | None, name: str, tree: str | None, dialect: str | None) -> ServiceSettings:
    """What is known of the service: its settings, else what holds without any."""
    if name not in model.services():
        raise WrongTarget(f"no interface is written down for {name!r}; known: {', '.join(model.services())}")
    found = None if settings is None else settings.services.get(name)
    if found is None:
        found = ServiceSettings(name, dialect=model.dialects(name)[0])
    if dialect is not None and dialect not in model.dialects(name):
        raise WrongTarget(f"dialect: expected one of {', '.join(model.dialects(name))}, got {dialect!r}")
    return replace(found, dialect=dialect or found.dialect, xenstore=tree or found.xenstore)


def _choose(settings: Settings | None, service: ServiceSettings, to: str, name: str | None) -> Chosen:
    form, colon, rest = to.partition(":")
    if not colon and form in ("bus", "legacy") and settings is None:
        raise WrongTarget(f"{to}: needs settings that say where that is; without them: {WITHOUT_SETTINGS}")
    if name is not None and form != "bus":
        raise WrongTarget(f"{to}: a name is for targets on the bus, got {name!r}")
    known = settings or Settings()
    match form, rest:
        case "bus", _ if rest or not colon:
            known = replace(known, bus_address=rest) if rest else known
            try:
                addresses.parse(known.bus_address)
            except NameInvalid as error:
                raise WrongTarget(f"{to}: {error}") from None
            bus_name = name or names.service_name(service.name)
            if not names.is_bus_name(bus_name):
                raise WrongTarget(f"name: expected a bus name such as org.xen.xcp.{service.name}, got {bus_name!r}")
            return Chosen(known, service, Door.BUS, f"{bus_name} on {known.bus_address}", bus_name)
        case "legacy", "" if not colon:
            if service.name not in known.services:
                raise WrongTarget(
                    f"{to}: the settings have no service {service.name!r}; without them: {WITHOUT_SETTINGS}"
                )
            return _described(Chosen(known, service, Door(service.reach), to))
        case "http", _ if rest.startswith("/"):
            url = _url(to) if rest.startswith("//") else None
            http = service.http or HttpDoorSettings(Path(), Path(), _format(service))
            service = replace(service, http=replace(http, socket=Path(rest)))
            return Chosen(known, service, Door.HTTP, to, url=url)
        case "framed", _ if rest.startswith("/"):
            return Chosen(known, replace(service, framed=SocketSettings(Path(rest), Path())), Door.FRAMED, to)
        case "xenstore", _ if rest:
            service = replace(service, xenstore=service.xenstore or service.name)
            known = replace(known, xenstore_socket=rest)
            return Chosen(known, service, Door.XENSTORE, f"/{service.xenstore} in {to}")
        case "datagram", _ if re.fullmatch("@[!-~]{1,107}", rest):
            return Chosen(known, replace(service, datagram=rest), Door.DATAGRAM, to)
    raise WrongTarget(f"expected {FORMS}, got {to!r}")


def _described(chosen: Chosen) -> Chosen:
    """With words for the legacy door of the settings."""
    service = chosen.service
    match chosen.door:
        case Door.XENSTORE:
            text = f"/{service.xenstore} in xenstore:{chosen.settings.xenstore_socket}"
        case Door.DATAGRAM:
            text = f"datagram:{service.datagram}"
        case _:
            text = f"{chosen.door}:{chosen.socket}"
    return replace(chosen, text=text)


def _format(service: ServiceSettings) -> str:
    return model.load_dialect(service.name, service.dialect).http_format


def _url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise WrongTarget(f"expected http://HOST:PORT/, got {text!r}: {error}") from None
    if not url.host or url.query or url.fragment or url.userinfo:
        raise WrongTarget(f"expected http://HOST:PORT/, got {text!r}")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise WrongTarget(f"expected http://HOST:PORT/ with a port from 1 to 65535, got {text!r}")
    return str(url)


def _http_client(
    service: ServiceSettings, http: HttpDoorSettings, *, url: str | None, bound: Bound | None
) -> HttpxClient:
    """A client that POSTs where `Tongues.http_client` does: rpclib daemons are asked at the socket's path."""
    if url is not None:
        return HttpxClient(url)
    assert bound is not None
    at_xapi = "/jsonrpc" if http.format == "json" else "/"
    page = at_xapi if service.dialect == "xenapi" else http.socket
    return HttpxClient(f"http://localhost{page}", str(bound.path), bound.check)


def _framed_client(bound: Bound | None, _framed: SocketSettings) -> FramedToBound:
    assert bound is not None
    return FramedToBound(bound)


def _bound(chosen: Chosen) -> Bound | None:
    """The socket that is asked, None where there is no path. Raises Fault UNAVAILABLE where none is bound."""
    if chosen.url is not None or chosen.door not in (Door.HTTP, Door.FRAMED):
        return None
    try:
        return Bound.at(chosen.socket)
    except (OSError, ValueError) as error:
        raise Fault(Kind.UNAVAILABLE, f"{chosen.socket}: {getattr(error, 'strerror', None) or error}") from None


async def _owner(bus: Bus, name: str) -> str:
    await bus.track_owner(name, lambda _owner: None)
    owner = bus.owner(name)
    if owner is None:
        raise Fault(Kind.UNAVAILABLE, f"nobody owns {name} on the bus")
    return owner


async def _tree_declares(store: Store, tree: str, served_by: bytes | None) -> str | None:
    node = f"{tree}/sandbox"
    try:
        value, pid = await _node(store, node), await _node(store, f"{tree}/pid")
    except XenstoreError as error:
        return f"{node} cannot be read: {error}"
    if value != b"1":
        return f"there is no node {node}" if value is None else f"{node}: expected 1, got {value[:20]!r}"
    return None if pid == served_by else f"{tree} is served by another process now"


async def _node(store: Store, node: str) -> bytes | None:
    """The value of a node, None where there is none. Raises XenstoreError."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await store.read(node)
    except TimeoutError:
        raise StoreLost("xenstored does not answer", sent=True) from None
    except StoreRefused as refused:
        if refused.error != "ENOENT":
            raise
        return None


async def _never(target: str) -> str:
    return f"{target} has no place where it could say that it is a sandbox"
