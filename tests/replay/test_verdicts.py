"""What is compared, what is not, and what comes of a run."""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges.calls import Value
from bridges.capture import typed
from bridges.capture.records import Complete
from bridges.comparison import Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.replay.masks import decode
from bridges.replay.pairs import Exchange, answer_of
from bridges.replay.results import FieldRow, Result, Spread, Timing, Verdict
from bridges.replay.tallies import OTHERS
from bridges.replay.verdicts import Judge, Judgement
from tests.bridges.fidelity_values import values
from tests.replay.exchanged import exchange, method

TODAY = date(2027, 1, 1)
OPEN = Timing("open loop")
TOKEN = "OpaqueRef:5ec3e700-1111-2222-3333-444455556666"
REFERENCE = "OpaqueRef:11111111-2222-3333-4444-555566667777"
SEVEN = settings(max_examples=7, deadline=None, suppress_health_check=list(HealthCheck))


def judge(*masks: str) -> Judge:
    text = ""
    for where, kind, day in (mask.split("|") for mask in masks):
        text += f'[[mask]]\nid = "{where}"\nwhere = "{where}"\nkind = "{kind}"\nexpires = {day}\n'
        text += 'reason = "r"\nowner = "alice"\n'
    return Judge(decode(text.encode()), TODAY)


def ended(judged: Judge, timing: Timing = OPEN, *, interrupted: bool = False) -> Result:
    return judged.result(capture="c", target="t", started="now", timing=timing, interrupted=interrupted)


def reserve(answer: Value | Fault = ("r", 100), **reply: Any) -> Exchange:
    arguments: dict[str, Value] = {"debug_info": "d", "session_id": "s", "min": 1, "max": 2}
    made = exchange("squeezed", "reserve_memory_range", arguments, answer, effect="write", us=2000)
    assert made.reply is not None
    return made._replace(reply=msgspec.structs.replace(made.reply, **reply))


def read(answer: Value) -> Exchange:
    return exchange("squeezed", "get_diagnostics", {"debug_info": "d"}, answer, effect="read")


def unknown(reservation: str) -> Fault:
    return Fault(Kind.DECLARED, f"text {reservation}", code="Unknown_reservation", argument=reservation)


# --- one call --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "replayed", "path"),
    [
        (("r", 100), ("r", 100), None),
        (("r", 100), ("r", 90), "result[1]"),
        (("r", 100), ("x", 100), "result[0]"),
        (("r", 100), ("", 100), "result[0]"),
        (("r", 100), unknown("r"), "outcome"),
        (unknown("r"), ("r", 100), "outcome"),
        (unknown("r"), unknown("r"), None),
        (unknown("r"), Fault(Kind.DECLARED, "other words", code="Unknown_reservation", argument="r"), None),
        (unknown("r"), unknown("x"), "fault.argument"),
        (unknown("r"), Fault(Kind.DECLARED, "", code="No_reservation"), "fault.code"),
        (unknown("r"), Fault(Kind.UNDECLARED, "", code="Unknown_reservation"), "fault.kind"),
    ],
)
def test_a_call(recorded: Any, replayed: Any, path: str | None) -> None:
    """The same, or different with the place."""
    judged = judge()
    assert judged.judge(reserve(recorded), replayed, 5) is (Judgement.DIFFERENT if path else Judgement.SAME)
    result = ended(judged)
    (row,) = result.methods
    assert [field.path for field in row.fields] == ([path] if path else [])
    assert (row.recorded, row.sent, row.same, row.different) == (1, 1, int(not path), int(bool(path)))
    assert result.verdict is (Verdict.FAIL if path else Verdict.PASS)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"complete": Complete.CUT, "note": "over 1 MiB"}, "the recorded answer is not complete: over 1 MiB"),
        ({"redacted": ["result"]}, "the recorded answer is redacted as a whole"),
        ({"result": None}, "the recorded answer does not fit the interface: value"),
    ],
)
def test_what_cannot_be_compared_is_incomplete(changed: dict[str, Any], why: str) -> None:
    """Counted, told, and no verdict comes of it alone."""
    judged = judge()
    assert judged.judge(reserve(**changed), ("r", 1), 5) is Judgement.INCOMPLETE
    assert judged.judge(reserve()._replace(reply=None), ("r", 1), 5) is Judgement.INCOMPLETE
    excuse = reserve(Fault(Kind.TIMED_OUT, "t"))
    assert judged.judge(excuse, Fault(Kind.TIMED_OUT, "t"), 5) is Judgement.INCOMPLETE
    result = ended(judged)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.methods[0].incomplete == 3
    assert set(result.reasons) == {
        "nothing was compared: 3 recorded calls, 3 sent",
        f"1 call was not compared: {why}",
        "1 call was not compared: no answer was recorded",
        "1 call was not compared: the service did not answer when it was recorded: TimedOut",
    }


