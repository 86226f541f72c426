"""The commands about a service on its way: move it, bring it back, say why a call goes where it goes, look back."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bridges import cutover
from bridges.cli_status import print_checklist, show_service, tally
from bridges.settings import Settings
from bridges.terminal import (
    DONE,
    NO,
    UNKNOWN,
    WRONG,
    JsonOption,
    NotDone,
    SettingsOption,
    ask,
    ask_bridge,
    body,
    command_group,
    fail,
    out,
    print_json,
    print_verdict,
    settings_of,
)

Record = Mapping[str, Any]

commands = command_group()

ReasonOption = Annotated[str, typer.Option(help="Why; kept in the record of moves. Needed.", show_default=False)]
InDoubtOption = Annotated[
    bool,
    typer.Option(
        "--accept-in-doubt", help="Take a tree that never gets quiet; its pending requests are answered InDoubt."
    ),
]


@commands.command()
def stage(
    service: Annotated[str, typer.Argument(help="The service to move or look at.")],
    stage: Annotated[str | None, typer.Argument(help=f"One of {', '.join(cutover.LADDER)}.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the record of moves. Needed for a move.")] = "",
    skip: Annotated[str | None, typer.Option(help="Why observe or shadow is left out; kept in the record.")] = None,
    override: Annotated[
        str | None, typer.Option(help="Why the service moves although a gate says no; kept in the record.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the gates, change nothing.")] = False,
    accept_in_doubt: InDoubtOption = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a service to a stage, or say where it stands."""
    loaded = settings_of(settings)
    if stage is None:
        show_service(loaded, service, as_json=as_json)
        return
    if not dry_run:
        _need_reason(reason, "a move")
    if override is not None and not override.strip():
        fail(WRONG, "--override needs a TEXT: it is kept in the record of moves")
    request: dict[str, object] = {"verb": "stage", "service": service, "stage": stage, "reason": reason, "skip": skip}
    request |= {"override": override, "dry_run": dry_run, "accept_in_doubt": accept_in_doubt}
    answer = _move(loaded, request, as_json=as_json)
    gates = answer.get("gates", [])
    if not dry_run:
        if as_json:
            print_json(answer["receipts"])
        else:
            _print_gates(gates)
            _print_receipts(answer["receipts"])
            print_checklist(answer.get("checklist", ()))
        return
    if as_json:
        print_json(body(answer))
    else:
        _print_plan(answer)
    if answer.get("refused"):
        fail(NO, answer["refused"])
    raise typer.Exit(DONE if override is not None else _exit_code(gates))


