"""XML-RPC values by schema and dialect."""

from __future__ import annotations

from typing import Any

import pytest

from bridges.calls import Tagged
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.xmlrpc_translation import Translation
from bridges.xmlrpc_values import Mismatch, ParameterCount, shape
from xmlrpc_gateway.dialects import DIALECTS
from xmlrpc_gateway.xmlrpc_codec import DateTime

RPCLIB = Translation(DIALECTS["rpclib"])
OLD = Translation(DIALECTS["rpclib-2012"])
BOTH = [pytest.param(RPCLIB, id="rpclib"), pytest.param(OLD, id="rpclib-2012")]

SERVICE = model.decode(
    b"""{"service": "sample", "types": {
        "errors": {"variant": [
            {"name": "Pair", "args": {"tuple": ["string", "int"]}}, {"name": "One", "args": "int"},
            {"name": "Many", "args": {"list": "int"}},
            {"name": "None_at_all", "args": null}, {"name": "Unknown_error", "args": null}],
            "default": "Unknown_error"},
        "ns.t": {"record": [{"name": "first", "type": "int"}, {"name": "Second", "type": {"option": "string"}},
                            {"name": "third", "type": "int", "default": 7}]},
        "state": {"variant": [{"name": "Idle", "args": null}, {"name": "Busy", "args": "float"},
                              {"name": "Moved", "args": {"tuple": ["string", "int"]}},
                              {"name": "Flat", "args": {"tuple": ["string", "int"]}, "args_flat": true}]},
        "card": {"variant": [{"name": "Cirrus", "args": null}, {"name": "Vga", "args": null}], "default": "Cirrus"}},
      "methods": [
        {"name": "named", "object": "O", "error": "errors", "result": {"ref": "ns.t"}, "positional": true, "params": [
            {"name": "id", "type": "string", "named": true},
            {"name": "delay", "type": {"option": "float"}, "named": true},
            {"name": "unit", "type": "unit", "named": true}]},
        {"name": "strict", "object": "O", "error": "errors", "result": "unit", "params": [
            {"name": "id", "type": "string", "named": true}]},
        {"name": "mixed", "object": "O", "error": "errors", "result": "unit", "params": [
            {"name": "label", "type": {"option": "int"}, "named": true}, {"name": "dbg", "type": "string"},
            {"name": "maybe", "type": {"option": "string"}}]},
        {"name": "positional", "object": "O", "error": "errors", "result": "int", "params": [
            {"name": "a", "type": "string"}, {"name": "b", "type": {"option": "int"}}]}
    ]}"""
)


def method(name: str) -> model.Method:
    found = SERVICE.method(name)
    assert found is not None
    return found


RECORD = SERVICE.type({"ref": "ns.t"})
STATE = SERVICE.type({"ref": "state"})
CARD = SERVICE.type({"ref": "card"})


@pytest.mark.parametrize("translation", BOTH)
@pytest.mark.parametrize(
    ("kind", "wire", "neutral"),
    [
        ("unit", None, None),
        ("bool", True, True),
        ("int", "-5", -5),
        ("int64", "9223372036854775807", 2**63 - 1),
        ("float", 1.5, 1.5),
        ("string", "17", "17"),
        ({"option": "int"}, [], None),
        ({"option": "int"}, ["3"], 3),
        ({"option": {"list": "int"}}, [[]], []),
        ({"list": "string"}, [], []),
        ({"list": {"option": "string"}}, [[], ["a"]], [None, "a"]),
        ({"tuple": ["string", "int"]}, ["a", "1"], ("a", 1)),
        ({"dict": ["string", "int"]}, {"b": "1", "a": "2"}, {"b": 1, "a": 2}),
        ({"ref": "state"}, "Idle", Tagged("Idle")),
        ({"ref": "state"}, ["Busy", 0.5], Tagged("Busy", 0.5)),
        ({"variant": [{"name": "Failed", "args": "any"}]}, "Failed", Tagged("Failed")),
        ({"variant": [{"name": "Failed", "args": "any"}]}, ["Failed", "x"], Tagged("Failed", "x")),
        ("any", {"a": [True, 7, "7", None, b"x"]}, {"a": [True, 7, "7", None, b"x"]}),
    ],
)
def test_values_have_one_form_each_way(translation: Translation, kind: Any, wire: Any, neutral: Any) -> None:
    """What we write is what we read, and both are the legacy form."""
    found = SERVICE.type(kind)
    assert translation.values.reader(found)(wire) == neutral
    assert translation.values.writer(found)(neutral) == wire


