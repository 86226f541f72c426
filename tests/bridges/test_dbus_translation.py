"""The interfaces on the bus: signatures, names, bodies and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.calls import Tagged
from bridges.dbus_translation import (
    MethodForm,
    Translation,
    interfaces,
    not_representable,
    own_error,
)
from bridges.dbus_values import Mismatch, signature
from bridges.faults import FROM_DBUS, OURS, Fault, Kind
from bridges.interfaces import model
from dbus_side import introspection, names
from dbus_side.errors import BusRefused, SignatureMismatch
from dbus_side.signatures import Variant, encoder, parse

OverBus = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]

SERVICES = {name: Translation(model.load(name)) for name in model.available()}
OBJECTS = [
    pytest.param(translation, name, id=f"{stem}-{name}")
    for stem, translation in SERVICES.items()
    for name in translation.service.objects
]
XENOPSD, SQUEEZED = SERVICES["xenopsd"], SERVICES["squeezed"]


def form(translation: Translation, name: str) -> MethodForm:
    method = translation.service.method(name)
    assert method is not None
    return translation.of(method)


@pytest.mark.parametrize(("translation", "object_name"), OBJECTS)
def test_every_method_has_valid_names_and_signatures(translation: Translation, object_name: str) -> None:
    """Paths, interfaces, members and signatures are what the D-Bus specification allows."""
    for method in translation.service.object_methods(object_name):
        is_valid(translation.of(method))


def is_valid(method: MethodForm) -> None:
    assert names.is_object_path(method.path)
    assert names.is_interface(method.interface)
    assert names.is_member(method.member)
    for text in (method.input_signature, method.output_signature):
        assert len(text) <= 255
        parse(text)
    described = method.describe()
    assert introspection.signature_of(described.inputs) == method.input_signature
    assert introspection.signature_of(described.outputs) == method.output_signature
    assert all(names.is_member(argument.name) for argument in (*described.inputs, *described.outputs))
    assert len({a.name for a in described.inputs}) == len(described.inputs)


@pytest.mark.parametrize("translation", SERVICES.values(), ids=SERVICES)
def test_members_are_unique_and_the_interfaces_are_valid_xml(translation: Translation) -> None:
    """No two wire names fall together, and what is published can be read back."""
    forms = [translation.of(method) for method in translation.service.methods()]
    assert [key for key, count in Counter((f.interface, f.member) for f in forms).items() if count > 1] == []
    described = interfaces(translation)
    assert set(described) == set(translation.service.objects)
    assert sum(len(interface.methods) for interface in described.values()) == len(forms)
    for interface in described.values():
        assert introspection.from_xml(introspection.to_xml((interface,))).interfaces == (interface,)


def test_the_name_of_a_method() -> None:
    """Class and method become object, interface and member; the wire name is an annotation."""
    found = form(XENOPSD, "VM.stat")
    assert found.path == "/org/xen/xcp/xenopsd/VM"
    assert found.interface == "org.xen.xcp.xenopsd.VM1"
    balance = form(SQUEEZED, "balance_memory")
    assert (balance.path, balance.member) == ("/org/xen/xcp/squeezed/Memory", "BalanceMemory")
    assert balance.describe().annotations == (
        ("org.xen.xcp.LegacyName", "balance_memory"),
        ("org.xen.xcp.Effect", "write"),
        ("org.xen.xcp.Deadline", "300"),
    )


SAMPLE = model.decode(
    b"""{"service": "sample", "types": {
        "errors": {"variant": [{"name": "Pair", "args": {"tuple": ["string", "int"]}},
            {"name": "One", "args": "int"}, {"name": "Bare", "args": null}], "default": "Bare"},
        "t": {"record": [{"name": "first", "type": "int"}, {"name": "second", "type": {"option": "string"}},
                         {"name": "third", "type": "int", "default": 7}]},
        "state": {"variant": [{"name": "Idle", "args": null}, {"name": "Busy", "args": "float"}]},
        "power": {"variant": [{"name": "On", "args": null}, {"name": "Off", "args": null}]}},
      "methods": [
        {"name": "Class.do_it", "object": "Class", "error": "errors", "effect": "write",
         "result": {"tuple": [{"ref": "t"}, "int"]},
         "params": [{"name": "id", "type": "string", "named": true},
            {"name": "delay", "type": {"option": "float"}, "named": true},
            {"name": "unit", "type": "unit", "named": true},
            {"name": "count", "type": {"option": "int"}, "named": true},
            {"name": "maybe", "type": {"option": "int"}}]},
        {"name": "Class.look", "object": "Class", "error": "errors", "effect": "read", "result": "int", "params": []},
        {"name": "Class.quiet", "object": "Class", "error": "errors", "result": "unit",
         "params": [{"name": "what", "type": {"ref": "t"}}]}
    ]}"""
)
TRANSLATION = Translation(SAMPLE)
DO_IT, LOOK, QUIET = (TRANSLATION.of(method) for method in SAMPLE.methods())


@pytest.mark.parametrize(
    ("kind", "sig", "neutral", "bus"),
    [
        ("bool", "b", True, True),
        ("int32", "i", -1, -1),
        ("int64", "x", 2**63 - 1, 2**63 - 1),
        ("float", "d", 0.5, 0.5),
        ("string", "s", "ü", "ü"),
        ("char", "s", "c", "c"),
        ({"list": "int"}, "ax", [1, 2], [1, 2]),
        ({"list": {"ref": "power"}}, "as", [Tagged("On")], ["On"]),
        ({"dict": ["string", {"list": "string"}]}, "a{sas}", {"a": []}, {"a": []}),
        ({"option": "string"}, "as", None, []),
        ({"option": "string"}, "as", "a", ["a"]),
        ({"list": {"option": {"tuple": ["int", "string"]}}}, "aa(xs)", [None, (1, "a")], [[], [(1, "a")]]),
        ({"ref": "state"}, "(sv)", Tagged("Idle"), ("Idle", Variant("s", ""))),
        ({"ref": "state"}, "(sv)", Tagged("Busy", 0.5), ("Busy", Variant("d", 0.5))),
        ({"ref": "power"}, "s", Tagged("Off"), "Off"),
        ({"ref": "t"}, "a{sv}", {"first": 1, "second": "b"}, {"first": Variant("x", 1), "second": Variant("s", "b")}),
        ("any", "v", None, Variant("g", "")),
        ("any", "v", "", Variant("s", "")),
        ("any", "v", b"\xff", Variant("ay", b"\xff")),
        ("any", "v", [1, {"a": None}], Variant("av", [Variant("x", 1), Variant("a{sv}", {"a": Variant("g", "")})])),
    ],
)
def test_values_have_one_form_each_way(kind: Any, sig: str, neutral: Any, bus: Any, over_bus: OverBus) -> None:
    """The signature comes from the type, and the value survives the bytes of a message."""
    found = SAMPLE.type(kind)
    assert signature(found) == sig
    assert TRANSLATION.values.writer(found)(neutral) == bus
    assert TRANSLATION.values.reader(found)(*over_bus(sig, (bus,))) == neutral


@pytest.mark.parametrize(
    ("variant", "neutral"),
    [
        (Variant("u", 7), 7),
        (Variant("as", ["a"]), ["a"]),
        (Variant("(si)", ("a", 1)), ["a", 1]),
        (Variant("a{ss}", {"a": "b"}), {"a": "b"}),
        (Variant("v", Variant("b", True)), True),
    ],
)
def test_an_untyped_value_may_come_in_any_signature(variant: Variant, neutral: Any) -> None:
    """A daemon need not wrap every element in a variant of its own."""
    assert TRANSLATION.values.reader(model.ANY)(variant) == neutral


NATIVE = "expected a 63-bit integer (-4611686018427387904 to 4611686018427387903)"


@pytest.mark.parametrize(
    ("kind", "bus", "sentence"),
    [
        ("int", 2**62, f"{NATIVE}, got 4611686018427387904"),
        ({"option": "int"}, [1, 2], "expected an option (an array of 0 or 1), got 2 elements"),
        ({"ref": "power"}, "Broken", "unknown constructor 'Broken'; known: On, Off"),
        ({"ref": "state"}, ("Broken", Variant("s", "")), "unknown constructor 'Broken'; known: Idle, Busy"),
        ({"ref": "state"}, ("Idle", Variant("s", "x")),
         "constructor 'Idle' carries nothing: its variant must be an empty string"),
        ({"ref": "state"}, ("Busy", Variant("x", 1)), "Busy: expected signature 'd', got 'x'"),
        ({"ref": "t"}, {"second": Variant("s", "x")}, "the record needs a member 'first'"),
        ({"ref": "t"}, {"fourth": Variant("s", "x")}, "unknown member 'fourth'; known: first, second, third"),
        ({"ref": "t"}, {"first": Variant("s", "1")}, "first: expected signature 'x', got 's'"),
        ({"record": [{"name": "in", "type": {"ref": "t"}}]},
         {"in": Variant("a{sv}", {"first": Variant("x", -(2**63))})},
         f"in.first: {NATIVE}, got -9223372036854775808"),
        ("any", Variant("a{xs}", {1: "a"}), "expected a map with strings as keys in an untyped value"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(kind: Any, bus: Any, sentence: str) -> None:
    """Nothing is guessed: the sentence names the member or constructor."""
    with pytest.raises(Mismatch) as caught:
        TRANSLATION.callers_values.reader(SAMPLE.type(kind))(bus)
    assert caught.value.sentence == sentence


def test_arguments(over_bus: OverBus) -> None:
    """Unit is no argument, labelled options are one last argument, other options an array of 0 or 1."""
    assert DO_IT.input_signature == "saxa{sv}"
    for arguments, body in (
        ({"id": "x"}, ("x", [], {})),
        ({"id": "x", "delay": 0.5, "maybe": 3}, ("x", [3], {"delay": Variant("d", 0.5)})),
    ):
        assert DO_IT.write_arguments(arguments) == body  # type: ignore[arg-type]
        assert DO_IT.read_arguments(over_bus(DO_IT.input_signature, body)) == arguments
    assert LOOK.write_arguments({}) == ()
    assert LOOK.read_arguments(()) == {}


@pytest.mark.parametrize(
    ("method", "body", "text"),
    [
        (DO_IT, ("x", [], {"dealy": Variant("d", 1.0)}), "Class.do_it: unknown member 'dealy'; known: delay, count"),
        (DO_IT, ("x", [2**62], {}), "Class.do_it: maybe: expected a 63-bit integer"),
        (DO_IT, ("x", [], {"count": Variant("x", 2**62)}), "Class.do_it: count: expected a 63-bit integer"),
        (QUIET, ({},), "Class.quiet: what: the record needs a member 'first'"),
    ],
)
def test_misfitting_arguments_name_the_field(method: MethodForm, body: Any, text: str) -> None:
    """The caller hears method and field, and nothing was executed."""
    with pytest.raises(Fault) as caught:
        method.read_arguments(body)
    assert caught.value.kind is Kind.INVALID_ARGUMENT
    assert caught.value.text.startswith(text)


def test_results(over_bus: OverBus) -> None:
    """A tuple is several out arguments, unit is none."""
    assert DO_IT.output_signature == "a{sv}x"
    body = DO_IT.write_result(({"first": 1}, 2))
    assert body == ({"first": Variant("x", 1)}, 2)
    assert DO_IT.read_result("a{sv}x", over_bus("a{sv}x", body)) == ({"first": 1}, 2)
    assert (LOOK.write_result(5), LOOK.read_result("x", (5,))) == ((5,), 5)
    assert (QUIET.write_result(None), QUIET.read_result("", ())) == ((), None)


@pytest.mark.parametrize(
    ("sig", "body", "text"),
    [
        ("s", ("5",), "Class.look: the bus daemon answered with signature 's', declared is 'x'"),
        ("", (), "Class.look: the bus daemon answered with signature '', declared is 'x'"),
        ("x", (2**62,), "Class.look: result: expected a 63-bit integer"),
    ],
)
def test_a_result_that_is_not_as_declared(sig: str, body: Any, text: str) -> None:
    """The daemon's mistake is named, not passed on."""
    with pytest.raises(Fault) as caught:
        LOOK.read_result(sig, body)
    assert caught.value.kind is Kind.NOT_REPRESENTABLE
    assert caught.value.text.startswith(text)


