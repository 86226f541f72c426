"""What the commands share: the terminal, exit codes, common options, settings, and asking the running bridge.

Exit codes: 0 done, 1 the answer is no, 2 wrong usage or settings, 3 could not tell (nothing reached, no data).
"""

from __future__ import annotations

import difflib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from bridges.findings import Finding, Verdict
from bridges.settings import DEFAULT_PATH, Settings, SettingsError, decode

DONE: Final = 0
NO: Final = 1
WRONG: Final = 2
UNKNOWN: Final = 3

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)

SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings", envvar="XCP_BRIDGE_SETTINGS", help=f"Settings file [default: {DEFAULT_PATH}]", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_COLOURS: Final = {
    "ok": "green", "warning": "yellow", "wrong": "red", "could not tell": "yellow",
    "pass": "green", "fail": "red", "no data": "yellow",
}  # fmt: skip


class NotDone(Exception):
    """The bridge did not do what it was asked: the exit code, why, and its answer (empty when none came)."""

    def __init__(self, code: int, text: str, answer: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.answer = answer or {}


def command_group(about: str | None = None) -> typer.Typer:
    """Where a module's commands stand; `about` is the help of those that stand under a name of their own."""
    return typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)


def fail(code: int, *lines: str) -> NoReturn:
    """Ends the command with a message for a person."""
    for line in lines:
        err.print(f"xcp-bridge: {line}", markup=False)
    raise typer.Exit(code)


def settings_of(path: Path | None) -> Settings:
    """The settings of that file, or of the usual one. Ends the command when they cannot be read."""
    file = path or DEFAULT_PATH
    try:
        return decode(file.read_bytes(), dict(os.environ))
    except OSError as error:
        fail(WRONG, f"{file}: cannot be read: {error.strerror}")
    except SettingsError as error:
        fail(WRONG, *(f"{file}: {problem}" for problem in error.problems))


def print_json(value: object) -> None:
    out.print_json(json.dumps(value, default=str))


def ask(settings: Settings, request: Mapping[str, object], timeout: float | None = None) -> dict[str, Any]:
    """One request on the control socket. Raises NotDone; `timeout` in seconds, None waits: a move takes its time."""
    path = settings.control_socket
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline()
    except PermissionError as error:
        text = f"{path}: {error.strerror}; only root and the bridge's own user are heard there"
        raise NotDone(UNKNOWN, text) from None
    except OSError as error:
        text = f"no bridge answers at {path}: {error.strerror or error}; is xcp-bridge.service running?"
        raise NotDone(UNKNOWN, text) from None
    if not line:
        raise NotDone(UNKNOWN, f"the bridge at {path} closed the connection without an answer")
    try:
        answer: dict[str, Any] = json.loads(line)
        if answer["ok"]:
            return answer
        code = UNKNOWN if answer.get("no_data") else NO if answer["refused"] else WRONG
        text = answer["error"]
    except (ValueError, TypeError, KeyError):
        raise NotDone(UNKNOWN, f"whatever answers at {path} is no bridge: it said {line[:60]!r}") from None
    raise NotDone(code, text, answer)


def ask_bridge(settings: Settings, request: Mapping[str, object]) -> dict[str, Any]:
    """One request on the control socket. Ends the command when no bridge answers or it says no."""
    try:
        return ask(settings, request)
    except NotDone as refusal:
        fail(refusal.code, str(refusal))


def body(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a script gets of an answer: all but that it is one."""
    return {name: value for name, value in answer.items() if name != "ok"}


def print_verdict(verdict: str, place: str, text: str, mend: str) -> None:
    """A line of a report, and below it what to do, if there is anything to do."""
    line = Text.assemble((f"{verdict:>14}", _COLOURS.get(verdict, "")), f"  {place}: {text}")
    out.print(line, soft_wrap=True)
    if mend:
        out.print(f"{'':>14}  -> {mend}", soft_wrap=True, markup=False)


def report(findings: Sequence[Finding], *, as_json: bool) -> NoReturn:
    """Prints what was found and ends the command with the exit code that says how good it is."""
    if as_json:
        print_json([{"place": f.place, "verdict": f.verdict, "text": f.text, "mend": f.mend} for f in findings])
    else:
        for f in findings:
            print_verdict(f.verdict, f.place, f.text, f.mend)
    verdicts = {finding.verdict for finding in findings}
    raise typer.Exit(NO if Verdict.BAD in verdicts else UNKNOWN if Verdict.UNKNOWN in verdicts else DONE)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The names that are most like it, whatever their case and separators; its last word alone may be meant."""

    def folded(text: str) -> str:
        return "".join(filter(str.isalnum, text.lower()))

    wanted = folded(name)
    like = [each for each in known if wanted in (folded(each), folded(each.rpartition(".")[2]))]
    if not like:
        by_folded = {folded(each): each for each in known}
        like = [by_folded[each] for each in difflib.get_close_matches(wanted, by_folded)]
    return f"did you mean {', '.join(like[:4])}?" if like else ""
