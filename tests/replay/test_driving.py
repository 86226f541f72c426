"""Driving: when calls are sent, after what, how often (once), and what is not sent at all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import pytest

from bridges.calls import Call, Door, Value
from bridges.comparison import Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.replay import driving, planning
from bridges.replay.bindings import Bindings
from bridges.replay.driving import Drive, drive
from bridges.replay.pairs import Exchange
from bridges.replay.planning import Order
from bridges.replay.results import Timing
from bridges.replay.targets import Target, WrongTarget
from tests.replay.exchanged import exchange

READ, WRITE = "get_host_reserved_memory", "balance_memory"
Answer = Callable[[Call], Awaitable[Value]]


class Notes:
    """What was told of each exchange, by its seq."""

    def __init__(self) -> None:
        self.why: dict[int, str] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.us: dict[int, int] = {}
        self.over = 0

    def not_sent(self, exchange: Exchange, why: str) -> None:
        assert exchange.request.seq not in self.why.keys() | self.outcomes.keys()
        self.why[exchange.request.seq] = why

    def judge(self, exchange: Exchange, outcome: Outcome, us: int) -> None:
        assert exchange.request.seq not in self.why.keys() | self.outcomes.keys()
        self.outcomes[exchange.request.seq] = outcome
        self.us[exchange.request.seq] = us

    def unanswered(self, exchange: Exchange, why: str) -> None:
        assert exchange.request.seq not in self.why.keys() | self.outcomes.keys()
        assert why == driving.CUT_OFF
        self.outcomes[exchange.request.seq] = why

    def note(self, over: int) -> None:
        self.over = over

    @property
    def reasons(self) -> Counter[str]:
        return Counter(self.why.values())


class Daemon:
    """Answers 7 by default; `calls` are when each came, on the loop's clock, with what it was."""

    def __init__(self, answer: Answer | None = None) -> None:
        self._answer = answer
        self.calls: list[tuple[float, Call]] = []
        self.running = self.most = 0

    async def ask(self, call: Call) -> Value:
        self.calls.append((asyncio.get_running_loop().time(), call))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return 7 if self._answer is None else await self._answer(call)
        finally:
            self.running -= 1

    def asked(self, argument: str) -> list[Value]:
        return [call.arguments.get(argument) for _, call in self.calls]


async def run(
    exchanges: Iterable[Exchange],
    daemon: Daemon,
    *,
    sandbox: str | None = None,
    door: Door = Door.HTTP,
    stop: asyncio.Event | None = None,
    **options: Any,
) -> tuple[Notes, Timing]:
    """Drives the daemon; `sandbox` is why it is none."""

    async def declares() -> str | None:
        return sandbox

    notes = Notes()
    target = Target(daemon, door, model.load("squeezed"), "here", declares)
    stop = stop or asyncio.Event()
    timing = await drive(exchanges, target, Drive(**options), notes, Bindings({}), Order(), notes.note, stop)
    return notes, timing


def reads(count: int, apart: float, **more: Any) -> list[Exchange]:
    """Calls that change nothing, so many seconds apart, numbered in `debug_info`."""
    return [exchange("squeezed", READ, {"debug_info": str(i)}, 7, at=i * apart, **more) for i in range(count)]


def timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When calls are due on the loop's clock, in the order in which they are arranged."""
    loop, found = asyncio.get_running_loop(), list[float]()
    usual = loop.call_at

    def call_at(when: float, callback: Any, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") == "_begin":
            found.append(when)
        return usual(when, callback, *arguments, **more)

    monkeypatch.setattr(loop, "call_at", call_at)
    return found


async def test_a_stall_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are due by the recording, whatever became of those before them; the latency is the target's own."""

    last = asyncio.Event()

    async def answer(call: Call) -> Value:
        if call.arguments["debug_info"] == "2":
            await last.wait()
        elif call.arguments["debug_info"] == "19":
            last.set()
        return 7

    daemon, exchanges = Daemon(answer), reads(20, 0.01)
    due = timers(monkeypatch)
    notes, timing = await run(exchanges, daemon)
    assert daemon.asked("debug_info") == [str(i) for i in range(20)]
    assert [at - due[0] for at in due] == pytest.approx([i * 0.01 for i in range(20)])
    assert all(at >= when for (at, _), when in zip(daemon.calls, due, strict=True))
    stalled = exchanges[2].request.seq
    assert notes.us[stalled] >= 170_000  # the last came no sooner
    assert max(notes.us, key=notes.us.__getitem__) == stalled
    assert set(notes.outcomes.values()) == {7}
    assert notes.over == timing.lateness.count == 20
    assert (timing.mode, timing.speed, round(timing.planned_seconds, 3)) == ("open loop", 1.0, 0.19)


@pytest.mark.parametrize(("options", "seconds"), [({"speed": 4.0}, 0.1), ({"rate": 100.0}, 0.19)])
async def test_another_schedule(monkeypatch: pytest.MonkeyPatch, options: dict[str, float], seconds: float) -> None:
    """`speed` stretches the recording, `rate` replaces it."""
    daemon, due = Daemon(), timers(monkeypatch)
    _, timing = await run(reads(20, 0.4 / 19), daemon, **options)
    assert timing.planned_seconds == pytest.approx(seconds, abs=0.001)
    assert due[-1] - due[0] == pytest.approx(seconds, abs=0.001)
    assert all(at >= when for (at, _), when in zip(daemon.calls, due, strict=True))


async def test_a_caller_waits_for_its_answer() -> None:
    """On one connection a call waits for the one before; waiting is no lateness of ours, and counts as latency."""

    async def answer(call: Call) -> Value:
        await asyncio.sleep(0.1)
        return 7

    daemon, exchanges = Daemon(answer), reads(3, 0.01, conn="c1")
    other = exchange("squeezed", READ, {"debug_info": "other"}, 7, at=0.015, conn="c2")
    notes, timing = await run([*exchanges[:2], other, exchanges[2]], daemon)
    assert daemon.asked("debug_info") == ["0", "other", "1", "2"]
    assert daemon.most == 2
    assert notes.us[exchanges[2].request.seq] >= 270_000
    waited = notes.us[exchanges[2].request.seq] - 100_000
    assert notes.us[other.request.seq] < waited + 100_000
    assert timing.lateness.most < waited


PERMISSIONS = [
    ({}, None, planning.WRITE),
    ({"allow_writes": True}, None, None),
    ({}, "there is no /m.sandbox", planning.WRITE),
]


@pytest.mark.parametrize(("options", "sandbox", "why"), PERMISSIONS)
async def test_writes_need_two_permissions(options: dict[str, bool], sandbox: str | None, why: str | None) -> None:
    """The operator's and the target's own: without the first reads alone are sent, and the rest is counted."""
    calls = [*reads(2, 0), exchange("squeezed", WRITE, {"debug_info": "w"}, None)]
    daemon = Daemon()
    notes, _ = await run(calls, daemon, sandbox=sandbox, **options)
    assert notes.reasons == ({} if why is None else {why: 1})
    assert daemon.asked("debug_info") == (["0", "1"] if why else ["0", "1", "w"])


async def test_nothing_is_sent_where_writes_were_meant_for_no_sandbox() -> None:
    daemon = Daemon()
    with pytest.raises(WrongTarget, match="no writes may be sent to here"):
        await run(reads(2, 0), daemon, sandbox="there is no /m.sandbox", allow_writes=True)
    assert not daemon.calls


async def test_what_cannot_be_sent_is_counted() -> None:
    """Each with why; nothing else is."""
    other = exchange("xenopsd", "UPDATES.get", {"debug_info": "d", "last": None, "timeout": None}, ([], [], 1))
    calls = [
        exchange("squeezed", "echo", {"arguments": {}}, {}),
        exchange("squeezed", READ, {"debug_info": "d"}, 7),
        other,
    ]
    request = calls[1].request
    calls.append(Exchange(type(request)(999_999, "x", request.leg, request.ts, request.mono, "squeezed", "http", "x"),
                          None, calls[1].place))  # fmt: skip
    daemon = Daemon()
    notes, _ = await run(calls, daemon)
    assert notes.reasons == {driving.NOT_AT_THIS_DOOR: 1, planning.OTHER_SERVICE: 1, driving.NOT_WRITTEN_DOWN: 1}
    assert len(daemon.calls) == len(notes.outcomes) == 1


async def test_a_long_poll_is_not_sent() -> None:
    """It would wait for as long as its caller did."""

    async def declares() -> str | None:
        return None

    poll = exchange("xenopsd", "UPDATES.get", {"debug_info": "d", "last": None, "timeout": None}, ([], [], 1))
    notes, daemon = Notes(), Daemon()
    target = Target(daemon, Door.HTTP, model.load("xenopsd"), "here", declares)
    await drive([poll], target, Drive(), notes, Bindings({}), Order(), notes.note, asyncio.Event())
    assert notes.reasons == {planning.LONG_POLL: 1}
    assert daemon.calls == []


ONE, TWO = "0c5e9ac6-5bb8-4b48-8a9f-c8a6d1a4c1aa", "7f0e5f3c-93ac-4b1d-9d5f-0f3a4f4f6b11"


def reservation() -> list[Exchange]:
    """A reservation is made and given back, in the same millisecond."""
    arguments: dict[str, Value] = {"debug_info": "d", "session_id": "me", "kib": 5}
    taken: dict[str, Value] = {"debug_info": "d", "session_id": "me", "reservation_id": ONE}
    return [
        exchange("squeezed", "reserve_memory", arguments, ONE, us=100),
        exchange("squeezed", "delete_reservation", taken, None, at=0.0002),
    ]


async def test_a_handle_is_the_one_of_the_replay() -> None:
    """A call waits for the one that gives its handle, and the recorded answer stands for the replayed one."""

    async def answer(call: Call) -> Value:
        await asyncio.sleep(0.05)
        return TWO if call.method.name == "reserve_memory" else None

    daemon, calls = Daemon(answer), reservation()
    notes, _ = await run(calls, daemon, allow_writes=True)
    assert daemon.asked("reservation_id") == [None, TWO]
    assert notes.outcomes == {calls[0].request.seq: ONE, calls[1].request.seq: None}


async def test_a_handle_that_nobody_gave() -> None:
    """Its call is not sent; the one that failed to give it is judged as a failure."""

    async def answer(call: Call) -> Value:
        raise Fault(Kind.IN_DOUBT, "the connection was lost")

    daemon, calls = Daemon(answer), reservation()
    notes, _ = await run(calls, daemon, allow_writes=True)
    assert [call.method.name for _, call in daemon.calls] == ["reserve_memory"]
    assert notes.reasons == {"unbound reservation": 1}
    (outcome,) = notes.outcomes.values()
    assert isinstance(outcome, Fault)
    assert outcome.kind is Kind.IN_DOUBT


async def test_stopped_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing new is sent; who is asked may answer, for a while; a write that was cut off is in doubt."""
    monkeypatch.setattr(driving, "GRACE", 0.2)
    stop = asyncio.Event()

    async def answer(call: Call) -> Value:
        match call.arguments["debug_info"]:
            case "slow":
                await asyncio.sleep(0.05)
                return 7
            case "last":
                stop.set()
                return 7
        await asyncio.Event().wait()
        raise AssertionError

    calls = [
        exchange("squeezed", READ, {"debug_info": "slow"}, 7, conn="c"),
        exchange("squeezed", READ, {"debug_info": "behind"}, 7, at=0.002, conn="c"),
        exchange("squeezed", WRITE, {"debug_info": "never"}, None),
        exchange("squeezed", READ, {"debug_info": "last"}, 7, at=0.02),
        *reads(5, 1.0),
    ]
    calls[-5:] = [c._replace(request=_later(c)) for c in calls[-5:]]
    daemon = Daemon(answer)
    notes, _ = await run(calls, daemon, allow_writes=True, stop=stop)
    assert sorted(map(str, daemon.asked("debug_info"))) == ["last", "never", "slow"]
    assert notes.why == {calls[1].request.seq: driving.INTERRUPTED}  # those of the next minute were not looked at yet
    slow, _, never, last = (notes.outcomes.get(call.request.seq) for call in calls[:4])
    assert (slow, last) == (7, 7)
    assert never == driving.CUT_OFF
    assert notes.over == 4
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("replay")]


def _later(call: Exchange) -> Any:
    request = call.request
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    moment = str(int(request.mono) + 60 * 10**9)
    return type(request)(**{**fields, "mono": moment, "ts": moment})


@pytest.mark.parametrize("closed", [None, 7])
async def test_stopped_at_any_moment(closed: int | None) -> None:
    """Whatever was read is accounted for, and nothing was begun after the stop."""
    calls = reads(2000, 0.0002)
    for moment in range(8):
        read, stop = [], asyncio.Event()

        async def answer(_call: Call, stop: asyncio.Event = stop, after: float = moment * 0.003) -> Value:
            asyncio.get_running_loop().call_later(after, stop.set)
            return await asyncio.sleep(0.001, 7)

        def streamed(read: list[Exchange] = read) -> Iterator[Exchange]:
            for each in calls:
                read.append(each)
                yield each

        daemon = Daemon(answer)
        notes, _ = await run(streamed(), daemon, stop=stop, closed=closed)
        assert len(notes.outcomes) == len(daemon.calls) > 0
        assert daemon.running == 0
        accounted = len(notes.outcomes) + len(notes.why)
        assert accounted == notes.over
        assert len(read) - driving.CHUNK <= accounted <= len(read)
        assert len(notes.outcomes) < 2000


async def test_a_closed_loop() -> None:
    """So many calls at a time, in order; the recorded times count for nothing, and no lateness is told."""

    async def answer(_call: Call) -> Value:
        await asyncio.sleep(0.01)
        return 7

    daemon = Daemon(answer)
    notes, timing = await run(reads(30, 100.0), daemon, closed=3)
    assert daemon.most == 3
    assert daemon.asked("debug_info") == [str(i) for i in range(30)]
    assert (timing.mode, timing.workers, timing.lateness.count, timing.kept) == ("closed loop", 3, 0, True)
    assert max(notes.us.values()) < timing.took_seconds * 1e6 / 2


async def test_a_schedule_that_was_not_kept() -> None:
    """A run that came late itself says so; it is no slow target."""

    async def answer(_call: Call) -> Value:
        time.sleep(0.02)  # noqa: ASYNC251 -- the whole loop is held up
        return 7

    _, timing = await run(reads(40, 0.001), Daemon(answer))
    assert not timing.kept
    assert timing.lateness.p99 > 100_000


async def test_the_capture_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While calls wait for their answers, what follows stays in the capture."""
    monkeypatch.setattr(driving, "AHEAD", 8)
    read, most = 0, 0
    daemon = Daemon()

    def streamed() -> Iterator[Exchange]:
        nonlocal read, most
        for each in reads(400, 0.0002):
            read += 1
            most = max(most, read - len(daemon.calls))
            yield each

    await run(streamed(), daemon)
    assert len(daemon.calls) == read == 400
    assert most <= 8 + 2 * driving.CHUNK


async def test_a_slow_disk_does_not_make_calls_late() -> None:
    """The capture is read beside the calls, ahead of them."""

    def streamed() -> Iterator[Exchange]:
        for number, each in enumerate(reads(3 * driving.CHUNK, 0.003)):
            if number and number % driving.CHUNK == 0:
                ahead.append(number - len(daemon.calls))
                time.sleep(0.1)
            yield each

    daemon, ahead = Daemon(), list[int]()
    _, timing = await run(streamed(), daemon)
    assert timing.lateness.count == 3 * driving.CHUNK
    assert min(ahead) > 0  # calls that were read and not due yet, when the disk was waited for


async def test_a_capture_that_cannot_be_read_on() -> None:
    """The error is the caller's; calls that were sent have been told by then."""

    class Broken(Exception):
        pass

    def streamed() -> Iterator[Exchange]:
        yield from reads(driving.CHUNK, 0)
        raise Broken

    daemon, notes = Daemon(), Notes()

    async def declares() -> str | None:
        return None

    target = Target(daemon, Door.HTTP, model.load("squeezed"), "here", declares)
    with pytest.raises(Broken):
        await drive(streamed(), target, Drive(), notes, Bindings({}), Order(), notes.note, asyncio.Event())
    assert notes.over == driving.CHUNK
    assert len(notes.outcomes) == len(daemon.calls)


async def test_a_defect_of_the_judge_ends_the_run() -> None:
    """Else nobody would know what the numbers stand for."""

    class Broken(Notes):
        def judge(self, exchange: Exchange, outcome: Outcome, us: int) -> None:
            raise ZeroDivisionError

    async def declares() -> str | None:
        return None

    target = Target(Daemon(), Door.HTTP, model.load("squeezed"), "here", declares)
    notes = Broken()
    with pytest.raises(ZeroDivisionError):
        await drive(reads(50, 0.01), target, Drive(), notes, Bindings({}), Order(), notes.note, asyncio.Event())
    assert 0 < notes.over <= 50


async def test_a_defect_below_is_told_and_the_run_goes_on() -> None:
    """It is a fault of that call alone."""

    async def answer(call: Call) -> Value:
        if call.arguments["debug_info"] == "1":
            raise ZeroDivisionError
        return 7

    notes, _ = await run(reads(3, 0), Daemon(answer))
    kinds = [outcome.kind if isinstance(outcome, Fault) else outcome for outcome in notes.outcomes.values()]
    assert sorted(map(str, kinds)) == ["7", "7", "Internal"]
