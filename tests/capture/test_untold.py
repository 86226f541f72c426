"""What never stands in a record: secrets, and anything of a message that was not read, whatever bytes come."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridges.calls import Door, Tagged
from bridges.capture import records
from bridges.capture.messages import (
    BusAnswer,
    BusCall,
    BusFailure,
    DatagramCall,
    HttpCall,
    Message,
    PageCall,
    Said,
    SocketAnswer,
    SocketCall,
    StoreAnswer,
    StoreCall,
)
from bridges.capture.records import Complete
from bridges.capture.unreadable import misfit_argument
from bridges.comparison import has_secrets
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Basic, DictOf, ListOf, Method, Option, Record, TupleOf, Type, Union
from bridges.xmlrpc_values import Mismatch, UnknownTag
from dbus_side.errors import BusRefused
from dbus_side.signatures import Variant
from tests.bridges.fidelity_forms import Form, forms
from tests.bridges.fidelity_recordings import TODAY_JSON, TODAY_XML
from tests.bridges.fidelity_types import arguments_of
from tests.capture.telling import Teller, leaks, method_of, post, tongue
from xenstore_rpc.records import Request, Response, error_response
from xmlrpc_gateway.http_messages import HttpReply

SECRETS = ("correct-horse-battery", 'pa"ss\\<w&>/é %7')
FEW = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
SQUEEZED_XML, SQUEEZED_JSON = forms("squeezed")
STORAGE_XML, STORAGE_JSON = forms("storage")
XAPI_XML, XAPI_JSON = forms("xapi")
_, OLD_JSON = forms("xenopsd-2012")


# --- what cannot be read ---------------------------------------------------------------------------------------------

MARK = "Sesame7"
NO_CALL = "cannot be read: no message of this protocol"
UNREAD = [
    (SQUEEZED_XML, MARK, "cannot be read: no message of this protocol"),
    (SQUEEZED_XML, f"<a>{MARK}</a>", NO_CALL),
    (SQUEEZED_XML, f"<!DOCTYPE {MARK}><methodCall/>", "cannot be read: a DOCTYPE, an encoding or NUL"),
    (SQUEEZED_JSON, f'{{"method":"{MARK}', "cannot be read: no JSON"),
    (SQUEEZED_JSON, f'[{{"method":"{MARK}"}}]', "cannot be read: several calls in one message"),
    (SQUEEZED_JSON, f'{{"method":"get_diagnostics","params":"{MARK}","id":1}}', NO_CALL),
    (
        STORAGE_JSON,
        f'{{"method":"SR.attach","params":[{{"{MARK}":1,"{MARK}":2}}],"id":1}}',
        "cannot be read: a member occurs twice",
    ),
    (SQUEEZED_JSON, '{"method":"no.such","params":[],"id":1}', "no method of the service"),
    (XAPI_XML, XAPI_XML.write_call("system.listMethods", []).decode(), "no method of the service"),
    (
        SQUEEZED_JSON,
        f'{{"method":"reserve_memory","params":["d","s","{MARK}"],"id":1}}',
        "arguments.kib: expected int64",
    ),
    (SQUEEZED_JSON, f'{{"method":"reserve_memory","params":["{MARK}"]}}', NO_CALL),
    (XAPI_XML, XAPI_XML.write_call("VM.start", [MARK]).decode(), "arguments: expected 3 arguments, got 0"),
    (
        TODAY_JSON,
        f'{{"method":"VM.stat","params":[{{"debug_info":"{MARK}"}}],"id":1}}',
        "arguments: Expecting named argument 'id'",
    ),
    (
        TODAY_JSON,
        f'{{"method":"VM.add","params":[{{"debug_info":"d","vm":{{"id":["{MARK}"]}}}}],"id":1}}',
        "arguments.vm.id: expected string",
    ),
    (
        TODAY_XML,
        TODAY_XML.write_call("VM.add", [{"debug_info": "d", "vm": {"id": "x", "name": MARK}}]).decode(),
        "arguments.vm: No value found for key: 'ssidref' when unmarshalling 't'",
    ),
    (
        STORAGE_JSON,
        f'{{"method":"SR.attach","params":[{{"dbg":"d","sr":"s","device_config":{{"{MARK}":["{MARK}"]}}}}],"id":1}}',
        "arguments.device_config{*}: expected string",
    ),
    (
        TODAY_XML,
        f"<methodCall><methodName>x</methodName><params><param><value><i4>{MARK}</i4></value></param></params></methodCall>",
        "cannot be read: a number, boolean, nil or base64 that is none",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("form", "body", "note"), UNREAD, ids=[each[2][:40] for each in UNREAD])
def test_what_cannot_be_read_is_told_without_a_byte_of_it(form: Form, body: str, note: str) -> None:
    """What was wrong and where, in the interface's words; nor is anything kept of the answer, which may repeat it."""
    teller = Teller(form.stem)
    call = HttpCall(tongue(form), post(body.encode()))
    failure = ["Internal_error", f"what do you mean by {MARK}?"]
    for answer in (
        SocketAnswer(tongue(form), form.encoding.write_failure(None, failure)),
        SocketAnswer(tongue(form), form.encoding.write_success(None, MARK)),
        SocketAnswer(tongue(form), HttpReply(400, (), MARK.encode())),
        Said(Fault(Kind.INVALID_ARGUMENT, f"unreadable call: {MARK}")),
    ):
        request, reply = teller.exchange(call, answer)
        assert (request.complete, request.note, request.size) == (Complete.UNREAD, note, len(body.encode()))
        assert (request.arguments, request.native, reply.native, reply.result) == (None, None, None, None)
        assert leaks(request, MARK) == leaks(reply, MARK) == []
        assert reply.complete is Complete.UNREAD
    assert reply.fault == records.Fault("InvalidArgument")


