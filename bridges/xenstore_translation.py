"""xenstore RPC records to neutral calls and back.

What this cannot carry
    * the `debug_info` of the Memory interface: dropped towards xenstore, a fixed label from it
    * methods without an xenstore function (`get_diagnostics`, ...): refused as unknown, never sent
    * a value that is no UTF-8 text, or longer than the store allows (4096 bytes less its path)
    * an error without a code in the table: code 2 with its name in the text, as the daemon's own exceptions
    * the value behind error 1003: the store names the argument; it is looked up in the call, and back

All values are text. Integers are read as the legacy daemon read them (`bridges.numbers`).
"""

from __future__ import annotations

from typing import Final

from bridges import numbers
from bridges.calls import Tagged, Value
from bridges.faults import Fault, Kind
from bridges.interfaces.model import (
    Basic,
    ListOf,
    Method,
    Parameter,
    Service,
    TupleOf,
    Type,
    XenstoreError,
    XenstoreForm,
)
from xenstore_rpc.records import EXCEPTION, UNKNOWN_FUNCTION, Request, Response, error_response

LABEL: Final = "xenstore-rpc"


def method_of(service: Service, request: Request) -> Method:
    """The method that a request calls. Raises Fault UNKNOWN_METHOD."""
    method = service.by_xenstore_function.get(request.function)
    if method is None:
        raise Fault(Kind.UNKNOWN_METHOD, request.function)
    return method


def read_arguments(method: Method, request: Request) -> dict[str, Value]:
    """Arguments by parameter name. Raises Fault: Missing_argument by name, or INVALID_ARGUMENT."""
    form = _form(method)
    if form.variadic:
        return {method.parameters[0].name: {name: _text(name, value) for name, value in request.arguments}}
    given = dict(request.arguments)
    arguments: dict[str, Value] = {}
    for name, parameter in _parameters(method, form):
        if name not in given:
            raise Fault(Kind.DECLARED, f"missing argument {name}", code="Missing_argument", argument=name)
        arguments[parameter.name] = _read(parameter.type, name, given[name])
    for parameter in method.parameters:
        if parameter.name not in arguments:
            arguments[parameter.name] = LABEL
    return arguments


def write_arguments(method: Method, arguments: dict[str, Value]) -> tuple[str, tuple[tuple[str, bytes], ...]]:
    """The function and its arguments. Raises Fault UNKNOWN_METHOD when the legacy daemon never had that function."""
    form = method.xenstore
    if form is None:
        raise Fault(
            Kind.UNKNOWN_METHOD, f"{method.name} has no xenstore function, and the legacy daemon has no other door"
        )
    if form.variadic:
        given = arguments.get(method.parameters[0].name)
        assert isinstance(given, dict)
        return form.function, tuple((name, _bytes(name, value)) for name, value in given.items())
    return form.function, tuple((name, _bytes(name, arguments[p.name])) for name, p in _parameters(method, form))


def read_response(service: Service, method: Method, arguments: dict[str, Value], response: Response) -> Value:
    """The neutral result of a response. Raises Fault for an error answer, and for one that is not as declared."""
    if response.is_error:
        raise _read_error(service, arguments, response.code, response.description)
    try:
        return _read_results(method, _form(method), dict(response.results))
    except Fault as fault:
        raise Fault(Kind.NOT_REPRESENTABLE, f"{method.name} was executed; its answer, {fault.text}") from None


def _read_results(method: Method, form: XenstoreForm, results: dict[str, bytes]) -> Value:
    if form.variadic:
        return {name: _text(name, value) for name, value in results.items()}
    kinds = method.result.items if isinstance(method.result, TupleOf) else (method.result,)
    found: list[Value] = []
    for name, kind in zip(form.results, kinds, strict=False):
        if name not in results:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{name}: is missing")
        found.append(_read(kind, name, results[name]))
    if isinstance(method.result, TupleOf):
        return tuple(found)
    return found[0] if found else None


def write_response(method: Method, value: Value) -> Response:
    """The answer that carries a neutral result."""
    form = _form(method)
    if form.variadic:
        assert isinstance(value, dict)
        return Response(tuple((name, _bytes(name, item)) for name, item in value.items()))
    values = value if isinstance(value, tuple) and not isinstance(value, Tagged) else (value,)
    return Response(tuple((name, _bytes(name, item)) for name, item in zip(form.results, values, strict=False)))


