"""The result of a replay and what lint found, as tables for a terminal: what fits there, `--json` has the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bridges.replay import words
from bridges.replay.lint_results import KINDS, Finding, Level, LintReport, Outcome, Traffic, outcome, reasons
from bridges.replay.results import Result, Timing, Verdict

_VERDICTS: Final = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
_OUTCOMES: Final = {Outcome.CLEAN: "green", Outcome.WRONG: "red", Outcome.PART: "yellow", Outcome.EMPTY: "yellow"}
_LEVELS: Final = {Level.WRONG: "red", Level.WARNING: "yellow", Level.NOTE: ""}
_SHOWN: Final = 20  # rows of lint's tables of methods and callers; `--json` and the page have all
_FINDINGS: Final = 10  # of a kind
_WIDE: Final = 22  # characters of a name that stand in one line, also on 80 columns


def table(result: Result) -> list[RenderableType]:
    """The methods, what differed, what was not sent, the masks that say something, the timing; the verdict last."""
    shown: list[RenderableType] = []
    if result.methods:
        shown += [_methods(result), Text()]
    if any(row.fields for row in result.methods):
        shown += [_fields(result), Text()]
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
        for each in (_services(report), _callers(report), _lint_methods(report)):
            shown += [each, Text()]
        shown += [
            _text(f"faults of {row.service} {row.method}: {words.shares(row.faults)}")
            for row in report.methods[:_SHOWN]
            if row.faults
        ]
    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        meaning = KINDS[kind]
        line = Text.assemble((str(meaning.level), _LEVELS[meaning.level]), f"  {kind}: {meaning.text}")
        shown += [line, _findings([finding for finding in report.findings if finding.kind is kind])]
    came = outcome(report)
    shown += _verdict(str(came), _OUTCOMES[came], reasons(report))
    return shown


def _methods(result: Result) -> Table:
    name = _namer(row.service for row in result.methods)
    rows = []
    for row in sorted(result.methods, key=lambda row: (-row.different, -row.incomplete, -row.recorded)):
        counts = row.sent, row.same, row.masked, row.different, row.incomplete, sum(row.not_sent.values())
        then, now = row.took_then, row.took_now
        times = ((then.count, then.p50), (now.count, now.p50))
        cells = [name(row.service, row.method), *map(words.count, counts)]
        cells += [words.duration(time) if count else "" for count, time in times]
        rows.append((cells, "red" if row.different else ""))
    columns = "sent", "same", "masked", "different", "not comparable", "not sent", "p50 then", "p50 now"
    return _grid(("method",), columns, (), rows)


def _fields(result: Result) -> Table:
    name = _namer(row.service for row in result.methods)
    rows = [
        ([name(row.service, row.method), f.path, f.recorded, f.replayed, words.count(f.count), str(f.seq)], "")
        for row in result.methods
        for f in row.fields
    ]
    return _grid(("method", "field", "recorded", "replayed"), ("times", "record"), (), rows)


def _timing(timing: Timing) -> str:
    took = f"{timing.mode}, took {words.span(timing.took_seconds)}"
    if timing.workers:
        took = f"{timing.mode} of {timing.workers}, which measures no latency, took {words.span(timing.took_seconds)}"
    if timing.planned_seconds:
        took += f" of {words.span(timing.planned_seconds)} planned"
    late = timing.lateness
    if late.count:
        took += f", sent late by {words.duration(late.p99)} (p99), {words.duration(late.most)} at most"
    return took if timing.kept else f"{took}: the schedule was not kept"


def _services(report: LintReport) -> Table:
    rows = []
    for row in report.services:
        flow = row.traffic
        counts = words.count(flow.calls), _rate(flow), words.count(flow.busiest_second)
        effects = words.count(row.reads), words.count(row.writes)
        rows.append(([row.service, *counts, *effects, words.shares(row.doors), row.interface], ""))
    numbers = "calls", "rate", "busiest second", "reads", "writes"
    return _grid(("service",), numbers, ("doors", "interface"), rows)


def _rate(flow: Traffic) -> str:
    """Nothing where all calls came in one moment."""
    return words.rate(flow.per_second) if flow.per_second else ""


def _callers(report: LintReport) -> Table:
    rows = [
        ([row.caller, words.count(row.calls), words.count(row.connections), words.shares(row.services)], "")
        for row in report.callers[:_SHOWN]
    ]
    grid = _grid(("caller",), ("calls", "connections"), ("services",), rows)
    _tell_rest(grid, len(report.callers), "caller")
    return grid


def _lint_methods(report: LintReport) -> Table:
    name = _namer(row.service for row in report.methods)
    rows = []
    for row in report.methods[:_SHOWN]:
        told = (words.count(number) for number in (row.carried, row.lossy, row.not_carried, row.untold))
        size = words.size(row.request.p50) if row.request.count else ""
        took = words.duration(row.took.p50) if row.took.count else ""
        flow = words.count(row.traffic.calls), _rate(row.traffic)
        cells = [name(row.service, row.method), *flow, *told, size, took]
        rows.append((cells, "red" if row.lossy or row.not_carried else ""))
    numbers = "calls", "rate", "carried", "with loss", "not carried", "cannot tell", "size", "p50"
    grid = _grid(("method",), numbers, (), rows)
    _tell_rest(grid, len(report.methods), "method")
    return grid


def _findings(findings: list[Finding]) -> Table:
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(justify="right", min_width=9)
    for _ in range(3):
        grid.add_column(overflow="fold")
    for found in findings[:_FINDINGS]:
        where = f"{found.service} {found.method}".strip()
        grid.add_row(*map(_text, (words.count(found.count), where, found.first, found.text)))
    if len(findings) > _FINDINGS:
        grid.add_row("", _text(f"and {words.counted(len(findings) - _FINDINGS, 'more method')}"))
    return grid


def _verdict(word: str, colour: str, sentences: Iterable[str]) -> list[RenderableType]:
    return [_text(word, f"bold {colour}"), *(_text(f"  {sentence}") for sentence in sentences)]


def _namer(services: Iterable[str]) -> Callable[[str, str], str]:
    """How methods are called in a table: the service goes without saying where there is one."""
    only = len(set(services)) == 1
    return lambda service, method: method if only else f"{service} {method}"


def _grid(
    texts: Sequence[str], numbers: Sequence[str], more: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]
) -> Table:
    """A table, each row with its style; a number that is nothing in all rows has no column."""
    labels = (*texts, *numbers, *more)
    last = len(texts) + len(numbers)
    wanted = [
        place
        for place in range(len(labels))
        if not len(texts) <= place < last or any(cells[place] not in ("", "0") for cells, _ in rows)
    ]
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for place in wanted:
        if len(texts) <= place < last:
            label = labels[place].replace(" ", "\n")
            grid.add_column(
                label, justify="right", vertical="top", min_width=max(len(cells[place]) for cells, _ in rows)
            )
        else:
            longest = max((len(cells[place]) for cells, _ in rows), default=0)
            grid.add_column(labels[place], overflow="fold", min_width=min(longest, _WIDE if place == 0 else 0))
    for cells, style in rows:
        grid.add_row(*(_text(cells[place]) for place in wanted), style=style)
    return grid


def _tell_rest(grid: Table, total: int, noun: str) -> None:
    if total > _SHOWN:
        grid.add_row(_text(f"and {words.counted(total - _SHOWN, f'more {noun}')}"))


def _text(text: str, style: str = "") -> Text:
    return Text(words.printable(text), style=style)