def test_reasons_that_show_a_value_are_not_repeated() -> None:
    """A key that occurs twice, a tag that is none: both are the caller's words."""
    method = method_of("storage", "SR.attach")
    for mismatch, told in (
        (Mismatch(f"key '{MARK}' occurs twice"), "does not fit"),
        (UnknownTag(MARK, MARK), "a tag that is not written down"),
        (Mismatch("x", expected="int", value=MARK), "expected int"),
    ):
        mismatch.path = [MARK, "device_config"]
        assert str(misfit_argument(method, mismatch)) == f"arguments.device_config{{*}}: {told}"
        mismatch.path = [MARK]
        assert str(misfit_argument(method, mismatch)) == f"arguments: {told}"


def test_a_failure_of_what_was_not_read_keeps_its_code() -> None:
    """Where the interface has it: a rehearsal compares codes. Any other code may be a sentence with a secret in it."""
    teller = Teller("xapi")
    call = SocketCall(tongue(XAPI_XML), XAPI_XML.write_call("VM.start", [MARK]))
    for failure, fault in (
        (["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", MARK], ("Declared", "MESSAGE_PARAMETER_COUNT_MISMATCH")),
        (["MESSAGE_METHOD_UNKNOWN", MARK], ("UnknownMethod", "MESSAGE_METHOD_UNKNOWN")),
        ([MARK], ("Undeclared", "")),
    ):
        _, reply = teller.exchange(call, SocketAnswer(tongue(XAPI_XML), XAPI_XML.encoding.write_failure(None, failure)))
        assert reply.outcome == "fault"
        assert reply.fault == records.Fault(*fault)
        assert leaks(reply, MARK) == []


def test_unknown_names_are_cut_and_cleaned() -> None:
    """A hundred printable characters, without what looks like a secret."""
    teller = Teller("squeezed")
    for name, kept in (
        ("no.such" * 40, ("no.such" * 40)[:100]),
        ("a\x1b[31m\nb", "a[31mb"),
        ("password=hunter2", "password=(secret)"),
    ):
        request = teller.ask(SocketCall(tongue(SQUEEZED_JSON), SQUEEZED_JSON.write_call(name, [])))
        assert (request.name, request.method) == (kept, "")
    request = teller.ask(StoreCall(Request("no-such", "1", (("a", MARK.encode()),)), "no-such", "1"))
    assert (request.name, request.note) == ("no-such", "no function of the service")
    assert leaks(request, MARK) == []


@pytest.mark.parametrize(
    ("nodes", "note"),
    [
        ((("session_id", b"s"),), "missing argument kib"),
        ((("session_id", b"s"), ("kib", MARK.encode())), "arguments.kib: does not fit"),
        ((("session_id", MARK.encode() + b"\xff"), ("kib", b"1")), "arguments.session_id: does not fit"),
    ],
)
def test_requests_in_the_store_that_cannot_be_read(nodes: tuple[tuple[str, bytes], ...], note: str) -> None:
    """The declared name of what does not fit, and no value."""
    call = StoreCall(Request("reserve-memory", "1", nodes), "reserve-memory", "1")
    request, reply = Teller("squeezed").exchange(call, StoreAnswer(error_response("1002", MARK)))
    assert (request.complete, request.note, request.native) == (Complete.UNREAD, note, None)
    assert reply.fault == records.Fault("Declared", "Unknown_reservation")
    assert leaks(request, MARK) == leaks(reply, MARK) == []


