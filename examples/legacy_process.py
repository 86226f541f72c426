"""What every legacy daemon here has beside its doors: options, a life in the background, a pid file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that the legacy daemons share."""
    parser.add_argument("--pidfile", type=Path, help="written when the daemon serves")
    parser.add_argument("--executions", type=Path, help="one line is appended for every call that is executed")
    parser.add_argument("--slow-ms", type=int, default=0, help="milliseconds that every call takes longer")
    parser.add_argument("--background", action="store_true", help="return when the daemon serves; it lives on")
    parser.add_argument("--log", default=os.devnull, help="where a daemon in the background writes its last words")


def enter(options: argparse.Namespace) -> Callable[[str], None]:
    """Goes to the background when asked to, and gives what is called, once, with a line that says what is served.

    The process that was started waits for that line, prints it and ends with 0; when the daemon ends without having
    said it, with 1. Call it before the first thread is started: only the calling thread lives on.
    """
    if not options.background:
        return lambda line: _serving(options.pidfile, line, sys.stdout.fileno())
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os.wait()
        with os.fdopen(reader) as daemon:
            line = daemon.read().strip()
        print(line or f"the daemon did not start; see {options.log}", flush=True)
        sys.exit(0 if line else 1)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(reader)
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)

    def serving(line: str) -> None:
        _serving(options.pidfile, line, writer)
        os.close(writer)

    return serving


def _serving(pidfile: Path | None, line: str, where: int) -> None:
    if pidfile is not None:
        new = pidfile.with_name(f"{pidfile.name}.new")
        new.write_text(f"{os.getpid()}\n")
        new.rename(pidfile)
    os.write(where, f"{line}\n".encode())
