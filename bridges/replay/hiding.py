"""What hides a difference at a path of two answers, and the walk to where it stands."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from bridges.calls import Tagged, Value
from bridges.comparison import ABSENT, Outcome, same
from bridges.faults import Fault

PAIRS: Final = 1 << 16  # handles that one mask remembers
_STEP: Final = re.compile(r"\.([^.\[\]{}]+)|(\[\*\]|\[#\]|\{\*\}|\{#\})|\[(\d{1,4})\]")
_HANDLE: Final = re.compile(r"OpaqueRef:[0-9a-f-]{36}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{1,20}(?:,\d{20})?")
_ROOTS: Final = ("result", "fault.argument")

# Whether the difference between the recorded and the replayed value is hidden; ABSENT stands for none. It is asked
# about equal values too, so that it can remember them.
Hides = Callable[[Any, Any], bool]


class Path(NamedTuple):
    """A path in its parts: `result` or `fault.argument`, and the steps below it."""

    root: str
    steps: tuple[str, ...]


def path_of(text: str) -> Path | None:
    """The parts of a path; None for a text that is none, or that must not be hidden."""
    for root in _ROOTS:
        rest = text.removeprefix(root)
        if rest != text:
            steps = tuple(match[0] for match in _STEP.finditer(rest))
            return Path(root, steps) if "".join(steps) == rest else None
    return None


def near(rel: float, absolute: float) -> Hides:
    """Numbers at most so far apart: one of the two is enough."""
    return partial(_are_near, rel, absolute)


def times(within: float | None) -> Hides:
    """Times, at most so many seconds apart."""
    return partial(_are_times, within)


def matched(pattern: re.Pattern[str]) -> Hides:
    """Texts of which the pattern matches all."""
    return partial(_are_matched, pattern)


def _have_one_shape(left: Any, right: Any) -> bool:
    if type(left) is not type(right) or left is ABSENT:
        return False
    match left:
        case Tagged():
            return bool(left.tag == right.tag) and _have_one_shape(left.argument, right.argument)
        case dict():
            return left.keys() == right.keys() and all(_have_one_shape(left[name], right[name]) for name in left)
        case tuple():
            return len(left) == len(right) and all(map(_have_one_shape, left, right))
    return True


def _are_near(rel: float, absolute: float, left: Any, right: Any) -> bool:
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right)):
        return False
    try:
        distance = abs(left - right)
        return math.isfinite(distance) and bool(distance <= absolute or distance <= rel * abs(left))
    except OverflowError:  # an integer beyond all floats
        return False


def _are_one_set(left: Any, right: Any) -> bool:
    if not (isinstance(left, list) and isinstance(right, list) and len(left) == len(right)):
        return False
    return sorted(map(_canonical, left)) == sorted(map(_canonical, right))


def _canonical(value: Value) -> str:
    """A text that equal values share, whatever the order of their members."""
    match value:
        case Tagged(tag, argument):
            return f"{tag}<{_canonical(argument)}>"
        case dict():
            return f"{{{','.join(f'{name!r}:{_canonical(item)}' for name, item in sorted(value.items()))}}}"
        case list() | tuple():
            return f"{type(value).__name__}[{','.join(map(_canonical, value))}]"
    return repr(value)


def _are_times(within: float | None, left: Any, right: Any) -> bool:
    one, other = _seconds(left), _seconds(right)
    return one is not None and other is not None and (within is None or abs(one - other) <= within)


def _seconds(value: Any) -> float | None:
    """A time as seconds since 1970; one without a zone is in UTC, as those of the toolstack are."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if math.isfinite(value) else None
        if not isinstance(value, str):
            return None
        found = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        return None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _are_matched(pattern: re.Pattern[str], left: Any, right: Any) -> bool:
    return all(isinstance(side, str) and pattern.fullmatch(side) is not None for side in (left, right))


class _OneToOne:
    """Whether handles stand for each other, one for one; of very many, the first are forgotten."""

    def __init__(self) -> None:
        self._pairs: tuple[OrderedDict[str, str], OrderedDict[str, str]] = (OrderedDict(), OrderedDict())

    def __call__(self, left: Any, right: Any) -> bool:
        if type(left) is not type(right) or not (_is_handle(left) and _is_handle(right)):
            return False
        one, other = str(left), str(right)
        is_so = True
        for known, key, value in zip(self._pairs, (one, other), (other, one), strict=True):
            is_so = known.setdefault(key, value) == value and is_so
            if len(known) > PAIRS:
                known.popitem(last=False)
        return is_so


