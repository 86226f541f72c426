"""The result of a replay: one model, from which every report is made. `--json` prints it as it is."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

SCHEMA: Final = 1


class Verdict(StrEnum):
    """What came of a run.

    PASS          what was compared was the same or under a mask, and it was at least half of the calls, and of the
                  writes, that were meant to be sent
    FAIL          something differed, or a mask has expired
    INCONCLUSIVE  neither: too little was sent or compared, the schedule was not kept, the capture is damaged
    """

    PASS = "PASS"  # noqa: S105 -- a verdict
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Spread(msgspec.Struct, frozen=True):
    """A distribution of times in microseconds; all 0 when `count` is."""

    count: int = 0
    p50: int = 0
    p99: int = 0
    most: int = 0


class FieldRow(msgspec.Struct, frozen=True):
    """One field path of one method that differed and was under no mask; the values are of the first time (`seq`)."""

    path: str
    count: int
    recorded: str
    replayed: str
    seq: int


class MethodRow(msgspec.Struct, frozen=True):
    """The calls of one method: recorded = sent + the sum of not_sent; sent = same + masked + different + incomplete.

    `incomplete`: sent, and not to be compared (the recorded answer is missing, cut or redacted as a whole). `redacted`
    counts fields that were left out of the comparison since the capture does not have them.
    """

    service: str
    method: str
    effect: str
    recorded: int
    sent: int
    same: int
    masked: int
    different: int
    incomplete: int
    not_sent: dict[str, int]
    redacted: int
    fields: list[FieldRow]
    took_then: Spread
    took_now: Spread


class MaskRow(msgspec.Struct, frozen=True):
    """What became of a mask: `hits` of `compared` comparisons. `warning` is stale, greedy, expired or empty."""

    id: str
    where: str
    kind: str
    owner: str
    reason: str
    expires: str
    hits: int
    compared: int
    warning: str = ""


class Timing(msgspec.Struct, frozen=True):
    """How it was sent. `mode`: `open loop` (on the recorded schedule, or `rate` calls/s) or `closed loop`.

    `lateness` is how long after its due time a call was sent that nothing but ourselves held up. A closed loop has none
    and measures no latency.
    """

    mode: str
    speed: float = 1.0
    rate: float = 0.0
    workers: int = 0
    planned_seconds: float = 0.0
    took_seconds: float = 0.0
    lateness: Spread = Spread()
    kept: bool = True


class Result(msgspec.Struct, frozen=True):
    """One run. `reasons` say in sentences why the verdict is what it is, the weightiest first."""

    verdict: Verdict
    reasons: list[str]
    capture: str
    target: str
    started: str
    recorded: int
    sent: int
    methods: list[MethodRow]
    masks: list[MaskRow]
    timing: Timing
    damage: list[str] = []
    interrupted: bool = False
    schema: int = SCHEMA
