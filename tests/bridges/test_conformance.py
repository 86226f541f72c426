"""Recorded exchanges of real daemons: wire to typed to D-Bus and back must give the recorded wire again."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridges import dbus_translation, xenstore_translation, xmlrpc_translation
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from dbus_side.errors import BusRefused, SignatureMismatch
from dbus_side.signatures import Variant, encoder
from xenstore_rpc.packets import Op, PacketReader
from xenstore_rpc.records import Request, Response
from xmlrpc_gateway import dialects, xmlrpc_codec
from xmlrpc_gateway.errors import CodecError, NotXmlText

OverXml = Callable[[Any], Any]
OverBus = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]
Same = Callable[[Any, Any], bool]

GOLDEN = Path(__file__).parents[1] / "golden"
BUS = {name: dbus_translation.Translation(model.load(name)) for name in model.available()}
XML = xmlrpc_translation.Translation(dialects.DIALECTS["rpclib"])


class Exchange(NamedTuple):
    """One recorded HTTP exchange: the bodies; an empty response was a silent close."""

    name: str
    request: bytes
    response: bytes


def body(message: bytes) -> bytes:
    """The body of a recorded message, whatever ends its lines, cut where the next message begins."""
    _, _, rest = message.replace(b"\n\nPOST", b"").partition(b"\r\n\r\n" if b"\r\n\r\n" in message else b"\n\n")
    return rest.partition(b"POST / HTTP/1.1")[0]


def recorded(*names: str, origin: str = "xenopsd-http-") -> list[Any]:
    exchanges = []
    for name in names:
        for line in (GOLDEN / "xmlrpc" / f"{origin}{name}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            request, response = (base64.b64decode(entry[key]) for key in ("request", "response"))
            exchange = Exchange(entry["exchange"], body(request), body(response))
            exchanges.append(pytest.param(exchange, id=f"{name}-{exchange.name}"))
    return exchanges


def method_of(service: str, name: str) -> model.Method:
    method = model.load(service).method(name)
    assert method is not None, name
    return method


def arguments_over_bus(method: model.Method, arguments: dict[str, Any], over_bus: OverBus) -> dict[str, Any]:
    form = BUS[method.service].of(method)
    return form.read_arguments(over_bus(form.input_signature, form.write_arguments(arguments)))


def result_over_bus(method: model.Method, result: Any, over_bus: OverBus) -> Any:
    form = BUS[method.service].of(method)
    return form.read_result(form.output_signature, over_bus(form.output_signature, form.write_result(result)))


def fault_over_bus(method: model.Method, fault: Fault, over_bus: OverBus) -> Fault:
    form = BUS[method.service].of(method)
    refusal = form.write_fault(fault)
    return form.read_fault(BusRefused(refusal.name, refusal.signature, over_bus(refusal.signature, refusal.body)))


@pytest.mark.parametrize("exchange", recorded("allcalls", "cli", "testsuite"))
def test_recorded_calls_come_out_byte_for_byte(exchange: Exchange, over_bus: OverBus, same: Same) -> None:
    """A generated client's request: typed, over the bus and back, it is the same document."""
    name, params = xmlrpc_codec.decode_call(exchange.request)
    method = method_of("xenopsd", name)
    arguments = XML.of(method).read_arguments(params)
    back = arguments_over_bus(method, arguments, over_bus)
    assert same(back, arguments)
    assert xmlrpc_codec.encode_call(name, XML.of(method).write_arguments(back)) == exchange.request


def answered(
    exchange: Exchange, over_bus: OverBus, xml: xmlrpc_translation.Translation = XML, renamed: str | None = None
) -> bytes:
    """The response after it went through the typed form and the bus."""
    method = method_of("xenopsd", renamed or xmlrpc_codec.decode_call(exchange.request)[0])
    form = xml.of(method)
    opened = dialects.open_envelope(xmlrpc_codec.decode_response(exchange.response))
    if isinstance(opened, dialects.Success):
        result = result_over_bus(method, form.read_result(opened.value), over_bus)
        return xmlrpc_codec.encode_response(dialects.success(form.write_result(result)))
    fault = fault_over_bus(method, form.read_failure(opened.description), over_bus)
    return xmlrpc_codec.encode_response(dialects.failure(form.write_failure(fault)))


@pytest.mark.parametrize(
    "exchange", [e for e in recorded("allcalls", "cli", "testsuite", "errors") if e.values[0].response]
)
def test_recorded_replies_come_out_byte_for_byte(exchange: Exchange, over_bus: OverBus) -> None:
    """The daemon's reply, success or failure: typed, over the bus and back, it is the same document."""
    assert answered(exchange, over_bus) == exchange.response


# --- the dialect of 2012 and 2013 ------------------------------------------------------------------------------------

