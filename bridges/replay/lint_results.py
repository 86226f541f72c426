"""What lint found in a capture: one model, from which its reports are made. `--json` prints it as it is."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Final

import msgspec

from bridges.replay.results import Spread
from bridges.replay.words import counted

SCHEMA: Final = 1


class Level(StrEnum):
    """How bad it is: `wrong` makes a replay or a cutover fail, a `warning` leaves something untold."""

    WRONG = "wrong"
    WARNING = "warning"
    NOTE = "note"


class Kind(StrEnum):
    """What can be found; KINDS says what each means."""

    SECRET = "secret"  # noqa: S105 -- the kind of finding
    UNKNOWN_SERVICE = "unknown service"
    UNKNOWN_METHOD = "unknown method"
    DOOR = "door not written down"
    ARGUMENTS = "arguments do not fit"
    RESULT = "result does not fit"
    FAULT = "fault does not fit"
    LOSS = "lost on the bus"
    UNREADABLE = "unreadable call"
    NO_CALL = "no call"
    UNBOUND = "unbound handle"
    REDACTED = "redacted argument"
    INTERFACE = "other interface"
    NO_ANSWER = "no answer"
    NO_REQUEST = "answer without a call"
    REPEATED = "repeated record"
    NO_ARGUMENTS = "arguments not seen"
    NO_RESULT = "result not seen"
    CUT = "cut"
    LOST = "records lost"
    DAMAGE = "damage"
    REFUSED = "refused by the daemon too"
    UNDECLARED = "fault not written down"


class Meaning(msgspec.Struct, frozen=True):
    level: Level
    text: str


KINDS: Final = {
    Kind.SECRET: Meaning(Level.WRONG, "looks like a secret that was not redacted: do not pass this capture on"),
    Kind.UNKNOWN_SERVICE: Meaning(Level.WRONG, "no interface is written down: the bridge carries none of its calls"),
    Kind.UNKNOWN_METHOD: Meaning(
        Level.WRONG, "the daemon answers a method that is not written down: refused once the service is live"
    ),
    Kind.DOOR: Meaning(Level.WRONG, "the interface does not have the method at this door: refused once it is live"),
    Kind.ARGUMENTS: Meaning(Level.WRONG, "the daemon answered arguments that are not of the interface's types"),
    Kind.RESULT: Meaning(Level.WRONG, "a result that is not of the interface's type: its caller would get a fault"),
    Kind.FAULT: Meaning(Level.WRONG, "a fault whose arguments are not of the interface's types"),
    Kind.LOSS: Meaning(Level.WRONG, "taken to the bus and back it is not the same"),
    Kind.UNREADABLE: Meaning(Level.WRONG, "the daemon answered a call that the bridge could not read"),
    Kind.NO_CALL: Meaning(Level.WARNING, "no call of the service: passed on in relay, and not once it is live"),
    Kind.UNBOUND: Meaning(
        Level.WARNING, "what gave this handle is not in the capture: replay sends such calls only with --bind"
    ),
    Kind.REDACTED: Meaning(Level.WARNING, "a secret is not in the capture: replay sends such calls only with --bind"),
    Kind.INTERFACE: Meaning(Level.WARNING, "captured with other interface data; types were checked against today's"),
    Kind.NO_ANSWER: Meaning(Level.WARNING, "half a pair: replay sends it and has nothing to compare with"),
    Kind.NO_REQUEST: Meaning(Level.WARNING, "half a pair: what was asked is not in the capture"),
    Kind.REPEATED: Meaning(Level.WARNING, "the number of an earlier record, or a second answer to a call: left out"),
    Kind.NO_ARGUMENTS: Meaning(Level.WARNING, "only observed, and gone before it was read: replay cannot send it"),
    Kind.NO_RESULT: Meaning(Level.WARNING, "only observed, and gone before it was read: there is nothing to compare"),
    Kind.CUT: Meaning(Level.WARNING, "the source has only the beginning: types could not be checked"),
    Kind.LOST: Meaning(Level.WARNING, "the capture says itself that records are missing"),
    Kind.DAMAGE: Meaning(Level.WARNING, "the capture is damaged; what is whole was read"),
    Kind.REFUSED: Meaning(Level.NOTE, "nothing that the bridge could take, and the daemon refused it as well"),
    Kind.UNDECLARED: Meaning(Level.NOTE, "carried under its own name, its arguments as variants"),
}


class Finding(msgspec.Struct, frozen=True):
    """One kind of finding in one method (empty: of the service, or of all): how often, where first, and what there."""

    level: Level
    kind: Kind
    service: str
    method: str
    count: int
    first: str
    text: str


class Traffic(msgspec.Struct, frozen=True):
    """How often and how fast: `seconds` of the capture, calls in its busiest second and minute."""

    calls: int
    per_second: float
    busiest_second: int
    busiest_minute: int


class ServiceRow(msgspec.Struct, frozen=True):
    """One service. `interface` is `today's`, `another`, `not named` (by the capture) or `unknown`."""

    service: str
    dialect: str
    interface: str
    traffic: Traffic
    doors: dict[str, int]
    stages: dict[str, int]
    reads: int
    writes: int
    methods: int


class CallerRow(msgspec.Struct, frozen=True):
    """Who called: a command, a domain or a name on the bus. `connections` are distinct ones, at least so many."""

    caller: str
    calls: int
    connections: int
    services: dict[str, int]


class MethodRow(msgspec.Struct, frozen=True):
    """One method. `request` and `reply` are sizes in bytes, `took` is in microseconds.

    calls = carried + lossy + not_carried + untold. `carried`: went to the bus and back without a difference; `lossy`:
    with one; `not_carried`: the bridge would refuse it; `untold`: the capture does not have enough of it.
    """

    service: str
    method: str
    known: bool
    effect: str
    traffic: Traffic
    doors: dict[str, int]
    request: Spread
    reply: Spread
    took: Spread
    faults: dict[str, int]
    carried: int
    lossy: int
    not_carried: int
    untold: int


class LintReport(msgspec.Struct, frozen=True):
    """All of it; findings the weightiest first. Times are decimal nanoseconds since 1970, as in the records.

    `interrupted`: only the beginning of the capture was read.
    """

    capture: str
    sources: dict[str, int]
    hosts: list[str]
    began: str
    ended: str
    seconds: float
    records: int
    calls: int
    services: list[ServiceRow]
    callers: list[CallerRow]
    methods: list[MethodRow]
    findings: list[Finding]
    damage: list[str] = []
    interrupted: bool = False
    schema: int = SCHEMA


class Outcome(StrEnum):
    """What lint says of a capture as a whole."""

    CLEAN = "NOTHING WRONG"
    WRONG = "SOMETHING WRONG"
    PART = "NOT ALL READ"
    EMPTY = "NO CALLS"


def outcome(report: LintReport) -> Outcome:
    if any(f.level is Level.WRONG for f in report.findings):
        return Outcome.WRONG
    if report.interrupted or report.damage:
        return Outcome.PART
    return Outcome.CLEAN if report.calls else Outcome.EMPTY


def exit_code(report: LintReport) -> int:
    """0: nothing that would make a replay or a cutover fail; 1: something; 3: no calls, or not all of them."""
    return {Outcome.CLEAN: 0, Outcome.WRONG: 1, Outcome.PART: 3, Outcome.EMPTY: 3}[outcome(report)]


def reasons(report: LintReport) -> list[str]:
    """Why it says so, in sentences."""
    sentences = []
    if report.interrupted:
        sentences.append(f"it was interrupted: only the first {report.records:,} records were read")
    if report.damage:
        sentences.append(f"it is damaged in {counted(len(report.damage), 'place')}: what is whole was read")
    if not report.calls and not report.interrupted:
        sentences.append(f"there are no calls among the {report.records:,} records of this capture")
    found = Counter(finding.level for finding in report.findings)
    if report.calls or found:
        sentences.append(f"{found[Level.WRONG]} wrong, {found[Level.WARNING]} to look at, {found[Level.NOTE]} to know")
    if report.calls:
        sentences.append(_carriage(report))
    return sentences


def _carriage(report: LintReport) -> str:
    rows = report.methods
    told = [f"the bridge would carry {sum(row.carried for row in rows):,} of {report.calls:,} calls without loss"]
    if lossy := sum(row.lossy for row in rows):
        told.append(f"{lossy:,} with a loss")
    if refused := sum(row.not_carried for row in rows):
        told.append(f"{refused:,} not at all")
    if untold := sum(row.untold for row in rows):
        told.append(f"of {untold:,} the capture does not have enough to tell")
    return ", ".join(told)
