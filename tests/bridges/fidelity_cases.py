"""Recorded and sampled messages of real daemons, carried over the bus and back: what comes out, message by message.

Legacy bytes to typed, to the bytes of a D-Bus message, and back to legacy bytes. A message comes out byte for byte
(SAME), in other bytes with the same meaning (MEANING), or is refused by name (REFUSED); anything else is LOST. Where
the original bytes are known, all but SAME needs a reason that stands in `EXPLAINED`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from functools import cache
from typing import Any, Final, NamedTuple

from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Method
from bridges.xmlrpc_values import Mismatch
from dbus_side.errors import BusRefused, SignatureMismatch
from tests.bridges.fidelity_forms import Form, forms, in_daemon, on_bus
from tests.bridges.fidelity_recordings import (
    RECORDINGS,
    SAMPLES,
    WRONG_INPUT,
    Exchange,
    Recording,
    Sample,
    exchanges,
    samples,
)
from tests.bridges.fidelity_values import over_bus
from xmlrpc_gateway.dialects import Failure, Success
from xmlrpc_gateway.encodings import XML
from xmlrpc_gateway.errors import BadScalar, CodecError, NotXmlText
from xmlrpc_gateway.jsonrpc_codec import NotJson


class Outcome(StrEnum):
    """How a message came out."""

    SAME = "same bytes"
    MEANING = "same meaning"
    REFUSED = "refused by name"
    LOST = "lost"


EXPLAINED: Final = {
    "nul": "A text with NUL: D-Bus has no such text; refused before it is sent. Only the generated samples have it.",
    "control": "A text with control characters: XML has no spelling for them; refused by name, where rpclib drops them "
    "in silence. JSON carries them.",
    "wrap": "An integer of JSON beyond 63 bits: the daemon wraps it in silence, we refuse it by name.",
    "hand": "Upstream wrote some XML files by hand: members in another order, or a line feed behind the document. They "
    "come out in the order of the marshaller.",
    "bare": "Where `Failed` carries nothing, the samples' JSON form has `Failed` with a null. The recorded XML beside "
    "it has the bare tag, as the marshaller writes it, and so do we.",
    "plain": "Over message-switch a call that cannot be read, or whose method is unknown, is answered with an "
    "exception's plain text, which is no JSON-RPC. message-switch is no door of the bridge.",
    "VM.migrate": "VM.migrate got the argument `compress` after v22.20. A call without it is refused as today's daemon "
    "refuses it.",
    "cpu_info": "HOST.stat got other members in `cpu_info` after v22.20, and lists of features became texts.",
    "younger": "UPDATES.last_id, VM.exists and HOST.stat are younger than the interface of May 2012, and the result "
    "of UPDATES.get changed until June 2013. They are carried by today's interface in the older layout.",
    "HOST.stat": "HOST.stat of June 2013: its `cpu_info` lacks members that today's interface needs.",
    "TASK.stat": "TASK.stat, VBD.stat and VBD.list of June 2013: their records have members that are younger than May "
    "2012; these pass through, behind the members that are written down.",
    "VIF.list": "VIF.list of June 2013: `active` is younger than May 2012; it passes through, behind the members that "
    "are written down.",
}
# The methods of the explanations "hand" and "younger".
BY_HAND: Final = frozenset(
    {"archive_rrd", "backup_rrds", "forget_sr_ds", "migrate_rrd", "push_rrd_remote", "push_sr_rrd", "query_sr_ds"}
    | {"query_vm_ds", "query_possible_host_dss", "VDI.activate3", "VDI.epoch_begin", "VDI.epoch_end"}
)
YOUNGER: Final = frozenset({"HOST.stat", "UPDATES.last_id", "VM.exists", "UPDATES.get"})


class Grown(NamedTuple):
    """A message of another age than the interface: how it comes out, our words for it, the key of EXPLAINED."""

    outcome: Outcome
    words: str
    why: str


# By the interface's file, the method, and what of it.
GROWN: Final = {
    ("xenopsd", "VM.migrate", "call"): Grown(Outcome.REFUSED, "Expecting named argument 'compress'", "VM.migrate"),
    ("xenopsd", "HOST.stat", "reply"): Grown(Outcome.REFUSED, "No value found for key: 'threads_per_core'", "cpu_info"),
    ("xenopsd-2012", "HOST.stat", "reply"): Grown(Outcome.REFUSED, "No value found for key", "HOST.stat"),
    ("xenopsd-2012", "TASK.stat", "reply"): Grown(Outcome.MEANING, "other bytes", "TASK.stat"),
    ("xenopsd-2012", "VBD.stat", "reply"): Grown(Outcome.MEANING, "other bytes", "TASK.stat"),
    ("xenopsd-2012", "VBD.list", "reply"): Grown(Outcome.MEANING, "other bytes", "TASK.stat"),
    ("xenopsd-2012", "VIF.list", "reply"): Grown(Outcome.MEANING, "other bytes", "VIF.list"),
}


class Proof(NamedTuple):
    """One message and how it came out.

    `part` is call, reply, or answer (ours to wrong input); `stem` names the interface's file, `spoken` the encoding (or
    xenstore); `exact` says that the original bytes are known; `why` is a key of EXPLAINED, or how a message was lost.
    """

    file: str
    exchange: str
    part: str
    stem: str
    spoken: str
    method: str
    exact: bool
    outcome: Outcome
    why: str = ""


Judged = tuple[Outcome, str]


def _proof(file: str, exchange: str, part: str, form: Form, method: str, judged: Judged, *, exact: bool) -> Proof:
    return Proof(file, exchange, part, form.stem, form.encoding.name, method, exact, *judged)


def proofs() -> Iterator[Proof]:
    """Every message of every file, in each form that its interface has."""
    for file in SAMPLES:
        yield from proofs_of_samples(file)
    for recording in RECORDINGS:
        yield from proofs_of_recording(recording)
    for recording in WRONG_INPUT:
        yield from proofs_of_wrong_input(recording)


# --- carrying --------------------------------------------------------------------------------------------------------


def arguments_over_bus(stem: str, method: Method, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments after they were a D-Bus call. Records of a newer caller are read as a newer daemon reads them."""
    strict = on_bus(stem).of(method)
    body = over_bus(strict.input_signature, strict.write_arguments(arguments))
    try:
        return strict.read_arguments(body)
    except Fault as fault:
        if "unknown member" not in fault.text:
            raise
        return in_daemon(stem).of(method).read_arguments(body)


