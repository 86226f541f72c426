"""What speaks for the next stage."""

from __future__ import annotations

from itertools import product

import pytest

from bridges.cutover import LADDER, Stage
from bridges.gates import HOUR, Compared, Evidence, Gate, Verdict, bound, gates, worst

OFF, OBSERVE, RELAY, SHADOW, LIVE, COMPLETE = Stage
PASS, FAIL, NO_DATA = Verdict.PASS, Verdict.FAIL, Verdict.NO_DATA
FORWARD = [
    (OFF, OBSERVE),
    (OFF, RELAY),
    (OBSERVE, RELAY),
    (RELAY, SHADOW),
    (RELAY, LIVE),
    (SHADOW, LIVE),
    (LIVE, COMPLETE),
]

# Everything that can be seen of a service, all of it good.
GOOD = Evidence(
    seen=12,
    complete=10,
    round_trips=Compared(same=1000),
    reads=Compared(same=30),
    unused={"http": 200 * HOUR, "xenstore": 168 * HOUR},
    missing=(),
)
# Everything that can speak against a move.
BAD = Evidence(
    seen=12,
    round_trips=Compared(same=990, different=10, worst="VM.stat result.1.memory_actual"),
    reads=Compared(same=20, different=1, worst="VM.list result"),
    in_doubt=3,
    alarms=("SPLIT_OWNER", "STATE"),
    unused={"http": 2 * HOUR, "xenstore": -1.0},
    missing=("a", "b", "c", "d", "e"),
)


def found(origin: Stage, target: Stage, evidence: Evidence, quiet_hours: float = 168.0) -> dict[str, Verdict]:
    return {gate.gate: gate.verdict for gate in gates(origin, target, evidence, quiet_hours=quiet_hours)}


def one(name: str, origin: Stage, target: Stage, evidence: Evidence, quiet_hours: float = 168.0) -> Gate:
    (gate,) = [each for each in gates(origin, target, evidence, quiet_hours=quiet_hours) if each.gate == name]
    return gate


@pytest.mark.parametrize(
    ("origin", "target", "good", "bad", "nothing"),
    [
        (OFF, OBSERVE, {"candidate": PASS}, {"candidate": FAIL}, {}),
        (OFF, RELAY, {"candidate": PASS}, {"candidate": FAIL}, {}),
        (
            OBSERVE, RELAY,
            {"observed": PASS, "candidate": PASS},
            {"observed": NO_DATA, "candidate": FAIL},
            {"observed": NO_DATA},
        ),
        (
            RELAY, SHADOW,
            {"round trips": PASS, "candidate": PASS},
            {"round trips": FAIL, "candidate": FAIL},
            {"round trips": NO_DATA},
        ),
        (
            RELAY, LIVE,
            {"round trips": PASS, "candidate": PASS},
            {"round trips": FAIL, "candidate": FAIL},
            {"round trips": NO_DATA},
        ),
        (
            SHADOW, LIVE,
            {"round trips": PASS, "reads": PASS, "candidate": PASS},
            {"round trips": FAIL, "reads": FAIL, "candidate": FAIL},
            {"round trips": NO_DATA, "reads": NO_DATA},
        ),
        (
            LIVE, COMPLETE,
            {"candidate": PASS, "http unused": PASS, "xenstore unused": PASS},
            {"candidate": FAIL, "http unused": FAIL, "xenstore unused": NO_DATA},
            {},
        ),
    ],
)  # fmt: skip
def test_the_gates_of_each_move_forward(
    origin: Stage, target: Stage, good: dict[str, Verdict], bad: dict[str, Verdict], nothing: dict[str, Verdict]
) -> None:
    """What the stage that is left was for must have been seen; alarms and calls in doubt bar every move forward."""
    assert found(origin, target, GOOD) == {"alarms": PASS, "in doubt": PASS, **good}
    assert found(origin, target, BAD) == {"alarms": FAIL, "in doubt": FAIL, **bad}
    assert found(origin, target, Evidence()) == {"alarms": PASS, "in doubt": PASS, **nothing}
    assert (origin, target) in FORWARD


def test_every_move_forward_is_in_the_table_above() -> None:
    """A stage that is new to the ladder needs its gates."""
    assert {origin for origin, _ in FORWARD} == set(LADDER[:-1])


@pytest.mark.parametrize(
    ("origin", "target"), [p for p in product(LADDER, LADDER) if LADDER.index(p[1]) <= LADDER.index(p[0])]
)
def test_no_gate_bars_a_way_back(origin: Stage, target: Stage) -> None:
    """Whatever was seen: going back is always possible."""
    assert gates(origin, target, BAD, quiet_hours=168.0) == []


@pytest.mark.parametrize(("origin", "target"), FORWARD)
def test_what_does_not_pass_says_how_to_mend_it(origin: Stage, target: Stage) -> None:
    """A green gate needs no mending, any other names the way."""
    for evidence in (GOOD, BAD, Evidence(unused={"http": -1.0})):
        for gate in gates(origin, target, evidence, quiet_hours=168.0):
            assert bool(gate.mend) is (gate.verdict is not PASS), gate
            assert gate.text


