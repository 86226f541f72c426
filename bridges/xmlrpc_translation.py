"""Calls of the legacy protocols to neutral calls and back: arguments, results and failures, by schema and by dialect.

What this cannot carry
    * what `xmlrpc_values` cannot carry
    * surplus arguments, where the dialect ignores them
    * a failure of xapi whose parameters are no texts: they become texts
    * which of our own faults it was: rpclib has `Internal_error` for all of them, xapi hardly more

XML-RPC and JSON-RPC lay calls out alike; a `Translation` differs between them in how integers are written.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bridges.calls import Tagged, Value
from bridges.faults import OURS, Fault, Kind
from bridges.interfaces.model import Method, Option, Parameter, bare
from bridges.xmlrpc_values import (
    Mismatch,
    ParameterCount,
    Read,
    UnknownTag,
    Values,
    Write,
    open_union,
    shown,
    untyped,
    untyped_value,
)
from xmlrpc_gateway.dialects import Dialect
from xmlrpc_gateway.xmlrpc_codec import Value as Wire


class Translation:
    """All methods of all services in one dialect."""

    def __init__(self, dialect: Dialect, *, integers_as_text: bool = True) -> None:
        self.dialect = dialect
        self.values = Values(dialect, integers_as_text=integers_as_text)
        self._forms: dict[Method, MethodForm] = {}

    def of(self, method: Method) -> MethodForm:
        """How that method looks in this dialect."""
        form = self._forms.get(method)
        if form is None:
            form = self._forms[method] = MethodForm(self, method)
        return form

    def refusal(self, fault: Fault) -> Wire:
        """How a fault that is no service's own looks to legacy clients."""
        text = fault.sentence if fault.kind in OURS else fault.text
        if not self.dialect.failure_codes:
            return ["Internal_error", text]  # the one error that every interface declares
        if fault.kind is Kind.BUSY:
            return ["TOO_BUSY", text]
        if fault.kind is Kind.INVALID_ARGUMENT:
            return ["INVALID_VALUE", "call", text]
        return ["INTERNAL_ERROR", text]

    def unknown_method(self, name: str) -> Wire:
        """The failure of a method that is not written down, where the dialect has one (`unknown_method`)."""
        return [self.dialect.unknown_method, name]

    def marshal_error(self, mismatch: Mismatch, method: str) -> Wire:
        """What the legacy daemon answers to arguments that do not fit."""
        if self.dialect.failure_codes:
            return _xapi_error(mismatch, method)
        if isinstance(mismatch, ParameterCount) and self.dialect.exact_parameter_count:
            integer = self.values.integer
            return ["Message_param_count_mismatch", [method, integer(mismatch.wanted), integer(mismatch.received)]]
        if self.dialect.exact_parameter_count:
            return ["Internal_error", _rpc_light_text(mismatch)]
        return ["Internal_error", f"Idl.MarshalError({_ocaml_text(mismatch.reason)})"]


class _Place(NamedTuple):
    """One parameter: how it is read and written where it travels."""

    parameter: Parameter
    read: Read
    write: Write


