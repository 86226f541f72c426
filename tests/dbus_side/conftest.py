"""Connections that are closed at the end of a test, and clients that share no code with us."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from dbus_side.bus import Bus

Connect = Callable[..., Awaitable[Bus]]
Run = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
async def connect(bus_address: str) -> AsyncIterator[Connect]:
    """A function that opens one more connection to the private bus."""
    opened: list[Bus] = []

    async def open_one(**options: int) -> Bus:
        bus = await Bus.connect(bus_address, **options)
        opened.append(bus)
        return bus

    yield open_one
    for bus in opened:
        await bus.close()


@pytest.fixture
def foreign() -> Run:
    """A function that runs a foreign D-Bus client and gives its exit code and its output."""

    async def run(*command: str) -> tuple[int, str]:
        if shutil.which(command[0]) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{command[0]} is missing: install its package (systemd, libglib2.0-bin)")
            pytest.skip(f"needs {command[0]} (package systemd or libglib2.0-bin)")
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    return run
