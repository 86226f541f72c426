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

from bridges.capture.store import Capture, CaptureError
from bridges.cli_capture import CaptureArgument, opened, reading, tell_damage
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.replay import driving, lint_html, lint_results, linting, masks, serving, terminal_report
from bridges.replay.bindings import Bindings
from bridges.replay.pairs import Selection, join
from bridges.replay.planning import Order
from bridges.replay.recorded import Recorded, TooMuch
from bridges.replay.reports import html, junit
from bridges.replay.results import Result, Verdict
from bridges.replay.serving import ServeError
from bridges.replay.targets import FORMS, Chosen, WrongTarget, choose, open_target
from bridges.replay.verdicts import Judge
from bridges.settings import DEFAULT_PATH, Settings
from bridges.terminal import NO, UNKNOWN, WRONG, JsonOption, SettingsOption, err, fail, out, print_json, settings_of

replay = typer.Typer(
    help="Send a capture's calls to a daemon and compare the answers, or stand in for one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bind", metavar="RECORDED=NOW", help="What stands for a recorded handle or a redacted METHOD.PARAMETER now."
    ),
]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")]
DialectOption = Annotated[str | None, typer.Option(help="The dialect of the legacy daemon; else the settings'.")]

_EXITS: Final = {Verdict.PASS: 0, Verdict.FAIL: NO, Verdict.INCONCLUSIVE: UNKNOWN}


@replay.command()
def lint(
    name: CaptureArgument,
    bind: BindOption = None,
    page: HtmlOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a capture and what a replay or a cutover would stumble over; nothing is sent."""
    found, damage = opened(name, settings), list[str]()
    with reading(found, damage.append) as records:
        report = linting.lint(records, capture=name, bindings=Bindings(_bound(bind)), damage=damage)
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
    service: Annotated[str, typer.Argument(help="The service whose recorded answers are given.")],
    at: Annotated[list[str], typer.Option("--at", metavar="ADDRESS", help=f"Where: {FORMS}.")],
    tree: Annotated[str | None, typer.Option(help="The tree in the store; else the service's name.")] = None,
    dialect: DialectOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stand in for a daemon with the answers of a capture, until Ctrl-C. What is not in it is refused."""
    loaded = _settings_if_any(settings)
    try:
        places = [choose(loaded, service, each, tree=tree, dialect=dialect) for each in at]
    except WrongTarget as error:
        fail(WRONG, str(error))
    found, damage = opened(name, settings), list[str]()
    recorded = Recorded(_interface(places[0]), lambda text: err.print(text, markup=False))
    try:
        with reading(found, damage.append) as records:
            count = recorded.load(join(records))
    except TooMuch as error:
        fail(WRONG, f"{name}: {error}")
    tell_damage(damage)
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
    service: Annotated[str | None, typer.Option(help="Whose calls; else of the service that called first.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Of these methods only; * and ? stand for any.")] = None,
    door: Annotated[list[str] | None, typer.Option(help="That came at these doors only.")] = None,
    allow_writes: Annotated[bool, typer.Option("--allow-writes", help="Send writes too, to a sandbox.")] = False,
    speed: Annotated[float, typer.Option(help="How much faster than it was recorded.", min=0.001)] = 1.0,
    rate: Annotated[float | None, typer.Option(help="So many calls a second instead.", min=0.001)] = None,
    closed: Annotated[int | None, typer.Option(help="So many callers without a schedule instead.", min=1)] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds after which no answer is waited for.", min=0.001)
    ] = None,
    bind: BindOption = None,
    mask_file: Annotated[Path | None, typer.Option("--masks", help="Differences that somebody answers for.")] = None,
    bus_name: Annotated[str | None, typer.Option("--name", help="Another name on the bus, as of a candidate.")] = None,
    tree: Annotated[str | None, typer.Option(help="The tree in the store; else the service's name.")] = None,
    dialect: DialectOption = None,
    page: HtmlOption = None,
    xml: Annotated[Path | None, typer.Option("--junit", help="Write the report as JUnit XML.")] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send the recorded calls of a service to a daemon, on their schedule, and compare its answers."""
    known = _masks(mask_file)
    bindings = Bindings(_bound(bind))
    if rate is not None and closed is not None:
        fail(WRONG, "--rate and --closed exclude each other: a closed loop has no rate")
    found = opened(name, settings)
    options = driving.Drive(speed, rate, closed, allow_writes, deadline)
    services = () if service is None else (service,)
    run = _Run(found, Selection(services, tuple(method or ()), tuple(door or ())), known, bindings)
    chosen = service or run.first_service()
    try:
        result = asyncio.run(
            run.drive(_settings_if_any(settings), chosen, to, options, name=bus_name, tree=tree, dialect=dialect)
        )
    except WrongTarget as error:
        fail(WRONG, f"--to: {error}")
    except CaptureError as error:
        fail(error.code, str(error))
    except Fault as fault:
        fail(UNKNOWN, f"{to}: {fault.text}")
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
        if first is None:
            fail(UNKNOWN, f"{self._found.path}: there is no call in the capture")
        return first.request.service

    async def drive(
        self, settings: Settings | None, service: str, to: str, options: driving.Drive, **more: str | None
    ) -> Result:
        """The result, of what was sent until Ctrl-C."""
        started = datetime.now(UTC)
        async with open_target(settings, service, to, **more) as target:
            judge = Judge(self._masks, started.date(), {service: target.interface})
            stop = asyncio.Event()
            with _bar() as progress, _stopping(stop):
                records = self._found.read(judge.damage)
                timing = await driving.drive(
                    (each for each in join(records) if self._selection.takes(each.request)),
                    target,
                    options,
                    judge,
                    self._bindings,
                    Order(),
                    progress,
                    stop,
                )
            return judge.result(
                capture=str(self._found.path),
                target=target.description,
                started=started.isoformat(timespec="seconds"),
                timing=timing,
                interrupted=stop.is_set(),
            )


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


def _settings_if_any(path: Path | None) -> Settings | None:
    """A capture can be worked with where no bridge was ever installed."""
    return settings_of(path) if path or DEFAULT_PATH.exists() else None


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
        path.write_text(text)
    except OSError as error:
        fail(WRONG, f"{path}: cannot be written: {error.strerror}")
