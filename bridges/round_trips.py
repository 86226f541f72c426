"""What the translations would lose: an exchange that is over is taken to the bus and back, and must come back equal.

    legacy form -> neutral -> D-Bus body, checked as it is before it is sent -> neutral' -> legacy form'

Equal is what means the same to who reads it by the interface's type: `7` with a tag and without one, members in another
order, a name in another case where the dialect takes any. What is lost is a difference, whatever the reason: a member
that is defaulted, a surplus argument, a text that D-Bus does not have. Wrong arguments that we refuse with the code
with which the daemon refused them are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

from bridges import dbus_translation, wire_comparison, xenstore_translation
from bridges.calls import Door, Value
from bridges.comparison import (
    LIMIT,
    SAME,
    SECRET,
    Difference,
    Found,
    Outcome,
    argument_differences,
    compare,
    cut,
    has_secrets,
    hide,
    hide_arguments,
    same,
)
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Service, TupleOf, Type, bare
from bridges.xmlrpc_translation import Translation
from bridges.xmlrpc_values import Mismatch
from dbus_side.errors import BusRefused, SignatureMismatch
from dbus_side.signatures import Variant, decoder, encoder
from xenstore_rpc.records import Request, Response
from xmlrpc_gateway.dialects import DIALECTS, Failure, Success
from xmlrpc_gateway.encodings import Encoding
from xmlrpc_gateway.errors import CodecError, DuplicateMember, OverLimit
from xmlrpc_gateway.xmlrpc_codec import Value as Wire

UNKNOWN_METHOD: Final = "unknown method"
UNREADABLE: Final = "unreadable call"
NO_REPLY: Final = "no reply"
NO_CALL: Final = "no call of the service"
_LIST_METHODS: Final = "system.listMethods"
_Nodes = tuple[tuple[str, bytes], ...]


class Said(NamedTuple):
    """An answer that there was: a neutral value (None: unit) or a fault."""

    answer: Outcome


class Trip(NamedTuple):
    """An exchange that was taken to the bus and back.

    `arguments` are neutral, by parameter name; None where they could not be read. `note` says why something could not
    be compared: unknown method, unreadable call, no reply, no call of the service, or `defect: EXCEPTION`, which is a
    difference as well. Else it is empty.
    """

    method: Method | None
    arguments: dict[str, Value] | None
    outcome: Said | None
    differences: list[Difference]
    note: str = ""


def of_socket(
    service: Service,
    on_bus: dbus_translation.Translation,
    tongue: tuple[Encoding, Translation],
    door: Door,
    request: bytes,
    reply: bytes | None,
) -> Trip:
    """An exchange at an HTTP or framed socket: the bodies as the caller and the daemon sent them. It never raises."""
    encoding, translation = tongue
    name = encoding.method_of(request)
    try:
        incoming = encoding.read_call(request)
        name = incoming.method
    except (DuplicateMember, OverLimit) as error:
        method = _find(service, translation, name)
        return Trip(method, None, None, [Difference("arguments", "", cut(str(error)))])
    except CodecError:
        return _not_made(UNREADABLE)
    except Exception as error:
        return Trip(None, None, None, [_defect("arguments", error)], _note(error))
    method = _find(service, translation, name)
    if method is None and name == _LIST_METHODS and translation.dialect.has_aliases:
        return _not_made(NO_CALL)
    if method is None or not method.is_at(door):
        return _not_made(UNKNOWN_METHOD)
    return _OverSocket(on_bus, method, encoding, translation).make(name, incoming.params, reply)


def of_xenstore(service: Service, on_bus: dbus_translation.Translation, request: Request, response: Response) -> Trip:
    """An exchange in the store. It never raises."""
    try:
        method = xenstore_translation.method_of(service, request)
    except Fault:
        return _not_made(UNKNOWN_METHOD)
    return _OverXenstore(on_bus, method, service).make(request, response)


def of_bus(on_bus: dbus_translation.Translation, method: Method, arguments: dict[str, Value], outcome: Outcome) -> Trip:
    """An exchange whose arguments and outcome are neutral already, since it came over the bus. It never raises.

    A fault that is not the service's own is no answer, but for NOT_REPRESENTABLE: there was one, and it is lost.
    """
    return _OverBus(on_bus, method).make(arguments, outcome)


def _not_made(note: str) -> Trip:
    return Trip(None, None, None, [], note)


def _find(service: Service, translation: Translation, name: str) -> Method | None:
    method = service.method(name)
    if method is None and translation.dialect.has_aliases:
        method = service.method_by_alias(name)
    return method


# --- one trip --------------------------------------------------------------------------------------------------------


class _Trip:
    """One exchange under way: what was read of it, and what did not come back."""

    def __init__(self, on_bus: dbus_translation.Translation, method: Method) -> None:
        self._on_bus = on_bus
        self._method = method
        self._arguments: dict[str, Value] | None = None
        self._outcome: Said | None = None
        self._differences: list[Difference] = []
        self._note = ""

    def _made(self) -> Trip:
        return Trip(self._method, self._arguments, self._outcome, self._differences[:LIMIT], self._note)

    @contextmanager
    def _leg(self, place: str) -> Iterator[None]:
        """What cannot be carried inside is a difference at that place, and so is a defect."""
        try:
            yield
        except (Fault, Mismatch, SignatureMismatch, CodecError) as error:
            self._lose(place, error)
        except Exception as error:
            self._differences.append(_defect(place, error))
            self._note = _note(error)

    def _lose(self, place: str, error: Exception) -> None:
        self._differences.append(Difference(place, "", SECRET if self._is_secret(place) else self._why(error)))

    def _is_secret(self, place: str) -> bool:
        return self._method.secret_result if place == "result" else has_secrets(self._method)

    def _why(self, error: Exception) -> str:
        text = error.for_the_log if isinstance(error, Mismatch) else str(error)
        return cut(text.removeprefix(f"{self._method.name}: ").removeprefix("value: "))

    def _add(self, place: str, found: list[Difference]) -> None:
        self._differences += hide(found) if found and self._is_secret(place) else found

    def _arguments_over_bus(self, arguments: dict[str, Value]) -> dict[str, Value]:
        """As a daemon reads them that may be newer than the interface: it keeps members that are not written down."""
        form = self._on_bus.of(self._method)
        body = _carried(form.input_signature, form.write_arguments(arguments))
        return _as_daemon(self._on_bus.service).of(self._method).read_arguments(body)

    def _result_over_bus(self, value: Value) -> Value:
        form = self._on_bus.of(self._method)
        return form.read_result(form.output_signature, _carried(form.output_signature, form.write_result(value)))

    def _fault_over_bus(self, fault: Fault) -> Fault:
        form = self._on_bus.of(self._method)
        said = form.write_fault(fault)
        return form.read_fault(BusRefused(said.name, said.signature, _carried(said.signature, said.body)))


class _OverSocket(_Trip):
    def __init__(
        self, on_bus: dbus_translation.Translation, method: Method, encoding: Encoding, translation: Translation
    ) -> None:
        super().__init__(on_bus, method)
        self._encoding = encoding
        self._translation = translation
        self._refused: tuple[Wire, Difference] | None = None  # what we say to wrong arguments, and what is wrong

    def make(self, name: str, params: list[Wire], reply: bytes | None) -> Trip:
        with self._leg("arguments"):
            self._carry_arguments(name, params)
        if reply is None:
            self._note = self._note or NO_REPLY
            return self._made()
        with self._leg("reply"):
            said = self._encoding.read_reply(reply)
            if self._refused is not None and not _is_alike(said, self._refused[0]):
                self._differences.append(self._refused[1])
            if isinstance(said, Success):
                with self._leg("result"):
                    self._carry_result(said.value)
            else:
                with self._leg("fault"):
                    self._carry_fault(said.description)
        return self._made()

    def _carry_arguments(self, name: str, params: list[Wire]) -> None:
        form, dialect = self._translation.of(self._method), self._translation.dialect
        try:
            self._arguments = form.read_arguments(params)
        except Mismatch as mismatch:
            refusal = self._translation.marshal_error(mismatch, name)
            place = f"arguments.{mismatch.path.pop()}" if mismatch.path else "arguments"
            self._refused = refusal, Difference(place, "", SECRET if mismatch.is_secret else self._why(mismatch))
            return
        back = form.write_arguments(self._arguments_over_bus(self._arguments))
        if back == params:
            return
        comparer = wire_comparison.of(dialect)
        is_bare = dialect.named_option == "bare"
        check = comparer.members(
            {p.name: bare(p.type) if p.named and is_bare else p.type for p in self._method.parameters}
        )
        given, returned = _by_name(self._method, params), _by_name(self._method, back)
        found = comparer.differences(check, given, returned, "arguments")
        self._differences += hide_arguments(self._method, found)

    def _carry_result(self, wire: Wire) -> None:
        form, comparer = self._translation.of(self._method), wire_comparison.of(self._translation.dialect)
        value = form.read_result(wire)
        self._outcome = Said(value)
        back = form.write_result(self._result_over_bus(value))
        if back != wire:
            self._add("result", comparer.differences(comparer.of(self._method.result), wire, back, "result"))

    def _carry_fault(self, wire: Wire) -> None:
        form, comparer = self._translation.of(self._method), wire_comparison.of(self._translation.dialect)
        fault = form.read_failure(wire)
        self._outcome = Said(fault)
        returned = self._fault_over_bus(fault)
        back = form.write_failure(returned)
        if back == wire:
            return
        found = compare(self._method, fault, returned)
        self._differences += found
        if not found:
            is_typed = fault.kind is Kind.DECLARED and not self._translation.dialect.failure_codes
            check = comparer.of(self._method.errors) if is_typed else _failures
            self._add("fault", comparer.differences(check, wire, back, "fault"))


class _OverXenstore(_Trip):
    def __init__(self, on_bus: dbus_translation.Translation, method: Method, service: Service) -> None:
        super().__init__(on_bus, method)
        self._service = service

    def make(self, request: Request, response: Response) -> Trip:
        with self._leg("arguments"):
            self._carry_arguments(request, response)
        with self._leg("fault" if response.is_error else "result"):
            self._carry_response(response)
        return self._made()

    def _carry_arguments(self, request: Request, response: Response) -> None:
        try:
            self._arguments = xenstore_translation.read_arguments(self._method, request)
        except Fault as fault:
            if response.is_error and response.code == self._said(fault).code:
                return
            raise
        _, back = xenstore_translation.write_arguments(self._method, self._arguments_over_bus(self._arguments))
        kinds = {p.name: p.type for p in self._method.parameters}
        found = _compare_nodes(kinds, request.arguments, back, "arguments")
        self._differences += hide_arguments(self._method, found)

    def _carry_response(self, response: Response) -> None:
        form, result = self._method.xenstore, self._method.result
        try:
            value = xenstore_translation.read_response(self._service, self._method, self._arguments or {}, response)
        except Fault as fault:
            if not response.is_error:
                raise
            self._outcome = Said(fault)
            back = self._said(self._fault_over_bus(fault))
            self._add("fault", _compare_nodes({}, response.results, back.results, "fault"))
            return
        self._outcome = Said(value)
        back = xenstore_translation.write_response(self._method, self._result_over_bus(value))
        names = form.results if form is not None else ()
        kinds = zip(names, result.items if isinstance(result, TupleOf) else (result,), strict=False)
        self._add("result", _compare_nodes(dict(kinds), response.results, back.results, "result"))

    def _said(self, fault: Fault) -> Response:
        return xenstore_translation.write_fault(self._service, self._arguments or {}, fault)


class _OverBus(_Trip):
    def make(self, arguments: dict[str, Value], outcome: Outcome) -> Trip:
        if isinstance(outcome, Fault) and outcome.kind not in (Kind.DECLARED, Kind.UNDECLARED):
            if outcome.kind is Kind.NOT_REPRESENTABLE:
                self._lose("outcome", outcome)
            else:
                self._note = _NO_ANSWERS.get(outcome.kind, NO_REPLY)
            return self._made()
        self._arguments, self._outcome = arguments, Said(outcome)
        with self._leg("arguments"):
            self._differences += argument_differences(self._method, arguments, self._arguments_over_bus(arguments))
        with self._leg("fault" if isinstance(outcome, Fault) else "result"):
            back = self._fault_over_bus(outcome) if isinstance(outcome, Fault) else self._result_over_bus(outcome)
            self._differences += compare(self._method, outcome, back)
        return self._made()


_NO_ANSWERS: Final = {Kind.UNKNOWN_METHOD: UNKNOWN_METHOD, Kind.INVALID_ARGUMENT: UNREADABLE}


def _carried(signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
    """A body after it was checked as for sending. Raises SignatureMismatch."""
    return decoder(signature)(encoder(signature)(body, Variant))


@lru_cache
def _as_daemon(service: Service) -> dbus_translation.Translation:
    translation = dbus_translation.Translation(service)
    translation.callers_values = translation.values
    return translation


def _note(error: Exception) -> str:
    return f"defect: {type(error).__name__}"


def _defect(place: str, error: Exception) -> Difference:
    return Difference(place, "", _note(error))


# --- legacy forms, compared by what they mean ------------------------------------------------------------------------


def _by_name(method: Method, params: list[Wire]) -> dict[str, Wire]:
    """The params of a call by parameter name; surplus ones have their number for a name."""
    given: dict[str, Wire] = {}
    parameters = method.parameters
    if params and isinstance(params[0], dict) and any(p.named for p in parameters):
        given.update(params[0])
        params, parameters = params[1:], tuple(p for p in parameters if not p.named)
    for number, value in enumerate(params):
        given[parameters[number].name if number < len(parameters) else str(number + 1)] = value
    return given


def _compare_nodes(kinds: dict[str, Type], left: _Nodes, right: _Nodes, place: str) -> list[Difference]:
    """Nodes of the store, whose integers are read as everywhere."""
    one, other = ({name: value.decode(errors="backslashreplace") for name, value in nodes} for nodes in (left, right))
    comparer = wire_comparison.of(DIALECTS["rpclib"])
    return [] if one == other else comparer.differences(comparer.members(kinds), one, other, place)


def _is_alike(said: Success | Failure, refusal: Wire) -> bool:
    return isinstance(said, Failure) and _code_first(said.description)[0] == _code_first(refusal)[0]


def _code_first(description: Wire) -> list[Wire]:
    """A failure as a list; a bare code is the same as one with nothing behind it."""
    return description if isinstance(description, list) and description else [description]


def _failures(left: Wire, right: Wire) -> Found:
    return SAME if same(_code_first(left), _code_first(right)) else {"": (left, right)}
