"""Does what was seen so far speak for the next stage? Every gate says pass, fail, or that there are no data.

A gate belongs to the stage that a service leaves forward: what that stage was for must have been seen. No data is not
good news: a promotion through a red or a dataless gate needs somebody who says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from bridges.cutover import LADDER, Stage

# With no difference in n comparisons the true rate is below 3/n, at 95 % ("rule of three").
_RULE_OF_THREE: Final = 3.0
HOUR: Final = 3600.0


class Verdict(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105 -- a verdict
    FAIL = "fail"
    NO_DATA = "no data"


class Gate(NamedTuple):
    """A gate's name, its verdict, what was seen, and what would turn it green (empty when it is)."""

    gate: str
    verdict: Verdict
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """How many comparisons were made and how many differed; `worst` names the place that differed most."""

    same: int = 0
    different: int = 0
    worst: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a service since it entered its stage.

    `unused` has the seconds since a call came to each legacy door, negative when the clock was set back meanwhile.
    `missing` are the methods that the candidate does not offer; None: nobody asked it.
    """

    seen: int = 0
    complete: int = 0
    round_trips: Compared = Compared()
    reads: Compared = Compared()
    in_doubt: int = 0
    alarms: tuple[str, ...] = ()
    unused: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] | None = None


def gates(origin: Stage, target: Stage, evidence: Evidence, *, quiet_hours: float) -> list[Gate]:
    """The gates between two stages; none on a way back. `quiet_hours` is how long a door must be unused to go."""
    if LADDER.index(target) <= LADDER.index(origin):
        return []
    found = [_alarms(evidence.alarms), _in_doubt(evidence.in_doubt)]
    if origin is Stage.OBSERVE:
        found.append(_observed(evidence))
    if origin in (Stage.RELAY, Stage.SHADOW):
        found.append(_compared("round trips", evidence.round_trips, "let callers call; xcp-bridge status shows it"))
    if origin is Stage.SHADOW:
        found.append(
            _compared("reads", evidence.reads, "call what reads, e.g. xcp-bridge call; the candidate must run")
        )
    if evidence.missing is not None:
        found.append(_candidate(evidence.missing))
    if origin is Stage.LIVE:
        found += [_unused(door, seconds, quiet_hours) for door, seconds in evidence.unused.items()]
    return found


def worst(found: Iterable[Gate]) -> Verdict:
    """FAIL before NO_DATA before PASS."""
    verdicts = {gate.verdict for gate in found}
    return next((v for v in (Verdict.FAIL, Verdict.NO_DATA) if v in verdicts), Verdict.PASS)


def bound(count: int) -> str:
    """How sure `count` comparisons without a difference make one."""
    if count <= _RULE_OF_THREE:
        return "too few to say more"
    return f"the true rate is below {100 * _RULE_OF_THREE / count:.2g}%"


def _alarms(alarms: tuple[str, ...]) -> Gate:
    if alarms:
        return Gate("alarms", Verdict.FAIL, ", ".join(alarms), "mend what the alarm names; xcp-bridge status shows it")
    return Gate("alarms", Verdict.PASS, "none")


def _in_doubt(count: int) -> Gate:
    if count:
        text = f"{count} calls may have been executed and nobody has looked"
        return Gate("in doubt", Verdict.FAIL, text, "look at them, then xcp-bridge acknowledge SERVICE --reason TEXT")
    return Gate("in doubt", Verdict.PASS, "none")


def _observed(evidence: Evidence) -> Gate:
    if not evidence.complete:
        text = f"{evidence.seen} exchanges were seen, none of them whole"
        return Gate("observed", Verdict.NO_DATA, text, "wait for callers; sockets show no payload before relay")
    return Gate("observed", Verdict.PASS, f"{evidence.complete} of {evidence.seen} exchanges were seen whole")


def _compared(name: str, compared: Compared, mend: str) -> Gate:
    made = compared.same + compared.different
    if compared.different:
        text = f"{compared.different} of {made} differ, most often {compared.worst}"
        return Gate(name, Verdict.FAIL, text, "xcp-bridge status --json shows the fields")
    if not made:
        return Gate(name, Verdict.NO_DATA, "nothing was compared yet", mend)
    return Gate(name, Verdict.PASS, f"0 of {made} differ; {bound(made)}")


def _candidate(missing: tuple[str, ...]) -> Gate:
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        text = f"the candidate does not offer {', '.join(missing[:3])}{more}"
        return Gate("candidate", Verdict.FAIL, text, "callers of these would get UnknownMethod; finish the daemon")
    return Gate("candidate", Verdict.PASS, "offers every method, with the signatures that are written down")


def _unused(door: str, seconds: float, quiet_hours: float) -> Gate:
    name = f"{door} unused"
    if seconds < 0:
        return Gate(name, Verdict.NO_DATA, "the clock was set back", "wait until it has passed the last call again")
    text = f"no call for {seconds / HOUR:.1f} h, {quiet_hours:g} h are wanted"
    if seconds < quiet_hours * HOUR:
        return Gate(name, Verdict.FAIL, text, "move its callers to the bus; xcp-bridge status shows the last call")
    return Gate(name, Verdict.PASS, text)
