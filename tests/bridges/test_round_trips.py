"""Exchanges taken to the bus and back: what is kept gives no difference, what is lost gives one with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges import round_trips
from bridges.calls import Door, Value
from bridges.comparison import SECRET, Difference, Outcome
from bridges.dbus_translation import Translation
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import UNIT, Method
from bridges.round_trips import NO_CALL, NO_REPLY, UNKNOWN_METHOD, UNREADABLE, Said, Trip
from tests.bridges.fidelity_cases import as_xml
from tests.bridges.fidelity_forms import Form, forms
from tests.bridges.fidelity_recordings import (
    OLD_XML,
    RECORDINGS,
    SAMPLES,
    TODAY_JSON,
    TODAY_XML,
    WRONG_INPUT,
    Recording,
    exchanges,
    samples,
)
from tests.bridges.fidelity_types import arguments_of
from tests.bridges.fidelity_values import values
from tests.bridges.fidelity_xenstore import STEMS, conversations
from xenstore_rpc.records import Request, Response, error_response
from xmlrpc_gateway.encodings import JSON_RPC_LIGHT, XML
from xmlrpc_gateway.errors import NotXmlText
from xmlrpc_gateway.jsonrpc_codec import NotJsonValue
from xmlrpc_gateway.xmlrpc_codec import DateTime

ON_BUS = {stem: Translation(model.load(stem)) for stem in model.available()}
XAPI_XML, XAPI_JSON = forms("xapi")
STORAGE_XML, STORAGE_JSON = forms("storage")
RRDD_XML, _ = forms("rrdd")


def method(stem: str, name: str) -> Method:
    found = model.load(stem).method(name)
    assert found is not None
    return found


def over_socket(form: Form, request: bytes, reply: bytes | None, door: Door = Door.HTTP) -> Trip:
    tongue = (form.encoding, form.translation)
    return round_trips.of_socket(model.load(form.stem), ON_BUS[form.stem], tongue, door, request, reply)


def called(form: Form, name: str, params: list[Any], result: Any) -> Trip:
    """A call with a result."""
    return over_socket(form, form.write_call(name, params), form.encoding.write_success(None, result))


def failed(form: Form, name: str, params: list[Any], failure: Any) -> Trip:
    """A call with a failure."""
    return over_socket(form, form.write_call(name, params), form.encoding.write_failure(None, failure))


def paths(trip: Trip) -> list[str]:
    return [each.path for each in trip.differences]


# --- recordings of real daemons --------------------------------------------------------------------------------------

# What docs/fidelity.md explains: by file and method, the paths that are reported.
LOST = {
    ("message-switch/message-switch.jsonl.gz", "VM.migrate"): {"arguments"},
    ("message-switch/message-switch.jsonl.gz", "HOST.stat"): {"result"},
    ("xmlrpc/xenopsd2013-xml.jsonl", "UPDATES.get"): {"result"},
    ("json16/xenopsd2013-json.jsonl", "UPDATES.get"): {"result"},
    ("json16/xenopsd2013-bin.jsonl", "UPDATES.get"): {"result"},
    ("json16/xenopsd2013-bin-errors.jsonl", "UPDATES.get"): {"result"},
    ("json16/xenopsd-json16-errors.jsonl", "VM.set_vcpus"): {"arguments.vcpus"},
    ("json16/xenopsd2013-json-errors.jsonl", "VM.set_vcpus"): {"arguments.vcpus"},
    ("json16/xenopsd2013-bin-errors.jsonl", "VM.set_vcpus"): {"arguments.vcpus"},
    ("xmlrpc/xenopsd-http-errors.jsonl", "query"): {"arguments.bogus", "arguments.1", "arguments.2"},
}


@pytest.mark.parametrize("recording", [pytest.param(each, id=each.file) for each in (*RECORDINGS, *WRONG_INPUT)])
def test_recorded_exchanges_come_back(recording: Recording) -> None:
    """All of them but what docs/fidelity.md explains; a wrong call that we refuse as the daemon did is no loss."""
    lost: dict[tuple[str, str], set[str]] = {}
    compared = 0
    for exchange in exchanges(recording):
        if exchange.request is None:
            continue
        trip = over_socket(recording.form, exchange.request, exchange.reply)
        assert not trip.note.startswith("defect")
        if trip.differences:
            assert trip.method is not None
            lost.setdefault((recording.file, trip.method.name), set()).update(paths(trip))
        compared += not trip.note
    assert lost == {key: found for key, found in LOST.items() if key[0] == recording.file}
    assert compared > 0


@pytest.mark.parametrize("file", SAMPLES)
def test_samples_of_the_marshaller_come_back(file: str) -> None:
    """In both encodings, every reply with its call; texts with NUL are reported, for D-Bus has none."""
    for form in forms(SAMPLES[file]):
        for sample in samples(file):
            for response in sample.responses:
                try:
                    request, reply = _in(form, sample.request), _in(form, response)
                except NotXmlText:
                    continue
                trip = over_socket(form, request, reply)
                assert trip.note == ""
                for each in trip.differences:
                    assert each.right.startswith("argument ") or each.right == SECRET
                assert bool(trip.differences) == (b"\\u0000" in request + reply)


def _in(form: Form, message: dict[str, Any]) -> bytes:
    if form.encoding is not XML:
        return json.dumps(message).encode()
    if "params" in message:
        return XML.write_call(message["method"], as_xml(message["params"]))
    failure = message["error"]
    return XML.write_success(None, as_xml(message["result"])) if failure is None else XML.write_failure(None, failure)


@pytest.mark.parametrize("stem", STEMS)
def test_recorded_sessions_of_the_store_come_back(stem: str) -> None:
    """Every request with its response."""
    trips = [
        round_trips.of_xenstore(model.load(stem), ON_BUS[stem], each.request, each.response) for each in conversations()
    ]
    assert len(trips) > 5
    assert [(trip.differences, trip.note) for trip in trips] == [([], "")] * len(trips)


# --- random exchanges ------------------------------------------------------------------------------------------------

FEW = settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def outcomes(draw: st.DrawFn, method: Method) -> Outcome:
    """A result, one of the method's errors, or one that is not written down."""
    match draw(st.sampled_from(["result", "result", "declared", "undeclared"])):
        case "declared" if method.errors.constructors:
            case = draw(st.sampled_from(method.errors.constructors))
            return Fault(Kind.DECLARED, "", code=case.name, argument=draw(values(case.argument or UNIT)))
        case "undeclared":
            return Fault(Kind.UNDECLARED, "", code="Of_tomorrow", argument=draw(st.none() | st.just(["a"])))
        case _:
            result: Value = draw(values(method.result))
            return result


