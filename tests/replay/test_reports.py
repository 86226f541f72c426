"""A result as one HTML page, as JUnit XML and as tables of a terminal; what it shows came from a wire."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from rich.console import Console

from bridges.replay import html_report, junit_report, terminal_report, words
from bridges.replay.results import FieldRow, MaskRow, MethodRow, Result, Spread, Timing, Verdict

EVIL = "<script>alert('x')</script>"
VOID = {"meta"}
# What CI systems read (Jenkins' junit-10.xsd): the children and attributes of each element.
JUNIT: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set()),
    "testsuite": (
        {"properties", "testcase"},
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    ),
    "properties": ({"property"}, set()),
    "property": (set(), {"name", "value"}),
    "testcase": ({"failure", "error", "skipped", "system-out"}, {"name", "classname"}),
    "failure": (set(), {"message", "type"}),
    "error": (set(), {"message", "type"}),
    "skipped": (set(), {"message"}),
    "system-out": (set(), set()),
}


def row(method: str = "VM.stat", **fields: Any) -> MethodRow:
    counts: dict[str, Any] = dict.fromkeys(("recorded", "sent", "same", "masked", "different", "incomplete"), 0)
    counts |= {"not_sent": {}, "redacted": 0, "fields": [], "took_then": Spread(), "took_now": Spread()}
    return MethodRow(service="xenopsd", method=method, effect="read", **(counts | fields))


def result(verdict: Verdict = Verdict.PASS, **fields: Any) -> Result:
    defaults: dict[str, Any] = {
        "reasons": ["3 calls were compared: 3 the same"],
        "capture": "captures/monday",
        "target": "bus org.xen.xcp.xenopsd",
        "started": "2026-11-24T09:00:00Z",
        "recorded": 3,
        "sent": 3,
        "methods": [
            row(recorded=3, sent=3, same=3, took_then=Spread(3, 640, 900, 901), took_now=Spread(3, 1250, 2, 2))
        ],
        "masks": [],
        "timing": Timing("open loop", planned_seconds=60.0, took_seconds=60.2, lateness=Spread(3, 140, 1900, 4100)),
    }
    return Result(verdict=verdict, **(defaults | fields))


FAILED = result(
    Verdict.FAIL,
    reasons=["2 calls differed", "mask free has expired"],
    recorded=40,
    sent=30,
    methods=[
        row("quiet", recorded=100, sent=100, same=100),
        row(
            EVIL,
            recorded=30,
            sent=20,
            same=14,
            masked=1,
            different=2,
            incomplete=3,
            not_sent={"unbound task": 7, "a write": 3},
            fields=[FieldRow("result.memory", 2, "1048576", "\x1b[31m\ud800<b>", 731)],
        ),
    ],
    masks=[
        MaskRow("free", "xenopsd.*:result", "tolerance", "alice", "of the host", "2026-11-01", 4, 40, "expired"),
        MaskRow("old", "xenopsd.*:result", "ignore", "bob", "in a hurry", "2027-01-01", 0, 40, "stale"),
    ],
    damage=["000002.jsonl.zst: a frame does not match its checksum"],
)
EMPTY = result(
    Verdict.INCONCLUSIVE,
    reasons=["no call was sent"],
    recorded=0,
    sent=0,
    methods=[],
    timing=Timing("closed loop", workers=4, kept=False),
    interrupted=True,
)
ALL = [result(), FAILED, EMPTY]


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order. Texts by the element in which they stand."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.cells: dict[str, list[str]] = {}
        self._label = ""
        assert text.startswith("<!DOCTYPE html>\n<html lang=")
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self._label = dict(attrs)["data-label"] or ""
            self.cells.setdefault(self._label, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))
            if "td" in self.open:
                self.cells[self._label][-1] += data

    def of(self, tag: str) -> list[str]:
        return [text for found, text in self.texts if found == tag]


@pytest.mark.parametrize("shown", ALL, ids=lambda shown: shown.verdict)
def test_a_page_is_whole_and_needs_nothing_else(shown: Result) -> None:
    """Well formed, UTF-8, nothing is fetched, nothing runs, and the policy allows this one style sheet only."""
    text = html_report.html(shown)
    text.encode()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "form", "base"})
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {"lang", "charset", "http-equiv", "content", "name", "class", "scope", "data-label"}
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    [style] = page.of("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    assert "url(" not in style
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize(
    ("shown", "word", "look"),
    [(ALL[0], "✓ PASS", "good"), (ALL[1], "✗ FAIL", "bad"), (ALL[2], "? INCONCLUSIVE", "open")],
    ids=["pass", "fail", "inconclusive"],
)
def test_the_verdict_stands_first_in_a_word(shown: Result, word: str, look: str) -> None:
    """Before any table, with all of its reasons; the colour only repeats it."""
    page = Page(html_report.html(shown))
    assert word in page.of("p")
    assert [text for text in page.of("li") if text in shown.reasons] == shown.reasons
    tags = [tag for tag, attributes in page.tags if tag == "table" or attributes.get("class") == f"verdict {look}"]
    assert tags[0] == "div"


def test_a_page_shows_what_differed_and_what_was_left_out() -> None:
    """Fields with both values and the record, masks with what is wrong with them, what was not sent and why."""
    page = Page(html_report.html(FAILED))
    assert page.cells["recorded"][:1] == ["1048576"]
    assert page.cells["replayed"] == [r"\x1b[31m\ud800<b>"]
    assert page.cells["first in record"] == ["731"]
    assert page.cells["not sent"] == ["10", "0"]  # the method that differed comes first
    assert page.cells["calls"] == ["7", "3"]
    assert page.cells["warning"] == ["expired", "stale"]
    assert page.cells["owner"] == ["alice", "bob"]
    assert "000002.jsonl.zst: a frame does not match its checksum" in page.of("li")
    assert EVIL in page.of("code")
    assert "p50 140 us, p99 1.90 ms, at most 4.10 ms (of 3 calls)" in page.of("dd")


def test_a_closed_loop_claims_no_latency_and_an_interrupted_run_says_so() -> None:
    """Nor does it show a schedule."""
    page = Page(html_report.html(EMPTY))
    assert any(text.startswith("closed loop: ") and "no latency is measured" in text for text in page.of("dd"))
    assert "Schedule" not in page.of("dt")
    assert "Interrupted" in page.of("dt")


def test_a_schedule_that_was_not_kept_is_told() -> None:
    """In words."""
    shown = result(Verdict.INCONCLUSIVE, timing=Timing("open loop", kept=False))
    assert "not kept: the times of this run say nothing" in Page(html_report.html(shown)).of("strong")


@pytest.mark.parametrize("place", ["reasons", "capture", "target", "started", "damage"])
def test_every_text_is_escaped(place: str) -> None:
    """Whatever it is and wherever it stands: the page has no element and no attribute of its making."""
    evil = f'"{EVIL}\x00'
    shown = msgspec.structs.replace(FAILED, **{place: [evil] if place in ("reasons", "damage") else evil})
    page = Page(html_report.html(shown))
    assert "script" not in {tag for tag, _ in page.tags}
    assert any(rf'"{EVIL}\x00' in text for _, text in page.texts)
    _check_junit(junit_report.junit(shown))


# --- JUnit -----------------------------------------------------------------------------------------------------------


def _check_junit(text: str) -> ET.Element:
    """Parses it, holds it against the schema, and gives the suite."""
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>')
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        children, attributes = JUNIT[element.tag]
        assert {child.tag for child in element} <= children
        assert element.attrib.keys() <= attributes
    [suite] = root
    cases = suite.findall("testcase")
    names = [(case.get("classname"), case.get("name")) for case in cases]
    assert len(set(names)) == len(names)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suite.get(attribute) == str(sum(case.find(tag) is not None for case in cases))
    assert suite.get("tests") == str(len(cases))
    return suite


def _outcomes(suite: ET.Element) -> dict[str, str]:
    said = {}
    for case in suite.findall("testcase"):
        outcome = next((child for child in case if child.tag != "system-out"), None)
        said[case.get("name", "")] = "passed" if outcome is None else f"{outcome.tag}: {outcome.get('message')}"
    return said


def test_a_pass_has_a_case_per_method() -> None:
    """And the verdict as one, with properties about the run."""
    suite = _check_junit(junit_report.junit(result()))
    assert _outcomes(suite) == {"verdict": "passed", "VM.stat same": "passed"}
    properties = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert properties["capture"] == "captures/monday"
    assert properties["target"] == "bus org.xen.xcp.xenopsd"
    assert properties["timing.lateness_p99_us"] == "1900"


def test_a_failure_names_the_fields() -> None:
    """One case for each thing that became of a method's calls; an expired mask fails, a stale one says so."""
    suite = _check_junit(junit_report.junit(FAILED))
    assert _outcomes(suite) == {
        "verdict": "failure: FAIL: 2 calls differed",
        "quiet same": "passed",
        f"{EVIL} same": "passed",
        f"{EVIL} masked": "passed",
        f"{EVIL} different": "failure: 2 calls of 20 sent differed: result.memory",
        f"{EVIL} not comparable": "skipped: 3 calls sent, whose recorded answer is missing, cut or redacted",
        f"{EVIL} not sent (unbound task)": "skipped: 7 calls not sent: unbound task",
        f"{EVIL} not sent (a write)": "skipped: 3 calls not sent: a write",
        "free (xenopsd.*:result)": "failure: expired on 2026-11-01",
        "old (xenopsd.*:result)": "passed",
    }
    texts = [failure.text or "" for failure in suite.iter("failure")]
    assert r"result.memory: recorded 1048576, replayed \x1b[31m\ud800<b> (2 times, first in record 731)" in texts
    assert any((out.text or "").startswith("stale: 0 hits of 40") for out in suite.iter("system-out"))