def test_redacted_fields_are_left_out_and_counted() -> None:
    """Of results and faults; the rest is compared. A session that stands for its token is the same."""
    judged = judge()
    assert judged.judge(reserve(("(secret)", 100), redacted=["result[0]"]), ("r", 100), 5) is Judgement.SAME
    assert judged.judge(reserve(("(secret)", 100), redacted=["result[0]"]), ("r", 99), 5) is Judgement.DIFFERENT
    fault = reserve(unknown("(secret)"), redacted=["fault.argument", "fault.text"])
    assert judged.judge(fault, unknown("r"), 5) is Judgement.SAME
    assert judged.judge(reserve(unknown("r"), redacted=["fault.code"]), unknown("r"), 5) is Judgement.INCOMPLETE
    assert judged.judge(reserve(("x", 1), redacted=["result[0]"]), unknown("r"), 5) is Judgement.DIFFERENT
    login = exchange("xapi", "session.login_with_password", {}, TOKEN)
    login = login._replace(reply=msgspec.structs.replace(login.reply, redacted=["result"]))  # type: ignore[type-var]
    assert judged.judge(login, TOKEN, 5) is Judgement.SAME
    assert judged.judge(login, REFERENCE, 5) is Judgement.INCOMPLETE
    assert [row.redacted for row in ended(judged).methods] == [3, 0]
    assert "3 fields were left out: redacted in the capture" in ended(judged).reasons


def test_masks() -> None:
    """They hide what they are about; never the outcome, nor a handle that is missing."""
    judged = judge(
        "squeezed.*:result|ignore|2027-03-01", "squeezed.reserve_memory_range:fault.argument|ignore|2027-03-01"
    )
    assert judged.judge(reserve(), ("x", 99), 5) is Judgement.MASKED
    assert judged.judge(reserve(unknown("r")), unknown("x"), 5) is Judgement.MASKED
    assert judged.judge(reserve(), ("r", 100), 5) is Judgement.SAME
    assert judged.judge(reserve(), ("", 100), 5) is Judgement.DIFFERENT
    assert judged.judge(reserve(), unknown("r"), 5) is Judgement.DIFFERENT
    (row,) = ended(judged).methods
    assert [(field.path, field.recorded, field.replayed) for field in row.fields] == [
        ("result[0]", "'r'", "(absent)"),
        ("outcome", "('r', 100)", "Declared Unknown_reservation"),
    ]
    assert [(mask.hits, mask.compared) for mask in ended(judged).masks] == [(2, 5), (1, 5)]


def test_handles_that_are_missing() -> None:
    """Of a write none may be; how many a read lists may be under a mask."""
    judged = judge("xapi.*:result[#]|ignore|2027-03-01", "xapi.*:result|ignore|2027-03-01")
    listed = exchange("xapi", "VM.get_all", {}, [REFERENCE])
    assert judged.judge(listed, [], 5) is Judgement.MASKED
    created = exchange("xapi", "pool.create_VLAN", {}, [REFERENCE])
    assert judged.judge(created, [], 5) is Judgement.DIFFERENT
    copied = exchange("xapi", "VM.clone", {}, REFERENCE)
    assert judged.judge(copied, "OpaqueRef:NULL", 5) is Judgement.DIFFERENT
    assert [field.path for row in ended(judged).methods for field in row.fields] == ["result", "result[*]"]