@pytest.mark.parametrize("translation", SERVICES.values(), ids=SERVICES)
@settings(derandomize=True, database=None, deadline=None, max_examples=3, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_declared_error_round_trips(
    translation: Translation,
    data: st.DataObject,
    values: Callable[..., Any],
    over_bus: OverBus,
    same: Callable[..., bool],
) -> None:
    """Name, text and typed arguments of every constructor come back from the bytes of a message."""
    method = translation.of(translation.service.methods()[0])
    for code, case in translation.service.errors.items():
        argument = None if case.argument is None else data.draw(values(case.argument))
        refusal = method.write_fault(Fault(Kind.DECLARED, "text", code=code, argument=argument))
        assert refusal.name == f"org.xen.xcp.{translation.service.name}.Error.{code}"
        body = over_bus(refusal.signature, refusal.body)
        fault = method.read_fault(BusRefused(refusal.name, refusal.signature, body))
        assert (fault.kind, fault.text, fault.code) == (Kind.DECLARED, "text", code)
        assert same(fault.argument, argument)


@pytest.mark.parametrize(
    ("code", "argument", "name", "sig"),
    [
        ("Fresh", None, "Fresh", "s"),
        ("Fresh", ["a", 1], "Fresh", "svv"),
        ("Other", ["a"], "Other", "sv"),
        ("One", ["no number"], "Other", "ssv"),
        ("a.b c", [None, {"x": [1]}], "Other", "ssvv"),
        ("", [{"a": "b"}], "Other", "ssv"),
        ("1000", None, "Other", "ss"),
    ],
)
def test_undeclared_errors_round_trip(code: str, argument: Any, name: str, sig: str, over_bus: OverBus) -> None:
    """The code is the name where a name can be that, and untyped arguments follow."""
    refusal = LOOK.write_fault(Fault(Kind.UNDECLARED, "text", code=code, argument=argument))
    assert (refusal.name, refusal.signature) == (f"org.xen.xcp.sample.Error.{name}", sig)
    body = over_bus(refusal.signature, refusal.body)
    fault = LOOK.read_fault(BusRefused(refusal.name, refusal.signature, body))
    assert (fault.kind, fault.text, fault.code, fault.argument) == (Kind.UNDECLARED, "text", code, argument)


@pytest.mark.parametrize(
    ("name", "sig", "body", "code", "argument"),
    [
        ("org.xen.xcp.sample.Error.One", "ss", ("text", "5"), "One", ["5"]),
        ("org.xen.xcp.sample.Error.One", "", (), "One", None),
        ("org.xen.xcp.sample.Error.Fresh", "sas", ("text", ["a"]), "Fresh", [["a"]]),
        ("org.xen.xcp.sample.Error.Fresh", "sa{xs}", ("text", {1: "a"}), "Fresh", None),
        ("com.example.Failed", "s", ("text",), "com.example.Failed", ["text"]),
        ("com.example.Failed", "", (), "com.example.Failed", None),
    ],
)
def test_errors_that_a_daemon_makes_up(name: str, sig: str, body: Any, code: str, argument: Any) -> None:
    """An error that is not as declared keeps its code and whatever can be carried of its body."""
    fault = LOOK.read_fault(BusRefused(name, sig, body))
    assert (fault.kind, fault.code, fault.argument) == (Kind.UNDECLARED, code, argument)
    assert fault.text.startswith("text" if body else name)


def test_a_declared_error_out_of_range() -> None:
    """A 63-bit argument beyond its range leaves the declared form."""
    fault = LOOK.read_fault(BusRefused("org.xen.xcp.sample.Error.One", "sx", ("text", 2**62)))
    assert (fault.kind, fault.code, fault.argument) == (Kind.UNDECLARED, "One", [2**62])
    assert "63-bit" in fault.text


@pytest.mark.parametrize("kind", sorted(OURS))
def test_our_own_faults_round_trip(kind: Kind) -> None:
    """Our kinds have names of our own, without a service."""
    refusal = DO_IT.write_fault(Fault(kind, "why"))
    assert (refusal.name, refusal.signature, refusal.body) == (f"org.xen.xcp.Error.{kind}", "s", ("why",))
    fault = DO_IT.read_fault(refusal)
    assert (fault.kind, fault.text) == (kind, "why")
    assert own_error(Fault(kind, "why")).name == refusal.name


def test_names_that_are_no_kinds_of_ours_are_defects() -> None:
    """`Declared` is no error of ours, and neither is a name nobody has given."""
    for name in ("Declared", "Nonsense", ""):
        assert LOOK.read_fault(BusRefused(f"org.xen.xcp.Error.{name}", "s", ("why",))).kind is Kind.INTERNAL


def test_an_unknown_method_is_the_bus_s_own_error() -> None:
    """Both ways."""
    refusal = LOOK.write_fault(Fault(Kind.UNKNOWN_METHOD, "no such thing"))
    assert refusal.name == "org.freedesktop.DBus.Error.UnknownMethod"
    assert LOOK.read_fault(refusal).kind is Kind.UNKNOWN_METHOD


@pytest.mark.parametrize("name", sorted(FROM_DBUS))
def test_errors_of_the_bus_itself(name: str) -> None:
    """They are our kinds; a read that got no answer is not in doubt, since it changed nothing."""
    kind = FROM_DBUS[name]
    assert DO_IT.read_fault(BusRefused(name, "s", ("why",))).kind is kind
    assert LOOK.read_fault(BusRefused(name)).kind is (Kind.UNAVAILABLE if kind is Kind.IN_DOUBT else kind)


@pytest.mark.parametrize("text", ["nul\0", "\ud800"])
def test_what_the_bus_cannot_carry_is_found_before_it_is_sent(text: str) -> None:
    """NUL and lone surrogates are refused with the place of the value."""
    with pytest.raises(SignatureMismatch) as caught:
        encoder(DO_IT.input_signature)(DO_IT.write_arguments({"id": text}), Variant)
    fault = not_representable("Class.do_it", caught.value)
    assert fault.kind is Kind.NOT_REPRESENTABLE
    assert fault.text.startswith("Class.do_it: argument 1: expected a string without")
