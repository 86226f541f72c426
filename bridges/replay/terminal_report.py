"""The result of a replay and what lint found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bridges.replay import words
from bridges.replay.lint_results import KINDS, Finding, Level, LintReport, Outcome, outcome, reasons
from bridges.replay.results import Result, Timing, Verdict

_VERDICTS: Final = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
_OUTCOMES: Final = {Outcome.CLEAN: "green", Outcome.WRONG: "red", Outcome.EMPTY: "yellow"}
_LEVELS: Final = {Level.WRONG: "red", Level.WARNING: "yellow", Level.NOTE: ""}
_SHOWN: Final = 20  # rows of lint's tables of methods and callers; `--json` and the page have all
_FINDINGS: Final = 10  # of a kind


def table(result: Result) -> list[RenderableType]:
    """The methods, what differed, what was not sent, the masks that say something, the timing; the verdict last."""
    shown: list[RenderableType] = []
    if result.methods:
        shown.append(_methods(result))
    if any(row.fields for row in result.methods):
        shown.append(_fields(result))
    not_sent = {why for row in result.methods for why in row.not_sent}
    for why in sorted(not_sent):
        calls = {f"{row.service} {row.method}": row.not_sent[why] for row in result.methods if why in row.not_sent}
        shown.append(_text(f"not sent, {why}: {words.shares(calls)}"))
    shown += [
        _text(f"mask {mask.id} ({mask.owner}) is {mask.warning}: {mask.hits:,} hits of {mask.compared:,}", "yellow")
        for mask in result.masks
        if mask.warning
    ]
    shown += [_text(f"damage: {text}", "yellow") for text in result.damage]
    shown.append(_text(_timing(result.timing), "" if result.timing.kept else "yellow"))
    shown += _verdict(str(result.verdict), _VERDICTS[result.verdict], result.reasons)
    return shown


def lint_table(report: LintReport) -> list[RenderableType]:
    """The services, callers and methods that call most, what was found; the verdict last."""
    shown: list[RenderableType] = []
    if report.calls:
        shown += [_services(report), _callers(report), _lint_methods(report)]
    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        meaning = KINDS[kind]
        line = Text.assemble((str(meaning.level), _LEVELS[meaning.level]), f"  {kind}: {meaning.text}")
        shown += [line, _findings([finding for finding in report.findings if finding.kind is kind])]
    came = outcome(report)
    shown += _verdict(str(came), _OUTCOMES[came], reasons(report))
    return shown


def _methods(result: Result) -> Table:
    columns = "recorded", "sent", "same", "masked", "different", "not comparable", "not sent", "p50 then", "p50 now"
    grid = _grid(("method",), (*columns, "p99 then", "p99 now"))
    for row in sorted(result.methods, key=lambda row: (-row.different, -row.incomplete, -row.recorded)):
        counts = row.recorded, row.sent, row.same, row.masked, row.different, row.incomplete, sum(row.not_sent.values())
        then, now = row.took_then, row.took_now
        times = ((then.count, then.p50), (now.count, now.p50), (then.count, then.p99), (now.count, now.p99))
        cells = [words.count(number) for number in counts]
        cells += [words.duration(time) if count else "" for count, time in times]
        grid.add_row(*map(_text, (f"{row.service} {row.method}", *cells)), style="red" if row.different else "")
    return grid


def _fields(result: Result) -> Table:
    grid = _grid(("method", "field", "recorded", "replayed"), ("times", "record"))
    for row in result.methods:
        for field in row.fields:
            texts = f"{row.service} {row.method}", field.path, field.recorded, field.replayed
            grid.add_row(*map(_text, (*texts, words.count(field.count), str(field.seq))))
    return grid


def _timing(timing: Timing) -> str:
    took = f"{timing.mode}, took {words.span(timing.took_seconds)}"
    if timing.planned_seconds:
        took += f" of {words.span(timing.planned_seconds)} planned"
    late = timing.lateness
    if late.count:
        took += f", sent late by {words.duration(late.p99)} (p99), {words.duration(late.most)} at most"
    return took if timing.kept else f"{took}: the schedule was not kept"


def _services(report: LintReport) -> Table:
    grid = _grid(("service",), ("calls", "rate", "busiest second", "reads", "writes"), ("doors", "interface"))
    for row in report.services:
        flow = row.traffic
        counts = words.count(flow.calls), words.rate(flow.per_second), words.count(flow.busiest_second)
        effects = words.count(row.reads), words.count(row.writes)
        grid.add_row(*map(_text, (row.service, *counts, *effects, words.shares(row.doors), row.interface)))
    return grid


def _callers(report: LintReport) -> Table:
    grid = _grid(("caller",), ("calls", "connections"), ("services",))
    for row in report.callers[:_SHOWN]:
        cells = row.caller, words.count(row.calls), words.count(row.connections), words.shares(row.services)
        grid.add_row(*map(_text, cells))
    _tell_rest(grid, len(report.callers), "caller")
    return grid


def _lint_methods(report: LintReport) -> Table:
    numbers = "calls", "rate", "carried", "with loss", "not carried", "cannot tell", "request", "reply", "p50", "p99"
    grid = _grid(("method",), numbers, ("faults",))
    for row in report.methods[:_SHOWN]:
        told = (words.count(number) for number in (row.carried, row.lossy, row.not_carried, row.untold))
        sizes = (words.size(spread.p50) if spread.count else "" for spread in (row.request, row.reply))
        times = (words.duration(time) if row.took.count else "" for time in (row.took.p50, row.took.p99))
        flow = words.count(row.traffic.calls), words.rate(row.traffic.per_second)
        cells = (f"{row.service} {row.method}", *flow, *told, *sizes, *times, words.shares(row.faults))
        grid.add_row(*map(_text, cells), style="red" if row.lossy or row.not_carried else "")
    _tell_rest(grid, len(report.methods), "method")
    return grid


def _findings(findings: list[Finding]) -> Table:
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(justify="right", min_width=9)
    for found in findings[:_FINDINGS]:
        where = f"{found.service} {found.method}".strip()
        grid.add_row(*map(_text, (words.count(found.count), where, found.first, found.text)))
    if len(findings) > _FINDINGS:
        grid.add_row("", _text(f"and {words.counted(len(findings) - _FINDINGS, 'more method')}"))
    return grid


def _verdict(word: str, colour: str, sentences: Iterable[str]) -> list[RenderableType]:
    return [_text(word, f"bold {colour}"), *(_text(f"  {sentence}") for sentence in sentences)]


def _grid(texts: Iterable[str], numbers: Iterable[str], more: Iterable[str] = ()) -> Table:
    grid = Table(box=box.SIMPLE, header_style="", pad_edge=False)
    for label in texts:
        grid.add_column(label, overflow="fold")
    for label in numbers:
        grid.add_column(label, justify="right")
    for label in more:
        grid.add_column(label, overflow="fold")
    return grid


def _tell_rest(grid: Table, total: int, noun: str) -> None:
    if total > _SHOWN:
        grid.add_row(_text(f"and {words.counted(total - _SHOWN, f'more {noun}')}"))


def _text(text: str, style: str = "") -> Text:
    return Text(words.printable(text), style=style)
