"""Every type, error and layout of every interface survives its wires: random values through real bytes.

`XCP_FIDELITY_EXAMPLES` in the environment says how many values each is tried with.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Method, Option
from dbus_side.signatures import Variant
from tests.bridges.fidelity_cases import arguments_over_bus, carried_call, carried_reply, fault_over_bus
from tests.bridges.fidelity_forms import Form, forms, on_bus
from tests.bridges.fidelity_types import arguments_survive, chunks, run, type_survives
from tests.bridges.fidelity_values import over_bus
from xmlrpc_gateway.encodings import JSON_RPC_LIGHT, JSON_RPCLIB, JSON_XAPI, XML
from xmlrpc_gateway.jsonrpc_codec import NotJsonValue
from xmlrpc_gateway.xmlrpc_codec import DateTime

EXAMPLES = int(os.environ.get("XCP_FIDELITY_EXAMPLES", "10"))
PARTS = [
    pytest.param(stem, what, first, id=f"{stem}-{what}-{first}")
    for stem in model.available()
    for what, first in chunks(stem)
]
FORMS = [pytest.param(form, id=f"{stem}-{form.encoding.name}") for stem in model.available() for form in forms(stem)]


def method(stem: str, name: str) -> Method:
    found = model.load(stem).method(name)
    assert found is not None
    return found


@pytest.mark.parametrize(("stem", "what", "first"), PARTS)
def test_random_values_survive_every_wire(stem: str, what: str, first: int) -> None:
    """Neutral to XML, to JSON and to D-Bus, and back from the bytes of each."""
    assert run(stem, what, first, EXAMPLES) > 0


def test_no_type_is_out_of_reach() -> None:
    """No option stands inside an option, and no list holds what the bus has no signature for."""

    def walk(kind: model.Type) -> None:
        match kind:
            case Option(item):
                assert not isinstance(item, Option)
                assert item != model.UNIT
                walk(item)
            case model.ListOf(item) | model.DictOf(item):
                assert item != model.UNIT
                walk(item)
            case model.TupleOf(items):
                assert model.UNIT not in items
                for item in items:
                    walk(item)
            case model.Record(fields):
                assert len({field.name.lower() for field in fields}) == len(fields)
                for field in fields:
                    assert field.type != model.UNIT
                    walk(field.type)
            case model.Union(constructors):
                assert len({case.name.lower() for case in constructors}) == len(constructors)
                for case in constructors:
                    if case.argument is not None:
                        walk(case.argument)
            case _:
                pass

    for name in model.available():
        for method in model.load(name).methods():
            for kind in (*(p.type for p in method.parameters), method.result, method.errors):
                walk(kind)


# --- what is newer than the data -------------------------------------------------------------------------------------

NEWER = {"of_tomorrow": ["a", {"b": True, "c": None}]}
QUERY = {"name": "n", "vendor": "v", "version": "1", "features": [], "instance_id": "i"}
RECORDS = {
    "xenopsd": ("query", dict(reversed(QUERY.items())) | NEWER),
    "xenopsd-2012": ("query", QUERY | NEWER),
    "xapi": ("task.get_record", {"uuid": "u", "name_label": "l"} | NEWER),
}


@pytest.mark.parametrize("form", [form for form in FORMS if form.values[0].stem in RECORDS])
def test_members_that_are_not_written_down_pass_through(form: Form) -> None:
    """A newer daemon's record comes out of the bus as it went in, byte for byte."""
    name, record = RECORDS[form.stem]
    body = form.encoding.write_success(None, record)
    assert carried_reply(form, method(form.stem, name), body) == body


def test_a_bus_caller_s_unknown_members_are_refused_by_name() -> None:
    """A typing error of a caller must not reach a daemon; from the legacy side a newer caller's do."""
    add, bus = method("xenopsd", "PCI.dequarantine"), on_bus("xenopsd")
    address = {"domain": 0, "bus": 0, "dev": 0, "fn": 0} | NEWER
    body = bus.of(add).write_arguments({"debug_info": "d", "pci_addr": address})
    with pytest.raises(Fault, match="unknown member 'of_tomorrow'; known: domain, bus, dev, fn") as caught:
        bus.of(add).read_arguments(body)
    assert caught.value.kind is Kind.INVALID_ARGUMENT
    assert arguments_over_bus("xenopsd", add, {"debug_info": "d", "pci_addr": address})["pci_addr"] == address


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "rest", [[], ["text"], ["a", "b"], [["a", {"b": True}], None, 1.5]], ids=["nothing", "one", "two", "untyped"]
)
@pytest.mark.parametrize("code", ["Of_tomorrow", "of.tomorrow 1"])
def test_errors_that_are_not_written_down_pass_through(form: Form, code: str, rest: list[Any]) -> None:
    """Code and arguments are the same on the far side, byte for byte. xapi's arguments are texts, always."""
    if form.dialect == "xenapi":
        rest = [item for item in rest if isinstance(item, str)]
    any_method = model.load(form.stem).methods()[0]
    wire = [code, *rest] if rest or form.dialect == "xenapi" else code
    fault = form.of(any_method).read_failure(form.over_failure(wire))
    assert (fault.kind, fault.code) == (Kind.UNDECLARED, code)
    back = form.of(any_method).write_failure(fault_over_bus(form.stem, any_method, fault))
    assert form.encoding.write_failure(None, back) == form.encoding.write_failure(None, wire)