def _is_handle(value: Any) -> bool:
    if isinstance(value, str):
        return _HANDLE.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# What takes no argument: made for each run.
PLAIN: Final[dict[str, Callable[[], Hides]]] = {
    "ignore": lambda: lambda _left, _right: True,
    "shape": lambda: _have_one_shape,
    "set": lambda: _are_one_set,
    "handle": _OneToOne,
}


def covered(path: Path, recorded: Outcome, replayed: Outcome, hides: Hides) -> Outcome:
    """The replayed answer with the recorded value at that path, wherever they differ and that is to be hidden.

    It is the same object where nothing was.
    """
    if isinstance(recorded, Fault) and isinstance(replayed, Fault):
        if path.root != "fault.argument":
            return replayed
        argument = _at(path.steps, recorded.argument, replayed.argument, hides)
        if argument is replayed.argument:
            return replayed
        return Fault(replayed.kind, replayed.text, code=replayed.code, argument=argument)
    if isinstance(recorded, Fault) or isinstance(replayed, Fault) or path.root != "result":
        return replayed
    found: Outcome = _at(path.steps, recorded, replayed, hides)
    return found


def _at(steps: tuple[str, ...], left: Any, right: Any, hides: Hides) -> Any:
    """What stands on the right, or on the left where a difference is hidden. ABSENT is on either side."""
    if not steps:
        return left if hides(left, right) and not same(left, right) else right
    step, rest = steps[0], steps[1:]
    match step, left, right:
        case "[*]", list(), list() if len(left) == len(right):
            return _changed(right, [_at(rest, one, other, hides) for one, other in zip(left, right, strict=True)])
        case "[#]", list(), list() if len(left) != len(right) and not rest:
            return left if hides(len(left), len(right)) else right
        case "{*}", dict(), dict():
            return _changed_map(
                right, {key: _at(rest, left[key], right[key], hides) for key in right.keys() & left.keys()}
            )
        case "{#}", dict(), dict() if not rest:
            return _with_keys(left, right, hides)
        case _, Tagged(), Tagged():
            return _at_case(step[1:], rest, left, right, hides)
        case _, dict(), dict() if step[0] == ".":
            return _at_member(step[1:], rest, left, right, hides)
        case _, tuple(), tuple() if step[1:-1].isdecimal() and int(step[1:-1]) < min(len(left), len(right)):
            number = int(step[1:-1])
            found = _at(rest, left[number], right[number], hides)
            return right if found is right[number] else (*right[:number], found, *right[number + 1 :])
    return right


def _at_case(tag: str, rest: tuple[str, ...], left: Tagged, right: Tagged, hides: Hides) -> Tagged:
    if not left.tag == right.tag == tag:
        return right
    found = _at(rest, left.argument, right.argument, hides)
    return right if found is right.argument else Tagged(tag, found)


def _at_member(name: str, rest: tuple[str, ...], left: dict[str, Any], right: dict[str, Any], hides: Hides) -> Any:
    one, other = left.get(name, ABSENT), right.get(name, ABSENT)
    found = _at(rest, one, other, hides)
    if found is other:
        return right
    return {key: item for key, item in right.items() if key != name} if found is ABSENT else right | {name: found}


def _with_keys(left: dict[str, Any], right: dict[str, Any], hides: Hides) -> dict[str, Any]:
    """The right map with the keys of the left one, where what is there on one side only is hidden."""
    found = dict(right)
    for key in right.keys() - left.keys():
        if hides(ABSENT, key):
            del found[key]
    for key in left.keys() - right.keys():
        if hides(key, ABSENT):
            found[key] = left[key]
    return found if len(found) != len(right) or found.keys() != right.keys() else right


def _changed(before: list[Any], after: list[Any]) -> list[Any]:
    return before if all(one is other for one, other in zip(before, after, strict=True)) else after


def _changed_map(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return before if all(before[key] is item for key, item in after.items()) else before | after
