"""The cutover flag of a service: what each stage means, which moves are legal, what a cut-off move becomes.

One table. The code, the tests and the documentation read it; a stage that is not in it cannot be entered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

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
    """Who holds a door. RETIRED is ours too: whoever still comes there is told that the door is closed for good."""

    LEGACY = "legacy"
    BRIDGE = "bridge"
    DAEMON = "bus daemon"
    RETIRED = "retired"
    CLOSED = "closed"

    @property
    def is_ours(self) -> bool:
        return self in (Keeper.BRIDGE, Keeper.RETIRED)


class Compared(StrEnum):
    """What is compared while a service is in a stage; each holds what those before it hold, but for NOTHING."""

    NOTHING = "nothing"
    RECORDINGS = "recordings"
    ROUND_TRIPS = "round trips"
    READS = "reads"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What holds while a service is in a stage. The xenstore tree has no middle, so it moves with the authority."""

    authority: Side
    sockets: Keeper
    tree: Keeper
    bus: Keeper
    compared: Compared


MEANINGS: Final = {
    Stage.OFF: Meaning(
        Side.LEGACY, sockets=Keeper.LEGACY, tree=Keeper.LEGACY, bus=Keeper.CLOSED, compared=Compared.NOTHING
    ),
    Stage.OBSERVE: Meaning(
        Side.LEGACY, sockets=Keeper.LEGACY, tree=Keeper.LEGACY, bus=Keeper.CLOSED, compared=Compared.RECORDINGS
    ),
    Stage.RELAY: Meaning(
        Side.LEGACY, sockets=Keeper.BRIDGE, tree=Keeper.LEGACY, bus=Keeper.BRIDGE, compared=Compared.ROUND_TRIPS
    ),
    Stage.SHADOW: Meaning(
        Side.LEGACY, sockets=Keeper.BRIDGE, tree=Keeper.LEGACY, bus=Keeper.BRIDGE, compared=Compared.READS
    ),
    Stage.LIVE: Meaning(
        Side.BUS, sockets=Keeper.BRIDGE, tree=Keeper.BRIDGE, bus=Keeper.DAEMON, compared=Compared.NOTHING
    ),
    Stage.COMPLETE: Meaning(
        Side.BUS, sockets=Keeper.RETIRED, tree=Keeper.RETIRED, bus=Keeper.DAEMON, compared=Compared.NOTHING
    ),
}
LADDER: Final = tuple(MEANINGS)
# These only compare; a service may pass them by, if somebody says why.
SKIPPABLE: Final = frozenset({Stage.OBSERVE, Stage.SHADOW})


class Step(StrEnum):
    """The steps of a flip, in order. From FENCED on there is no way back but forward: a restart completes the flip."""

    PREPARED = "prepared"
    GATED = "gated"
    HELD = "held"
    DRAINED = "drained"
    FENCED = "fenced"
    TRANSFERRED = "transferred"
    COMMITTED = "committed"
    RESUMED = "resumed"
    WATCHED = "watched"


STEPS: Final = tuple(Step)


class Requirement(NamedTuple):
    """Another service that must stand at a stage, or further, before this one is moved."""

    service: str
    stage: Stage

    def __str__(self) -> str:
        return f"{self.service}.{self.stage}"


class IllegalMove(Exception):
    """A move that the ladder does not have. The text names the next legal verb."""


def moves(current: Stage, wanted: Stage, *, skips: bool = False) -> tuple[Stage, ...]:
    """The stages to flip to one after the other, `wanted` last. Raises IllegalMove.

    One step forward at a time, in which `skips` passes by what may be skipped; any number of steps back. On the way
    back from the bus a service stands in relay first: the doors stay ours until the legacy daemon answers behind them.
    """
    here, there = LADDER.index(current), LADDER.index(wanted)
    if there == here:
        raise IllegalMove(f"already {current}; next is {' or '.join(legal_stages(current))}")
    if there > here:
        between = LADDER[here + 1 : there]
        if not all(stage in SKIPPABLE for stage in between):
            following = ", ".join(_forward(current))
            raise IllegalMove(f"{current} to {wanted} is more than one step forward; next is {following}")
        if between and not skips:
            raise IllegalMove(f"{current} to {wanted} skips {between[0]}: move to {between[0]}, or --skip REASON")
        return (wanted,)
    crosses = MEANINGS[current].authority is Side.BUS and MEANINGS[wanted].authority is Side.LEGACY
    if crosses and there < LADDER.index(Stage.RELAY):
        return (Stage.RELAY, wanted)
    return (wanted,)


