"""`xcp-bridge idl`: the interfaces as they are written down, on the legacy side and on the bus."""

from __future__ import annotations

import itertools
import json
import operator
import sys
import textwrap
from typing import Annotated, Any, Final

import typer

from bridges.dbus_translation import Translation, interface_of
from bridges.dbus_values import signature
from bridges.interfaces import model
from bridges.terminal import WRONG, JsonOption, command_group, did_you_mean, fail, out, print_json
from dbus_side import introspection, names

idl = command_group("The interfaces as they are written down.")
commands = command_group()
commands.add_typer(idl, name="idl")

ServiceArgument = Annotated[str, typer.Argument(help="A service as `idl list` prints it: xapi, xenopsd-2012, ...")]


@idl.command("list")
def idl_list(
    service: Annotated[str | None, typer.Argument(help="List the methods of this service.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The interfaces, or the methods of one SERVICE."""
    rows = _interface_rows() if service is None else _methods_of(Translation(_service(service)))
    if as_json:
        print_json(rows)
    elif service is None:
        out.print(_INTERFACE_LINE.format(**{heading: heading for heading in rows[0]}), style="bold", soft_wrap=True)
        for row in rows:
            out.print(_INTERFACE_LINE.format(**row), soft_wrap=True)
    else:
        for interface, group in itertools.groupby(rows, operator.itemgetter("interface")):
            out.print(interface, style="bold", soft_wrap=True)
            for row in group:
                out.print(f"  {row['effect']:<5}  {row['method']}", soft_wrap=True)


@idl.command("show")
def idl_show(
    service: ServiceArgument,
    method: Annotated[str | None, typer.Argument(help="Its exact legacy name; without it all, in short.")] = None,
    as_json: JsonOption = False,
) -> None:
    """A method on the legacy side and on the bus."""
    translation = Translation(_service(service))
    if method is None:
        rows = _methods_of(translation)
        if as_json:
            print_json(rows)
            return
        for row in rows:
            out.print(f"{row['method']}  {row['effect']}", style="bold", soft_wrap=True)
            out.print(f"  {row['interface']}.{row['member']}({row['in']}) -> ({row['out']})", soft_wrap=True)
        return
    found = translation.service.method(method)
    if found is None:
        hint = did_you_mean(method, translation.service.method_names)
        fail(WRONG, f"{service} has no method {method!r}; {hint or f'see xcp-bridge idl list {service}'}")
    row = _method_row(translation, found)
    if as_json:
        print_json(row)
        return
    out.print(f"{method} of {service}", style="bold", soft_wrap=True)
    for label, lines in _method_text(row).items():
        for number, line in enumerate(lines):
            out.print(f"  {'' if number else label:<10}{line}", markup=False, soft_wrap=True)


@idl.command("xml")
def idl_xml(
    service: ServiceArgument,
    object_name: Annotated[str | None, typer.Argument(metavar="[OBJECT]", help="VM, DATA.MIRROR, ...")] = None,
    as_json: JsonOption = False,
) -> None:
    """Introspection XML of a service or one of its objects."""
    translation = Translation(_service(service))
    objects = translation.service.objects
    if object_name is not None and object_name not in objects:
        hint = did_you_mean(object_name, tuple(objects))
        fail(WRONG, f"{service} has no object {object_name!r}; {hint or 'known: ' + ', '.join(objects)}")
    described = [interface_of(translation, name) for name in objects if object_name in (None, name)]
    if as_json:
        print_json([{"interface": each.name, "xml": introspection.to_xml((each,))} for each in described])
    else:
        sys.stdout.write(introspection.to_xml(tuple(described)))


def _service(name: str) -> model.Service:
    if name not in model.available():
        hint = did_you_mean(name, model.available()) or "known: " + ", ".join(model.available())
        fail(WRONG, f"no interface is written down for {name!r}; {hint}")
    return model.load(name)


_INTERFACE_LINE: Final = "{methods:>7} {service:<13} {object:<17} {interface}"


def _interface_rows() -> list[dict[str, Any]]:
    return [
        {
            "service": stem,
            "object": name,
            "interface": names.interface_name(service.name, name, service.version),
            "path": names.object_path(service.name, name),
            "methods": len(methods),
        }
        for stem in model.available()
        for service in [model.load(stem)]
        for name, methods in service.objects.items()
    ]


def _methods_of(translation: Translation) -> list[dict[str, Any]]:
    """Every method in short, by object."""
    service = translation.service
    return [_short_row(translation, m) for name in service.objects for m in service.object_methods(name)]


def _short_row(translation: Translation, method: model.Method) -> dict[str, Any]:
    form = translation.of(method)
    return {
        "method": method.name,
        "effect": method.effect,
        "path": form.path,
        "interface": form.interface,
        "member": form.member,
        "in": form.input_signature,
        "out": form.output_signature,
    }


def _method_row(translation: Translation, method: model.Method) -> dict[str, Any]:
    """Everything about a method; `takes` and `gives` are kinds of handles, `gives` by their place in the result."""
    takes = {place.partition(".")[0]: kind for place, kind in method.consumes.items()}
    arguments = [
        {
            "name": p.name,
            "signature": signature(model.bare(p.type) if p.may_be_absent else p.type),
            "optional": p.may_be_absent,
            "default": p.default,
            "secret": p.secret,
            "takes": takes.get(p.name),
        }
        for p in method.parameters
        if p.type != model.UNIT
    ]
    outputs = translation.of(method).describe().outputs
    results = [
        {
            "name": each.name,
            "signature": each.signature,
            "secret": method.secret_result,
            "gives": {
                place: kind
                for place, kind in method.produces.items()
                if len(outputs) == 1 or f"{place}.".startswith(f"result.{number}.")
            },
        }
        for number, each in enumerate(outputs)
    ]
    form = method.xenstore
    return _short_row(translation, method) | {
        "deadline": method.deadline,
        "arguments": arguments,
        "results": results,
        "doors": method.doors,
        "xenstore": form and {"function": form.function, "arguments": form.arguments, "results": form.results},
        "errors": {case.name: names.error_name(method.service, case.name) for case in method.errors.constructors},
    }


def _method_text(row: dict[str, Any]) -> dict[str, list[str]]:
    """Labels and lines, for a person."""
    found = {
        "bus": [row["path"], f"{row['interface']}.{row['member']}({row['in']}) -> ({row['out']})"],
        "in": _aligned(row["arguments"]),
        "out": _aligned(row["results"]),
        "effect": [row["effect"]],
        "deadline": ["none: a long poll" if row["deadline"] is None else f"{row['deadline']:.0f} s"],
        "errors": [f"{len(row['errors'])} codes: see --json"],
    }
    if len(row["errors"]) < 50:
        found["errors"] = textwrap.wrap(", ".join(row["errors"]), 66)
    if row["xenstore"] is not None:
        found["xenstore"] = [f"{row['xenstore']['function']}({', '.join(row['xenstore']['arguments'])})"]
    if row["doors"]:
        found["doors"] = [f"{', '.join(row['doors'])} only"]
    return found


def _aligned(values: list[dict[str, Any]]) -> list[str]:
    width = max((len(each["name"]) for each in values), default=0)
    lines = [f"{each['name']:<{width}}  {each['signature']:<5}  {', '.join(_notes(each))}".rstrip() for each in values]
    return lines or ["nothing"]


def _notes(value: dict[str, Any]) -> list[str]:
    """What there is to say about an argument or a result."""
    notes = ["secret"] * value["secret"]
    if value.get("takes"):
        notes.append(f"takes a {value['takes']}")
    for place, kind in value.get("gives", {}).items():
        is_whole = place.replace(".", "", 1) == value["name"]
        notes.append(f"gives a {kind}" if is_whole else f"gives a {kind} ({place})")
    if value.get("optional"):
        notes.append("in options, may be left out")
        notes += [] if value["default"] is None else [f"default {json.dumps(value['default'])}"]
    return notes
