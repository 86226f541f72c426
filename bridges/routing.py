"""Which side a call goes to, and which rule says so. `dispatch` asks for the answer, `explain` for the reasons too.

The rules, in the order in which they are asked; the first that applies decides:

    hold        while a service is being moved, new calls wait at the gate; the rules are asked when it opens
    door        a door that is not ours: the call never comes to us
    retired     in complete the legacy doors are closed for good
    stage       the authority of the service's stage
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bridges.calls import Door, Side
from bridges.cutover import MEANINGS, Compared, Keeper, Stage
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Effect, Method


class Verdict(StrEnum):
    """What came of asking a rule."""

    DECIDES = "decides"
    PASSES = "does not apply"
    UNREACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Reason:
    """A rule, what came of asking it, and why."""

    rule: str
    verdict: Verdict
    text: str


_TREE_DOORS: Final = frozenset({Door.XENSTORE, Door.DATAGRAM})


def keeper_of(stage: Stage, door: Door) -> Keeper:
    """Who holds a door in a stage."""
    meaning = MEANINGS[stage]
    if door is Door.BUS:
        return meaning.bus
    return meaning.tree if door in _TREE_DOORS else meaning.sockets


def side_of(service: str, stage: Stage, door: Door) -> Side:
    """The side that answers a call which came in at one of our doors. Raises Fault RETIRED."""
    if keeper_of(stage, door) is Keeper.RETIRED:
        raise Fault(Kind.RETIRED, f"the {door} door of {service} is closed: call org.xen.xcp.{service} on the bus")
    return MEANINGS[stage].authority


def is_journalled(effect: Effect, deadline: float | None) -> bool:
    """Whether a call is recorded before it is dispatched: what changes something, or may. A long poll only waits."""
    return effect is Effect.WRITE and deadline is not None


def asks_candidate(stage: Stage, effect: Effect, deadline: float | None) -> bool:
    """Whether a candidate is asked too, after the caller has its answer. Never a write; no long poll either."""
    return MEANINGS[stage].compared is Compared.READS and effect is Effect.READ and deadline is not None


def explain(service: str, stage: Stage, door: Door, *, is_held: bool) -> tuple[list[Reason], str]:
    """Every rule with what it says of a call at that door, and what becomes of the call."""
    keeper = keeper_of(stage, door)
    reasons: list[Reason] = []
    is_moved = f"{service} is being moved"
    if not is_held:
        reasons.append(Reason("hold", Verdict.PASSES, f"{service} is not being moved"))
    elif keeper.is_ours:
        reasons.append(Reason("hold", Verdict.PASSES, f"{is_moved}: the call waits, then is asked again"))
    else:
        reasons.append(Reason("hold", Verdict.PASSES, f"{is_moved}, which holds calls at our doors only"))
    if not keeper.is_ours:
        text = f"in {stage} the {door} door is not ours: {_holder(keeper)}"
        reasons.append(Reason("door", Verdict.DECIDES, text))
        reasons += [Reason(name, Verdict.UNREACHED, "the call never comes to us") for name in ("retired", "stage")]
        return reasons, text
    reasons.append(Reason("door", Verdict.PASSES, f"in {stage} the {door} door is ours"))
    try:
        side = side_of(service, stage, door)
    except Fault as fault:
        reasons.append(Reason("retired", Verdict.DECIDES, fault.text))
        reasons.append(Reason("stage", Verdict.UNREACHED, f"the authority in {stage} is {MEANINGS[stage].authority}"))
        return reasons, f"refused: {fault.sentence}"
    reasons.append(Reason("retired", Verdict.PASSES, f"legacy doors are closed in {Stage.COMPLETE} only"))
    reasons.append(Reason("stage", Verdict.DECIDES, f"the authority in {stage} is {side}"))
    return reasons, f"executed by the {side} side"


def beside(stage: Stage, method: Method) -> list[Reason]:
    """What else happens to a call of that method, which decides nothing about where it goes."""
    found = []
    if is_journalled(method.effect, method.deadline):
        found.append(Reason("journal", Verdict.PASSES, "it may change something: recorded before it is dispatched"))
    else:
        found.append(Reason("journal", Verdict.PASSES, "it changes nothing or only waits: not recorded"))
    if asks_candidate(stage, method.effect, method.deadline):
        found.append(Reason("candidate", Verdict.PASSES, "the candidate is asked too, once the caller has his answer"))
    else:
        why = f"nobody is asked besides in {stage}"
        if method.effect is Effect.WRITE:
            why = "writes never reach a candidate"
        elif method.deadline is None:
            why = "a long poll is asked once"
        found.append(Reason("candidate", Verdict.PASSES, why))
    return found


def _holder(keeper: Keeper) -> str:
    match keeper:
        case Keeper.LEGACY:
            return "the legacy daemon answers it itself"
        case Keeper.DAEMON:
            return "the bus daemon answers it itself"
        case _:
            return "nobody is there"