def test_surplus_nodes_are_not_kept() -> None:
    """Neither in a request nor in a response, be it an error."""
    error = StoreAnswer(Response((*error_response("2", "no").results, ("more", MARK.encode()))))
    balance = StoreCall(Request("balance-memory", "1", ()), "balance-memory", "1")
    _, reply = Teller("squeezed").exchange(balance, error)
    assert reply.native == {"nodes": [["code", "2"], ["description", "no"]]}
    assert leaks(reply, MARK) == []
    call = StoreCall(Request("login", "1", (("service_name", b"x"), ("more", MARK.encode()))), "login", "1")
    answer = StoreAnswer(Response((("session_id", b"s"), ("more", MARK.encode()))))
    request, reply = Teller("squeezed").exchange(call, answer)
    assert request.native == {"function": "login", "request_id": "1", "nodes": [["service_name", "x"]]}
    assert reply.native == {"nodes": [["session_id", reply.result]]}
    assert leaks(request, MARK) == leaks(reply, MARK) == []


def test_calls_on_the_bus_that_cannot_be_read() -> None:
    """A member that is not written down, a body that is none of its signature, a method that nobody knows."""
    teller = Teller("storage")
    method = method_of("storage", "SR.attach")
    form = teller.on_bus.of(method)
    values = {p.name: planted(p.type, "x") for p in method.parameters}
    body = form.write_arguments(values)
    for wrong, known, note in (
        (body[:-1], method, "its body is not of its signature"),
        (body, None, "no method of the service"),
    ):
        request, _ = teller.exchange(BusCall(form, "d", ":1.1", 1, wrong), Said(Fault(Kind.BUSY, MARK)), method=known)
        assert (request.complete, request.note) == (Complete.UNREAD, note)
    method = method_of("xapi", "VM.start")
    form = Teller("xapi").on_bus.of(method_of("xapi", "session.login_with_password"))
    options = {"version": Variant("s", "1"), MARK: Variant("s", MARK)}
    request = Teller("xapi").ask(
        BusCall(form, "d", ":1.1", 1, ("root", MARK, options)),
        method=method_of("xapi", "session.login_with_password"),
    )
    assert (request.complete, request.note) == (Complete.UNREAD, "arguments does not fit the interface")
    assert leaks(request, MARK) == []


# --- secrets ---------------------------------------------------------------------------------------------------------


class Secretive(NamedTuple):
    stem: str
    method: Method


def planted(kind: Type, text: str) -> Any:
    """A value of the type with that text wherever one can stand."""
    match kind:
        case Basic("string" | "char" | "datetime" | "any"):
            return text
        case Basic(name):
            return {"bool": True, "float": 0.5, "unit": None}.get(name, 1)
        case Option(item):
            return planted(item, text)
        case ListOf(item):
            return [planted(item, text)]
        case TupleOf(items):
            return tuple(planted(item, text) for item in items)
        case DictOf(item, key):
            name = planted(key, "k")
            return {name.tag if isinstance(name, Tagged) else str(name): planted(item, text)}
        case Record(fields):
            return {f.name: planted(model.bare(f.type), text) for f in fields if f.required}
        case Union(constructors):
            first = constructors[0]
            return Tagged(first.name, None if first.argument is None else planted(first.argument, text))
    return {}


@cache
def secretive() -> tuple[Secretive, ...]:
    """Every method that has a secret parameter or result."""
    return tuple(
        Secretive(stem, method)
        for stem in model.available()
        for method in model.load(stem).methods()
        if has_secrets(method) and not method.name.startswith("Async.")
    )


def arguments_with(method: Method, secret: str) -> dict[str, Any]:
    return {
        p.name: planted(p.type, secret if p.secret else "x")
        for p in method.parameters
        if planted(p.type, "x") is not None
    }


def failure_with(form: Form, secret: str) -> Any:
    if form.translation.dialect.failure_codes:
        return ["FIELD_TYPE_ERROR", "pwd", f"got {secret}!"]
    return ["Internal_error", f"Idl.MarshalError(Expected int, got 'S({secret})')"]


