"""Two neutral values compared by the interface's type: what differs, and where.

The path to a difference is made for counting. Below the place where the comparison began it has these steps:
    .NAME a member of a record, or what a constructor carries · [0] the first of a tuple · [*] an element of a list
    [#] how many elements · {*} a value of a map · {#} a key that only one side has
Elements are compared in order, and not at all where their number differs: the rest of a shifted list says nothing.
A path occurs once, with the first values found there; `any` and members that are not written down have no path inside.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from bridges.calls import Tagged, Value
from bridges.faults import Fault, Kind
from bridges.interfaces.model import (
    ANY,
    UNKNOWN_RECORD,
    Basic,
    DictOf,
    ListOf,
    Method,
    Option,
    PerType,
    Record,
    RecordOf,
    TupleOf,
    Type,
    Union,
    bare,
)

LIMIT: Final = 20  # differences of one comparison
SECRET: Final = "(secret)"  # noqa: S105 -- what stands for one
_LONGEST: Final = 60  # characters of a text
_SERVICES_OWN: Final = frozenset({Kind.DECLARED, Kind.UNDECLARED})

Outcome = Value | Fault


class Difference(NamedTuple):
    """One place where two values differ; `left` and `right` say what was there, in at most 60 characters."""

    path: str
    left: str
    right: str


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = _Absent()
Found = dict[str, tuple[Any, Any]]  # the path from here on to what was there
Check = Callable[[Any, Any], Found]
SAME: Final[Found] = {}


class Comparer:
    """Comparison of neutral values, compiled per type. Another form of values has its own leaves and looks.

    Values that are not of their type's shape are compared as they are: nothing here raises.
    """

    def __init__(self) -> None:
        self.of: PerType[Check] = PerType(self._make)

    def differences(self, check: Check, left: Any, right: Any, place: str, *, limit: int = LIMIT) -> list[Difference]:
        """What the check finds, at most `limit` of it, as texts."""
        found = check(left, right)
        if not found:
            return []
        return [
            Difference(place + path, short(one), short(other)) for path, (one, other) in islice(found.items(), limit)
        ]

    def members(self, kinds: Mapping[str, Type], late: Mapping[str, RecordOf] | None = None) -> Check:
        """The check of maps whose members have these types: all of them may be absent, and others may be there."""
        plan = [(name, self.of(kind)) for name, kind in kinds.items()]
        of_class = late or {}
        names = kinds.keys() | of_class.keys()
        other_member = self.of(ANY)

        def check(left: Any, right: Any) -> Found:
            if type(left) is not dict or type(right) is not dict:
                return exactly(left, right)
            items = [*plan, *((name, self.of(kind.beside(left))) for name, kind in of_class.items())] if late else plan
            if not (left.keys() <= names and right.keys() <= names):
                strange = sorted((left.keys() | right.keys()) - names)
                items = [*items, *((name, other_member) for name in strange)]
            found = SAME
            for name, item in items:
                one, other = left.get(name, ABSENT), right.get(name, ABSENT)
                if one is not other:
                    inner = {"": (one, other)} if one is ABSENT or other is ABSENT else item(one, other)
                    if inner:
                        found = _below(found, f".{name}", inner)
            return found

        return check

    def _make(self, kind: Type) -> Check:
        match kind:
            case Basic(name):
                return self._basic(name)
            case Option(item):
                return self._option(self.of(item))
            case ListOf(item):
                return _list(self.of(item))
            case TupleOf(items):
                return _tuple([self.of(item) for item in items])
            case DictOf(item, key):
                return _map(self.of(item), self._key(key))
            case Record():
                return self._record(kind)
            case RecordOf():
                return self.of(UNKNOWN_RECORD)  # inside a record, `members` knows better
            case Union():
                return self._union(kind)

    def _basic(self, name: str) -> Check:
        return {"any": exactly, "float": _float, "string": _text, "char": _text, "datetime": _text}.get(name, _scalar)

    def _option(self, item: Check) -> Check:
        return lambda left, right: exactly(left, right) if left is None or right is None else item(left, right)

    def _key(self, kind: Type) -> Callable[[str], str] | None:
        """How keys of this type are made alike; None: they are as they are."""
        return None

    def _record(self, record: Record) -> Check:
        late = {field.name: field.type for field in record.fields if isinstance(field.type, RecordOf)}
        return self.members({field.name: bare(field.type) for field in record.fields if field.name not in late}, late)

    def _opener(self, union: Union) -> Callable[[Any], Tagged | None]:
        """What gives the tag and what it carries, None for what is no such value."""
        return lambda value: value if isinstance(value, Tagged) else None

    def _union(self, union: Union) -> Check:
        open_one = self._opener(union)
        cases = {c.name: self.of(c.argument) for c in union.constructors if c.argument is not None}

        def check(left: Any, right: Any) -> Found:
            one, other = open_one(left), open_one(right)
            if one is None or other is None:
                return exactly(left, right)
            if one.tag != other.tag:
                return {"": (one.tag, other.tag)}
            inner = cases.get(one.tag, exactly)(one.argument, other.argument)
            return _below(SAME, f".{one.tag}", inner) if inner else SAME

        return check


_NEUTRAL: Final = Comparer()


def differences(
    kind: Type, left: Value, right: Value, place: str = "result", *, limit: int = LIMIT
) -> list[Difference]:
    """Where two neutral values of a type differ. Floats are compared exactly, NaN equals NaN, True is not 1."""
    return _NEUTRAL.differences(_NEUTRAL.of(kind), left, right, place, limit=limit)


def argument_differences(method: Method, left: dict[str, Value], right: dict[str, Value]) -> list[Difference]:
    """Where the neutral arguments of two calls differ, below `arguments`."""
    check = _NEUTRAL.members({p.name: bare(p.type) for p in method.parameters})
    return hide_arguments(method, _NEUTRAL.differences(check, left, right, "arguments"))


def compare(method: Method, left: Outcome, right: Outcome) -> list[Difference]:
    """Where two answers to the same call differ, below `result`, `outcome` or `fault`.

    Of a fault its kind, code and argument count, its text does not.
    """
    if isinstance(left, Fault) and isinstance(right, Fault):
        return _compare_faults(method, left, right)
    if isinstance(left, Fault) or isinstance(right, Fault):
        return [Difference("outcome", _outcome_text(method, left), _outcome_text(method, right))]
    found = differences(method.result, left, right)
    return hide(found) if method.secret_result else found


def _compare_faults(method: Method, left: Fault, right: Fault) -> list[Difference]:
    pairs = (("fault.kind", str(left.kind), str(right.kind)), ("fault.code", left.code, right.code))
    found = [Difference(path, cut(one), cut(other)) for path, one, other in pairs if one != other]
    if found or left.kind not in _SERVICES_OWN:
        return found
    case = method.errors.by_name.get(left.code) if left.kind is Kind.DECLARED else None
    kind = case.argument if case is not None and case.argument is not None else ANY
    inside = differences(kind, left.argument, right.argument, "fault.argument")
    return hide(inside) if has_secrets(method) else inside


def _outcome_text(method: Method, outcome: Outcome) -> str:
    if not isinstance(outcome, Fault):
        return SECRET if method.secret_result else short(outcome)
    if outcome.kind in _SERVICES_OWN or has_secrets(method):
        return cut(f"{outcome.kind} {outcome.code}".rstrip())
    return cut(outcome.sentence)


def has_secrets(method: Method) -> bool:
    """Whether an argument or the result of the method must not be shown."""
    return method.secret_result or any(p.secret for p in method.parameters)


def hide(found: list[Difference]) -> list[Difference]:
    """The same differences without what was there."""
    return [Difference(each.path, SECRET, SECRET) for each in found]


def hide_arguments(method: Method, found: list[Difference]) -> list[Difference]:
    """The same differences of arguments without what was in secret ones, and in those that nobody knows."""
    if not found or not any(p.secret for p in method.parameters):
        return found
    open_ones = {p.name for p in method.parameters if not p.secret}
    return [each if _NEXT_STEP.split(each.path, 2)[1] in open_ones else hide([each])[0] for each in found]


_NEXT_STEP: Final = re.compile(r"[.[{]")


# --- what every form of values shares --------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal with their types (True is not 1), NaN being equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(item, other[name]) for name, item in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def exactly(left: Any, right: Any) -> Found:
    """The check of untyped values."""
    return SAME if same(left, right) else {"": (left, right)}


def _scalar(left: Any, right: Any) -> Found:
    return SAME if left == right and type(left) is type(right) else {"": (left, right)}


def _text(left: Any, right: Any) -> Found:
    return SAME if left == right else {"": (left, right)}


def _float(left: Any, right: Any) -> Found:
    return _scalar(left, right) and exactly(left, right)


def _list(item: Check) -> Check:
    def check(left: Any, right: Any) -> Found:
        if type(left) is not list or type(right) is not list:
            return exactly(left, right)
        if len(left) != len(right):
            return {"[#]": (len(left), len(right))}
        if item is _text and left == right:
            return SAME
        found = SAME
        for one, other in zip(left, right, strict=True):
            inner = item(one, other)
            if inner:
                found = _below(found, "[*]", inner)
        return found

    return check


def _tuple(items: Sequence[Check]) -> Check:
    def check(left: Any, right: Any) -> Found:
        if not isinstance(left, (list, tuple)) or type(left) is not type(right):
            return exactly(left, right)
        if not len(left) == len(right) == len(items):
            return exactly(left, right)
        found = SAME
        for number, (item, one, other) in enumerate(zip(items, left, right, strict=True)):
            inner = item(one, other)
            if inner:
                found = _below(found, f"[{number}]", inner)
        return found

    return check


def _map(item: Check, key: Callable[[str], str] | None) -> Check:
    def check(left: Any, right: Any) -> Found:
        if type(left) is not dict or type(right) is not dict:
            return exactly(left, right)
        if item is _text and left == right:
            return SAME
        if key is not None:
            left, right = ({key(name): value for name, value in side.items()} for side in (left, right))
        found = SAME
        for name, one in left.items():
            other = right.get(name, ABSENT)
            if other is ABSENT:
                found = _below(found, "{#}", {"": (name, ABSENT)})
            elif inner := item(one, other):
                found = _below(found, "{*}", inner)
        if not right.keys() <= left.keys():
            found = _below(found, "{#}", {"": (ABSENT, next(name for name in right if name not in left))})
        return found

    return check


def _below(found: Found, step: str, inner: Found) -> Found:
    """What was found, with what was found one step further in."""
    if not found:
        return {step + path: there for path, there in inner.items()}
    for path, there in inner.items():
        found.setdefault(step + path, there)
    return found


class _Short(reprlib.Repr):
    """Values as Python writes them, large ones cut before they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST
        self.maxlevel = 3

    def repr_Tagged(self, value: Tagged, level: int) -> str:  # noqa: N802 -- reprlib looks for the type's name
        return value.tag if value.argument is None else f"{value.tag}({self.repr1(value.argument, level - 1)})"


_short: Final = _Short()


def short(value: Any) -> str:
    """A value as a text of at most 60 characters."""
    return cut(_short.repr(value))


def cut(text: str, longest: int = _LONGEST) -> str:
    """A text of at most so many characters; what is longer ends in three dots."""
    return text if len(text) <= longest else text[: longest - 3] + "..."
