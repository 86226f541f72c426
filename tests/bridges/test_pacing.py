"""Work beside a loop that never rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridges.durable import Durable
from bridges.pacing import GivingWay

SCHEMA = "CREATE TABLE IF NOT EXISTS thing (id INTEGER PRIMARY KEY) STRICT;"
WRITES = 50
PATIENCE = 30  # seconds: without giving way a single write was seen to take 6 to 16


@asynccontextmanager
async def restless(seconds: float) -> AsyncIterator[None]:
    """A loop that works for so long, looks at its sockets, and works on: the calls of others, one after the other."""
    is_over = False

    async def work() -> None:
        while not is_over:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        is_over = True
        await task


@pytest.mark.parametrize("seconds", [0.00002, 0.0001, 0.0003])
async def test_writes_get_their_turn(tmp_path: Path, seconds: float) -> None:
    """One after the other, while the loop has more to do than it can: a write never waits for it to be idle."""
    durable = Durable(tmp_path / "file.sqlite", SCHEMA, 1)
    try:
        async with asyncio.timeout(PATIENCE), restless(seconds):
            for number in range(WRITES):
                await durable.write("INSERT INTO thing (id) VALUES (?)", (number,))
        assert durable.commits == WRITES
    finally:
        durable.close()


async def test_work_in_a_thread_gets_its_turn() -> None:
    """Steps in each of which the thread gives the interpreter away, as each look at a file does."""

    def steps() -> int:
        for _ in range(WRITES):
            time.sleep(0)
        return WRITES

    async with asyncio.timeout(PATIENCE), restless(0.0001):
        assert await GivingWay().in_thread(steps) == WRITES


async def test_what_fails_in_a_thread_is_the_callers() -> None:
    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        await GivingWay().in_thread(fail)