@pytest.mark.parametrize("stem", model.available())
def test_random_exchanges_of_random_methods_come_back(stem: str) -> None:
    """At every socket, and at the bus door."""
    made = 0

    @FEW
    @given(st.data())
    def come_back(data: st.DataObject) -> None:
        nonlocal made
        called_one = data.draw(st.sampled_from(model.load(stem).method_names).map(lambda name: method(stem, name)))
        arguments, outcome = data.draw(arguments_of(called_one)), data.draw(outcomes(called_one))
        trip = round_trips.of_bus(ON_BUS[stem], called_one, arguments, outcome)
        assert (trip.differences, trip.note) == ([], "")
        door = Door(called_one.doors[0]) if called_one.doors else Door.HTTP
        for form in forms(stem):
            laid = form.of(called_one)
            try:
                request = form.write_call(called_one.name, laid.write_arguments(arguments))
                if isinstance(outcome, Fault):
                    reply = form.encoding.write_failure(None, laid.write_failure(outcome))
                else:
                    reply = form.encoding.write_success(None, laid.write_result(outcome))
            except NotJsonValue:
                assert form.encoding is JSON_RPC_LIGHT
                continue
            trip = over_socket(form, request, reply, door)
            assert (trip.method, trip.differences, trip.note) == (called_one, [], "")
            assert trip.arguments is not None
            assert trip.outcome is not None
            made += 1

    come_back()
    assert made >= 20


# --- the same in other words -----------------------------------------------------------------------------------------

PCI = {"domain": "0", "bus": "1", "dev": "2", "fn": "3"}
TASK = {"uuid": "u", "progress": 0.5, "created": DateTime("20240229T12:00:00Z"), "status": "pending"}
VDI = {"vdi": "v", "name_label": "n", "virtual_size": "0"}
WHICH = {"dbg": "d", "sr": "s", "vdi": "v"}