@pytest.mark.parametrize(
    ("kind", "wire", "neutral"),
    [
        ("int", 7, 7),
        ("int", "0x10", 16),
        ("float", 1, 1.0),
        ("float", "1.5", 1.5),
        ({"ref": "state"}, "iDLE", Tagged("Idle")),
        ({"ref": "state"}, ["Idle"], Tagged("Idle")),
        ("any", DateTime("20200101T00:00:00Z"), "20200101T00:00:00Z"),
    ],
)
def test_what_legacy_decoders_also_accept(kind: Any, wire: Any, neutral: Any) -> None:
    """Tagged integers, integers for floats, other cases of constructors."""
    assert RPCLIB.values.reader(SERVICE.type(kind))(wire) == neutral


@pytest.mark.parametrize(
    ("kind", "wire", "reason"),
    [
        ("string", 5, "Expected string, got 'I(5)'"),
        ("string", b"hello", "Expected string, got 'B64(hello)'"),
        ("string", DateTime("20200101T00:00:00Z"), "Expected string, got 'D(20200101T00:00:00Z)'"),
        ("unit", "", "Expected unit, got 'S()'"),
        ("bool", "1", "Expected bool, got 'S(1)'"),
        ("int", 1.0, "Expected int, got 'F(1)'"),
        ("int", True, "Expected int, got 'B(true)'"),
        ("int", 2**62, "Expected int, got 'I(4611686018427387904)'"),
        ("int32", "2147483648", "Expected int32, got 'S(2147483648)'"),
        ("float", [], "Expected float, got '[]'"),
        ("float", [1.0], "Expected float, got '[F(1)]'"),
        ("float", None, "Expected float, got 'N'"),
        ({"option": "int"}, None, "Expected an option ([] or [x]), got 'N'"),
        ({"option": "int"}, ["1", "2"], "Expected an option ([] or [x]), got '[S(1);S(2)]'"),
        ({"list": "int"}, {"a": "1"}, "Expected a list, got '{a:S(1)}'"),
        ({"tuple": ["int", "int"]}, ["1"], "Expected a tuple of 2, got '[S(1)]'"),
        ({"dict": ["string", "int"]}, [], "Expected a dictionary, got '[]'"),
        ({"ref": "ns.t"}, "x", "Expected a dictionary, got 'S(x)'"),
        ({"ref": "ns.t"}, {"second": "x"}, "No value found for key: 'first' when unmarshalling 't'"),
        ({"ref": "state"}, ["Nope", "x"], "Unknown tag 'nope'"),
        ({"ref": "state"}, "Busy", "Expected float, got 'N'"),
        ({"ref": "state"}, ["Idle", "x"], "Tag 'idle' with the wrong number of arguments"),
        ({"ref": "state"}, ["Busy", 1.0, 2.0], "Expected one argument after the tag, got 2"),
        ({"ref": "state"}, [], "Expected a tag, got '[]'"),
    ],
)
def test_misfits_are_refused_in_the_words_of_the_legacy_decoders(kind: Any, wire: Any, reason: str) -> None:
    """The sentence shows the type expected and the value found."""
    with pytest.raises(Mismatch) as caught:
        RPCLIB.values.reader(SERVICE.type(kind))(wire)
    assert caught.value.reason == reason


