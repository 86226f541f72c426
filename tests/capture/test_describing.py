"""What doors and legs hand over, as records: typed, redacted, native; in every protocol, and whatever bytes come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridges.calls import Door
from bridges.capture import natives, records, typed
from bridges.capture.messages import (
    AS_CALLER,
    BusAnswer,
    BusCall,
    BusFailure,
    DatagramCall,
    HttpCall,
    Message,
    Nothing,
    PageCall,
    Said,
    SocketAnswer,
    SocketCall,
    StoreAnswer,
    StoreCall,
)
from bridges.capture.records import Complete, Leg
from bridges.faults import Fault, Kind
from bridges.xmlrpc_values import Mismatch
from dbus_side.errors import BusRefused
from dbus_side.signatures import Variant
from tests.bridges.fidelity_forms import Form, forms
from tests.bridges.fidelity_recordings import RECORDINGS, WRONG_INPUT, Recording, exchanges
from tests.bridges.fidelity_xenstore import STEMS, conversations
from tests.capture.telling import PEER, Teller, method_of, post, tongue
from xenstore_rpc.records import Request, Response, error_response
from xmlrpc_gateway.dialects import Success
from xmlrpc_gateway.errors import CodecError
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, HttpReply

SQUEEZED_XML, SQUEEZED_JSON = forms("squeezed")
XAPI_XML, XAPI_JSON = forms("xapi")
OLD_XML, OLD_JSON = forms("xenopsd-2012")
XENOPSD_XML, XENOPSD_JSON = forms("xenopsd")
SESSION = "OpaqueRef:6f3a1b2c-1111-2222-3333-444455556666"


def framed(form: Form, name: str, params: list[Any], call_id: Any = 1) -> SocketCall:
    return SocketCall(tongue(form), form.write_call(name, params, call_id))


def answered(form: Form, result: Any) -> SocketAnswer:
    return SocketAnswer(tongue(form), form.encoding.write_success(None, result))


def failed(form: Form, failure: Any) -> SocketAnswer:
    return SocketAnswer(tongue(form), form.encoding.write_failure(None, failure))


# --- recordings of real daemons --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", [pytest.param(each, id=each.file) for each in (*RECORDINGS, *WRONG_INPUT)])
def test_recorded_exchanges_are_typed_as_they_are_translated(recording: Recording) -> None:
    """What our doors read is in the record, typed; what they do not read is told as unread, with its size alone."""
    form, teller, read = recording.form, Teller(recording.form.stem), 0
    for exchange in exchanges(recording):
        if exchange.request is None:
            continue
        answer = CLOSE_SILENTLY if exchange.reply is None else exchange.reply
        request, reply = teller.exchange(
            SocketCall(tongue(form), exchange.request), SocketAnswer(tongue(form), answer), door=Door.FRAMED
        )
        assert request.size == len(exchange.request)
        expected = arguments_in(form, exchange.request)
        if expected is None:
            assert request.complete is Complete.UNREAD
            assert request.note
            assert (request.arguments, request.native, reply.native, reply.result) == (None, None, None, None)
            continue
        read += 1
        assert (request.complete, request.service) == (Complete.COMPLETE, teller.service.name)
        assert request.name == request.method
        method = method_of(form.stem, request.method)
        assert request.arguments is not None
        if not request.redacted:
            assert typed.read_arguments(method, request.arguments) == expected
        if not request.rewritten:
            assert request.native == {"body": exchange.request.decode()}
        if exchange.reply is None:
            assert (reply.outcome, reply.native) == (records.CLOSED, None)
        elif reply.complete is Complete.COMPLETE and not reply.rewritten:
            assert reply.native == {"body": exchange.reply.decode()}
    assert read


def arguments_in(form: Form, body: bytes) -> dict[str, Any] | None:
    try:
        incoming = form.encoding.read_call(body)
        method = form.method(incoming.method)
        return None if method is None else form.of(method).read_arguments(incoming.params)
    except (CodecError, Mismatch):
        return None


@pytest.mark.parametrize("recording", [pytest.param(each, id=each.file) for each in RECORDINGS])
def test_recorded_calls_look_the_same_on_the_bus(recording: Recording) -> None:
    """The same values by another door have the same typed form: replay compares across doors."""
    form, teller, compared = recording.form, Teller(recording.form.stem), 0
    for exchange in exchanges(recording):
        if exchange.request is None or exchange.reply is None:
            continue
        one, said = teller.exchange(
            SocketCall(tongue(form), exchange.request), SocketAnswer(tongue(form), exchange.reply)
        )
        if said.complete is not Complete.COMPLETE:
            continue
        method = method_of(form.stem, one.method)
        incoming, opened = form.encoding.read_call(exchange.request), form.encoding.read_reply(exchange.reply)
        on_bus, laid = teller.on_bus.of(method), form.of(method)
        body = on_bus.write_arguments(laid.read_arguments(incoming.params))
        answer: Message
        if isinstance(opened, Success):
            answer = BusAnswer(on_bus, on_bus.output_signature, on_bus.write_result(laid.read_result(opened.value)))
        else:
            answer = BusFailure(on_bus, on_bus.write_fault(laid.read_failure(opened.description)))
        other, replied = teller.exchange(BusCall(on_bus, "org.x", ":1.7", 4, body), answer, method=method)
        assert (other.arguments, other.method, other.redacted) == (one.arguments, one.method, one.redacted)
        assert (replied.outcome, replied.result, replied.redacted) == (said.outcome, said.result, said.redacted)
        compared += 1
        if replied.fault is not None:
            assert said.fault is not None
            assert (replied.fault.code, replied.fault.argument) == (said.fault.code, said.fault.argument)
    assert compared


@pytest.mark.parametrize("stem", STEMS)
def test_recorded_sessions_of_the_store(stem: str) -> None:
    """Their nodes are kept as they were, beside the typed form."""
    teller, outcomes = Teller(stem), set()
    for each in conversations():
        call = StoreCall(each.request, each.request.function, each.request.request_id)
        request, reply = teller.exchange(call, StoreAnswer(each.response))
        outcomes.add(reply.outcome)
        if request.complete is Complete.UNREAD:
            continue
        assert request.native is not None
        assert request.native["function"] == request.name == each.request.function
        if not request.rewritten:
            assert request.native["nodes"] == [[name, value.decode()] for name, value in each.request.arguments]
        if not reply.rewritten:
            assert reply.native == {"nodes": [[name, value.decode()] for name, value in each.response.results]}
    assert outcomes == {"answered", "fault"}


# --- the native form -------------------------------------------------------------------------------------------------


def test_http_has_its_head_without_secrets() -> None:
    """The line, the headers in their order, the body; a session in the target or a cookie is no one's to know."""
    teller = Teller("squeezed")
    body = SQUEEZED_XML.write_call("get_diagnostics", ["d"])
    call = post(body, f"/x?session_id={SESSION}", (("Host", "x"), ("Cookie", f"session_id={SESSION}")))
    answer = HttpReply(200, (("Content-Type", "text/xml"),), SQUEEZED_XML.encoding.write_success(None, "fine"))
    request, reply = teller.exchange(
        HttpCall(tongue(SQUEEZED_XML), call), SocketAnswer(tongue(SQUEEZED_XML), answer), peer=PEER
    )
    assert request.native is not None
    assert request.native["line"].startswith("POST /x?session_id=")
    assert request.native["headers"][0] == ["Host", "x"]
    assert request.native["body"] == body.decode()
    assert SESSION.encode() not in records.encode(request)
    assert reply.native == {"status": 200, "headers": [["Content-Type", "text/xml"]], "body": answer.body.decode()}
    assert (request.peer, request.rewritten, reply.us) == ({"uid": 0, "pid": 4711}, False, 2999)
    _, reply = teller.exchange(HttpCall(tongue(SQUEEZED_XML), call), SocketAnswer(tongue(SQUEEZED_XML), answer.body))
    assert reply.native == {"status": 200, "headers": [], "body": answer.body.decode()}


