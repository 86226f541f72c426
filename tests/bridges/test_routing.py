"""Which side a call goes to, and whether a candidate hears of it."""

from __future__ import annotations

import time
from itertools import product

import pytest

from bridges.calls import Door, Side
from bridges.cutover import Keeper, Stage
from bridges.dispatch import arrival
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Effect
from bridges.routing import Verdict, asks_candidate, beside, explain, is_journalled, keeper_of, side_of

# Who holds each door in each stage, and what becomes of a call that reaches us there, written out by hand.
# "-" is a door that is not ours: the call never comes to us.
DOORS = (Door.HTTP, Door.FRAMED, Door.XENSTORE, Door.DATAGRAM, Door.BUS)
HOLDERS = {
    Stage.OFF: "legacy legacy legacy legacy closed",
    Stage.OBSERVE: "legacy legacy legacy legacy closed",
    Stage.RELAY: "bridge bridge legacy legacy bridge",
    Stage.SHADOW: "bridge bridge legacy legacy bridge",
    Stage.LIVE: "bridge bridge bridge bridge daemon",
    Stage.COMPLETE: "retired retired retired retired daemon",
}
ANSWERS = {
    Stage.OFF: "- - - - -",
    Stage.OBSERVE: "- - - - -",
    Stage.RELAY: "legacy legacy - - legacy",
    Stage.SHADOW: "legacy legacy - - legacy",
    Stage.LIVE: "bus bus bus bus -",
    Stage.COMPLETE: "refused refused refused refused -",
}
KEEPERS = {
    "legacy": Keeper.LEGACY,
    "bridge": Keeper.BRIDGE,
    "daemon": Keeper.DAEMON,
    "retired": Keeper.RETIRED,
    "closed": Keeper.CLOSED,
}
PLACES = [
    (stage, door, holder, answer)
    for stage in Stage
    for door, holder, answer in zip(DOORS, HOLDERS[stage].split(), ANSWERS[stage].split(), strict=True)
]
# What changes something but reads like a question, and what reads but sounds like a deed.
WRITES = {
    "squeezed": ("login", "reserve_memory", "balance_memory", "delete_reservation"),
    "xenopsd": ("VM.start", "VM.import_metadata", "Task.cancel", "Task.destroy"),
    "xapi": ("session.login_with_password", "VM.start", "Async.VM.start", "event.register"),
}


def answered(stage: Stage, door: Door) -> str:
    try:
        return str(side_of("squeezed", stage, door))
    except Fault as fault:
        return "refused" if fault.kind is Kind.RETIRED else str(fault.kind)


def test_the_tables_of_this_test_are_complete() -> None:
    """Every door in every stage is judged here by hand."""
    assert {(stage, door) for stage, door, _, _ in PLACES} == set(product(Stage, Door))


@pytest.mark.parametrize(("stage", "door", "holder", "answer"), PLACES)
def test_who_holds_a_door_and_who_answers_there(stage: Stage, door: Door, holder: str, answer: str) -> None:
    """The call at a door of ours goes to the authority; a door that is closed for good refuses."""
    assert keeper_of(stage, door) is KEEPERS[holder]
    assert keeper_of(stage, door).is_ours is (answer != "-")
    if answer != "-":
        assert answered(stage, door) == answer


@pytest.mark.parametrize(("stage", "door", "holder", "answer"), PLACES)
def test_a_call_on_its_way_while_a_door_changes_hands_has_one_authority(
    stage: Stage, door: Door, holder: str, answer: str
) -> None:
    """A call may stand at our door still when it is not ours any more: it goes to whoever rules, never to another."""
    rules = Side.BUS if stage in (Stage.LIVE, Stage.COMPLETE) else Side.LEGACY
    assert answered(stage, door) == ("refused" if holder == "retired" else rules)


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize(("stage", "door", "holder", "answer"), PLACES)
def test_exactly_one_rule_decides_and_says_what_happens(
    stage: Stage, door: Door, holder: str, answer: str, is_held: bool
) -> None:
    """The explanation is what dispatch does; rules before the deciding one passed, those after were not asked."""
    reasons, text = explain("squeezed", stage, door, is_held=is_held)
    assert [reason.rule for reason in reasons] == ["hold", "door", "retired", "stage"]
    (decider,) = [reason for reason in reasons if reason.verdict is Verdict.DECIDES]
    where = reasons.index(decider)
    assert {reason.verdict for reason in reasons[:where]} == {Verdict.PASSES}
    assert {reason.verdict for reason in reasons[where + 1 :]} <= {Verdict.UNREACHED}
    assert all(reason.text for reason in reasons)
    expected = {
        "-": ("door", f"in {stage} the {door} door is not ours"),
        "refused": ("retired", "refused: Retired: the"),
        "legacy": ("stage", "executed by the legacy side"),
        "bus": ("stage", "executed by the bus side"),
    }[answer]
    assert decider.rule == expected[0]
    assert text.startswith(expected[1])
    if answer in ("legacy", "bus"):
        assert text == f"executed by the {side_of('squeezed', stage, door)} side"
    assert ("waits" in reasons[0].text) is (is_held and answer != "-")
    assert ("is being moved" in reasons[0].text) is is_held


