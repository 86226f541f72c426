"""Aliases of handles that one process alone knows, and where they stand in calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges import handles
from bridges.calls import Side, Tagged, Value
from bridges.handles import HOMES, Home, plan_of
from bridges.interfaces import model
from bridges.interfaces.model import (
    Basic,
    DictOf,
    HandleForm,
    InterfaceError,
    ListOf,
    Method,
    Option,
    Record,
    RecordOf,
    Service,
    TupleOf,
    Type,
    Union,
)

LOCAL = [stem for stem in model.available() if model.load(stem).handles]
ZEROS = "0" * 20
NATIVES: dict[HandleForm, st.SearchStrategy[Any]] = {
    HandleForm.NUMBER: st.integers(0, 10**11 - 1).map(str),
    HandleForm.COUNT: st.integers(0, 2**40 - 1),
    HandleForm.COUNT_TEXT: st.integers(0, 2**40 - 1).map(str),
    HandleForm.TOKEN: st.tuples(st.integers(0, 10**14 - 1), st.integers(0, 10**19)).map("{0[0]:020},{0[1]:020}".format),
}
BEGINNING: dict[HandleForm, Value] = {HandleForm.COUNT: None, HandleForm.COUNT_TEXT: "", HandleForm.TOKEN: ""}
FORMS = st.sampled_from(sorted(NATIVES))
NUMBERS = st.integers(1, HOMES)


def home(number: int, side: Side = Side.LEGACY) -> Home:
    return Home(number, side)


def test_which_interfaces_have_handles_of_one_process() -> None:
    """Those whose daemons count in memory, in both dialects; at most one kind is a reference."""
    assert {stem: model.load(stem).handles for stem in LOCAL} == {
        "storage": {"task": "number", "cursor": "count text"},
        "storage-2012": {"task": "number", "cursor": "count text"},
        "xapi": {"session": "reference", "cursor": "token"},
        "xenopsd": {"task": "number", "cursor": "count"},
        "xenopsd-2012": {"task": "number", "cursor": "count"},
    }


@pytest.mark.parametrize(
    ("form", "native", "alias"),
    [
        (HandleForm.NUMBER, "0", "900000300000000000"),
        (HandleForm.NUMBER, "17", "900000300000000017"),
        (HandleForm.NUMBER, "99999999999", "900000399999999999"),
        (HandleForm.COUNT, 0, 3 * 2**40),
        (HandleForm.COUNT, 42, 3 * 2**40 + 42),
        (HandleForm.COUNT_TEXT, "42", str(3 * 2**40 + 42)),
        (HandleForm.TOKEN, f"00000000000000001234,{ZEROS}", f"00000300000000001234,{ZEROS}"),
    ],
)
def test_how_an_alias_looks(form: HandleForm, native: Value, alias: Value) -> None:
    """It is in the alphabet of the daemon's own, bears the home's number, and leads back."""
    assert handles.outward(form, native, home(3)) == alias
    assert handles.inward(form, alias, home(3), natives=False) == native


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (HandleForm.NUMBER, "100000000000"),
        (HandleForm.NUMBER, "007"),
        (HandleForm.NUMBER, "-1"),
        (HandleForm.NUMBER, "٣"),
        (HandleForm.NUMBER, "OpaqueRef:a"),
        (HandleForm.COUNT, -1),
        (HandleForm.COUNT, 2**40),
        (HandleForm.COUNT_TEXT, ""),
        (HandleForm.COUNT_TEXT, "0x10"),
        (HandleForm.TOKEN, ""),
        (HandleForm.TOKEN, "12,1336998963.25"),
        (HandleForm.TOKEN, f"00000100000000000000,{ZEROS}"),
    ],
)
def test_what_does_not_look_like_a_native_passes(form: HandleForm, value: Value) -> None:
    """The daemon's answer is not ours to change where it says something else."""
    assert handles.outward(form, value, home(3)) == value


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (HandleForm.NUMBER, "17", "800000000000000017"),
        (HandleForm.NUMBER, "99999999999999999", "899999999999999999"),
        (HandleForm.NUMBER, "900000200000000017", "900000200000000017"),
        (HandleForm.NUMBER, "800000000000000017", "800000000000000017"),
        (HandleForm.NUMBER, "a task", "a task"),
        (HandleForm.COUNT, 42, None),
        (HandleForm.COUNT, 2 * 2**40 + 42, None),
        (HandleForm.COUNT_TEXT, "42", ""),
        (HandleForm.COUNT_TEXT, "0x10", ""),
        (HandleForm.COUNT_TEXT, str(2 * 2**40 + 42), ""),
        (HandleForm.TOKEN, f"00000000000000001234,{ZEROS}", ""),
        (HandleForm.TOKEN, f"00000200000000001234,{ZEROS}", ""),
        (HandleForm.TOKEN, "12,1336998963.25", "12,1336998963.25"),
    ],
)
def test_what_a_home_gets_for_the_handle_of_another(form: HandleForm, value: Value, expected: Value) -> None:
    """Something that it cannot know, or for a cursor its own "from the beginning"."""
    assert handles.inward(form, value, home(3), natives=False) == expected


