"""Handles that one process alone knows: what callers see in their place, and where they stand in calls.

A handle like a task's number means something to the process that gave it out and to no other: its successor counts
anew. The process behind a service's authority is a *home* and has a number; what a caller sees is an *alias*, which
belongs to one home. An alias looks as the daemon's own handle would, and no other home ever takes it for one of its
own:

    form        native                            alias                                         of another home
    number      decimal text, up to 11 digits     9, 6 digits of home, 11 of native             stays: nobody knows it
    count       int below 2**40                   home * 2**40 + native                         from the beginning
    count text  the same as decimal text          the same as decimal text                      from the beginning
    token       20 digits, comma, 20 digits       the first 6 digits are the home               from the beginning
    reference   OpaqueRef: and a random uuid      OpaqueRef: and another one, in the ledger     stays: nobody knows it

What does not look like a native passes as it is. Not carried: handles inside faults, and inside untyped values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from bridges.calls import Side, Tagged, Value
from bridges.interfaces.model import (
    Basic,
    DictOf,
    HandleForm,
    InterfaceError,
    ListOf,
    Method,
    Option,
    Record,
    Service,
    TupleOf,
    Type,
    Union,
)

HOMES: Final = 999_999  # the highest number of a home
CURSORS: Final = frozenset({HandleForm.COUNT, HandleForm.COUNT_TEXT, HandleForm.TOKEN})
_SHIFT: Final = 40
_COUNTS: Final = 1 << _SHIFT
_DECIMAL: Final = re.compile("0|[1-9][0-9]{0,18}")
_NUMBER_ALIAS: Final = re.compile("9([0-9]{6})([0-9]{11})")
_TOKEN: Final = re.compile(r"([0-9]{6})([0-9]{14},[0-9]{20})")
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
REFERENCE: Final = "OpaqueRef:"
_REFERENCE: Final = re.compile(REFERENCE + _UUID)
_ONE_UUID: Final = re.compile(_UUID)
NULL: Final = REFERENCE + "NULL"  # xapi's reference to nothing
_TAIL: Final = 1024  # bytes
_SHOWN_OF_A_REFERENCE: Final = 18  # characters: enough to tell two apart, too few to use one

REFERENCE_BYTES: Final = re.compile(_REFERENCE.pattern.encode())
UUID_BYTES: Final = re.compile(_UUID.encode())
TOKEN_BYTES: Final = re.compile(rb"(?<![0-9])[0-9]{20},[0-9]{20}(?![0-9])")
_IN_BYTES: Final = {HandleForm.REFERENCE: REFERENCE_BYTES, HandleForm.TOKEN: TOKEN_BYTES}
FAILURE_BYTES: Final = re.compile(rb'<fault>|<name>ErrorDescription</name>|"ErrorDescription"|"error"\s*:\s*(?!null)')


class Home(NamedTuple):
    """The process behind a service's authority. `number` (1 to HOMES) grows whenever it may be another process.

    `fresh`: it began behind the bridge's doors, so that no legacy caller was ever given one of its own handles.
    """

    number: int
    side: Side
    fresh: bool = False


class Handle(NamedTuple):
    """A handle as a caller sees it and as its home does; kind is the interface data's name for it."""

    kind: str
    alias: str
    native: str


Change = Callable[[Value], Value]
Walk = Callable[[Value, Change], Value]