# --- floats of rpc-light ---------------------------------------------------------------------------------------------

LIGHT = Form("xenopsd-2012", JSON_RPC_LIGHT, "rpclib-2012")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.5, "0.500000"),
        (1795434850.71109, "1795434850.711090"),
        (1e-7, "0.0000001"),
        (1 / 3, "0.3333333333333333"),
        (5e-324, f"0.{'0' * 323}5"),
    ],
)
def test_six_decimals_are_not_enough_for_every_float(number: float, text: str) -> None:
    """rpc-light writes `%f`; where that would lose digits, we write as many as it takes."""
    assert LIGHT.encoding.write_success(None, number) == f'{{"result": {text}, "error": null, "id": 0}}'.encode()
    assert LIGHT.over_reply(number) == number


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_has_no_spelling_in_rpc_light(number: float) -> None:
    """Refused by name; XML and rpclib's JSON carry it."""
    with pytest.raises(NotJsonValue, match="has no spelling in rpc-light"):
        LIGHT.encoding.write_success(None, number)
    for encoding in (XML, JSON_RPCLIB, JSON_XAPI):
        assert repr(Form("xapi", encoding, "xenapi").over_reply(number)) == repr(number)


# --- xapi ------------------------------------------------------------------------------------------------------------

XAPI = [pytest.param(form, id=form.encoding.name) for form in forms("xapi")]
XAPI_XML = Form("xapi", XML, "xenapi")


@pytest.mark.parametrize("form", XAPI)
@pytest.mark.parametrize(
    ("arguments", "params", "read"),
    [
        ({}, ["u", "p"], {}),
        ({"version": "2"}, ["u", "p", "2"], {}),
        ({"originator": "me"}, ["u", "p", "1.1", "me"], {"version": "1.1"}),
        ({"version": "2", "originator": "me"}, ["u", "p", "2", "me"], {}),
    ],
    ids=["none", "first", "second", "both"],
)
def test_optional_arguments_are_left_off_the_end(
    form: Form, arguments: dict[str, Any], params: list[str], read: dict[str, Any]
) -> None:
    """A default stands in only where a later argument is given."""
    login = method("xapi", "session.login_with_password")
    arguments = {"uname": "u", "pwd": "p"} | arguments
    assert form.of(login).write_arguments(arguments) == params
    assert form.of(login).read_arguments(form.over_call(login.name, params)) == arguments | read
    arguments_survive("xapi", login, arguments)


@pytest.mark.parametrize("form", XAPI)
def test_every_default_fits_its_parameter(form: Form) -> None:
    """They are written in the interface data; the one that is not known must be given."""
    unknown = set()
    for each in model.load("xapi").methods():
        for parameter in each.parameters:
            if parameter.optional and parameter.default is None:
                unknown.add((each.name, parameter.name))
            elif parameter.optional:
                value = form.translation.values.reader(parameter.type)(parameter.default)
                type_survives("xapi", parameter.type, value)
    assert unknown == {
        ("host.create", "latest_synced_updates_applied"),
        ("Async.host.create", "latest_synced_updates_applied"),
    }


def test_an_optional_argument_without_a_known_default_must_be_given() -> None:
    """When a later one is; the text names it."""
    create = method("xapi", "host.create")
    arguments = {p.name: "x" for p in create.parameters[:6]} | {"pending_guidances_full": []}
    with pytest.raises(Fault, match=r"host\.create: latest_synced_updates_applied: must be given") as caught:
        XAPI_XML.of(create).write_arguments(arguments)
    assert caught.value.kind is Kind.INVALID_ARGUMENT


