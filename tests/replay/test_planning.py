"""With what handles a recorded call is sent, after which others, and when."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import handles
from bridges.calls import Tagged, Value
from bridges.capture.records import Complete
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.replay.bindings import Bindings, Unbound
from bridges.replay.pairs import Exchange
from bridges.replay.planning import Order, Schedule, is_late
from bridges.replay.results import Spread
from tests.replay.exchanged import exchange, method

U1, U2, U3, U4 = (f"{n}{n}{n}{n}{n}{n}{n}{n}-1111-2222-3333-444455556666" for n in range(1, 5))
R1, R2, R3, R4 = (handles.REFERENCE + uuid for uuid in (U1, U2, U3, U4))
TOKEN = "OpaqueRef:5ec3e700-1111-2222-3333-444455556666"


def changed(given: Exchange, **fields: Any) -> Exchange:
    return given._replace(request=msgspec.structs.replace(given.request, **fields))


class Run:
    """A replay without a target."""

    def __init__(self, **bound: str) -> None:
        self.bindings = Bindings(bound)

    def sent(self, call: Exchange) -> dict[str, Value]:
        request = call.request
        return self.bindings.arguments(call, method(request.service, request.method), model.load(request.service))

    def answered(self, call: Exchange, result: Value) -> Any:
        """What the answer is compared as."""
        called, service = method(call.request.service, call.request.method), model.load(call.request.service)
        if not isinstance(result, Fault):
            self.bindings.learn(call, called, service, result)
        return self.bindings.back(call, called, service, result)


def reserve(reservation: str, session: str = "xenopsd", **more: Any) -> Exchange:
    arguments: dict[str, Value] = {"debug_info": "d", "session_id": session, "kib": 4}
    return exchange("squeezed", "reserve_memory", arguments, reservation, **more)


def delete(reservation: str, **more: Any) -> Exchange:
    arguments: dict[str, Value] = {"debug_info": "d", "session_id": "xenopsd", "reservation_id": reservation}
    return exchange("squeezed", "delete_reservation", arguments, None, **more)


def vm(name: str, session: str = R1, **more: Value) -> dict[str, Value]:
    return {"session_id": session, **more}


def login(session: str) -> Exchange:
    arguments: dict[str, Value] = {"uname": "root", "pwd": "(secret)", "version": "1", "originator": "t"}
    return exchange("xapi", "session.login_with_password", arguments, session)


# --- handles ---------------------------------------------------------------------------------------------------------


def test_every_declared_place_is_found() -> None:
    """In all interfaces, handles of all kinds, not only of those that one process alone knows."""
    for stem in model.available():
        service = model.load(stem)
        for each in service.methods():
            for place in each.consumes:
                assert handles.to_arguments(each, place)
            for place in each.produces:
                assert handles.to_result(each, place)


def test_a_handle_stands_for_the_recorded_one() -> None:
    """From the answer on that gave it; for comparing it is the recorded one again, in faults too."""
    run = Run()
    assert run.answered(reserve(U1), U2) == U1
    assert run.sent(delete(U1))["reservation_id"] == U2
    lost = run.answered(delete(U1), Fault(Kind.DECLARED, "t", code="Unknown_reservation", argument=U2))
    assert lost.argument == U1
    assert run.answered(delete(U1), Fault(Kind.DECLARED, "t", code="Unknown_reservation", argument=U3)).argument == U3


def test_a_handle_that_nobody_gave_is_unbound() -> None:
    """The text says what is missing; a write's new handle counts, one that came twice is a difference."""
    run = Run()
    with pytest.raises(Unbound) as caught:
        run.sent(delete(U1))
    assert caught.value.why == "unbound reservation"
    assert str(caught.value) == (f"reservation_id: no replayed answer gave the reservation {U1}; bind it with --bind")
    run.answered(reserve(U1), U3)
    assert run.answered(reserve(U2), U3) == U1
    assert run.sent(delete(U2))["reservation_id"] == U3
    run.answered(reserve(U1), U4)
    assert run.sent(delete(U1))["reservation_id"] == U4


