"""The result of a replay as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bridges.replay import words
from bridges.replay.pages import (
    ZERO,
    Content,
    Markup,
    bullets,
    code,
    element,
    facts,
    joined,
    number,
    numbers,
    page,
    section,
    table,
    texts,
    verdict_box,
)
from bridges.replay.results import MaskRow, MethodRow, Result, Spread, Timing, Verdict

LOOKS: Final = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.INCONCLUSIVE: "open"}
_MASK_WARNINGS: Final = {"expired": "bad", "stale": "open", "greedy": "open", "empty": "open"}
_METHODS: Final = (
    *texts("method", "effect"),
    *numbers("recorded", "sent", "same", "masked", "different", "not comparable", "not sent"),
    *numbers("p50 then", "p50 now", "p99 then", "p99 now"),
)
_FIELDS: Final = (*texts("field", "recorded", "replayed"), *numbers("times", "first in record"))
_MASKS: Final = (
    *texts("mask", "where", "kind", "reason", "owner", "expires"),
    *numbers("hits", "compared"),
    *texts("warning"),
)
_NOT_SENT: Final = (*texts("why"), *numbers("calls"), *texts("methods"))


def html(result: Result) -> str:
    """The page, whole: the verdict and its reasons first, then what they rest on."""
    title = f"{result.verdict}: {result.capture} replayed to {result.target}"
    verdict = joined(
        element("h1", "Replay report"),
        verdict_box(LOOKS[result.verdict], str(result.verdict), result.reasons),
        facts(_facts(result)),
    )
    ranked = sorted(result.methods, key=lambda row: (-row.different, -row.incomplete, -_not_sent(row), -row.recorded))
    return page(
        title,
        verdict,
        _differences([row for row in ranked if row.fields or row.different]),
        section("Methods", table(_CAPTION, _METHODS, map(_method, ranked)) if ranked else _none("No calls.")),
        section("Timing", *_timing(result.timing)),
        section("Not sent", *_what_was_not_sent(result)),
        section("Masks", table("", _MASKS, map(_mask, result.masks)) if result.masks else _none("No masks.")),
        section("Damage", bullets(result.damage)) if result.damage else Markup(),
    )


_CAPTION: Final = "recorded = sent + not sent; sent = same + masked + different + not comparable"


def _none(text: str) -> Markup:
    return element("p", text, class_="soft")


def _facts(result: Result) -> Iterator[tuple[str, Content]]:
    yield "Capture", code(result.capture)
    yield "Target", code(result.target)
    yield "Started", result.started
    yield "Calls", f"{result.recorded:,} recorded, {result.sent:,} sent"
    redacted = sum(row.redacted for row in result.methods)
    if redacted:
        yield "Redacted", f"{words.counted(redacted, 'field')} not compared: the capture does not have them"
    if result.interrupted:
        yield "Interrupted", "the run was ended early; this is what was seen until then"


def _differences(rows: list[MethodRow]) -> Markup:
    return section("Differences", *(_differences_of(row) for row in rows)) if rows else Markup()


def _differences_of(row: MethodRow) -> Markup:
    of = f" {words.counted(row.different, 'call')} of {row.sent:,} sent"
    heading = element("h3", code(row.method), " ", element("span", f"{row.service},{of}", class_="soft"))
    fields = (
        (
            code(field.path),
            code(field.recorded),
            code(field.replayed),
            number(field.count),
            words.count(field.seq),
        )
        for field in row.fields
    )
    return joined(heading, table("", _FIELDS, fields) if row.fields else _none("No field was noted."))


def _method(row: MethodRow) -> Iterator[Content]:
    yield joined(code(row.method), " ", element("span", row.service, class_="soft"))
    yield row.effect
    yield number(row.recorded)
    yield number(row.sent)
    yield number(row.same, "good")
    yield number(row.masked, "open")
    yield number(row.different, "bad")
    yield number(row.incomplete, "open")
    yield number(_not_sent(row), "open")
    for then, now in ((row.took_then.p50, row.took_now.p50), (row.took_then.p99, row.took_now.p99)):
        yield words.duration(then) if row.took_then.count else ""
        yield words.duration(now) if row.took_now.count else ""


def _not_sent(row: MethodRow) -> int:
    return sum(row.not_sent.values())


def _timing(timing: Timing) -> Iterator[Markup]:
    closed = not timing.mode.startswith("open")
    yield facts(
        (
            ("Mode", f"{timing.mode}: {_NO_LATENCY}" if closed else timing.mode),
            ("Speed", f"{timing.speed:g} x" if not (closed or timing.rate) else ""),
            ("Rate", words.rate(timing.rate) if timing.rate else ""),
            ("Workers", words.count(timing.workers) if timing.workers else ""),
            ("Planned", words.span(timing.planned_seconds) if timing.planned_seconds else ""),
            ("Took", words.span(timing.took_seconds)),
            ("Schedule", "" if closed else _KEPT if timing.kept else element("strong", _NOT_KEPT, class_="bad")),
            ("Sent late", _spread(timing.lateness)),
        )
    )


_NO_LATENCY: Final = "each worker sends the next call when it has its answer, so that no latency is measured"
_KEPT: Final = "kept"
_NOT_KEPT: Final = "not kept: the times of this run say nothing"


def _spread(spread: Spread) -> str:
    if not spread.count:
        return ""
    p50, p99, most = (words.duration(time) for time in (spread.p50, spread.p99, spread.most))
    return f"p50 {p50}, p99 {p99}, at most {most} (of {words.counted(spread.count, 'call')})"


def _what_was_not_sent(result: Result) -> Iterator[Markup]:
    reasons: dict[str, dict[str, int]] = {}
    for row in result.methods:
        for why, calls in row.not_sent.items():
            reasons.setdefault(why, {})[f"{row.service} {row.method}"] = calls
    if not reasons:
        yield _none("Everything that was recorded was sent.")
        return
    ranked = sorted(reasons.items(), key=lambda item: -sum(item[1].values()))
    yield table("", _NOT_SENT, ((why, number(sum(of.values())), words.shares(of)) for why, of in ranked))


def _mask(row: MaskRow) -> tuple[Content, ...]:
    warning = element("strong", row.warning, class_=_MASK_WARNINGS.get(row.warning, "open")) if row.warning else ""
    hits = number(row.hits) if row.compared else ZERO
    return (
        code(row.id), code(row.where), row.kind, row.reason, row.owner, row.expires, hits, number(row.compared), warning
    )  # fmt: skip
