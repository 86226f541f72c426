"""What the commands that read captures share: finding one, reading it until Ctrl-C, and where output may go."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bridges.capture import store
from bridges.capture.records import Record
from bridges.capture.store import Capture, CaptureError, Place
from bridges.settings import DEFAULT_PATH, Settings
from bridges.terminal import UNKNOWN, WRONG, err, fail, settings_of

CaptureArgument = Annotated[
    str, typer.Argument(metavar="CAPTURE", help="A capture's name in `capture list`, or the path of one.")
]

_BAR_BYTES: Final = 4 << 20  # below, nobody has to wait
_TOLD: Final = 20  # sentences of one kind; `capture verify` and `--json` have more


def settings_if_any(path: Path | None) -> Settings | None:
    """A capture can be worked with where no bridge was ever installed."""
    return settings_of(path) if path or DEFAULT_PATH.exists() else None


def opened(name: str, settings: Path | None) -> Capture:
    """The capture of that path or name. Ends the command when it is none."""
    path = Path(name)
    try:
        if not _is_there(path):
            loaded = settings_if_any(settings)
            directory = None if loaded is None else loaded.capture.directory
            if directory is None or not _is_there(directory / name):
                where = "" if directory is None else f", and none of that name in {directory}"
                fail(WRONG, f"{name}: there is no such capture{where}")
            path = directory / name
        return store.open_capture(path)
    except CaptureError as error:
        fail(error.code, str(error))


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # whoever opens it says what is the matter
        return True
    return True


class Stop:
    """Whether somebody has had enough."""

    def __init__(self) -> None:
        self.is_set = False


@contextmanager
def stoppable() -> Iterator[Stop]:
    """The first Ctrl-C (or SIGTERM) sets the stop, and the work ends orderly; a second one is as usual."""
    stop = Stop()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def first(_number: int, _frame: Any) -> None:
        stop.is_set = True
        restore()

    for number, handler in usual.items():
        if handler is not signal.SIG_IGN:  # as in the background of a script
            signal.signal(number, first)
    try:
        yield stop
    finally:
        restore()


class Reading:
    """The records of a capture, until somebody has had enough; `was_stopped` says whether."""

    def __init__(self, found: Iterator[tuple[Place, Record]], stop: Stop) -> None:
        self._found = found
        self._stop = stop
        self.was_stopped = False

    def __iter__(self) -> Iterator[tuple[Place, Record]]:
        for each in self._found:
            if self._stop.is_set:
                self.was_stopped = True
                return
            yield each


@contextmanager
def reading(found: Capture, on_damage: Callable[[str], None]) -> Iterator[Reading]:
    """The records of a capture, with a bar where that takes a while. Ends the command at what is no capture."""
    with bar(found) as progress, stoppable() as stop:
        try:
            yield Reading(found.read(on_damage, progress), stop)
        except CaptureError as error:
            fail(error.code, str(error))


def tell_stopped(what: str) -> NoReturn:
    """Ends a command that was stopped; `what` was left undone."""
    fail(UNKNOWN, f"interrupted: {what}")


@contextmanager
def bar(found: Capture) -> Iterator[Callable[[int], None] | None]:
    """A progress bar for bytes read; None where nobody has to wait, or looks."""
    if found.size < _BAR_BYTES or not err.is_terminal:
        yield None
        return
    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("reading", total=found.size)
        yield lambda done: progress.update(task, completed=done)


def tell_damage(damage: list[str]) -> None:
    """Damage is told after what could be read; it does not end the command."""
    for text in damage[:_TOLD]:
        err.print(f"xcp-bridge: damage: {text}", markup=False, style="red")
    if len(damage) > _TOLD:
        err.print(f"xcp-bridge: damage: in {len(damage) - _TOLD:,} more places; `capture verify` has them", style="red")


def tell_notes(notes: list[str]) -> None:
    """What is to be known of the work, and is no damage."""
    for note in notes[:_TOLD]:
        err.print(note, markup=False)
    if len(notes) > _TOLD:
        err.print(f"and {len(notes) - _TOLD:,} more notes")


def check_output(path: Path | None, found: Capture) -> None:
    """Ends the command where a file cannot be written: better now than after an hour. Leaves no trace."""
    if path is None:
        return
    try:
        if found.path.resolve() in (path.resolve(), path.resolve().parent):
            fail(WRONG, f"{path}: is in the capture that is read: choose another place")
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_file():
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        elif not path.exists():
            path.touch(exist_ok=False)
            path.unlink()
    except OSError as error:
        tell_unwritable(path, error)


def tell_unwritable(path: Path, error: OSError) -> NoReturn:
    """Ends a command that could not write its output."""
    fail(WRONG, f"{path}: cannot be written: {error.strerror or error}")
