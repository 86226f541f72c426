"""The ladder of stages."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from bridges import cutover
from bridges.calls import Side
from bridges.cutover import (
    LADDER,
    MEANINGS,
    SKIPPABLE,
    STEPS,
    Compared,
    IllegalMove,
    Keeper,
    Requirement,
    Stage,
    Step,
    kill_target,
    legal_stages,
    moves,
    outcome,
    plan,
    unmet,
)

OFF, OBSERVE, RELAY, SHADOW, LIVE, COMPLETE = Stage
ORDER = (OFF, OBSERVE, RELAY, SHADOW, LIVE, COMPLETE)

# What each move becomes, written out: the stages to flip to, or the sentence of the refusal.
# Where it depends on --skip, the first is without a reason and the second with one.
MOVES: dict[tuple[Stage, Stage], tuple[Stage, ...] | str] = {
    (OFF, OFF): "already off; next is observe or relay (with --skip REASON)",
    (OFF, OBSERVE): (OBSERVE,),
    (OFF, SHADOW): "off to shadow is more than one step forward; next is observe, relay (with --skip REASON)",
    (OFF, LIVE): "off to live is more than one step forward; next is observe, relay (with --skip REASON)",
    (OFF, COMPLETE): "off to complete is more than one step forward; next is observe, relay (with --skip REASON)",
    (OBSERVE, OFF): (OFF,),
    (OBSERVE, OBSERVE): "already observe; next is relay or off",
    (OBSERVE, RELAY): (RELAY,),
    (OBSERVE, SHADOW): "observe to shadow is more than one step forward; next is relay",
    (OBSERVE, LIVE): "observe to live is more than one step forward; next is relay",
    (OBSERVE, COMPLETE): "observe to complete is more than one step forward; next is relay",
    (RELAY, OFF): (OFF,),
    (RELAY, OBSERVE): (OBSERVE,),
    (RELAY, RELAY): "already relay; next is shadow or live (with --skip REASON) or observe or off",
    (RELAY, SHADOW): (SHADOW,),
    (RELAY, COMPLETE): "relay to complete is more than one step forward; next is shadow, live (with --skip REASON)",
    (SHADOW, OFF): (OFF,),
    (SHADOW, OBSERVE): (OBSERVE,),
    (SHADOW, RELAY): (RELAY,),
    (SHADOW, SHADOW): "already shadow; next is live or relay or observe or off",
    (SHADOW, LIVE): (LIVE,),
    (SHADOW, COMPLETE): "shadow to complete is more than one step forward; next is live",
    (LIVE, OFF): (RELAY, OFF),
    (LIVE, OBSERVE): (RELAY, OBSERVE),
    (LIVE, RELAY): (RELAY,),
    (LIVE, SHADOW): (SHADOW,),
    (LIVE, LIVE): "already live; next is complete or shadow or relay or observe or off",
    (LIVE, COMPLETE): (COMPLETE,),
    (COMPLETE, OFF): (RELAY, OFF),
    (COMPLETE, OBSERVE): (RELAY, OBSERVE),
    (COMPLETE, RELAY): (RELAY,),
    (COMPLETE, SHADOW): (SHADOW,),
    (COMPLETE, LIVE): (LIVE,),
    (COMPLETE, COMPLETE): "already complete; next is live or shadow or relay or observe or off",
}
SKIPS = {
    (OFF, RELAY): "off to relay skips observe: move to observe, or --skip REASON",
    (RELAY, LIVE): "relay to live skips shadow: move to shadow, or --skip REASON",
}


def moved(current: Stage, wanted: Stage, *, skips: bool) -> tuple[Stage, ...] | str:
    try:
        return moves(current, wanted, skips=skips)
    except IllegalMove as error:
        return str(error)


def test_the_tables_of_this_test_are_complete() -> None:
    """Every pair of stages is judged here by hand."""
    assert set(MOVES) | set(SKIPS) == set(product(ORDER, ORDER))
    assert not set(MOVES) & set(SKIPS)
    assert LADDER == ORDER


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(("pair", "expected"), [*MOVES.items()])
def test_every_move_is_legal_or_names_the_next_one(
    pair: tuple[Stage, Stage], expected: tuple[Stage, ...] | str, skips: bool
) -> None:
    """One step forward, any number back; a reason to skip changes nothing where nothing can be skipped."""
    assert moved(*pair, skips=skips) == expected


@pytest.mark.parametrize(("pair", "refusal"), [*SKIPS.items()])
def test_what_only_compares_is_skipped_for_a_reason(pair: tuple[Stage, Stage], refusal: str) -> None:
    """Without a reason the refusal names both ways on; with one it is a single flip."""
    assert moved(*pair, skips=False) == refusal
    assert moved(*pair, skips=True) == (pair[1],)


@pytest.mark.parametrize("current", ORDER)
def test_what_is_called_legal_is_legal(current: Stage) -> None:
    """The stages that a refusal and the status name are exactly those that a move accepts."""
    named = {name.removesuffix(" (with --skip REASON)"): "skip" in name for name in legal_stages(current)}
    accepted = {wanted: moved(current, wanted, skips=True) for wanted in ORDER}
    assert set(named) == {stage for stage, way in accepted.items() if not isinstance(way, str)}
    for name, needs_skip in named.items():
        assert isinstance(moved(current, Stage(name), skips=False), str) == needs_skip


@pytest.mark.parametrize(("current", "wanted"), [*product(ORDER, ORDER)])
def test_no_flip_moves_the_authority_and_gives_the_sockets_away_at_once(current: Stage, wanted: Stage) -> None:
    """On the way back from the bus the doors stay ours until the legacy daemon answers behind them."""
    way = moved(current, wanted, skips=True)
    if isinstance(way, str):
        return
    assert way[-1] is wanted
    for before, after in pairwise((current, *way)):
        changes = MEANINGS[before].authority is not MEANINGS[after].authority
        assert not changes or (MEANINGS[before].sockets.is_ours and MEANINGS[after].sockets.is_ours)


@pytest.mark.parametrize(
    ("current", "expected"),
    [(OFF, None), (OBSERVE, None), (RELAY, None), (SHADOW, RELAY), (LIVE, RELAY), (COMPLETE, RELAY)],
)
def test_a_kill_ends_where_legacy_rules_and_no_candidate_is_asked(current: Stage, expected: Stage | None) -> None:
    """It is one flip from wherever it is needed, and where it is not it is none."""
    assert kill_target(current) is expected
    if expected is not None:
        assert moves(current, expected) == (expected,)
    end = MEANINGS[expected or current]
    assert end.authority is Side.LEGACY
    assert end.compared is not Compared.READS


@pytest.mark.parametrize("reached", STEPS)
@pytest.mark.parametrize(("origin", "target"), [pair for pair in product(ORDER, ORDER) if pair[0] is not pair[1]])
def test_a_cut_off_flip_is_never_half(origin: Stage, target: Stage, reached: Step) -> None:
    """Before the fence it did not happen, from the fence on it did."""
    undone = (Step.PREPARED, Step.GATED, Step.HELD, Step.DRAINED)
    assert outcome(origin, target, reached) is (origin if reached in undone else target)


def test_the_steps_stand_in_the_order_of_a_flip() -> None:
    """Names that stand in state files and in the audit."""
    assert [str(step) for step in STEPS] == [
        "prepared", "gated", "held", "drained", "fenced", "transferred", "committed", "resumed", "watched",
    ]  # fmt: skip


def test_the_table_has_one_authority_and_its_doors_at_each_stage() -> None:
    """The tree has no middle: it is ours exactly where the bus rules; there the bus name is the daemon's own."""
    for meaning in MEANINGS.values():
        rules = meaning.authority is Side.BUS
        assert meaning.tree.is_ours is rules
        assert (meaning.bus is Keeper.DAEMON) is rules
        if rules:
            assert Keeper.LEGACY not in (meaning.sockets, meaning.tree, meaning.bus)
            assert meaning.compared is Compared.NOTHING
        else:
            assert Keeper.DAEMON not in (meaning.sockets, meaning.tree, meaning.bus)
            assert Keeper.RETIRED not in (meaning.sockets, meaning.tree, meaning.bus)
        assert meaning.sockets.is_ours or meaning.bus is Keeper.CLOSED
    changes = [
        before for before, after in pairwise(LADDER) if MEANINGS[before].authority is not MEANINGS[after].authority
    ]
    assert changes == [SHADOW]