def test_a_door_that_is_closed_for_good_names_the_way_to_the_bus() -> None:
    """Whoever still comes there reads where to go."""
    with pytest.raises(Fault, match=r"^the http door of squeezed is closed: call org\.xen\.xcp\.squeezed on the bus$"):
        side_of("squeezed", Stage.COMPLETE, Door.HTTP)


def test_a_door_that_is_not_ours_names_who_answers() -> None:
    """The operator reads who has the call."""
    texts = {holder: explain("squeezed", stage, door, is_held=False)[1] for stage, door, holder, _ in PLACES}
    assert texts["legacy"].endswith("the legacy daemon answers it itself")
    assert texts["daemon"].endswith("the bus daemon answers it itself")
    assert texts["closed"].endswith("nobody is there")


def test_a_candidate_is_asked_reads_in_shadow_only() -> None:
    """Never a write, no long poll, and nothing in a stage that does not compare answers."""
    asked = [
        (stage, effect, deadline)
        for stage, effect, deadline in product(Stage, Effect, (30.0, None))
        if asks_candidate(stage, effect, deadline)
    ]
    assert asked == [(Stage.SHADOW, Effect.READ, 30.0)]


def test_what_may_change_something_is_journalled() -> None:
    """Every write that is not a mere wait."""
    journalled = [pair for pair in product(Effect, (30.0, None)) if is_journalled(*pair)]
    assert journalled == [(Effect.WRITE, 30.0)]


# Takes events out of the session's queue, once it has waited for them: what a drain may end is not journalled.
WRITES_THAT_WAIT = ("event.next",)
SERVICES = [(service, dialect) for service in model.services() for dialect in model.dialects(service)]


@pytest.mark.parametrize(("service", "dialect"), SERVICES)
def test_no_write_of_any_service_is_asked_of_a_candidate_and_every_one_is_journalled(
    service: str, dialect: str
) -> None:
    """All methods that are written down, in every stage: what a candidate hears are reads, what is a write is kept."""
    interface = model.load_dialect(service, dialect)
    methods = interface.methods()
    assert methods
    for method in methods:
        is_write = method.effect is Effect.WRITE
        heard = {stage for stage in Stage if asks_candidate(stage, method.effect, method.deadline)}
        assert heard == (set() if is_write or method.deadline is None else {Stage.SHADOW}), method.name
        is_kept = is_journalled(method.effect, method.deadline)
        assert is_kept is (is_write and method.name not in WRITES_THAT_WAIT), method.name


@pytest.mark.parametrize(("service", "names"), [*WRITES.items()])
def test_what_gives_out_a_handle_or_starts_something_is_a_write(service: str, names: tuple[str, ...]) -> None:
    """squeezed's login gives out a session: asked of a candidate too, it would make one there."""
    interface = model.load(service)
    for name in names:
        method = interface.method(name)
        assert method is not None
        assert method.effect is Effect.WRITE, name
        assert not asks_candidate(Stage.SHADOW, method.effect, method.deadline)


def test_what_is_not_written_down_counts_as_a_write() -> None:
    """It may change something: it is journalled, and no candidate hears of it."""
    before = time.monotonic()
    unknown = arrival(Door.HTTP, None, "no.such_method")
    assert unknown.effect is Effect.WRITE
    assert unknown.deadline is not None
    assert unknown.deadline > before
    assert is_journalled(unknown.effect, unknown.deadline)


def test_what_happens_beside_a_call_is_told_as_it_is_done() -> None:
    """The journal and the candidate, for a read, a write and a long poll; neither decides where the call goes."""
    texts = {}
    for name, (service, method_name) in {
        "read": ("xenopsd", "VM.list"),
        "write": ("squeezed", "login"),
        "poll": ("xenopsd", "UPDATES.get"),
    }.items():
        method = model.load(service).method(method_name)
        assert method is not None
        for stage in (Stage.RELAY, Stage.SHADOW):
            reasons = beside(stage, method)
            assert [reason.rule for reason in reasons] == ["journal", "candidate"]
            assert {reason.verdict for reason in reasons} == {Verdict.PASSES}
            journal, candidate = (reason.text for reason in reasons)
            assert ("recorded before" in journal) is is_journalled(method.effect, method.deadline)
            assert ("is asked too" in candidate) is asks_candidate(stage, method.effect, method.deadline)
            texts[name, stage] = candidate
    assert texts["write", Stage.SHADOW] == "writes never reach a candidate"
    assert texts["read", Stage.RELAY] == "nobody is asked besides in relay"
    assert texts["poll", Stage.SHADOW] == "a long poll is asked once"