def test_a_call_on_the_bus() -> None:
    """Integers of 64 bits are texts there, variants have their signature, bytes are base64."""
    teller = Teller("squeezed")
    method = method_of("squeezed", "reserve_memory_range")
    form = teller.on_bus.of(method)
    arguments = {"dbg": "d", "service_name": "x", "min": 1, "max": 2**62}
    names = [parameter.name for parameter in method.parameters]
    values = {name: list(arguments.values())[index] for index, name in enumerate(names)}
    call = BusCall(form, "org.xen.xcp.squeezed", ":1.7", 12, form.write_arguments(values))
    request, reply = teller.exchange(
        call, BusAnswer(form, form.output_signature, ("id", 2**62)), method=method, peer=":1.7"
    )
    assert request.native == {
        "sender": ":1.7",
        "destination": "org.xen.xcp.squeezed",
        "serial": 12,
        "path": form.path,
        "interface": form.interface,
        "member": form.member,
        "signature": "ssxx",
        "body": ["d", "x", "1", str(2**62)],
    }
    assert (request.peer, request.door) == ({"name": ":1.7"}, "bus")
    assert reply.native == {"signature": "sx", "body": ["id", str(2**62)]}
    assert reply.result == ["id", str(2**62)]


@pytest.mark.parametrize(
    ("signature", "body", "written"),
    [
        ("ybnqiudsog", (1, True, -1, 2, -3, 4, 0.5, "s", "/o", "g"), [1, True, -1, 2, -3, 4, 0.5, "s", "/o", "g"]),
        ("xt", (-(2**63), 2**64 - 1), [str(-(2**63)), str(2**64 - 1)]),
        ("d", (float("inf"),), ["inf"]),
        ("ay", (b"\xff",), [{"b64": "/w=="}]),
        ("a{sv}", ({"a": Variant("x", 7)},), [{"a": {"sig": "x", "v": "7"}}]),
        ("a{xs}", ({7: "a"},), [{"7": "a"}]),
        ("a(sx)", ([("a", 1)],), [[["a", "1"]]]),
        ("v", (Variant("av", [Variant("ay", b"")]),), [{"sig": "av", "v": [{"sig": "ay", "v": {"b64": ""}}]}]),
    ],
)
def test_how_a_body_of_the_bus_looks(signature: str, body: tuple[Any, ...], written: Any) -> None:
    """By its signature."""
    assert natives.bus_body(signature, body) == written