def test_what_may_be_skipped_only_compares() -> None:
    """A stage that can be passed by holds the same doors and the same authority as the stage before it."""
    for stage in SKIPPABLE:
        before, here = MEANINGS[LADDER[LADDER.index(stage) - 1]], MEANINGS[stage]
        assert (before.authority, before.sockets, before.tree, before.bus) == (
            here.authority, here.sockets, here.tree, here.bus,
        )  # fmt: skip
        assert before.compared is not here.compared
    assert {OBSERVE, SHADOW} == SKIPPABLE


@pytest.mark.parametrize(
    ("keeper", "is_ours"),
    [
        (Keeper.LEGACY, False), (Keeper.BRIDGE, True), (Keeper.DAEMON, False), (Keeper.RETIRED, True),
        (Keeper.CLOSED, False),
    ],
)  # fmt: skip
def test_a_retired_door_is_ours_still(keeper: Keeper, is_ours: bool) -> None:
    """Somebody has to tell callers that it is closed."""
    assert keeper.is_ours is is_ours


def test_requirements_hold_from_relay_on() -> None:
    """Each service that stands too low is named, in the order of the settings; one that stands higher will do."""
    requires = (Requirement("squeezed", RELAY), Requirement("networkd", LIVE), Requirement("xapi", OFF))
    low = {"squeezed": OBSERVE, "networkd": SHADOW, "xapi": OFF}
    assert [unmet(target, requires, low) for target in ORDER] == [
        (), (), requires[:2], requires[:2], requires[:2], requires[:2],
    ]  # fmt: skip
    assert unmet(LIVE, requires, {"squeezed": RELAY, "networkd": SHADOW, "xapi": OFF}) == (requires[1],)
    assert unmet(LIVE, requires, {"squeezed": COMPLETE, "networkd": COMPLETE, "xapi": LIVE}) == ()
    assert unmet(LIVE, (), {}) == ()
    assert str(requires[0]) == "squeezed.relay"


