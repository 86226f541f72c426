"""How the interface data is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridges.interfaces import model
from bridges.interfaces.model import Basic, Effect, Field, InterfaceError, ListOf, Option, Record, TupleOf, Union


def service(types: dict[str, Any] | None = None, **method: Any) -> model.Service:
    """A service with one method, `Class.m`."""
    entry = {"name": "Class.m", "object": "Class", "params": [], "result": "unit", "error": "errors"} | method
    errors = {"errors": {"variant": [{"name": "Bad", "args": None}]}}
    data = {"service": "sample", "types": errors | (types or {}), "abstracts": {"A": "any"}, "methods": [entry]}
    return model.decode(json.dumps(data).encode())


def test_what_is_shipped() -> None:
    """Every method and type of every shipped interface can be built."""
    assert model.services() == (
        "cluster", "gpumon", "networkd", "perfmon", "rrdd", "squeezed", "storage", "v6d", "xapi", "xenopsd",
    )  # fmt: skip
    assert set(model.available()) - set(model.services()) == {"squeezed-2012", "storage-2012", "xenopsd-2012"}
    for name in model.available():
        found = model.load(name)
        assert len(found.methods()) == len(found.method_names)
        assert sum(map(len, found.objects.values())) == len(found.method_names)
        assert all(method.deadline is None or method.deadline > 0 for method in found.methods())
    assert model.load("squeezed") is model.load("squeezed")


def test_an_interface_that_is_not_written_down() -> None:
    """It is refused by name, with what there is."""
    with pytest.raises(InterfaceError, match="no interface is written down for 'xap'; known: cluster, "):
        model.load("xap")


def test_a_method_is_found_by_its_exact_name() -> None:
    """Nothing is guessed, and what is not declared has the careful default."""
    found = service()
    method = found.method("Class.m")
    assert method is not None
    assert (method.effect, method.deadline, method.member) == (Effect.WRITE, 300.0, "m")
    assert found.method("class.m") is None
    assert found.method("m") is None
    assert found.method("Class.m") is method


def test_types_are_resolved() -> None:
    """References, aliases and abstract types lead to the types themselves; a record knows its name."""
    found = service(
        {
            "ns.t": {
                "record": [
                    {"name": "a", "type": "int"},
                    {"name": "b", "type": {"option": {"ref": "id"}}},
                    {"name": "c", "type": "bool", "default": True},
                    {"name": "d", "type": {"abstract": "A"}, "optional": True},
                ]
            },
            "id": "string",
            "alias": {"ref": "ns.t"},
        }
    )
    expected = Record(
        (
            Field("a", Basic("int"), required=True, defaults=False),
            Field("b", Option(Basic("string")), required=False, defaults=False),
            Field("c", Basic("bool"), required=False, defaults=True),
            Field("d", Basic("any"), required=False, defaults=False),
        ),
        "t",
    )
    assert found.type({"ref": "alias"}) == expected
    assert found.type({"ref": "ns.t"}) is found.type({"ref": "alias"})
    assert found.type({"list": {"tuple": ["int", "char"]}}) == ListOf(TupleOf((Basic("int"), Basic("char"))))
    assert found.type({"array": "int"}) == ListOf(Basic("int"))


def test_unions() -> None:
    """Constructors by name, the default, and whether any carries something."""
    found = service()
    plain = found.type({"variant": [{"name": "On", "args": None}], "default": "On"})
    loaded = found.type({"variant": [{"name": "On", "args": None}, {"name": "At", "args": "int"}]})
    assert isinstance(plain, Union)
    assert isinstance(loaded, Union)
    assert (plain.default, plain.carries_arguments) == ("On", False)
    assert (loaded.default, loaded.carries_arguments) == (None, True)
    assert loaded.by_name["At"].argument == Basic("int")


@pytest.mark.parametrize(
    "expression",
    [
        "integer",
        {"ref": "nowhere"},
        {"abstract": "B"},
        {"tuple": []},
        {"dict": ["string"]},
        {"set": "int"},
        {},
        3,
        None,
    ],
)
def test_an_unknown_expression_is_shown(expression: Any) -> None:
    """The error repeats what it could not read."""
    with pytest.raises(InterfaceError) as caught:
        service().type(expression)
    assert str(caught.value) == f"sample: no type is written as {expression!r}"


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"effect": "look"}, r"methods\[0\]\.effect"),
        ({"deadline": "soon"}, r"methods\[0\]\.deadline"),
        ({"xenstore": {"arguments": []}}, r"function"),
    ],
)
def test_wrong_data_names_its_place(method: dict[str, Any], text: str) -> None:
    """The path to the wrong value is part of the error."""
    with pytest.raises(InterfaceError, match=text):
        service(**method)


def test_an_error_type_must_be_a_union() -> None:
    """Its name is part of the error."""
    with pytest.raises(InterfaceError, match=r"sample: error type id is no union"):
        service({"id": "string"}, error="id").method("Class.m")
