"""The interface data as types: what a service offers, and how each method looks on every door.

`SERVICE.json` beside this file is the one source; `SERVICE-2012.json` is the same service as its daemon of May 2012
spoke (dialect rpclib-2012). A type expression there is a name of a basic type or one of `{"ref": T}`, `{"option": t}`,
`{"list": t}`, `{"array": t}`, `{"tuple": [...]}`, `{"dict": [key, t]}`, `{"record": [...]}`, `{"variant": [...]}`,
`{"abstract": A}`, `{"record_of": MEMBER}`. References are resolved here, once: no type of the toolstack is recursive.
A file is read when its service is asked for, methods and types are built on first use: a daemon that bridges one
service pays for what is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

OLDER: Final = "rpclib-2012"
SOCKETS: Final = ("http", "framed")  # the doors of a method of which the data say none
_OLDER_SUFFIX: Final = "-2012"
BASIC: Final = frozenset({"unit", "bool", "int", "int32", "int64", "float", "string", "char", "datetime", "any"})


class InterfaceError(Exception):
    """The interface data itself is wrong, or names something that is not written down."""


class Effect(StrEnum):
    """What a method does to the world; undeclared means write."""

    READ = "read"
    WRITE = "write"


class HandleForm(StrEnum):
    """How a handle looks that is known to one process of the service alone, until that process ends.

    number     decimal text of a counter that begins anew in every process
    count      the same counter's value as an integer: a cursor
    count text the same as decimal text
    reference  `OpaqueRef:` and a random uuid
    token      two numbers of 20 digits with a comma between them: a cursor
    """

    NUMBER = "number"
    COUNT = "count"
    COUNT_TEXT = "count text"
    REFERENCE = "reference"
    TOKEN = "token"  # noqa: S105 -- a cursor


@dataclass(frozen=True, slots=True)
class Basic:
    """unit, bool, int (63 bits), int32, int64, float, string, char, datetime (its text), or any (an untyped value)."""

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
    """A map; order is kept, duplicates exist only on the legacy wire.

    `key` is a string, an integer or an enum (a union without arguments); all of them are text on the legacy wire.
    """

    item: Type
    key: Type = Basic("string")


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
class RecordOf:
    """A record of the class that the member `member` beside it names, in any case: xapi's `event.snapshot`.

    `resolve` gives the record of a class, None for one that is not written down.
    """

    member: str
    resolve: Callable[[str], Record | None]

    def beside(self, members: Mapping[str, object]) -> Record:
        """The record of the class that stands among these members; an untyped one where that is not written down."""
        return self.resolve(str(members.get(self.member, ""))) or UNKNOWN_RECORD


@dataclass(frozen=True, slots=True)
class Constructor:
    """One case of a union: its tag and the type it carries (None: nothing).

    `flat`: a tuple's elements stand directly behind the tag, as the generator of 2012 wrote several arguments.
    """

    name: str
    argument: Type | None
    flat: bool = False


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


Type = Basic | Option | ListOf | TupleOf | DictOf | Record | RecordOf | Union

ASYNC: Final = "Async."  # xapi: the same call, answered at once by a task
T = TypeVar("T")
UNIT: Final = Basic("unit")
STRING: Final = Basic("string")
ANY: Final = Basic("any")
UNKNOWN_RECORD: Final = Record(())  # of a class that is not written down: all of its members are untyped


class PerType(Generic[T]):
    """A function of a type whose value is made once.

    By identity: types are shared objects, and hashing a record would walk all of it.
    """

    def __init__(self, make: Callable[[Type], T]) -> None:
        self._make = make
        self._made: dict[int, tuple[Type, T]] = {}

    def __call__(self, kind: Type) -> T:
        known = self._made.get(id(kind))
        if known is None:
            known = self._made[id(kind)] = (kind, self._make(kind))
        return known[1]


def bare(kind: Type) -> Type:
    """The type of a record member or named argument that is there: an option is the bare value or absent."""
    return kind.item if isinstance(kind, Option) else kind


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a method.

    `named`: it travels in the struct of named arguments, where the dialect has one. `optional`: it may be left off the
    end; `default` is then its value as the interface data write it, None when they do not know one.
    """

    name: str
    type: Type
    named: bool = False
    secret: bool = False
    optional: bool = False
    default: Any = None

    @property
    def may_be_absent(self) -> bool:
        """Whether a caller may leave it out; on the bus it then travels in `options`."""
        return self.optional or (self.named and isinstance(self.type, Option))


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
    params: list[dict[str, Any]]
    result: Any
    object: str = ""
    error: str = ""
    effect: Effect = Effect.WRITE
    deadline: float | msgspec.UnsetType | None = msgspec.UNSET
    positional: bool = False
    has_async: bool = msgspec.field(name="async", default=False)
    doors: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    produces: dict[str, str] = {}
    consumes: dict[str, str] = {}
    ends: tuple[str, ...] = ()
    xenstore: XenstoreForm | None = None