def test_inconclusive_is_not_passed() -> None:
    """An error: CI systems take what is skipped for good."""
    suite = _check_junit(junit_report.junit(EMPTY))
    assert _outcomes(suite) == {"verdict": "error: INCONCLUSIVE: no call was sent"}
    assert suite.get("errors") == "1"


# --- terminal --------------------------------------------------------------------------------------------------------


def _printed(shown: Result) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(*terminal_report.table(shown), sep="\n")
    return captured.get()


def test_a_terminal_shows_the_same_and_the_verdict_last() -> None:
    """No control sequence of the wire reaches it, and no markup."""
    text = _printed(FAILED)
    assert "\x1b[31m" not in text
    assert r"\x1b[31m\ud800<b>" in text
    assert re.search(r"<script>alert\('x'\)</script> +20 +14 +1 +2 +3 +10", text)
    assert "not sent, unbound task: xenopsd <script>alert('x')</script> 7" in text
    assert "mask free (alice) is expired: 4 hits of 40" in text
    assert text.rstrip().endswith("FAIL\n  2 calls differed\n  mask free has expired")
    assert "[bold]" in _printed(result(reasons=["[bold]"]))


@pytest.mark.parametrize("shown", ALL, ids=lambda shown: shown.verdict)
def test_every_result_can_be_printed(shown: Result) -> None:
    """Also an empty one."""
    assert str(shown.verdict) in _printed(shown)


# --- words -----------------------------------------------------------------------------------------------------------


def test_numbers_as_people_read_them() -> None:
    """Each in its largest unit."""
    assert [words.duration(us) for us in (0, 999, 1250, 148_000, 2_410_000)] == [
        "0 us", "999 us", "1.25 ms", "148 ms", "2.41 s"
    ]  # fmt: skip
    assert [words.span(seconds) for seconds in (12.44, 303, 9600, 273_600)] == [
        "12.4 s", "5 min 3 s", "2 h 40 min", "3 d 4 h"
    ]  # fmt: skip
    assert [words.size(octets) for octets in (512, 4300, 1_363_149)] == ["512 B", "4.2 KiB", "1.3 MiB"]
    assert [words.rate(each) for each in (0, 1204.25, 0.5, 0.001)] == ["0.0/s", "1,204.2/s", "30.0/min", "3.6/h"]
    assert words.moment(1_764_000_000 * 10**9) == "2025-11-24 16:00:00 UTC"
    assert words.moment(10**30) == f"{10**30} ns"
    assert words.printable("a\tb é\u202e") == r"a\tb é\u202e"