@pytest.mark.parametrize(
    ("body", "native"),
    [
        (("no", 7), {"error": "org.other.Error.Odd", "signature": "sx", "body": ["no", "7"]}),
        (("password=xyzzy", 7), None),
    ],
)
def test_errors_of_others(body: tuple[Any, ...], native: Any) -> None:
    """As they were; one that held a secret has no form that we could write."""
    teller = Teller("squeezed")
    method = method_of("squeezed", "get_diagnostics")
    form = teller.on_bus.of(method)
    refusal = BusRefused("org.other.Error.Odd", "sx", body)
    _, reply = teller.exchange(BusCall(form, "d", ":1.1", 1, ("d",)), BusFailure(form, refusal), method=method)
    assert reply.native == native
    assert b"xyzzy" not in records.encode(reply)
    assert reply.fault is not None
    assert (reply.fault.kind, reply.fault.code, reply.fault.argument) == (
        "Undeclared",
        "org.other.Error.Odd",
        [reply.fault.text, 7],
    )


def test_bytes_that_are_no_text_are_base64() -> None:
    """In the store, whose values are bytes; elsewhere there is no call in such bytes."""
    teller = Teller("squeezed")
    request = Request("echo", "1", (("a", b"\xff"),))
    assert teller.ask(StoreCall(request, "echo", "1")).complete is Complete.UNREAD
    call = StoreCall(Request("balance-memory", "1", ()), "balance-memory", "1")
    _, reply = teller.exchange(call, StoreAnswer(Response((("code", b"\xff"), ("description", b"x")))))
    assert reply.native == {"nodes": [["code", {"b64": "/w=="}], ["description", "x"]]}