def result_over_bus(stem: str, method: Method, result: Any) -> Any:
    """A result after it was a D-Bus reply."""
    form = on_bus(stem).of(method)
    return form.read_result(form.output_signature, over_bus(form.output_signature, form.write_result(result)))


def fault_over_bus(stem: str, method: Method, fault: Fault) -> Fault:
    """A fault after it was a D-Bus error."""
    form = on_bus(stem).of(method)
    refusal = form.write_fault(fault)
    return form.read_fault(BusRefused(refusal.name, refusal.signature, over_bus(refusal.signature, refusal.body)))


def carried_call(form: Form, method: Method, body: bytes) -> bytes:
    """A call after it was typed and on the bus."""
    incoming = form.encoding.read_call(body)
    laid = form.of(method)
    arguments = arguments_over_bus(form.stem, method, laid.read_arguments(incoming.params))
    call_id = None if incoming.reply_to is None else incoming.reply_to.id
    return form.write_call(incoming.method, laid.write_arguments(arguments), call_id)


def carried_reply(form: Form, method: Method, body: bytes) -> bytes:
    """A reply after it was typed and on the bus."""
    said = form.encoding.read_reply(body)
    laid = form.of(method)
    if isinstance(said, Success):
        result = result_over_bus(form.stem, method, laid.read_result(said.value))
        return form.encoding.write_success(None, laid.write_result(result))
    fault = laid.read_failure(said.description)
    assert fault.kind is Kind.DECLARED, f"{fault!r} is not declared"
    return form.encoding.write_failure(None, laid.write_failure(fault_over_bus(form.stem, method, fault)))


# --- judging ---------------------------------------------------------------------------------------------------------


def _judge(form: Form, method: Method, body: bytes, *, is_call: bool, exact: bool) -> Judged:
    """How a message comes out."""
    carry, read = (carried_call, _read_call) if is_call else (carried_reply, _read_reply)
    try:
        out = carry(form, method, body)
    except SignatureMismatch as error:
        is_nul = "without NUL" in str(error) and "\0" in "".join(_texts(read(form, body)))
        return (Outcome.REFUSED, "nul") if is_nul else (Outcome.LOST, str(error))
    except Mismatch as mismatch:
        return Outcome.LOST, f"{mismatch.place}: {mismatch.reason}"
    except (AssertionError, CodecError, Fault) as error:
        return Outcome.LOST, f"{type(error).__name__}: {error}"
    if exact and out == body:
        return Outcome.SAME, ""
    if not equal(read(form, out), read(form, body)):
        return Outcome.LOST, f"{body!r} came out as {out!r}"
    return Outcome.MEANING, "other bytes" if exact else ""


