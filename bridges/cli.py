"""The command `xcp-bridge`: arguments to function calls, results to the terminal. No logic of the bridge is here."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from bridges import asking, checks, cli_cutover, cli_idl, cli_status, daemon, releasing
from bridges.faults import Fault, Kind
from bridges.state import StateError
from bridges.terminal import NO, UNKNOWN, WRONG, JsonOption, SettingsOption, fail, out, print_json, report, settings_of


class _Commands(TyperGroup):
    """The commands. Those about captures are loaded when they are asked for: they are a third of what a start takes.

    What click gives has other names from one version of typer to the next.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_LATER]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        load = _LATER.get(cmd_name)
        return super().get_command(ctx, cmd_name) if load is None else typer.main.get_command(load())


def _capture() -> typer.Typer:
    from bridges import cli_capture  # noqa: PLC0415

    return cli_capture.capture


def _replay() -> typer.Typer:
    from bridges import cli_replay  # noqa: PLC0415

    return cli_replay.replay


_LATER: Final = {"capture": _capture, "replay": _replay}

app = typer.Typer(
    name="xcp-bridge",
    cls=_Commands,
    help="Moves services of the Xen toolstack to D-Bus, one at a time.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The entry point."""
    for room in ("dbus_side", "xenstore_rpc", "xmlrpc_gateway"):
        # A command says what went wrong in its own words; `run` logs them too.
        logging.getLogger(room).addHandler(logging.NullHandler())
    app()


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
    # The thread that writes the journal gets its turn within half a millisecond, also beside a long answer.
    sys.setswitchinterval(0.0005)
    # A large answer makes a hundred thousand objects and no cycles: the collector's usual threshold cost a third of it.
    gc.set_threshold(50_000, 20, 50)
    try:
        import uvloop  # noqa: PLC0415 -- an extra: the daemon is faster with it and complete without
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def check(
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    message_switch: Annotated[Path, typer.Option(help="Where message-switch listens.")] = checks.MESSAGE_SWITCH,
) -> None:
    """Find what is wrong on this host, and how to mend it."""
    report(asyncio.run(checks.check(settings_of(settings), message_switch)), as_json=as_json)


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


# In the order in which the help lists them.
for command in (
    run,
    check,
    cli_cutover.doctor,
    cli_status.status,
    cli_cutover.stage,
    cli_cutover.kill,
    cli_cutover.acknowledge,
    cli_cutover.audit,
    cli_cutover.explain,
    cli_cutover.handles,
    release,
    call,
):
    app.command()(command)
app.add_typer(cli_idl.idl, name="idl")