@commands.command()
def kill(
    service: Annotated[str, typer.Argument(help="The service to bring back.")],
    reason: ReasonOption = "",
    accept_in_doubt: InDoubtOption = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a service back to its legacy daemon, from any stage."""
    loaded = settings_of(settings)
    _need_reason(reason, "a kill")
    request = {"verb": "kill", "service": service, "reason": reason, "accept_in_doubt": accept_in_doubt}
    answer = _move(loaded, request, as_json=as_json)
    if as_json:
        print_json(body(answer))
    else:
        _print_receipts(answer["receipts"])
        out.print(answer["text"], markup=False)


@commands.command()
def acknowledge(
    service: Annotated[str, typer.Argument(help="The service that is frozen, or has calls in doubt.")],
    reason: ReasonOption = "",
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a freeze and take note of the calls in doubt."""
    loaded = settings_of(settings)
    _need_reason(reason, "an acknowledgement")
    answer = ask_bridge(loaded, {"verb": "acknowledge", "service": service, "reason": reason})
    if as_json:
        print_json(body(answer))
    else:
        out.print(answer["text"], markup=False)
        out.print(f"calls in doubt taken note of: {answer['in_doubt']}")


@commands.command()
def audit(
    service: Annotated[str | None, typer.Argument(help="Only what was done with this service.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 50,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who moved what, when and why; refused attempts too."""
    loaded = settings_of(settings)
    entries = ask_bridge(loaded, {"verb": "audit", "service": service, "limit": limit})["entries"]
    if as_json:
        print_json(entries)
    elif not entries:
        out.print("nothing has been moved yet")
    else:
        out.print(_audit_table(entries))


@commands.command()
def handles(
    service: Annotated[str, typer.Argument(help="The service whose handles to list.")],
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ids that a service gave out, and who knows them by which."""
    answer = ask_bridge(settings_of(settings), {"verb": "handles", "service": service})
    if as_json:
        print_json(body(answer))
        return
    if answer["handles"]:
        out.print(_handles_table(answer["handles"]))
    if answer["reservations"]:
        out.print("\nreservations", style="bold")
        out.print(_rows_table(("session", "id", "kib", "state"), answer["reservations"]))
    said = tally(answer["summary"])
    out.print(f"{service}: {said}" if said else f"{service} has given out no handle that is kept", markup=False)


def _need_reason(reason: str, what: str) -> None:
    if not reason.strip():
        fail(WRONG, f"{what} needs --reason TEXT")


def _move(settings: Settings, request: Record, *, as_json: bool) -> dict[str, Any]:
    """Asks for a move. Ends the command when it is refused, with the gates that refused it."""
    try:
        return ask(settings, request)
    except NotDone as refusal:
        if refusal.answer.get("gates"):
            if as_json:
                print_json(body(refusal.answer))
            else:
                _print_gates(refusal.answer["gates"])
        fail(refusal.code, str(refusal))


def _exit_code(gates: Iterable[Record]) -> int:
    verdicts = {gate["verdict"] for gate in gates}
    return NO if "fail" in verdicts else UNKNOWN if "no data" in verdicts else DONE


def _print_gates(gates: Iterable[Record]) -> None:
    for gate in gates:
        print_verdict(gate["verdict"], gate["gate"], gate["text"], gate["mend"])


def _print_plan(answer: Record) -> None:
    for number, step in enumerate(answer["plan"], 1):
        out.print(textwrap.fill(f"{number}. {step}", out.width, subsequent_indent="   "), markup=False)
    _print_gates(answer.get("gates", []))
    limit = answer.get("promised", {}).get("held_seconds_limit")
    if limit is not None:
        out.print(f"new calls will wait for at most {_span(limit)}")


def _print_receipts(receipts: Iterable[Record]) -> None:
    for receipt in receipts:
        held, limit = receipt["held_seconds"], receipt.get("held_limit_seconds")
        is_late = limit is not None and held > limit
        promised = "" if limit is None else f", more than {_span(limit)}" if is_late else f" of at most {_span(limit)}"
        out.print(
            f"{receipt['service']}: {receipt['origin']} -> {receipt['target']}, epoch {receipt['epoch']}, "
            f"calls held for {_span(held)}{promised}",
            style="yellow" if is_late else None,
            markup=False,
        )


def _span(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _audit_table(entries: Iterable[Record]) -> Table:
    table = Table("id", "when (UTC), who", "what", box=None, pad_edge=False)
    table.add_column("why, and what came of it", overflow="fold")
    for entry in entries:
        held = entry.get("held_seconds")
        what = [f"{entry['service']}: {entry['verb']}", f"{entry['origin']} -> {entry['target']}"]
        what.append(f"epoch {entry['epoch']}" + ("" if held is None else f", held {_span(held)}"))
        came = [entry["reason"]]
        came += [f"{name}: {entry[name]}" for name in ("skip", "override", "watched") if entry.get(name)]
        came.append(f"-> {entry['outcome']}")
        table.add_row(
            str(entry["id"]),
            Text(f"{_moment(entry['time'])}\n{entry['who']}"),
            Text("\n".join(what)),
            Text("\n".join(filter(None, came))),
            style="red" if _was_refused(entry) else None,
        )
    return table


def _was_refused(entry: Record) -> bool:
    """A move's outcome is `done`, `completed after a crash`, or why it was not made."""
    return entry["verb"] in ("stage", "kill") and not entry["outcome"].startswith(("done", "completed"))


def _moment(time: str) -> str:
    return time[:19].replace("T", " ")


def _handles_table(rows: Iterable[Record]) -> Table:
    """A handle that callers know by another text than its issuer has the issuer's below it."""
    forms = (
        {
            **row,
            "issued": _moment(row["issued"])[5:16],
            "handle": "\n=".join(dict.fromkeys((row["handle"], row["native"]))),
        }
        for row in rows
    )
    return _rows_table(("kind", "handle", "home", "side", "state", "issued"), forms)


def _rows_table(headings: tuple[str, ...], rows: Iterable[Record]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading == "kib" else "left")
    for row in rows:
        table.add_row(*(Text("" if row[heading] is None else str(row[heading])) for heading in headings))
    return table