@pytest.mark.parametrize("form", [XAPI_XML, XAPI_JSON], ids=lambda form: form.encoding.name)
def test_what_held_a_secret_is_written_anew(form: Form) -> None:
    """By the same translation: it can be read again, and gives the typed form. An id stays with its call."""
    teller = Teller("xapi")
    call = framed(form, "session.login_with_password", ["root", "hunter2!", "2.0", "t"], 77)
    to = form.encoding.read_call(call.body).reply_to
    request, reply = teller.exchange(
        call, SocketAnswer(tongue(form), form.encoding.write_success(to, SESSION)), door=Door.HTTP
    )
    assert (request.rewritten, reply.rewritten) == (True, True)
    assert request.redacted == ["arguments.pwd"]
    assert request.arguments is not None
    assert (request.arguments["uname"], request.arguments["pwd"]) == ("root", "(secret)")
    assert request.native is not None
    assert reply.native is not None
    again = form.encoding.read_call(request.native["body"].encode())
    assert again.reply_to == to
    assert form.of(method_of("xapi", again.method)).read_arguments(again.params)["pwd"] == "(secret)"
    opened = form.encoding.read_reply(reply.native["body"].encode())
    assert opened == Success(reply.result)
    assert reply.result.startswith("OpaqueRef:5ec3e700-")
    if to is not None:
        assert json.loads(reply.native["body"])["id"] == 77


def test_calls_of_version_1_stay_so() -> None:
    """xapi answers in the version that was asked in, and so do the records."""
    body = json.dumps({"method": "session.logout", "params": [SESSION], "id": 5}).encode()
    request = Teller("xapi").ask(SocketCall(tongue(XAPI_JSON), body))
    assert request.rewritten
    assert request.native is not None
    assert json.loads(request.native["body"]) == {
        "method": "session.logout",
        "params": [(request.arguments or {})["session_id"]],
        "id": 5,
    }


def test_a_texts_id_goes_with_its_call() -> None:
    """A message that is written anew has none: whoever made the id may have put anything in it."""
    body = json.dumps({"method": "session.logout", "params": [SESSION], "id": f"of {SESSION}"}).encode()
    failure = XAPI_JSON.encoding.write_failure(XAPI_JSON.encoding.read_call(body).reply_to, ["X", SESSION])
    call, answer = SocketCall(tongue(XAPI_JSON), body), SocketAnswer(tongue(XAPI_JSON), failure)
    for record in Teller("xapi").exchange(call, answer):
        assert record.native is not None
        assert json.loads(record.native["body"])["id"] == 0
        assert SESSION.encode() not in records.encode(record)


@pytest.mark.parametrize(
    ("form", "call", "kept"),
    [
        (SQUEEZED_JSON, b'{"method":"get_diagnostics","params":["d","surplus"],"id":1}', ["d"]),
        (SQUEEZED_JSON, b'{"method":"get_diagnostics","params":["d"],"id":1,"more":"surplus"}', ["d"]),
        (OLD_JSON, b'{"method":"DEBUG.shutdown","params":["d",null],"id":1} surplus', ["d", None]),
        (
            XENOPSD_JSON,
            b'{"method":"VM.list","params":[{"debug_info":"d","unit":null,"password":"surplus"}],"id":1}',
            [{"debug_info": "d", "unit": None}],
        ),
        (SQUEEZED_XML, SQUEEZED_XML.write_call("get_diagnostics", ["d"]) + b"<!-- surplus -->", ["d"]),
    ],
)
def test_what_the_interface_passes_over_is_not_kept(form: Form, call: bytes, kept: list[Any]) -> None:
    """Nobody has looked at it, so it may be a secret."""
    request = Teller(form.stem).ask(SocketCall(tongue(form), call))
    assert request.complete is Complete.COMPLETE
    assert b"surplus" in call
    assert b"surplus" not in records.encode(request)
    assert (request.rewritten, request.redacted) == (True, [])
    assert "left out" in request.note
    assert request.native is not None
    assert form.encoding.read_call(request.native["body"].encode()).params == kept


