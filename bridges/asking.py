"""`xcp-bridge call`: one call at a door, as any caller would make it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final

from bridges import dbus_translation
from bridges.backends import Backend, BusDaemon, LegacyOverDatagrams, LegacyOverSocket, LegacyOverXenstore
from bridges.calls import Call, Door, Tagged, Value
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.settings import ServiceSettings, Settings
from bridges.tongues import Tongues
from bridges.xmlrpc_values import Mismatch, Values
from dbus_side.bus import Bus
from dbus_side.errors import BusError
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import XenstoreError
from xenstore_rpc.rpc import Caller
from xmlrpc_gateway.framed import FramedClient

LABEL: Final = "xcp-bridge call"


class AskedDoor(StrEnum):
    """The doors one can call at."""

    BUS = "bus"
    HTTP = "http"
    FRAMED = "framed"
    XENSTORE = "xenstore"
    DATAGRAM = "datagram"


class WrongCall(Exception):
    """The call as typed cannot be made; the text names the argument and what was expected."""


def choose(settings: Settings, service: str) -> tuple[ServiceSettings, model.Service]:
    """A service of the settings, and its interface in its dialect. Raises WrongCall."""
    chosen = settings.services.get(service)
    if chosen is None:
        raise WrongCall(f"no service {service!r} in the settings; known: {', '.join(settings.services) or 'none'}")
    return chosen, model.load_dialect(service, chosen.dialect)


async def ask(settings: Settings, service: str, method: str, arguments: list[str], door: AskedDoor) -> object:
    """The result, ready for JSON. Raises WrongCall or Fault."""
    chosen, interface = choose(settings, service)
    found = interface.method(method)
    if found is None:
        raise WrongCall(f"{service} has no method {method!r}; see xcp-bridge idl list")
    tongues = Tongues(chosen)
    values = read_arguments(tongues.frame().translation.values, found, arguments)
    deadline = time.monotonic() + (found.deadline or 300.0)
    async with _backend(settings, chosen, interface, tongues, door) as backend:
        return plain(await backend.ask(Call(found, values, Door(door.value), deadline)))


def read_arguments(read: Values, method: model.Method, arguments: list[str]) -> dict[str, Value]:
    """Arguments from words ARG=JSON; a word that is no JSON is taken as text. Raises WrongCall."""
    parameters = {p.name: p for p in method.parameters if p.type != model.UNIT}
    values: dict[str, Value] = {}
    for word in arguments:
        name, equals, text = word.partition("=")
        if not equals:
            raise WrongCall(f"expected ARG=JSON, got {word!r}")
        if name not in parameters:
            raise WrongCall(f"{method.name} has no argument {name!r}; it takes {', '.join(parameters) or 'none'}")
        kind = parameters[name].type
        try:
            given = json.loads(text)
        except ValueError:
            given = text
        if kind == model.STRING and not isinstance(given, str):
            given = text
        try:
            values[name] = read.reader(model.bare(kind) if parameters[name].named else kind)(given)
        except Mismatch as mismatch:
            raise WrongCall(f"{name}: {mismatch.place}: {mismatch.reason}") from None
    for name, parameter in parameters.items():
        if name not in values and name in ("debug_info", "dbg"):
            values[name] = LABEL
        elif name not in values and not (parameter.may_be_absent or isinstance(parameter.type, model.Option)):
            raise WrongCall(f"{method.name} needs {name}=...; it takes {', '.join(parameters)}")
    return values


def plain(value: Value) -> object:
    """A neutral value as JSON has it: a union is its tag or [tag, argument], a tuple a list."""
    match value:
        case Tagged():
            return value.tag if value.argument is None else [value.tag, plain(value.argument)]
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case bytes():
            return value.hex()
        case _:
            return value


@asynccontextmanager
async def _backend(
    settings: Settings, service: ServiceSettings, interface: model.Service, tongues: Tongues, door: AskedDoor
) -> AsyncIterator[Backend]:
    match door:
        case AskedDoor.BUS:
            daemon = BusDaemon(service.name, dbus_translation.Translation(interface))
            try:
                daemon.bus = await Bus.connect(settings.bus_address)
            except (BusError, OSError) as error:
                raise Fault(Kind.UNAVAILABLE, str(error)) from None
            try:
                yield daemon
            finally:
                await daemon.bus.close()
        case AskedDoor.HTTP if service.http is not None:
            http = tongues.http_client(str(service.http.socket))
            yield LegacyOverSocket(lambda: http, *tongues.call())
            await http.close()
        case AskedDoor.FRAMED if service.framed is not None:
            framed = FramedClient(str(service.framed.socket))
            yield LegacyOverSocket(lambda: framed, *tongues.frame())
            await framed.close()
        case AskedDoor.DATAGRAM if service.datagram is not None:
            yield LegacyOverDatagrams(service.datagram)
        case AskedDoor.XENSTORE if service.xenstore is not None:
            store = Store(settings.xenstore_socket)
            try:
                await store.connect()
            except (XenstoreError, OSError) as error:
                raise Fault(Kind.UNAVAILABLE, f"xenstored {settings.xenstore_socket}: {error}") from None
            try:
                yield LegacyOverXenstore(Caller(store, service.xenstore), interface)
            finally:
                await store.close()
        case _:
            raise WrongCall(f"{service.name} has no {door} door in the settings")
