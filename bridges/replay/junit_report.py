"""The result of a replay as JUnit XML: a test case per method and what became of its calls, per mask, and the verdict.

What is not a pass is a failure where something differed or a mask has expired, and an error where nothing can be said:
CI systems show both as not passed, and take what is skipped for good. So the case `verdict` is never skipped, and what
was not sent or cannot be compared is: whether it was too much is for the verdict to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET

from bridges.replay import words
from bridges.replay.results import FieldRow, MaskRow, MethodRow, Result, Verdict

SUITE: Final = "replay"
_OUTCOMES: Final = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def junit(result: Result) -> str:
    """The document, with its declaration."""
    suite = ET.Element("testsuite", name=SUITE)
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(result):
        ET.SubElement(properties, "property", name=name, value=words.printable(value))
    suite.append(_verdict(result))
    suite.extend(case for row in result.methods for case in _cases(row))
    suite.extend(_mask(row) for row in result.masks)
    cases = suite.findall("testcase")
    counts = {"tests": len(cases)}
    for outcome, name in _OUTCOMES.items():
        counts[name] = sum(case.find(outcome) is not None for case in cases)
    for name, number in counts.items():
        suite.set(name, str(number))
    suite.set("time", f"{result.timing.took_seconds:.3f}")
    if result.started:
        suite.set("timestamp", words.printable(result.started))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _properties(result: Result) -> Iterator[tuple[str, str]]:
    timing = result.timing
    yield "capture", result.capture
    yield "target", result.target
    yield "recorded", str(result.recorded)
    yield "sent", str(result.sent)
    yield "interrupted", str(result.interrupted).lower()
    yield "timing.mode", timing.mode
    yield "timing.speed", f"{timing.speed:g}"
    yield "timing.rate", f"{timing.rate:g}"
    yield "timing.workers", str(timing.workers)
    yield "timing.planned_seconds", f"{timing.planned_seconds:.3f}"
    yield "timing.kept", str(timing.kept).lower()
    yield "timing.lateness_p50_us", str(timing.lateness.p50)
    yield "timing.lateness_p99_us", str(timing.lateness.p99)
    yield "timing.lateness_most_us", str(timing.lateness.most)


def _verdict(result: Result) -> ET.Element:
    case = _case(SUITE, "verdict")
    first = result.reasons[0] if result.reasons else ""
    outcome = {Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "error"}.get(result.verdict)
    if outcome is not None:
        _add(case, outcome, f"{result.verdict}: {first}", result.reasons, kind=str(result.verdict))
    if result.damage:
        _say(case, result.damage)
    return case


def _cases(row: MethodRow) -> Iterator[ET.Element]:
    """One for each thing that became of the method's calls."""
    if row.same:
        yield _case(_class(row), f"{row.method} same")
    if row.masked:
        yield _case(_class(row), f"{row.method} masked", [f"{words.counted(row.masked, 'call')} differed under a mask"])
    if row.different:
        case = _case(_class(row), f"{row.method} different")
        fields = ", ".join(field.path for field in row.fields) or "no field was noted"
        text = f"{words.counted(row.different, 'call')} of {row.sent:,} sent differed: {fields}"
        _add(case, "failure", text, [_field(field) for field in row.fields], kind="different")
        yield case
    if row.incomplete:
        case = _case(_class(row), f"{row.method} not comparable")
        text = f"{words.counted(row.incomplete, 'call')} sent, whose recorded answer is missing, cut or redacted"
        _add(case, "skipped", text)
        yield case
    for why, calls in row.not_sent.items():
        case = _case(_class(row), f"{row.method} not sent ({why})")
        _add(case, "skipped", f"{words.counted(calls, 'call')} not sent: {why}")
        yield case


def _mask(row: MaskRow) -> ET.Element:
    text = f"{row.hits:,} hits of {row.compared:,}; {row.owner}: {row.reason}; expires {row.expires or 'never'}"
    case = _case("mask", f"{row.id} ({row.where})")
    if row.warning == "expired":
        _add(case, "failure", f"expired on {row.expires}", [text], kind="expired")
    else:
        _say(case, [f"{row.warning}: {text}" if row.warning else text])
    return case


def _class(row: MethodRow) -> str:
    return f"{SUITE}.{row.service}"


def _field(row: FieldRow) -> str:
    times = words.counted(row.count, "time")
    return f"{row.path}: recorded {row.recorded}, replayed {row.replayed} ({times}, first in record {row.seq})"


def _case(class_name: str, name: str, output: list[str] | None = None) -> ET.Element:
    case = ET.Element("testcase", classname=words.printable(class_name), name=words.printable(name))
    if output:
        _say(case, output)
    return case


def _say(case: ET.Element, lines: list[str]) -> None:
    ET.SubElement(case, "system-out").text = _lines(lines)


def _add(case: ET.Element, outcome: str, message: str, lines: list[str] | None = None, kind: str = "") -> None:
    added = ET.SubElement(case, outcome, message=words.printable(message))
    if kind:
        added.set("type", kind)
    if lines:
        added.text = _lines(lines)


def _lines(lines: list[str]) -> str:
    return "\n".join(words.printable(line) for line in lines)
