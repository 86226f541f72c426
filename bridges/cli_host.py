"""The commands about the host: what is wrong with it, and its addresses after a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

from bridges import checks, releasing
from bridges.findings import Finding, Verdict
from bridges.terminal import (
    NO,
    JsonOption,
    NotDone,
    SettingsOption,
    ask,
    command_group,
    fail,
    out,
    print_json,
    report,
    settings_of,
)

DOCTOR_SECONDS: Final = 30.0

MessageSwitchOption = Annotated[Path, typer.Option(help="Where message-switch listens.")]

commands = command_group()


@commands.command()
def check(
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    message_switch: MessageSwitchOption = checks.MESSAGE_SWITCH,
) -> None:
    """Find what is wrong on this host, and how to mend it."""
    report(asyncio.run(checks.check(settings_of(settings), message_switch)), as_json=as_json)


@commands.command()
def doctor(
    settings: SettingsOption = None,
    as_json: JsonOption = False,
    message_switch: MessageSwitchOption = checks.MESSAGE_SWITCH,
) -> None:
    """What `check` finds, and what the running bridge knows."""
    loaded = settings_of(settings)
    findings = asyncio.run(checks.check(loaded, message_switch))
    try:
        answer = ask(loaded, {"verb": "doctor"}, DOCTOR_SECONDS)
    except NotDone as refusal:
        findings.append(Finding("bridge", Verdict.UNKNOWN, str(refusal)))
    else:
        findings += [Finding(f["place"], Verdict(f["verdict"]), f["text"], f["mend"]) for f in answer["findings"]]
    report(findings, as_json=as_json)


@commands.command()
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