def test_a_misfit_names_its_place() -> None:
    """Members, elements and constructors lead to the value."""
    kind = SERVICE.type({"record": [{"name": "states", "type": {"list": {"ref": "state"}}}]})
    with pytest.raises(Mismatch) as caught:
        RPCLIB.values.reader(kind)({"states": ["Idle", ["Busy", True]]})
    assert caught.value.place == "states.[1].Busy"
    assert Mismatch("x").place == "value"


def test_a_huge_value_is_not_repeated_whole() -> None:
    """An error text stays short."""
    with pytest.raises(Mismatch) as caught:
        RPCLIB.values.reader(SERVICE.type("int"))(["x" * 100_000])
    assert len(caught.value.reason) < 300


def test_records_are_reversed_today_and_in_order_in_2012() -> None:
    """Members go out in reverse order of declaration; an absent option is no member at all."""
    value = {"first": 1, "Second": "b", "third": 3}
    today, old = RPCLIB.values.writer(RECORD)(value), OLD.values.writer(RECORD)(value)
    assert isinstance(today, dict)
    assert isinstance(old, dict)
    assert list(today.items()) == [("third", "3"), ("Second", "b"), ("first", "1")]
    assert list(old) == ["first", "Second", "third"]
    assert RPCLIB.values.writer(RECORD)({"first": 1}) == {"first": "1"}


def test_record_members_are_matched_without_case_today_only() -> None:
    """Absent options and defaults stay absent, a misfitting default is as absent."""
    assert RPCLIB.values.reader(RECORD)({"FIRST": "1", "second": "b"}) == {"first": 1, "Second": "b"}
    assert RPCLIB.values.reader(RECORD)({"first": "1", "third": "many"}) == {"first": 1}
    assert OLD.values.reader(RECORD)({"first": "1", "second": "b"}) == {"first": 1, "second": "b"}
    with pytest.raises(Mismatch, match="No value found for key: 'first'"):
        OLD.values.reader(RECORD)({"FIRST": "1"})


@pytest.mark.parametrize("translation", BOTH)
def test_members_that_are_not_written_down_pass_through(translation: Translation) -> None:
    """A newer daemon's record keeps what our data do not know, untyped and last."""
    wire = {"first": "1", "bogus": ["7", {"a": True}], "more": None}
    neutral = translation.values.reader(RECORD)(wire)
    assert neutral == {"first": 1, "bogus": ["7", {"a": True}], "more": None}
    assert translation.values.writer(RECORD)(neutral) == wire


def test_an_unknown_tag_of_a_union_with_a_default_is_the_default() -> None:
    """As the legacy decoders read it."""
    assert RPCLIB.values.reader(CARD)("Voodoo") == Tagged("Cirrus")
    assert RPCLIB.values.reader(CARD)(["Voodoo", "2"]) == Tagged("Cirrus")


@pytest.mark.parametrize("translation", BOTH)
def test_constructors_of_several_arguments_are_nested_or_flat_as_the_data_say(translation: Translation) -> None:
    """Today all are nested; in 2012 a constructor of several arguments is flat, one of a tuple is not."""
    nested, flat = Tagged("Moved", ("here", 3)), Tagged("Flat", ("here", 3))
    write, read = translation.values.writer(STATE), translation.values.reader(STATE)
    assert write(nested) == ["Moved", ["here", "3"]]
    assert write(flat) == ["Flat", "here", "3"]
    assert read(["Moved", ["here", "3"]]) == nested
    assert read(["Flat", "here", "3"]) == flat
    with pytest.raises(Mismatch):
        read(["Moved", "here", "3"])


