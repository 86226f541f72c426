"""The interface data as types: what a service offers, and how each method looks on every door.

`SERVICE.json` beside this file is the one source. A type expression there is a name of a basic type or one of
`{"ref": T}`, `{"option": t}`, `{"list": t}`, `{"array": t}`, `{"tuple": [...]}`, `{"dict": [key, t]}`,
`{"record": [...]}`, `{"variant": [...]}`, `{"abstract": A}`. References are resolved here, once: no type of the
toolstack is recursive.
Methods and types are built on first use, so a daemon that bridges one service pays for what is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Final

import msgspec

BASIC: Final = frozenset({"unit", "bool", "int", "int32", "int64", "float", "string", "char", "any"})


class InterfaceError(Exception):
    """The interface data itself is wrong, or names something that is not written down."""


class Effect(StrEnum):
    """What a method does to the world; undeclared means write."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Basic:
    """unit, bool, int (63 bits), int32, int64, float, string, char, or any (an untyped value)."""

    name: str


@dataclass(frozen=True, slots=True)
class Option:
    """A value or nothing; never directly inside another option."""

    item: Type


@dataclass(frozen=True, slots=True)
class ListOf:
    item: Type


@dataclass(frozen=True, slots=True)
class TupleOf:
    items: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class DictOf:
    """A map with string keys; order is kept, duplicates exist only on the legacy wire."""

    item: Type


@dataclass(frozen=True, slots=True)
class Field:
    """A record member.

    `required` is false for options, for members with a default, and for those that the data calls optional because
    older daemons do not send them. `defaults` says that the legacy decoders use the default also for a value that does
    not fit, instead of refusing it.
    """

    name: str
    type: Type
    required: bool
    defaults: bool


