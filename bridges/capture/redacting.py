"""How the values of a type are redacted: one closure per type, which leaves alone what holds no secret.

A closure gives the same object when nothing was changed; else it leaves the paths of what was, below the value that it
was given, in the `Pass`. None in its place: values of that type have no text. Untyped values have no paths inside.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from bridges.calls import Tagged
from bridges.capture.rules import UNDECLARED, is_secret_name
from bridges.capture.texts import CONSTANTS, Change, Pass, Texts
from bridges.comparison import SECRET
from bridges.interfaces.model import (
    STRING,
    UNKNOWN_RECORD,
    Basic,
    DictOf,
    HandleForm,
    InterfaceError,
    ListOf,
    Option,
    PerType,
    Record,
    RecordOf,
    Service,
    TupleOf,
    Type,
    Union,
    bare,
)

UNTYPED: Final[Type] = Basic("any")
# Members that are secret under a harmless name.
MEMBERS: Final = frozenset({("secret record", "value")})


class Kinds:
    """The types of one service: as they are (`open`), below a secret name or mark (`secret`)."""

    def __init__(self, service: Service, texts: Texts) -> None:
        self._texts = texts
        self.text: Change = texts.open
        self.open: PerType[Change | None] = PerType(lambda kind: self._make(kind, is_secret=False))
        self.secret: PerType[Change | None] = PerType(lambda kind: self._make(kind, is_secret=True))
        self._credentials = {kind for kind, form in service.handles.items() if form is HandleForm.REFERENCE}
        # By identity, as in PerType: all references to a class share one type.
        self._references: dict[int, Change] = {
            id(kind): texts.credential if name in self._credentials else texts.reference
            for name in service.objects
            if (kind := _reference_to(service, name)) is not None
        }

    def open_with_handles(self, kind: Type, handles: frozenset[str]) -> Change | None:
        """As `open`, with members that are handles whatever their names are."""
        if handles and isinstance(kind, Record):
            return self._record(kind, is_secret=False, handles=handles)
        return self.open(kind)

    def members(
        self, plan: Mapping[str, Change | None], value: Any, under_way: Pass, *, are_secret: bool = False
    ) -> Any:
        """A record, or arguments by name, with a closure for each member that is written down."""
        changed = value
        renamed: dict[str, str] = {}
        for name, one in value.items():
            step = name
            if name in plan:
                change = plan[name]
                if change is None:
                    continue
            else:
                step, is_secret = self._texts.key(name, under_way)
                change = self._secret_untyped if is_secret or are_secret else self._unknown
                if step is not name:
                    renamed[name] = step
            mark = len(under_way.paths)
            new = change(one, under_way)
            if new is not one:
                under_way.below(mark, f".{step}")
                changed = dict(value) if changed is value else changed
                changed[name] = new
        return _renamed(changed, renamed, under_way) if renamed else changed

    def _of(self, kind: Type, *, is_secret: bool) -> Change | None:
        return self.secret(kind) if is_secret else self.open(kind)

    def _make(self, kind: Type, *, is_secret: bool) -> Change | None:
        match kind:
            case Basic(name):
                return self._basic(kind, name, is_secret=is_secret)
            case Option(item):
                return _option(self._of(item, is_secret=is_secret))
            case ListOf(item):
                return _list(self._of(item, is_secret=is_secret))
            case TupleOf(items):
                return _tuple([self._of(item, is_secret=is_secret) for item in items])
            case DictOf():
                return self._map(kind, is_secret=is_secret)
            case Record():
                return self._record(kind, is_secret=is_secret)
            case RecordOf():
                return self._of(UNKNOWN_RECORD, is_secret=is_secret)  # inside a record, `_record` knows better
            case Union():
                return self._union(kind, is_secret=is_secret)

    def _basic(self, kind: Type, name: str, *, is_secret: bool) -> Change | None:
        if id(kind) in self._references:
            change = self._references[id(kind)]
            return partial(self._texts.named_reference, change) if is_secret else change
        if name == "any":
            return self._secret_untyped if is_secret else self._untyped
        if name != "string":
            return None
        return self._texts.secret if is_secret else self._texts.open

    def _map(self, kind: DictOf, *, is_secret: bool) -> Change | None:
        item, hidden = self._of(kind.item, is_secret=is_secret), self.secret(kind.item)
        if id(kind.key) in self._references:
            return _keyed_map(item, self._references[id(kind.key)])
        if kind.key != STRING:
            return _keyed_map(item, None)
        look = self._texts.key

        def change(value: Any, under_way: Pass) -> Any:
            changed, mark = value, len(under_way.paths)
            renamed: dict[str, str] = {}
            for name, one in value.items():
                key, is_name = look(name, under_way)
                if key is not name:
                    renamed[name] = key
                inner = hidden if is_name else item
                if inner is not None and (new := inner(one, under_way)) is not one:
                    changed = dict(value) if changed is value else changed
                    changed[name] = new
            if changed is not value:
                under_way.below(mark, "{*}")
            return _renamed(changed, renamed, under_way) if renamed else changed

        return change

    def _record(self, record: Record, *, is_secret: bool, handles: frozenset[str] = frozenset()) -> Change:
        def is_hidden(name: str) -> bool:
            return is_secret or (record.name, name) in MEMBERS or (name not in handles and is_secret_name(name))

        late = [(field.name, field.type) for field in record.fields if isinstance(field.type, RecordOf)]
        plan = {f.name: self._of(bare(f.type), is_secret=is_hidden(f.name)) for f in record.fields}
        if not late:
            return partial(self.members, plan, are_secret=is_secret)

        def change(value: Any, under_way: Pass) -> Any:
            """An event: `ref` is a reference to the class that is named beside it."""
            found = dict(plan)
            for name, kind in late:
                found[name] = self._of(kind.beside(value), is_secret=is_secret)
                is_credential = str(value.get(kind.member, "")).lower() in self._credentials
                found["ref"] = self._texts.credential if is_credential else self._texts.reference
            return self.members(found, value, under_way, are_secret=is_secret)

        return change

    def _union(self, union: Union, *, is_secret: bool) -> Change | None:
        cases = {
            case.name: self._of(case.argument, is_secret=is_secret or is_secret_name(case.name))
            for case in union.constructors
            if case.argument is not None
        }
        if not any(cases.values()):
            return None

        def change(value: Any, under_way: Pass) -> Any:
            inner = cases.get(value.tag)
            if inner is None:
                return value
            mark = len(under_way.paths)
            new = inner(value.argument, under_way)
            if new is value.argument:
                return value
            under_way.below(mark, f".{value.tag}")
            return Tagged(value.tag, new)

        return change

    # --- values without a type: no paths inside ---

    def _untyped(self, value: Any, under_way: Pass) -> Any:
        return self._whole(value, under_way, self._texts.open, SECRET, numbers=False)

    def _secret_untyped(self, value: Any, under_way: Pass) -> Any:
        return self._whole(value, under_way, self._texts.secret, SECRET, numbers=True)

    def _unknown(self, value: Any, under_way: Pass) -> Any:
        return self._whole(value, under_way, _undeclared, UNDECLARED, numbers=False)

    def _whole(self, value: Any, under_way: Pass, text: Change, constant: str, *, numbers: bool) -> Any:
        mark = len(under_way.paths)

        def inside(one: Any, text: Change, *, numbers: bool) -> Any:
            match one:
                case str():
                    return text(one, under_way)
                case bytes():
                    return constant
                case bool() | None:
                    return one
                case int() | float():
                    return SECRET if numbers else one
                case dict():
                    return members(one, text, numbers=numbers)
                case list() | tuple():
                    found = [inside(item, text, numbers=numbers) for item in one]
                    return one if all(map(operator.is_, found, one)) else found
                case _:
                    return constant

        def members(one: dict[str, Any], text: Change, *, numbers: bool) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, item in one.items():
                key, is_name = self._texts.key(name, under_way)
                new = inside(item, self._texts.secret, numbers=True) if is_name else inside(item, text, numbers=numbers)
                found[_unused(key, found)] = new
            is_same = all(map(operator.is_, found, one)) and all(map(operator.is_, found.values(), one.values()))
            return one if is_same else found

        new = inside(value, text, numbers=numbers)
        if new is not value:
            under_way.paths[mark:] = [""]
        return new


def _reference_to(service: Service, name: str) -> Type | None:
    try:
        return service.type({"ref": f"{name} ref"})
    except InterfaceError:
        return None


def _undeclared(text: str, _under_way: Pass) -> str:
    return text if text == "" or text in CONSTANTS else UNDECLARED


def _option(item: Change | None) -> Change | None:
    return item and (lambda value, under_way: None if value is None else item(value, under_way))


def _list(item: Change | None) -> Change | None:
    if item is None:
        return None

    def change(value: Any, under_way: Pass) -> Any:
        changed, mark = value, len(under_way.paths)
        for index, one in enumerate(value):
            new = item(one, under_way)
            if new is not one:
                changed = list(value) if changed is value else changed
                changed[index] = new
        if changed is not value:
            under_way.below(mark, "[*]")
        return changed

    return change


def _tuple(items: list[Change | None]) -> Change | None:
    if not any(items):
        return None

    def change(value: Any, under_way: Pass) -> Any:
        changed = value
        for index, (item, one) in enumerate(zip(items, value, strict=True)):
            mark = len(under_way.paths)
            if item is not None and (new := item(one, under_way)) is not one:
                under_way.below(mark, f"[{index}]")
                changed = (*changed[:index], new, *changed[index + 1 :])
        return changed

    return change


def _keyed_map(item: Change | None, key: Change | None) -> Change | None:
    """A map whose keys are references, numbers or cases of a union."""
    if item is None and key is None:
        return None

    def change(value: Any, under_way: Pass) -> Any:
        changed, mark = value, len(under_way.paths)
        renamed: dict[str, str] = {}
        for name, one in value.items():
            if item is not None and (new := item(one, under_way)) is not one:
                changed = dict(value) if changed is value else changed
                changed[name] = new
        if changed is not value:
            under_way.below(mark, "{*}")
        if key is not None:
            mark = len(under_way.paths)
            renamed = {name: new for name in value if (new := key(name, under_way)) is not name}
            del under_way.paths[mark:]
        return _renamed(changed, renamed, under_way) if renamed else changed

    return change


def _renamed(value: dict[str, Any], renamed: Mapping[str, str], under_way: Pass) -> dict[str, Any]:
    """The map with other keys, in the same order."""
    under_way.paths.append("{#}")
    found: dict[str, Any] = {}
    for name, item in value.items():
        found[_unused(renamed.get(name, name), found)] = item
    return found


def _unused(key: str, taken: Mapping[str, Any]) -> str:
    while key in taken:
        key += "+"
    return key
