"""`xcp-bridge capture`: recording what passes the doors; looking at it, importing and exporting it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import typer
from rich.table import Table

from bridges import cli_conversion
from bridges.calls import Door, Side
from bridges.capture import detectors, showing, store, verifying
from bridges.capture.records import Leg, encode, nanoseconds
from bridges.capture.store import Capture, CaptureError
from bridges.capture.verifying import Report
from bridges.cli_reading import CaptureArgument, Stop, bar, opened, reading, stoppable, tell_damage, tell_stopped
from bridges.replay.words import counted, printable
from bridges.settings import Settings
from bridges.terminal import (
    NO,
    UNKNOWN,
    WRONG,
    JsonOption,
    NotDone,
    SettingsOption,
    ask,
    ask_bridge,
    command_group,
    err,
    fail,
    out,
    print_json,
    settings_of,
)

capture = command_group("Record what passes the doors, and look at it.")
commands = command_group()
commands.add_typer(capture, name="capture")

ServicesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[SERVICE]...", help="Which services; without any, all.")
]

_LEAKS: Final = 1000  # places that are kept
_LEAKS_SHOWN: Final = 20
_MOST_MS: Final = 1e9


@capture.command()
def start(
    services: ServicesArgument = None,
    name: Annotated[str | None, typer.Option(help="The name of the capture; else it is the time.")] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Capture these services from now on."""
    request = {"verb": "capture", "action": "start", "services": services or [], "name": name}
    answer = ask_bridge(settings_of(settings), request)
    if as_json:
        print_json(answer)
    else:
        out.print(f"capturing {', '.join(answer['services'])} into {answer['directory']}", soft_wrap=True, markup=False)
    for each in answer.get("unheard", ()):  # an older bridge does not say it
        err.print(
            f"xcp-bridge: calls to {each} on the bus cannot be heard yet: see the log", soft_wrap=True, markup=False
        )