@pytest.mark.parametrize(
    ("name", "arguments", "today", "old"),
    [
        (
            "named",
            {"id": "x", "delay": 1.0},
            [{"unit": None, "delay": 1.0, "id": "x"}],
            [{"id": "x", "delay": [1.0], "unit": None}],
        ),
        ("named", {"id": "x"}, [{"unit": None, "id": "x"}], [{"id": "x", "delay": [], "unit": None}]),
        ("mixed", {"label": 3, "dbg": "d", "maybe": "m"}, [{"label": "3"}, "d", ["m"]], [{"label": ["3"]}, "d", ["m"]]),
        ("mixed", {"dbg": "d"}, [{}, "d", []], [{"label": []}, "d", []]),
        ("positional", {"a": "x", "b": 4}, ["x", ["4"]], ["x", ["4"]]),
        ("positional", {"a": "x"}, ["x", []], ["x", []]),
    ],
)
def test_arguments_are_laid_out_by_dialect(name: str, arguments: Any, today: Any, old: Any) -> None:
    """One struct of labelled arguments, reversed today; a labelled option is bare today and a list in 2012."""
    for translation, params in ((RPCLIB, today), (OLD, old)):
        form = translation.of(method(name))
        assert form.write_arguments(arguments) == params
        assert form.read_arguments(params) == arguments
    if isinstance(today[0], dict):
        for translation, params in ((RPCLIB, today), (OLD, old)):
            (first, *_) = translation.of(method(name)).write_arguments(arguments)
            assert isinstance(first, dict)
            assert list(first) == list(params[0])


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("named", [{"id": "x", "unit": None, "bogus": "1"}], {"id": "x"}),
        ("named", [{"id": "x", "unit": None}, "surplus"], {"id": "x"}),
        ("named", ["x", 1.0, None], {"id": "x", "delay": 1.0}),
        ("positional", ["x", [], "surplus"], {"a": "x"}),
    ],
)
def test_today_s_lenience_in_arguments(name: str, params: Any, expected: Any) -> None:
    """Surplus is ignored; a method marked so is still read from positions, as if each stood in the struct."""
    assert RPCLIB.of(method(name)).read_arguments(params) == expected


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("strict", [{}], "Expecting named argument 'id'"),
        ("strict", [{"ID": "x"}], "Expecting named argument 'id'"),
        ("strict", [], "Marshalling error: Expecting dict as first argument when named parameters exist"),
        ("strict", ["x"], "Marshalling error: Expecting dict as first argument when named parameters exist"),
        ("named", [{"id": "x", "unit": ""}], "Expected unit, got 'S()'"),
        ("named", [{"id": "x", "unit": None, "delay": [1.0]}], "Expected float, got '[F(1)]'"),
        ("positional", ["x"], "Incorrect number of arguments"),
        ("mixed", [{}], "Incorrect number of arguments"),
    ],
)
def test_misfitting_arguments_today(name: str, params: Any, text: str) -> None:
    """The failure is an Internal_error with the marshaller's text."""
    with pytest.raises(Mismatch) as caught:
        RPCLIB.of(method(name)).read_arguments(params)
    assert RPCLIB.marshal_error(caught.value, name) == ["Internal_error", f'Idl.MarshalError("{text}")']


@pytest.mark.parametrize(("params", "received"), [(["x"], "1"), (["x", [], "surplus"], "3"), ([], "0")])
def test_a_wrong_number_of_arguments_in_2012(params: Any, received: str) -> None:
    """The 2012 dialect has an error of its own, with name, expected and received number."""
    with pytest.raises(ParameterCount) as caught:
        OLD.of(method("positional")).read_arguments(params)
    assert OLD.marshal_error(caught.value, "positional") == [
        "Message_param_count_mismatch",
        ["positional", "2", received],
    ]


def test_a_marshaller_s_text_is_quoted_as_ocaml_does() -> None:
    """Quotes, control characters and all but ASCII are escaped by byte."""
    answer = RPCLIB.marshal_error(Mismatch('a "b" \\ \n\t\x00 ü'), "m")
    assert answer == ["Internal_error", 'Idl.MarshalError("a \\"b\\" \\\\ \\n\\t\\000 \\195\\188")']


