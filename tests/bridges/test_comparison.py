"""Values compared by type: what differs is found, with a path that leads to it; what does not is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.calls import Tagged
from bridges.comparison import SECRET, Difference, argument_differences, compare, differences
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import (
    ANY,
    STRING,
    UNIT,
    Basic,
    Constructor,
    DictOf,
    Field,
    ListOf,
    Method,
    Option,
    Record,
    RecordOf,
    TupleOf,
    Type,
    Union,
    bare,
)
from tests.bridges.fidelity_types import types
from tests.bridges.fidelity_values import values

FEW = settings(max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
CHUNK = 60
PARTS = [
    pytest.param(stem, first, id=f"{stem}-{first}")
    for stem in model.available()
    for first in range(0, len(types(stem)), CHUNK)
]

INT, FLOAT, BOOL = Basic("int"), Basic("float"), Basic("bool")
POWER = Union((Constructor("Halted", None), Constructor("Running", INT), Constructor("Moving", TupleOf((STRING, INT)))))
VM = Record(
    (
        Field("name", STRING, required=True, defaults=False),
        Field("memory", INT, required=False, defaults=False),
        Field("disks", ListOf(STRING), required=True, defaults=False),
        Field("note", Option(STRING), required=False, defaults=False),
    ),
    "vm",
)
ONE = {"name": "a", "memory": 1, "disks": ["x"]}


def method(stem: str, name: str) -> Method:
    found = model.load(stem).method(name)
    assert found is not None
    return found


# --- by table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "left", "right", "found"),
    [
        (INT, 1, 2, ("", "1", "2")),
        (INT, 1, True, ("", "1", "True")),
        (BOOL, False, 0, ("", "False", "0")),
        (FLOAT, 0.5, 0.25 + 0.25, None),
        (FLOAT, 0.1, 0.10000000000000002, ("", "0.1", "0.10000000000000002")),
        (FLOAT, 1.0, 1, ("", "1.0", "1")),
        (FLOAT, float("nan"), float("nan"), None),
        (FLOAT, float("nan"), 1.0, ("", "nan", "1.0")),
        (STRING, "a" * 100, "b", ("", f"'{'a' * 27}...{'a' * 28}'", "'b'")),
        (UNIT, None, "", ("", "None", "''")),
        (Option(INT), None, 0, ("", "None", "0")),
        (Option(ListOf(INT)), [1], [2], ("[*]", "1", "2")),
        (ListOf(INT), [1, 2], [1, True], ("[*]", "2", "True")),
        (ListOf(INT), [1, 0], [True, 0], ("[*]", "1", "True")),
        (ListOf(STRING), ["a", "b"], ["b", "a"], ("[*]", "'a'", "'b'")),
        (ListOf(STRING), ["a", "b"], ["b"], ("[#]", "2", "1")),
        (ListOf(STRING), ["a"], "a", ("", "['a']", "'a'")),
        (TupleOf((STRING, INT)), ("a", 1), ("a", 2), ("[1]", "1", "2")),
        (TupleOf((STRING, INT)), ("a", 1), ("a", 1, 2), ("", "('a', 1)", "('a', 1, 2)")),
        (TupleOf((STRING, INT)), ("a", 1), ["a", 1], ("", "('a', 1)", "['a', 1]")),
        (DictOf(INT), {"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
        (DictOf(INT), {"a": 1}, {"a": 2}, ("{*}", "1", "2")),
        (DictOf(INT), {"a": 1}, {"a": 1, "b": 2}, ("{#}", "(absent)", "'b'")),
        (DictOf(INT), {"a": 1, "b": 2}, {"b": 2}, ("{#}", "'a'", "(absent)")),
        (DictOf(STRING), {"a": "x"}, {"a": "y"}, ("{*}", "'x'", "'y'")),
        (VM, ONE, dict(reversed(ONE.items())), None),
        (VM, ONE, ONE | {"memory": 2}, (".memory", "1", "2")),
        (VM, ONE, {"name": "a", "disks": ["x"]}, (".memory", "1", "(absent)")),
        (VM, ONE, ONE | {"note": ""}, (".note", "(absent)", "''")),
        (VM, ONE, ONE | {"strange": 1}, (".strange", "(absent)", "1")),
        (VM, ONE | {"strange": [1]}, ONE | {"strange": [True]}, (".strange", "[1]", "[True]")),
        (VM, ONE, [], ("", "{'disks': ['x'], 'memory': 1, 'name': 'a'}", "[]")),
        (ListOf(VM), [ONE], [ONE | {"disks": []}], ("[*].disks[#]", "1", "0")),
        (DictOf(VM), {"a": ONE}, {"a": ONE | {"disks": ["y"]}}, ("{*}.disks[*]", "'x'", "'y'")),
        (POWER, Tagged("Halted"), Tagged("Running", 1), ("", "'Halted'", "'Running'")),
        (POWER, Tagged("Running", 1), Tagged("Running", 2), (".Running", "1", "2")),
        (POWER, Tagged("Moving", ("a", 1)), Tagged("Moving", ("a", 2)), (".Moving[1]", "1", "2")),
        (POWER, Tagged("Running", 1), "Running", ("", "Running(1)", "'Running'")),
        (ANY, {"a": [1, None]}, {"a": [1, False]}, ("", "{'a': [1, None]}", "{'a': [1, False]}")),
        (ANY, {"a": [1.5, b"x"]}, {"a": [1.5, b"x"]}, None),
        (ANY, [float("nan")], [float("nan")], None),
    ],
)
def test_what_differs(kind: Type, left: Any, right: Any, found: tuple[str, str, str] | None) -> None:
    """By type, with its path and what was there."""
    expected = [] if found is None else [Difference(f"result{found[0]}", *found[1:])]
    assert differences(kind, left, right) == expected


def test_a_member_of_a_class_is_typed_by_the_class() -> None:
    """xapi's event: the snapshot is a record of the class beside it."""
    event = Record(
        (
            Field("class", STRING, required=True, defaults=False),
            Field("snapshot", RecordOf("class", {"vm": VM}.get), required=False, defaults=False),
        )
    )
    one, other = ({"class": "vm", "snapshot": ONE | {"disks": disks}} for disks in (["x"], ["y"]))
    assert differences(event, one, other, "events[*]") == [
        Difference("events[*].snapshot.disks[*]", "'x'", "'y'"),
    ]
    unknown = differences(event, one | {"class": "sr"}, other | {"class": "sr"})
    assert unknown == [Difference("result.snapshot.disks", "['x']", "['y']")]


