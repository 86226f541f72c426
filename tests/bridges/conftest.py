"""Ways to carry values for the tests of the translations: real XML bytes, real D-Bus bytes, random neutral values."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant as LibraryVariant
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.message import Message
from hypothesis import strategies as st

from bridges import numbers
from bridges.calls import Tagged, Value
from bridges.interfaces.model import Basic, DictOf, ListOf, Option, Record, TupleOf, Type
from dbus_side.signatures import decoder, encoder
from xmlrpc_gateway import xmlrpc_codec

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Where the recordings are."""
    return GOLDEN


def _over_xml(value: xmlrpc_codec.Value) -> xmlrpc_codec.Value:
    found = xmlrpc_codec.decode_response(xmlrpc_codec.encode_response(value))
    assert not isinstance(found, xmlrpc_codec.XmlRpcFault)
    return found


@pytest.fixture(scope="session")
def over_xml() -> Callable[[xmlrpc_codec.Value], xmlrpc_codec.Value]:
    """A wire value written to bytes and read back."""
    return _over_xml


def _over_bus(signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
    message = Message(
        destination="a.b", path="/", interface="a.b", member="M", signature=signature, serial=1,
        body=encoder(signature)(body, LibraryVariant),
    )  # fmt: skip
    reader = Unmarshaller(io.BytesIO(message._marshall()))
    reader.unmarshall()
    return decoder(signature)(reader.message.body)


@pytest.fixture(scope="session")
def over_bus() -> Callable[[str, tuple[Any, ...]], tuple[Any, ...]]:
    """A body checked, marshalled to D-Bus bytes and read back."""
    return _over_bus


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    """Whether two values are equal with their types (True is not 1), NaN being equal to itself."""
    return _same


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


def _basic(name: str) -> st.SearchStrategy[Any]:
    if name in numbers.RANGES:
        low, high = numbers.RANGES[name]
        return st.integers(low, high)
    return {
        "unit": st.none(),
        "bool": st.booleans(),
        "float": st.floats(),
        "string": _TEXT,
        "char": st.characters(codec="ascii", exclude_categories=["Cc"]),
        "any": _ANY,
    }[name]


def _values(kind: Type) -> st.SearchStrategy[Any]:
    match kind:
        case Basic(name):
            return _basic(name)
        case Option(item):
            return st.none() | _values(item)
        case ListOf(item):
            return st.lists(_values(item), max_size=2)
        case TupleOf(items):
            return st.tuples(*map(_values, items))
        case DictOf(item):
            return st.dictionaries(_TEXT, _values(item), max_size=2)
        case Record(fields):
            required = {f.name: _values(f.type) for f in fields if f.required}
            bare = {f.name: f.type.item if isinstance(f.type, Option) else f.type for f in fields if not f.required}
            return st.fixed_dictionaries(required, optional={name: _values(item) for name, item in bare.items()})
        case _:
            cases = [
                st.just(Tagged(c.name))
                if c.argument is None
                else st.builds(Tagged, st.just(c.name), _values(c.argument))
                for c in kind.constructors
            ]
            return st.one_of(cases)


@pytest.fixture(scope="session")
def values() -> Callable[[Type], st.SearchStrategy[Value]]:
    """The neutral values of a type, as a strategy."""
    known: dict[int, tuple[Type, st.SearchStrategy[Any]]] = {}

    def strategy(kind: Type) -> st.SearchStrategy[Any]:
        if id(kind) not in known:
            known[id(kind)] = (kind, _values(kind))
        return known[id(kind)][1]

    return strategy
