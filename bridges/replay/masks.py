"""Masks: differences between the recorded and the replayed answer that somebody answers for, until a day.

    [[mask]]
    where = "squeezed.get_diagnostics:result"      # SERVICE.METHOD:PATH; METHOD may be *
    kind = "shape"
    reason = "free text with counters"
    owner = "alice"
    expires = 2027-03-01                           # the last day on which it hides anything
    id = "diagnostics"                             # optional, as are arg and ticket

PATH is written as `comparison` writes paths, and begins with `result` or `fault.argument`: never hidden are whether it
is a fault, its kind and its code. `.NAME` also finds a key of a map. What stands below the path is covered too.

    kind        hides a difference                                                          arg
    ignore      whatever is there, or not
    shape       of the same shape: types, members, constructors; lists of any length
    tolerance   between numbers, of at most ABS or REL times the recorded one               { abs = 4, rel = 0.02 }
    set         in the order of a list
    time        between times (ISO 8601, or seconds since 1970), within so many seconds     { within = 60 }, or none
    regex       between texts of which all of both is matched                               "vm-[0-9]+"
    handle      between handles, if each stands for the same other one over the whole run
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date, datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from bridges.comparison import Outcome
from bridges.interfaces import model
from bridges.replay import hiding
from bridges.replay.results import MaskRow

KINDS: Final = ("ignore", "shape", "tolerance", "set", "time", "regex", "handle")
GREEDY: Final = 0.05  # of a method's comparisons
STALE_TEXT: Final = "stale"
GREEDY_TEXT: Final = "greedy"
EXPIRED_TEXT: Final = "expired"
_KEYS: Final = ("id", "where", "kind", "arg", "reason", "owner", "expires", "ticket")
_WHERE: Final = re.compile(r"(?P<service>[a-z0-9_-]+)\.(?P<method>[\w.-]+|\*):(?P<path>.+)", re.DOTALL)


class MasksError(Exception):
    """A file of masks cannot be used. `problems` has one line per mistake: the place, what is there, what is wanted."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Mask(NamedTuple):
    """One mask of a file. `hides` is made by `make` for each run, since a mask of handles remembers them."""

    id: str
    where: str
    service: str
    method: str
    path: hiding.Path
    kind: str
    make: Callable[[], hiding.Hides]
    reason: str
    owner: str
    expires: date
    ticket: str = ""

    def is_about(self, service: str, method: str) -> bool:
        return self.service == service and self.method in ("*", method)


Masks: TypeAlias = tuple[Mask, ...]


# --- reading a file --------------------------------------------------------------------------------------------------