class _ServiceData(msgspec.Struct, frozen=True):
    service: str
    methods: list[_MethodData]
    types: dict[str, Any]
    dialect: str = "rpclib"
    version: int = 1
    http_format: Literal["xml", "json"] = "xml"
    error: str = "errors"
    deadline: float = 300.0
    abstracts: dict[str, str] = {}
    queue: str | None = None
    handles: dict[str, HandleForm] = {}
    xenstore_errors: dict[str, XenstoreError] = {}


@dataclass(frozen=True, eq=False)
class Method:
    """A method of a service.

    `name` is the exact legacy wire name; `deadline` is in seconds (None: a long poll that the caller ends);
    `doors` limits the legacy doors that know the method (empty: all); `positional` marks the two methods of which the
    legacy daemon still accepts the older positional form; `version` is that of its interface on the bus.
    `produces` and `consumes` name the handles in the result and in arguments by place: `result.*` is every element of a
    list, `result.keys` the keys of a map, `result.1` the second of a tuple, `result.*.Task` what that case of a union
    carries. `ends` are the places in arguments whose handles are no more once the call succeeded.
    """

    service: str
    version: int
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
    secret_result: bool = False
    produces: dict[str, str] = field(default_factory=dict)
    consumes: dict[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = ()

    def is_at(self, door: str) -> bool:
        """Whether it can be called at that door: bus, xenstore, http, framed or datagram."""
        if door == "bus":
            return True
        if door == "xenstore":
            return self.xenstore is not None
        return door in (self.doors or SOCKETS)

    @cached_property
    def member(self) -> str:
        """The method's name without its class, what becomes the D-Bus member: `Async.VM.start` is `Async_start`."""
        own = self.name.rpartition(".")[2]
        return f"Async_{own}" if self.name.startswith(ASYNC) else own


class Service:
    """Everything written down about one service.

    `dialect` is how its legacy daemons lay values out, `version` the number behind its interfaces' names on the bus,
    `http_format` what its HTTP socket speaks; `handles` are the kinds of handles that one process alone knows.
    """

    def __init__(self, data: _ServiceData) -> None:
        self.name = data.service
        self.dialect = data.dialect
        self.version = data.version
        self.http_format = data.http_format
        self.queue = data.queue
        self.handles = data.handles
        self.xenstore_errors = data.xenstore_errors
        self._types = data.types
        self._abstracts = data.abstracts
        self._error = data.error
        self._deadline = data.deadline
        self._data = {method.name: method for method in data.methods}
        self._resolved: dict[str, Type] = {}
        self._methods: dict[str, Method] = {}

    @cached_property
    def method_names(self) -> tuple[str, ...]:
        """Every wire name; the `Async.` forms come last."""
        return (*self._data, *(ASYNC + name for name, method in self._data.items() if method.has_async))

    def method(self, name: str) -> Method | None:
        """The method of that exact wire name, or None: never guessed."""
        found = self._methods.get(name)
        if found is None and (data := self._data_of(name)) is not None:
            found = self._methods[name] = self._build(name, data)
        return found

    def method_by_alias(self, name: str) -> Method | None:
        """As `method`, for xapi's second spelling of every name, with `_` in place of the last dot: `event_from`."""
        exact = self._aliases.get(name)
        return None if exact is None else self.method(exact)

    def methods(self) -> tuple[Method, ...]:
        return tuple(method for name in self.method_names if (method := self.method(name)) is not None)

    def object_methods(self, object_name: str) -> tuple[Method, ...]:
        """The methods of one object, in declared order."""
        return tuple(method for name in self.objects[object_name] if (method := self.method(name)) is not None)

    @cached_property
    def objects(self) -> dict[str, tuple[str, ...]]:
        """Object name to the wire names of its methods, in declared order; builds none of them."""
        found: dict[str, list[str]] = {}
        for name in self.method_names:
            data = self._data_of(name)
            assert data is not None
            found.setdefault(_object_of(data), []).append(name)
        return {name: tuple(methods) for name, methods in found.items()}

    @cached_property
    def doors(self) -> frozenset[str]:
        """The legacy doors at which any of its methods can be called."""
        found = {"xenstore"} if any(data.xenstore is not None for data in self._data.values()) else set()
        for data in self._data.values():
            found.update(data.doors or SOCKETS)
        return frozenset(found)

    @cached_property
    def long_polls(self) -> tuple[str, ...]:
        """The wire names of the methods that wait for as long as their callers do."""
        return tuple(name for name, data in self._data.items() if data.deadline is None)

    @cached_property
    def by_xenstore_function(self) -> dict[str, Method]:
        return {m.xenstore.function: m for m in self.methods() if m.xenstore is not None}

    @cached_property
    def errors(self) -> dict[str, Constructor]:
        """Every declared error constructor of the service, over all its error types."""
        kinds = {data.error or self._error: None for data in self._data.values()}
        return {case.name: case for kind in kinds for case in self._errors(kind).constructors}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {"_".join(name.rsplit(".", 1)): name for name in self.method_names}

    def _data_of(self, name: str) -> _MethodData | None:
        if not name.startswith(ASYNC):
            return self._data.get(name)
        data = self._data.get(name.removeprefix(ASYNC))
        return data if data is not None and data.has_async else None

    def _errors(self, kind: str) -> Union:
        errors = self.type({"ref": kind})
        if not isinstance(errors, Union):
            raise InterfaceError(f"{self.name}: error type {kind} is no union")
        return errors

    def _build(self, name: str, data: _MethodData) -> Method:
        is_async = name.startswith(ASYNC)
        parameters = tuple(
            Parameter(
                name=p["name"],
                type=self.type(p["type"]),
                named=p.get("named", False),
                secret=p["name"] in data.secret,
                optional=p.get("optional", False),
                default=p.get("default"),
            )
            for p in data.params
        )
        return Method(
            service=self.name,
            version=self.version,
            name=name,
            object=_object_of(data),
            parameters=parameters,
            result=self.type({"ref": "task ref"} if is_async else data.result),
            errors=self._errors(data.error or self._error),
            effect=Effect.WRITE if is_async else data.effect,
            deadline=self._deadline if is_async or data.deadline is msgspec.UNSET else data.deadline,
            positional=data.positional,
            doors=data.doors,
            xenstore=data.xenstore,
            secret_result="result" in data.secret and not is_async,
            produces={"result": "task"} if is_async else data.produces,
            consumes=data.consumes,
            ends=() if is_async else data.ends,
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
            case {"dict": [key, item]}:
                return DictOf(self.type(item), self.type(key))
            case {"record": list(members)}:
                return Record(tuple(self._field(member) for member in members))
            case {"variant": list(cases)}:
                return Union(tuple(self._constructor(case) for case in cases), expression.get("default"))
            case {"record_of": str(member)}:
                return RecordOf(member, self._record_of_class)
        raise InterfaceError(f"{self.name}: no type is written as {expression!r}")

    @cached_property
    def _record_names(self) -> dict[str, str]:
        """A class in lower case, as events name it, to its record type's name."""
        return {n.removesuffix(" record").lower(): n for n in self._types if n.endswith(" record")}

    def _record_of_class(self, name: str) -> Record | None:
        record = self._record_names.get(name.lower())
        found = None if record is None else self.type({"ref": record})
        return found if isinstance(found, Record) else None

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
        argument = None if data["args"] is None else self.type(data["args"])
        return Constructor(data["name"], argument, flat=data.get("args_flat", False))


def _object_of(data: _MethodData) -> str:
    return data.object or data.name.rpartition(".")[0]


def decode(text: bytes) -> Service:
    """Interface data from its JSON text. Raises InterfaceError naming the place that is wrong."""
    try:
        return Service(msgspec.json.decode(text, type=_ServiceData))
    except msgspec.MsgspecError as error:
        raise InterfaceError(str(error)) from None


def available() -> tuple[str, ...]:
    """The interfaces that are written down: services, and `SERVICE-2012` where the older dialect differs."""
    names = (entry.name for entry in resources.files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def services() -> tuple[str, ...]:
    """The services whose interface is written down."""
    return tuple(name for name in available() if "-" not in name)


def dialects(service: str) -> tuple[str, ...]:
    """The dialects that a service's legacy daemons may speak, today's first."""
    older = (OLDER,) if service + _OLDER_SUFFIX in available() else ()
    return (load(service).dialect, *older)


def load_dialect(service: str, dialect: str) -> Service:
    """The interface of a service as its daemons of that dialect have it. Raises InterfaceError."""
    return load(_file_of(service, dialect))


@lru_cache
def load(name: str) -> Service:
    """An interface, read once a process. Raises InterfaceError when it is not written down."""
    if name not in available():
        raise InterfaceError(f"no interface is written down for {name!r}; known: {', '.join(available())}")
    return decode(_text(name))


@lru_cache
def digest(service: str, dialect: str) -> str:
    """What tells one version of an interface's data from another: 16 hexadecimal digits."""
    return hashlib.sha256(_text(_file_of(service, dialect))).hexdigest()[:16]


def _file_of(service: str, dialect: str) -> str:
    return service + _OLDER_SUFFIX if dialect == OLDER else service


def _text(name: str) -> bytes:
    return resources.files(__package__).joinpath(f"{name}.json").read_bytes()