def test_a_name_that_a_caller_chose_is_no_handle() -> None:
    """squeezed's session passes, unless a login gave another one; storage's datapath as well."""
    run = Run()
    assert run.sent(reserve(U1))["session_id"] == "xenopsd"
    run.answered(exchange("squeezed", "login", {"debug_info": "d", "service_name": "xenopsd"}, "xenopsd"), "s-1")
    assert run.sent(reserve(U1))["session_id"] == "s-1"
    assert run.sent(reserve(U1, "xapi"))["session_id"] == "xapi"
    destroy = exchange("storage", "DP.destroy", {"dbg": "d", "dp": "vbd/3/xvda", "allow_leak": False}, None)
    assert run.sent(destroy)["dp"] == "vbd/3/xvda"


def test_what_was_bound_by_hand() -> None:
    """A handle, a parameter of a method whatever its type, and what does not fit."""
    run = Run(**{U1: U2, "reserve_memory.kib": "9", "reserve_memory_range.min": "x"})
    assert run.sent(delete(U1))["reservation_id"] == U2
    assert run.sent(reserve(U3))["kib"] == 9
    assert run.answered(exchange("squeezed", "query_reservation_of_domain", {}, U1), U2) == U1
    assert run.answered(exchange("squeezed", "query_reservation_of_domain", {}, U1), U3) == U3
    with pytest.raises(Unbound, match=r"reserve_memory_range\.min does not fit"):
        run.sent(exchange("squeezed", "reserve_memory_range", {"debug_info": "", "session_id": "x"}, (U1, 1)))
    lists = Run(**{"VM.set_tags.value": '["a"]', R1: R2})
    assert lists.sent(exchange("xapi", "VM.set_tags", {"session_id": R1, "self": R1}, None))["value"] == ["a"]


@pytest.mark.parametrize("count", [2, 3])
def test_tasks_and_cursors(count: int) -> None:
    """Numbers of one process; a cursor is a position: another one is no difference, and an absent one no handle."""
    run = Run()
    start = exchange("xenopsd", "VM.pause", {"debug_info": "d", "id": "v"}, "17")
    assert run.answered(start, "3") == "17"
    stat = exchange("xenopsd", "Task.cancel", {"debug_info": "d", "id": "17"}, None)
    assert run.sent(stat)["id"] == "3"
    with pytest.raises(Unbound, match="the task 18"):
        run.sent(exchange("xenopsd", "Task.cancel", {"debug_info": "d", "id": "18"}, None))
    first = exchange("xenopsd", "UPDATES.get", {"debug_info": "d", "timeout": 1}, ([], [Tagged("Task", "17")], 42))
    assert "last_id" not in run.sent(first)
    for replayed in range(count):
        answer = ([], [Tagged("Task", "3"), Tagged("Task", "9")], replayed)
        assert run.answered(first, answer) == ([], [Tagged("Task", "17"), Tagged("Task", "9")], 42)
    after = exchange("xenopsd", "UPDATES.get", {"debug_info": "d", "last_id": 42, "timeout": 1}, ([], [], 42))
    assert run.sent(after)["last_id"] == count - 1
    assert Run(**{"42": "7"}).sent(after)["last_id"] == 7


def test_a_read_that_names_another_object_is_a_difference() -> None:
    """The first answer counts: what is known is not replaced by what a read gives."""
    run = Run(**{R1: R1})
    create = exchange("xapi", "task.create", vm("t", label="l", description=""), R2)
    assert run.answered(create, R3) == R2
    by_uuid = exchange("xapi", "task.get_by_uuid", vm("t", uuid="u"), R2)
    assert run.answered(by_uuid, R4) == R4
    assert run.answered(by_uuid, R3) == R2
    assert run.sent(exchange("xapi", "task.destroy", vm("t", self=R2), None))["self"] == R3


def test_lists_and_maps_of_handles() -> None:
    """What both have stands for itself, the others in their order, if there are equally many."""
    run = Run(**{R1: R1})
    listed = exchange("xapi", "VM.get_all", {"session_id": R1}, [R2, R3])
    assert run.answered(listed, [R3, R4]) == [R3, R2]
    assert run.sent(exchange("xapi", "VM.get_uuid", {"session_id": R1, "self": R2}, ""))["self"] == R4
    other = Run(**{R1: R1})
    assert other.answered(listed, [R4]) == [R4]
    with pytest.raises(Unbound, match="VM"):
        other.sent(exchange("xapi", "VM.get_uuid", {"session_id": R1, "self": R2}, ""))
    records = exchange("xapi", "task.get_all_records", {"session_id": R1}, {R2: {"uuid": "u"}})
    assert Run().answered(records, {R3: {"uuid": "u"}}) == {R2: {"uuid": "u"}}


