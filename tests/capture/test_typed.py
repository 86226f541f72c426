"""Values as JSON and back: random values of every type of every interface, with what the form cannot carry by name."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.calls import Tagged
from bridges.capture import records, typed
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import (
    ANY,
    Basic,
    Constructor,
    DictOf,
    Field,
    Method,
    Option,
    Record,
    TupleOf,
    Type,
    Union,
)
from bridges.xmlrpc_values import Mismatch
from tests.bridges.fidelity_types import arguments_of, errors, laid_out, types
from tests.bridges.fidelity_values import same, values

FEW = settings(max_examples=5, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
CHUNK = 60
INTERFACES = [stem for stem in model.available() if stem != "xapi"]
CHUNKS = [(stem, first) for stem in model.available() for first in range(0, len(types(stem)), CHUNK)]


def over_json(written: Any) -> Any:
    """What a capture's reader finds. Readers that round large numbers find the same: none is a number."""
    return msgspec.json.decode(msgspec.json.encode(written))


def as_kept(value: Any) -> Any:
    """An untyped value as it comes back: bytes as base64 text, floats that are no numbers as texts."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return repr(value)
        case Tagged(tag, argument):
            return Tagged(tag, as_kept(argument))
        case list() | tuple():
            return type(value)(map(as_kept, value))
        case dict():
            return {name: as_kept(item) for name, item in value.items()}
    return value


def tried(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int = 5) -> None:
    """The check with some random values, the same ones every time."""

    @settings(FEW, max_examples=examples)
    @given(strategy)
    def one(value: Any) -> None:
        check(value)

    one()


def comes_back(kind: Type, value: Any) -> None:
    found = typed.read(kind, over_json(typed.write(kind, value)))
    assert same(as_kept(found), as_kept(value))


def arguments_come_back(method: Method, arguments: dict[str, Any]) -> None:
    written = over_json(typed.write_arguments(method, arguments))
    assert written.keys() == arguments.keys()
    assert same(as_kept(typed.read_arguments(method, written)), as_kept(arguments))


def fault_comes_back(method: Method, code: str, argument: Any) -> None:
    written = over_json(typed.write_fault(method, Fault(Kind.DECLARED, "text", code=code, argument=argument)))
    back = typed.read_fault(method, msgspec.convert(written, records.Fault))
    assert (back.kind, back.code, back.text) == (Kind.DECLARED, code, "text")
    assert same(as_kept(back.argument), as_kept(argument))


@pytest.mark.parametrize(("stem", "first"), CHUNKS)
def test_every_type_comes_back(stem: str, first: int) -> None:
    """Random values of all of an interface's types."""
    for kind in types(stem)[first : first + CHUNK]:
        tried(values(kind), partial(comes_back, kind))


@pytest.mark.parametrize("stem", INTERFACES)
def test_arguments_come_back(stem: str) -> None:
    """Of every method that has more than plain positional ones; what is absent stays absent."""
    for method in laid_out(stem):
        tried(arguments_of(method), partial(arguments_come_back, method))


@pytest.mark.parametrize("stem", model.available())
def test_faults_come_back(stem: str) -> None:
    """What every declared error carries, by its type."""
    for kind, cases in errors(stem).items():
        tried(values(model.UNIT if kind is None else kind), partial(fault_comes_back, *cases[0]), 3)


INT = Basic("int")
RECORD = Record((Field("a", INT, True, False), Field("b", Option(INT), False, False)), "r")
UNION = Union((Constructor("One", None), Constructor("Two", TupleOf((INT, INT)), flat=True), Constructor("Tri", INT)))


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        (Basic("int64"), 2**63 - 1, "9223372036854775807"),
        (Basic("int32"), -1, "-1"),
        (Basic("bool"), True, True),
        (Basic("float"), 0.5, 0.5),
        (Basic("float"), math.inf, "inf"),
        (Basic("unit"), None, None),
        (Basic("datetime"), "20240101T00:00:00Z", "20240101T00:00:00Z"),
        (Option(INT), None, []),
        (Option(INT), 1, ["1"]),
        (TupleOf((INT, Basic("string"))), (1, "x"), ["1", "x"]),
        (DictOf(INT, INT), {"7": 1}, {"7": "1"}),
        (RECORD, {"a": 1}, {"a": "1"}),
        (RECORD, {"a": 1, "b": 2, "new": [3]}, {"a": "1", "b": "2", "new": [3]}),
        (UNION, Tagged("One"), "One"),
        (UNION, Tagged("Two", (1, 2)), ["Two", "1", "2"]),
        (UNION, Tagged("Tri", 1), ["Tri", "1"]),
        (ANY, {"x": [1, b"\0", math.nan]}, {"x": [1, "AA==", "nan"]}),
    ],
)
def test_how_values_look(kind: Type, value: Any, written: Any) -> None:
    """The form is a contract: captures outlive the program that wrote them."""
    assert typed.write(kind, value) == written
    assert list(written) == list(typed.write(kind, value)) if isinstance(written, dict) else True


def test_names_that_differ_in_case_only_are_told_apart() -> None:
    """Today's dialect takes one for the other; a daemon that is newer than the interface may have both."""
    union = Union((Constructor("up", None), Constructor("UP", None)))
    record = Record((Field("a", INT, False, False), Field("A", INT, False, False)))
    for case in ("up", "UP"):
        assert typed.read(union, typed.write(union, Tagged(case))) == Tagged(case)
    assert typed.read(record, typed.write(record, {"a": 1, "A": 2})) == {"a": 1, "A": 2}


def test_what_does_not_fit_is_refused_with_its_place() -> None:
    """A foreign or damaged capture."""
    method = model.load("squeezed").method("reserve_memory")
    assert method is not None
    with pytest.raises(Mismatch) as wrong:
        typed.read_arguments(method, {"session_id": "s", "kib": "many"})
    assert wrong.value.place == "kib"
    with pytest.raises(Mismatch) as wrong:
        typed.read_arguments(method, {"bytes": "1"})
    assert wrong.value.place == "bytes"
    with pytest.raises(Mismatch):
        typed.read_fault(method, records.Fault("Sulking"))


def test_undeclared_and_own_faults_are_kept() -> None:
    """By their code and native arguments."""
    method = model.load("squeezed").method("reserve_memory")
    for fault in (
        Fault(Kind.UNDECLARED, "Odd: 1", code="Odd", argument=["x", 1, None]),
        Fault(Kind.BUSY, "too many calls"),
    ):
        back = typed.read_fault(method, typed.write_fault(method, fault))
        assert (back.kind, back.code, back.text, back.argument) == (fault.kind, fault.code, fault.text, fault.argument)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(FEW, max_examples=60)
@given(JSON)
def test_any_json_is_read_or_refused_by_name(written: Any) -> None:
    """Nothing but Mismatch leaves the reader, and it names the parameter."""
    method = model.load("xenopsd").method("VM.add")
    assert method is not None
    with suppress(Mismatch):
        typed.read_arguments(method, {"debug_info": written})
    if not isinstance(written, dict):
        with pytest.raises(Mismatch, match="dictionary") as refused:
            typed.read_arguments(method, {"vm": written})
        assert refused.value.place == "vm"