@pytest.mark.parametrize(
    ("form", "name", "params", "result"),
    [
        (TODAY_XML, "VM.set_vcpus", [{"debug_info": "d", "id": "i", "vcpus": 4}], "1"),
        (TODAY_XML, "VM.set_vcpus", [{"id": "i", "vcpus": "0x4", "debug_info": "d"}], "1"),
        (TODAY_XML, "PCI.dequarantine", [{"debug_info": "d", "pci_addr": PCI}], None),
        (
            TODAY_XML,
            "PCI.dequarantine",
            [{"debug_info": "d", "pci_addr": {name.upper(): value for name, value in PCI.items()}}],
            None,
        ),
        (TODAY_XML, "VM.delay", [{"debug_info": "d", "id": "i", "delay": "1e3"}], "1"),
        (TODAY_JSON, "VM.delay", [{"debug_info": "d", "id": "i", "delay": 1}], "1"),
        (OLD_XML, "UPDATES.get", ["d", [91], []], [[], 92]),
        (TODAY_XML, "VM.import_metadata", ["d", "metadata"], "i"),
        (XAPI_XML, "task.get_record", ["s", "t"], TASK),
        (XAPI_XML, "task.get_record", ["s", "t"], TASK | {"created": "20240229T12:00:00Z", "status": "PENDING"}),
        (XAPI_XML, "task_get_record", ["s", "t"], TASK | {"progress": "0.5"}),
        (XAPI_XML, "VM.get_VCPUs_max", ["s", "v"], 4),
        (XAPI_XML, "VM.get_blocked_operations", ["s", "v"], {"Clean_Shutdown": "why"}),
        (XAPI_XML, "VM_metrics.get_VCPUs_CPU", ["s", "v"], {"+1": "3"}),
        (XAPI_XML, "VM.start", ["s", "v", False, False], None),
        (XAPI_JSON, "session.login_with_password", ["u", "p", "1.0"], "s"),
    ],
)
def test_what_means_the_same_is_no_difference(form: Form, name: str, params: list[Any], result: Any) -> None:
    """Tags of integers, order, case, blanks of numbers, the older positional form, the second spelling of a name."""
    trip = called(form, name, params, result)
    assert (trip.differences, trip.note) == ([], "")
    assert trip.method is not None
    assert trip.arguments is not None


@pytest.mark.parametrize("failure", ["Failed", ["Failed", None]])
def test_a_constructor_with_nothing_and_with_a_null(failure: Any) -> None:
    """The marshaller reads both alike."""
    assert failed(STORAGE_JSON, "VDI.stat", [WHICH], failure).differences == []


def test_the_trip_has_what_was_said() -> None:
    """Neutral, for who wants to ask somebody else; unit is an answer too."""
    trip = called(TODAY_XML, "VM.set_vcpus", [{"debug_info": "d", "id": "i", "vcpus": "4"}], "1")
    assert trip == Trip(
        method("xenopsd", "VM.set_vcpus"), {"debug_info": "d", "id": "i", "vcpus": 4}, Said("1"), [], ""
    )
    refused = failed(TODAY_XML, "VM.start", [{"debug_info": "d", "id": "i", "force": False}], ["Invalid_vcpus", "3"])
    assert refused.outcome is not None
    fault = refused.outcome.answer
    assert isinstance(fault, Fault)
    assert (fault.code, fault.argument) == ("Invalid_vcpus", 3)


# --- what is lost ----------------------------------------------------------------------------------------------------

SET = {"debug_info": "d", "id": "i", "vcpus": "4"}
WRONG = SET | {"vcpus": "many"}


