"""What all imports share: records in their order, and what is kept of calls until their answer is found.

Files of other tools know no clock but the wall's: in what is imported `mono` is the same as `ts`, as the header says by
its own two, and host and boot are empty. Where a file does not say who is the authority, `side` is empty.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

from bridges.calls import Door
from bridges.capture.describing import Describer, Heard, Seen
from bridges.capture.headers import header_of
from bridges.capture.messages import Answering, Asking
from bridges.capture.records import Complete, Fault, Header, Leg, Lost, Record, Reply, Request
from bridges.capture.redaction import Redactor
from bridges.dbus_translation import Translation
from bridges.interfaces.model import Effect, Method, Service

OPEN_LIMIT: Final = 65536
"""Calls whose answer is waited for; beyond, the oldest counts as never answered."""

TOLD_LIMIT: Final = 10
"""Places that are told one by one; of the rest only how many there are."""

Note = Callable[[str], None]
Key = TypeVar("Key")
Waiting = TypeVar("Waiting")


class Imported(NamedTuple):
    """What a file holds: records, and the headers of the segments that they are written to (number, chain)."""

    header: Callable[[int, str], Header]
    records: Iterator[Record]


class Spoken(NamedTuple):
    """A service, and the dialect in which its daemon of then speaks."""

    service: Service
    dialect: str


class Found(NamedTuple):
    """What a file tells of a request beside its message. `time` in nanoseconds since 1970."""

    time: int
    leg: Leg
    door: Door
    conn: str = ""
    peer: str | None = None
    side: str = ""


class Asked(NamedTuple):
    """A request that is a record, and waits for its answer. `describer` is None where only its outcome will be told."""

    record: Request
    describer: Describer | None


def imported(source: str, maker: Maker, dialects: dict[str, str], records: Iterator[Record]) -> Imported:
    """The outcome of an import of that kind; `dialects` by service. What is wrong from the beginning is raised here."""

    first = list(itertools.islice(records, 1))
    return Imported(partial(header_of, maker.redactor, dialects, source), itertools.chain(first, records))


class Maker:
    """Makes records of what is found, numbered in that order. The key behind the tokens is made for the import."""

    def __init__(self) -> None:
        self.redactor = Redactor(secrets.token_bytes(32))
        self._describers: dict[tuple[str, str], Describer] = {}
        self._seq = 0
        self._calls = 0

    def request(self, spoken: Spoken, message: Asking, method: Method | None, found: Found) -> Asked:
        """A request of a service that is written down."""
        describer = self._describer(spoken)
        self._calls += 1
        seen = Seen(
            call=str(self._calls),
            leg=found.leg,
            door=found.door,
            message=message,
            ts=found.time,
            mono=found.time,
            side=found.side,
            stage="",
            epoch=0,
            conn=found.conn,
            peer=found.peer,
            method=method,
            effect=_effect(method),
        )
        return Asked(describer.request(seen, self._next()), describer)

    def reply(self, asked: Asked, message: Answering, time: int) -> Reply | None:
        """The answer to a request of `request`."""
        record = asked.record
        assert asked.describer is not None
        heard = Heard(record.id, record.leg, message, time, time, record.side, 0)
        reply = asked.describer.reply(heard, self._seq + 1)
        self._seq += reply is not None
        return reply

    def bare_request(
        self,
        service: str,
        name: str,
        found: Found,
        *,
        complete: Complete,
        size: int,
        note: str,
        method: Method | None = None,
    ) -> Asked:
        """A request of which nothing is kept but who, what and how much."""
        self._calls += 1
        record = Request(
            seq=self._next(),
            id=str(self._calls),
            leg=found.leg,
            ts=str(found.time),
            mono=str(found.time),
            service=service,
            door=str(found.door),
            name=name,
            method="" if method is None else method.name,
            effect=_effect(method),
            side=found.side,
            conn=found.conn,
            peer={} if found.peer is None else {"name": found.peer},
            size=size,
            complete=complete,
            note=note,
        )
        return Asked(record, None)

    def bare_reply(
        self,
        asked: Asked,
        outcome: str,
        time: int,
        *,
        complete: Complete,
        size: int,
        note: str,
        fault: Fault | None = None,
    ) -> Reply:
        """An answer of which nothing is kept but how it ended and how much it was."""
        record = asked.record
        return Reply(
            seq=self._next(),
            id=record.id,
            leg=record.leg,
            ts=str(time),
            mono=str(time),
            service=record.service,
            door=record.door,
            re=record.seq,
            us=(time - int(record.ts)) // 1000,
            outcome=outcome,
            method=record.method,
            side=record.side,
            fault=fault,
            size=size,
            complete=complete,
            note=note,
        )

    def lost(self, n: int, why: str, time: int, service: str = "") -> Lost:
        """Records that are not there."""
        return Lost(self._next(), str(time), str(time), n, why, service)

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _describer(self, spoken: Spoken) -> Describer:
        key = spoken.service.name, spoken.dialect
        if key not in self._describers:
            on_bus = Translation(spoken.service)
            self._describers[key] = Describer(spoken.service, spoken.dialect, on_bus, self.redactor)
        return self._describers[key]


class Pending(Generic[Key, Waiting]):
    """What waits for an answer, by what the answer will name it with; bounded."""

    def __init__(self) -> None:
        self._waiting: dict[Key, Waiting] = {}

    def put(self, key: Key, waiting: Waiting) -> None:
        """Waits; the oldest is forgotten when there are too many."""
        if len(self._waiting) >= OPEN_LIMIT:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[key] = waiting

    def take(self, key: Key) -> Waiting | None:
        """What an answer names, which then waits no more."""
        return self._waiting.pop(key, None)


class Places:
    """Tells the first few of many like places one by one, and counts all."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self.count = 0

    def tell(self, text: str) -> None:
        """One of them."""
        self.count += 1
        if self.count <= TOLD_LIMIT:
            self._note(text)

    def tell_rest(self, text: str) -> None:
        """How many there were, where not all were told; `text` has {} for the number."""
        if self.count > TOLD_LIMIT:
            self._note(text.format(self.count))


def _effect(method: Method | None) -> str:
    return str(Effect.WRITE if method is None else method.effect)