def legal_stages(current: Stage) -> tuple[str, ...]:
    """The stages that a service can be moved to from here, as an operator reads them."""
    here = LADDER.index(current)
    return (*_forward(current), *reversed(LADDER[:here]))


def _forward(current: Stage) -> tuple[str, ...]:
    here = LADDER.index(current)
    found: list[str] = []
    for stage in LADDER[here + 1 :]:
        found.append(f"{stage} (with --skip REASON)" if found else str(stage))
        if stage not in SKIPPABLE:
            break
    return tuple(found)


def kill_target(current: Stage) -> Stage | None:
    """Where a kill brings a service: legacy is the authority there and no candidate is asked. None: it is so already.

    Relay and not off, since callers are connected to our doors and the legacy daemon stands behind them.
    """
    return Stage.RELAY if LADDER.index(current) > LADDER.index(Stage.RELAY) else None


def outcome(origin: Stage, target: Stage, reached: Step) -> Stage:
    """The stage in which a flip that was cut off at `reached` must be found after a restart."""
    return target if STEPS.index(reached) >= STEPS.index(Step.FENCED) else origin


def unmet(target: Stage, requires: Iterable[Requirement], stages: Mapping[str, Stage]) -> tuple[Requirement, ...]:
    """What a service that is moved to `target` still waits for. In off and observe nothing is required: it stands by
    itself there."""
    if LADDER.index(target) < LADDER.index(Stage.RELAY):
        return ()
    return tuple(each for each in requires if LADDER.index(stages[each.service]) < LADDER.index(each.stage))


def plan(origin: Stage, target: Stage, *, sockets: bool, tree: bool, datagrams: bool = False) -> tuple[str, ...]:
    """What a flip will do, in order, in words for an operator.

    `sockets`, `tree` and `datagrams` say which legacy doors the service has.
    """
    steps = ["prepare: is everything there that it needs", "gate: what was seen so far speaks for it, or --override"]
    before, after = MEANINGS[origin], MEANINGS[target]
    if before.authority is not after.authority or (before.sockets.is_ours and not after.sockets.is_ours):
        steps += ["hold: new calls wait at our doors", "drain: calls in flight finish where they began"]
    if before.authority is Side.LEGACY and after.authority is Side.BUS:
        if tree:
            steps.append("fence: our pid into the tree; freeze the legacy daemon until nothing is unanswered; kill it")
        else:
            steps.append("fence: stop the legacy daemon and see its process end")
        steps.append("transfer: what is kept in the store is counted; Assume; the bus name goes to the candidate")
    if before.authority is Side.BUS and after.authority is Side.LEGACY:
        steps.append("fence: take the bus name back; Yield from the bus daemon")
        if datagrams:
            steps.append("give the datagram address up")
        takes = "; it takes the tree by its pid" if tree else ""
        steps.append(f"transfer: what is kept in the store is counted; start the legacy daemon{takes}")
    if before.bus is Keeper.CLOSED and after.bus is Keeper.BRIDGE:
        steps.append("open the bus door: own the service name")
    if sockets and before.sockets.is_ours is not after.sockets.is_ours:
        steps.append("take the sockets" if after.sockets.is_ours else "give the sockets back")
    if before.bus is Keeper.BRIDGE and after.bus is Keeper.CLOSED:
        steps.append("close the bus door: release the service name")
    if after.sockets is Keeper.RETIRED:
        steps.append("retire the legacy doors: whoever comes there is told that they are closed")
    steps += ["commit: next epoch, durable", "resume: held calls go on", "watch: its calls are counted for a while"]
    if datagrams and before.authority is Side.LEGACY and after.authority is Side.BUS:
        steps.append("bind the datagram address, which the legacy daemon has left")
    return tuple(steps)