@pytest.mark.parametrize("value", ["17", "a task", ""])
def test_a_native_passes_where_the_home_can_have_given_it_out(value: str) -> None:
    """It came to its holder before the bridge stood at the door."""
    assert handles.inward(HandleForm.NUMBER, value, home(3), natives=True) == value


@given(FORMS, st.data(), NUMBERS)
def test_an_alias_leads_back_to_its_native(form: HandleForm, data: st.DataObject, number: int) -> None:
    """Whatever the home's number and whether or not natives are accepted; and no alias is one of the natives."""
    native = data.draw(NATIVES[form])
    alias = handles.outward(form, native, home(number))
    assert type(alias) is type(native)
    assert alias != native
    for natives in (False, True):
        assert handles.inward(form, alias, home(number), natives=natives) == native
    if form is HandleForm.NUMBER:
        assert re.fullmatch("9[0-9]{17}", str(alias))
    if form is HandleForm.COUNT:
        assert int(str(alias)) < 2**62
    if form is HandleForm.TOKEN:
        assert len(str(alias)) == len(str(native))


@given(FORMS, st.data(), NUMBERS, NUMBERS, st.booleans())
def test_no_home_resolves_the_alias_of_another(
    form: HandleForm, data: st.DataObject, number: int, other: int, natives: bool
) -> None:
    """It gets no native of its own for it: a text of 18 digits, or the beginning."""
    native = data.draw(NATIVES[form])
    alias = handles.outward(form, native, home(number))
    found = handles.inward(form, alias, home(other), natives=natives)
    if number == other:
        assert found == native
    elif form is HandleForm.NUMBER:
        assert found == alias
    else:
        assert found == BEGINNING[form]


@given(FORMS, st.data(), NUMBERS)
def test_no_home_resolves_a_native_that_it_did_not_give_out(form: HandleForm, data: st.DataObject, number: int) -> None:
    """What takes its place is no native, and stays what it is when it comes back."""
    found = handles.inward(form, data.draw(NATIVES[form]), home(number), natives=False)
    if form is HandleForm.NUMBER:
        assert re.fullmatch("8[0-9]{17}", str(found))
        assert handles.inward(form, found, home(number), natives=False) == found
    else:
        assert found == BEGINNING[form]


@given(st.tuples(NUMBERS, NATIVES[HandleForm.TOKEN]), st.tuples(NUMBERS, NATIVES[HandleForm.TOKEN]))
def test_tokens_keep_their_order(one: tuple[int, str], other: tuple[int, str]) -> None:
    """XenAPI lets clients compare them as text; those of a later home are later."""
    aliases = [str(handles.outward(HandleForm.TOKEN, token, home(number))) for number, token in (one, other)]
    assert (aliases[0] < aliases[1]) == (one < other)


@pytest.mark.parametrize(
    ("ruling", "was_on_bus", "from_bus", "expected"),
    [
        (Home(1, Side.LEGACY), False, False, True),
        (Home(1, Side.LEGACY), False, True, True),
        (Home(3, Side.LEGACY), True, False, True),
        (Home(3, Side.LEGACY), True, True, False),
        (Home(2, Side.BUS), True, False, False),
        (Home(2, Side.BUS), True, True, False),
        (Home(3, Side.LEGACY, fresh=True), True, False, False),
        (Home(2, Side.LEGACY, fresh=True), False, False, False),
    ],
)
def test_when_a_native_is_accepted(ruling: Home, was_on_bus: bool, from_bus: bool, expected: bool) -> None:
    """Only where the ruling process itself can have told the caller of it."""
    assert handles.accepts_natives(ruling, was_on_bus=was_on_bus, from_bus=from_bus) is expected


