"""What was found on a host, a line each, for those who look and those who print."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a check found."""

    GOOD = "ok"
    WARNING = "warning"
    BAD = "wrong"
    UNKNOWN = "could not tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: where, what is so, and what to do about it (empty when nothing is)."""

    place: str
    verdict: Verdict
    text: str
    mend: str = ""