class MethodForm:
    """One method in one dialect: its arguments, its result and its errors."""

    def __init__(self, translation: Translation, method: Method) -> None:
        self._method = method
        self._translation = translation
        dialect, values = translation.dialect, translation.values
        self._exact = dialect.exact_parameter_count
        self._bare_options = dialect.named_option == "bare"
        places = [(p, bare(p.type) if p.named and self._bare_options else p.type) for p in method.parameters]
        self._places = [_Place(p, values.reader(kind), values.writer(kind)) for p, kind in places]
        self._named = [place for place in self._places if place.parameter.named]
        self._positional = [place for place in self._places if not place.parameter.named]
        self._mandatory = sum(not place.parameter.optional for place in self._positional)
        self._named_in_order = self._named[::-1] if dialect.reversed_members else self._named
        has_session = bool(method.parameters) and method.parameters[0].name == SESSION
        self._uncounted = 1 if dialect.session_first and has_session else 0
        self.read_result = values.reader(method.result)
        self.write_result = values.writer(method.result)
        self._read_error = values.error_reader(method.errors)
        self._write_error = values.writer(method.errors)

    def read_arguments(self, params: list[Wire]) -> dict[str, Value]:
        """Arguments by parameter name; an absent option and a unit have no entry. Raises Mismatch."""
        arguments: dict[str, Value] = {}
        if not self._named:
            self._read_positional(params, self._positional, arguments)
        elif params and isinstance(params[0], dict):
            self._read_named(params[0], arguments)
            self._read_positional(params[1:], self._positional, arguments)
        elif self._method.positional and len(params) == len(self._places):
            self._read_positional(params, self._places, arguments)
        else:
            raise Mismatch("Marshalling error: Expecting dict as first argument when named parameters exist")
        return arguments

    def _read_named(self, members: dict[str, Wire], arguments: dict[str, Value]) -> None:
        for place in self._named:
            name = place.parameter.name
            if name in members:
                _read_into(arguments, place, members[name])
            elif not (self._bare_options and isinstance(place.parameter.type, Option)):
                raise Mismatch(f"Expecting named argument '{name}'")

    def _read_positional(self, params: list[Wire], places: list[_Place], arguments: dict[str, Value]) -> None:
        if len(params) < self._mandatory or (len(params) > len(places) and self._exact):
            raise ParameterCount(self._mandatory - self._uncounted, len(params) - self._uncounted)
        for place, value in zip(places, params, strict=False):
            _read_into(arguments, place, value)

    def write_arguments(self, arguments: dict[str, Value]) -> list[Wire]:
        """The params of a call, from arguments by parameter name. Raises Fault INVALID_ARGUMENT."""
        params: list[Wire] = []
        if self._named:
            params.append(
                {
                    p.name: write(arguments.get(p.name))
                    for p, _, write in self._named_in_order
                    if p.name in arguments or not (self._bare_options and isinstance(p.type, Option))
                }
            )
        given = self._positional
        if self._mandatory < len(given):
            while given and given[-1].parameter.optional and given[-1].parameter.name not in arguments:
                given = given[:-1]
        params.extend(
            p.write(
                self._default(p)
                if p.parameter.optional and p.parameter.name not in arguments
                else arguments.get(p.parameter.name)
            )
            for p in given
        )
        return params

    def _default(self, place: _Place) -> Value:
        """What stands for an argument that was left out although a later one was given."""
        name, default = place.parameter.name, place.parameter.default
        if default is None:
            text = f"{self._method.name}: {name}: must be given when a later optional argument is"
            raise Fault(Kind.INVALID_ARGUMENT, text)
        return place.read(default)

    def read_failure(self, description: Wire) -> Fault:
        """The fault that a failure stands for; what is not written down keeps its code and arguments."""
        if self._translation.dialect.failure_codes:
            return self._read_codes(description)
        try:
            error = self._read_error(description)
        except Mismatch:
            return _undeclared(description)
        assert isinstance(error, Tagged)
        return Fault(Kind.DECLARED, _error_text(error), code=error.tag, argument=error.argument)

    def _read_codes(self, description: Wire) -> Fault:
        try:
            code, rest = open_union(description)
        except Mismatch:
            return _undeclared(description)
        texts: list[Value] = [item if isinstance(item, str) else shown(item) for item in rest]
        kind = Kind.DECLARED if code in self._method.errors.by_name else Kind.UNDECLARED
        argument = texts if kind is Kind.DECLARED else texts or None
        return Fault(kind, _error_text(Tagged(code, texts or None)), code=code, argument=argument)

    def write_failure(self, fault: Fault) -> Wire:
        """The failure of a fault: ErrorDescription of XML, error of JSON."""
        if fault.kind not in (Kind.DECLARED, Kind.UNDECLARED):
            return self._translation.refusal(fault)
        rest = fault.argument if isinstance(fault.argument, (list, tuple)) else []
        if self._translation.dialect.failure_codes:
            return [fault.code, *(item if isinstance(item, str) else shown(untyped(item)) for item in rest)]
        if fault.kind is Kind.UNDECLARED:
            return [fault.code, *map(untyped, rest)] if rest else fault.code
        if fault.code in self._method.errors.by_name:
            return self._write_error(Tagged(fault.code, fault.argument))
        return untyped(Tagged(fault.code, fault.argument))


SESSION: Final = "session_id"

# What rpc-light says of a value that does not fit, by the type it wanted: recorded from xenopsd 0.9.6 of 2013.
_RPC_LIGHT: Final = {
    "string": "String(string)",
    "int": "Int(int)",
    "int64": "Int(int64)",
    "an option ([] or [x])": "Enum[]/Enum[_]",
}


def _rpc_light_text(mismatch: Mismatch) -> str:
    if mismatch.expected == "int" and isinstance(mismatch.value, str):
        return 'Failure("int_of_string")'
    wanted = _RPC_LIGHT.get(mismatch.expected)
    if wanted is None:
        return mismatch.reason
    # OCaml prints a constant constructor as its number, and every other value as `_`.
    return f'Rpc.Runtime_error("{wanted}", {"0" if mismatch.value is None else "_"})'


def _xapi_error(mismatch: Mismatch, method: str) -> Wire:
    """As xapi: counts leave the session out; a value is named by its parameter and what is wrong with it."""
    if isinstance(mismatch, ParameterCount):
        return ["MESSAGE_PARAMETER_COUNT_MISMATCH", method, str(mismatch.wanted), str(mismatch.received)]
    if isinstance(mismatch, UnknownTag):
        return ["VALUE_NOT_SUPPORTED", mismatch.place, mismatch.tag, mismatch.reason]
    return ["FIELD_TYPE_ERROR", mismatch.place, mismatch.reason]


def _ocaml_text(text: str) -> str:
    """A string as OCaml prints it inside an exception: quoted, with escapes for all but printable ASCII."""
    return '"' + "".join(_OCAML_ESCAPES.get(byte) or chr(byte) for byte in text.encode("utf-8", "replace")) + '"'


_OCAML_ESCAPES: Final = {byte: f"\\{byte:03}" for byte in (*range(32), *range(127, 256))} | {
    ord(plain): "\\" + escaped for plain, escaped in zip('"\\\n\t\r\b', '"\\ntrb', strict=True)
}


def _read_into(arguments: dict[str, Value], place: _Place, value: Wire) -> None:
    try:
        found = place.read(value)
    except Mismatch as mismatch:
        mismatch.path.append(place.parameter.name)
        mismatch.is_secret = place.parameter.secret
        raise
    if found is not None:
        arguments[place.parameter.name] = found


def _undeclared(description: Wire) -> Fault:
    try:
        code, rest = open_union(description)
    except Mismatch:
        code, rest = "", [description]
    text = f"{code}: {', '.join(map(shown, rest))}" if rest else code
    return Fault(Kind.UNDECLARED, text, code=code, argument=[untyped_value(item) for item in rest] or None)


def _error_text(error: Tagged) -> str:
    match error.argument:
        case None:
            return error.tag
        case tuple() | list():
            return f"{error.tag}: {', '.join(str(item) for item in error.argument)}"
        case argument:
            return f"{error.tag}: {argument!s}"
