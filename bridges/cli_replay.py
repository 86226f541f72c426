"""`xcp-bridge replay`: yesterday's calls against today's daemon. What they say alone, a stand-in, and a rehearsal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bridges.calls import Door
from bridges.capture.store import Capture, CaptureError
from bridges.cli_reading import (
    CaptureArgument,
    check_output,
    opened,
    reading,
    settings_if_any,
    tell_damage,
    tell_stopped,
    tell_unwritable,
)
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.replay import driving, lint_html, lint_results, linting, masks, serving, terminal_report
from bridges.replay.bindings import Bindings
from bridges.replay.html_report import html
from bridges.replay.junit_report import junit
from bridges.replay.pairs import REPEATED, Selection, Troubles, join
from bridges.replay.planning import Order
from bridges.replay.recorded import Recorded, TooMuch
from bridges.replay.results import Result, Verdict
from bridges.replay.serving import ServeError
from bridges.replay.targets import FORMS, Chosen, WrongTarget, choose, knock, open_target
from bridges.replay.verdicts import Judge
from bridges.replay.words import counted
from bridges.settings import Settings
from bridges.terminal import NO, UNKNOWN, WRONG, JsonOption, SettingsOption, command_group, err, fail, out, print_json

replay = command_group("Send a capture's calls to a daemon, or stand in for one.")
commands = command_group()
commands.add_typer(replay, name="replay")

BindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bind", metavar="RECORDED=NOW", help="Send NOW for a recorded handle, or as the redacted METHOD.PARAMETER."
    ),
]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")]
DialectOption = Annotated[str | None, typer.Option(help="The dialect of the legacy daemon; else the settings'.")]
TreeOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its tree in the store is /NAME; else that of the service.")
]

_FASTEST: Final = 1e6
_LONGEST: Final = 86_400.0  # seconds
SpeedOption = Annotated[
    float | None, typer.Option(help="So many times as fast as recorded; else 1.", min=0.001, max=_FASTEST)
]
RateOption = Annotated[
    float | None, typer.Option(help="So many calls a second, instead of --speed.", min=0.001, max=_FASTEST)
]
ClosedOption = Annotated[
    int | None, typer.Option(help="So many callers without a schedule, instead of --speed.", min=1, max=driving.AHEAD)
]
DeadlineOption = Annotated[
    float | None, typer.Option(help="Wait so many seconds for an answer, no longer.", min=0.001, max=_LONGEST)
]
MasksOption = Annotated[
    Path | None, typer.Option("--masks", help="A TOML file of differences that somebody answers for.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Its name on the bus, if another: that of a candidate.")]

_PLACES: Final = FORMS.replace("http://HOST:PORT/, ", "")  # a stand-in listens at no TCP port

_EXITS: Final = {Verdict.PASS: 0, Verdict.FAIL: NO, Verdict.INCONCLUSIVE: UNKNOWN}


@replay.command()
def lint(
    name: CaptureArgument,
    bind: BindOption = None,
    page: HtmlOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a replay or a cutover would stumble over.

    Nothing is sent. For a host where the bridge never was, import a log and lint that: services, callers, methods,
    rates, sizes, and what the bridge could not carry. Ctrl-C ends it with what was found so far.
    """
    bindings = Bindings(_bound(bind))
    found, damage = _opened(name, settings), list[str]()
    check_output(page, found)
    with reading(found, damage.append) as records:
        report = linting.lint(
            records, capture=name, bindings=bindings, damage=damage, was_stopped=lambda: records.was_stopped
        )
    if page is not None:
        _write(page, lint_html.html(report))
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print(terminal_report.lint_table(report))
    raise typer.Exit(lint_results.exit_code(report))


