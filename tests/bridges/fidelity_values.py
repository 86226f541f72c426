"""Values for the proofs of the translations: random neutral values by type, real D-Bus bytes, strict equality."""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

from dbus_next import Variant as LibraryVariant
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.message import Message
from hypothesis import strategies as st

from bridges import numbers
from bridges.calls import Tagged
from bridges.interfaces.model import STRING, Basic, DictOf, ListOf, Option, Record, RecordOf, TupleOf, Type, Union, bare
from dbus_side.signatures import decoder, encoder


def over_bus(signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
    """A body checked, marshalled to the bytes of a D-Bus message and read back."""
    message = Message(
        destination="a.b", path="/", interface="a.b", member="M", signature=signature, serial=1,
        body=encoder(signature)(body, LibraryVariant),
    )  # fmt: skip
    reader = Unmarshaller(io.BytesIO(message._marshall()))
    reader.unmarshall()
    return decoder(signature)(reader.message.body)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal with their types (True is not 1), NaN being equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# What both XML and D-Bus carry; what they do not is tested by name.
_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32) if chr(c) not in "\t\n\r"]
                  + ["\ufffe", "\uffff"]),
    max_size=8,
)  # fmt: skip
_ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), _TEXT, st.binary(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(_TEXT, inner, max_size=2)),
    max_leaves=4,
)
_BASIC = {
    "unit": st.none(),
    "bool": st.booleans(),
    "float": st.floats(),
    "string": _TEXT,
    "char": st.characters(codec="ascii", exclude_categories=["Cc"]),
    "datetime": st.datetimes().map(lambda moment: moment.strftime("%Y%m%dT%H:%M:%SZ")),
    "any": _ANY,
} | {name: st.integers(low, high) for name, (low, high) in numbers.RANGES.items()}
_CLASSES = ["vm", "SR", "task", "not-there"]


@cache
def values(kind: Type) -> st.SearchStrategy[Any]:
    """The neutral values of a type."""
    match kind:
        case Basic(name):
            return _BASIC[name]
        case Option(item):
            return st.none() | values(item)
        case ListOf(item):
            return st.lists(values(item), max_size=2)
        case TupleOf(items):
            return st.tuples(*map(values, items))
        case DictOf(item, key):
            return st.dictionaries(_key(key), values(item), max_size=2)
        case Record():
            return _record(kind)
        case Union(constructors):
            return st.one_of(
                st.just(Tagged(c.name))
                if c.argument is None
                else st.builds(Tagged, st.just(c.name), values(c.argument))
                for c in constructors
            )
    raise AssertionError(f"no values of {kind}")


def _key(kind: Type) -> st.SearchStrategy[str]:
    if isinstance(kind, Union):
        return st.sampled_from(sorted(kind.by_name))
    return _TEXT if kind == STRING else values(kind).map(str)


def _record(record: Record) -> st.SearchStrategy[Any]:
    """Records, now and then with a member that is not written down."""
    known = {field.name.lower() for field in record.fields}
    required = {f.name: values(f.type) for f in record.fields if f.required}
    optional = {f.name: bare(f.type) for f in record.fields if not f.required}
    written = st.fixed_dictionaries(
        required, optional={name: values(kind) for name, kind in optional.items() if not isinstance(kind, RecordOf)}
    )
    unknown = st.dictionaries(_TEXT.filter(lambda name: name.lower() not in known), _ANY, max_size=1)
    found = st.builds(lambda one, other: one | other, written, unknown)
    for name, kind in optional.items():
        if isinstance(kind, RecordOf):
            found = found.flatmap(lambda one, n=name, k=kind: _with_record_of(one, n, k))
    return found


def _with_record_of(record: dict[str, Any], name: str, kind: RecordOf) -> st.SearchStrategy[Any]:
    """The record with a member of the class that another one names."""

    def of_class(class_name: str) -> st.SearchStrategy[Any]:
        found = kind.resolve(class_name)
        inner = st.dictionaries(_TEXT, _ANY, max_size=2) if found is None else values(found)
        return inner.map(lambda value: record | {kind.member: class_name, name: value})

    return st.sampled_from(_CLASSES).flatmap(of_class)
