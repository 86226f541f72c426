"""`xcp-bridge capture`: recording what passes the doors; looking at it, importing and exporting it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bridges.calls import Door, Side
from bridges.capture import chart, detectors, exporting, importing, showing, store, verifying
from bridges.capture.records import Leg, Record, encode
from bridges.capture.store import Capture, CaptureError, Place
from bridges.capture.verifying import Report
from bridges.capture.writing import Limits, write_all
from bridges.settings import DEFAULT_PATH, Settings
from bridges.terminal import (
    NO,
    UNKNOWN,
    WRONG,
    JsonOption,
    NotDone,
    SettingsOption,
    ask,
    ask_bridge,
    err,
    fail,
    out,
    print_json,
    settings_of,
)

capture = typer.Typer(
    help="Record what passes the doors; look at it, import and export it.", no_args_is_help=True, rich_markup_mode=None
)

CaptureArgument = Annotated[
    str, typer.Argument(metavar="CAPTURE", help="A capture's name in `capture list`, or the path of one.")
]
ServicesArgument = Annotated[list[str] | None, typer.Argument(metavar="[SERVICE]...", help="Without: all of them.")]

_BAR_BYTES: Final = 4 << 20  # below, nobody has to wait
_SECRETS_SHOWN: Final = 20


class Source(StrEnum):
    """What can be imported."""

    ACCESS_LOG = "access-log"
    DBUS = "dbus"
    EXCHANGES = "exchanges"


_SOURCES: Final = {
    importing.ACCESS_LOG: Source.ACCESS_LOG,
    importing.DBUS: Source.DBUS,
    importing.EXCHANGES: Source.EXCHANGES,
}


class Form(StrEnum):
    """What can be exported."""

    PCAP = "pcap"
    MERMAID = "mermaid"
    LINES = "lines"


@capture.command()
def start(
    services: ServicesArgument = None,
    name: Annotated[str | None, typer.Option(help="What the capture is called; else the time.")] = None,
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


@capture.command()
def stop(services: ServicesArgument = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Stop capturing these services; the capture is closed with the last of them."""
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
    """The captures of this host, the running one with what it has lost."""
    loaded = settings_of(settings)
    running = _running(loaded)
    rows = [_row(path, running) for path in store.find(loaded.capture.directory)]
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
    began = datetime.fromtimestamp(int(found.headers[0].real) / 1e9, UTC)
    row |= {"began": f"{began:%Y-%m-%d %H:%M:%S}Z", "bytes": found.size}
    if running.get("directory") == str(path):
        lost = sum(sum(why.values()) for why in running["lost"].values())
        state = f"running: {', '.join(running['services'])}; {running['pending']} pending, {lost} lost"
        return row | {"records": running["records"], "state": state, "running": running}
    manifest = found.manifest
    if manifest is None or not manifest.closed:
        return row | {"state": "being written" if found.is_being_written else "not closed: the bridge was ended"}
    missing = f"; {len(found.missing)} segments are missing" if found.missing else ""
    source = "" if found.headers[0].source == "bridge" else f", from {found.headers[0].source}"
    return row | {"records": sum(each.records for each in manifest.segments), "state": f"closed{source}{missing}"}