def test_a_path_occurs_once_and_texts_are_short() -> None:
    """A thousand elements that differ alike are one difference, with the first values."""
    one = [{"name": f"{number}", "memory": number, "disks": ["x" * 500]} for number in range(1000)]
    other = [{"name": f"{number}", "memory": -1 - number, "disks": ["y" * 500]} for number in range(1000)]
    found = differences(ListOf(VM), one, other)
    assert [(each.path, len(each.left), len(each.right)) for each in found] == [
        ("result[*].memory", 1, 2),
        ("result[*].disks[*]", 60, 60),
    ]
    assert found[0] == Difference("result[*].memory", "0", "-1")


def test_no_more_than_the_limit_is_reported() -> None:
    """Members that are not written down have paths of their own; nobody reads a thousand of them."""
    one, other = ({f"m{number:04}": value for number in range(1000)} for value in (1, 2))
    record = Record(())
    assert [each.path for each in differences(record, one, other, limit=2)] == ["result.m0000", "result.m0001"]
    assert len(differences(record, one, other)) == 20


# --- outcomes --------------------------------------------------------------------------------------------------------

START = method("xenopsd", "VM.start")


def fault(kind: Kind, text: str = "", code: str = "", argument: Any = None) -> Fault:
    return Fault(kind, text, code=code, argument=argument)


POWER_STATE = (Tagged("Running"), Tagged("Halted"))


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        (None, None, []),
        ("1", "2", [("result", "'1'", "'2'")]),
        ("1", fault(Kind.UNAVAILABLE, "gone"), [("outcome", "'1'", "Unavailable: gone")]),
        (fault(Kind.UNAVAILABLE, "one"), fault(Kind.UNAVAILABLE, "other"), []),
        (fault(Kind.UNAVAILABLE), fault(Kind.BUSY), [("fault.kind", "Unavailable", "Busy")]),
        (fault(Kind.DECLARED, code="Cancelled", argument="1"), None, [("outcome", "Declared Cancelled", "None")]),
        (
            fault(Kind.DECLARED, code="Cancelled", argument="1"),
            fault(Kind.UNDECLARED, code="Cancelled", argument=["1"]),
            [("fault.kind", "Declared", "Undeclared")],
        ),
        (
            fault(Kind.UNDECLARED, code="a", argument=["1"]),
            fault(Kind.UNDECLARED, code="b", argument=["1"]),
            [("fault.code", "a", "b")],
        ),
        (
            fault(Kind.UNDECLARED, code="a", argument=[1]),
            fault(Kind.UNDECLARED, code="a", argument=[True]),
            [("fault.argument", "[1]", "[True]")],
        ),
        (
            fault(Kind.DECLARED, code="Bad_power_state", argument=POWER_STATE),
            fault(Kind.DECLARED, code="Bad_power_state", argument=(Tagged("Running"), Tagged("Paused"))),
            [("fault.argument[1]", "'Halted'", "'Paused'")],
        ),
    ],
)
def test_outcomes(left: Any, right: Any, found: list[tuple[str, str, str]]) -> None:
    """Results by type; a result against a fault; faults by kind, code and argument, never by their text."""
    assert compare(START, left, right) == [Difference(*each) for each in found]


@pytest.mark.parametrize(
    ("right", "path"),
    [
        ("text", "result"),
        (fault(Kind.UNAVAILABLE, "it said hunter2"), "outcome"),
    ],
)
def test_a_secret_result_is_not_shown(right: Any, path: str) -> None:
    """Its place is."""
    (found,) = compare(method("xapi", "secret.get_value"), "hunter2", right)
    assert found.path == path
    assert found.left == SECRET
    assert "hunter2" not in found.right