def write_fault(service: Service, arguments: dict[str, Value], fault: Fault) -> Response:
    """The error answer of a fault."""
    if fault.kind is Kind.UNKNOWN_METHOD:
        return error_response(UNKNOWN_FUNCTION, fault.text)
    if fault.kind is Kind.DECLARED:
        for code, entry in service.xenstore_errors.items():
            if entry.error == fault.code:
                return error_response(code, _write_description(entry.description, arguments, fault.argument))
    if fault.kind is Kind.UNDECLARED and fault.code.isdecimal():
        match fault.argument:
            case [str(description)]:
                return error_response(fault.code, description)
    if fault.kind in (Kind.DECLARED, Kind.UNDECLARED):
        text = fault.text if fault.code in fault.text else f"{fault.code}: {fault.text}"
        return error_response(EXCEPTION, text)
    return error_response(EXCEPTION, fault.sentence)


def _read_error(service: Service, arguments: dict[str, Value], code: str, description: str) -> Fault:
    if code == UNKNOWN_FUNCTION:
        return Fault(Kind.UNKNOWN_METHOD, description)
    entry = service.xenstore_errors.get(code)
    if entry is not None:
        try:
            argument = _read_description(entry, service.errors[entry.error].argument, arguments, description)
        except ValueError:
            entry = None
    if entry is None:
        return Fault(Kind.UNDECLARED, f"code {code}: {description}", code=code, argument=[description])
    return Fault(Kind.DECLARED, f"{entry.error}: {description}", code=entry.error, argument=argument)


def _read_description(entry: XenstoreError, kind: Type | None, arguments: dict[str, Value], description: str) -> Value:
    """What a description stands for, by the error's declared type. Raises ValueError when it is not of its form."""
    match entry.description, kind:
        case "numbers", TupleOf(items):
            parts = description.split(",")
            return tuple([_number(item, part) for item, part in zip(items, parts, strict=True)])
        case "list", ListOf(item):
            return [_number(item, part) for part in description.split(",")] if description else []
        case "argument", Basic():
            value = arguments.get(description)
            if type(value) is int:
                return value
            raise ValueError(description)
        case _:
            return description


def _write_description(form: str, arguments: dict[str, Value], argument: Value) -> str:
    match form:
        case "numbers" | "list":
            assert isinstance(argument, (list, tuple))
            return ",".join(str(part) for part in argument)
        case "argument":
            return next(
                (name for name, value in arguments.items() if type(value) is int and value == argument), str(argument)
            )
        case _:
            return str(argument)


def _form(method: Method) -> XenstoreForm:
    assert method.xenstore is not None
    return method.xenstore


def _parameters(method: Method, form: XenstoreForm) -> list[tuple[str, Parameter]]:
    by_name = {parameter.name: parameter for parameter in method.parameters}
    return [(name, by_name[name]) for name in form.arguments]


def _read(kind: Type, name: str, value: bytes) -> Value:
    text = _text(name, value)
    match kind:
        case Basic("string"):
            return text
        case Basic("int" | "int32" | "int64" as width):
            number = numbers.integer(text, width)
            if number is None:
                raise Fault(Kind.INVALID_ARGUMENT, f"{name}: expected {width} as decimal text, got {text[:60]!r}")
            return number
        case _:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{name}: the xenstore RPC carries no {kind}")


def _number(kind: Type, text: str) -> int:
    number = numbers.integer(text, kind.name) if isinstance(kind, Basic) else None
    if number is None:
        raise ValueError(text)
    return number


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Fault(
            Kind.INVALID_ARGUMENT, f"{name}: expected UTF-8 text, got byte 0x{value[error.start]:02x} at {error.start}"
        ) from None


def _bytes(name: str, value: Value) -> bytes:
    try:
        return str(value).encode()
    except UnicodeEncodeError as error:
        raise Fault(Kind.NOT_REPRESENTABLE, f"{name}: expected text, got a lone surrogate at {error.start}") from None
