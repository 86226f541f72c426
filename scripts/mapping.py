"""The mapping reference docs/mapping: every legacy method beside its D-Bus form, one page for each interface."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bridges.dbus_translation import Translation
from bridges.dbus_values import signature
from bridges.interfaces import model
from bridges.interfaces.model import ASYNC, Method, Record, TupleOf, XenstoreForm, bare
from dbus_side import names
from dbus_side.introspection import Argument
from scripts.busctl_line import Lines

Expression = Any  # a type as the interface data writes it: see bridges/interfaces/model.py
_FIELD_ACCESS: Final = re.compile(r"(get|set|add|remove)_")


def pages() -> dict[str, str]:
    """Path below docs/mapping to text, for every page."""
    found: dict[str, str] = {}
    contents: list[str] = []
    for stem in model.available():
        reference = _Reference(stem)
        found |= {reference.path(name): _text(reference.interface(name)) for name in reference.service.objects}
        found[reference.types_path] = _text(reference.types())
        contents += [f"### {stem}", "", *reference.contents(), ""]
    index = Path(__file__).with_name("mapping_index.md").read_text()
    return found | {"README.md": index.replace("<!-- contents -->\n", _text(contents))}


class _Reference:
    """The pages of one interface file."""

    def __init__(self, stem: str) -> None:
        self.service = model.load(stem)
        self._data = json.loads(resources.files("bridges.interfaces").joinpath(f"{stem}.json").read_bytes())
        self._methods = {method["name"]: method for method in self._data["methods"]}
        self._named: dict[str, Expression] = self._data["types"]
        self._translation = Translation(self.service)
        self._lines = Lines(self._translation)
        self._is_xenapi = self.service.dialect == "xenapi"
        self._types_page = f"types{stem.removeprefix(self.service.name)}.md"
        self.types_path = f"{self.service.name}/{self._types_page}"

    def path(self, object_name: str) -> str:
        """The page of an object, below docs/mapping."""
        return f"{self.service.name}/{object_name}{self.service.version}.md"

    def contents(self) -> Iterator[str]:
        """The pages, for the index, with how many methods each has."""
        for name, methods in self.service.objects.items():
            yield f"[{name}{self.service.version}]({self.path(name)}) {len(methods)},"
        yield f"[types and errors]({self.types_path})"

    def interface(self, object_name: str) -> Iterator[str]:
        """The page of an object."""
        methods = self.service.object_methods(object_name)
        form = self._translation.of(methods[0])
        errors = {self._error_type(method) for method in methods}
        yield f"# {form.interface}"
        yield ""
        yield f"Object `{form.path}` of `{names.service_name(self.service.name)}`, dialect {self.service.dialect},"
        yield f"{_count(len(methods), 'method')}, errors {', '.join(sorted(map(self._text_of_named, errors)))}."
        yield f"[How to read this page](../README.md), [types and errors]({self._types_page}),"
        yield f"[XML](../../../dbus_side/idl/{form.interface}.xml)."
        yield ""
        fields = [method for method in methods if self._accesses_a_field(method)]
        for method in methods:
            if method not in fields and not method.name.startswith(ASYNC):
                yield from self._method(method, names_errors=len(errors) > 1)
        if fields:
            yield from self._fields(fields)

    def _accesses_a_field(self, method: Method) -> bool:
        """Whether a row of a table says all about it."""
        return (
            self._is_xenapi
            and _FIELD_ACCESS.match(method.member) is not None
            and not self._methods[method.name].get("async", False)
            and not method.secret_result
            and not any(parameter.optional or parameter.secret for parameter in method.parameters)
        )

    def _method(self, method: Method, *, names_errors: bool) -> Iterator[str]:
        form = self._translation.of(method)
        facts = [str(method.effect), _deadline(method)]
        if names_errors:
            facts.append(f"errors {self._text_of_named(self._error_type(method))}")
        if method.doors:
            facts.append(f"legacy door: {', '.join(method.doors)}")
        if method.xenstore is not None:
            facts.append(f"xenstore {_xenstore(method.xenstore)}")
        yield from (f"## {method.name}", "", f"`{form.member}`: {', '.join(facts)}.", "")
        yield from _table(("argument", "D-Bus", "type", "notes"), self._arguments(method))
        lines = [self._lines.of(method)]
        later = self.service.method(ASYNC + method.name)
        if later is not None:
            member = self._translation.of(later).member
            yield f"`{later.name}` is `{member}`: the same arguments, a task as result, {_deadline(later)}."
            yield ""
            lines.append(self._lines.of(later))
        yield from ("```", *lines, "```", "")

    def _arguments(self, method: Method) -> Iterator[tuple[str, ...]]:
        described = self._translation.of(method).describe()
        inputs, outputs = list(described.inputs), list(described.outputs)
        written = {item["name"]: item["type"] for item in self._methods[method.name]["params"]}
        plain = [p for p in method.parameters if signature(p.type) and not p.may_be_absent]
        for argument, p in zip(inputs, plain, strict=False):
            notes = _notes(p.secret and "secret", self._takes(method, p.name))
            yield _code(argument.name), _code(argument.signature), self._text(written[p.name]), notes
        for p in method.parameters:
            if p.may_be_absent:
                default = None if p.default is None else f"default {_code(json.dumps(p.default))}"
                notes = _notes(p.secret and "secret", self._takes(method, p.name), default)
                name = f"{_code(inputs[-1].name)}: {_code(p.name)}"
                yield name, _code(signature(bare(p.type))), self._text(written[p.name]), notes
        yield from self._results(method, outputs)

    def _results(self, method: Method, outputs: list[Argument]) -> Iterator[tuple[str, ...]]:
        written = self._methods[method.name]["result"]
        while isinstance(written, dict) and "ref" in written and "tuple" in self._named[written["ref"]]:
            written = self._named[written["ref"]]
        kinds = written["tuple"] if isinstance(method.result, TupleOf) else [written]
        for number, (argument, kind) in enumerate(zip(outputs, kinds, strict=False)):
            here = "result" if len(outputs) == 1 else f"result.{number}"
            notes = _notes(method.secret_result and "secret", *self._gives(method, here))
            yield f"-> {_code(argument.name)}", _code(argument.signature), self._text(kind), notes

    def _takes(self, method: Method, name: str) -> str | None:
        """The handle that an argument is; of a XenAPI reference its type says so."""
        kind = next((kind for place, kind in method.consumes.items() if place.partition(".")[0] == name), None)
        return None if kind is None or self._is_xenapi else f"takes a {kind}"

    def _gives(self, method: Method, here: str) -> Iterator[str]:
        for place, kind in method.produces.items():
            if f"{place}.".startswith(f"{here}.") and not self._is_xenapi:
                inside = place.removeprefix(here).removeprefix(".")
                yield f"gives a {kind}" + (f" in `{inside}`" if inside else "")

    def _fields(self, methods: list[Method]) -> Iterator[str]:
        head = self._lines.head(next((m for m in methods if m.deadline == self._data["deadline"]), methods[0]))
        yield from ("## Fields", "", "What stands in the last column goes behind", "", "```", head, "```", "")
        yield from _table(
            ("method", "in", "out", "type", "effect", "deadline, s", "line"),
            (self._field(method) for method in methods),
        )

    def _field(self, method: Method) -> tuple[str, ...]:
        described = self._translation.of(method).describe()
        result = self._methods[method.name]["result"]
        return (
            _code(method.name),
            _code(", ".join(f"{item.name} {item.signature}" for item in described.inputs)),
            _code("".join(item.signature for item in described.outputs)),
            "" if result == "unit" else self._text(result),
            str(method.effect),
            "none" if method.deadline is None else f"{method.deadline:.0f}",
            _code(self._lines.tail(method)),
        )

    # --- types and errors

    def types(self) -> Iterator[str]:
        """The page of the named types."""
        errors = {self._error_type(method): None for method in self.service.methods()}
        yield f"# Types and errors of {self.service.name}"
        yield ""
        yield f"Dialect {self.service.dialect}. [How types and errors look on the bus](../README.md)."
        yield ""
        yield "## Error types"
        yield ""
        for name in errors:
            yield from (f"### {name}", "")
            rows = (
                (*self._case(case, error=True), _code(names.error_name(self.service.name, case["name"])))
                for case in self._named[name]["variant"]
            )
            yield from _table(("code", "behind the text", "type", "D-Bus error"), rows)
        yield "## Other types"
        yield ""
        for name, written in self._named.items():
            if name not in errors:
                yield from self._type(name, written)

    def _type(self, name: str, written: Expression) -> Iterator[str]:
        resolved = self.service.type({"ref": name})
        match written, resolved:
            case {"record": members}, Record(fields):
                yield from (f"### {name}", "", "A record, `a{sv}`.", "")
                rows = (
                    (_code(f.name), _code(signature(bare(f.type))), self._text(member["type"]), "needed" * f.required)
                    for member, f in zip(members, fields, strict=True)
                )
                yield from _table(("member", "D-Bus", "type", "as an argument"), rows)
            case {"variant": cases}, _ if signature(resolved) == "s":
                yield from (f"### {name}", "", f"One of {', '.join(_code(c['name']) for c in cases)}: `s`.", "")
            case {"variant": cases}, _:
                yield from (f"### {name}", "", "A union, `(sv)`.", "")
                yield from _table(("constructor", "carries", "type"), map(self._case, cases))

    def _case(self, case: dict[str, Any], *, error: bool = False) -> tuple[str, str, str]:
        if case["args"] is None:
            return _code(case["name"]), "", ""
        kind = self.service.type(case["args"])
        carried = "".join(map(signature, kind.items)) if error and isinstance(kind, TupleOf) else signature(kind)
        return _code(case["name"]), _code(carried), self._text(case["args"])

    def _error_type(self, method: Method) -> str:
        written = self._methods[method.name.removeprefix(ASYNC)]
        return str(written.get("error") or self._data["error"])

    def _text(self, written: Expression) -> str:
        match written:
            case {"ref": name}:
                return self._text_of_named(name)
            case {"abstract": name}:
                return str(name)
            case {"option": item}:
                return f"{self._text(item)} or nothing"
            case {"list": item} | {"array": item}:
                return f"list of {self._text(item)}"
            case {"dict": [key, item]}:
                return f"map of {self._text(key)} to {self._text(item)}"
            case {"tuple": items}:
                return "(" + ", ".join(map(self._text, items)) + ")"
            case {"record_of": member}:
                return f"record of the class in `{member}`"
            case str():
                return written
        raise AssertionError(f"a record or variant without a name: {written!r}")

    def _text_of_named(self, name: str) -> str:
        written = self._named[name]
        if "record" in written or "variant" in written:
            return f"[{name}]({self._types_page}#{anchor(name)})"
        return name if isinstance(written, str) else self._text(written)


def anchor(heading: str) -> str:
    """What a link to a heading ends with."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def _deadline(method: Method) -> str:
    return "no deadline (a long poll)" if method.deadline is None else f"deadline {method.deadline:.0f} s"


def _xenstore(form: XenstoreForm) -> str:
    if form.variadic:
        return f"`{form.function}` with any keys"
    keys = ", ".join(form.arguments)
    return f"`{form.function}({keys})`" + (f" -> `{', '.join(form.results)}`" if form.results else "")


def _notes(*notes: str | bool | None) -> str:
    return ", ".join(str(note) for note in notes if note)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield from (f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *lines, "")


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"
