"""What was compared, and what comes of it.

The answers are compared by type, as `comparison` does, after what the capture does not have (redacted fields) and what
a mask hides was left out. Never hidden: whether it is a fault, its kind and its code, and a handle that the recorded
answer gave and the replayed one does not. Of lists and maps of handles that a read gives, how many there are may be
under a mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from enum import StrEnum
from typing import Final

import msgspec

from bridges import comparison, handles
from bridges.calls import Value
from bridges.capture.rules import is_secret_name, without_secrets
from bridges.comparison import Difference, Outcome
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.interfaces.model import Effect, InterfaceError, Method, Service
from bridges.replay import hiding
from bridges.replay.bindings import Places, is_nothing
from bridges.replay.masks import Cover, Masks
from bridges.replay.pairs import Exchange, NotRecorded, answer_of
from bridges.replay.planning import NO_SANDBOX, NOT_MEANT
from bridges.replay.results import FieldRow, MaskRow, MethodRow, Result, Timing, Verdict
from bridges.replay.tallies import OTHERS, Histogram, Named, add
from bridges.replay.words import counted, duration

METHODS: Final = 10_000  # rows
FIELDS: Final = 100  # paths of one method
DAMAGE: Final = 1_000  # sentences
_SHOWN: Final = 18  # characters of a reference
_RECORDS_OF_A_CALL: Final = 4  # two in each leg


class Judgement(StrEnum):
    """What came of one call that was sent."""

    SAME = "same"
    MASKED = "masked"
    DIFFERENT = "different"
    INCOMPLETE = "incomplete"


class _Row:
    """The calls of one method so far."""

    def __init__(self) -> None:
        self.effect = ""
        self.calls: Counter[Judgement] = Counter()
        self.not_sent: dict[str, int] = {}
        self.incomplete: dict[str, int] = {}
        self.redacted = 0
        self.fields: dict[str, FieldRow] = {}
        self.then = Histogram()
        self.now = Histogram()

    def differ(self, seq: int, found: list[Difference]) -> None:
        for each in found:
            path = each.path if each.path in self.fields or len(self.fields) < FIELDS else OTHERS
            known = self.fields.get(path) or FieldRow(path, 0, _shown(each, each.left), _shown(each, each.right), seq)
            self.fields[path] = msgspec.structs.replace(known, count=known.count + 1)

    def report(self, service: str, method: str) -> MethodRow:
        sent = self.calls.total()
        return MethodRow(
            service=service,
            method=method,
            effect=self.effect,
            recorded=sent + sum(self.not_sent.values()),
            sent=sent,
            same=self.calls[Judgement.SAME],
            masked=self.calls[Judgement.MASKED],
            different=self.calls[Judgement.DIFFERENT],
            incomplete=self.calls[Judgement.INCOMPLETE],
            not_sent=self.not_sent,
            redacted=self.redacted,
            fields=sorted(self.fields.values(), key=lambda field: -field.count),
            took_then=self.then.spread(),
            took_now=self.now.spread(),
        )


class Judge:
    """Compares what was answered with what was recorded, and says in the end what comes of it.

    `services` are the interfaces by name where they are not today's.
    """

    def __init__(self, masks: Masks, today: date, services: Mapping[str, Service] | None = None) -> None:
        self._cover = Cover(masks, today)
        self._services = {} if services is None else services
        self._places = Places()
        self._rows: Named[_Row] = Named(_Row, METHODS)
        self._damage: list[str] = []
        self._missed, self._unseen = 0, False

    def not_sent(self, exchange: Exchange, why: str) -> None:
        """A recorded call that is not sent. `why` is counted by: it has nothing of the call in it."""
        add(self._row(exchange).not_sent, why)

    def judge(self, exchange: Exchange, outcome: Outcome, us: int) -> Judgement:
        """A call that was sent, and what was answered, with the recorded handles in it (`Bindings.back`)."""
        row = self._row(exchange)
        row.now.add(us)
        try:
            found = self._compare(exchange, outcome, row)
        except NotRecorded as missing:
            add(row.incomplete, str(missing))
            found = Judgement.INCOMPLETE
        row.calls[found] += 1
        return found

    def unanswered(self, exchange: Exchange, why: str) -> None:
        """A call that was sent, and whose answer was not waited for."""
        row = self._row(exchange)
        add(row.incomplete, why)
        row.calls[Judgement.INCOMPLETE] += 1

    def damage(self, text: str) -> None:
        """Something of the capture that cannot be read."""
        if len(self._damage) < DAMAGE:
            self._damage.append(text)

    def missed(self, count: int, *, unseen: bool = False) -> None:
        """So many records of the capture were lost while calls were made; `unseen`: and nobody knows how many more."""
        self._missed, self._unseen = count, unseen

    def result(self, *, capture: str, target: str, started: str, timing: Timing, interrupted: bool) -> Result:
        """What came of it so far."""
        rows = [(row.report(*name), row.incomplete) for name, row in sorted(self._rows.items())]
        methods = [row for row, _ in rows]
        masks = self._cover.rows()
        failures, notes = [*_differences(methods), *_expired(masks)], list[str]()
        doubts = [*_doubts(methods, self._damage, timing, interrupted=interrupted)]
        if self._missed:
            enough = self._missed < _RECORDS_OF_A_CALL * sum(row.recorded for row in methods)
            text = f"{counted(self._missed, 'record')} of calls were lost while the capture was made"
            (notes if enough else doubts).append(f"{text}: the run says nothing of them")
        if self._unseen:
            notes.append("calls may have passed unseen while the capture was made: nobody knows how many")
        verdict = Verdict.FAIL if failures else Verdict.INCONCLUSIVE if doubts else Verdict.PASS
        return Result(
            verdict=verdict,
            reasons=[*failures, *doubts, *notes, *_not_covered(methods, [why for _, why in rows]), *_warnings(masks)],
            capture=capture,
            target=target,
            started=started,
            recorded=sum(row.recorded for row in methods),
            sent=sum(row.sent for row in methods),
            methods=methods,
            masks=masks,
            timing=timing,
            damage=list(self._damage),
            interrupted=interrupted,
        )

    def _row(self, exchange: Exchange) -> _Row:
        request = exchange.request
        row = self._rows.of(request.service, request.method or request.name or "(not read)")
        row.effect = row.effect or self._effect(exchange)
        return row

    def _effect(self, exchange: Exchange) -> str:
        """That of the interface which is driven; only of a method that it has not, the recorded one."""
        try:
            return self._method(exchange).effect
        except NotRecorded:
            return exchange.request.effect

    def _method(self, exchange: Exchange) -> Method:
        name, service = exchange.request.method, self._services.get(exchange.request.service)
        try:
            method = (service or model.load(exchange.request.service)).method(name)
        except InterfaceError:
            method = None
        if method is None:
            raise NotRecorded("the method is not written down")
        return method

    def _compare(self, exchange: Exchange, replayed: Outcome, row: _Row) -> Judgement:
        method, reply = self._method(exchange), exchange.reply
        recorded = answer_of(method, reply)
        assert reply is not None
        found = self._missing(method, recorded, replayed)
        seen = self._without_redacted(reply.redacted, recorded, replayed, row)
        covered = self._cover.hide(method.service, method.name, recorded, seen)
        found += [each for each in comparison.compare(method, recorded, covered) if each.path not in _paths(found)]
        row.then.add(reply.us)
        if found:
            row.differ(exchange.request.seq, found)
            return Judgement.DIFFERENT
        return Judgement.SAME if covered is seen else Judgement.MASKED

    def _missing(self, method: Method, recorded: Outcome, replayed: Outcome) -> list[Difference]:
        """The handles that the recorded answer gave and the replayed one does not."""
        if isinstance(recorded, Fault) or isinstance(replayed, Fault):
            return []
        found = []
        for place in self._places.produced(method):
            if method.effect is Effect.READ and ("*" in place.place or "keys" in place.place):
                continue
            ones, others = (_handles(place.walk, whole) for whole in (recorded, replayed))
            if len(ones) > len(others):
                left = comparison.short(ones[len(others)])
                found.append(Difference(_as_path(place.place), left, comparison.short(comparison.ABSENT)))
        return comparison.hide(found) if method.secret_result else found

    def _without_redacted(self, paths: list[str], recorded: Outcome, replayed: Outcome, row: _Row) -> Outcome:
        """The replayed answer with what the capture has in the place of what it has not. Raises NotRecorded."""
        if isinstance(recorded, Fault) is not isinstance(replayed, Fault):
            return replayed
        for text in paths:
            if text == "fault.text":
                continue
            path = hiding.path_of(text)
            covered = replayed if path is None else hiding.covered(path, recorded, replayed, _hides_redacted(path))
            if path is None or (text == "result" and covered is not replayed):
                raise NotRecorded("the recorded answer is redacted as a whole")
            row.redacted += covered is not replayed
            replayed = covered
        return replayed


def _hides_redacted(path: hiding.Path) -> hiding.Hides:
    """Whatever is there now stands for what was redacted, but nothing does not; of keys, any stands for any."""
    if path.steps[-1:] == ("{#}",):
        return lambda _left, _right: True
    return lambda left, right: not any(side is None or side is comparison.ABSENT for side in (left, right))


def _shown(found: Difference, text: str) -> str:
    """What was there, for a report: what looks like a secret is none there, and a reference cannot be used."""
    if is_secret_name(found.path):
        return comparison.SECRET
    return without_secrets(text, lambda reference: f"{reference[:_SHOWN]}...", set())


def _handles(walk: handles.Walk, whole: Value) -> list[Value]:
    return [value for value in handles.found_by(walk, whole) if not is_nothing(value)]


def _paths(found: list[Difference]) -> set[str]:
    return {each.path for each in found}


def _as_path(place: str) -> str:
    """A place of the interface data as `comparison` writes paths."""
    root, *steps = place.split(".")
    return root + "".join(
        "[*]" if s == "*" else "{#}" if s == "keys" else f"[{s}]" if s.isdecimal() else f".{s}" for s in steps
    )


# --- reasons ---------------------------------------------------------------------------------------------------------


def _differences(rows: list[MethodRow]) -> Iterator[str]:
    """One sentence for each field that differed, the most frequent first."""
    fields = [(row, field) for row in rows for field in row.fields]
    for row, field in sorted(fields, key=lambda pair: -pair[1].count):
        compared = row.same + row.masked + row.different
        yield (
            f"{row.service} {row.method} {field.path}: {field.count:,} of {counted(compared, 'call')} "
            f"{'differs' if compared == 1 else 'differ'} (recorded {field.recorded}, replayed {field.replayed}, "
            f"first in seq {field.seq})"
        )


def _expired(rows: list[MaskRow]) -> Iterator[str]:
    for row in rows:
        if row.warning == "expired":
            yield f"the mask {row.id} of {row.owner} expired on {row.expires} and hides nothing: renew it or remove it"


def _doubts(rows: list[MethodRow], damage: list[str], timing: Timing, *, interrupted: bool) -> Iterator[str]:
    """Why a run without a failure does not pass."""
    recorded, sent = sum(row.recorded for row in rows), sum(row.sent for row in rows)
    if not any(row.same + row.masked + row.different for row in rows):
        yield f"nothing was compared: {counted(recorded, 'recorded call')}, {sent:,} sent"
    else:
        yield from _too_few(rows)
    if any(NO_SANDBOX in row.not_sent for row in rows):
        yield f"{NO_SANDBOX}: writes were sent to it until then"
    if damage:
        yield f"the capture is damaged in {counted(len(damage), 'place')}: {damage[0]}"
    if interrupted:
        yield f"it was interrupted: {sent:,} of {counted(recorded, 'call')} read so far were sent"
    if not timing.kept:
        yield f"the schedule was not kept: one call in a hundred was sent {duration(timing.lateness.p99)} late or more"


def _too_few(rows: list[MethodRow]) -> Iterator[str]:
    """Where less than half of what was meant to be sent was compared: of all calls, or of the writes."""
    for noun, chosen in (("call", rows), ("write", [row for row in rows if row.effect == Effect.WRITE])):
        left_out = sum(count for row in chosen for why, count in row.not_sent.items() if why in NOT_MEANT)
        meant = sum(row.recorded for row in chosen) - left_out
        compared = sum(row.same + row.masked + row.different for row in chosen)
        if compared * 2 < meant:
            yield f"only {compared:,} of {counted(meant, noun)} that were meant to be sent could be compared"
            return


def _not_covered(rows: list[MethodRow], incomplete: list[dict[str, int]]) -> Iterator[str]:
    """What the verdict does not speak of."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        for why, count in row.not_sent.items():
            counts["write" if row.effect == Effect.WRITE else "call", "not sent", why] += count
    for whys in incomplete:
        for why, count in whys.items():
            counts["call", "not compared", why] += count
    for (noun, became, why), count in counts.most_common():
        yield f"{counted(count, noun)} {'was' if count == 1 else 'were'} {became}: {why}"
    redacted = sum(row.redacted for row in rows)
    if redacted:
        yield f"{counted(redacted, 'field')} {'was' if redacted == 1 else 'were'} left out: redacted in the capture"


def _warnings(rows: list[MaskRow]) -> Iterator[str]:
    for row in rows:
        if row.warning == "stale":
            yield f"the mask {row.id} of {row.owner} is stale: it hid nothing in {counted(row.compared, 'comparison')}"
        elif row.warning == "greedy":
            yield f"the mask {row.id} of {row.owner} is greedy: it hid something in {row.hits:,} of {row.compared:,}"
