"""Random values of every distinct type of an interface, through the bytes of each of its encodings and of the bus.

A type that several methods share is tried once: the translations know types, not places. Layouts of arguments, which
belong to a method, are tried for every method that has more than plain positional ones.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Final, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.calls import Tagged
from bridges.dbus_values import signature
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Method, Option, Type, bare
from dbus_side.errors import BusRefused
from tests.bridges.fidelity_forms import Form, forms, in_daemon
from tests.bridges.fidelity_values import over_bus, same, values
from xmlrpc_gateway.encodings import JSON_RPC_LIGHT, XML
from xmlrpc_gateway.jsonrpc_codec import NotJsonValue

CHUNK: Final = 24  # types or methods a test: a test ends well before its timeout, also where the machine is busy


@cache
def types(stem: str) -> tuple[Type, ...]:
    """The distinct types of the arguments, as they travel, the results and the error arguments of an interface."""
    found: dict[Type, None] = {}
    for method in model.load(stem).methods():
        for parameter in method.parameters:
            found.update({parameter.type: None, bare(parameter.type): None})
        found[method.result] = None
        found.update({case.argument: None for case in method.errors.constructors if case.argument is not None})
    return tuple(found)


@cache
def errors(stem: str) -> dict[Type | None, tuple[tuple[Method, str], ...]]:
    """What an error carries (None: nothing) to the errors that carry it, each with a method that can fail so."""
    found: dict[Type | None, list[tuple[Method, str]]] = {}
    for method in {m.errors: m for m in model.load(stem).methods()}.values():
        for case in method.errors.constructors:
            found.setdefault(case.argument, []).append((method, case.name))
    return {kind: tuple(cases) for kind, cases in found.items()}


@cache
def laid_out(stem: str) -> tuple[Method, ...]:
    """The methods that have named, optional or option parameters."""
    return tuple(
        method
        for method in model.load(stem).methods()
        if any(p.named or p.optional or isinstance(p.type, Option) for p in method.parameters)
    )


def type_survives(stem: str, kind: Type, value: Any) -> None:
    """Neutral to every wire and back. Raises AssertionError."""
    for form in forms(stem):
        write, read = form.translation.values.writer(kind), form.translation.values.reader(kind)
        _survives(form, value, lambda w=write, r=read, f=form: r(f.over_reply(w(value))))
    sig = signature(kind)
    if sig:
        bus = in_daemon(stem).values
        found = bus.reader(kind)(*over_bus(sig, (bus.writer(kind)(value),)))
        assert same(found, value), f"the bus made {found!r} of {value!r}"


def errors_survive(stem: str, kind: Type | None, argument: Any) -> None:
    """Every error that carries such an argument. Raises AssertionError."""
    for method, code in errors(stem)[kind]:
        fault = Fault(Kind.DECLARED, "text", code=code, argument=argument)
        for form in forms(stem):
            written, read = form.of(method).write_failure(fault), form.of(method).read_failure
            _survives(form, (code, argument), lambda w=written, r=read, f=form: _declared(r(f.over_failure(w))))
        bus = in_daemon(stem).of(method)
        refusal = bus.write_fault(fault)
        back = bus.read_fault(BusRefused(refusal.name, refusal.signature, over_bus(refusal.signature, refusal.body)))
        assert same(_declared(back), (code, argument)), f"the bus made {back!r} of {fault!r}"


def arguments_survive(stem: str, method: Method, arguments: dict[str, Any]) -> None:
    """The arguments of a call, by parameter name. Raises AssertionError."""
    for form in forms(stem):
        laid = form.of(method)
        expected = arguments | _defaults(form, method, arguments)
        params = laid.write_arguments(arguments)
        _survives(form, expected, lambda la=laid, p=params, f=form: la.read_arguments(f.over_call(method.name, p)))
    bus = in_daemon(stem).of(method)
    found = bus.read_arguments(over_bus(bus.input_signature, bus.write_arguments(arguments)))
    assert same(found, arguments), f"the bus made {found!r} of {arguments!r}"


def _declared(fault: Fault) -> tuple[str, Any]:
    assert fault.kind is Kind.DECLARED, f"{fault!r} was declared before"
    return fault.code, fault.argument


def _survives(form: Form, value: Any, carry: Callable[[], Any]) -> None:
    try:
        found = carry()
    except NotJsonValue:
        assert form.encoding is JSON_RPC_LIGHT
        assert not _is_finite(value), f"{form.encoding.name} refused {value!r}"
        return
    expected = value if form.encoding is XML else _in_json(value)
    assert same(found, expected), f"{form.encoding.name} made {found!r} of {expected!r}"


def _in_json(value: Any) -> Any:
    """A value with the text of base64 in place of bytes, for which JSON has no type."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case Tagged(tag, argument):
            return Tagged(tag, _in_json(argument))
        case list() | tuple():
            return type(value)(map(_in_json, value))
        case dict():
            return {name: _in_json(item) for name, item in value.items()}
    return value


def _is_finite(value: Any) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case list() | tuple():
            return all(map(_is_finite, value))
        case dict():
            return all(map(_is_finite, value.values()))
    return True


def _defaults(form: Form, method: Method, arguments: dict[str, Any]) -> dict[str, Any]:
    """What stands for the arguments that were left out before one that was given."""
    given = [p.name in arguments for p in method.parameters]
    last = max((index for index, there in enumerate(given) if there), default=-1)
    read = form.translation.values.reader
    return {
        p.name: read(p.type)(p.default)
        for p, there in zip(method.parameters[:last], given, strict=False)
        if p.optional and not there
    }


@st.composite
def arguments_of(draw: st.DrawFn, method: Method) -> dict[str, Any]:
    """Arguments as every door leaves them: what is absent, or unit, has no entry."""
    found: dict[str, Any] = {}
    is_there = [not p.optional or draw(st.booleans()) for p in method.parameters]
    for index, parameter in enumerate(method.parameters):
        must = parameter.default is None and any(is_there[index + 1 :])
        value = draw(values(parameter.type)) if is_there[index] or (parameter.optional and must) else None
        if value is not None:
            found[parameter.name] = value
    return found


# --- running them ----------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """Something to try with random values: where they come from, the check, and how many things one value tries."""

    strategy: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    weight: int = 1


def trials(stem: str, what: str) -> list[Trial]:
    """Everything of an interface: `what` is types, errors or layouts."""
    match what:
        case "types":
            return [Trial(values(kind), partial(type_survives, stem, kind)) for kind in types(stem)]
        case "errors":
            return [
                Trial(values(model.UNIT if kind is None else kind), partial(errors_survive, stem, kind), len(cases))
                for kind, cases in errors(stem).items()
            ]
        case _:
            return [Trial(arguments_of(m), partial(arguments_survive, stem, m)) for m in laid_out(stem)]


def chunks(stem: str) -> Iterator[tuple[str, int]]:
    """The work of an interface in parts: kind of trial and number of its first."""
    for what, count in (("types", len(types(stem))), ("errors", len(errors(stem))), ("layouts", len(laid_out(stem)))):
        for first in range(0, count, CHUNK):
            yield what, first


def run(stem: str, what: str, first: int, examples: int) -> int:
    """One part, with so many random values each, the same ones every time; how many were tried. Raises as they do."""
    return sum(_run(trial, examples) for trial in trials(stem, what)[first : first + CHUNK])


def _run(trial: Trial, examples: int) -> int:
    tried = 0

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(trial.strategy)
    def survive(value: Any) -> None:
        nonlocal tried
        tried += trial.weight
        trial.check(value)

    survive()
    return tried