def test_references_in_records_and_arguments() -> None:
    """They are handles wherever they stand; nothing is none."""
    run = Run(**{R1: R1})
    record = exchange("xapi", "VBD.get_record", vm("v", self=R1), {"VM": R2, "VDI": "OpaqueRef:NULL", "uuid": "u"})
    run.answered(record, {"VM": R3, "VDI": "OpaqueRef:NULL", "uuid": "u"})
    create = exchange("xapi", "VBD.create", vm("v", args={"VM": R2, "VDI": "OpaqueRef:NULL"}), R4)
    assert run.sent(create)["args"] == {"VM": R3, "VDI": "OpaqueRef:NULL"}
    strange = exchange("xapi", "VBD.create", vm("v", args={"VM": R4}), R4)
    with pytest.raises(Unbound, match=r"args: .* OpaqueRef:44444444\.\.\.;"):
        run.sent(strange)


# --- redaction -------------------------------------------------------------------------------------------------------


def test_sessions_that_were_redacted_are_bound_by_their_token() -> None:
    """The token has the place of the session in the capture; a text may show it."""
    run = Run(**{"session.login_with_password.pwd": "p"})
    signed = changed(login(TOKEN), redacted=["arguments.pwd"])
    assert run.sent(signed)["pwd"] == "p"
    assert run.answered(signed, R2) == TOKEN
    read = changed(exchange("xapi", "VM.get_all", {"session_id": TOKEN}, []), redacted=["arguments.session_id"])
    assert run.sent(read) == {"session_id": R2}
    with pytest.raises(Unbound, match=f"session_id: no replayed answer gave the session {TOKEN}") as caught:
        Run().sent(read)
    assert caught.value.why == "unbound session"


def test_a_redacted_handle_is_bound_as_any_other() -> None:
    """Its token is the same wherever it stands."""
    run, token = Run(), TOKEN.removeprefix(handles.REFERENCE)
    assert run.answered(reserve(token), U1) == token
    assert run.sent(changed(delete(token), redacted=["arguments.reservation_id"]))["reservation_id"] == U1


@pytest.mark.parametrize(
    ("bound", "sent"),
    [({}, None), ({"(secret)": "p"}, "p"), ({"session.login_with_password.pwd": "q"}, "q"), ({"pwd": "p"}, None)],
)
def test_a_redacted_argument_must_be_bound(bound: dict[str, str], sent: str | None) -> None:
    """By what stands there, or by its name."""
    signed, run = changed(login(TOKEN), redacted=["arguments.pwd"]), Run(**bound)
    if sent is None:
        with pytest.raises(Unbound, match="pwd was redacted") as caught:
            run.sent(signed)
        assert caught.value.why == "redacted pwd"
    else:
        assert run.sent(signed)["pwd"] == sent


def test_a_member_that_was_redacted() -> None:
    """All of what was redacted in an argument must be known; what is not a text was kept."""
    config = {"password": "(secret)", "user": "(undeclared)", "path": "p"}
    plug = exchange("xapi", "PBD.set_device_config", vm("p", self=R1, value=config), None)
    plug = changed(plug, redacted=["arguments.value{*}"])
    for bound in ({}, {"(secret)": "p"}):
        with pytest.raises(Unbound, match="value was redacted"):
            Run(**{R1: R1}, **bound).sent(plug)
    run = Run(**{R1: R1, "(secret)": "p", "(undeclared)": "u"})
    assert run.sent(plug)["value"] == {"password": "p", "user": "u", "path": "p"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"arguments": None, "note": "was gone"}, "its arguments were not recorded: was gone"),
        ({"complete": Complete.CUT}, "not recorded: cut"),
        ({"arguments": {"kib": "x"}}, r"do not fit the interface: kib"),
        ({"arguments": {"strange": 1}}, r"do not fit the interface: strange"),
    ],
)
def test_arguments_that_cannot_be_sent(fields: dict[str, Any], why: str) -> None:
    """Say why."""
    with pytest.raises(Unbound, match=why):
        Run().sent(changed(reserve(U1), **fields))