@pytest.mark.parametrize(
    "params", [["d", "svc", "0x10"], ["d", "svc", 16], ["d", "svc", "16"], ["d", "svc", "1_6"]], ids=str
)
def test_other_spellings_of_a_value_are_kept(params: list[Any]) -> None:
    """They hide nothing."""
    call = framed(SQUEEZED_XML, "reserve_memory", params)
    request = Teller("squeezed").ask(call)
    assert (request.rewritten, request.native) == (False, {"body": call.body.decode()})
    assert (request.arguments or {})["kib"] == "16"


# --- outcomes --------------------------------------------------------------------------------------------------------

FAULTS = [
    (SQUEEZED_XML, ["Unknown_reservation", "r1"], records.Fault("Declared", "Unknown_reservation", "", "r1")),
    (SQUEEZED_JSON, ["Unknown_reservation", "r1"], records.Fault("Declared", "Unknown_reservation", "", "r1")),
    (SQUEEZED_JSON, ["Odd", 3], records.Fault("Undeclared", "Odd", "", [3])),
    (SQUEEZED_XML, "exception Not_found", records.Fault("Undeclared", "exception Not_found", "", None)),
]


@pytest.mark.parametrize(("form", "failure", "fault"), FAULTS, ids=["xml", "json", "undeclared", "exception"])
def test_failures_of_rpclib(form: Form, failure: Any, fault: records.Fault) -> None:
    """By code and typed arguments, or as they came."""
    call = framed(form, "delete_reservation", ["d", "svc", "r1"])
    _, reply = Teller("squeezed").exchange(call, failed(form, failure))
    assert reply.outcome == "fault"
    assert reply.fault is not None
    assert (reply.fault.kind, reply.fault.code, reply.fault.argument) == (fault.kind, fault.code, fault.argument)
    assert reply.fault.text.startswith(fault.code)
    assert reply.native is not None
    assert reply.complete is Complete.COMPLETE


@pytest.mark.parametrize("form", [XAPI_XML, XAPI_JSON], ids=lambda form: form.encoding.name)
def test_failures_of_xapi(form: Form) -> None:
    """`Status: Failure` with a code and texts; a reference in them becomes its token."""
    call = framed(form, "VM.get_record", [SESSION, "OpaqueRef:aa"])
    request, reply = Teller("xapi").exchange(call, failed(form, ["HANDLE_INVALID", "session", SESSION]))
    assert request.arguments is not None
    assert (reply.outcome, reply.redacted) == ("fault", ["fault.text", "fault.argument[*]"])
    assert reply.fault is not None
    assert (reply.fault.kind, reply.fault.code) == ("Declared", "HANDLE_INVALID")
    assert reply.fault.argument == ["session", request.arguments["session_id"]]
    assert SESSION.encode() not in records.encode(request) + records.encode(reply)


def test_failures_in_the_store() -> None:
    """An error node by the interface's table; an answer that is none of the function's is unread."""
    teller = Teller("squeezed")
    nodes = (("session_id", b"s"), ("reservation_id", b"r"))
    call = StoreCall(Request("delete-reservation", "1", nodes), "delete-reservation", "1")
    _, reply = teller.exchange(call, StoreAnswer(error_response("1002", "r")))
    assert reply.fault == records.Fault("Declared", "Unknown_reservation", "Unknown_reservation: r", "r")
    assert reply.native == {"nodes": [["code", "1002"], ["description", "r"]]}
    nodes = (("session_id", b"s"), ("kib", b"1"))
    call = StoreCall(Request("reserve-memory", "1", nodes), "reserve-memory", "1")
    _, reply = teller.exchange(call, StoreAnswer(Response((("other", b"x"),))))
    assert (reply.outcome, reply.complete) == ("unknown", Complete.UNREAD)
    assert reply.note == "result.reservation_id: does not fit"