@capture.command()
def stop(services: ServicesArgument = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Stop capturing these services; with the last the capture ends."""
    answer = ask_bridge(settings_of(settings), {"verb": "capture", "action": "stop", "services": services or []})
    if as_json:
        print_json(answer)
        return
    running = answer["running"]
    state = "closed" if running is None else f"goes on with {', '.join(running['services'])}"
    text = f"no longer capturing {', '.join(answer['services'])}: {answer['directory']} {state}"
    out.print(text, soft_wrap=True, markup=False)


@capture.command("list")
def list_(settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """The captures of this host, and how the running one does."""
    loaded = settings_of(settings)
    running = _running(loaded)
    try:
        rows = [_row(path, running) for path in store.find(loaded.capture.directory)]
    except CaptureError as error:
        fail(error.code, str(error))
    if as_json:
        print_json(rows)
        return
    if not rows:
        out.print(f"no captures in {loaded.capture.directory}; xcp-bridge capture start makes one", markup=False)
        return
    table = Table("CAPTURE", "BEGAN", "RECORDS", "SIZE", "STATE", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        records = "?" if row["records"] is None else f"{row['records']:,}"
        table.add_row(row["capture"], row["began"], records, f"{row['bytes'] / 1024:,.0f} KiB", row["state"])
    out.print(table)


def _running(settings: Settings) -> dict[str, Any]:
    """The running capture by its own account; empty when there is none, or no bridge."""
    try:
        return ask(settings, {"verb": "capture", "action": "status"}, timeout=5)["running"] or {}
    except NotDone:
        return {}


def _row(path: Path, running: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"capture": path.name, "began": "", "records": None, "bytes": 0, "state": ""}
    try:
        found = store.open_capture(path)
    except CaptureError as error:
        return row | {"state": str(error)}
    header = next(iter(found.headers), None)
    row |= {"began": "" if header is None else _time(header.real, "%Y-%m-%d %H:%M:%SZ"), "bytes": found.size}
    if running.get("directory") == str(path):
        lost = sum(sum(why.values()) for why in running["lost"].values())
        state = f"running: {', '.join(running['services'])}; {running['pending']} pending, {lost} lost"
        return row | {"records": running["records"], "state": state, "running": running}
    manifest = found.manifest
    if manifest is None or not manifest.closed:
        return row | {"state": "being written" if found.is_being_written else "not closed: the bridge was ended"}
    missing = f"; {counted(len(found.missing), 'segment')} missing" if found.missing else ""
    source = "" if header is None or header.source == "bridge" else f", from {header.source}"
    return row | {"records": sum(each.records for each in manifest.segments), "state": f"closed{source}{missing}"}


def _time(nanos: str, form: str) -> str:
    """A time of a record in words; empty for one that is not known, or in no calendar."""
    try:
        return datetime.fromtimestamp(nanoseconds(nanos) / 1e9, UTC).strftime(form) if nanoseconds(nanos) else ""
    except (ValueError, OverflowError, OSError):
        return ""


@capture.command()
def show(
    name: CaptureArgument,
    service: Annotated[str | None, typer.Option(help="Only calls of this service.")] = None,
    method: Annotated[str | None, typer.Option(help="Only calls of this method; * and ? stand for any text.")] = None,
    door: Annotated[Door | None, typer.Option(help="Only calls at this door.")] = None,
    leg: Annotated[Leg | None, typer.Option(help="Only this part of each call's way.")] = None,
    side: Annotated[Side | None, typer.Option(help="Only what this side answered.")] = None,
    fault: Annotated[str | None, typer.Option(help="Only faults: of this kind or code, or `any`.")] = None,
    slower: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Only what took so many milliseconds or more.", min=0, max=_MOST_MS),
    ] = None,
    limit: Annotated[int, typer.Option(help="Show so many at most; 0 shows all.", min=0)] = 100,
    settings: SettingsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """The calls of a capture, one line each."""
    found = opened(name, settings)
    wanted = showing.Filter(service, method, door, leg, side, fault, None if slower is None else int(slower * 1000))
    shown = left = 0
    damage: list[str] = []
    with reading(found, damage.append) as records:
        for each in showing.legs(records):
            if not wanted.takes(each):
                continue
            if limit and shown >= limit:
                left += 1
                continue
            shown += 1
            if as_json:
                sys.stdout.write(json.dumps(showing.as_json(each)) + "\n")
            else:
                _print_leg(each)
    if left:
        err.print(f"{left:,} more: --limit 0 shows all of them", markup=False)
    tell_damage(damage)
    if records.was_stopped:
        tell_stopped("the rest of the capture was not read")
    if not shown:
        fail(
            UNKNOWN,
            f"{name}: {'no call of the capture is like that' if any(wanted) else 'there is no call in the capture'}",
        )


def _print_leg(shown: showing.Shown) -> None:
    request, reply = shown.request, shown.reply
    # What was observed is told in one moment, when it is over.
    took = "" if reply is None or request.leg is Leg.OBSERVED else f"{reply.us / 1000:.1f} ms"
    side = reply.side if reply is not None else request.side
    where = f"{request.service} {showing.leg_text(request)}"
    text = f"{showing.call_text(request)} -> {showing.outcome_text(reply)}"
    line = f"{_time(request.ts, '%H:%M:%S.%f'):<15}  {where:<26}  {side:<6}  {took:>10}  {text}"
    out.print(printable(line), soft_wrap=True, markup=False)


class _Leaks(NamedTuple):
    """Secrets that were found: how many, and where the first of them are."""

    total: int
    first: list[str]


@capture.command()
def verify(
    name: CaptureArgument,
    secrets: Annotated[bool, typer.Option("--secrets", help="Look for what should have been redacted, too.")] = False,
    canary: Annotated[
        str | None, typer.Option(help="Look for this text too, in several encodings.", envvar="XCP_BRIDGE_CANARY")
    ] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find damage and gaps, and secrets if you ask for it."""
    if canary is not None and not canary.strip():
        fail(WRONG, "--canary: expected a text to look for, got an empty one")
    found = opened(name, settings)
    leaks = None
    with bar(found) as progress, stoppable() as stop:
        report = verifying.verify(found, progress, lambda: stop.is_set)
        if secrets or canary:
            leaks = _leaks(found, canary, progress, stop, secrets=secrets)
    if as_json:
        told = {} if leaks is None else {"secrets": leaks.first, "secrets_found": leaks.total}
        print_json(msgspec.to_builtins(report) | told | {"interrupted": stop.is_set})
    else:
        for line in [*_sentences(report), *([] if leaks is None else _leaks_told(leaks))]:
            out.print(printable(line), soft_wrap=True, markup=False)
    if not report.is_whole or (leaks is not None and leaks.total):
        raise typer.Exit(NO)
    if stop.is_set:
        tell_stopped("the rest of the capture was not read")
    if not report.requests:
        fail(UNKNOWN, f"{name}: there is no call in the capture")


def _sentences(report: Report) -> Iterator[str]:
    """A report as lines."""
    read = f"{counted(report.records, 'record')} in {counted(report.segments, 'segment')}"
    yield f"{report.path}: {report.state}, {read}, {report.bytes / 1024:,.0f} KiB"
    for leg in report.requests:
        half = f", {count:,} without an answer" if (count := report.unanswered.get(leg, 0)) else ""
        strays = f", {counted(count, 'answer')} without a request" if (count := report.strays.get(leg, 0)) else ""
        yield f"{leg}: {counted(report.requests[leg], 'request')}{half}{strays}"
    for why, count in report.lost.items():
        yield f"lost: {counted(count, 'record') if count else 'nobody knows how many'} ({why})"
    yield from (f"missing: {segment}" for segment in report.missing)
    yield from (f"damage: {text}" for text in report.damages)
    yield from (f"gap: {text}" for text in report.gaps)
    yield from (f"clock: {text}" for text in report.jumps)
    yield from (f"mixed: {text}" for text in report.mixed)
    if report.more:
        yield f"and {report.more:,} more"


def _leaks(
    found: Capture, canary: str | None, progress: Callable[[int], None] | None, stop: Stop, *, secrets: bool
) -> _Leaks:
    count, first = 0, list[str]()
    for place, record in found.read(lambda _damage: None, progress):
        if stop.is_set:
            break
        line = encode(record)
        leaks = detectors.find(line) if secrets else []
        leaks += [f"the canary, {how}" for how in detectors.find_canary(line, canary)] if canary else []
        count += len(leaks)
        first += [f"{place}: {what}" for what in leaks[: _LEAKS - len(first)]]
    return _Leaks(count, first)


def _leaks_told(leaks: _Leaks) -> Iterator[str]:
    yield from leaks.first[:_LEAKS_SHOWN]
    yield f"secrets: {leaks.total:,} found" if leaks.total else "secrets: none found"


capture.command("import")(cli_conversion.import_)
capture.command()(cli_conversion.export)