def answers_with(form: Form, method: Method, secret: str) -> Iterator[Message]:
    """Answers that repeat the secret: in a result, in a failure, in a fault of ours."""
    encoding, laid = form.encoding, form.of(method)
    result = planted(method.result, f"have {secret}." if not method.secret_result else secret)
    yield SocketAnswer(tongue(form), HttpReply(200, (), encoding.write_success(None, laid.write_result(result))))
    if not any(p.secret for p in method.parameters):
        return  # nobody has sent it
    yield SocketAnswer(tongue(form), encoding.write_failure(None, failure_with(form, secret)))
    yield SocketAnswer(tongue(form), encoding.write_failure(None, [f"what is {secret}"]))
    yield SocketAnswer(tongue(form), HttpReply(500, (("X", secret),), secret.encode()))
    yield Said(Fault(Kind.IN_DOUBT, f"{method.name}: {secret} may have been executed"))


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("stem", sorted({each.stem for each in secretive()}))
def test_secret_arguments_and_results_are_never_told(stem: str, secret: str) -> None:
    """Of all methods that have such, at every door, in whatever the answer repeats; the call is read all the same."""
    teller = Teller(stem)
    for method in (each.method for each in secretive() if each.stem == stem):
        arguments = arguments_with(method, secret)
        for form in forms(stem):
            body = form.write_call(method.name, form.of(method).write_arguments(arguments))
            for answer in answers_with(form, method, secret):
                call = HttpCall(tongue(form), post(body, f"/{form.stem}?pw={secret}"))
                request, reply = teller.exchange(call, answer, door=Door.HTTP)
                assert request.complete is Complete.COMPLETE, request.note
                assert (leaks(request, secret), leaks(reply, secret)) == ([], []), method.name
        on_bus = teller.on_bus.of(method)
        call = BusCall(on_bus, "d", ":1.1", 1, on_bus.write_arguments(arguments))
        result = planted(method.result, f"have {secret}." if not method.secret_result else secret)
        refusal = BusRefused("org.xen.xcp.Error.Internal", "s", (f"got {secret}",))
        other = BusRefused("org.other.Odd", "ssv", ("x", secret, Variant("s", secret)))
        failures = BusFailure(on_bus, refusal), BusFailure(on_bus, other)
        done = BusAnswer(on_bus, on_bus.output_signature, on_bus.write_result(result))
        for told in (done, *failures) if any(p.secret for p in method.parameters) else (done,):
            request, reply = teller.exchange(call, told, method=method)
            assert request.complete is Complete.COMPLETE, request.note
            assert (leaks(request, secret), leaks(reply, secret)) == ([], []), method.name


def test_secrets_of_one_leg_are_known_in_the_others() -> None:
    """The caller's leg had it; the daemon's answer repeats it in another protocol."""
    secret = SECRETS[0]
    teller, method = Teller("storage"), method_of("storage", "SR.attach")
    body = STORAGE_XML.write_call(method.name, STORAGE_XML.of(method).write_arguments(arguments_with(method, secret)))
    teller.ask(SocketCall(tongue(STORAGE_XML), body), call="7")
    form = teller.on_bus.of(method)
    plain = BusCall(form, "d", ":1.1", 1, form.write_arguments(arguments_with(method, "other")))
    teller.ask(plain, call="7", leg=records.Leg.BACKEND, method=method)
    refusal = BusRefused("org.xen.xcp.storage.Error.Internal_error", "ss", (f"x {secret}", f"x {secret}"))
    reply = teller.answer("7", BusFailure(form, refusal), leg=records.Leg.BACKEND)
    assert leaks(reply, secret) == []
    assert reply is not None
    assert reply.native is not None
    assert reply.native["body"] == ["x (secret)", "x (secret)"]


# --- whatever comes --------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, body: bytes, keep: int) -> bytes:
    """A message that ends too early, has something in between, or a byte of another value; all after `keep` bytes."""
    at = draw(st.integers(keep, len(body) - 1))
    match draw(st.sampled_from(("cut", "insert", "change", "double"))):
        case "cut":
            return body[:at]
        case "insert":
            return body[:at] + draw(st.binary(min_size=1, max_size=6)) + body[at:]
        case "double":
            return body[:at] + body
    return body[:at] + draw(st.binary(min_size=1, max_size=1)) + body[at + 1 :]


CALLS = [
    (form, method_of(form.stem, name))
    for form in (XAPI_XML, XAPI_JSON)
    for name in ("session.login_with_password", "SR.create")
] + [(form, method_of("storage", "SR.attach")) for form in (STORAGE_XML, STORAGE_JSON)]


