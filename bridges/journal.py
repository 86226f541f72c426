"""The journal of writes: each is recorded before it is dispatched, and its result before the answer leaves.

A write that a crash left without a result may have been executed or not: it is InDoubt, is never sent again, and stays
in doubt until somebody has looked and acknowledged it. Neither arguments nor reads are recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bridges.durable import Durable, Parameters, Rows
from bridges.faults import Kind

LOG: Final = logging.getLogger("bridges.journal")

# The newest that are kept; older ones go once in so many ends. In doubt and not acknowledged they stay, however old.
KEPT_CALLS: Final = 100_000
TRIM_EVERY: Final = 1000
# A caller may name a method that nobody has, at any length.
_METHOD_LENGTH: Final = 200

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS call (
    id INTEGER PRIMARY KEY, service TEXT NOT NULL, method TEXT NOT NULL, door TEXT NOT NULL, request TEXT NOT NULL,
    epoch INTEGER NOT NULL, stage TEXT NOT NULL, side TEXT NOT NULL, began TEXT NOT NULL, ended TEXT, outcome TEXT,
    kept BLOB, acknowledged TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS call_by_request ON call (service, request) WHERE door = 'xenstore';
CREATE INDEX IF NOT EXISTS call_in_doubt ON call (service) WHERE outcome = 'InDoubt' AND acknowledged IS NULL;
"""
_BEGIN: Final = (
    "INSERT INTO call (id, service, method, door, request, epoch, stage, side, began) VALUES (?,?,?,?,?,?,?,?,?)"
)
_END: Final = "UPDATE call SET outcome = ?, ended = ?, kept = ? WHERE id = ? AND outcome IS NULL"
_TRIM: Final = (
    "DELETE FROM call WHERE id <= ? AND outcome IS NOT NULL AND NOT (outcome = 'InDoubt' AND acknowledged IS NULL)"
)
_ACKNOWLEDGE: Final = (
    "UPDATE call SET acknowledged = ? WHERE service = ? AND outcome = 'InDoubt' AND acknowledged IS NULL "
    "RETURNING service"
)
_SELECT: Final = (
    "SELECT id, service, method, door, request, epoch, stage, side, began, ended, outcome, acknowledged FROM call"
)
_COLUMNS: Final = _SELECT.removeprefix("SELECT ").removesuffix(" FROM call").split(", ")


