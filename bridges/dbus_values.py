"""Values on the bus to neutral values and back, by the interface's types.

What this cannot carry
    * a string with NUL or a lone surrogate (NOT_REPRESENTABLE, refused before it is marshalled)
    * a constructor that is not written down: refused by name, never guessed
    * a 63-bit legacy `int` beyond its range, which `x` could hold: refused towards the legacy side
    * whether nothing was said or an absent option was said: both are an absent key
    * in an untyped value: which integer type a daemon chose, and whether it sent a struct or an array

Shapes (the interface data decides, never the value):
    bool b · int32 i · int, int64 x · float d · string, char, datetime s · list aT · map a{KT} · tuple (...)
    record a{sv} · union without any argument s, else (sv) with "" for a constructor that carries nothing
    option outside a record aT of 0 or 1 · any v, in it nil is the empty g, an array av, a map a{sv}

A member of a record that is not written down travels as an untyped value, where `keeps_unknown` says so: towards the
bus and in a bus daemon's results, since daemons of both sides may be newer than the data. In a bus caller's arguments
it is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bridges import numbers
from bridges.calls import Tagged, Value
from bridges.interfaces.model import (
    UNKNOWN_RECORD,
    Basic,
    DictOf,
    ListOf,
    Option,
    PerType,
    Record,
    RecordOf,
    TupleOf,
    Type,
    Union,
    bare,
)
from dbus_side.signatures import Variant

# A D-Bus value is what the signature beside it says, in the bus room's own form, checked there before it is marshalled.
Wire = Any
Convert = Callable[[Any], Any]

_BASIC: Final = {
    "bool": "b",
    "int": "x",
    "int32": "i",
    "int64": "x",
    "float": "d",
    "string": "s",
    "char": "s",
    "datetime": "s",
    "any": "v",
}
_NOTHING: Final = Variant("s", "")
_NIL: Final = Variant("g", "")  # an untyped nil: the empty signature occurs as no other untyped value


class Mismatch(Exception):
    """A D-Bus value that does not fit its type, with the path to it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []

    @property
    def sentence(self) -> str:
        return f"{'.'.join(reversed(self.path))}: {self.reason}" if self.path else self.reason


def signature(kind: Type) -> str:
    """The D-Bus signature of a type; unit has none."""
    match kind:
        case Basic(name):
            return _BASIC.get(name, "")
        case Option(item) | ListOf(item):
            return "a" + signature(item)
        case TupleOf(items):
            return "(" + "".join(signature(item) for item in items) + ")"
        case DictOf(item, key):
            return "a{" + signature(key) + signature(item) + "}"
        case Record() | RecordOf():
            return "a{sv}"
        case Union():
            return "(sv)" if kind.carries_arguments else "s"


