"""Moving a service from one stage to the next: a transaction whose steps are durable before the next one begins.

    prepare -> gate -> hold -> drain -> fence -> transfer -> commit -> resume -> watch

Up to the fence everything is undone on failure and the service stands where it stood. From the fence on the old side
has ended or has yielded: on failure the new side is fenced first, then the old one is brought back; a crash is
completed at the next start (`cutover.outcome`). At no moment may both sides execute.
"""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

from bridges import cutover, gates, processes
from bridges.calls import Side
from bridges.candidates import CandidateRefused
from bridges.cutover import MEANINGS, IllegalMove, Stage, Step
from bridges.dispatch import HOLD_SECONDS
from bridges.endpoints import Endpoints
from bridges.gates import Gate, Verdict
from bridges.processes import Process, ProcessError
from bridges.situation import DoorError
from bridges.state import NotWritten, Order, Standing, State
from dbus_side.errors import BusError
from xenstore_rpc.errors import XenstoreError

LOG: Final = logging.getLogger("bridges.flip")

DRAIN_SECONDS: Final = 5.0
# Nobody is held meanwhile: as long as callers at our sockets are waited for.
LEAVE_SECONDS: Final = 40.0
KILL: Final = "kill"


class FlipRefused(Exception):
    """The move was not made; the service stands where it stood. The text says why and what to do."""

    def __init__(self, text: str, found: list[Gate] | None = None) -> None:
        super().__init__(text)
        self.gates = found or []

    @property
    def is_for_want_of_data(self) -> bool:
        """Whether nothing speaks against the move, but nothing for it either."""
        return gates.worst(self.gates) is Verdict.NO_DATA


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a move did. `held_seconds` is how long new calls waited at the doors, at most `held_limit_seconds`."""

    service: str
    origin: Stage
    target: Stage
    epoch: int
    held_seconds: float
    held_limit_seconds: float = HOLD_SECONDS


OUTCOMES: Final = (DoorError, ProcessError, BusError, XenstoreError, NotWritten, OSError)


class Flip:
    """One flip of one service. `accept_in_doubt` lets a take-over kill a legacy daemon that never gets quiet.

    A kill goes on where another flip gives up: what cannot be drained is in doubt, a bus daemon that does not yield is
    ended, and the bus need not be there.
    """

    def __init__(self, endpoints: Endpoints, state: State, order: Order, *, accept_in_doubt: bool = False) -> None:
        self._endpoints = endpoints
        self._state = state
        self._order = order
        self._accept_in_doubt = accept_in_doubt
        self._origin = endpoints.situation.standing
        self._number = 0
        self._held_since: float | None = None
        self._held_seconds = 0.0

    @property
    def _is_kill(self) -> bool:
        return self._order.verb == KILL

    async def run(self, target: Stage) -> Receipt:
        """Moves to the neighbouring stage `target`. Raises FlipRefused; the caller holds the service's lock."""
        endpoints, origin = self._endpoints, self._origin
        committed = Standing(target, origin.epoch + 1)
        try:
            self._number = self._state.begin(endpoints.name, origin, target, self._order)
        except NotWritten as error:
            raise FlipRefused(f"{endpoints.name} stays {origin.stage}: {error}") from None
        endpoints.situation.calm("STATE")  # it can be written again, which the gates shall see
        try:
            await self._prepare(target)
            await self._way(committed)
        except FlipRefused as refusal:
            self._refuse(target, str(refusal))
            raise
        except OUTCOMES as error:
            if endpoints.situation.standing != committed:
                self._refuse(target, str(error))
                raise FlipRefused(f"{endpoints.name} stays {origin.stage}: {error}") from None
            endpoints.situation.alarm("DOORS", f"the move to {target} is done, but: {error}")
        finally:
            self._resume()
        with suppress(NotWritten):  # these two steps are for the reader: the flip is done
            self._reached(Step.RESUMED)
        endpoints.witness.begin_watch(self._number)
        held = f"held {self._held_seconds:.3f} s of at most {HOLD_SECONDS:.0f}"
        LOG.info("%s: %s to %s, epoch %d, %s", endpoints.name, origin.stage, target, committed.epoch, held)
        return Receipt(endpoints.name, origin.stage, target, committed.epoch, self._held_seconds)

    def _refuse(self, target: Stage, why: str) -> None:
        name, origin = self._endpoints.name, self._origin
        LOG.warning("%s: %s to %s refused: %s", name, origin.stage, target, why)
        try:
            self._state.refuse(self._number, name, origin, target, self._order, f"refused: {why}")
        except NotWritten as error:
            self._endpoints.situation.alarm("STATE", str(error))

    async def _prepare(self, target: Stage) -> None:
        """Everything that can be known before a caller is held. Raises FlipRefused, DoorError."""
        endpoints = self._endpoints
        self._state.check_space()
        found: list[Gate] = []
        if cutover.LADDER.index(target) > cutover.LADDER.index(self._origin.stage):
            if MEANINGS[target].authority is Side.BUS and not endpoints.legacy.is_movable:
                text = "is not set: the legacy daemon could not be stopped or brought back"
                raise ProcessError(f"services.{endpoints.name}.legacy {text}")
            found = await endpoints.gates(target)
        self._reached(Step.PREPARED)
        verdict = gates.worst(found)
        if verdict is not Verdict.PASS and self._order.override is None:
            names = ", ".join(f"{gate.gate} ({gate.verdict})" for gate in found if gate.verdict is not Verdict.PASS)
            text = f"{endpoints.name} stays {self._origin.stage}: not through the gates: {names}; or --override REASON"
            raise FlipRefused(text, found)
        self._reached(Step.GATED)

    async def _way(self, committed: Standing) -> None:
        """The way that the two stages ask for."""
        before, after = MEANINGS[self._origin.stage], MEANINGS[committed.stage]
        if before.authority is not after.authority:
            await (self._to_bus(committed) if after.authority is Side.BUS else self._to_legacy(committed))
        elif after.sockets.is_ours and not before.sockets.is_ours:
            await self._open_doors(committed)
        elif before.sockets.is_ours and not after.sockets.is_ours:
            await self._close_doors(committed)
        else:
            self._commit(committed)

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
        if not await dispatch.drain(DRAIN_SECONDS) and not self._is_kill:
            raise DoorError(
                f"{dispatch.in_flight} calls are still in flight after {DRAIN_SECONDS:.0f} s; try again later"
            )

    def _commit(self, standing: Standing) -> None:
        held = None if self._held_since is None else round(time.monotonic() - self._held_since, 4)
        self._state.commit(self._number, self._endpoints.name, self._origin, standing, self._order, held)
        self._endpoints.enter(standing)

    async def _open_doors(self, committed: Standing) -> None:
        endpoints = self._endpoints
        async with AsyncExitStack() as undo:
            endpoints.bus.connect(endpoints.tasks)
            undo.push_async_callback(endpoints.bus.disconnect)
            await endpoints.bus.own_name()
            await endpoints.take_sockets()
            undo.push_async_callback(endpoints.give_sockets_back)
            await endpoints.settle_home(Side.LEGACY)
            self._commit(committed)
            undo.pop_all()

    async def _close_doors(self, committed: Standing) -> None:
        endpoints = self._endpoints
        self._hold()
        self._reached(Step.HELD)
        await self._drain()
        self._reached(Step.DRAINED)
        self._commit(committed)
        # The legacy daemon is the authority before and after: what is left is to get out of the way.
        self._resume()
        await endpoints.give_sockets_back()
        await endpoints.bus.leave_name()
        await endpoints.dispatch.drain(LEAVE_SECONDS)  # who had reached us before is answered
        await endpoints.bus.disconnect()

    async def _to_bus(self, committed: Standing) -> None:
        endpoints = self._endpoints
        process = await endpoints.legacy.process()
        try:
            self._hold()
            self._reached(Step.HELD)
            for door in endpoints.sockets:  # a daemon that was just restarted has them: when it ends, nobody would
                await door.take_again()
            await self._drain()
            await endpoints.drain_legacy(DRAIN_SECONDS)
            self._reached(Step.DRAINED)
            await self._fence_legacy(process)
        finally:
            process.close()
        try:
            self._reached(Step.FENCED)
            kept = await endpoints.reservations()
            await endpoints.bus.assume(committed.epoch)
            await self._check_kept(kept)
            await endpoints.bus.hand_name_over()
            self._reached(Step.TRANSFERRED)
            self._commit(committed)
        except OUTCOMES as error:
            await self._bring_legacy_back(None if isinstance(error, CandidateRefused) else committed.epoch)
            raise
        self._resume()
        if endpoints.tree is not None:
            endpoints.tree.serve(endpoints.tasks)
        if endpoints.datagrams is not None:
            await endpoints.datagrams.look()

    async def _check_kept(self, kept: dict[str, bytes]) -> None:
        """Nobody may have touched what is kept in the store while the authority changed."""
        found = await self._endpoints.reservations()
        if found != kept:
            changed = sorted(name for name in kept.keys() | found.keys() if kept.get(name) != found.get(name))
            raise DoorError(f"the candidate changed reservations when it took Assume: {', '.join(changed[:3])}")
        LOG.info("%s: %d reservations adopted", self._endpoints.name, len(kept))

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
            if process.has_ended:  # a stop command that failed after all
                await self._start_legacy_again()
            raise

    async def _start_legacy_again(self) -> None:
        """Before the fence is durable the legacy daemon is the authority, so it must run."""
        try:
            await self._endpoints.start_legacy()
        except OUTCOMES as error:
            self._endpoints.situation.alarm("NO_AUTHORITY", f"the legacy daemon did not start again: {error}")

    async def _bring_legacy_back(self, epoch: int | None) -> None:
        """After the fence the candidate failed us: the legacy daemon is started again.

        With `epoch` the candidate may have taken Assume, and is fenced before; None: it said no.
        """
        endpoints = self._endpoints
        try:
            await endpoints.bus.own_name(replace=True)
            if epoch is not None:
                await endpoints.bus.yield_(epoch)
            self._state.retreat(self._number)
            await endpoints.start_legacy()
            await self._leave_tree()
        except OUTCOMES as error:
            endpoints.situation.alarm(
                "NO_AUTHORITY", f"neither side executes: {error}; end the bus daemon, start the legacy one"
            )

    async def _to_legacy(self, committed: Standing) -> None:
        endpoints, epoch = self._endpoints, self._origin.epoch
        if endpoints.tree is not None and not await endpoints.tree.drain(DRAIN_SECONDS) and not self._is_kill:
            await self._serve_tree_again()
            raise DoorError(f"requests of the tree are still in flight after {DRAIN_SECONDS:.0f} s; try again later")
        self._hold()
        try:
            self._reached(Step.HELD)
            await self._drain()
            self._reached(Step.DRAINED)
            await self._fence_bus(epoch)
            self._reached(Step.FENCED)
        except OUTCOMES:
            await self._let_daemon_go_on(epoch)
            raise
        if endpoints.datagrams is not None:
            await endpoints.datagrams.leave()
        try:
            await endpoints.start_legacy()
            self._reached(Step.TRANSFERRED)
            await self._leave_tree()
            self._commit(committed)
        except OUTCOMES as error:
            if self._is_kill and not isinstance(error, NotWritten):
                await self._end_up_with_legacy(committed, error)
                return
            try:
                await self._end_legacy_again()
            except OUTCOMES as stuck:
                endpoints.situation.alarm("SPLIT_OWNER", f"the legacy daemon was started and cannot be ended: {stuck}")
                raise
            self._state.retreat(self._number)
            await self._let_daemon_go_on(epoch)
            raise

    async def _fence_bus(self, epoch: int) -> None:
        """The bus daemon provably executes no more: it yielded or its process has ended. Raises DoorError, BusError."""
        endpoints = self._endpoints
        try:
            if self._is_kill and not endpoints.bus.is_there:
                raise DoorError("the bus cannot be reached")
            await endpoints.bus.own_name(replace=True)
            has_yielded = await endpoints.bus.yield_(epoch)
        except (DoorError, BusError, OSError) as error:
            if not self._is_kill:
                raise
            LOG.warning("%s: %s: ending the bus daemon's process", endpoints.name, error)
            has_yielded = False
        if not has_yielded:
            await self._prove_end()
        if self._is_kill and endpoints.tree is not None:
            await endpoints.tree.abandon(DRAIN_SECONDS)

    async def _prove_end(self) -> None:
        """The process that took Assume has ended, or is ended by a kill. Raises DoorError, ProcessError."""
        known = self._state.candidate(self._endpoints.name)
        if known is None:
            if self._accept_in_doubt:
                return
            raise DoorError("nobody knows the bus daemon's process: end it by hand, then again with --accept-in-doubt")
        process = processes.find(known)
        if process is None:
            return
        try:
            if not self._is_kill:
                raise DoorError(f"the bus daemon has left the bus, but its process {process.pid} runs: end it, or kill")
            await process.end()
        finally:
            process.close()

    async def _end_up_with_legacy(self, committed: Standing, error: Exception) -> None:
        """A kill whose legacy daemon does not come up: legacy is the authority all the same, as in relay without it."""
        endpoints = self._endpoints
        await self._leave_tree()
        self._commit(committed)
        endpoints.situation.alarm("NO_AUTHORITY", f"the legacy daemon did not start: {error}; start it by hand")

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
                await process.end()
            finally:
                process.close()
        await endpoints.legacy.forbid()