def _read_call(form: Form, body: bytes) -> Any:
    incoming = form.encoding.read_call(body)
    return [incoming.method, incoming.params]


def _read_reply(form: Form, body: bytes) -> Any:
    said = form.encoding.read_reply(body)
    return [True, said.value] if isinstance(said, Success) else [False, said.description]


def equal(one: Any, other: Any) -> bool:
    """Whether two wire values mean the same: a float that was written without a point is a number as well."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float) and type(other) in (float, int, str):
        return one == float(other) or (math.isnan(one) and math.isnan(float(other)))
    return type(one) is type(other) and bool(one == other)


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            yield from value
            for item in value.values():
                yield from _texts(item)


# --- samples ---------------------------------------------------------------------------------------------------------


@cache
def proofs_of_samples(file: str) -> tuple[Proof, ...]:
    """Every sample of a file, as JSON-RPC and as XML-RPC."""
    return tuple(
        proof for form in forms(SAMPLES[file]) for sample in samples(file) for proof in _sampled(file, form, sample)
    )


def _sampled(file: str, form: Form, sample: Sample) -> Iterator[Proof]:
    """The bytes as they were recorded; in the other encoding their equivalent, which keeps nothing but the meaning.

    Samples recorded as JSON keep the order of the marshaller: written compactly they are its text.
    """
    method = form.method(sample.request["method"])
    assert method is not None
    exact = bool(sample.xml) == (form.encoding is XML)
    for number, message in enumerate((sample.request, *sample.responses)):
        part = "reply" if number else "call"
        try:
            if form.encoding is not XML:
                body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
            else:
                body = sample.xml[number] if exact else _in_xml(message)
        except NotXmlText:
            held = any(character < " " and character not in "\t\n\r" for character in "".join(_texts(message)))
            outcome, why = (Outcome.REFUSED, "control") if held else (Outcome.LOST, "no control characters")
        else:
            outcome, why = _judge(form, method, body, is_call=part == "call", exact=exact)
            if outcome is Outcome.LOST and file == "storage.jsonl.gz" and b'["Failed",null]' in body:
                bare = body.replace(b'["Failed",null]', b'"Failed"')
                outcome, why = _judge(form, method, bare, is_call=False, exact=False)
                why = why or "bare"
        if why == "other bytes":
            outcome, why = (outcome, "hand") if method.name in BY_HAND else (Outcome.LOST, why)
        yield _proof(file, f"{sample.name} {number}", part, form, method.name, (outcome, why), exact=exact)


def _in_xml(message: dict[str, Any]) -> bytes:
    if "params" in message:
        return XML.write_call(message["method"], as_xml(message["params"]))
    if message["error"] is None:
        return XML.write_success(None, as_xml(message["result"]))
    return XML.write_failure(None, as_xml(message["error"]))


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


# --- recordings ------------------------------------------------------------------------------------------------------


@cache
def proofs_of_recording(recording: Recording) -> tuple[Proof, ...]:
    """Every call and every reply of a recording."""
    return tuple(proof for exchange in exchanges(recording) for proof in _recorded(recording, exchange))


def _recorded(recording: Recording, exchange: Exchange) -> Iterator[Proof]:
    assert exchange.request is not None
    assert exchange.reply is not None
    form = recording.form
    try:
        name = form.encoding.read_call(exchange.request).method
        form.encoding.read_reply(exchange.reply)
    except NotJson:
        yield _proof(recording.file, exchange.name, "call", form, "", (Outcome.REFUSED, "plain"), exact=True)
        return
    for part, body in (("call", exchange.request), ("reply", exchange.reply)):
        yield _proof(
            recording.file, exchange.name, part, form, name, _recorded_message(form, name, part, body), exact=True
        )


def _recorded_message(form: Form, name: str, part: str, body: bytes) -> Judged:
    """How it comes out by its own interface; what is younger than that, by today's in the older layout."""
    method = form.method(name)
    outcome, why = Outcome.LOST, f"no method {name}"
    if method is not None:
        outcome, why = _judge(form, method, body, is_call=part == "call", exact=True)
    if outcome is Outcome.LOST and form.stem == "xenopsd-2012" and name in YOUNGER:
        today = Form("xenopsd", form.encoding, form.dialect)
        outcome, why = _judge(today, _in_older_layout(name), body, is_call=part == "call", exact=True)
        why = why or "younger"
    grown = GROWN.get((form.stem, name, part))
    if grown is not None and grown.words in why:
        return grown.outcome, grown.why
    return (Outcome.LOST, why) if why == "other bytes" else (outcome, why)


