"""The command that is the bridge."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from typing import Annotated, Any

import typer

from bridges import daemon
from bridges.state import StateError
from bridges.terminal import NO, SettingsOption, command_group, fail, settings_of

commands = command_group()


@commands.command()
def run(
    settings: SettingsOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every refused call too.")] = False,
) -> None:
    """Run the bridge in the foreground; SIGTERM drains and ends it."""
    loaded = settings_of(settings)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("bridges").setLevel(logging.INFO)
    try:
        _run(daemon.run(loaded))
    except (daemon.StartError, StateError) as error:
        fail(NO, str(error))


def _run(work: Any) -> None:
    # The thread that writes the journal gets its turn within half a millisecond, also beside a long answer.
    sys.setswitchinterval(0.0005)
    # A large answer makes a hundred thousand objects and no cycles: the collector's usual threshold cost a third of it.
    gc.set_threshold(50_000, 20, 50)
    try:
        import uvloop  # noqa: PLC0415 -- an extra: the daemon is faster with it and complete without
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