@pytest.mark.parametrize("form", XAPI)
@pytest.mark.parametrize(
    ("class_name", "on_the_bus"),
    [("vm", Variant("x", 4)), ("VM", Variant("x", 4)), ("host", None), ("of_tomorrow", None)],
)
def test_a_snapshot_is_typed_by_the_class_of_its_event(form: Form, class_name: str, on_the_bus: Variant | None) -> None:
    """A number of the class is a number on the bus; in a class that has no such member it stays what it was."""
    number = form.translation.values.integer(4)
    event = {"class": class_name, "operation": "mod", "snapshot": {"VCPUs_max": number}}
    body = form.encoding.write_success(None, {"events": [event], "valid_ref_counts": {"vm": 1}, "token": "1,2"})
    events = method("xapi", "event.from")
    assert carried_reply(form, events, body) == body
    (batch,) = on_bus("xapi").of(events).write_result(form.of(events).read_result(form.encoding.read_reply(body).value))
    snapshot = batch["events"].value[0]["snapshot"].value
    untyped = Variant("s", "4") if form.encoding is XML else Variant("x", 4)
    assert snapshot["VCPUs_max"] == (on_the_bus or untyped)
    assert batch["valid_ref_counts"] == Variant("a{si}", {"vm": 1})


@pytest.mark.parametrize("form", XAPI)
@pytest.mark.parametrize(
    ("name", "wire", "sig", "on_the_bus"),
    [
        ("VM_metrics.get_VCPUs_CPU", {"0": 3, "1": 1}, "a{xx}", {0: 3, 1: 1}),
        ("VM_metrics.get_VCPUs_utilisation", {"0": 0.5}, "a{xd}", {0: 0.5}),
        ("VM.get_blocked_operations", {"clean_shutdown": "why"}, "a{ss}", {"clean_shutdown": "why"}),
    ],
    ids=["integers", "integers-to-floats", "enum"],
)
def test_keys_that_are_no_strings(form: Form, name: str, wire: dict[str, Any], sig: str, on_the_bus: Any) -> None:
    """On the legacy wire every key is a text; on the bus an integer is one, an enum its name."""
    found = method("xapi", name)
    integer = form.translation.values.integer
    written = {key: integer(item) if isinstance(item, int) else item for key, item in wire.items()}
    body = form.encoding.write_success(None, written)
    assert carried_reply(form, found, body) == body
    bus = on_bus("xapi").of(found)
    assert bus.output_signature == sig
    assert bus.write_result(form.of(found).read_result(written)) == (on_the_bus,)


@pytest.mark.parametrize("form", XAPI)
@pytest.mark.parametrize(
    "text", ["20240229T12:00:00Z", "2024-02-29T12:00:00Z", "19700101T00:00:00Z", "20240229T12:00:00"]
)
def test_a_time_keeps_its_text(form: Form, text: str) -> None:
    """The daemons write times in several ways; over JSON they are strings."""
    found = method("xapi", "VM.get_snapshot_time")
    body = form.encoding.write_success(None, DateTime(text))
    assert (b"dateTime.iso8601" in body) == (form.encoding is XML)
    assert carried_reply(form, found, body) == body
    assert over_bus("s", on_bus("xapi").of(found).write_result(text)) == (text,)


@pytest.mark.parametrize("form", XAPI)
def test_void_is_an_empty_string(form: Form) -> None:
    """On the bus it is nothing at all."""
    start = method("xapi", "VM.start")
    body = form.encoding.write_success(None, "")
    assert carried_reply(form, start, body) == body
    assert on_bus("xapi").of(start).output_signature == ""


def test_integers_of_32_bits_have_their_tag() -> None:
    """As xapi writes them; all other integers are texts without one."""
    body = XAPI_XML.encoding.write_success(None, {"events": [], "valid_ref_counts": {"vm": 1}, "token": ""})
    assert b"<i4>1</i4>" in body
    assert carried_reply(XAPI_XML, method("xapi", "event.from"), body) == body


@pytest.mark.parametrize("form", XAPI)
def test_an_asynchronous_call_is_the_call_with_a_task_as_its_result(form: Form) -> None:
    """Its arguments are those of the call."""
    start, at_once = method("xapi", "VM.start"), method("xapi", "Async.VM.start")
    arguments = {"session_id": "s", "vm": "v", "start_paused": False, "force": True}
    params = form.of(start).write_arguments(arguments)
    assert form.of(at_once).write_arguments(arguments) == params
    body = form.write_call(at_once.name, params)
    assert carried_call(form, at_once, body) == body
    reply = form.encoding.write_success(None, "OpaqueRef:task")
    assert carried_reply(form, at_once, reply) == reply


@pytest.mark.parametrize("form", XAPI)
def test_a_failure_is_a_code_and_texts(form: Form) -> None:
    """Declared or not, over the bus and back."""
    start = method("xapi", "VM.start")
    body = form.encoding.write_failure(None, ["VM_BAD_POWER_STATE", "OpaqueRef:1", "halted", "running"])
    assert carried_reply(form, start, body) == body
    fault = Fault(Kind.DECLARED, "text", code="VM_BAD_POWER_STATE", argument=["OpaqueRef:1"])
    assert on_bus("xapi").of(start).write_fault(fault).signature == "sas"
