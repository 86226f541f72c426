"""`xcp-bridge call`: one call at a door, as any caller would make it."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import Final

from bridges.calls import Call, Door, Tagged, Value
from bridges.interfaces import model
from bridges.reaching import NoSuchDoor, open_way
from bridges.settings import ServiceSettings, Settings
from bridges.tongues import Tongues
from bridges.xmlrpc_values import Mismatch, Values

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
    values = read_arguments(Tongues(chosen).frame().translation.values, found, arguments)
    deadline = time.monotonic() + (found.deadline or 300.0)
    try:
        async with open_way(settings, chosen, Door(door.value)) as way:
            return plain(await way.backend.ask(Call(found, values, way.door, deadline)))
    except NoSuchDoor as error:
        raise WrongCall(str(error)) from None


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
