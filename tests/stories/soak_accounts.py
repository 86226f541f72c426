"""The accounts of the soak: what was called, executed, moved and killed, and whether it adds up."""

from __future__ import annotations

import bisect
import itertools
import math
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.stories.soak_callers import WRITES, Call, Outcome

# How long after a part's death a process that gets no processor may still hand it a call.
UNAWARE: Final = 2.0
TOLD: Final = (Outcome.REFUSED, Outcome.HALF, Outcome.UNSENT)
UNCERTAIN: Final = (Outcome.IN_DOUBT, Outcome.CUT)


@dataclass
class Blow:
    """Something that was ended by force, and until when it took. `offset`: the executions written before its end."""

    kind: str
    begun: float
    ended: float = math.inf
    offset: int = 0


@dataclass(frozen=True)
class Turn:
    """A time in which a service was being moved, in executions written before and after; who ruled before and after.

    `changes`: how often the authority changed by the audit.
    """

    begun: int
    ended: int
    before: str
    after: str
    changes: int


@dataclass(frozen=True)
class Execution:
    """A line of the executions; `offset` is where it begins."""

    offset: int
    side: str
    function: str
    token: str


@dataclass
class Accounts:
    """Everything that happened. `rogues` are times (as executions) in which two daemons ran by the soak's own doing."""

    executions_path: Path
    started: float = field(default_factory=time.monotonic)
    calls: list[Call] = field(default_factory=list)
    blows: list[Blow] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    rogues: list[tuple[int, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    flips: Counter[str] = field(default_factory=Counter)
    freezes: Counter[str] = field(default_factory=Counter)
    alarms: Counter[str] = field(default_factory=Counter)
    scrapes: int = 0
    again: int = 0
    longest_hold: float = 0.0

    def __post_init__(self) -> None:
        self._wall = datetime.now(UTC).timestamp() - time.monotonic()

    def note(self, text: str) -> None:
        """A line of the story."""
        self.events.append(f"{time.monotonic() - self.started:8.3f} {text}")

    def problem(self, text: str) -> None:
        """Something that may not be; it is said once."""
        if text in self.problems:
            return
        self.note(f"PROBLEM {text}")
        self.problems.append(text)

    def offset(self) -> int:
        """How much has been executed, as a place in the file."""
        return self.executions_path.stat().st_size if self.executions_path.exists() else 0

    def blow(self, kind: str) -> Blow:
        """Notes that something is about to be ended."""
        blow = Blow(kind, time.monotonic())
        self.blows.append(blow)
        self.note(kind)
        return blow

    def over(self, blow: Blow) -> None:
        """What was ended is seen to have ended."""
        blow.ended, blow.offset = time.monotonic(), self.offset()

    def is_explained(self, begun: float, ended: float) -> bool:
        """Whether something was ended by force between two moments, or just before the first."""
        return any(begun <= blow.ended + UNAWARE and ended >= blow.begun for blow in self.blows)

    def executions(self) -> list[Execution]:
        """All of them, in their order."""
        found, offset = [], 0
        for line in self.executions_path.read_bytes().splitlines(keepends=True):
            side, function, token = line.decode().split()
            found.append(Execution(offset, side, function, token))
            offset += len(line)
        return found

    # ---- what must hold

    def settle(self, rows: Iterable[dict[str, Any]]) -> None:
        """Checks everything, once all is over. `rows` are the writes of the journal that are in doubt or open."""
        executions = self.executions()
        by_token: defaultdict[tuple[str, str], list[Execution]] = defaultdict(list)
        for each in executions:
            by_token[each.function, each.token].append(each)
        for call in self.calls:
            self._check_call(call, by_token.get((call.function, call.token), []))
        calls = {(call.function, call.token): call for call in self.calls}
        for (function, token), found in by_token.items():
            if (function, token) not in calls:
                self.problem(f"{function} {token} was executed, and nobody had called it: {found}")
        self._check_sides([each for each in executions if each.function in WRITES - {"VM.start"}])
        for row in rows:
            self._check_row(row)

    def _check_call(self, call: Call, found: list[Execution]) -> None:
        count, what = len(found), f"{call.door} {call.function} {call.token}: {call.outcome} {call.text}"
        at = f"at {call.begun - self.started:.3f} to {call.ended - self.started:.3f}"
        if call.outcome in (Outcome.HUNG, Outcome.WRONG):
            self.problem(f"{what} {at}")
        if call.outcome in UNCERTAIN and not self.is_explained(call.begun, call.ended):
            self.problem(f"nothing was ended by force, yet {what} {at}")
        if not call.is_write:
            return
        if count > 1 and not self._may_be_again(call, found):
            self.problem(f"executed {count} times: {what} {at}: {found}")
        if count and call.outcome in TOLD:
            self.problem(f"executed although its caller was told that it was not: {what} {at}: {found}")
        if not count and call.outcome is Outcome.ANSWERED:
            self.problem(f"answered, and executed nowhere: {what} {at}")

    def _may_be_again(self, call: Call, found: list[Execution]) -> bool:
        """A legacy daemon that ended with a request of the tree in hand begins it anew: that is its own manner.

        And two daemons at one tree, by the soak's doing, may both execute a request.
        """
        if call.door not in ("xenstore", "bus"):  # the bridge may reach the legacy daemon by its tree
            return False
        for first, second in itertools.pairwise(found):
            ended = [b for b in self.blows if b.kind == "legacy squeezed" and first.offset < b.offset <= second.offset]
            both = any(self._in_rogue(each) for each in (first, second))
            if not both and not (ended and first.side == second.side == "legacy"):
                return False
        self.again += 1
        return True

    def _in_rogue(self, execution: Execution) -> bool:
        return any(begun <= execution.offset < ended for begun, ended in self.rogues)

    def _check_sides(self, executions: list[Execution]) -> None:
        """Between two moves one side executes; within one it changes as often as the authority did, by the audit."""
        offsets = [each.offset for each in executions]

        def sides(begun: float, ended: float) -> Iterator[Execution]:
            part = executions[bisect.bisect_left(offsets, begun) : bisect.bisect_left(offsets, ended)]
            return (each for each in part if not self._in_rogue(each))

        ends: list[tuple[float, str]] = [(turn.ended, turn.after) for turn in self.turns]
        begins: list[float] = [turn.begun for turn in self.turns]
        for (begun, rules), ended in zip([(0, "legacy"), *ends], [*begins, math.inf], strict=True):
            for each in sides(begun, ended):
                if each.side != rules:
                    self.problem(f"{each} was executed while {rules} ruled ({begun} to {ended})")
        for turn in self.turns:
            runs = [side for side, _ in itertools.groupby(sides(turn.begun, turn.ended), key=lambda each: each.side)]
            changes = len(runs) - 1 + (bool(runs) and runs[0] != turn.before) + (bool(runs) and runs[-1] != turn.after)
            if runs and changes > turn.changes:
                self.problem(f"the executing side changed {changes} times in {turn}: {runs}")

    def _check_row(self, row: dict[str, Any]) -> None:
        if row["outcome"] is None:
            self.problem(f"the journal has a call that never ended: {row}")
            return
        begun, ended = (datetime.fromisoformat(row[name]).timestamp() - self._wall for name in ("began", "ended"))
        if not self.is_explained(begun - UNAWARE, ended):  # a call that lay unread in the bridge's socket begins late
            at = f"at {begun - self.started:.3f} to {ended - self.started:.3f}"
            self.problem(f"nothing was ended by force, yet the journal has in doubt, {at}: {row}")

    # ---- what is printed

    def print(self, out: Console, seed: int) -> None:
        """The summary."""
        side = {(each.function, each.token): each.side for each in self.executions()}
        columns = ("calls", "answered", "by legacy", "by bus", "refused", "in doubt", "cut", "left", "longest wait")
        table = Table("door", *columns, box=None)
        for key in sorted({(call.door, call.service) for call in self.calls}):
            calls = [call for call in self.calls if (call.door, call.service) == key]
            outcomes = Counter(call.outcome for call in calls)
            sides = Counter(side.get((c.function, c.token)) for c in calls if c.outcome is Outcome.ANSWERED)
            numbers = [len(calls), outcomes[Outcome.ANSWERED], sides["legacy"], sides["bus"]]
            numbers += [outcomes[Outcome.REFUSED] + outcomes[Outcome.UNSENT], outcomes[Outcome.IN_DOUBT]]
            numbers += [outcomes[Outcome.CUT], outcomes[Outcome.LEFT] + outcomes[Outcome.HALF]]
            longest = max(call.ended - call.begun for call in calls)
            table.add_row(f"{key[0]} -> {key[1]}", *map(str, numbers), f"{longest:.3f} s")
        out.print("", table, "")
        kills = Counter(blow.kind for blow in self.blows)
        for name, counts in (("flips", self.flips), ("ended by force", kills), ("alarms", self.alarms)):
            out.print(f"{name}: " + (", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) or "none"))
        out.print(f"freezes acknowledged: {self.freezes.total()}; longest hold {self.longest_hold:.3f} s")
        out.print(f"executed again by a legacy daemon that had ended with the request: {self.again}")
        out.print(
            f"status read {self.scrapes} times; {len(self.calls)} calls; problems {len(self.problems)}; seed {seed}"
        )


def journal_rows(path: Path) -> list[dict[str, Any]]:
    """The writes of a journal, of a bridge that has ended, that have no result or are in doubt."""
    database = sqlite3.connect(path)
    try:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM call WHERE outcome IS NULL OR outcome = 'InDoubt'").fetchall()
    finally:
        database.close()
    return [dict(row) for row in rows]
