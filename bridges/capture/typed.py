"""Values of the interface's types as JSON: the form in which captures keep arguments and results.

It is the JSON of today's dialect (rpclib), except that integers are decimal texts, since JSON readers round them beyond
2**53, that members stand in declared order, and that names are read exactly as they are written. Floats that JSON
cannot say are the texts nan, inf and -inf.

What this cannot carry
    * bytes in an untyped value: they become base64 text
    * a float in an untyped value that is no number: it becomes one of those texts
    * an integer in an untyped value beyond 2**53 for readers other than ours, and beyond 64 bits for any
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from bridges.calls import Value
from bridges.capture import records
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Option, Parameter, Type, bare
from bridges.xmlrpc_values import Mismatch, Values
from xmlrpc_gateway.dialects import DIALECTS
from xmlrpc_gateway.xmlrpc_codec import DateTime

# Nobody but us writes this form: a member that is not written down and differs from another in its case is its own.
_EXACT: Final = replace(
    DIALECTS["rpclib"], reversed_members=False, case_insensitive_variants=False, case_insensitive_members=False
)
_VALUES: Final = Values(_EXACT, integers_as_text=True)


def write(kind: Type, value: Value) -> Any:
    """A neutral value of that type as JSON."""
    return _plain(_VALUES.writer(kind)(value))


def read(kind: Type, value: Any) -> Value:
    """A neutral value of that type from JSON. Raises Mismatch naming the place."""
    return _VALUES.reader(kind)(value)


def write_arguments(method: Method, arguments: Mapping[str, Value]) -> dict[str, Any]:
    """Arguments by parameter name; an absent one has no entry."""
    return {p.name: write(_kind(p), arguments[p.name]) for p in method.parameters if p.name in arguments}


def read_arguments(method: Method, arguments: Mapping[str, Any]) -> dict[str, Value]:
    """What `write_arguments` wrote. Raises Mismatch naming the parameter, also for one that the method has not."""
    known = {p.name: _kind(p) for p in method.parameters}
    found: dict[str, Value] = {}
    for name, value in arguments.items():
        try:
            if name not in known:
                raise Mismatch(f"{method.name} has no such parameter")
            found[name] = read(known[name], value)
        except Mismatch as mismatch:
            mismatch.path.append(name)
            raise
    return found


def write_fault(method: Method | None, fault: Fault) -> records.Fault:
    """A fault with what it carries; by the method's declared errors where there is one."""
    kind = _argument_kind(method, fault.kind, fault.code)
    argument = _plain(fault.argument) if kind is None else write(kind, fault.argument)
    return records.Fault(str(fault.kind), fault.code, fault.text, argument)


def read_fault(method: Method | None, fault: records.Fault) -> Fault:
    """What `write_fault` wrote. Raises Mismatch."""
    try:
        kind = Kind(fault.kind)
    except ValueError:
        raise Mismatch(f"there is no kind of fault {fault.kind!r}") from None
    of_type = _argument_kind(method, kind, fault.code)
    argument = fault.argument if of_type is None else read(of_type, fault.argument)
    return Fault(kind, fault.text, code=fault.code, argument=argument)


def _kind(parameter: Parameter) -> Type:
    return bare(parameter.type) if isinstance(parameter.type, Option) and parameter.named else parameter.type


def _argument_kind(method: Method | None, kind: Kind, code: str) -> Type | None:
    case = None if method is None or kind is not Kind.DECLARED else method.errors.by_name.get(code)
    return None if case is None else case.argument


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else repr(value)
        case bytes():
            return base64.b64encode(value).decode()
        case DateTime():
            return value.text
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case _:
            return value
