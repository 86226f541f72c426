"""Captures out of other tools' files, and other tools' files out of captures."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bridges.capture import chart, exporting, importing
from bridges.capture.records import Record
from bridges.capture.store import CaptureError
from bridges.capture.writing import Limits, write_all
from bridges.cli_reading import (
    CaptureArgument,
    check_output,
    opened,
    reading,
    tell_damage,
    tell_notes,
    tell_stopped,
    tell_unwritable,
)
from bridges.interfaces import model
from bridges.replay.words import counted
from bridges.terminal import NO, WRONG, JsonOption, SettingsOption, err, fail, out, print_json

_NO_LIMITS: Final = Limits(total_bytes=sys.maxsize, age_seconds=math.inf)  # what is imported is imported whole


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


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to import.")],
    source: Annotated[
        Source | None, typer.Option("--from", help="What it is; else its first bytes say it.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The capture to make; else beside the file: FILE.capture.")] = None,
    service: Annotated[
        str | None, typer.Option(help="Whose calls recorded exchanges are; needed there, and only there.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="How the daemon in recorded exchanges spoke; else a guess.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a capture of an access log, a D-Bus pcap or exchanges.

    That is: of oxenstored's access log, with those that were rotated (FILE.1, FILE.2.gz); of a pcap or pcapng file of
    dbus-monitor, busctl or Wireshark; or of recorded exchanges, one JSON object a line.
    """
    target = to or file.with_name(f"{file.name}.capture")
    notes: list[str] = []
    try:
        imported = _imported(file, source, service, dialect, notes)
        count = write_all(target, imported.header, _counted(imported.records), _NO_LIMITS)
    except CaptureError as error:
        fail(error.code, str(error))
    except FileExistsError:
        if target.parent.is_dir():
            fail(WRONG, f"{target} is there already: choose another with --to")
        fail(WRONG, f"{target.parent} is no directory: choose another place with --to")
    except OSError as error:
        fail(WRONG, f"{error.filename or file}: {error.strerror or error}")
    except KeyboardInterrupt:
        tell_stopped(f"{target} has what was read until then, and is not closed")
    if as_json:
        print_json({"capture": str(target), "records": count, "notes": notes})
        return
    tell_notes(notes)
    out.print(f"{counted(count, 'record')} in {target}", soft_wrap=True, markup=False)


def _imported(
    file: Path, source: Source | None, service: str | None, dialect: str | None, notes: list[str]
) -> importing.Imported:
    """What is in a file. Raises CaptureError, OSError."""
    if file.exists() and not file.is_file():
        raise CaptureError(f"{file}: expected a file, got {'a directory' if file.is_dir() else 'something else'}")
    source = source or _SOURCES[importing.kind_of(file)]
    if source is not Source.EXCHANGES and (service, dialect) != (None, None):
        raise CaptureError(f"--service and --dialect are for recorded exchanges; {file} is read as {source}")
    match source:
        case Source.ACCESS_LOG:
            return importing.access_log(file, notes.append)
        case Source.DBUS:
            return importing.dbus_capture(file, notes.append)
        case Source.EXCHANGES if service is None:
            raise CaptureError(
                f"{file}: recorded exchanges do not say whose they are: name it with --service "
                f"({', '.join(model.services())} or message-switch)"
            )
        case Source.EXCHANGES:
            return importing.exchanges(file, service, dialect, notes.append)


def _counted(records: Iterable[Record]) -> Iterator[Record]:
    """The same, with how many there are so far for whoever waits."""
    if not err.is_terminal:
        yield from records
        return
    columns = SpinnerColumn(), TextColumn("{task.completed:,} records"), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("importing", total=None)
        for count, record in enumerate(records, 1):
            if count % 1000 == 0:
                progress.update(task, completed=count)
            yield record


def export(
    name: CaptureArgument,
    form: Annotated[Form, typer.Option("--as", help="What to make of it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; else the terminal.")] = None,
    limit: Annotated[int, typer.Option(help="Draw so many calls at most in a chart.", min=1)] = 100,
    settings: SettingsOption = None,
) -> None:
    """Write a capture as D-Bus pcap, sequence chart or JSON lines.

    Wireshark and Bustle open the pcap; the chart is in Mermaid's language.
    """
    found = opened(name, settings)
    check_output(output, found)
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
        tell_unwritable(output or Path("the output"), error)
    tell_notes(notes)
    tell_damage(damage)
    if records.was_stopped:
        tell_stopped("the rest of the capture was not written")


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