@pytest.mark.parametrize("translation", BOTH)
@pytest.mark.parametrize(
    ("wire", "code", "argument", "text"),
    [
        (["Pair", ["a", "1"]], "Pair", ("a", 1), "Pair: a, 1"),
        (["One", "5"], "One", 5, "One: 5"),
        (["Many", []], "Many", [], "Many: "),
        (["Many", ["1", "2"]], "Many", [1, 2], "Many: 1, 2"),
        ("None_at_all", "None_at_all", None, "None_at_all"),
    ],
)
def test_declared_failures(translation: Translation, wire: Any, code: str, argument: Any, text: str) -> None:
    """Code and typed arguments, both ways; exceptions nest their tuple in every dialect."""
    form = translation.of(method("named"))
    fault = form.read_failure(wire)
    assert (fault.kind, fault.code, fault.argument, fault.text) == (Kind.DECLARED, code, argument, text)
    assert form.write_failure(fault) == wire


@pytest.mark.parametrize("translation", BOTH)
@pytest.mark.parametrize(
    ("wire", "code", "argument"),
    [
        ("Not_written_down", "Not_written_down", None),
        (["Not_written_down", "x"], "Not_written_down", ["x"]),
        (["Not_written_down", ["x", "1"]], "Not_written_down", [["x", "1"]]),
        (["Not_written_down", "x", "1"], "Not_written_down", ["x", "1"]),
        (["One", "no number"], "One", ["no number"]),
        (["fault", "3", "text"], "fault", ["3", "text"]),
    ],
)
def test_undeclared_failures_keep_code_and_arguments(
    translation: Translation, wire: Any, code: str, argument: Any
) -> None:
    """An error that is not written down goes on as it came: never as the declared default."""
    form = translation.of(method("named"))
    fault = form.read_failure(wire)
    assert (fault.kind, fault.code, fault.argument) == (Kind.UNDECLARED, code, argument)
    assert form.write_failure(fault) == wire


def test_a_failure_without_a_code() -> None:
    """A description that is neither a text nor starts with one is shown, and kept behind an empty code."""
    fault = RPCLIB.of(method("named")).read_failure({"a": "b"})
    assert (fault.kind, fault.code, fault.argument) == (Kind.UNDECLARED, "", [{"a": "b"}])
    assert "{a:S(b)}" in fault.text


def test_a_declared_failure_of_another_error_type_is_written_by_its_looks() -> None:
    """The arguments are nested as any exception's."""
    fault = Fault(Kind.DECLARED, "text", code="Elsewhere", argument=("a", 1))
    assert RPCLIB.of(method("named")).write_failure(fault) == ["Elsewhere", ["a", 1]]


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.DECLARED, Kind.UNDECLARED, Kind.UNKNOWN_METHOD)])
def test_our_own_failures_are_internal_errors(kind: Kind) -> None:
    """Legacy clients know one error for what is nobody's: its text starts with our kind."""
    fault = Fault(kind, "why")
    assert RPCLIB.of(method("named")).write_failure(fault) == ["Internal_error", f"{kind}: why"]
    assert RPCLIB.refusal(fault) == ["Internal_error", f"{kind}: why"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "N"), (False, "B(false)"), (1e22, "F(1e+22)"), ([True, "a"], "[B(true);S(a)]"), ({"k": 1}, "{k:I(1)}")],
)
def test_shapes(value: Any, text: str) -> None:
    """The spelling of values in the legacy decoders' errors."""
    assert shape(value) == text


def test_forms_and_types_are_compiled_once() -> None:
    """A second call finds what the first one made."""
    assert RPCLIB.of(method("named")) is RPCLIB.of(method("named"))
    assert RPCLIB.values.reader(RECORD) is RPCLIB.values.reader(RECORD)
    assert RPCLIB.values.writer(RECORD) is RPCLIB.values.writer(RECORD)
