"""The cutover flag of a service: what each stage means, and which moves are legal.

One table. The code, the tests and the documentation read it; a stage that is not in it cannot be entered.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bridges.calls import Side


class Stage(StrEnum):
    """Stages in the order of a migration."""

    OFF = "off"
    OBSERVE = "observe"
    RELAY = "relay"
    SHADOW = "shadow"
    LIVE = "live"
    COMPLETE = "complete"


class Keeper(StrEnum):
    """Who holds a door."""

    LEGACY = "legacy"
    BRIDGE = "bridge"
    DAEMON = "bus daemon"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What holds while a service is in a stage. The xenstore tree has no middle, so it moves with the authority."""

    authority: Side
    sockets: Keeper
    tree: Keeper
    bus: Keeper


MEANINGS: Final = {
    Stage.OFF: Meaning(Side.LEGACY, sockets=Keeper.LEGACY, tree=Keeper.LEGACY, bus=Keeper.CLOSED),
    Stage.RELAY: Meaning(Side.LEGACY, sockets=Keeper.BRIDGE, tree=Keeper.LEGACY, bus=Keeper.BRIDGE),
    Stage.LIVE: Meaning(Side.BUS, sockets=Keeper.BRIDGE, tree=Keeper.BRIDGE, bus=Keeper.DAEMON),
}
LADDER: Final = tuple(MEANINGS)


class Step(StrEnum):
    """The steps of a flip, in order. From FENCED on there is no way back but forward: a restart completes the flip."""

    PREPARED = "prepared"
    HELD = "held"
    DRAINED = "drained"
    FENCED = "fenced"
    HANDED_OVER = "handed over"
    COMMITTED = "committed"


STEPS: Final = tuple(Step)


class IllegalMove(Exception):
    """A move that the ladder does not have. The text names the next legal verb."""


def moves(current: Stage, wanted: Stage) -> tuple[Stage, ...]:
    """The stages to pass through, `wanted` last. Raises IllegalMove.

    One step forward at a time; any number of steps back, each a flip of its own.
    """
    for stage in (current, wanted):
        if stage not in MEANINGS:
            raise IllegalMove(f"stage {stage} is not available in this version; available: {', '.join(LADDER)}")
    here, there = LADDER.index(current), LADDER.index(wanted)
    if there == here:
        raise IllegalMove(f"already {current}")
    if there > here + 1:
        raise IllegalMove(
            f"{current} to {wanted} skips {LADDER[here + 1]}: one step forward at a time, next is {LADDER[here + 1]}"
        )
    if there > here:
        return (wanted,)
    return tuple(reversed(LADDER[there:here]))


def outcome(origin: Stage, target: Stage, reached: Step) -> Stage:
    """The stage in which a flip that was cut off at `reached` must be found after a restart."""
    return target if STEPS.index(reached) >= STEPS.index(Step.FENCED) else origin


def plan(origin: Stage, target: Stage, *, sockets: bool, tree: bool, datagrams: bool = False) -> tuple[str, ...]:
    """What a flip will do, in order, in words for an operator.

    `sockets`, `tree` and `datagrams` say which legacy doors the service has.
    """
    steps: list[str] = []
    before, after = MEANINGS[origin], MEANINGS[target]
    if before.authority is not after.authority or after.bus is Keeper.CLOSED:
        steps += ["hold: new calls wait at our doors", "drain: calls in flight finish where they began"]
    if before.authority is Side.LEGACY and after.authority is Side.BUS:
        if tree:
            steps.append("fence: our pid into the tree; freeze the legacy daemon until nothing is unanswered; kill it")
        else:
            steps.append("fence: stop the legacy daemon and see its process end")
        steps.append("hand over: Assume to the candidate; release the bus name to it")
    if before.authority is Side.BUS and after.authority is Side.LEGACY:
        steps.append("fence: take the bus name back; Yield from the bus daemon")
        if datagrams:
            steps.append("give the datagram address up")
        steps.append("hand over: start the legacy daemon" + ("; it takes the tree by its pid" if tree else ""))
    if before.bus is Keeper.CLOSED and after.bus is Keeper.BRIDGE:
        steps.append("open the bus door: own the service name")
    if sockets and before.sockets is not after.sockets:
        steps.append("take the sockets" if after.sockets is Keeper.BRIDGE else "give the sockets back")
    if before.bus is Keeper.BRIDGE and after.bus is Keeper.CLOSED:
        steps.append("close the bus door: release the service name")
    steps += ["commit: next epoch, durable", "resume: held calls go on"]
    if datagrams and before.authority is Side.LEGACY and after.authority is Side.BUS:
        steps.append("bind the datagram address, which the legacy daemon has left")
    return tuple(steps)