class Place(NamedTuple):
    """Where handles of a kind stand. `exchange` gives the arguments or the result with each of them changed."""

    kind: str
    form: HandleForm
    exchange: Walk
    look: re.Pattern[bytes] | None = None

    def in_reply(self, reply: bytes) -> re.Match[bytes] | None:
        """The one handle of a successful reply, the group `handle`; None where there is none, or none of that look."""
        if self.look is None:
            return None
        # It stands at the end, behind events that may be megabytes.
        found = [*self.look.finditer(reply, max(0, len(reply) - _TAIL))] or [*self.look.finditer(reply)]
        return found[-1] if found else None

    def found_in(self, whole: Value) -> list[Value]:
        """The handles that stand there."""
        return found_by(self.exchange, whole)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with one method's handles.

    `ends` are those of `consumes` whose handles are no more once the call succeeded. `has_numbers`: it has handles that
    can only be exchanged in neutral values; all others can be exchanged in the bytes of calls and replies too, and
    `takes_*` says which of them a call may bear.
    """

    consumes: tuple[Place, ...] = ()
    produces: tuple[Place, ...] = ()
    ends: tuple[Place, ...] = ()
    has_numbers: bool = False
    takes_references: bool = False
    takes_tokens: bool = False


NOTHING: Final = Plan()


def plan_of(service: Service, method: Method) -> Plan:
    """The handles of a method that are known to one process alone. Raises InterfaceError for a place that is none."""
    consumes = {place: kind for place, kind in method.consumes.items() if kind in service.handles}
    produces = {place: kind for place, kind in method.produces.items() if kind in service.handles}
    if not consumes and not produces:
        return NOTHING

    def taken(place: str, kind: str) -> Place:
        return Place(kind, service.handles[kind], to_arguments(method, place))

    def given(place: str, kind: str) -> Place:
        form = service.handles[kind]
        return Place(kind, form, to_result(method, place), _in_reply(form, place))

    places = {place: taken(place, kind) for place, kind in consumes.items()}
    results = {place: given(place, kind) for place, kind in produces.items()}
    forms = {place.form for place in (*places.values(), *results.values())}
    return Plan(
        consumes=tuple(places.values()),
        produces=tuple(results.values()),
        ends=tuple(places[place] for place in method.ends),
        has_numbers=not forms <= {HandleForm.REFERENCE, HandleForm.TOKEN},
        takes_references=any(place.form is HandleForm.REFERENCE for place in places.values()),
        takes_tokens=any(place.form is HandleForm.TOKEN for place in places.values()),
    )


def to_arguments(method: Method, place: str) -> Walk:
    """The way to a place of `method.consumes` in the arguments by name, of whatever kind the handles there are.

    Raises InterfaceError for a place that is none.
    """
    name, *rest = place.split(".")
    parameters = {parameter.name: parameter.type for parameter in method.parameters}
    return partial(_at_argument, name, _walk(_inside(parameters.get(name), method, place), rest, method))


def to_result(method: Method, place: str) -> Walk:
    """As `to_arguments`, to a place of `method.produces` in the result."""
    _, *rest = place.split(".")
    return _walk(method.result, rest, method)


def found_by(walk: Walk, whole: Value) -> list[Value]:
    """What stands where a way leads to."""
    found: list[Value] = []

    def note(handle: Value) -> Value:
        found.append(handle)
        return handle

    walk(whole, note)
    return found


def _inside(kind: Type | None, method: Method, place: str) -> Type:
    if kind is None:
        raise InterfaceError(f"{method.service}: {method.name} has no {place}")
    return kind


def _at_argument(name: str, walk: Walk, arguments: Value, change: Change) -> Value:
    assert isinstance(arguments, dict)
    if name not in arguments:
        return arguments
    changed = walk(arguments[name], change)
    if changed is None:
        return {key: value for key, value in arguments.items() if key != name}
    return arguments | {name: changed}


def _walk(kind: Type, parts: list[str], method: Method) -> Walk:
    match kind, parts:
        case Option(item), _:
            return partial(_at_option, _walk(item, parts, method))
        case Basic(), []:
            return _here
        case ListOf(item), ["*", *rest]:
            return partial(_at_elements, _walk(item, rest, method))
        case TupleOf(items), [position, *rest] if position.isdecimal() and int(position) < len(items):
            return partial(_at_position, int(position), _walk(items[int(position)], rest, method))
        case Record(fields), [name, *rest] if found := [field.type for field in fields if field.name == name]:
            return partial(_at_member, name, _walk(found[0], rest, method))
        case DictOf(), ["keys"]:
            return _at_keys
        case DictOf(item), ["*", *rest]:
            return partial(_at_values, _walk(item, rest, method))
        case Union() as union, [tag, *rest] if tag in union.by_name:
            carried = _inside(union.by_name[tag].argument, method, tag)
            return partial(_at_case, tag, _walk(carried, rest, method))
    raise InterfaceError(f"{method.service}: {method.name} has no place {'.'.join(parts)} in {kind}")


def _here(value: Value, change: Change) -> Value:
    return change(value)


def _at_option(walk: Walk, value: Value, change: Change) -> Value:
    return None if value is None else walk(value, change)


def _at_elements(walk: Walk, value: Value, change: Change) -> Value:
    assert isinstance(value, list)
    return [walk(item, change) for item in value]


def _at_position(position: int, walk: Walk, value: Value, change: Change) -> Value:
    assert isinstance(value, tuple)
    return (*value[:position], walk(value[position], change), *value[position + 1 :])


def _at_member(name: str, walk: Walk, value: Value, change: Change) -> Value:
    assert isinstance(value, dict)
    return value | {name: walk(value[name], change)} if name in value else value


def _at_keys(value: Value, change: Change) -> Value:
    assert isinstance(value, dict)
    return {str(change(key)): item for key, item in value.items()}


def _at_values(walk: Walk, value: Value, change: Change) -> Value:
    assert isinstance(value, dict)
    return {key: walk(item, change) for key, item in value.items()}


def _at_case(tag: str, walk: Walk, value: Value, change: Change) -> Value:
    assert isinstance(value, Tagged)
    return Tagged(tag, walk(value.argument, change)) if value.tag == tag else value


def _in_reply(form: HandleForm, place: str) -> re.Pattern[bytes] | None:
    """Finds a handle, the group `handle`, in a successful reply in XML or JSON, where it is a member or all of it."""
    if form not in _IN_BYTES:
        return None
    name = place.rpartition(".")[2]
    name = "(?:Value|result)" if name == "result" else name
    before = rf'(?:<name>{name}</name>\s*<value>\s*(?:<string>)?|"{name}"\s*:\s*")'
    return re.compile(before.encode() + b"(?P<handle>" + _IN_BYTES[form].pattern + b")")


def accepts_natives(home: Home, *, was_on_bus: bool, from_bus: bool) -> bool:
    """Whether a handle that is no alias can be one that this home gave out itself.

    A legacy caller may hold it from before the bridge stood at the door. Once the service was on the bus, a caller of
    the bus daemon may hold one of its own.
    """
    if home.fresh:
        return False
    return not was_on_bus or (home.side is Side.LEGACY and not from_bus)


def inward(form: HandleForm, value: Value, home: Home, *, natives: bool) -> Value:
    """What the home gets for a handle that came in, of any form but `reference`; `natives`: see `accepts_natives`."""
    found = _FORMS[form].read(value)
    if found is None:
        return value if natives else _FORMS[form].strange(value)
    number, native = found
    return native if number == home.number else _FORMS[form].strange(value)


def outward(form: HandleForm, native: Value, home: Home) -> Value:
    """The alias of a native of any form but `reference`; the native itself when it does not look like one."""
    return _FORMS[form].write(native, home.number)


def is_reference(value: Value) -> bool:
    """Whether it looks like a reference to something; `OpaqueRef:NULL` does not."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def is_made_up(value: Value) -> bool:
    """Whether it looks as if it was made up to be unlike any other: a reference, or a uuid."""
    return isinstance(value, str) and (value.startswith(REFERENCE) or _ONE_UUID.fullmatch(value) is not None)