def test_expired_masks_fail_and_hide_nothing() -> None:
    """By name, also where nothing else is wrong; stale and greedy ones are told."""
    old, greedy = "squeezed.get_diagnostics:result", "squeezed.reserve_memory_range:result[1]"
    judged = judge(f"{old}|ignore|2026-12-31", f"{greedy}|shape|2027-03-01")
    judged.judge(read("a"), "a", 5)
    judged.judge(reserve(), ("r", 99), 5)
    result = ended(judged)
    assert result.verdict is Verdict.FAIL
    assert result.reasons == [
        f"the mask {old} of alice expired on 2026-12-31 and hides nothing: renew it or remove it",
        f"the mask {greedy} of alice is greedy: it hid something in 1 of 1",
    ]
    assert judged.judge(read("a"), "b", 5) is Judgement.DIFFERENT
    stale = judge(f"{old}|ignore|2027-03-01")
    stale.judge(read("a"), "a", 5)
    assert ended(stale).verdict is Verdict.PASS
    assert ended(stale).reasons == [f"the mask {old} of alice is stale: it hid nothing in 1 comparison"]


def test_secrets_are_not_shown() -> None:
    """Sessions in part, what has a secret's name and what looks like one not at all."""
    judged = judge()
    other = "OpaqueRef:99999999-2222-3333-4444-555566667777"
    judged.judge(exchange("xapi", "session.get_parent", {}, REFERENCE), other, 5)
    judged.judge(read("x"), "http://root:hunter2@host/", 5)
    judged.judge(exchange("xapi", "secret.get_value", {}, "hunter1"), "hunter2", 5)
    judged.judge(exchange("xapi", "VM.get_record", {}, {"password": "hunter3"}), {"password": "hunter4"}, 5)
    text = msgspec.json.encode(ended(judged)).decode()
    assert "OpaqueRef:99999999..." in text
    assert "55556666" not in text
    assert "hunter" not in text


# --- a run -----------------------------------------------------------------------------------------------------------


def test_reasons_are_sentences_with_numbers_and_paths() -> None:
    """The weightiest first: what differs most often, then what was not covered."""
    judged = judge()
    for number in range(12):
        judged.judge(reserve(), ("r", 100 - (number < 3)), 1000)
    first = read("a")
    judged.judge(first, "b", 1000)
    for _ in range(40):
        judged.not_sent(reserve(), "--allow-writes was not given")
    judged.not_sent(read("a"), "unbound session")
    result = ended(judged)
    assert result.verdict is Verdict.FAIL
    assert [reason.rpartition(", first in seq ")[0] or reason for reason in result.reasons] == [
        "squeezed reserve_memory_range result[1]: 3 of 12 calls differ (recorded 100, replayed 99",
        "squeezed get_diagnostics result: 1 of 1 call differs (recorded 'a', replayed 'b'",
        "40 writes were not sent: --allow-writes was not given",
        "1 call was not sent: unbound session",
    ]
    diagnostics, reserved = result.methods
    assert diagnostics.fields == [FieldRow("result", 1, "'a'", "'b'", first.request.seq)]
    assert (reserved.effect, reserved.recorded, reserved.sent, reserved.not_sent) == (
        "write", 52, 12, {"--allow-writes was not given": 40},
    )  # fmt: skip
    assert (result.recorded, result.sent) == (54, 13)
    assert reserved.took_then.p50 == pytest.approx(2000, rel=0.02)
    assert reserved.took_now == Spread(12, *[pytest.approx(1000, rel=0.02)] * 2, 1000)