PREPARE, GATE = "prepare: is everything there", "gate: what was seen so far"
HOLD, DRAIN = "hold: new calls wait", "drain: calls in flight finish"
COMMIT, RESUME, WATCH = "commit: next epoch, durable", "resume: held calls go on", "watch: its calls are counted"
STOP, TREE_FENCE = "fence: stop the legacy daemon and see its process end", "fence: our pid into the tree"
ASSUME = "transfer: what is kept in the store is counted; Assume; the bus name goes to the candidate"
TAKE_BACK = "fence: take the bus name back; Yield from the bus daemon"
START = "transfer: what is kept in the store is counted; start the legacy daemon"
OPEN_BUS, CLOSE_BUS = "open the bus door", "close the bus door"
TAKE, GIVE = "take the sockets", "give the sockets back"
RETIRE, BIND, LEAVE = "retire the legacy doors", "bind the datagram address", "give the datagram address up"


@pytest.mark.parametrize(
    ("origin", "target", "doors", "expected"),
    [
        (OFF, OBSERVE, "sockets", []),
        (OBSERVE, OFF, "tree", []),
        (OBSERVE, RELAY, "sockets tree", [OPEN_BUS, TAKE]),
        (OFF, RELAY, "tree", [OPEN_BUS]),
        (RELAY, SHADOW, "sockets tree datagrams", []),
        (SHADOW, RELAY, "sockets", []),
        (SHADOW, LIVE, "tree", [HOLD, DRAIN, TREE_FENCE, ASSUME]),
        (RELAY, LIVE, "sockets", [HOLD, DRAIN, STOP, ASSUME]),
        (RELAY, LIVE, "datagrams", [HOLD, DRAIN, STOP, ASSUME, BIND]),
        (LIVE, COMPLETE, "sockets tree", [RETIRE]),
        (COMPLETE, LIVE, "sockets tree", []),
        (LIVE, SHADOW, "sockets", [HOLD, DRAIN, TAKE_BACK, START]),
        (LIVE, RELAY, "tree", [HOLD, DRAIN, TAKE_BACK, f"{START}; it takes the tree by its pid"]),
        (COMPLETE, RELAY, "datagrams", [HOLD, DRAIN, TAKE_BACK, LEAVE, START]),
        (RELAY, OFF, "sockets tree", [HOLD, DRAIN, GIVE, CLOSE_BUS]),
        (SHADOW, OBSERVE, "tree", [HOLD, DRAIN, CLOSE_BUS]),
    ],
)
def test_a_plan_lists_what_a_flip_does_in_order(origin: Stage, target: Stage, doors: str, expected: list[str]) -> None:
    """The steps of that flip and no other, between those that every flip has."""
    steps = plan(origin, target, sockets="sockets" in doors, tree="tree" in doors, datagrams="datagrams" in doors)
    wanted = [PREPARE, GATE, *(each for each in expected if each is not BIND), COMMIT, RESUME, WATCH]
    wanted += [BIND] if BIND in expected else []
    assert len(steps) == len(wanted), steps
    assert all(step.startswith(start) for step, start in zip(steps, wanted, strict=True)), steps
    if "tree" not in doors:
        assert "tree" not in " ".join(steps)


def test_every_flip_has_a_plan_with_its_steps_in_order() -> None:
    """Nothing is fenced that was not held and drained, nothing is handed over that was not fenced."""
    order = ["prepare", "gate", "hold", "drain", "fence", "transfer", "commit", "resume", "watch"]
    for origin, target in product(ORDER, ORDER):
        way = moved(origin, target, skips=True)
        if isinstance(way, str):
            continue
        for before, after in pairwise((origin, *way)):
            words = [step.partition(":")[0] for step in plan(before, after, sockets=True, tree=True, datagrams=True)]
            steps = [word for word in words if word in order]
            assert steps == sorted(steps, key=order.index)
            crosses = MEANINGS[before].authority is not MEANINGS[after].authority
            assert ("fence" in steps) is ("transfer" in steps) is crosses
            assert ("hold" in steps) is ("drain" in steps)
            assert not crosses or "hold" in steps
            assert {"prepare", "gate", "commit", "resume", "watch"} <= set(steps)


def test_an_older_step_or_stage_is_none() -> None:
    """What a state file may hold is closed: a name that is not written down is no step and no stage."""
    for name in ("handed over", "", "split"):
        with pytest.raises(ValueError, match="is not a valid"):
            cutover.Step(name)
        with pytest.raises(ValueError, match="is not a valid"):
            cutover.Stage(name)