OLD = xmlrpc_translation.Translation(dialects.DIALECTS["rpclib-2012"])
# What the interface gained between June 2013 and the one written down: these cannot fit, whatever the dialect.
GREW_IN_ARGUMENTS = {
    "VM.build": "force",
    "VM.start": "paused",
    "PCI.add": "members of PCI records",
}
GREW_IN_RESULTS = {
    "HOST.stat": "members of cpu_info",
    "VM.stat": "pv_drivers_detected",
    "VIF.list": "pvs_rules_active",
    "PCI.stat": "members of PCI records",
    "PCI.add": "members of PCI records",
    "Task.stat": "backtrace",
}


@pytest.mark.parametrize("exchange", recorded("xml", origin="xenopsd2013-"))
def test_the_old_dialect_comes_out_byte_for_byte(exchange: Exchange, over_bus: OverBus, same: Same) -> None:
    """Positional arguments, options as lists, flat constructors, members in order of declaration."""
    old_name, params = xmlrpc_codec.decode_call(exchange.request)
    name = old_name.replace("TASK.", "Task.")
    method = method_of("xenopsd", name)
    if name in GREW_IN_ARGUMENTS:
        with pytest.raises(xmlrpc_translation.Mismatch):
            OLD.of(method).read_arguments(params)
    else:
        back = arguments_over_bus(method, OLD.of(method).read_arguments(params), over_bus)
        assert xmlrpc_codec.encode_call(old_name, OLD.of(method).write_arguments(back)) == exchange.request
    try:
        assert answered(exchange, over_bus, OLD, name) == exchange.response
    except xmlrpc_translation.Mismatch:
        assert name in GREW_IN_RESULTS


# --- wrong input -----------------------------------------------------------------------------------------------------

# Refused for their HTTP, before anybody read the XML; the documents themselves are in order.
CLOSED_FOR_THEIR_HTTP = {"41_long_content_length_body_ok", "42_bad_content_length"}
NO_CALL_AT_ALL = {"34_GET"}
# The arguments fit their types: what failed was the daemon's own reading of a document inside a string.
FAILED_IN_THE_METHOD = {"10_positional_legacy_import_metadata"}


def our_answer(exchange: Exchange) -> Any:
    """None for a silent close, a failure's description, or the arguments that the method gets."""
    try:
        name, params = xmlrpc_codec.decode_call(exchange.request)
    except CodecError:
        return None
    method = model.load("xenopsd").method(name)
    if method is None:
        assert XML.dialect.unknown_method == "close"
        return None
    try:
        return XML.of(method).read_arguments(params)
    except xmlrpc_translation.Mismatch as mismatch:
        return xmlrpc_translation.marshal_error(mismatch, name, XML.dialect)


@pytest.mark.parametrize("exchange", [e for e in recorded("errors") if e.values[0].name not in NO_CALL_AT_ALL])
def test_wrong_input_is_judged_as_the_daemon_judged_it(exchange: Exchange) -> None:
    """The same silence, the same failure text, or arguments where the daemon went on."""
    answer = our_answer(exchange)
    if not exchange.response:
        assert (answer is None) != (exchange.name in CLOSED_FOR_THEIR_HTTP)
        return
    opened = dialects.open_envelope(xmlrpc_codec.decode_response(exchange.response))
    if isinstance(opened, dialects.Failure) and exchange.name not in FAILED_IN_THE_METHOD:
        assert answer == opened.description
    else:
        assert isinstance(answer, dict)


# --- samples of the marshaller, in JSON ------------------------------------------------------------------------------


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, none of them twice: the typed form could not carry that."""
    members = dict(pairs)
    assert len(members) == len(pairs)
    return members


def samples(service: str, name: str) -> list[Any]:
    found = []
    for number, line in enumerate((GOLDEN / "rpclib-samples" / name).read_text().splitlines()):
        found.append(pytest.param(service, line, id=f"{number}-{json.loads(line)['method']}"))
    return found


SAMPLES = [*samples("squeezed", "memory.jsonl"), *samples("xenopsd", "xenops.generated.jsonl")]


def as_xml(value: Any) -> Any:
    """A JSON value as it stands in XML-RPC: integers are text."""
    match value:
        case bool() | None | str() | float():
            return value
        case int():
            return str(value)
        case list():
            return [as_xml(item) for item in value]
        case _:
            return {name: as_xml(item) for name, item in value.items()}


def equal(one: Any, other: Any) -> bool:
    """Whether two wire values mean the same: a float that was written without a point is a number as well."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float) and isinstance(other, (float, str)):
        return one == float(other) or (math.isnan(one) and math.isnan(float(other)))
    return type(one) is type(other) and bool(one == other)


def texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from texts(item)
        case dict():
            yield from value
            for item in value.values():
                yield from texts(item)


def refused(wire: Any, sig: str, values: tuple[Any, ...]) -> bool:
    """Whether a value has characters that a wire cannot carry; then checks that each such wire refuses it by name."""
    characters = set("".join(texts(wire)))
    if not any(c < " " and c not in "\t\n\r" for c in characters):
        return False
    with pytest.raises(NotXmlText, match=r"U\+00"):
        xmlrpc_codec.encode_response(wire)
    if "\0" in characters:
        with pytest.raises(SignatureMismatch, match="without NUL"):
            encoder(sig)(values, Variant)
    return True