@pytest.mark.parametrize(
    ("compared", "verdict", "text"),
    [
        (Compared(), NO_DATA, "nothing was compared yet"),
        (Compared(same=1), PASS, "0 of 1 differ; too few to say more"),
        (Compared(same=3), PASS, "0 of 3 differ; too few to say more"),
        (Compared(same=4), PASS, "0 of 4 differ; the true rate is below 75%"),
        (Compared(same=3000), PASS, "0 of 3000 differ; the true rate is below 0.1%"),
        (Compared(same=2999, different=1, worst="VM.list result"), FAIL, "1 of 3000 differ, most often VM.list result"),
        (Compared(different=5, worst="login"), FAIL, "5 of 5 differ, most often login"),
    ],
)
def test_comparisons(compared: Compared, verdict: Verdict, text: str) -> None:
    """One difference fails, none of nothing is no data, and how sure one may be is told."""
    for name, evidence in (("round trips", Evidence(round_trips=compared)), ("reads", Evidence(reads=compared))):
        gate = one(name, SHADOW, LIVE, evidence)
        assert (gate.verdict, gate.text) == (verdict, text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "too few to say more"), (1, "too few to say more"), (3, "too few to say more"),
        (4, "the true rate is below 75%"), (300, "the true rate is below 1%"),
        (30_000, "the true rate is below 0.01%"),
    ],
)  # fmt: skip
def test_how_sure_a_number_of_comparisons_makes_one(count: int, text: str) -> None:
    """The rule of three, and nothing claimed where it says nothing."""
    assert bound(count) == text


@pytest.mark.parametrize(
    ("seconds", "quiet_hours", "verdict", "text"),
    [
        (-0.1, 168.0, NO_DATA, "the clock was set back"),
        (-1e9, 0.0, NO_DATA, "the clock was set back"),
        (0.0, 168.0, FAIL, "no call for 0.0 h, 168 h are wanted"),
        (168 * HOUR - 1, 168.0, FAIL, "no call for 168.0 h, 168 h are wanted"),
        (168 * HOUR, 168.0, PASS, "no call for 168.0 h, 168 h are wanted"),
        (1800.0, 0.5, PASS, "no call for 0.5 h, 0.5 h are wanted"),
        (0.0, 0.0, PASS, "no call for 0.0 h, 0 h are wanted"),
    ],
)
def test_doors_that_are_to_be_closed_were_unused(
    seconds: float, quiet_hours: float, verdict: Verdict, text: str
) -> None:
    """Long enough, to the second; a clock that was set back proves nothing in either direction."""
    gate = one("http unused", LIVE, COMPLETE, Evidence(unused={"http": seconds}), quiet_hours)
    assert (gate.verdict, gate.text) == (verdict, text)


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (("VM.start",), "the candidate does not offer VM.start"),
        (("a", "b", "c"), "the candidate does not offer a, b, c"),
        (("a", "b", "c", "d", "e"), "the candidate does not offer a, b, c and 2 more"),
    ],
)
def test_a_candidate_that_lacks_methods(missing: tuple[str, ...], text: str) -> None:
    """The first of them are named; one that lacks nothing passes, one that nobody asked says nothing."""
    gate = one("candidate", RELAY, LIVE, Evidence(missing=missing))
    assert (gate.verdict, gate.text) == (FAIL, text)
    assert one("candidate", RELAY, LIVE, Evidence(missing=())).verdict is PASS
    assert "candidate" not in found(RELAY, LIVE, Evidence(missing=None))


def test_alarms_calls_in_doubt_and_exchanges_are_counted() -> None:
    """An operator reads what it is."""
    assert one("alarms", OFF, RELAY, BAD).text == "SPLIT_OWNER, STATE"
    assert one("in doubt", OFF, RELAY, BAD).text.startswith("3 calls may have been executed")
    assert one("observed", OBSERVE, RELAY, GOOD).text == "10 of 12 exchanges were seen whole"
    assert one("observed", OBSERVE, RELAY, BAD).text == "12 exchanges were seen, none of them whole"


def _gates(*verdicts: Verdict) -> list[Gate]:
    return [Gate("a gate", verdict, "") for verdict in verdicts]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), PASS),
        ((PASS, PASS), PASS),
        ((PASS, NO_DATA), NO_DATA),
        ((NO_DATA, FAIL, PASS), FAIL),
        ((FAIL, NO_DATA), FAIL),
        ((FAIL,), FAIL),
    ],
)
def test_the_worst_verdict_counts(verdicts: tuple[Verdict, ...], expected: Verdict) -> None:
    """Something against a move outweighs that nothing is known; no gates at all bar nothing."""
    assert worst(_gates(*verdicts)) is expected
    assert worst(reversed(_gates(*verdicts))) is expected