@replay.command()
def serve(
    name: CaptureArgument,
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The service whose recorded answers are given.")],
    at: Annotated[list[str], typer.Option("--at", metavar="ADDRESS", help=f"Where it stands: {_PLACES}.")],
    tree: TreeOption = None,
    dialect: DialectOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stand in for a daemon with recorded answers, until Ctrl-C.

    A call that is not in the capture is refused, counted, and never passed on.
    """
    loaded = settings_if_any(settings)
    try:
        places = [choose(loaded, service, each, tree=tree, dialect=dialect) for each in at]
    except WrongTarget as error:
        fail(WRONG, f"--at: {error}")
    found, damage = _opened(name, settings), list[str]()
    recorded = Recorded(_interface(places[0]), lambda text: err.print(text, markup=False))
    try:
        with reading(found, damage.append) as records:
            count = recorded.load(join(records))
    except TooMuch as error:
        fail(WRONG, f"{name}: {error}")
    tell_damage(damage)
    if records.was_stopped:
        tell_stopped("the capture was not read to its end, and nobody stood in")
    if not count:
        fail(UNKNOWN, f"{name}: there is no answer of {service} in the capture")

    def ready(where: Iterable[str]) -> None:
        err.print(f"{count:,} answers of {service} at {', '.join(where)}; Ctrl-C ends it", markup=False)

    async def stand_in() -> None:
        stop = asyncio.Event()
        with _stopping(stop):
            await serving.serve(places, recorded, stop, ready)

    try:
        asyncio.run(stand_in())
    except (ServeError, Fault) as error:
        fail(UNKNOWN, error.text if isinstance(error, Fault) else str(error))
    summary = recorded.summary()
    if as_json:
        print_json(msgspec.to_builtins(summary))
        return
    for what, counts in msgspec.to_builtins(summary).items():
        if counts:
            told = ", ".join(f"{method} {number:,}" for method, number in sorted(counts.items()))
            out.print(f"{what.replace('_', ' ')}: {told}", soft_wrap=True, markup=False)
    if summary.unmatched:
        raise typer.Exit(NO)


@replay.command()
def drive(
    name: CaptureArgument,
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help=f"Who is asked: {FORMS}.")],
    service: Annotated[str | None, typer.Option(help="Whose calls; else those of the service called first.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods; * and ? stand for any text.")] = None,
    door: Annotated[list[Door] | None, typer.Option(help="Only calls that came at these doors.")] = None,
    allow_writes: Annotated[bool, typer.Option("--allow-writes", help="Send writes too; only to a sandbox.")] = False,
    speed: SpeedOption = None,
    rate: RateOption = None,
    closed: ClosedOption = None,
    deadline: DeadlineOption = None,
    bind: BindOption = None,
    mask_file: MasksOption = None,
    bus_name: NameOption = None,
    tree: TreeOption = None,
    dialect: DialectOption = None,
    page: HtmlOption = None,
    xml: Annotated[Path | None, typer.Option("--junit", help="Write the report as JUnit XML.")] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send recorded calls to a daemon and compare its answers.

    Each is sent once, on the schedule of the recording. Ctrl-C ends it with a report of what was sent so far.
    """
    _check_paces({"--speed": speed, "--rate": rate, "--closed": closed})
    known = _masks(mask_file)
    bindings = Bindings(_bound(bind))
    found = _opened(name, settings)
    for path in (page, xml):
        check_output(path, found)
    options = driving.Drive(1.0 if speed is None else speed, rate, closed, allow_writes, deadline)
    services = () if service is None else (service,)
    run = _Run(found, Selection(services, tuple(method or ()), tuple(door or ())), known, bindings)
    chosen = service or run.first_service()
    try:
        result = asyncio.run(
            run.drive(settings_if_any(settings), chosen, to, options, name=bus_name, tree=tree, dialect=dialect)
        )
    except WrongTarget as error:
        fail(WRONG, f"--to: {error}")
    except CaptureError as error:
        fail(error.code, str(error))
    except Fault as fault:
        fail(UNKNOWN, f"{to}: {fault.text}")
    except KeyboardInterrupt:
        tell_stopped("there is no report")
    if page is not None:
        _write(page, html(result))
    if xml is not None:
        _write(xml, junit(result))
    if as_json:
        print_json(msgspec.to_builtins(result))
    else:
        _print(terminal_report.table(result))
    raise typer.Exit(_EXITS[result.verdict])


class _Run:
    """One rehearsal."""

    def __init__(self, found: Capture, selection: Selection, known: masks.Masks, bindings: Bindings) -> None:
        self._found = found
        self._selection = selection
        self._masks = known
        self._bindings = bindings

    def first_service(self) -> str:
        """The service that was called first. Ends the command when nobody called."""
        with reading(self._found, lambda _damage: None) as records:
            first = next(join(records, window=1), None)
        if records.was_stopped:
            tell_stopped("nothing was sent")
        if first is None:
            fail(UNKNOWN, f"{self._found.path}: there is no call in the capture")
        return first.request.service

    async def drive(
        self, settings: Settings | None, service: str, to: str, options: driving.Drive, **more: str | None
    ) -> Result:
        """The result, of what was sent until Ctrl-C."""
        started = datetime.now(UTC)
        chosen = choose(settings, service, to, **more)
        await knock(chosen)
        async with open_target(chosen) as target:
            judge = Judge(self._masks, started.date(), {service: target.interface})
            stop = asyncio.Event()
            with _bar() as progress, _stopping(stop):
                records = self._found.read(judge.damage)
                troubles = Troubles()
                timing = await driving.drive(
                    (each for each in join(records, troubles=troubles) if self._selection.takes(each.request)),
                    target,
                    options,
                    judge,
                    self._bindings,
                    Order(),
                    progress,
                    stop,
                )
            judge.missed(troubles.missed, unseen=troubles.unseen)
            if troubles.repeated:
                judge.damage(f"{troubles.first_repeated}: {counted(troubles.repeated, 'record')} left out: {REPEATED}")
            return judge.result(
                capture=str(self._found.path),
                target=target.description,
                started=started.isoformat(timespec="seconds"),
                timing=timing,
                interrupted=stop.is_set(),
            )


def _check_paces(paces: dict[str, float | None]) -> None:
    given = [option for option, value in paces.items() if value is not None]
    if len(given) > 1:
        fail(WRONG, f"{' and '.join(given)} exclude each other: each says how fast it goes")


def _opened(name: str, settings: Path | None) -> Capture:
    """A capture that can be replayed: handles and connections mean something on one host alone."""
    found = opened(name, settings)
    if len(found.hosts) > 1:
        told = ", ".join(f"{segment} is of host {host}" for host, segment in found.hosts.items())
        fail(
            WRONG, f"{name}: captures of different hosts in one directory: {told}; replay one segment or separate them"
        )
    return found


def _masks(path: Path | None) -> masks.Masks:
    if path is None:
        return ()
    try:
        return masks.decode(path.read_bytes())
    except OSError as error:
        fail(WRONG, f"{path}: cannot be read: {error.strerror}")
    except masks.MasksError as error:
        fail(WRONG, *(f"{path}: {problem}" for problem in error.problems))


def _bound(words: list[str] | None) -> dict[str, str]:
    bound = {}
    for word in words or ():
        recorded, equals, now = word.partition("=")
        if not recorded or not equals:
            fail(WRONG, f"--bind: expected RECORDED=NOW, got {word!r}")
        bound[recorded] = now
    return bound


def _interface(place: Chosen) -> model.Service:
    return model.load_dialect(place.service.name, place.service.dialect)


@contextmanager
def _stopping(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C ends the work orderly; a second one is as usual."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _bar() -> Iterator[driving.Progress]:
    if not err.is_terminal:
        yield lambda _over: None
        return
    columns = SpinnerColumn(), TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("replaying", total=None)
        yield lambda over: progress.update(task, completed=over)


def _print(shown: list[RenderableType]) -> None:
    for each in shown:
        out.print(each)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        tell_unwritable(path, error)
