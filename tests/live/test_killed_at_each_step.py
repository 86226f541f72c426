"""SIGKILL before and after every step of every move, with callers at work on all doors; then a bridge on what is left.

The moves of one worker share a host, which is brought to the next move's origin; after a failure it is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from bridges import cutover
from bridges.cutover import MEANINGS, STEPS, Stage, Step
from dbus_side.bus import Bus
from tests.fixtures_dbus import BusDaemon, _directory
from tests.fixtures_xenstored import _need
from tests.live.conftest import Callers
from tests.live.killing import (
    OneService,
    Work,
    check_calls,
    check_doors,
    check_other_side,
    one_service,
    until_killed,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


class Move(NamedTuple):
    """A move, and the points at which a bridge can be killed that makes it, in their order."""

    origin: Stage
    target: Stage
    points: tuple[str, ...]
    verb: str = "stage"


_BEGIN = ("begun", "prepared", "gated")
_HELD = (*_BEGIN, "held", "drained")
_END = ("committed", "resumed")
# `watched` comes after 200 calls at our doors: where there are none, it is never reached.
MOVES = (
    Move(Stage.OFF, Stage.RELAY, (*_BEGIN, *_END, "watched")),
    Move(Stage.RELAY, Stage.SHADOW, (*_BEGIN, *_END, "watched")),
    Move(Stage.RELAY, Stage.LIVE, (*_HELD, "frozen", "fenced", "transferred", *_END, "watched")),
    Move(Stage.LIVE, Stage.RELAY, (*_HELD, "fenced", "transferred", *_END, "watched")),
    Move(Stage.LIVE, Stage.COMPLETE, (*_BEGIN, *_END)),
    Move(Stage.COMPLETE, Stage.RELAY, (*_HELD, "fenced", "transferred", *_END, "watched"), verb="kill"),
    Move(Stage.RELAY, Stage.OFF, (*_HELD, *_END)),
)
# Before these steps are durable something was done in the world; before the others nothing that "after" does not show.
_WORK = ("frozen", "fenced", "transferred", "committed")
CASES = [
    pytest.param(move, when, point, id=f"{move.origin}-{move.target}-{when}-{point}")
    for move in MOVES
    for point in move.points
    for when in ("before", "after")
    if point in _WORK or (when == "after" and MEANINGS[move.origin].authority is not MEANINGS[move.target].authority)
]


def last_durable(move: Move, when: str, point: str) -> Step | None:
    """The step that a bridge which is killed there has made durable; None: not even the intent."""
    here = move.points.index(point) + (when == "after")
    reached = [each for each in move.points[:here] if each != "frozen"]
    if not reached:
        return None
    return Step.PREPARED if reached[-1] == "begun" else Step(reached[-1])


class Hosts:
    """A host that is used again, for as long as nothing went wrong on it."""

    def __init__(self, stub: Path) -> None:
        self._stub = stub
        self._stack = AsyncExitStack()
        self._found: tuple[OneService, Callers, Bus] | None = None

    @asynccontextmanager
    async def one(self) -> AsyncIterator[tuple[OneService, Callers, Bus]]:
        if self._found is None:
            directory = _directory()
            self._stack.callback(shutil.rmtree, directory)
            bus_daemon = BusDaemon(directory)
            self._stack.callback(bus_daemon.kill)
            self._found = await self._stack.enter_async_context(one_service(bus_daemon, self._stub))
        try:
            yield self._found
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._found = None
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(xenstored_stub: Path) -> AsyncIterator[Hosts]:
    """The host of this worker's moves."""
    _need("dbus-daemon", "dbus-daemon")
    hosts = Hosts(xenstored_stub)
    yield hosts
    await hosts.close()


async def killed(host: OneService, move: Move, when: str, point: str) -> float:
    """Orders the move and sees the bridge end; when that was, on the loop's clock."""
    host.break_at(when, point)
    # Nobody may be there to answer.
    with contextlib.suppress(json.JSONDecodeError, ConnectionError):
        if move.verb == "kill":
            await host.control(verb="kill", service="squeezed", reason="test")
        else:
            await host.ask_stage("squeezed", move.target)
    return await until_killed(host)


@pytest.mark.parametrize(("move", "when", "point"), CASES)
async def test_killed(hosts: Hosts, move: Move, when: str, point: str) -> None:
    """The old stage or the new one, by what was durable; nothing is lost, doubled, frozen or left in alarm."""
    async with hosts.one() as (host, callers, bus):
        await host.bring_to(move.origin)
        origin = await host.standing()
        work = Work(callers, bus)
        async with asyncio.TaskGroup() as tasks:
            for door in (*work.doors, *work.doors):
                tasks.create_task(work.go_on(door))
            await work.all_called_again()
            died = await killed(host, move, when, point)
            await host.start_bridge()
            await work.all_called_again()
            work.stop()
        step = last_durable(move, when, point)
        stage = move.origin if step is None else cutover.outcome(move.origin, move.target, step)
        await host.until_alarms()
        found = await host.standing()
        assert (found["stage"], found["epoch"]) == (stage, origin["epoch"] + (stage is not move.origin))
        assert found["frozen"] is None
        await check_doors(host, work, stage)
        await check_other_side(host, bus, stage)
        assert "Traceback" not in host.log("bridge"), host.log("bridge")
        check_calls(host, work.calls, died)
        assert (await host.standing())["alarms"] == {}
        if step is not None:
            audit = (await host.control(verb="audit", service="squeezed"))["entries"]
            last = [line for line in audit if line["verb"] == move.verb][-1]  # type: ignore[attr-defined]
            cut_off = STEPS.index(step) < STEPS.index(Step.COMMITTED)
            how = ("undone" if stage is move.origin else "completed") + " after a crash" if cut_off else "done"
            assert (last["target"], last["outcome"]) == (move.target, how)


@pytest.mark.parametrize(("when", "stage"), [("before", Stage.RELAY), ("after", Stage.OFF)])
async def test_killed_in_the_second_flip(hosts: Hosts, when: str, stage: Stage) -> None:
    """live to off is two flips: a bridge that is killed in the second one has done the first."""
    async with hosts.one() as (host, callers, bus):
        await host.bring_to(Stage.LIVE)
        origin = await host.standing()
        await killed(host, Move(Stage.LIVE, Stage.OFF, ()), when, "committed 2")
        await host.start_bridge()
        await host.until_alarms()
        found = await host.standing()
        assert (found["stage"], found["epoch"]) == (stage, origin["epoch"] + (2 if stage is Stage.OFF else 1))
        await check_doors(host, Work(callers, bus), stage)