@pytest.mark.parametrize(("service", "line"), SAMPLES)
def test_marshalled_calls_keep_their_meaning(service: str, line: str, over_bus: OverBus, over_xml: OverXml) -> None:
    """Arguments: wire to typed to D-Bus and back are the same wire value."""
    request = json.loads(line, object_pairs_hook=unique)["request"]
    method = method_of(service, request["method"])
    form, bus = XML.of(method), BUS[service].of(method)
    params = as_xml(request["params"])
    arguments = form.read_arguments(params)
    if not refused(params, bus.input_signature, bus.write_arguments(arguments)):
        arguments = form.read_arguments(over_xml(params))
        assert equal(form.write_arguments(arguments_over_bus(method, arguments, over_bus)), params)


@pytest.mark.parametrize(("service", "line"), SAMPLES)
def test_marshalled_replies_keep_their_meaning(service: str, line: str, over_bus: OverBus, over_xml: OverXml) -> None:
    """Results and errors: wire to typed to D-Bus and back are the same wire value."""
    sample = json.loads(line, object_pairs_hook=unique)
    method = method_of(service, sample["method"])
    form, bus = XML.of(method), BUS[service].of(method)
    for response in sample["responses"]:
        if response["error"] is None:
            wire = as_xml(response["result"])
            if not refused(wire, bus.output_signature, bus.write_result(form.read_result(wire))):
                result = form.read_result(over_xml(wire))
                assert equal(form.write_result(result_over_bus(method, result, over_bus)), wire)
            continue
        wire = as_xml(response["error"])
        refusal = bus.write_fault(form.read_failure(wire))
        if not refused(wire, refusal.signature, refusal.body):
            fault = form.read_failure(over_xml(wire))
            assert fault.kind is Kind.DECLARED
            assert equal(form.write_failure(fault_over_bus(method, fault, over_bus)), wire)


# --- xenstore --------------------------------------------------------------------------------------------------------


class Conversation(NamedTuple):
    """One call of a recorded session: what the client wrote, and what it read back."""

    request: Request
    response: Response


def conversations() -> list[Any]:
    found = []
    for line in (GOLDEN / "xenstore" / "squeezed-2012.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found += [
            pytest.param(call, id=f"{entry['exchange']}-{number}-{call.request.function}")
            for number, call in enumerate(calls_of(*(base64.b64decode(entry[key]) for key in ("request", "response"))))
        ]
    return found


def calls_of(sent: bytes, received: bytes) -> Iterator[Conversation]:
    """The calls of one session: every operation with its reply, in order."""
    replies = [packet for packet in PacketReader().feed(received) if packet.op != Op.WATCH_EVENT]
    written: dict[str, dict[str, bytes]] = {}
    read: dict[str, dict[str, bytes]] = {}
    answered: list[str] = []
    for packet, reply in zip(PacketReader().feed(sent), replies, strict=True):
        path, _, value = packet.payload.partition(b"\0")
        parts = path.decode().removeprefix("/squeezed/rpc/").split("/")
        key = "/".join(parts[1:3])
        if parts[0] == "request" and packet.op == Op.MKDIR:
            written[key] = {}
        elif parts[0] == "request" and packet.op == Op.WRITE:
            written[key][parts[3]] = value
        elif parts[0] == "response" and packet.op == Op.DIRECTORY:
            answered.append(key)
        elif parts[0] == "response" and packet.op == Op.READ and len(parts) == 4:
            read.setdefault(key, {})[parts[3]] = reply.payload
    for key in answered:
        function, request_id = key.split("/")
        yield Conversation(
            Request(function, request_id, tuple(written[key].items())), Response(tuple(read.get(key, {}).items()))
        )


def carried(call: Conversation, over_bus: OverBus) -> Response:
    """The response after request and response went through the typed form and the bus."""
    service = model.load("squeezed")
    method, arguments = None, {}
    try:
        method = xenstore_translation.method_of(service, call.request)
        arguments = xenstore_translation.read_arguments(method, call.request)
        function, records = xenstore_translation.write_arguments(
            method, arguments_over_bus(method, arguments, over_bus)
        )
        assert (function, dict(records)) == (call.request.function, dict(call.request.arguments))
        result = xenstore_translation.read_response(service, method, arguments, call.response)
        return xenstore_translation.write_response(method, result_over_bus(method, result, over_bus))
    except Fault as fault:
        told = fault if method is None else fault_over_bus(method, fault, over_bus)
        return xenstore_translation.write_fault(service, arguments, told)


@pytest.mark.parametrize("call", conversations())
def test_recorded_xenstore_calls_come_out_as_recorded(call: Conversation, over_bus: OverBus) -> None:
    """Request and response: records to typed to D-Bus and back are the same records."""
    assert dict(carried(call, over_bus).results) == dict(call.response.results)


def test_the_recorded_sessions_hold_calls() -> None:
    """Guards against a reading that finds nothing."""
    functions = {param.values[0].request.function for param in conversations()}
    assert functions == {
        "echo",
        "reserve-memory",
        "reserve-memory-range",
        "delete-reservation",
        "balance-memory",
    }