def test_errors_on_the_bus_and_faults_of_ours() -> None:
    """They keep their kinds."""
    teller = Teller("squeezed")
    method = method_of("squeezed", "balance_memory")
    form = teller.on_bus.of(method)
    call = BusCall(form, "d", ":1.1", 0, ("d",))
    for fault in (Fault(Kind.BUSY, "too many"), Fault(Kind.DECLARED, "x: y", code="Internal_error", argument="y")):
        _, reply = teller.exchange(call, BusFailure(form, form.write_fault(fault)), method=method)
        assert reply.fault == typed.write_fault(method, fault)
        _, said = teller.exchange(call, Said(fault), method=method)
        assert (said.fault, said.outcome, said.native, said.size) == (reply.fault, "fault", None, 0)
    _, reply = teller.exchange(call, BusAnswer(form, "s", ("surplus",)), method=method)
    assert (reply.outcome, reply.complete, reply.native) == ("unknown", Complete.UNREAD, None)
    assert "surplus" not in reply.note


def test_other_ends() -> None:
    """A silent close, a page, a datagram, an HTTP error that is no reply."""
    teller = Teller("squeezed")
    call = framed(SQUEEZED_XML, "balance_memory", ["d"])
    _, reply = teller.exchange(call, SocketAnswer(tongue(SQUEEZED_XML), CLOSE_SILENTLY))
    assert (reply.outcome, reply.native, reply.complete) == ("closed", None, Complete.COMPLETE)
    _, reply = teller.exchange(call, SocketAnswer(tongue(SQUEEZED_XML), HttpReply(503, (), b"<html>busy")))
    assert (reply.outcome, reply.complete) == ("unknown", Complete.UNREAD)
    assert reply.note == "no reply of the service: HTTP status 503"
    request, reply = teller.exchange(PageCall(f"GET /export/{SESSION}"), Nothing())
    assert request.name.startswith("GET /export/OpaqueRef:5ec3e700-")
    assert (request.complete, request.method, reply.complete) == (Complete.UNREAD, "", Complete.NO_RESULT)
    teller = Teller("perfmon")
    request, reply = teller.exchange(DatagramCall(b"refresh"), Nothing())
    assert (request.method, request.arguments, request.native) == ("refresh", {}, {"payload": "refresh"})
    assert (reply.outcome, reply.complete) == ("answered", Complete.COMPLETE)
    request, reply = teller.exchange(DatagramCall(b"sing\xff"), Nothing())
    assert (request.method, request.complete, reply.outcome) == ("", Complete.UNREAD, "unknown")


# --- legs ------------------------------------------------------------------------------------------------------------


def test_a_leg_with_the_callers_bytes_leaves_them_out() -> None:
    """Both ways; the caller's records have them."""
    teller = Teller("squeezed")
    call, answer = framed(SQUEEZED_XML, "balance_memory", ["d"]), answered(SQUEEZED_XML, None)
    caller = teller.ask(call, call="7")
    backend = teller.ask(AS_CALLER, call="7", leg=Leg.BACKEND, mono=500_000)
    assert (backend.method, backend.effect, backend.id) == (caller.method, caller.effect, caller.id)
    assert (backend.arguments, backend.native, backend.note) == (None, None, "as the caller's")
    said = teller.answer("7", AS_CALLER, leg=Leg.BACKEND, mono=900_000)
    assert said is not None
    assert (said.re, said.us, said.outcome, said.note) == (backend.seq, 400, "unknown", "as the caller's")
    left = teller.answer("7", answer)
    assert left is not None
    assert (left.re, left.outcome, left.result) == (caller.seq, "answered", None)
    assert teller.answer("7", answer) is None


