"""The command `xcp-bridge`: arguments to function calls, results to the terminal. No logic of the bridge is here."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

# In the order in which the help lists them: the module whose `commands` have it.
_MODULES: Final = {
    "run": "cli_running",
    "check": "cli_host",
    "doctor": "cli_host",
    "status": "cli_status",
    "stage": "cli_cutover",
    "kill": "cli_cutover",
    "acknowledge": "cli_cutover",
    "audit": "cli_cutover",
    "explain": "cli_calls",
    "handles": "cli_cutover",
    "release": "cli_host",
    "call": "cli_calls",
    "idl": "cli_idl",
    "capture": "cli_capture",
    "replay": "cli_replay",
}


class _Commands(Mapping[str, Any]):
    """The commands by name. Each module is loaded when a command of it is asked for: all would take half a second."""

    def __getitem__(self, name: str) -> Any:
        module = import_module(f"bridges.{_MODULES[name]}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while all that was loaded, see __main__
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return typer.main.get_group(module.commands).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Group(TyperGroup):
    """Its commands are not there before they are needed."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands: Any = _Commands()


app = typer.Typer(
    name="xcp-bridge",
    cls=_Group,
    help="Moves services of the Xen toolstack to D-Bus, one at a time.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _app() -> None:
    # typer makes no command of an app that has neither this nor commands of its own.
    pass


def main() -> None:
    """The entry point."""
    for room in ("dbus_side", "xenstore_rpc", "xmlrpc_gateway"):
        # A command says what went wrong in its own words; `run` logs them too.
        logging.getLogger(room).addHandler(logging.NullHandler())
    app()
