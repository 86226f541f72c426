"""Example calls: values that fit a method's parameters, and the `busctl call` line that carries them.

The values are made by type, so that the bridge accepts what a line sends: a string is the argument's name, a reference
names its class, a record has the members that it needs; what may be empty or absent is.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from typing import Any, Final

from bridges.calls import Tagged, Value
from bridges.dbus_translation import Translation
from bridges.interfaces.model import Basic, DictOf, ListOf, Method, Option, Record, RecordOf, TupleOf, Type, Union
from dbus_side import names, signatures

ADDRESS: Final = "unix:path=/run/xcp/bus"
USUAL: Final = 300.0  # seconds: a line says how long to wait where that is longer
_BASIC: Final[dict[str, Value]] = {
    "unit": None,
    "bool": False,
    "int": 1,
    "int32": 1,
    "int64": 1,
    "float": 0.5,
    "char": "c",
    "datetime": "20260101T00:00:00Z",
}


class Lines:
    """The example calls of one service."""

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._handles_are_references = translation.service.dialect == "xenapi"

    def arguments(self, method: Method) -> dict[str, Value]:
        """Arguments by parameter name; nothing that may be left out."""
        return {
            parameter.name: self._reference(method, parameter.name) or example(parameter.type, parameter.name)
            for parameter in method.parameters
            if not parameter.may_be_absent and not isinstance(parameter.type, Option)
        }

    def _reference(self, method: Method, name: str) -> str | None:
        kind = method.consumes.get(name, "cursor")
        return f"OpaqueRef:{kind}" if self._handles_are_references and kind != "cursor" else None

    def of(self, method: Method) -> str:
        """The line to paste."""
        return f"{self.head(method)} {self.tail(method)}"

    def head(self, method: Method) -> str:
        """The line up to the member."""
        form = self._translation.of(method)
        waits = "infinity" if method.deadline is None else f"{method.deadline:.0f}"
        timeout = [f"--timeout={waits}"] if method.deadline is None or method.deadline > USUAL else []
        where = [names.service_name(method.service), form.path, form.interface]
        return shlex.join(["busctl", f"--address={ADDRESS}", *timeout, "call", *where])

    def tail(self, method: Method) -> str:
        """The line from the member on."""
        form = self._translation.of(method)
        body = form.write_arguments(self.arguments(method))
        signature = [form.input_signature] if form.input_signature else []
        return shlex.join([form.member, *signature, *words(form.input_signature, body)])


def example(kind: Type, name: str) -> Value:
    """The smallest value of a type that is accepted; its strings are `name`."""
    match kind:
        case Basic(basic):
            return _BASIC.get(basic, name)
        case Option():
            return None
        case ListOf():
            return []
        case TupleOf(items):
            return tuple(example(item, name) for item in items)
        case DictOf() | RecordOf():
            return {}
        case Record(fields):
            return {member.name: example(member.type, member.name) for member in fields if member.required}
        case Union(constructors):
            chosen = next((c for c in constructors if c.argument is None), constructors[0])
            return Tagged(chosen.name, None if chosen.argument is None else example(chosen.argument, name))


def words(signature: str, body: tuple[Any, ...]) -> Iterator[str]:
    """A body as busctl takes it: an array begins with its length, a variant with its signature."""
    for kind, value in zip(signatures.parse(signature), body, strict=True):
        yield from _words(kind, value)


def _words(kind: signatures.Type, value: Any) -> Iterator[str]:
    match kind.signature[0]:
        case "v":
            yield value.signature
            yield from words(value.signature, (value.value,))
        case "(":
            for inner, item in zip(kind.inner, value, strict=True):
                yield from _words(inner, item)
        case "a":
            yield str(len(value))
            items = itertools.chain.from_iterable(value.items()) if isinstance(value, dict) else value
            for inner, item in zip(itertools.cycle(kind.inner), items, strict=False):
                yield from _words(inner, item)
        case "b":
            yield str(value).lower()
        case _:
            yield str(value)