LOGIN = "session.login_with_password"


def test_an_error_of_a_method_with_secrets_is_not_shown() -> None:
    """It may repeat them; its code does not."""
    one, other = (fault(Kind.UNDECLARED, code="WRONG", argument=[text]) for text in ("hunter2", "hunter3"))
    assert compare(method("xapi", LOGIN), one, other) == [Difference("fault.argument", SECRET, SECRET)]
    assert compare(START, one, other) == [Difference("fault.argument", "['hunter2']", "['hunter3']")]


def test_secret_arguments_are_not_shown() -> None:
    """The others are; what is no argument at all may be a secret in the wrong place."""
    login = method("xapi", LOGIN)
    one = {"uname": "root", "pwd": "hunter2"}
    assert argument_differences(login, one, {"uname": "toor", "pwd": "hunter3", "pdw": "hunter2"}) == [
        Difference("arguments.uname", "'root'", "'toor'"),
        Difference("arguments.pwd", SECRET, SECRET),
        Difference("arguments.pdw", SECRET, SECRET),
    ]


# --- random values ---------------------------------------------------------------------------------------------------


@st.composite
def changed(draw: st.DrawFn, kind: Type, value: Any) -> tuple[Any, str] | None:
    """The value with one change, and the path to it; None where the type has no other value."""
    match kind:
        case Basic(name):
            return None if name == "unit" else (_other(name, value), "")
        case Option(item):
            if value is None or draw(st.booleans()):
                return (draw(values(item)) if value is None else None), ""
            return draw(changed(item, value))
        case ListOf(item):
            at = draw(st.integers(0, len(value)))
            inner = draw(changed(item, value[at])) if at < len(value) else None
            if inner is None:
                return [*value, draw(values(item))], "[#]"
            return [*value[:at], inner[0], *value[at + 1 :]], f"[*]{inner[1]}"
        case TupleOf(items):
            at = draw(st.integers(0, len(items) - 1))
            inner = draw(changed(items[at], value[at]))
            return inner and ((*value[:at], inner[0], *value[at + 1 :]), f"[{at}]{inner[1]}")
        case DictOf(item):
            if not value:
                return None
            at = draw(st.sampled_from(sorted(value)))
            inner = draw(changed(item, value[at])) if draw(st.booleans()) else None
            if inner is None:
                return {name: item for name, item in value.items() if name != at}, "{#}"
            return value | {at: inner[0]}, f"{{*}}{inner[1]}"
        case Record():
            return draw(_changed_record(kind, value))
        case Union():
            return draw(_changed_union(kind, value))
    raise AssertionError(f"no change of {kind}")


@st.composite
def _changed_record(draw: st.DrawFn, record: Record, value: Any) -> tuple[Any, str]:
    at = draw(st.sampled_from(sorted(value))) if value else ""
    kind = {field.name: bare(field.type) for field in record.fields}.get(at, ANY)
    if not value or isinstance(kind, RecordOf):
        return value | {"of_tomorrow": 1}, ".of_tomorrow"
    inner = draw(changed(kind, value[at])) if draw(st.booleans()) else None
    if inner is None:
        return {name: item for name, item in value.items() if name != at}, f".{at}"
    return value | {at: inner[0]}, f".{at}{inner[1]}"


@st.composite
def _changed_union(draw: st.DrawFn, union: Union, value: Any) -> tuple[Any, str] | None:
    argument = union.by_name[value.tag].argument
    inner = None if argument is None else draw(changed(argument, value.argument))
    if inner is not None:
        return Tagged(value.tag, inner[0]), f".{value.tag}{inner[1]}"
    other = next((case for case in union.constructors if case.name != value.tag), None)
    return None if other is None else (Tagged(other.name, draw(values(other.argument or UNIT))), "")


def _other(name: str, value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value == 1 or value - 1  # 1 becomes True
        case float():
            return 0.5 if value != 0.5 else float("nan")
        case str() if name != "any":
            return value + "x"
        case _:
            return [value]


@pytest.mark.parametrize(("stem", "first"), PARTS)
def test_any_value_of_any_type(stem: str, first: int) -> None:
    """It does not differ from itself; a random change in it is found where it is, and nothing else."""
    for kind in types(stem)[first : first + CHUNK]:
        has_one_value = kind == UNIT or (isinstance(kind, Union) and kind.constructors == kind.constructors[:1])
        assert _changes_found(kind) > 0 or has_one_value, f"no change of {kind} was tried"


def _changes_found(kind: Type) -> int:
    tried = 0

    @FEW
    @given(st.data())
    def found(data: st.DataObject) -> None:
        nonlocal tried
        value = data.draw(values(kind))
        assert differences(kind, value, value) == []
        change = data.draw(changed(kind, value))
        if change is None:
            return
        other, path = change
        for pair in ((value, other), (other, value)):
            paths = [each.path for each in differences(kind, *pair)]
            assert f"result{path}" in paths, f"{pair} of {kind}"
            assert len(paths) == 1 or path.endswith(".class")
        tried += 1

    found()
    return tried