@cache
def _in_older_layout(name: str) -> Method:
    """A method of today's xenopsd with all of its arguments positional."""
    method = model.load("xenopsd").method(name)
    assert method is not None
    return replace(method, parameters=tuple(replace(parameter, named=False) for parameter in method.parameters))


# --- wrong input -----------------------------------------------------------------------------------------------------

# Closed for their HTTP, before anybody read the XML; the documents themselves are in order.
CLOSED_FOR_THEIR_HTTP: Final = frozenset({"41_long_content_length_body_ok", "42_bad_content_length"})
# The arguments fit their types: it was the method itself that failed.
FAILED_IN_THE_METHOD: Final = frozenset(
    {"10_positional_legacy_import_metadata", "12_positional_on_any", "15_does_not_exist", "29_unicode_escape"}
    | {"30_raw_utf8"}
)
_BUILD: Final = "Dune__exe__"  # what the build of the recorded daemon puts before the names of exceptions


def answer(form: Form, request: bytes | None) -> Any:
    """None for a silent close, a failure's description, or the arguments that the method gets."""
    if request is None:
        return None
    try:
        incoming = form.encoding.read_call(request)
    except BadScalar as error:
        mismatch = Mismatch(error.reason)
        mismatch.path.append(error.place)
        return form.translation.marshal_error(mismatch, "")
    except CodecError as error:
        return form.encoding.refusal(error)
    method = form.method(incoming.method)
    if method is None:
        closes = form.translation.dialect.unknown_method == "close"
        return None if closes else form.translation.unknown_method(incoming.method)
    try:
        return form.of(method).read_arguments(incoming.params)
    except Mismatch as mismatch:
        return form.translation.marshal_error(mismatch, incoming.method)


@cache
def proofs_of_wrong_input(recording: Recording) -> tuple[Proof, ...]:
    """Our answer beside the daemon's; and the daemon's own reply, carried as every other one."""
    found: list[Proof] = []
    for exchange in exchanges(recording):
        found.append(_answered(recording, exchange))
        if exchange.reply is not None:
            found.append(_replied(recording, exchange))
    return tuple(found)


def _answered(recording: Recording, exchange: Exchange) -> Proof:
    """The same silence, the same failure, or arguments where the daemon went on."""
    form = recording.form
    ours = answer(form, exchange.request)
    if exchange.reply is None:
        is_alike, theirs = (ours is None) != (exchange.name in CLOSED_FOR_THEIR_HTTP), "silence"
    else:
        said = form.encoding.read_reply(exchange.reply)
        theirs = json.dumps(said.description) if isinstance(said, Failure) else "a result"
        if isinstance(said, Failure) and exchange.name not in FAILED_IN_THE_METHOD:
            is_alike = ours == json.loads(theirs.replace(_BUILD, ""))
        else:
            is_alike = isinstance(ours, dict)
    judged: Judged = (Outcome.LOST, f"the daemon gave {theirs}, we {ours!r}")
    if is_alike:
        judged = (Outcome.MEANING, "")
    elif exchange.name == "16_bigint" and isinstance(ours, list):
        judged = (Outcome.REFUSED, "wrap")
    return _proof(recording.file, exchange.name, "answer", form, "", judged, exact=False)


def _replied(recording: Recording, exchange: Exchange) -> Proof:
    assert exchange.request is not None
    assert exchange.reply is not None
    form = recording.form
    name = form.encoding.read_call(exchange.request).method
    if form.method(name) is None:
        name = "query"  # every method can fail by not being known
    judged = _recorded_message(form, name, "reply", exchange.reply)
    return _proof(recording.file, exchange.name, "reply", form, name, judged, exact=True)
