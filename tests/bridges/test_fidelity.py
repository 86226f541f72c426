"""Every type of every method survives both wires: random values through real XML bytes and real D-Bus bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges import dbus_translation, xmlrpc_translation
from bridges.calls import Value
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Method, Option
from xmlrpc_gateway.dialects import DIALECTS
from xmlrpc_gateway.xmlrpc_codec import decode_call, encode_call

OverXml = Callable[[Any], Any]
OverBus = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]
Same = Callable[[Any, Any], bool]
Values = Callable[[model.Type], st.SearchStrategy[Value]]

BUS = {name: dbus_translation.Translation(model.load(name)) for name in model.available()}
XML = {name: xmlrpc_translation.Translation(DIALECTS[name]) for name in ("rpclib", "rpclib-2012")}
METHODS = [
    pytest.param(method, id=f"{name}-{method.name}")
    for name in model.available()
    for method in model.load(name).methods()
]
FEW = settings(
    derandomize=True, database=None, deadline=None, max_examples=6, suppress_health_check=list(HealthCheck)
)  # fmt: skip


def draw_arguments(data: st.DataObject, method: Method, values: Values) -> dict[str, Value]:
    """Arguments as every door leaves them: what is absent, or unit, has no entry."""
    arguments: dict[str, Value] = {}
    for parameter in method.parameters:
        value = data.draw(values(parameter.type), label=parameter.name)
        if value is not None:
            arguments[parameter.name] = value
    return arguments


@pytest.mark.parametrize("method", METHODS)
@FEW
@given(data=st.data())
def test_arguments_survive_both_wires(
    method: Method, data: st.DataObject, values: Values, same: Same, over_bus: OverBus
) -> None:
    """Neutral to XML-RPC and back in both dialects, neutral to D-Bus and back."""
    arguments = draw_arguments(data, method, values)
    for translation in XML.values():
        xml = translation.of(method)
        name, params = decode_call(encode_call(method.name, xml.write_arguments(arguments)))
        assert name == method.name
        assert same(xml.read_arguments(params), arguments)
    bus = BUS[method.service].of(method)
    assert same(bus.read_arguments(over_bus(bus.input_signature, bus.write_arguments(arguments))), arguments)


@pytest.mark.parametrize("method", METHODS)
@FEW
@given(data=st.data())
def test_results_survive_both_wires(
    method: Method, data: st.DataObject, values: Values, same: Same, over_xml: OverXml, over_bus: OverBus
) -> None:
    """Neutral to XML-RPC and back in both dialects, neutral to D-Bus and back."""
    result = data.draw(values(method.result))
    for translation in XML.values():
        xml = translation.of(method)
        assert same(xml.read_result(over_xml(xml.write_result(result))), result)
    bus = BUS[method.service].of(method)
    sig = bus.output_signature
    assert same(bus.read_result(sig, over_bus(sig, bus.write_result(result))), result)


ERRORS = [
    pytest.param(method, case, id=f"{method.service}-{case.name}")
    for name in model.available()
    for method in {m.errors: m for m in model.load(name).methods()}.values()
    for case in method.errors.constructors
]


@pytest.mark.parametrize(("method", "case"), ERRORS)
@FEW
@given(data=st.data())
def test_errors_survive_the_xml_wire(
    method: Method, case: model.Constructor, data: st.DataObject, values: Values, same: Same, over_xml: OverXml
) -> None:
    """Every constructor of every error type, in both dialects; on the bus see test_dbus_translation."""
    argument = None if case.argument is None else data.draw(values(case.argument))
    for translation in XML.values():
        xml = translation.of(method)
        fault = Fault(Kind.DECLARED, "text", code=case.name, argument=argument)
        read = xml.read_failure(over_xml(xml.write_failure(fault)))
        assert (read.kind, read.code) == (Kind.DECLARED, case.name)
        assert same(read.argument, argument)


def test_no_type_is_out_of_reach() -> None:
    """No option stands inside an option, and no list holds what the bus has no signature for."""

    def walk(kind: model.Type) -> None:
        match kind:
            case Option(item):
                assert not isinstance(item, Option)
                assert item != model.UNIT
                walk(item)
            case model.ListOf(item) | model.DictOf(item):
                assert item != model.UNIT
                walk(item)
            case model.TupleOf(items):
                assert model.UNIT not in items
                for item in items:
                    walk(item)
            case model.Record(fields):
                assert len({field.name.lower() for field in fields}) == len(fields)
                for field in fields:
                    assert field.type != model.UNIT
                    walk(field.type)
            case model.Union(constructors):
                assert len({case.name.lower() for case in constructors}) == len(constructors)
                for case in constructors:
                    if case.argument is not None:
                        walk(case.argument)
            case _:
                pass

    for name in model.available():
        for method in model.load(name).methods():
            for kind in (*(p.type for p in method.parameters), method.result, method.errors):
                walk(kind)