def masked(handle: str) -> str:
    """A handle for the eyes of an operator: a reference may be a session, and whoever holds a session can use it."""
    return handle[:_SHOWN_OF_A_REFERENCE] + "..." if is_reference(handle) else handle


class _Form(NamedTuple):
    """`write` gives the alias of a native, `read` the home's number and the native of an alias (None: it is none).

    `strange` is what a daemon gets for a handle that is not its own: something that it cannot know, or for a cursor its
    own "from the beginning".
    """

    write: Callable[[Value, int], Value]
    read: Callable[[Value], tuple[int, Value] | None]
    strange: Callable[[Value], Value]


def _count_text(value: Value) -> int | None:
    return int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else None


def _write_number(native: Value, home: int) -> Value:
    count = _count_text(native)
    return native if count is None or count >= 10**11 else f"9{home:06}{count:011}"


def _read_number(alias: Value) -> tuple[int, Value] | None:
    found = _NUMBER_ALIAS.fullmatch(alias) if isinstance(alias, str) else None
    return None if found is None else (int(found[1]), str(int(found[2])))


def _strange_number(value: Value) -> Value:
    """A text that no daemon counts up to."""
    count = _count_text(value)
    return value if count is None or count >= 10**17 else f"8{count:017}"


def _write_count(native: Value, home: int) -> Value:
    return (home << _SHIFT) + native if isinstance(native, int) and 0 <= native < _COUNTS else native


def _read_count(alias: Value) -> tuple[int, Value] | None:
    return divmod(alias, _COUNTS) if isinstance(alias, int) and alias >= _COUNTS else None


def _write_count_text(native: Value, home: int) -> Value:
    count = _count_text(native)
    return native if count is None or count >= _COUNTS else str((home << _SHIFT) + count)


def _read_count_text(alias: Value) -> tuple[int, Value] | None:
    found = _read_count(_count_text(alias))
    return None if found is None else (found[0], str(found[1]))


def _write_token(native: Value, home: int) -> Value:
    found = _TOKEN.fullmatch(native) if isinstance(native, str) else None
    return native if found is None or int(found[1]) else f"{home:06}{found[2]}"


def _read_token(alias: Value) -> tuple[int, Value] | None:
    found = _TOKEN.fullmatch(alias) if isinstance(alias, str) else None
    return None if found is None or not int(found[1]) else (int(found[1]), f"{0:06}{found[2]}")


def _strange_token(value: Value) -> Value:
    """What looks otherwise is not ours to judge: an older xapi's passes both ways."""
    return "" if isinstance(value, str) and _TOKEN.fullmatch(value) else value


def _beginning_as_text(_value: Value) -> Value:
    """Storage reads a number and takes what is none for the beginning; its callers begin with the empty text."""
    return ""


def _beginning(_value: Value) -> Value:
    """xenopsd tells everything to a caller that names no update."""
    return None


_FORMS: Final = {
    HandleForm.NUMBER: _Form(_write_number, _read_number, _strange_number),
    HandleForm.COUNT: _Form(_write_count, _read_count, _beginning),
    HandleForm.COUNT_TEXT: _Form(_write_count_text, _read_count_text, _beginning_as_text),
    HandleForm.TOKEN: _Form(_write_token, _read_token, _strange_token),
}