@dataclass(frozen=True, slots=True)
class Entry:
    """A write as it is admitted. `request` is the door's own id of it: an xenstore uuid, sender and serial, or ''."""

    service: str
    method: str
    door: str
    request: str
    epoch: int
    stage: str
    side: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of an earlier request; outcome None: it is being executed."""

    outcome: str | None
    kept: bytes | None
    method: str


class Journal:
    """The writes of all services, in a file with SCHEMA. `now` gives the time as UTC ISO text with milliseconds.

    Rows that are handed out are JSON-ready: all columns of `call` but `kept`.
    """

    def __init__(self, durable: Durable, now: Callable[[], str]) -> None:
        self._durable = durable
        self._now = now
        self._next: int = durable.read_now("SELECT coalesce(max(id), 0) + 1 FROM call")[0][0]
        self._ends = 0
        self._in_doubt: Counter[str] = Counter()
        self._count_in_doubt()

    def recover(self) -> Counter[str]:
        """At a start, before anything is served: what has no result is in doubt. Returns how many of each service.

        Raises NotDurable.
        """
        open_calls = self._durable.read_now("SELECT service, count(*) FROM call WHERE outcome IS NULL GROUP BY service")
        self._durable.write_now("UPDATE call SET outcome = 'InDoubt', ended = ? WHERE outcome IS NULL", (self._now(),))
        self._count_in_doubt()
        return Counter(dict(open_calls))

    async def begin(self, entry: Entry) -> int:
        """Records a write before it is dispatched; returns its number. Raises NotDurable.

        Cancelled, the write is not dispatched, so it is taken out again.
        """
        number = self._next
        self._next += 1
        try:
            await self._durable.write(
                _BEGIN,
                (
                    number, entry.service, _storable(entry.method[:_METHOD_LENGTH]), entry.door,
                    _storable(entry.request), entry.epoch, entry.stage, entry.side, self._now(),
                ),
            )  # fmt: skip
        except asyncio.CancelledError:
            self._leave_to_thread("DELETE FROM call WHERE id = ?", (number,))
            raise
        return number

    async def end(self, number: int, outcome: str, kept: bytes | None = None) -> None:
        """Records the result of a write, once: "answered" or the kind of its fault. Raises NotDurable.

        `kept` is the response, for doors whose caller can still be answered after a crash.
        """
        parameters = (outcome, self._now(), kept, number)
        self._ends += 1
        if self._ends % TRIM_EVERY == 0:
            self._leave_to_thread(_TRIM, (self._next - 1 - KEPT_CALLS,))
        if outcome == Kind.IN_DOUBT:
            await self._counted(f"{_END} RETURNING service", parameters, 1)
        else:
            await self._durable.write(_END, parameters)

    async def find(self, service: str, request: str) -> Found | None:
        """The newest write by that request of the service's tree in xenstore, None if there was none."""
        rows = await self._durable.read(
            "SELECT outcome, kept, method FROM call WHERE service = ? AND request = ? AND door = 'xenstore' "
            "ORDER BY id DESC LIMIT 1",
            (service, _storable(request)),
        )
        return Found(*rows[0]) if rows else None

    def in_doubt_count(self, service: str) -> int:
        """How many writes of the service are in doubt and not acknowledged."""
        return self._in_doubt[service]

    async def in_doubt(self, service: str | None = None) -> list[dict[str, Any]]:
        """The writes in doubt that are not acknowledged, newest first; None: of all services."""
        # +id: so that SQLite takes the index of these few instead of all calls in their order
        where = "WHERE outcome = 'InDoubt' AND acknowledged IS NULL AND (?1 IS NULL OR service = ?1) ORDER BY +id DESC"
        return _named(await self._durable.read(f"{_SELECT} {where}", (service,)))

    async def acknowledge(self, service: str, who_and_why: str) -> int:
        """Somebody has looked at the service's writes in doubt; returns how many there were. Raises NotDurable."""
        return await self._counted(_ACKNOWLEDGE, (_storable(who_and_why), service), -1)

    async def entry(self, number: int) -> dict[str, Any] | None:
        """One write by its number; None when it is not there, or no longer."""
        rows = _named(await self._durable.read(f"{_SELECT} WHERE id = ?", (number,)))
        return rows[0] if rows else None

    async def entries(self, service: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The newest writes, newest first; None: of all services."""
        where = "WHERE ?1 IS NULL OR service = ?1 ORDER BY id DESC LIMIT ?2"
        return _named(await self._durable.read(f"{_SELECT} {where}", (service, limit)))

    def _count_in_doubt(self) -> None:
        self._in_doubt = Counter(
            dict(
                self._durable.read_now(
                    "SELECT service, count(*) FROM call WHERE outcome = 'InDoubt' AND acknowledged IS NULL "
                    "GROUP BY service"
                )
            )
        )

    async def _counted(self, statement: str, parameters: Parameters, step: int) -> int:
        """How many rows it changed; they are counted by their service even when the caller leaves meanwhile."""

        def count(done: asyncio.Future[Rows]) -> None:
            if done.exception() is None:
                for (service,) in done.result():
                    self._in_doubt[service] += step

        future = self._durable.submit(statement, parameters)
        future.add_done_callback(count)
        return len(await asyncio.shield(future))

    def _leave_to_thread(self, statement: str, parameters: Parameters) -> None:
        self._durable.submit(statement, parameters).add_done_callback(_log_failure)


def _log_failure(done: asyncio.Future[Rows]) -> None:
    if (error := done.exception()) is not None:
        LOG.warning("the journal could not be tidied: %s", error)


def _storable(text: str) -> str:
    """SQLite's text is UTF-8: a lone surrogate, as JSON may carry one, is spelled out."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _named(rows: Rows) -> list[dict[str, Any]]:
    return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
