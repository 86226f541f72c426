"""What lint found as one HTML page: for a host without a bridge it is the report to decide by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bridges.capture.records import nanoseconds
from bridges.replay import words
from bridges.replay.lint_results import (
    KINDS,
    CallerRow,
    Finding,
    Kind,
    Level,
    LintReport,
    MethodRow,
    Outcome,
    ServiceRow,
    Traffic,
    outcome,
    reasons,
)
from bridges.replay.pages import (
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

LEVELS: Final = {Level.WRONG: "bad", Level.WARNING: "open", Level.NOTE: "soft"}
LOOKS: Final = {Outcome.CLEAN: "good", Outcome.WRONG: "bad", Outcome.PART: "open", Outcome.EMPTY: "open"}
_FINDINGS: Final = (*texts("finding", "method"), *numbers("times"), *texts("first at", "what"))
_TRAFFIC: Final = numbers("calls", "rate", "busiest second", "busiest minute")
_SERVICES: Final = (
    *texts("service"), *_TRAFFIC, *numbers("methods", "reads", "writes"), *texts("doors", "stages", "interface")
)  # fmt: skip
_CALLERS: Final = (*texts("caller"), *numbers("calls", "connections"), *texts("services"))
_METHODS: Final = (
    *texts("method", "effect"), *_TRAFFIC,
    *numbers("carried", "with loss", "not carried", "cannot tell"), *texts("faults")
)  # fmt: skip
_CONNECTIONS: Final = "connections as far as they were told apart"
_CARRIED: Final = "calls = carried + with loss + not carried + cannot tell"
_SIZES: Final = (
    *texts("method"),
    *numbers("request p50", "request p99", "largest request", "reply p50", "reply p99", "largest reply"),
    *numbers("took p50", "took p99", "longest"),
)


def html(report: LintReport) -> str:
    """The page, whole: what is wrong first, then what is called, by whom and how often."""
    came = outcome(report)
    head = joined(
        element("h1", "What this capture says"),
        verdict_box(LOOKS[came], str(came), reasons(report)),
        facts(_facts(report)),
    )
    return page(
        f"{came}: {report.capture}",
        head,
        section("Findings", table("", _FINDINGS, _findings(report.findings))) if report.findings else Markup(),
        section("Services", table("", _SERVICES, map(_service, report.services))) if report.services else Markup(),
        section("Callers", table(_CONNECTIONS, _CALLERS, map(_caller, report.callers))) if report.callers else Markup(),
        section("Methods", table(_CARRIED, _METHODS, map(_method, report.methods))) if report.methods else Markup(),
        section("Sizes and times", table("", _SIZES, map(_sizes, report.methods))) if report.methods else Markup(),
        section("Damage", bullets(report.damage)) if report.damage else Markup(),
    )


def _facts(report: LintReport) -> Iterator[tuple[str, Content]]:
    yield "Capture", code(report.capture)
    yield "Made from", ", ".join(report.sources)
    yield "Hosts", ", ".join(report.hosts)
    yield "First call", words.moment(nanoseconds(report.began))
    yield "Last call", words.moment(nanoseconds(report.ended))
    yield "Over", words.span(report.seconds) if report.calls else ""
    yield "Calls", f"{report.calls:,} in {words.counted(report.records, 'record')}"


def _findings(findings: list[Finding]) -> Iterator[tuple[Content, ...]]:
    """A row each; what a kind means stands in the first of its rows."""
    told: set[Kind] = set()
    for finding in findings:
        level = element("strong", str(finding.level), class_=LEVELS[finding.level])
        meaning = element("div", KINDS[finding.kind].text, class_="soft") if finding.kind not in told else ""
        told.add(finding.kind)
        where = _named(finding.method, finding.service) if finding.method else finding.service
        what = code(finding.text) if finding.text else ""
        yield joined(level, f" {finding.kind}", meaning), where, number(finding.count), finding.first, what


def _named(method: str, service: str) -> Markup:
    return element("span", code(method), " ", element("span", service, class_="soft"))


def _traffic(traffic: Traffic) -> tuple[Content, ...]:
    rate = words.rate(traffic.per_second) if traffic.per_second else ""
    return number(traffic.calls), rate, number(traffic.busiest_second), number(traffic.busiest_minute)


def _service(row: ServiceRow) -> tuple[Content, ...]:
    interface = f"{row.interface} ({row.dialect})" if row.dialect else row.interface
    effects = number(row.reads), number(row.writes)
    names = words.shares(row.doors), words.shares(row.stages), interface
    return row.service, *_traffic(row.traffic), number(row.methods), *effects, *names


def _caller(row: CallerRow) -> tuple[Content, ...]:
    return row.caller, number(row.calls), number(row.connections), words.shares(row.services)


def _method(row: MethodRow) -> Iterator[Content]:
    yield _named(row.method, row.service)
    yield row.effect
    yield from _traffic(row.traffic)
    yield number(row.carried, "good")
    yield number(row.lossy, "bad")
    yield number(row.not_carried, "bad")
    yield number(row.untold, "open")
    yield words.shares(row.faults)


def _sizes(row: MethodRow) -> Iterator[Content]:
    yield _named(row.method, row.service)
    for spread in (row.request, row.reply):
        yield from (words.size(octets) if spread.count else "" for octets in (spread.p50, spread.p99, spread.most))
    took = row.took
    yield from (words.duration(time) if took.count else "" for time in (took.p50, took.p99, took.most))
