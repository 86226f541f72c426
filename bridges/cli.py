"""The command `xcp-bridge`: arguments to function calls, results to the terminal. No logic of the bridge is here.

Exit codes: 0 done, 1 the answer is no, 2 wrong usage or settings, 3 could not tell (nothing reached).
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
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
from bridges.dbus_translation import Translation, interfaces
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.settings import DEFAULT_PATH, Settings, SettingsError, decode
from bridges.state import StateError
from dbus_side import introspection

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


@idl.command("list")
def idl_list(as_json: JsonOption = False) -> None:
    """Services whose interface is written down, and their methods."""
    known = {name: model.load(name).method_names for name in model.available()}
    if as_json:
        print_json(known)
        return
    for name, methods in known.items():
        out.print(f"{name} ({len(methods)} methods)")
        for method in methods:
            out.print(f"  {method}", markup=False)


@idl.command("show")
def idl_show(
    service: Annotated[str, typer.Argument()],
    method: Annotated[str | None, typer.Argument()] = None,
    as_json: JsonOption = False,
) -> None:
    """A method on the legacy side and on the bus."""
    translation = Translation(_service(service))
    names = [method] if method is not None else list(translation.service.method_names)
    rows: list[dict[str, Any]] = []
    for name in names:
        found = translation.service.method(name)
        if found is None:
            fail(WRONG, f"{service} has no method {name!r}; see xcp-bridge idl list")
        form = translation.of(found)
        rows.append(
            {
                "method": name,
                "effect": found.effect,
                "parameters": [p.name for p in found.parameters],
                "interface": form.interface,
                "path": form.path,
                "member": form.member,
                "in": form.input_signature,
                "out": form.output_signature,
            }
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"[bold]{row['method']}[/]({', '.join(row['parameters'])})  {row['effect']}")
        out.print(f"    {row['path']}", markup=False)
        out.print(
            f"    {row['interface']}.{row['member']}({row['in']}) -> ({row['out']})", soft_wrap=True, markup=False
        )


@idl.command("xml")
def idl_xml(service: Annotated[str, typer.Argument()]) -> None:
    """The service's D-Bus interfaces as introspection XML."""
    described = interfaces(Translation(_service(service)))
    sys.stdout.write(introspection.to_xml(tuple(described.values())))


def _service(name: str) -> model.Service:
    try:
        return model.load(name)
    except model.InterfaceError as error:
        fail(WRONG, str(error))