@dataclass(frozen=True, slots=True)
class Record:
    """`name` is what legacy errors call it: the last part of the type's name, empty for a record without one."""

    fields: tuple[Field, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Constructor:
    """One case of a union: its tag and the type it carries (None: nothing)."""

    name: str
    argument: Type | None


@dataclass(frozen=True)
class Union:
    """A tagged union; `constructors` in declared order.

    `default` is the constructor, without argument, that the legacy decoders use for an unknown tag; None: they refuse.
    """

    constructors: tuple[Constructor, ...]
    default: str | None = None

    @cached_property
    def by_name(self) -> dict[str, Constructor]:
        return {constructor.name: constructor for constructor in self.constructors}

    @cached_property
    def carries_arguments(self) -> bool:
        return any(constructor.argument is not None for constructor in self.constructors)


Type = Basic | Option | ListOf | TupleOf | DictOf | Record | Union

UNIT: Final = Basic("unit")
STRING: Final = Basic("string")
ANY: Final = Basic("any")


def bare(kind: Type) -> Type:
    """The type of a record member or named argument that is there: an option is the bare value or absent."""
    return kind.item if isinstance(kind, Option) else kind


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: Type
    named: bool
    secret: bool


class XenstoreForm(msgspec.Struct, frozen=True):
    """How a method looks in the xenstore RPC: its function, the argument keys and the result keys in declared order."""

    function: str
    arguments: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    variadic: bool = False


class XenstoreError(msgspec.Struct, frozen=True):
    """What an xenstore error code stands for, and how its description is made up."""

    error: str
    description: str


class _MethodData(msgspec.Struct, frozen=True):
    name: str
    object: str
    params: list[dict[str, Any]]
    result: Any
    error: str
    effect: Effect = Effect.WRITE
    deadline: float | None = 300.0
    positional: bool = False
    doors: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    produces: dict[str, str] = {}
    consumes: dict[str, str] = {}
    xenstore: XenstoreForm | None = None


class _ServiceData(msgspec.Struct, frozen=True):
    service: str
    methods: list[_MethodData]
    types: dict[str, Any]
    abstracts: dict[str, str] = {}
    queue: str | None = None
    xenstore_errors: dict[str, XenstoreError] = {}


@dataclass(frozen=True, eq=False)
class Method:
    """A method of a service.

    `name` is the exact legacy wire name; `deadline` is in seconds (None: a long poll that the caller ends);
    `doors` limits the legacy doors that know the method (empty: all); `positional` marks the two methods of which the
    legacy daemon still accepts the older positional form.
    """

    service: str
    name: str
    object: str
    parameters: tuple[Parameter, ...]
    result: Type
    errors: Union
    effect: Effect
    deadline: float | None
    positional: bool
    doors: tuple[str, ...]
    xenstore: XenstoreForm | None
    produces: dict[str, str] = field(default_factory=dict)
    consumes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def member(self) -> str:
        """The method's name without its class: what becomes the D-Bus member."""
        return self.name.rpartition(".")[2]


class Service:
    """Everything written down about one service."""

    def __init__(self, data: _ServiceData) -> None:
        self.name = data.service
        self.queue = data.queue
        self.xenstore_errors = data.xenstore_errors
        self._types = data.types
        self._abstracts = data.abstracts
        self._data = {method.name: method for method in data.methods}
        self._resolved: dict[str, Type] = {}
        self._methods: dict[str, Method] = {}

    @property
    def method_names(self) -> tuple[str, ...]:
        return tuple(self._data)

    def method(self, name: str) -> Method | None:
        """The method of that exact wire name, or None: never guessed."""
        found = self._methods.get(name)
        if found is None and name in self._data:
            found = self._methods[name] = self._build(self._data[name])
        return found

    def methods(self) -> tuple[Method, ...]:
        return tuple(method for name in self._data if (method := self.method(name)) is not None)

    @cached_property
    def objects(self) -> dict[str, tuple[Method, ...]]:
        """Object name to its methods, in declared order."""
        found: dict[str, list[Method]] = {}
        for method in self.methods():
            found.setdefault(method.object, []).append(method)
        return {name: tuple(methods) for name, methods in found.items()}

    @cached_property
    def by_xenstore_function(self) -> dict[str, Method]:
        return {m.xenstore.function: m for m in self.methods() if m.xenstore is not None}

    @cached_property
    def errors(self) -> dict[str, Constructor]:
        """Every declared error constructor of the service, over all its error types."""
        return {c.name: c for method in self.methods() for c in method.errors.constructors}

    def _build(self, data: _MethodData) -> Method:
        errors = self.type({"ref": data.error})
        if not isinstance(errors, Union):
            raise InterfaceError(f"{self.name}: {data.name}: error type {data.error} is no union")
        parameters = tuple(
            Parameter(p["name"], self.type(p["type"]), p.get("named", False), p["name"] in data.secret)
            for p in data.params
        )
        return Method(
            service=self.name,
            name=data.name,
            object=data.object,
            parameters=parameters,
            result=self.type(data.result),
            errors=errors,
            effect=data.effect,
            deadline=data.deadline,
            positional=data.positional,
            doors=data.doors,
            xenstore=data.xenstore,
            produces=data.produces,
            consumes=data.consumes,
        )

    def type(self, expression: Any) -> Type:
        """The type that an expression of the interface data stands for.

        Raises InterfaceError naming the expression when it is of no known form.
        """
        match expression:
            case str() if expression in BASIC:
                return Basic(expression)
            case {"ref": str(name)} if name in self._types:
                if name not in self._resolved:
                    self._resolved[name] = self._named(name)
                return self._resolved[name]
            case {"abstract": str(name)} if name in self._abstracts:
                return self.type(self._abstracts[name])
            case {"option": item}:
                return Option(self.type(item))
            case {"list": item} | {"array": item}:
                return ListOf(self.type(item))
            case {"tuple": [_, *_] as items}:
                return TupleOf(tuple(self.type(item) for item in items))
            case {"dict": [_, item]}:
                return DictOf(self.type(item))
            case {"record": list(members)}:
                return Record(tuple(self._field(member) for member in members))
            case {"variant": list(cases)}:
                return Union(tuple(self._constructor(case) for case in cases), expression.get("default"))
        raise InterfaceError(f"{self.name}: no type is written as {expression!r}")

    def _named(self, name: str) -> Type:
        found = self.type(self._types[name])
        is_alias = "record" not in self._types[name]
        return found if is_alias or not isinstance(found, Record) else replace(found, name=name.rpartition(".")[2])

    def _field(self, data: dict[str, Any]) -> Field:
        kind = self.type(data["type"])
        defaults = "default" in data
        required = not (defaults or isinstance(kind, Option) or data.get("optional", False))
        return Field(data["name"], kind, required=required, defaults=defaults)

    def _constructor(self, data: dict[str, Any]) -> Constructor:
        return Constructor(data["name"], None if data["args"] is None else self.type(data["args"]))


def decode(text: bytes) -> Service:
    """Interface data from its JSON text. Raises InterfaceError naming the place that is wrong."""
    try:
        return Service(msgspec.json.decode(text, type=_ServiceData))
    except msgspec.MsgspecError as error:
        raise InterfaceError(str(error)) from None


def available() -> tuple[str, ...]:
    """The services whose interface is written down."""
    names = (entry.name for entry in resources.files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


@lru_cache
def load(service: str) -> Service:
    """The interface of a service, read once a process. Raises InterfaceError when it is not written down."""
    if service not in available():
        raise InterfaceError(f"no interface is written down for {service!r}; known: {', '.join(available())}")
    return decode(resources.files(__package__).joinpath(f"{service}.json").read_bytes())