def test_a_leg_whose_answer_is_another_than_the_callers() -> None:
    """Its call was the caller's, byte for byte, and says how its answer is read."""
    teller = Teller("squeezed")
    teller.ask(framed(SQUEEZED_XML, "get_diagnostics", ["d"]), call="7")
    teller.ask(AS_CALLER, call="7", leg=Leg.BACKEND)
    said = teller.answer("7", answered(SQUEEZED_XML, "fine"), leg=Leg.BACKEND)
    assert said is not None
    assert (said.method, said.result) == ("get_diagnostics", "fine")


def test_a_candidate_is_asked_when_the_caller_has_gone() -> None:
    """It is a leg of the same call."""
    teller = Teller("squeezed")
    method = method_of("squeezed", "get_diagnostics")
    form = teller.on_bus.of(method)
    teller.exchange(framed(SQUEEZED_XML, "get_diagnostics", ["d"]), answered(SQUEEZED_XML, "x"), call="7")
    call = BusCall(form, "org.xen.xcp.squeezed.Candidate", "", 0, ("d",))
    teller.ask(call, call="7", leg=Leg.CANDIDATE, method=method)
    said = teller.answer("7", BusAnswer(form, "s", ("fine",)), leg=Leg.CANDIDATE)
    assert said is not None
    assert (said.id, said.leg, said.result) == ("7", Leg.CANDIDATE, "fine")


def test_an_answer_without_its_request_is_none() -> None:
    """It was there before the capture, was answered, or is one of too many that are open; the oldest is forgotten."""
    teller = Teller("squeezed", open_limit=2)
    call, answer = framed(SQUEEZED_XML, "balance_memory", ["d"]), answered(SQUEEZED_XML, None)
    assert teller.answer("0", answer) is None
    for name in ("1", "2", "3"):
        teller.ask(call, call=name)
    assert [teller.answer(name, answer) is None for name in ("1", "2", "3", "3")] == [True, False, False, True]


def test_calls_that_are_over_take_no_room() -> None:
    """A long poll is remembered however many calls come and go meanwhile."""
    teller = Teller("squeezed", open_limit=2)
    call, answer = framed(SQUEEZED_XML, "balance_memory", ["d"]), answered(SQUEEZED_XML, None)
    teller.ask(call, call="poll")
    for _ in range(5):
        teller.exchange(call, answer)
    assert teller.answer("poll", answer) is not None


def test_what_is_too_large_is_not_read() -> None:
    """Its size is kept, of a call's answer too: it may repeat what was not read."""
    teller = Teller("squeezed", body_limit=300)
    short, long = (framed(SQUEEZED_XML, "get_diagnostics", [text]) for text in ("d", "d" * 300))
    request, reply = teller.exchange(long, answered(SQUEEZED_XML, "about d"))
    assert (request.complete, request.size, request.arguments, request.native) == (
        Complete.CUT, len(long.body), None, None,
    )  # fmt: skip
    assert (reply.outcome, reply.complete, reply.result) == ("answered", Complete.UNREAD, None)
    assert "about" not in str(reply)
    answer = answered(SQUEEZED_XML, "x" * 300)
    request, reply = teller.exchange(short, answer)
    assert (reply.outcome, reply.complete, reply.size) == ("unknown", Complete.CUT, answer.size)


def test_what_was_gone_before_it_was_read() -> None:
    """Observed exchanges of the store: who and what, not with what."""
    teller = Teller("squeezed")
    request = teller.ask(StoreCall(None, "login", "id-1"), call="1", leg=Leg.OBSERVED)
    assert (request.complete, request.method, request.arguments) == (Complete.NO_ARGUMENTS, "login", None)
    assert request.native == {"function": "login", "request_id": "id-1", "nodes": []}
    response = StoreAnswer(Response((("session_id", b"s1"),)))
    _, reply = teller.exchange(StoreCall(None, "login", "id-2"), response, leg=Leg.CALLER)
    assert (reply.outcome, reply.complete) == ("answered", Complete.COMPLETE)
    reply = teller.answer("1", StoreAnswer(None), leg=Leg.OBSERVED)
    assert reply is not None
    assert (reply.outcome, reply.complete) == ("unknown", Complete.NO_RESULT)
