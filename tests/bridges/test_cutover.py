"""The ladder of stages."""

from __future__ import annotations

import pytest

from bridges.calls import Side
from bridges.cutover import LADDER, MEANINGS, STEPS, IllegalMove, Keeper, Stage, Step, moves, outcome, plan

OFF, RELAY, LIVE = Stage.OFF, Stage.RELAY, Stage.LIVE


@pytest.mark.parametrize(
    ("current", "wanted", "expected"),
    [
        (OFF, RELAY, (RELAY,)),
        (RELAY, LIVE, (LIVE,)),
        (LIVE, RELAY, (RELAY,)),
        (LIVE, OFF, (RELAY, OFF)),
        (RELAY, OFF, (OFF,)),
    ],
)
def test_one_step_forward_any_number_back(current: Stage, wanted: Stage, expected: tuple[Stage, ...]) -> None:
    """Every stage on the way back is a flip of its own, and the wanted one comes last."""
    assert moves(current, wanted) == expected


@pytest.mark.parametrize(
    ("current", "wanted", "text"),
    [
        (OFF, LIVE, "next is relay"),
        (OFF, OFF, "already off"),
        (LIVE, LIVE, "already live"),
        (OFF, Stage.SHADOW, "shadow is not available in this version; available: off, relay, live"),
        (Stage.OBSERVE, RELAY, "observe is not available"),
        (LIVE, Stage.COMPLETE, "complete is not available"),
    ],
)
def test_other_moves_say_what_is_legal(current: Stage, wanted: Stage, text: str) -> None:
    """A refused move names the next legal one."""
    with pytest.raises(IllegalMove, match=text):
        moves(current, wanted)


@pytest.mark.parametrize("reached", STEPS)
@pytest.mark.parametrize(("origin", "target"), [(OFF, RELAY), (RELAY, LIVE), (LIVE, RELAY)])
def test_a_cut_off_flip_is_never_half(origin: Stage, target: Stage, reached: Step) -> None:
    """Before the fence it did not happen, from the fence on it did."""
    assert outcome(origin, target, reached) is (
        origin if reached in (Step.PREPARED, Step.HELD, Step.DRAINED) else target
    )


def test_every_stage_has_one_authority_and_the_tree_goes_with_it() -> None:
    """The xenstore tree has no middle: it is ours only where the bus side executes."""
    for meaning in MEANINGS.values():
        assert (meaning.tree is Keeper.BRIDGE) == (meaning.authority is Side.BUS)
        assert (meaning.bus is Keeper.DAEMON) == (meaning.authority is Side.BUS)
    assert LADDER == (OFF, RELAY, LIVE)


@pytest.mark.parametrize(
    ("origin", "target", "sockets", "tree", "expected"),
    [
        (OFF, RELAY, True, True, ["open the bus door", "take the sockets"]),
        (OFF, RELAY, False, True, ["open the bus door"]),
        (RELAY, LIVE, False, True, ["hold", "drain", "fence: our pid into the tree", "hand over: Assume"]),
        (RELAY, LIVE, True, False, ["hold", "drain", "fence: stop the legacy daemon", "hand over: Assume"]),
        (LIVE, RELAY, True, True, ["hold", "drain", "fence: take the bus name back", "hand over: start"]),
        (RELAY, OFF, True, False, ["hold", "drain", "give the sockets back", "close the bus door"]),
    ],
)
def test_plan_lists_what_a_flip_does_in_order(
    origin: Stage, target: Stage, sockets: bool, tree: bool, expected: list[str]
) -> None:
    """A plan has the steps of its flip and ends with commit and resume."""
    steps = plan(origin, target, sockets=sockets, tree=tree)
    *before, commit, resume = steps
    assert len(before) == len(expected)
    assert all(step.startswith(start) for step, start in zip(before, expected, strict=True)), steps
    assert commit.startswith("commit")
    assert resume.startswith("resume")