def test_a_run_passes_only_if_there_is_no_doubt() -> None:
    """Nothing compared, a damaged capture, a schedule that was not kept, an interruption."""

    def passed() -> Judge:
        judged = judge()
        judged.judge(read("a"), "a", 5)
        return judged

    assert ended(passed()).verdict is Verdict.PASS
    assert ended(passed()).reasons == []
    damaged = passed()
    damaged.damage("000001.jsonl.zst at 17: 64 records are lost")
    late = Timing("open loop", lateness=Spread(9, 1, 34_000, 40_000), kept=False)
    few, many = passed(), passed()
    few.missed(3)
    many.missed(4)
    lost = "records of calls were lost while the capture was made: the run says nothing of them"
    assert (ended(few).verdict, ended(few).reasons) == (Verdict.PASS, [f"3 {lost}"])
    doubts = {
        f"4 {lost}": ended(many),
        "nothing was compared: 0 recorded calls, 0 sent": ended(judge()),
        "the capture is damaged in 1 place: 000001.jsonl.zst at 17: 64 records are lost": ended(damaged),
        "the schedule was not kept: one call in a hundred was sent 34 ms late or more": ended(passed(), late),
        "it was interrupted: 1 of 1 call read so far were sent": ended(passed(), interrupted=True),
    }
    for reason, result in doubts.items():
        assert result.verdict is Verdict.INCONCLUSIVE
        assert result.reasons == [reason]
    damaged.judge(read("a"), "b", 5)
    failed = ended(damaged, late, interrupted=True)
    assert failed.verdict is Verdict.FAIL
    assert (len(failed.damage), failed.interrupted) == (1, True)


def test_what_a_run_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields, methods and damages beyond their limits are counted together or left out."""
    for name in ("METHODS", "FIELDS", "DAMAGE"):
        monkeypatch.setattr(f"bridges.replay.verdicts.{name}", 2)
    judged = judge()
    one, other = (dict.fromkeys("abc", n) for n in (1, 2))
    recorded = exchange("xapi", "VM.get_record", {}, one)
    judged.judge(recorded, other, 5)
    for number in range(5):
        judged.damage(str(number))
        made = read("a")
        judged.not_sent(made._replace(request=msgspec.structs.replace(made.request, method="", name=str(number))), "x")
    result = ended(judged)
    assert {row.method: row.recorded for row in result.methods} == {"VM.get_record": 1, "0": 1, OTHERS: 4}
    fields = {field.path: field.count for row in result.methods for field in row.fields}
    assert fields == {"result.a": 1, "result.b": 1, OTHERS: 1}
    assert result.damage == ["0", "1"]


def test_another_dialect() -> None:
    """The interface by which a capture was written is given by the service's name."""
    older = model.load("squeezed-2012")
    called = older.method("login")
    assert called is not None
    made = exchange("squeezed", "login", {}, "x")
    assert Judge((), TODAY, {"squeezed": older}).judge(made, "x", 5) is Judgement.SAME
    strange = made._replace(request=msgspec.structs.replace(made.request, service="strange"))
    assert Judge((), TODAY).judge(strange, "x", 5) is Judgement.INCOMPLETE


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", model.services())
@SEVEN
@given(data=st.data())
def test_identical_answers_have_no_difference(service: str, data: st.DataObject) -> None:
    """Whatever they are, results and faults, as recorded and read again, with masks and without."""
    name = data.draw(st.sampled_from(model.load(service).method_names))
    called = method(service, name)
    result: Outcome = data.draw(values(called.result))
    outcomes = [result]
    if called.errors.constructors:
        case = data.draw(st.sampled_from(called.errors.constructors))
        argument = None if case.argument is None else data.draw(values(case.argument))
        outcomes.append(Fault(Kind.DECLARED, "t", code=case.name, argument=argument))
    masked = judge(f"{service}.*:result|handle|2027-03-01", f"{service}.*:fault.argument|set|2027-03-01")
    for outcome in outcomes:
        call = exchange(service, name, {}, outcome)
        again = answer_of(called, msgspec.json.decode(msgspec.json.encode(call.reply), type=type(call.reply)))
        for judged in (judge(), masked):
            assert judged.judge(call, again, 5) is Judgement.SAME
            assert ended(judged).verdict is Verdict.PASS
    assert all(row.hits == 0 for row in ended(masked).masks)


@SEVEN
@given(data=st.data())
def test_a_changed_answer_is_a_difference(data: st.DataObject) -> None:
    """Whatever changed in it."""
    called = method("xenopsd", "VM.stat")
    one, other = (typed.read(called.result, typed.write(called.result, data.draw(values(called.result)))) for _ in "ab")
    same = typed.write(called.result, one) == typed.write(called.result, other)
    found = judge().judge(exchange("xenopsd", "VM.stat", {}, one), other, 5)
    assert found is (Judgement.SAME if same else Judgement.DIFFERENT)