@pytest.mark.parametrize(
    ("trip", "found"),
    [
        (
            called(TODAY_XML, "VM.set_vcpus", [SET | {"bogus": "1"}, "z"], "1"),
            [("arguments.1", "'z'", "(absent)"), ("arguments.bogus", "'1'", "(absent)")],
        ),
        (called(TODAY_XML, "VM.set_vcpus", [WRONG], "1"), [("arguments.vcpus", "", "Expected int, got 'S(many)'")]),
        (
            failed(TODAY_XML, "VM.set_vcpus", [WRONG], ["Cancelled", "1"]),
            [("arguments.vcpus", "", "Expected int, got 'S(many)'")],
        ),
        (failed(TODAY_XML, "VM.set_vcpus", [WRONG], ["Internal_error", "in other words"]), []),
        (
            called(TODAY_JSON, "VM.set_vcpus", [SET | {"vcpus": 1, "id": "a\0b"}], "1"),
            [("arguments", "", "argument 2: expected a string without NUL (s), got str 'a...")],
        ),
        (
            called(TODAY_XML, "PCI.dequarantine", [{"debug_info": "d", "pci_addr": PCI | {"BUS": "9"}}], None),
            [("arguments.pci_addr.bus", "'1'", "'9'"), ("arguments.pci_addr.BUS", "'9'", "(absent)")],
        ),
        (
            called(STORAGE_XML, "VDI.stat", [WHICH], VDI | {"sharable": "maybe"}),
            [("result.sharable", "'maybe'", "(absent)")],
        ),
        (
            called(STORAGE_XML, "SR.scan", [{"dbg": "d", "sr": "s"}], [VDI, VDI | {"tags": "none"}]),
            [("result[*].tags", "'none'", "(absent)")],
        ),
        (
            called(RRDD_XML, "Plugin.Local.register", [{"uid": "u", "info": "five_seconds", "protocol": "V9"}], 1.0),
            [("arguments.protocol", "'V9'", "'V2'")],
        ),
        (
            called(XAPI_XML, "task.get_record", ["s", "t"], TASK | {"expected": DateTime("20240229T12:00:00Z")}),
            [("result.expected", "DateTime(text='20240229T12:00:00Z')", "'20240229T12:00:00Z'")],
        ),
        (
            called(XAPI_XML, "task.get_record", ["s", "t"], TASK | {"progress": "half"}),
            [("result", "", "progress: Expected float, got 'S(half)'")],
        ),
        (called(XAPI_XML, "VM.get_name_label", ["s", "v"], []), [("result", "", "Expected string, got '[]'")]),
        (
            called(XAPI_JSON, "VM.get_name_label", ["s", "v"], "\0"),
            [("result", "", "argument 1: expected a string without NUL (s), got str '\\...")],
        ),
        (
            failed(XAPI_JSON, "VM.start", ["s", "v", False, False], ["VM_BAD_POWER_STATE", 1]),
            [("fault", "['VM_BAD_POWER_STATE', 1]", "['VM_BAD_POWER_STATE', 'I(1)']")],
        ),
        (
            failed(TODAY_JSON, "VM.set_vcpus", [SET | {"vcpus": 1}], ["Cancelled", "\0"]),
            [("fault", "", "argument 1: expected a string without NUL (s), got str 'C...")],
        ),
    ],
)
def test_what_is_lost_is_reported(trip: Trip, found: list[tuple[str, str, str]]) -> None:
    """With its place, what was there, and what came back or why nothing did."""
    assert (trip.differences, trip.note) == ([Difference(*each) for each in found], "")


def test_members_that_occur_twice_are_lost() -> None:
    """A map holds one of them. In a call and in a reply."""
    call = TODAY_XML.write_call("VM.set_vcpus", [SET])
    twice = call.replace(b"<name>vcpus</name>", b"<name>id</name>")
    assert called(TODAY_XML, "VM.set_vcpus", [SET], "1").differences == []
    lost = over_socket(TODAY_XML, twice, None)
    assert lost.method == method("xenopsd", "VM.set_vcpus")
    assert lost.differences == [Difference("arguments", "", "params[0]: member 'id' occurs twice")]
    reply = XML.write_success(None, {"uuid": "u", "zuid": "u"}).replace(b"zuid", b"uuid")
    trip = over_socket(XAPI_XML, XAPI_XML.write_call("task.get_record", ["s", "t"]), reply)
    assert trip.differences == [Difference("reply", "", "params[0].Value: member 'uuid' occurs twice")]


@pytest.mark.parametrize("reply", [b"", b"<html/>", b"\xff"])
def test_a_reply_that_cannot_be_read_is_a_difference(reply: bytes) -> None:
    """A caller on the bus could not be told what it says."""
    trip = over_socket(TODAY_XML, TODAY_XML.write_call("VM.set_vcpus", [SET]), reply)
    assert paths(trip) == ["reply"]
    assert trip.arguments is not None
    assert trip.outcome is None


