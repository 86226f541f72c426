"""Values of the legacy protocols compared by the interface's type: the same are those that mean the same.

That is decided as the dialect's decoders decide it: an integer with a tag and without one, a name in another case where
any is taken, a constructor with nothing behind it and with a null. Paths are those of `comparison`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from bridges.calls import Tagged
from bridges.comparison import SAME, Check, Comparer, Found, exactly, same
from bridges.interfaces.model import STRING, Basic, Record, Type, Union
from bridges.xmlrpc_values import Mismatch, Values, open_union
from xmlrpc_gateway.dialects import Dialect
from xmlrpc_gateway.xmlrpc_codec import Value as Wire


@lru_cache
def of(dialect: Dialect) -> WireComparer:
    """The comparison of a dialect's values, made once."""
    return WireComparer(dialect)


class WireComparer(Comparer):
    """Compares wire values. What the decoders refuse is the same only as itself."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect
        self._values = Values(dialect, integers_as_text=True)  # for reading, which is the same either way

    def _basic(self, name: str) -> Check:
        if name == "any":
            return exactly
        read = self._values.reader(Basic(name))

        def check(left: Wire, right: Wire) -> Found:
            try:
                return SAME if same(left, right) or same(read(left), read(right)) else {"": (left, right)}
            except Mismatch:
                return {"": (left, right)}

        return check

    def _option(self, item: Check) -> Check:
        def check(left: Wire, right: Wire) -> Found:
            if isinstance(left, list) and isinstance(right, list) and len(left) == len(right) == 1:
                return item(left[0], right[0])
            return exactly(left, right)

        return check

    def _key(self, kind: Type) -> Callable[[str], str] | None:
        if kind == STRING:
            return None
        read = self._values.reader(kind)

        def alike(name: str) -> str:
            try:
                key = read(name)
            except Mismatch:
                return name
            return key.tag if isinstance(key, Tagged) else str(key)

        return alike

    def _record(self, record: Record) -> Check:
        check = super()._record(record)
        declared = {field.name.lower(): field.name for field in record.fields}
        if not self._dialect.case_insensitive_members:
            return check

        def spelt(value: Wire) -> Wire:
            if not isinstance(value, dict):
                return value
            found = {declared.get(name.lower(), name): item for name, item in value.items()}
            return found if len(found) == len(value) else value

        return lambda left, right: check(spelt(left), spelt(right))

    def _opener(self, union: Union) -> Callable[[Any], Tagged | None]:
        folds = self._dialect.case_insensitive_variants
        cases = {case.name.lower() if folds else case.name: case for case in union.constructors}

        def open_one(value: Any) -> Tagged | None:
            try:
                tag, rest = open_union(value)
            except Mismatch:
                return None
            carried: Any = rest
            case = cases.get(tag.lower() if folds else tag)
            if case is None:
                return Tagged(tag, carried)
            if not case.flat and len(rest) < 2:  # nothing, and a null, are the same
                carried = rest[0] if rest else None
            return Tagged(case.name, carried)

        return open_one