def test_what_is_not_used_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handles used last are kept, however many there were."""
    monkeypatch.setattr("bridges.replay.bindings.KEPT", 2)
    run = Run()
    for uuid in (U1, U2):
        run.answered(reserve(uuid), uuid)
    run.sent(delete(U1))
    run.answered(reserve(U3), U3)
    assert run.sent(delete(U1))
    with pytest.raises(Unbound):
        run.sent(delete(U2))


@settings(max_examples=50, deadline=None)
@given(st.permutations([R1, R2, R3, R4]), st.permutations([R1, R2, R3, R4]))
def test_handles_compare_equal_when_they_correspond(recorded: list[str], order: list[str]) -> None:
    """A daemon that gives other handles for the same objects differs in none of them."""
    stands = {one: handles.REFERENCE + other.removeprefix(handles.REFERENCE)[::-1].replace("-", "", 4) for one, other in
              zip(recorded, order, strict=True)}  # fmt: skip
    uuids = {
        one: f"{text[10:18]}-{text[18:22]}-{text[22:26]}-{text[26:30]}-{text[30:42]}" for one, text in stands.items()
    }
    fresh = {one: handles.REFERENCE + uuid for one, uuid in uuids.items()}
    run = Run(**{"OpaqueRef:s": "OpaqueRef:s"})
    for one in recorded:
        made = exchange("xapi", "task.create", vm("t", label="l", description=""), one)
        assert run.answered(made, fresh[one]) == one
    listed = exchange("xapi", "task.get_all", {"session_id": R1}, recorded)
    assert run.answered(listed, [fresh[one] for one in recorded]) == recorded
    assert run.answered(listed, [fresh[one] for one in recorded[1:]]) == recorded[1:]


# --- order -----------------------------------------------------------------------------------------------------------


class Waiting:
    """Orders by name."""

    def __init__(self) -> None:
        self.order = Order()
        self._names: dict[int, str] = {}

    def add(self, name: str, call: Exchange) -> set[str]:
        self._names[call.request.seq] = name
        called, service = method(call.request.service, call.request.method), model.load(call.request.service)
        return {self._names[seq] for seq in self.order.waits(call, called, service)}

    def over(self, name: str) -> None:
        self.order.over(next(seq for seq, known in self._names.items() if known == name))

    @property
    def kept(self) -> int:
        return len(self.order._keys) + len(self.order._open)


def read(at: float, us: int = 1000, conn: str = "") -> Exchange:
    return exchange("squeezed", "get_diagnostics", {"debug_info": ""}, "", at=at, us=us, conn=conn)


def test_calls_of_a_connection_keep_their_order() -> None:
    """Each waits for the one before; other connections do not, nor does a call without one."""
    waiting = Waiting()
    assert waiting.add("a", read(0, conn="1")) == set()
    assert waiting.add("b", read(1, conn="1")) == {"a"}
    assert waiting.add("c", read(2, conn="1")) == {"b"}
    assert waiting.add("other", read(3, conn="2")) == set()
    assert waiting.add("none", read(3)) == set()
    assert waiting.add("none too", read(4)) == set()
    for name in ("a", "b"):
        waiting.over(name)
    assert waiting.add("d", read(5, conn="1")) == {"c"}
    for name in ("c", "d", "other", "none", "none too"):
        waiting.over(name)
    assert waiting.kept == 0


def test_what_overlapped_may_overlap_again() -> None:
    """A long poll holds up nobody; who came after it waits for it."""
    waiting = Waiting()
    waiting.add("poll", read(0, us=30_000_000, conn="1"))
    assert waiting.add("a", read(1, conn="1")) == set()
    assert waiting.add("b", read(2, conn="1")) == {"a"}
    assert waiting.add("c", read(31, conn="1")) == {"poll", "b"}
    assert waiting.add("d", read(32, conn="1")) == {"c"}


def test_a_call_waits_for_the_producer_of_its_handle_and_for_those_before_it() -> None:
    """On whatever connection; also where the clocks say that the producer was not over yet."""
    waiting = Waiting()
    assert waiting.add("reserve", reserve(U1, conn="1", at=0, us=5_000_000, session="a")) == set()
    assert waiting.add("delete", delete(U1, conn="2", at=1)) == {"reserve"}
    assert waiting.add("another", reserve(U2, conn="3", at=2, session="b")) == set()
    assert waiting.add("again", delete(U1, conn="4", at=3)) == {"reserve", "delete"}
    for name in ("reserve", "delete", "again", "another"):
        waiting.over(name)
    assert waiting.add("late", delete(U1, conn="5", at=6)) == set()
    waiting.over("late")
    assert waiting.kept == 0


def test_a_read_that_gives_a_handle_is_no_step_in_its_order() -> None:
    """It has not waited for the calls about that handle, so that who comes after it must."""
    waiting = Waiting()
    waiting.add("cancel", exchange("xenopsd", "Task.cancel", {"debug_info": "", "id": "7"}, None, at=0))
    events = ([], [Tagged("Task", "7")], 1)
    updates = exchange("xenopsd", "UPDATES.get", {"debug_info": ""}, events, at=1)
    assert waiting.add("updates", updates) == set()
    destroy = exchange("xenopsd", "Task.destroy", {"debug_info": "", "id": "7"}, None, at=2)
    assert waiting.add("destroy", destroy) == {"cancel", "updates"}


def test_references_in_records_are_waited_for() -> None:
    """A device is made when its machine is there."""
    waiting = Waiting()
    waiting.add("vm", exchange("xapi", "VM.clone", vm("v", session=R1, vm=R2, new_name="n"), R3, at=0, conn="1"))
    device = exchange("xapi", "VBD.create", vm("v", session=R4, args={"VM": R3}), R4, at=1, conn="2")
    assert waiting.add("vbd", device) == {"vm"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.integers(0, 2)), max_size=25), st.data())
def test_order_is_kept_through_those_that_are_waited_for(
    calls: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """However few are named: a call can only be sent once all those on its connection are over that were over then."""
    order = Order()
    service, called = model.load("squeezed"), method("squeezed", "get_diagnostics")
    made = [(at, at + took, str(conn), read(at, us=took * 10**6, conn=str(conn))) for at, took, conn in sorted(calls)]
    waits: dict[int, set[int]] = {}
    over: set[int] = set()
    for number, (began, _, conn, call) in enumerate(made):
        seq = call.request.seq
        waits[seq] = set(order.waits(call, called, service))
        reached: set[int] = set()
        todo = set(waits[seq])
        while todo:
            each = todo.pop()
            reached.add(each)
            todo |= waits[each] - reached
        before = {c.request.seq for _, ended, other, c in made[:number] if other == conn and ended <= began}
        assert before - over <= reached - over
        ready = [s for s in waits if s not in over and not waits[s] - over]
        for done in data.draw(st.lists(st.sampled_from(ready), unique=True)) if ready else ():
            order.over(done)
            over.add(done)


# --- when ------------------------------------------------------------------------------------------------------------


def test_calls_are_due_as_they_came() -> None:
    """By the clock that does not jump, in a boot; by the other one between two boots."""
    schedule = Schedule()

    def due(ts: float, mono: float, boot: str = "b") -> float:
        call = read(0)
        stamps = {"ts": str(round(ts * 1e9)), "mono": str(round(mono * 1e9))}
        return round(schedule.due(changed(call, **stamps)._replace(boot=boot)), 3)

    assert due(1000, 50) == 0
    assert due(5000, 51.5) == 1.5  # somebody set the clock
    assert due(5010, 3, "after a reboot") == 11.5
    assert due(5011, 4, "after a reboot") == 12.5


@pytest.mark.parametrize(
    ("late", "took", "found"),
    [(0, 0, False), (10_000, 0, False), (10_001, 0, True), (10_001, 1_000_000, False), (50_001, 1_000_000, True)],
)
def test_a_schedule_that_was_not_kept(late: int, took: int, found: bool) -> None:
    """10 ms, or a twentieth of what calls take, whichever is more."""
    assert is_late(Spread(10, 0, late, late), Spread(10, took, took, took)) is found