@pytest.mark.parametrize(
    ("form", "name", "params", "reply"),
    [
        (XAPI_JSON, "secret.get_value", ["s", "r"], XAPI_JSON.encoding.write_success(None, "hunter2\0")),
        (XAPI_XML, "secret.get_value", ["s", "r"], XML.write_success(None, {"hunter2": "hunter2"})),
        (XAPI_XML, "secret.get_record", ["s", "r"], XML.write_success(None, {"hunter2": DateTime("hunter2")})),
        (XAPI_XML, "session.login_with_password", ["u", ["hunter2"]], XML.write_success(None, "s")),
        (XAPI_JSON, "session.login_with_password", ["u", "hunter2\0"], XAPI_JSON.encoding.write_success(None, "s")),
        (
            XAPI_JSON,
            "session.login_with_password",
            ["u", "p"],
            XAPI_JSON.encoding.write_failure(None, ["X", "hunter2\0"]),
        ),
        (
            XAPI_JSON,
            "session.login_with_password",
            ["u", "p"],
            XAPI_JSON.encoding.write_failure(None, ["X", ["hunter2"]]),
        ),
    ],
)
def test_secrets_do_not_appear(form: Form, name: str, params: list[Any], reply: bytes) -> None:
    """Nor in a reason."""
    (found,) = over_socket(form, form.write_call(name, params), reply).differences
    assert found.right == SECRET
    assert "hunter2" not in found.left


# --- what cannot be compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "request_body", "reply", "note"),
    [
        (TODAY_XML, b"GET / HTTP/1.1", b"", UNREADABLE),
        (TODAY_XML, XML.write_call("VM.fly", []), None, UNKNOWN_METHOD),
        (TODAY_XML, XML.write_call("system.listMethods", []), None, UNKNOWN_METHOD),
        (XAPI_XML, XML.write_call("system.listMethods", []), XML.write_bare(None, ["a"]), NO_CALL),
        (TODAY_XML, XML.write_call("VM.set_vcpus", [SET]), None, NO_REPLY),
        (TODAY_XML, XML.write_call("VM.set_vcpus", [WRONG]), None, NO_REPLY),
    ],
)
def test_why_nothing_could_be_compared(form: Form, request_body: bytes, reply: bytes | None, note: str) -> None:
    """It is said in a word, and is no difference."""
    trip = over_socket(form, request_body, reply)
    assert (trip.outcome, trip.differences, trip.note) == (None, [], note)


def test_a_method_of_another_door_is_unknown() -> None:
    """As it is to the daemon behind the door."""
    limited = [m for stem in model.available() for m in model.load(stem).methods() if m.doors]
    assert limited
    for each in limited:
        stem = next(name for name in model.available() if model.load(name).method(each.name) is each)
        form = forms(stem)[0]
        other = next(door for door in (Door.HTTP, Door.FRAMED) if door not in each.doors)
        assert over_socket(form, form.write_call(each.name, []), None, other).note == UNKNOWN_METHOD


def test_the_arguments_of_a_call_without_a_reply_are_compared() -> None:
    """What is lost in them is lost whatever came of the call."""
    trip = over_socket(TODAY_XML, XML.write_call("VM.set_vcpus", [SET, "z"]), None)
    assert (paths(trip), trip.note) == (["arguments.1"], NO_REPLY)


# --- the store -------------------------------------------------------------------------------------------------------

RESERVE = {"session_id": b"s", "kib": b"1024"}
RANGE = {"session_id": b"s", "min": b"7", "max": b"7"}


def over_store(function: str, arguments: dict[str, bytes], response: Response) -> Trip:
    request = Request(function, "1", tuple(arguments.items()))
    return round_trips.of_xenstore(model.load("squeezed"), ON_BUS["squeezed"], request, response)


def nodes(**results: bytes) -> Response:
    return Response(tuple(results.items()))


