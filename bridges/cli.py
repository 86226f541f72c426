"""The command `xcp-bridge`: arguments to function calls, results to the terminal. No logic of the bridge is here.

Exit codes: 0 done, 1 the answer is no, 2 wrong usage or settings, 3 could not tell (nothing reached).
"""

from __future__ import annotations

import asyncio
import difflib
import gc
import itertools
import json
import logging
import operator
import os
import socket
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from bridges import asking, checks, cutover, daemon, releasing
from bridges.checks import Verdict
from bridges.cutover import Stage
from bridges.dbus_translation import Translation, interface_of
from bridges.dbus_values import signature
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.settings import DEFAULT_PATH, Settings, SettingsError, decode
from bridges.state import StateError
from dbus_side import introspection, names

DONE: Final = 0
NO: Final = 1
WRONG: Final = 2
UNKNOWN: Final = 3

_COLOURS: Final = {Verdict.GOOD: "green", Verdict.WARNING: "yellow", Verdict.BAD: "red", Verdict.UNKNOWN: "yellow"}

app = typer.Typer(
    name="xcp-bridge",
    help="Moves services of the Xen toolstack to D-Bus, one at a time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
idl = typer.Typer(help="The interfaces as they are written down.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(idl, name="idl")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)

SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings", envvar="XCP_BRIDGE_SETTINGS", help=f"Settings file [default: {DEFAULT_PATH}]", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """The entry point."""
    for room in ("dbus_side", "xenstore_rpc", "xmlrpc_gateway"):
        # A command says what went wrong in its own words; `run` logs them too.
        logging.getLogger(room).addHandler(logging.NullHandler())
    app()


def fail(code: int, *lines: str) -> NoReturn:
    """Ends the command with a message for a person."""
    for line in lines:
        err.print(f"xcp-bridge: {line}", markup=False)
    raise typer.Exit(code)


def settings_of(path: Path | None) -> Settings:
    file = path or DEFAULT_PATH
    try:
        return decode(file.read_bytes(), dict(os.environ))
    except OSError as error:
        fail(WRONG, f"{file}: cannot be read: {error.strerror}")
    except SettingsError as error:
        fail(WRONG, *(f"{file}: {problem}" for problem in error.problems))


def print_json(value: object) -> None:
    out.print_json(json.dumps(value, default=str))


@app.command()
def run(
    settings: SettingsOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every refused call too.")] = False,
) -> None:
    """Run the bridge in the foreground; SIGTERM drains and ends it."""
    loaded = settings_of(settings)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("bridges").setLevel(logging.INFO)
    try:
        _run(daemon.run(loaded))
    except (daemon.StartError, StateError) as error:
        fail(NO, str(error))


def _run(work: Any) -> None:
    # A large answer makes a hundred thousand objects and no cycles: the collector's usual threshold cost a third of it.
    gc.set_threshold(50_000, 20, 50)
    try:
        import uvloop  # noqa: PLC0415 -- an extra: the daemon is faster with it and complete without
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


@app.command()
def check(
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    message_switch: Annotated[Path, typer.Option(help="Where message-switch listens.")] = checks.MESSAGE_SWITCH,
) -> None:
    """Find what is wrong on this host, and how to mend it."""
    findings = asyncio.run(checks.check(settings_of(settings), message_switch))
    if as_json:
        print_json([{"place": f.place, "verdict": f.verdict, "text": f.text, "mend": f.mend} for f in findings])
    else:
        for f in findings:
            out.print(f"[{_COLOURS[f.verdict]}]{f.verdict:>14}[/]  {f.place}: {f.text}", soft_wrap=True)
            if f.mend:
                out.print(f"{'':>14}  -> {f.mend}", soft_wrap=True, markup=False)
    verdicts = {finding.verdict for finding in findings}
    raise typer.Exit(NO if Verdict.BAD in verdicts else UNKNOWN if Verdict.UNKNOWN in verdicts else DONE)


def ask_bridge(settings: Settings, request: dict[str, object]) -> dict[str, Any]:
    """One request on the control socket. Ends the command when no bridge answers or it says no."""
    path = settings.control_socket
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline()
    except OSError as error:
        fail(UNKNOWN, f"no bridge answers at {path}: {error.strerror}; is xcp-bridge.service running?")
    if not line:
        fail(UNKNOWN, f"the bridge at {path} closed the connection without an answer")
    answer: dict[str, Any] = json.loads(line)
    if not answer["ok"]:
        fail(NO if answer["refused"] else WRONG, answer["error"])
    return answer


@app.command()
def status(
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print it again every second until Ctrl-C.")] = False,
) -> None:
    """Services: stage, authority, epoch, doors, calls, faults."""
    loaded = settings_of(settings)
    while True:
        services = ask_bridge(loaded, {"verb": "status"})["services"]
        if as_json:
            print_json(services)
        else:
            out.print(_status_table(services))
            for name, service in services.items():
                for alarm, text in service["alarms"].items():
                    err.print(f"{name}: {alarm}: {text}", style="red", markup=False)
        if not watch:
            return
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            return


def _status_table(services: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "stage", "authority", "epoch", "doors", "calls", "next"):
        table.add_column(heading, no_wrap=True)
    for name, service in services.items():
        calls = service["calls"]
        counts = [f"{calls['answered']} answered"]
        counts += [f"{calls[key]} {key.replace('_', ' ')}" for key in _WORTH_SAYING if calls[key]]
        counts += [f"{count} {kind}" for kind, count in service["faults"].items()]
        here = cutover.LADDER.index(Stage(service["stage"]))
        table.add_row(
            name,
            service["stage"],
            service["authority"],
            str(service["epoch"]),
            "\n".join(f"{door}: {keeper}" for door, keeper in service["doors"].items()),
            "\n".join(counts),
            ", ".join([*cutover.LADDER[here + 1 : here + 2], *cutover.LADDER[max(0, here - 1) : here]]),
            style="red" if service["alarms"] else None,
        )
    return table


_WORTH_SAYING: Final = ("in_flight", "held", "in_doubt", "abandoned", "refused")


@app.command()
def stage(
    service: Annotated[str, typer.Argument(help="The service to move or look at.")],
    stage: Annotated[str | None, typer.Argument(help=f"One of {', '.join(cutover.LADDER)}.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the record of moves. Needed for a move.")] = "",
    skip: Annotated[str | None, typer.Option(help="Why observe or shadow is left out; kept in the record.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    accept_in_doubt: Annotated[
        bool,
        typer.Option(
            "--accept-in-doubt", help="Take a tree that never gets quiet; its pending requests are answered InDoubt."
        ),
    ] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a service to a stage, or say where it stands."""
    loaded = settings_of(settings)
    if stage is None:
        services = ask_bridge(loaded, {"verb": "status"})["services"]
        if service not in services:
            fail(WRONG, f"no service {service!r} in the settings; known: {', '.join(services) or 'none'}")
        if as_json:
            print_json(services[service])
        else:
            out.print(_status_table({service: services[service]}))
        return
    if not reason.strip() and not dry_run:
        fail(WRONG, "a move needs --reason TEXT")
    request: dict[str, object] = {"verb": "stage", "service": service, "stage": stage, "reason": reason, "skip": skip}
    answer = ask_bridge(loaded, {**request, "dry_run": dry_run, "accept_in_doubt": accept_in_doubt})
    if as_json:
        print_json(answer.get("plan") or answer["receipts"])
    elif dry_run:
        for number, step in enumerate(answer["plan"], 1):
            out.print(textwrap.fill(f"{number}. {step}", out.width, subsequent_indent="   "), markup=False)
    else:
        for receipt in answer["receipts"]:
            out.print(
                f"{service}: {receipt['origin']} -> {receipt['target']}, epoch {receipt['epoch']}, "
                f"calls held for {receipt['held_seconds'] * 1000:.0f} ms"
            )


@app.command()
def release(settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Give taken addresses back, after a crash of the bridge."""
    loaded = settings_of(settings)
    try:
        lines = asyncio.run(releasing.release(loaded))
    except releasing.StillRunning as error:
        fail(NO, str(error))
    if as_json:
        print_json(lines)
    else:
        for place, what in lines.items():
            out.print(f"{place}: {what}", markup=False)


@app.command()
def call(
    service: Annotated[str, typer.Argument(help="The service to call.")],
    method: Annotated[str, typer.Argument(help="The method's legacy name, as `xcp-bridge idl list` prints it.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARG=JSON]...", help="Arguments by name.")] = None,
    door: Annotated[asking.AskedDoor, typer.Option(help="The door to call at.")] = asking.AskedDoor.BUS,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call a method as any caller would, at the door you choose."""
    loaded = settings_of(settings)
    try:
        result = asyncio.run(asking.ask(loaded, service, method, arguments or [], door))
    except asking.WrongCall as error:
        fail(WRONG, str(error))
    except Fault as fault:
        code = UNKNOWN if fault.kind is Kind.UNAVAILABLE else NO
        if as_json:
            print_json(
                {"kind": fault.kind, "code": fault.code, "text": fault.text, "argument": asking.plain(fault.argument)}
            )
            raise typer.Exit(code) from None
        fail(code, fault.text if fault.kind in (Kind.DECLARED, Kind.UNDECLARED) else fault.sentence)
    print_json(result)


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
        hint = _did_you_mean(method, translation.service.method_names)
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
        hint = _did_you_mean(object_name, tuple(objects))
        fail(WRONG, f"{service} has no object {object_name!r}; {hint or 'known: ' + ', '.join(objects)}")
    described = [interface_of(translation, name) for name in objects if object_name in (None, name)]
    if as_json:
        print_json([{"interface": each.name, "xml": introspection.to_xml((each,))} for each in described])
    else:
        sys.stdout.write(introspection.to_xml(tuple(described)))


def _service(name: str) -> model.Service:
    if name not in model.available():
        hint = _did_you_mean(name, model.available()) or "known: " + ", ".join(model.available())
        fail(WRONG, f"no interface is written down for {name!r}; {hint}")
    return model.load(name)


def _did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """The names that are most like it, whatever their case and separators; its last word alone may be meant."""

    def folded(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    wanted = folded(name)
    like = [each for each in known if wanted in (folded(each), folded(each.rpartition(".")[2]))]
    if not like:
        by_folded = {folded(each): each for each in known}
        like = [by_folded[each] for each in difflib.get_close_matches(wanted, by_folded)]
    return f"did you mean {', '.join(like[:4])}?" if like else ""


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