def test_a_reference_is_shown_in_part() -> None:
    """A session is as good as a password; other handles are shown."""
    assert handles.masked("OpaqueRef:12345678-1234-1234-1234-123456789abc") == "OpaqueRef:12345678..."
    assert handles.masked("17") == "17"
    assert not handles.is_reference("OpaqueRef:NULL")


def sample(kind: Type) -> Any:
    """A value of a type with everything in it once: options are there, a list of a union has each of its cases."""
    match kind:
        case Basic("string"):
            return "text"
        case Basic("int" | "int32" | "int64"):
            return 5
        case Option(item):
            return sample(item)
        case ListOf(Union() as union):
            return [Tagged(c.name, None if c.argument is None else sample(c.argument)) for c in union.constructors]
        case ListOf(item):
            return [sample(item)]
        case TupleOf(items):
            return tuple(map(sample, items))
        case DictOf(item):
            return {"key": sample(item)}
        case Record(fields):
            return {field.name: sample(field.type) for field in fields}
        case Union(constructors):
            return Tagged(constructors[0].name, None)
    assert isinstance(kind, Basic | RecordOf)
    return None


def leaves(value: Any, kind: Type, place: str) -> Iterator[tuple[str, Any]]:
    """Every leaf of a value with its place, as the interface data write places."""
    match kind, value:
        case Option(item), _:
            yield from leaves(value, item, place)
        case ListOf(item), list():
            for each in value:
                yield from leaves(each, item, f"{place}.*")
        case DictOf(item), dict():
            for key, each in value.items():
                yield f"{place}.keys", key
                yield from leaves(each, item, f"{place}.*")
        case TupleOf(items), tuple():
            for number, (each, item) in enumerate(zip(value, items, strict=True)):
                yield from leaves(each, item, f"{place}.{number}")
        case Record(fields), dict():
            for field in fields:
                yield from leaves(value[field.name], field.type, f"{place}.{field.name}")
        case Union() as union, Tagged(tag, argument) if (carried := union.by_name[tag].argument) is not None:
            yield from leaves(argument, carried, f"{place}.{tag}")
        case _:
            yield place, value


def marked(value: Any) -> str:
    return f"<{value}>"


def changed(before: Any, after: Any, kind: Type, place: str) -> list[str]:
    """The places at which a value was changed to what `marked` makes of it; everything else is as it was."""
    pairs = [*zip(leaves(before, kind, place), leaves(after, kind, place), strict=True)]
    for (at, old), (other, new) in pairs:
        assert at == other
        assert new in (old, marked(old))
    return [at for (at, old), (_, new) in pairs if new != old]


def placed(service: Service, method: Method) -> tuple[list[str], list[str]]:
    """The places of handles of one process that a method consumes and produces."""
    both = [[p for p, k in places.items() if k in service.handles] for places in (method.consumes, method.produces)]
    return both[0], both[1]


@pytest.mark.parametrize("stem", LOCAL)
def test_only_the_places_are_changed(stem: str) -> None:
    """In the arguments and the result of every method, all of the handles are reached and nothing else is."""
    service = model.load(stem)
    for method in service.methods():
        consumed, produced = placed(service, method)
        plan = plan_of(service, method)
        arguments: Any = {p.name: sample(p.type) for p in method.parameters}
        after: Any = arguments
        for place in plan.consumes:
            after = place.exchange(after, marked)
        assert after.keys() == arguments.keys()
        found = [at for p in method.parameters for at in changed(arguments[p.name], after[p.name], p.type, p.name)]
        assert sorted(found) == sorted(consumed), method.name
        result = sample(method.result)
        after = result
        for place in plan.produces:
            after = place.exchange(after, marked)
        assert sorted(changed(result, after, method.result, "result")) == sorted(produced), method.name


@pytest.mark.parametrize("stem", [stem for stem in LOCAL if "task" in model.load(stem).handles])
def test_every_task_in_a_result_is_written_down(stem: str) -> None:
    """A result whose type speaks of a task's id says where: an id that passed as it is would be nobody's alias."""
    service = model.load(stem)
    written = json.loads(Path(model.__file__).with_name(f"{stem}.json").read_text())
    for entry in written["methods"]:
        method = service.method(entry["name"])
        assert method is not None
        _, produced = placed(service, method)
        tasks = [place for place in produced if method.produces[place] == "task"]
        assert sorted(tasks) == sorted(places_of(entry["result"], "Task.id", written["types"], "result")), method.name


