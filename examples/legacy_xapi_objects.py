"""The objects of the small legacy xapi: its data model, a database of records, and what changed in it.

legacy_xapi_model.json holds the classes: enums, relations, fields, calls. Refs and uuids of objects are made from their
place in the history (uuid5), so that two daemons that were asked the same have the same ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Record = dict[str, Value]

NULL = "OpaqueRef:NULL"
NAMESPACE = uuid.UUID("f2d8a1c6-7d0a-4d52-9f5e-0c1f6b1f3a77")
NEVER = "19700101T00:00:00Z"
DELETIONS = 500  # so many are remembered; who asks with an older token has lost events
VERBS = ("get_", "set_", "add_to_", "remove_from_", "add_", "remove_")
SILENT = {"session"}  # classes without events


class DateTime(str):
    """A text that has a tag of its own in XML."""

    __slots__ = ()

    @classmethod
    def now(cls) -> DateTime:
        """UTC, in seconds."""
        return cls(datetime.now(UTC).strftime("%Y%m%dT%H:%M:%SZ"))


class Int32(int):
    """A number that has a tag in XML; the others are plain text there."""


class Failure(Exception):
    """An error of the XenAPI: a code and texts."""

    def __init__(self, code: str, *params: str) -> None:
        super().__init__(code)
        self.description: list[Value] = [code, *params]


@dataclass(frozen=True, slots=True)
class Call:
    """A method: its parameters after the session, by name; `verb` and `field` when it is about one field."""

    kind: str
    name: str
    params: dict[str, str]
    result: str
    optional: int = 0
    is_async: bool = False
    session: bool = True
    verb: str = ""
    field: str = ""


class Model:
    """What legacy_xapi_model.json says: fields[CLASS][FIELD] is a type, calls[CLASS.NAME] a Call."""

    def __init__(self) -> None:
        data = json.loads(Path(__file__).with_name("legacy_xapi_model.json").read_text())
        self.enums: dict[str, list[str]] = data["enums"]
        self.relations: list[list[str]] = data["relations"]
        self.fields: dict[str, dict[str, str]] = {}
        self.calls: dict[str, Call] = {}
        self._defaults: dict[str, Record] = {}
        for kind, described in data["classes"].items():
            self.fields[kind] = {name: found[0] for name, found in described["fields"].items()}
            self._defaults[kind] = {name: found[2] for name, found in described["fields"].items() if found[2:]}
            for name in described["implied"]:
                if name == "fields":
                    self._add_field_calls(kind, {n for n, found in described["fields"].items() if found[1] == "RW"})
                else:
                    self._add(kind, name, *_implied(kind, name))
            for name, call in described["calls"].items():
                self._add(kind, name, **call)
        self.kinds = {kind.lower(): kind for kind in self.fields}
        self.aliases = {name.replace(".", "_", 1): name for name in self.calls}

    def _add(self, kind: str, name: str, params: dict[str, str], result: str, **options: Any) -> None:
        verb = next((v for v in VERBS if name.startswith(v) and name.removeprefix(v) in self.fields[kind]), "")
        about = name.removeprefix(verb) if verb else ""
        self.calls[f"{kind}.{name}"] = Call(kind, name, params, result, verb=verb, field=about, **options)

    def _add_field_calls(self, kind: str, writable: set[str]) -> None:
        target = {"self": f"{kind} ref"}
        for name, of in self.fields[kind].items():
            self._add(kind, f"get_{name}", target, of)
            if name not in writable:
                continue
            self._add(kind, f"set_{name}", target | {"value": of}, "void")
            if of.endswith(" map"):
                key, value = _key_and_value(of)
                self._add(kind, f"add_to_{name}", target | {"key": key, "value": value}, "void")
                self._add(kind, f"remove_from_{name}", target | {"key": key}, "void")
            elif of.endswith(" set"):
                for verb in ("add_", "remove_"):
                    self._add(kind, verb + name, target | {"value": of.removesuffix(" set")}, "void")

    def record(self, kind: str, given: Record) -> Record:
        """A whole record: what is not given has its default."""
        zeros = {name: self.zero(of) for name, of in self.fields[kind].items()}
        return zeros | self._defaults[kind] | {name: value for name, value in given.items() if name in zeros}

    def zero(self, of: str) -> Value:
        """The value of a type when nobody gave one."""
        if of.endswith(" ref"):
            return NULL
        if of.endswith((" set", " map", " record")):
            return [] if of.endswith(" set") else {}
        if of.startswith("enum "):
            return self.enums[of.removeprefix("enum ")][0]
        zeros: Record = {"int": 0, "float": 0.0, "bool": False, "datetime": DateTime(NEVER)}
        return zeros.get(of, "")

    def read(self, of: str, value: Value, name: str) -> Value:
        """A value that came in, as its type; numbers may be texts. Raises Failure, which names the field."""
        if of.endswith(" set") and isinstance(value, list):
            return [self.read(of.removesuffix(" set"), item, name) for item in value]
        if of.endswith(" map") and isinstance(value, dict):
            inner = _key_and_value(of)[1]
            return {key: self.read(inner, item, name) for key, item in value.items()}
        if of.endswith(" record") and isinstance(value, dict):
            kind = of.removesuffix(" record")
            known = {key: of for key, of in self.fields[kind].items() if key in value}
            return {key: self.read(of, value[key], key) for key, of in known.items()}
        if of.startswith("enum ") and " " not in of[5:] and isinstance(value, str):
            spellings = {one.lower(): one for one in self.enums[of[5:]]}
            if value.lower() not in spellings:
                raise Failure("VALUE_NOT_SUPPORTED", name, value, "the value is not in the enumeration")
            return spellings[value.lower()]
        return _read_plain(of, value, name)


def _implied(kind: str, name: str) -> tuple[dict[str, str], str]:
    """Parameters and result of the calls that most classes have."""
    return {
        "get_all": ({}, f"{kind} ref set"),
        "get_all_records": ({}, f"({kind} ref -> {kind} record) map"),
        "get_record": ({"self": f"{kind} ref"}, f"{kind} record"),
        "get_by_uuid": ({"uuid": "string"}, f"{kind} ref"),
        "get_by_name_label": ({"label": "string"}, f"{kind} ref set"),
    }[name]


def _key_and_value(of: str) -> tuple[str, str]:
    key, _, value = of.removeprefix("(").removesuffix(") map").partition(" -> ")
    return key, value


def _read_plain(of: str, value: Value, name: str) -> Value:
    match value:
        case bool():
            if of == "bool":
                return value
        case str() if of == "datetime":
            return DateTime(value)
        case str() if of == "string" or of.endswith(" ref"):
            return value
        case int() | float() | str() if of == "float":
            with contextlib.suppress(ValueError):
                return float(value)
        case int() | str() if of == "int" and re.fullmatch(r"[-+]?[0-9]{1,19}", str(value)):
            if -(2**63) <= int(value) < 2**63:
                return int(value)
    raise Failure("FIELD_TYPE_ERROR", name)


@dataclass(slots=True)
class Row:
    """An object; `created`, `modified` and `deleted` are generations."""

    kind: str
    ref: str
    record: Record
    created: int
    modified: int
    deleted: int = 0


@dataclass(slots=True)
class Database:
    """Every object, and the order in which they changed last. Whoever waits for changes waits for `news`."""

    model: Model
    generation: int = 0
    tables: dict[str, dict[str, Row]] = field(default_factory=dict)
    listeners: list[Callable[[Record], None]] = field(default_factory=list)
    _recent: dict[str, Row] = field(default_factory=dict)
    _deleted: deque[Row] = field(default_factory=lambda: deque(maxlen=DELETIONS))
    _forgotten: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.tables = {kind: {} for kind in self.model.fields}

    def insert(self, kind: str, /, **given: Value) -> str:
        """A new object with defaults for what is not given; its ref."""
        # A session must not outlive the daemon that issued it, so it has no name that comes again.
        name = uuid.uuid4() if kind in SILENT else uuid.uuid5(NAMESPACE, f"{kind} {self.generation}")
        ref = f"OpaqueRef:{name}"
        given["uuid"] = str(uuid.uuid5(name, "uuid"))
        row = Row(kind, ref, self.model.record(kind, given), self.generation + 1, 0)
        self.tables[kind][ref] = row
        self._touch(row, "add")
        for field_, one, many in self._relations(kind):
            self._relate(one, many, row.record[field_], ref, present=True)
        return ref

    def row(self, kind: str, ref: Value) -> Row:
        """Raises HANDLE_INVALID."""
        found = self.tables[kind].get(str(ref))
        if found is None:
            raise Failure("HANDLE_INVALID", kind, str(ref))
        return found

    def change(self, kind: str, ref: Value, /, **fields: Value) -> None:
        """Sets fields; a change that changes nothing is none."""
        row = self.row(kind, ref)
        before = {name: row.record[name] for name in fields}
        if before == fields:
            return
        row.record.update(fields)
        self._touch(row, "mod")
        for name, one, many in self._relations(kind):
            if name in fields and fields[name] != before[name]:
                self._relate(one, many, before[name], row.ref, present=False)
                self._relate(one, many, fields[name], row.ref, present=True)

    def touch(self, kind: str, ref: str) -> None:
        """An event without a change."""
        self._touch(self.row(kind, ref), "mod")

    def delete(self, kind: str, ref: Value) -> None:
        """The object goes, and so do its places in the sets of others."""
        row = self.row(kind, ref)
        for name, one, many in self._relations(kind):
            self._relate(one, many, row.record[name], row.ref, present=False)
        del self.tables[kind][row.ref]
        self._touch(row, "del")

    def changes(self, since: int, wanted: Callable[[Row], bool]) -> list[Record]:
        """An event for each object that changed after `since`, with its record, oldest first. Raises EVENTS_LOST."""
        if 0 <= since < self._forgotten or since > self.generation:
            raise Failure("EVENTS_LOST")
        rows = [row for row in self._newer(since) if wanted(row)]
        rows.sort(key=lambda row: row.deleted or row.modified)
        return [event(row, "del" if row.deleted else "add" if row.created > since else "mod") for row in rows]

    async def news(self) -> None:
        """Returns at the next change."""
        await self._changed.wait()

    def wake(self) -> None:
        """Lets everybody look who waits for news."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _newer(self, since: int) -> Iterator[Row]:
        for row in reversed(self._recent.values()):
            if row.modified <= since:
                break
            yield row
        for row in reversed(self._deleted):
            if row.deleted <= since:
                break
            if row.created <= since:
                yield row

    def _touch(self, row: Row, operation: str) -> None:
        if row.kind in SILENT:
            return
        self.generation += 1
        self._recent.pop(row.ref, None)
        if operation == "del":
            row.deleted = self.generation
            if len(self._deleted) == DELETIONS:
                self._forgotten = self._deleted[0].deleted
            self._deleted.append(row)
        else:
            row.modified = self.generation
            self._recent[row.ref] = row
        if self.listeners:
            happened = event(row, operation)
            for listener in self.listeners:
                listener(happened)
        self.wake()

    def _relations(self, kind: str) -> Iterator[tuple[str, str, str]]:
        return ((name, one, many) for owner, name, one, many in self.model.relations if owner == kind)

    def _relate(self, kind: str, name: str, ref: Value, other: str, *, present: bool) -> None:
        """Puts an object into the set of the one that it refers to, or takes it out."""
        row = self.tables[kind].get(str(ref))
        if row is None:
            return
        refs = row.record[name]
        assert isinstance(refs, list)
        # A new list, since events that nobody has fetched yet hold the old one.
        row.record[name] = [*refs, other] if present else [known for known in refs if known != other]
        self._touch(row, "mod")


def event(row: Row, operation: str) -> Record:
    """What `event.from` and `event.next` tell of an object."""
    told: Record = {
        "id": str(row.deleted or row.modified),
        "timestamp": "0.0",
        "class": row.kind.lower(),
        "operation": operation,
        "ref": row.ref,
    }
    if operation != "del":
        told["snapshot"] = dict(row.record)
    return told