@pytest.mark.parametrize(
    ("function", "arguments", "response", "found"),
    [
        ("reserve-memory", RESERVE, nodes(reservation_id=b"r"), []),
        ("reserve-memory", RESERVE | {"kib": b"0x400"}, nodes(reservation_id=b"r"), []),
        ("reserve-memory-range", RANGE, nodes(kib=b"007", reservation_id=b"r"), []),
        ("echo", {"a": b"007"}, nodes(a=b"007"), []),
        ("balance-memory", {}, nodes(), []),
        ("reserve-memory", RESERVE, error_response("1000", "1,2"), []),
        ("reserve-memory", RESERVE, error_response("1003", "kib"), []),
        ("reserve-memory", RESERVE, error_response("77", "of tomorrow"), []),
        ("reserve-memory", {"kib": b"1"}, error_response("3", "session_id"), []),
        ("reserve-memory", RESERVE | {"kib": b"x"}, error_response("2", "Failure int_of_string"), []),
        (
            "reserve-memory",
            RESERVE | {"colour": b"red"},
            nodes(reservation_id=b"r"),
            [("arguments.colour", "'red'", "(absent)")],
        ),
        (
            "reserve-memory",
            RESERVE | {"kib": b"x"},
            nodes(reservation_id=b"r"),
            [("arguments", "", "kib: expected int64 as decimal text, got 'x'")],
        ),
        (
            "reserve-memory",
            RESERVE,
            nodes(reservation_id=b"r", colour=b"red"),
            [("result.colour", "'red'", "(absent)")],
        ),
        (
            "reserve-memory",
            RESERVE,
            nodes(),
            [("result", "", "reserve_memory was executed; its answer, reservation_id: ...")],
        ),
        (
            "reserve-memory",
            RESERVE | {"session_id": b"\0"},
            nodes(reservation_id=b"r"),
            [("arguments", "", "argument 2: expected a string without NUL (s), got str '\\...")],
        ),
        (
            "reserve-memory-range",
            RANGE,
            error_response("1003", "max"),
            [("fault.description", "'max'", "'min'")],
        ),
    ],
)
def test_exchanges_in_the_store(
    function: str, arguments: dict[str, bytes], response: Response, found: list[tuple[str, str, str]]
) -> None:
    """Integers by their value, all else by its bytes; nodes that nobody reads do not come back."""
    trip = over_store(function, arguments, response)
    assert (trip.differences, trip.note) == ([Difference(*each) for each in found], "")


def test_an_unknown_function() -> None:
    """It is nothing that could be compared."""
    assert over_store("fly", {}, error_response("1", "fly")) == Trip(None, None, None, [], UNKNOWN_METHOD)


# --- the bus door ----------------------------------------------------------------------------------------------------

VCPUS = method("xenopsd", "VM.set_vcpus")
GIVEN: dict[str, Value] = {"debug_info": "d", "id": "i", "vcpus": 4}


def over_bus(arguments: dict[str, Any], outcome: Outcome) -> Trip:
    return round_trips.of_bus(ON_BUS["xenopsd"], VCPUS, arguments, outcome)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (Kind.BUSY, NO_REPLY),
        (Kind.UNAVAILABLE, NO_REPLY),
        (Kind.IN_DOUBT, NO_REPLY),
        (Kind.INVALID_ARGUMENT, UNREADABLE),
        (Kind.UNKNOWN_METHOD, UNKNOWN_METHOD),
    ],
)
def test_a_fault_of_ours_is_no_answer(kind: Kind, note: str) -> None:
    """The arguments may never have been read."""
    assert over_bus({}, Fault(kind, "why")) == Trip(VCPUS, None, None, [], note)


def test_an_answer_that_could_not_be_said_on_the_bus_is_lost() -> None:
    """The legacy daemon gave one."""
    trip = over_bus(GIVEN, Fault(Kind.NOT_REPRESENTABLE, "VM.set_vcpus was executed; its answer: why"))
    assert trip.differences == [Difference("outcome", "", "VM.set_vcpus was executed; its answer: why")]
    assert trip.outcome is None


def test_a_defect_is_a_difference() -> None:
    """An argument that is not of its type's shape, which no door lets pass: nothing is raised."""
    dequarantine = method("xenopsd", "PCI.dequarantine")
    trip = round_trips.of_bus(ON_BUS["xenopsd"], dequarantine, {"debug_info": "d", "pci_addr": 5}, None)
    assert (trip.differences, trip.note) == (
        [Difference("arguments", "", "defect: TypeError")],
        "defect: TypeError",
    )