@capture.command()
def show(
    name: CaptureArgument,
    service: Annotated[str | None, typer.Option(help="Calls of this service only.")] = None,
    method: Annotated[str | None, typer.Option(help="Of this method only; * and ? stand for any.")] = None,
    door: Annotated[Door | None, typer.Option(help="At this door only.")] = None,
    leg: Annotated[Leg | None, typer.Option(help="This leg of calls only.")] = None,
    side: Annotated[Side | None, typer.Option(help="Answered by this side only.")] = None,
    fault: Annotated[str | None, typer.Option(help="That failed so only: a kind, a code, or any.")] = None,
    slower: Annotated[float | None, typer.Option(metavar="MS", help="That took longer only, in milliseconds.")] = None,
    limit: Annotated[int, typer.Option(help="So many at most; 0: all.", min=0)] = 100,
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
    if not shown:
        fail(UNKNOWN, f"{name}: no call of the capture is like that")


def _print_leg(shown: showing.Shown) -> None:
    request, reply = shown.request, shown.reply
    time = datetime.fromtimestamp(int(request.ts) / 1e9, UTC)
    # What was observed is told in one moment, when it is over.
    took = "" if reply is None or request.leg is Leg.OBSERVED else f"{reply.us / 1000:.1f} ms"
    side = reply.side if reply is not None else request.side
    where = f"{request.service} {showing.leg_text(request)}"
    text = f"{showing.call_text(request)} -> {showing.outcome_text(reply)}"
    out.print(f"{time:%H:%M:%S.%f}  {where:<26}  {side:<6}  {took:>10}  {text}", soft_wrap=True, markup=False)


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
    found = opened(name, settings)
    with _bar(found) as progress:
        report = verifying.verify(found, progress)
        leaks = _leaks(found, canary, secrets=secrets) if secrets or canary else []
    if as_json:
        print_json(msgspec.to_builtins(report) | ({"secrets": leaks} if secrets or canary else {}))
    else:
        for line in [*_sentences(report), *leaks[:_SECRETS_SHOWN]]:
            out.print(line, soft_wrap=True, markup=False)
        if secrets or canary:
            out.print(f"secrets: {len(leaks)} found" if leaks else "secrets: none found")
    if not report.is_whole or leaks:
        raise typer.Exit(NO)
    if not report.requests:
        fail(UNKNOWN, f"{name}: there is no call in the capture")


def _sentences(report: Report) -> Iterator[str]:
    """A report as lines."""
    records = f"{report.records:,} records in {report.segments} segments, {report.bytes / 1024:,.0f} KiB"
    yield f"{report.path}: {report.state}, {records}"
    for leg in report.requests:
        half = f", {count:,} without an answer" if (count := report.unanswered.get(leg, 0)) else ""
        strays = f", {count:,} answers without their request" if (count := report.strays.get(leg, 0)) else ""
        yield f"{leg}: {report.requests[leg]:,} requests{half}{strays}"
    for why, count in report.lost.items():
        yield f"lost: {count:,} records ({why})"
    yield from (f"missing: {segment}" for segment in report.missing)
    yield from (f"damage: {text}" for text in report.damages)
    yield from (f"gap: {text}" for text in report.gaps)
    yield from (f"clock: {text}" for text in report.jumps)
    yield from (f"mixed: {text}" for text in report.mixed)
    if report.more:
        yield f"and {report.more:,} more"


def _leaks(found: Capture, canary: str | None, *, secrets: bool) -> list[str]:
    leaks: list[str] = []
    for place, record in found.read(lambda _damage: None):
        line = encode(record)
        if secrets:
            leaks += [f"{place}: {what}" for what in detectors.find(line)]
        if canary:
            leaks += [f"{place}: the canary, {how}" for how in detectors.find_canary(line, canary)]
    return leaks


@capture.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to import.")],
    source: Annotated[
        Source | None, typer.Option("--from", help="What it is; else its first bytes say it.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The capture to make; else beside the file: FILE.capture.")] = None,
    service: Annotated[str | None, typer.Option(help="Whose exchanges they are (exchanges only).")] = None,
    dialect: Annotated[str | None, typer.Option(help="The dialect of that service's daemon.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a capture of an oxenstored access log, a D-Bus pcap or pcapng, or a file of exchanges."""
    target = to or file.with_name(f"{file.name}.capture")
    notes: list[str] = []
    try:
        match source or _SOURCES[importing.kind_of(file)]:
            case Source.ACCESS_LOG:
                imported = importing.access_log(file, notes.append)
            case Source.DBUS:
                imported = importing.dbus_capture(file, notes.append)
            case Source.EXCHANGES:
                imported = importing.exchanges(file, service or "", dialect, notes.append)
        count = write_all(target, imported.header, imported.records, Limits())
    except FileExistsError:
        fail(WRONG, f"{target} is there already: choose another with --to")
    except CaptureError as error:
        fail(error.code, str(error))
    except OSError as error:
        fail(WRONG, f"{error.filename or file}: {error.strerror or error}")
    if as_json:
        print_json({"capture": str(target), "records": count, "notes": notes})
        return
    for note in notes:
        err.print(note, markup=False)
    out.print(f"{count:,} records in {target}", soft_wrap=True, markup=False)


@capture.command()
def export(
    name: CaptureArgument,
    form: Annotated[Form, typer.Option("--as", help="What to make of it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; else the terminal.")] = None,
    limit: Annotated[int, typer.Option(help="So many calls at most in a chart.", min=1)] = 100,
    settings: SettingsOption = None,
) -> None:
    """Write a capture as a D-Bus pcap (Wireshark, Bustle), a Mermaid sequence chart or JSON lines."""
    found = opened(name, settings)
    damage: list[str] = []
    notes: list[str] = []
    try:
        with _output(output, form) as file, reading(found, damage.append) as records:
            match form:
                case Form.PCAP:
                    exporting.pcap(records, file, notes.append)
                case Form.MERMAID:
                    for line in chart.mermaid(records, limit=limit):
                        file.write(f"{line}\n".encode())
                case Form.LINES:
                    exporting.lines(records, file)
    except BrokenPipeError:  # whoever reads it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(NO) from None
    except OSError as error:
        fail(WRONG, f"{output}: cannot be written: {error.strerror or error}")
    for note in notes:
        err.print(note, markup=False)
    tell_damage(damage)


@contextmanager
def _output(path: Path | None, form: Form) -> Iterator[BinaryIO]:
    if path is not None:
        with path.open("wb") as file:
            yield file
    elif form is Form.PCAP and sys.stdout.isatty():
        fail(WRONG, "a pcap is no text for a terminal: name a file with --output")
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


# ---- what replay shares


def opened(name: str, settings: Path | None) -> Capture:
    """The capture of that path or name. Ends the command when it is none."""
    path = Path(name)
    if not path.exists():
        directory = settings_of(settings).capture.directory if settings or DEFAULT_PATH.exists() else None
        if directory is None or not (directory / name).exists():
            where = "" if directory is None else f", and none of that name in {directory}"
            fail(WRONG, f"{name}: there is no such capture{where}")
        path = directory / name
    try:
        return store.open_capture(path)
    except CaptureError as error:
        fail(error.code, str(error))


@contextmanager
def reading(found: Capture, on_damage: Callable[[str], None]) -> Iterator[Iterator[tuple[Place, Record]]]:
    """The records of a capture, with a bar where that takes a while. Ends the command at what is no capture."""
    with _bar(found) as progress:
        try:
            yield found.read(on_damage, progress)
        except CaptureError as error:
            fail(error.code, str(error))


@contextmanager
def _bar(found: Capture) -> Iterator[Callable[[int], None] | None]:
    if found.size < _BAR_BYTES or not err.is_terminal:
        yield None
        return
    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("reading", total=found.size)
        yield lambda done: progress.update(task, completed=done)


def tell_damage(damage: list[str]) -> None:
    """Damage is told after what could be read; it does not end the command."""
    for text in damage:
        err.print(f"xcp-bridge: damage: {text}", markup=False, style="red")
