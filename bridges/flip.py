"""Moving a service from one stage to the next: a transaction whose steps are durable before the next one begins.

    prepare -> hold -> drain -> fence -> hand over -> commit -> resume

Up to the fence everything is undone on failure and the service stands where it stood. From the fence on the old side
has ended or has yielded: on failure the new side is fenced first, then the old one is brought back; a crash is
completed at the next start (`cutover.outcome`). At no moment may both sides execute.
"""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from bridges import cutover
from bridges.bus_presence import CandidateRefused
from bridges.cutover import IllegalMove, Stage, Step
from bridges.endpoints import Endpoints
from bridges.legacy_daemon import LegacyError, Process
from bridges.situation import DoorError
from bridges.state import Order, Standing, State
from dbus_side.errors import BusError
from xenstore_rpc.errors import XenstoreError

LOG: Final = logging.getLogger("bridges.flip")

DRAIN_SECONDS: Final = 5.0


class FlipRefused(Exception):
    """The move was not made; the service stands where it stood. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a move did. `held_seconds` is how long new calls waited at the doors."""

    service: str
    origin: Stage
    target: Stage
    epoch: int
    held_seconds: float


OUTCOMES: Final = (DoorError, LegacyError, BusError, XenstoreError, OSError)


class Flip:
    """One flip of one service. `accept_in_doubt` lets a take-over kill a legacy daemon that never gets quiet."""

    def __init__(self, endpoints: Endpoints, state: State, order: Order, *, accept_in_doubt: bool = False) -> None:
        self._endpoints = endpoints
        self._state = state
        self._order = order
        self._accept_in_doubt = accept_in_doubt
        self._number = 0
        self._held_since: float | None = None
        self._held_seconds = 0.0

    async def run(self, target: Stage) -> Receipt:
        """Moves to the neighbouring stage `target`. Raises FlipRefused; the caller holds the service's lock."""
        endpoints = self._endpoints
        origin = endpoints.situation.standing
        committed = Standing(target, origin.epoch + 1)
        self._number = self._state.begin(endpoints.name, origin, target, self._order)
        moves = {
            (Stage.OFF, Stage.RELAY): self._off_to_relay,
            (Stage.RELAY, Stage.LIVE): self._relay_to_live,
            (Stage.LIVE, Stage.RELAY): self._live_to_relay,
            (Stage.RELAY, Stage.OFF): self._relay_to_off,
        }
        try:
            await moves[origin.stage, target](committed)
        except OUTCOMES as error:
            LOG.warning("%s: %s to %s refused: %s", endpoints.name, origin.stage, target, error)
            self._state.refuse(self._number, f"refused: {error}")
            raise FlipRefused(f"{endpoints.name} stays {origin.stage}: {error}") from None
        finally:
            self._resume()
        LOG.info(
            "%s: %s to %s, epoch %d, held %.3f s",
            endpoints.name,
            origin.stage,
            target,
            committed.epoch,
            self._held_seconds,
        )
        return Receipt(endpoints.name, origin.stage, target, committed.epoch, self._held_seconds)

    def _reached(self, step: Step) -> None:
        self._state.reached(self._number, step)

    def _hold(self) -> None:
        self._held_since = time.monotonic()
        self._endpoints.dispatch.hold()

    def _resume(self) -> None:
        self._endpoints.dispatch.resume()
        if self._held_since is not None:
            self._held_seconds, self._held_since = time.monotonic() - self._held_since, None

    async def _drain(self) -> None:
        dispatch = self._endpoints.dispatch
        if not await dispatch.drain(DRAIN_SECONDS):
            raise DoorError(
                f"{dispatch.in_flight} calls are still in flight after {DRAIN_SECONDS:.0f} s; try again later"
            )

    def _commit(self, standing: Standing) -> None:
        self._state.commit(self._number, self._endpoints.name, standing)
        self._endpoints.enter(standing)

    async def _off_to_relay(self, committed: Standing) -> None:
        endpoints = self._endpoints
        async with AsyncExitStack() as undo:
            endpoints.bus.connect(endpoints.tasks)
            undo.push_async_callback(endpoints.bus.disconnect)
            await endpoints.bus.own_name()
            await endpoints.take_sockets()
            undo.push_async_callback(endpoints.give_sockets_back)
            self._commit(committed)
            undo.pop_all()

    async def _relay_to_off(self, committed: Standing) -> None:
        endpoints = self._endpoints
        self._hold()
        await self._drain()
        self._commit(committed)
        # The legacy daemon is the authority before and after: what is left is to get out of the way.
        self._resume()
        await endpoints.give_sockets_back()
        await endpoints.bus.disconnect()

    async def _relay_to_live(self, committed: Standing) -> None:
        endpoints = self._endpoints
        if not endpoints.legacy.is_movable:
            raise LegacyError(
                f"services.{endpoints.name}.legacy is not set: the legacy daemon could not be stopped or brought back"
            )
        await endpoints.bus.candidate()
        process = await endpoints.legacy.process()
        try:
            self._reached(Step.PREPARED)
            self._hold()
            self._reached(Step.HELD)
            await self._drain()
            await endpoints.drain_legacy(DRAIN_SECONDS)
            self._reached(Step.DRAINED)
            await self._fence_legacy(process)
            self._reached(Step.FENCED)
        finally:
            process.close()
        try:
            await endpoints.bus.assume(committed.epoch)
            await endpoints.bus.hand_name_over()
        except OUTCOMES as error:
            await self._bring_legacy_back(None if isinstance(error, CandidateRefused) else committed.epoch)
            raise
        self._reached(Step.HANDED_OVER)
        self._commit(committed)
        self._resume()
        if endpoints.tree is not None:
            endpoints.tree.serve(endpoints.tasks)
        if endpoints.datagrams is not None:
            await endpoints.datagrams.look()

    async def _fence_legacy(self, process: Process) -> None:
        endpoints = self._endpoints
        await endpoints.legacy.forbid()
        try:
            if endpoints.tree is not None:
                await endpoints.tree.take(process, accept_in_doubt=self._accept_in_doubt)
            else:
                await endpoints.legacy.stop(process)
        except OUTCOMES:
            await endpoints.legacy.allow()
            raise

    async def _bring_legacy_back(self, epoch: int | None) -> None:
        """After the fence the candidate failed us: the legacy daemon is started again.

        With `epoch` the candidate may have taken Assume, and is fenced before; None: it said no.
        """
        endpoints = self._endpoints
        try:
            await endpoints.bus.own_name(replace=True)
            if epoch is not None:
                await endpoints.bus.yield_(epoch)
            self._reached(Step.DRAINED)
            await endpoints.start_legacy()
            await self._leave_tree()
        except OUTCOMES as error:
            endpoints.situation.alarm(
                "NO_AUTHORITY", f"neither side executes: {error}; end the bus daemon, start the legacy one"
            )

    async def _live_to_relay(self, committed: Standing) -> None:
        endpoints = self._endpoints
        epoch = endpoints.situation.standing.epoch
        self._reached(Step.PREPARED)
        if endpoints.tree is not None and not await endpoints.tree.drain(DRAIN_SECONDS):
            await self._serve_tree_again()
            raise DoorError(f"requests of the tree are still in flight after {DRAIN_SECONDS:.0f} s; try again later")
        self._hold()
        self._reached(Step.HELD)
        try:
            await self._drain()
            self._reached(Step.DRAINED)
            await endpoints.bus.own_name(replace=True)
            await endpoints.bus.yield_(epoch)
        except OUTCOMES:
            await self._let_daemon_go_on(epoch)
            raise
        self._reached(Step.FENCED)
        if endpoints.datagrams is not None:
            await endpoints.datagrams.leave()
        try:
            await endpoints.start_legacy()
        except OUTCOMES:
            await self._end_legacy_again()
            self._reached(Step.DRAINED)
            await self._let_daemon_go_on(epoch)
            raise
        self._reached(Step.HANDED_OVER)
        await self._leave_tree()
        self._commit(committed)

    async def _let_daemon_go_on(self, epoch: int) -> None:
        endpoints = self._endpoints
        try:
            await endpoints.bus.assume(epoch)
            await endpoints.bus.hand_name_over()
        except OUTCOMES as error:
            endpoints.situation.alarm("NO_AUTHORITY", f"the bus daemon did not take up again: {error}")
        await self._serve_tree_again()

    async def _serve_tree_again(self) -> None:
        if self._endpoints.tree is not None:
            await self._endpoints.tree.serve_again(self._endpoints.tasks)

    async def _leave_tree(self) -> None:
        if self._endpoints.tree is not None:
            await self._endpoints.tree.leave()

    async def _end_legacy_again(self) -> None:
        """A legacy daemon that came up without its doors must be seen to end before the bus daemon goes on."""
        endpoints = self._endpoints
        if await endpoints.legacy.pid() is not None:
            process = await endpoints.legacy.process()
            try:
                await endpoints.legacy.kill(process)
            finally:
                process.close()
        await endpoints.legacy.forbid()


async def move(
    endpoints: Endpoints, state: State, target: Stage, order: Order, *, accept_in_doubt: bool = False
) -> list[Receipt]:
    """Moves a service to a stage, by one flip forward or any number back. Raises IllegalMove or FlipRefused."""
    async with endpoints.situation.lock:
        try:
            stages = cutover.moves(endpoints.situation.standing.stage, target)
        except IllegalMove as error:
            number = state.begin(endpoints.name, endpoints.situation.standing, target, order)
            state.refuse(number, f"refused: {error}")
            raise
        return [await Flip(endpoints, state, order, accept_in_doubt=accept_in_doubt).run(stage) for stage in stages]