@pytest.mark.parametrize(("form", "method"), CALLS, ids=lambda each: getattr(each, "name", ""))
def test_a_secret_in_a_call_that_is_malformed_behind_it(form: Form, method: Method) -> None:
    """Whether it can be read or not, and whatever the daemon says to it."""
    secret, teller = SECRETS[0], Teller(form.stem)
    body = form.write_call(method.name, form.of(method).write_arguments(arguments_with(method, secret)))
    keep = body.rindex(secret.encode()) + len(secret) + (len("</value>") if form.encoding.name == "xml" else 1)
    unread = set()

    @FEW
    @given(damaged(body, keep), st.integers(0, 4))
    def check(wrong: bytes, which: int) -> None:
        answer = list(answers_with(form, method, secret))[which]
        request, reply = teller.exchange(HttpCall(tongue(form), post(wrong)), answer)
        unread.add(request.complete)
        assert (leaks(request, secret), leaks(reply, secret)) == ([], [])

    check()
    assert Complete.UNREAD in unread


@FEW
@given(st.data(), st.sampled_from((SQUEEZED_XML, SQUEEZED_JSON, OLD_JSON, XAPI_XML, XAPI_JSON, TODAY_XML, TODAY_JSON)))
def test_any_bytes_on_a_socket(data: st.DataObject, form: Form) -> None:
    """They are recorded or told as unread, never with an exception, and their size is kept."""
    method = data.draw(st.sampled_from([method for each, method in CALLS if each.stem == form.stem] or [None]))
    name = "VM.stat" if method is None else method.name
    valid = form.write_call(name, [{"debug_info": "d", "id": "x"}])
    reply = form.encoding.write_success(None, {"a": [1, "x"]})
    call = data.draw(st.binary(max_size=40) | damaged(valid, 0))
    said = data.draw(st.binary(max_size=40) | damaged(reply, 0) | damaged(form.encoding.write_failure(None, ["a"]), 0))
    request, heard = Teller(form.stem).exchange(HttpCall(tongue(form), post(call)), SocketAnswer(tongue(form), said))
    assert (request.size, heard.size) == (len(call), len(said))


NODES = st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=6)), max_size=3).map(tuple)


@FEW
@example("echo", "\udcff", (("\udcff", b"x"),), (("\udcff", b"\xff"),))
@given(st.sampled_from(("echo", "login", "reserve-memory", "no\udcff")), st.text(), NODES, NODES)
def test_any_nodes_in_the_store(function: str, request_id: str, nodes: Any, answers: Any) -> None:
    """Names whose bytes are no UTF-8 too."""
    call = StoreCall(Request(function, request_id, nodes), function, request_id)
    Teller("squeezed").exchange(call, StoreAnswer(Response(answers)))


@settings(FEW, max_examples=60)
@given(st.data(), st.sampled_from(("VM.add", "UPDATES.get", "VM.migrate")))
def test_any_body_on_the_bus(data: st.DataObject, name: str) -> None:
    """Of the signature or not."""
    teller, method = Teller("xenopsd"), method_of("xenopsd", name)
    form = teller.on_bus.of(method)
    body = form.write_arguments(data.draw(arguments_of(method)))
    junk = data.draw(
        st.lists(st.text() | st.integers() | st.none() | st.just({}) | st.just([[]]), max_size=3).map(tuple)
    )
    for asked in (body, junk):
        teller.exchange(
            BusCall(form, "d", ":1.1", 1, asked), BusAnswer(form, data.draw(st.text(max_size=3)), junk), method=method
        )
    teller.exchange(BusCall(form, "d", "", 0, body), BusFailure(form, BusRefused("x", "s", junk)), method=method)


@FEW
@given(st.binary(max_size=30), st.text(max_size=30))
def test_any_datagram_and_page(payload: bytes, head: str) -> None:
    """And answers of another protocol, which nobody should hand over."""
    teller = Teller("perfmon")
    teller.exchange(DatagramCall(payload), SocketAnswer(tongue(SQUEEZED_XML), payload))
    teller.exchange(PageCall(head), SocketAnswer(tongue(SQUEEZED_XML), payload))


def test_texts_that_were_no_utf8_are_escaped() -> None:
    """A target or header with such bytes, a fault that names a file: a line of JSON cannot say them."""
    teller = Teller("squeezed")
    fault = Fault(Kind.INTERNAL, "odd \udcff text")
    body = SQUEEZED_XML.write_call("balance_memory", ["d"])
    call = HttpCall(tongue(SQUEEZED_XML), post(body, "/\udcff", (("Host", "\udcff"),)))
    request, reply = teller.exchange(call, Said(fault))
    assert request.native is not None
    assert request.native["line"] == "POST /\\udcff HTTP/1.1"
    assert reply.fault == records.Fault("Internal", "", "odd \\udcff text")
    assert teller.ask(PageCall("GET /\udcff")).name == "GET /"