class Values:
    """The values of all types of a service. `keeps_unknown`: members that are not written down are kept as they are."""

    def __init__(self, *, keeps_unknown: bool) -> None:
        self._keeps_unknown = keeps_unknown
        # From a neutral value of a type to its D-Bus form, and back (signature checked before; it raises Mismatch).
        self.writer: PerType[Convert] = PerType(self._make_writer)
        self.reader: PerType[Convert] = PerType(self._make_reader)

    def _make_writer(self, kind: Type) -> Convert:
        match kind:
            case Basic(name):
                return untyped_to_bus if name == "any" else _as_is
            case Option(item):
                write = self.writer(item)
                return lambda value: [] if value is None else [write(value)]
            case ListOf(item):
                write = self.writer(item)
                return _as_is if write is _as_is else lambda value: [write(element) for element in value]
            case TupleOf(items):
                writers = [self.writer(item) for item in items]
                return lambda value: tuple([w(element) for w, element in zip(writers, value, strict=True)])
            case DictOf(item, key):
                write = self.writer(item)
                if signature(key) != "s":
                    return lambda value: {int(k): write(v) for k, v in value.items()}
                return _as_is if write is _as_is else lambda value: {k: write(v) for k, v in value.items()}
            case Record():
                return self._write_record(kind)
            case RecordOf():
                return self.writer(UNKNOWN_RECORD)  # inside a record, _write_record knows better
            case Union():
                return self._write_union(kind) if kind.carries_arguments else lambda value: value.tag

    def _write_record(self, record: Record) -> Convert:
        plan = [
            (f.name, signature(bare(f.type)), self.writer(bare(f.type)))
            for f in record.fields
            if not isinstance(f.type, RecordOf)
        ]
        late = [(f.name, f.type) for f in record.fields if isinstance(f.type, RecordOf)]
        names = {f.name for f in record.fields}

        def write(value: dict[str, Value]) -> Wire:
            written = {name: Variant(sig, item(value[name])) for name, sig, item in plan if name in value}
            for name, kind in late:
                if name in value:
                    written[name] = Variant("a{sv}", self.writer(kind.beside(value))(value[name]))
            if len(written) < len(value):
                written.update({name: untyped_to_bus(item) for name, item in value.items() if name not in names})
            return written

        return write

    def _write_union(self, union: Union) -> Convert:
        cases = {
            c.name: None if c.argument is None else (signature(c.argument), self.writer(c.argument))
            for c in union.constructors
        }

        def write(value: Tagged) -> Wire:
            case = cases[value.tag]
            return (value.tag, _NOTHING if case is None else Variant(case[0], case[1](value.argument)))

        return write

    def _make_reader(self, kind: Type) -> Convert:
        match kind:
            case Basic(name):
                return untyped_from_bus if name == "any" else _read_native if name == "int" else _as_is
            case Option(item):
                return _read_option(self.reader(item))
            case ListOf(item):
                read = self.reader(item)
                return _as_is if read is _as_is else lambda value: [read(element) for element in value]
            case TupleOf(items):
                readers = [self.reader(item) for item in items]
                return lambda value: tuple([r(element) for r, element in zip(readers, value, strict=True)])
            case DictOf(item, key):
                return self._read_dict(item, key)
            case Record():
                return self._read_record(kind)
            case RecordOf():
                return self.reader(UNKNOWN_RECORD)  # inside a record, _read_record knows better
            case Union():
                return self._read_union(kind)

    def _read_dict(self, item: Type, key: Type) -> Convert:
        read = self.reader(item)
        if isinstance(key, Union):
            known = key.by_name

            def read_by_tag(value: dict[str, Any]) -> Value:
                for tag in value:
                    if tag not in known:
                        raise Mismatch(f"unknown constructor {tag!r} as a key; known: {', '.join(known)}")
                return {k: read(v) for k, v in value.items()}

            return read_by_tag
        if signature(key) != "s":
            return lambda value: {str(k): read(v) for k, v in value.items()}
        return _as_is if read is _as_is else lambda value: {k: read(v) for k, v in value.items()}

    def _read_record(self, record: Record) -> Convert:
        plan = {
            f.name: (signature(bare(f.type)), self.reader(bare(f.type)))
            for f in record.fields
            if not isinstance(f.type, RecordOf)
        }
        late = {f.name: f.type for f in record.fields if isinstance(f.type, RecordOf)}
        required = [f.name for f in record.fields if f.required]
        known = [f.name for f in record.fields]
        names = frozenset(known)
        keeps_unknown = self._keeps_unknown or record is UNKNOWN_RECORD

        def read(value: dict[str, Variant]) -> Value:
            unknown = () if value.keys() <= names else value.keys() - names
            if unknown and not keeps_unknown:
                raise Mismatch(f"unknown member {min(unknown)!r}; known: {', '.join(known)}")
            found = {name: read_variant(name, value[name], case) for name, case in plan.items() if name in value}
            for name, kind in late.items():
                if name in value:
                    found[name] = read_variant(name, value[name], ("a{sv}", self.reader(kind.beside(found))))
            for name in required:
                if name not in found:
                    raise Mismatch(f"the record needs a member {name!r}")
            for name in unknown:
                found[name] = untyped_from_bus(value[name])
            return found

        return read

    def _read_union(self, union: Union) -> Convert:
        cases = {
            c.name: None if c.argument is None else (signature(c.argument), self.reader(c.argument))
            for c in union.constructors
        }

        def case_of(tag: str) -> tuple[str, Convert] | None:
            if tag not in cases:
                raise Mismatch(f"unknown constructor {tag!r}; known: {', '.join(cases)}")
            return cases[tag]

        def read_tag(value: str) -> Value:
            case_of(value)
            return Tagged(value)

        def read(value: tuple[str, Variant]) -> Value:
            tag, carried = value
            case = case_of(tag)
            if case is None:
                if carried != _NOTHING:
                    raise Mismatch(f"constructor {tag!r} carries nothing: its variant must be an empty string")
                return Tagged(tag)
            return Tagged(tag, read_variant(tag, carried, case))

        return read if union.carries_arguments else read_tag


def read_members(value: dict[str, Variant], plan: dict[str, tuple[str, Convert]]) -> dict[str, Value]:
    """What stands in a{sv}, by the signature and the function of every member. Raises Mismatch."""
    found: dict[str, Value] = {}
    for name, variant in value.items():
        if name not in plan:
            raise Mismatch(f"unknown member {name!r}; known: {', '.join(plan)}")
        found[name] = read_variant(name, variant, plan[name])
    return found


def read_variant(name: str, variant: Variant, case: tuple[str, Convert]) -> Value:
    expected, read = case
    try:
        if variant.signature != expected:
            raise Mismatch(f"expected signature {expected!r}, got {variant.signature!r}")
        return read(variant.value)  # type: ignore[no-any-return]
    except Mismatch as mismatch:
        mismatch.path.append(name)
        raise


def _as_is(value: Any) -> Any:
    return value


def _read_native(value: int) -> int:
    low, high = numbers.RANGES["int"]
    if low <= value <= high:
        return value
    raise Mismatch(f"expected a 63-bit integer ({low} to {high}), got {value}")


def _read_option(read: Convert) -> Convert:
    def read_option(value: list[Any]) -> Value:
        if len(value) > 1:
            raise Mismatch(f"expected an option (an array of 0 or 1), got {len(value)} elements")
        return read(value[0]) if value else None

    return read_option


def untyped_to_bus(value: Value) -> Variant:
    """An untyped value as a variant: integers are x, lists av, maps a{sv}."""
    match value:
        case None:
            return _NIL
        case bool():
            return Variant("b", value)
        case int():
            return Variant("x", value)
        case float():
            return Variant("d", value)
        case str():
            return Variant("s", value)
        case bytes():
            return Variant("ay", value)
        case list():
            return Variant("av", [untyped_to_bus(item) for item in value])
        case dict():
            return Variant("a{sv}", {name: untyped_to_bus(item) for name, item in value.items()})
    raise AssertionError(f"no untyped value: {type(value).__name__}")


def untyped_from_bus(value: Any) -> Value:
    """A daemon may use any signature inside a variant: what it means to the legacy side is in the value."""
    match value:
        case Variant():
            return None if value == _NIL else untyped_from_bus(value.value)
        case list() | tuple():
            return [untyped_from_bus(item) for item in value]
        case dict():
            if not all(isinstance(name, str) for name in value):
                raise Mismatch("expected a map with strings as keys in an untyped value")
            return {name: untyped_from_bus(item) for name, item in value.items()}
        case _:
            return value  # type: ignore[no-any-return]