def places_of(kind: Any, name: str, types: dict[str, Any], place: str) -> list[str]:
    """Where a named type stands in a type expression."""
    match kind:
        case {"ref": ref}:
            return [place] if ref == name else places_of(types[ref], name, types, place)
        case {"option": item}:
            return places_of(item, name, types, place)
        case {"list": item} | {"array": item} | {"dict": [_, item]}:
            return places_of(item, name, types, f"{place}.*")
        case {"tuple": items}:
            return [at for n, item in enumerate(items) for at in places_of(item, name, types, f"{place}.{n}")]
        case {"record": parts} | {"variant": parts}:
            inside = [(part["name"], part.get("type", part.get("args"))) for part in parts]
            return [at for own, item in inside for at in places_of(item, name, types, f"{place}.{own}")]
    return []


@pytest.mark.parametrize("stem", LOCAL)
def test_what_passes_in_bytes(stem: str) -> None:
    """References and tokens do, numbers never; what ends is consumed, and every method without handles has no plan."""
    service = model.load(stem)
    for method in service.methods():
        plan = plan_of(service, method)
        forms = {place.form for place in (*plan.consumes, *plan.produces)}
        assert plan.has_numbers == bool(forms - {HandleForm.REFERENCE, HandleForm.TOKEN})
        assert set(plan.ends) <= set(plan.consumes)
        assert (plan is handles.NOTHING) == (not any(placed(service, method)))
    ending = {method.name for method in service.methods() if method.ends}
    assert ending in ({"Task.destroy"}, {"TASK.destroy"}, {"session.logout", "session.local_logout"})


def sampled(result: Any, **method: Any) -> tuple[Service, Method]:
    """A service with one method that has handles of the kind `task`."""
    entry = {"name": "C.m", "object": "C", "params": [], "result": result} | method
    errors = {"errors": {"variant": [{"name": "Bad", "args": None}]}}
    data = {"service": "sample", "types": errors, "handles": {"task": "number"}, "methods": [entry]}
    service = model.decode(json.dumps(data).encode())
    found = service.method("C.m")
    assert found is not None
    return service, found


def test_places_in_maps_and_options() -> None:
    """Keys, values and absent options, which no shipped interface has for these handles."""
    option = {"record": [{"name": "o", "type": {"option": "string"}}]}
    result = {"tuple": [{"dict": ["string", "string"]}, {"dict": ["string", option]}]}
    plan = plan_of(*sampled(result, produces={"result.0.keys": "task", "result.1.*.o": "task"}))
    value: Any = ({"a": "b"}, {"c": {"o": "d"}, "e": {}, "f": {"o": None}})
    for place in plan.produces:
        value = place.exchange(value, marked)
    assert value == ({"<a>": "b"}, {"c": {"o": "<d>"}, "e": {}, "f": {"o": None}})


def test_a_cursor_from_the_beginning_is_an_absent_option() -> None:
    """The argument is left out, one that was absent stays so, and the caller's own arguments are not changed."""
    service = model.load("xenopsd")
    method = service.method("UPDATES.get")
    assert method is not None
    (place,) = plan_of(service, method).consumes
    arguments: Value = {"debug_info": "d", "last_id": 5}
    assert place.exchange(arguments, lambda _: None) == {"debug_info": "d"}
    assert place.exchange({"debug_info": "d"}, marked) == {"debug_info": "d"}
    assert arguments == {"debug_info": "d", "last_id": 5}


@pytest.mark.parametrize(
    "place", ["result.x", "result.2", "result.0", "result.1.2", "result.0.*.x", "result.1.Bad", "result.1.Other"]
)
def test_a_place_that_is_none_is_refused(place: str) -> None:
    """The data are wrong, and the text says where."""
    case = {"variant": [{"name": "Bad", "args": None}]}
    service, method = sampled({"tuple": [{"list": "string"}, case]}, produces={place: "task"})
    with pytest.raises(InterfaceError, match=r"sample: C\.m has no "):
        plan_of(service, method)


def test_a_parameter_that_is_none_is_refused() -> None:
    """As a place in a result is."""
    with pytest.raises(InterfaceError, match=r"sample: C\.m has no id"):
        plan_of(*sampled("unit", consumes={"id": "task"}))