async def move(
    endpoints: Endpoints, state: State, target: Stage, order: Order, *, accept_in_doubt: bool = False
) -> list[Receipt]:
    """Moves a service to a stage, by one flip forward or any number back. Raises IllegalMove or FlipRefused.

    One move at a time; a kill waits for one that is on its way and then does its own.
    """
    situation = endpoints.situation
    if situation.moving is not None and order.verb != KILL:
        note(endpoints, state, target, order, f"refused: {situation.moving}")
        raise FlipRefused(f"{endpoints.name} is being moved already: {situation.moving}; wait for it, then again")
    async with situation.lock:
        here = situation.standing.stage
        if order.verb == KILL and cutover.kill_target(here) is None:  # the move that was on its way has done it
            note(endpoints, state, here, order, "nothing to do")
            return []
        situation.moving = f"{here} to {target} by {order.who}"
        try:
            if situation.frozen is not None and order.verb != KILL:
                text = (
                    f"{endpoints.name} is frozen: {situation.frozen}; xcp-bridge acknowledge {endpoints.name}, or kill"
                )
                note(endpoints, state, target, order, f"refused: {text}")
                raise FlipRefused(text)
            try:
                stages = cutover.moves(here, target, skips=order.skip is not None)
            except IllegalMove as error:
                note(endpoints, state, target, order, f"refused: {error}")
                raise
            return [await Flip(endpoints, state, order, accept_in_doubt=accept_in_doubt).run(each) for each in stages]
        finally:
            situation.moving = None


def note(endpoints: Endpoints, state: State, target: Stage, order: Order, what: str) -> None:
    """A line in the audit for what was no flip: a refusal, an acknowledgement."""
    try:
        state.note(endpoints.name, endpoints.situation.standing, target, order, what)
    except NotWritten as error:
        endpoints.situation.alarm("STATE", str(error))