def decode(content: bytes) -> Masks:
    """The masks in a file's content. Raises MasksError with every mistake."""
    try:
        data = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise MasksError([f"expected UTF-8 text, got byte 0x{content[error.start]:02x} at {error.start}"]) from None
    except (ValueError, RecursionError) as error:
        raise MasksError([str(error)]) from None
    problems = [f"{key}: unknown key; known here: mask" for key in data if key != "mask"]
    tables = data.get("mask", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise MasksError([*problems, f"mask: expected [[mask]] tables, got {_shown(tables)}"])
    found = [_Reader(number, table, problems).mask() for number, table in enumerate(tables, 1)]
    for name, count in Counter(mask.id for mask in found if mask is not None).items():
        if count > 1:
            problems.append(f"mask: {count} masks have the id {name!r}; give each its own")
    if problems:
        raise MasksError(problems)
    return tuple(mask for mask in found if mask is not None)


class _Reader:
    """One [[mask]] table, read key by key; what is wrong is noted with its place."""

    def __init__(self, number: int, table: dict[str, Any], problems: list[str]) -> None:
        self._table = table
        self._place = f"mask {number}" + (f" ({table['id']})" if isinstance(table.get("id"), str) else "")
        self._problems = problems

    def mask(self) -> Mask | None:
        before = len(self._problems)
        for key in self._table:
            if key not in _KEYS:
                self._problem(key, f"unknown key; known here: {', '.join(_KEYS)}")
        where, kind = self._text("where"), self._text("kind")
        reason, owner, expires = self._text("reason"), self._text("owner"), self._expires()
        ticket = self._text("ticket", "")
        parts = self._where(where) if where else None
        make = self._make(kind) if kind else None
        name = self._text("id", f"{where} {kind}")
        if len(self._problems) > before or parts is None or make is None or expires is None:
            return None
        service, method, path = parts
        return Mask(name, where, service, method, path, kind, make, reason, owner, expires, ticket)

    def _problem(self, key: str, text: str) -> None:
        self._problems.append(f"{self._place}.{key}: {text}")

    def _text(self, key: str, default: str | None = None) -> str:
        value = self._table.get(key, default)
        if value is None:
            self._problem(key, "is missing: expected a text")
        elif not isinstance(value, str) or (not value.strip() and value != default):
            self._problem(key, f"expected a text, got {_shown(value)}")
        else:
            return value
        return ""

    def _expires(self) -> date | None:
        value = self._table.get("expires")
        if isinstance(value, date) and not isinstance(value, datetime):
            return value
        got = "is missing: " if value is None else ""
        self._problem("expires", f"{got}expected a date such as 2027-03-01" + ("" if got else f", got {_shown(value)}"))
        return None

    def _where(self, where: str) -> tuple[str, str, hiding.Path] | None:
        match = _WHERE.fullmatch(where)
        if match is None:
            self._problem("where", f"expected 'SERVICE.METHOD:PATH' such as 'squeezed.*:result', got {where!r}")
            return None
        service, method, path = match["service"], match["method"], hiding.path_of(match["path"])
        services = model.services()
        known = [model.load_dialect(service, each) for each in model.dialects(service)] if service in services else []
        if not known:
            self._problem("where", f"no interface is written down for {service!r}; known: {', '.join(services)}")
        elif method != "*" and not any(each.method(method) for each in known):
            self._problem("where", f"{service} has no method {method!r}")
        if path is None:
            self._problem(
                "where",
                f"expected a path below result or fault.argument such as 'result[*].size', got {match['path']!r}; "
                "whether it is a fault, its kind and its code are never hidden",
            )
        return None if path is None else (service, method, path)

    def _make(self, kind: str) -> Callable[[], hiding.Hides] | None:
        if kind not in KINDS:
            self._problem("kind", f"expected one of {', '.join(KINDS)}, got {kind!r}")
            return None
        arg = self._table.get("arg")
        match kind:
            case "tolerance":
                if (found := _numbers(arg, {"rel", "abs"})) is not None:
                    return partial(hiding.near, found.get("rel", 0), found.get("abs", 0))
                self._problem("arg", f"expected {{ rel = 0.02 }} or {{ abs = 4 }}, got {_shown(arg)}")
            case "time":
                if arg is None:
                    return partial(hiding.times, None)
                if (found := _numbers(arg, {"within"})) is not None:
                    return partial(hiding.times, found["within"])
                self._problem("arg", f"expected {{ within = SECONDS }} or nothing, got {_shown(arg)}")
            case "regex":
                pattern = _pattern(arg)
                if pattern is not None:
                    return partial(hiding.matched, pattern)
                self._problem("arg", f"expected a regular expression as a text, got {_shown(arg)}")
            case _ if arg is not None:
                self._problem("arg", f"a mask of the kind {kind} takes none, got {_shown(arg)}")
            case _:
                return hiding.PLAIN[kind]
        return None


def _numbers(arg: Any, names: set[str]) -> dict[str, float] | None:
    if not isinstance(arg, dict) or not arg or not arg.keys() <= names:
        return None
    are_numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e18 for n in arg.values())
    return arg if are_numbers else None


def _pattern(arg: Any) -> re.Pattern[str] | None:
    try:
        return re.compile(arg) if isinstance(arg, str) and arg else None
    except (re.error, RecursionError, OverflowError):
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- a run -----------------------------------------------------------------------------------------------------------


class Cover:
    """The masks of a run, and what they hid in it."""

    def __init__(self, masks: Iterable[Mask], today: date) -> None:
        self._today = today
        self._all = [_Applied(mask, mask.make()) for mask in masks]
        self._of: dict[tuple[str, str], list[_Applied]] = {}

    def hide(self, service: str, method: str, recorded: Outcome, replayed: Outcome) -> Outcome:
        """The replayed answer with the recorded value wherever a mask hides the difference.

        To be asked for every comparison, also where nothing differs.
        """
        for applied in self._about(service, method):
            applied.compared += 1
            if applied.mask.expires >= self._today:
                replayed = applied.hide(recorded, replayed)
        return replayed

    @property
    def expired(self) -> list[Mask]:
        return [applied.mask for applied in self._all if applied.mask.expires < self._today]

    def rows(self) -> list[MaskRow]:
        return [
            MaskRow(
                id=mask.id,
                where=mask.where,
                kind=mask.kind,
                owner=mask.owner,
                reason=mask.reason,
                expires=mask.expires.isoformat(),
                hits=applied.hits,
                compared=applied.compared,
                warning=self._warning(applied),
            )
            for applied in self._all
            for mask in (applied.mask,)
        ]

    def _about(self, service: str, method: str) -> list[_Applied]:
        found = self._of.get((service, method))
        if found is None:
            found = [applied for applied in self._all if applied.mask.is_about(service, method)]
            self._of[service, method] = found
        return found

    def _warning(self, applied: _Applied) -> str:
        if applied.mask.expires < self._today:
            return EXPIRED_TEXT
        if applied.compared and not applied.hits:
            return STALE_TEXT
        return GREEDY_TEXT if applied.hits > GREEDY * applied.compared else ""


class _Applied:
    """A mask in a run: in how many comparisons it hid something, of how many."""

    def __init__(self, mask: Mask, hides: hiding.Hides) -> None:
        self.mask = mask
        self.hits = 0
        self.compared = 0
        self._hides = hides

    def hide(self, recorded: Outcome, replayed: Outcome) -> Outcome:
        found = hiding.covered(self.mask.path, recorded, replayed, self._hides)
        if found is not replayed:
            self.hits += 1
        return found
