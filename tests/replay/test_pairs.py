"""Requests and replies joined: in order, bounded, and what does not fit is told with its place."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.capture.records import CLOSED, UNKNOWN, Complete, Header, Leg, Lost, Record, Reply, Request
from bridges.capture.records import Fault as RecordedFault
from bridges.capture.store import Place
from bridges.faults import Fault, Kind
from bridges.replay.pairs import Exchange, NotRecorded, Selection, Troubles, answer_of, join
from tests.replay.exchanged import exchange, method


def request(seq: int, leg: Leg = Leg.CALLER, **more: str) -> Request:
    fields = {"service": "squeezed", "door": "http", "name": "login", "method": "login"} | more
    return Request(seq, f"c{seq}", leg, "0", "0", **fields)


def reply(re: int, leg: Leg = Leg.CALLER, seq: int = 1000) -> Reply:
    return Reply(seq + re, f"c{re}", leg, "0", "0", "squeezed", "http", re, 5, "answered")


def placed(*found: Record) -> list[tuple[Place, Record]]:
    return [(Place("000001.jsonl.zst", number), record) for number, record in enumerate(found, 1)]


def shape(found: list[Exchange]) -> list[tuple[int, int | None]]:
    return [(each.request.seq, None if each.reply is None else each.reply.seq) for each in found]


def test_calls_come_in_the_order_of_their_requests() -> None:
    """Whatever the order of the replies; other legs, lost records and headers are no calls."""
    header = Header(1, "t", "h", "boot-1", "0", "0", 1)
    found = placed(
        header, request(1), request(2), request(3, Leg.BACKEND), Lost(9, "0", "0", 4, "queue full"),
        reply(2), reply(3, Leg.BACKEND), request(4, Leg.OBSERVED), reply(4, Leg.OBSERVED), reply(1),
        Lost(20, "0", "0", 2, "disk"), Lost(21, "0", "0", 8, "size limit"), Lost(22, "0", "0", 1, "request not known"),
    )  # fmt: skip
    troubles = Troubles()
    joined = list(join(found, troubles=troubles))
    assert shape(joined) == [(1, 1001), (2, 1002), (4, 1004)]
    assert [str(each.place) for each in joined] == [f"000001.jsonl.zst record {n}" for n in (2, 3, 8)]
    assert {each.boot for each in joined} == {"boot-1"}
    assert troubles.sentences() == []
    assert troubles.missed == 6  # those lost while calls were made; what a limit removed is a shorter capture


def test_what_does_not_fit_is_counted_and_told() -> None:
    """Half pairs, replies without requests, and a seq that comes twice, before and after its call was given."""
    found = placed(request(1), reply(1), request(1), request(2), request(2), reply(7), reply(1), request(3), reply(3))
    troubles = Troubles()
    assert shape(list(join(found, troubles=troubles))) == [(1, 1001), (2, None), (3, 1003)]
    assert (troubles.half, troubles.strays, troubles.repeated) == (1, 1, 3)
    half, stray, repeated = troubles.sentences()
    assert half == "1 requests have no reply: 000001.jsonl.zst record 4"
    assert stray == "1 replies have no request: 000001.jsonl.zst record 6"
    assert repeated.endswith(
        "left out: 000001.jsonl.zst record 3, 000001.jsonl.zst record 5, 000001.jsonl.zst record 7"
    )


def test_a_window_bounds_what_is_waited_for() -> None:
    """A request without a reply is given after so many others; its late reply has no request any more."""
    records: list[Record] = [request(1)]
    for seq in range(2, 6):
        records += [request(seq), reply(seq)]
    troubles = Troubles()
    source = iter(placed(*records, reply(1)))
    stream = join(source, window=3, troubles=troubles)
    assert shape([next(stream)]) == [(1, None)]
    assert next(source)[1] == reply(4)  # three more requests were read
    assert shape(list(stream)) == [(2, 1002), (3, 1003), (4, None), (5, 1005)]
    assert (troubles.half, troubles.strays, troubles.repeated) == (2, 1, 0)


def test_of_many_troubles_the_first_are_named() -> None:
    """The text stays short."""
    troubles = Troubles()
    assert list(join(placed(*map(reply, range(50))), troubles=troubles)) == []
    (sentence,) = troubles.sentences()
    assert sentence.startswith("50 replies have no request: 000001.jsonl.zst record 1, ")
    assert sentence.endswith("record 20, ...")


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(1, 9)), st.data())
def test_every_request_is_given_once_whatever_the_order_of_replies(order: list[int], data: st.DataObject) -> None:
    """Each with its own reply, in the order of the requests."""
    records: list[Record] = [request(seq) for seq in range(1, 9)]
    for seq in order:
        records.insert(data.draw(st.integers(records.index(request(seq)) + 1, len(records))), reply(seq))
    assert shape(list(join(placed(*records)))) == [(seq, 1000 + seq) for seq in range(1, 9)]


@pytest.mark.parametrize(
    ("selection", "takes"),
    [
        (Selection(), True),
        (Selection(services=("squeezed",), methods=("log*",), doors=("http", "bus")), True),
        (Selection(services=("xapi",)), False),
        (Selection(methods=("LOGIN", "reserve_*")), False),
        (Selection(doors=("bus",)), False),
    ],
)
def test_a_selection(selection: Selection, takes: bool) -> None:
    """All that is given must hold; a method is matched as a pattern, with its case."""
    assert selection.takes(request(1)) is takes
    assert Selection(methods=("unheard*",)).takes(request(1, method="", name="unheard.of"))


def test_answers() -> None:
    """Typed by the interface; a fault of the service is an answer as well."""
    assert answer_of(method("squeezed", "reserve_memory_range"), exchange(
        "squeezed", "reserve_memory_range", {}, ("r", 7)).reply) == ("r", 7)  # fmt: skip
    fault = Fault(Kind.DECLARED, "t", code="Unknown_reservation", argument="r")
    found = answer_of(method("squeezed", "login"), exchange("squeezed", "login", {}, fault).reply)
    assert isinstance(found, Fault)
    assert (found.kind, found.code, found.argument) == (fault.kind, fault.code, fault.argument)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"complete": Complete.CUT, "note": "180 characters"}, "is not complete: 180 characters"),
        ({"complete": Complete.UNREAD}, "is not complete: unread"),
        ({"outcome": UNKNOWN}, "was not read"),
        ({"outcome": CLOSED}, "was closed without an answer"),
        ({"result": 7}, "does not fit the interface"),
        ({"outcome": "fault", "fault": RecordedFault("Nonsense")}, "does not fit the interface"),
        *(
            ({"outcome": "fault", "fault": RecordedFault(kind)}, f"did not answer when it was recorded: {kind}")
            for kind in ("Unavailable", "Busy", "TimedOut", "InDoubt", "Retired", "Internal")
        ),
    ],
)
def test_what_is_no_answer(change: dict[str, object], why: str) -> None:
    """Says why."""
    answered = exchange("squeezed", "login", {}, "x").reply
    assert answered is not None
    with pytest.raises(NotRecorded, match=why):
        answer_of(method("squeezed", "login"), msgspec.structs.replace(answered, **change))
    with pytest.raises(NotRecorded, match="no answer was recorded"):
        answer_of(method("squeezed", "login"), None)
