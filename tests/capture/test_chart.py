"""Sequence charts, in words that Mermaid's own parser took."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bridges.capture import chart
from bridges.capture.records import Fault, Flip, Leg, Lost, Record, Reply, Request
from bridges.capture.store import Place


def drawn(found: Iterable[Record], **options: int) -> list[str]:
    lines = list(chart.mermaid(((Place("s", 1), record) for record in found), **options))
    assert lines[0] == "sequenceDiagram"
    return [line.removeprefix("    ") for line in lines[1:]]


def asked(seq: int, call: str, **more: Any) -> Request:
    fields: dict[str, Any] = {"seq": seq, "id": call, "leg": Leg.CALLER, "ts": "1", "mono": "1", "service": "squeezed"}
    return Request(**(fields | {"door": "xenstore", "name": "login", "side": "legacy", "conn": "A3"} | more))


def answered(seq: int, call: str, to: int, **more: Any) -> Reply:
    fields: dict[str, Any] = {"seq": seq, "id": call, "leg": Leg.CALLER, "ts": "1", "mono": "1", "service": "squeezed"}
    return Reply(**(fields | {"door": "xenstore", "re": to, "us": 1234, "outcome": "answered"} | more))


def test_both_legs_of_a_call() -> None:
    assert drawn(
        [
            asked(1, "a", method="login", peer={"command": "xapi", "pid": 7}, door="http"),
            asked(2, "a", leg=Leg.BACKEND, side="bus", method="login"),
            asked(3, "a", leg=Leg.CANDIDATE, method="login"),
            answered(4, "a", 2, leg=Leg.BACKEND),
            answered(5, "a", 1, outcome="fault", fault=Fault("Declared", "Cannot", "text")),
            answered(6, "a", 3, outcome="fault", fault=Fault("Busy")),
        ]
    ) == [
        "participant p1 as xapi (http)",
        "participant p2 as bridge",
        "p1->>p2: squeezed login",
        "participant p3 as squeezed, bus",
        "p2->>p3: squeezed login",
        "participant p4 as squeezed, candidate",
        "p2->>p4: squeezed login",
        "p3-->>p2: answered, 1.234 ms",
        "p2--xp1: Cannot, 1.234 ms",
        "p4--xp2: Busy, 1.234 ms",
    ]


def test_an_observed_call_passes_the_bridge_by() -> None:
    assert drawn([asked(1, "a", leg=Leg.OBSERVED), answered(2, "a", 1, outcome="closed", leg=Leg.OBSERVED)]) == [
        "participant p1 as connection A3 (xenstore)",
        "participant p2 as squeezed, legacy",
        "p1->>p2: squeezed login",
        "p2--xp1: closed, 1.234 ms",
    ]


def test_callers_by_the_best_that_is_known_of_them() -> None:
    known: list[tuple[dict[str, Any], str]] = [
        ({"peer": {"name": ":1.7", "uid": 0}, "door": "bus"}, ":1.7 (bus)"),
        ({"peer": {"pid": 12, "uid": 0}, "door": "framed"}, "pid 12 (framed)"),
        ({"peer": {"address": "10.0.0.1:80"}, "door": "http"}, "10.0.0.1:80 (http)"),
        ({"door": "http", "conn": "77"}, "callers (http)"),
        ({"conn": ""}, "callers (xenstore)"),
    ]
    for fields, name in known:
        assert drawn([asked(1, "a", **fields)])[0] == f"participant p1 as {name}"


def test_flips_and_losses_are_notes() -> None:
    assert drawn(
        [
            Flip(1, "1", "1", "squeezed", "relay", "relay", 3),
            Flip(2, "1", "1", "squeezed", "relay", "live", 4),
            Lost(3, "1", "1", 12, "queue full", "squeezed"),
            Lost(4, "1", "1", 0, "disk"),
        ]
    ) == [
        "participant p1 as bridge",
        "Note over p1: squeezed: capture begins in relay",
        "Note over p1: squeezed: relay to live, epoch 4",
        "Note over p1: squeezed 12 records lost: queue full",
        "Note over p1: records lost: disk",
        "Note over p1: no calls",
    ]


def test_so_many_calls_and_no_more() -> None:
    """The legs and answers of those that are shown still come."""
    found = [asked(number, str(number)) for number in range(1, 6)]
    lines = drawn([*found, asked(9, "5", leg=Leg.BACKEND), answered(10, "5", 5), answered(11, "2", 2)], limit=2)
    assert lines[2:] == [
        "p1->>p2: squeezed login",
        "p1->>p2: squeezed login",
        "p2-->>p1: answered, 1.234 ms",
        "Note over p2: 3 more calls are left out",
    ]


def test_no_text_is_taken_for_the_language() -> None:
    name = 'x;\n  end %% "quoted" #hash <b> -->> ' + "y" * 100
    lines = drawn([asked(1, "a", name=name, peer={"command": name})])
    assert len(lines) == 3
    for line in (lines[0].partition(" as ")[2], lines[2].partition(": ")[2]):
        assert not set(";<>%#") & set(re.sub("#(35|37|59|lt|gt);", "", line))
        assert len(line) < 150
