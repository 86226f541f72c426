"""What an operator must be able to trust blindly: who gets nothing, what is sent once, and what is no PASS."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridges.calls import Call, Door, Value
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.replay import driving, hiding, planning
from bridges.replay.bindings import Bindings, Unbound
from bridges.replay.driving import Drive, drive
from bridges.replay.pairs import Exchange
from bridges.replay.planning import NO_SANDBOX, NOT_MEANT, Order
from bridges.replay.recorded import Recorded
from bridges.replay.results import Result, Timing, Verdict
from bridges.replay.serving import serve
from bridges.replay.targets import Target, choose, open_target
from bridges.replay.verdicts import Judge, Judgement
from tests.fixtures_dbus import BusDaemon
from tests.fixtures_xenstored import running_store
from tests.replay.exchanged import daemon, exchange, method, short_directory
from tests.replay.test_driving import Daemon, Notes, run
from xenstore_rpc.connection import Store
from xenstore_rpc.records import Request, Response
from xenstore_rpc.rpc import Server

READ, WRITE = "get_host_reserved_memory", "balance_memory"
RESERVED = "0c5e9ac6-5bb8-4b48-8a9f-c8a6d1a4c1aa"


@pytest.fixture
def directory() -> Iterator[Path]:
    """For sockets."""
    with short_directory() as found:
        yield found


def reply(value: str) -> bytes:
    """What a daemon of rpclib says in HTTP."""
    body = (
        "<?xml version='1.0'?><methodResponse><params><param><value><struct><member><name>Status</name>"
        f"<value>Success</value></member><member><name>Value</name>{value}</member></struct></value></param></params>"
        "</methodResponse>"
    ).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def calls(count: int, apart: float = 0.01, name: str = WRITE, answer: Value = None, **more: Any) -> list[Exchange]:
    """One after the other, on one connection."""
    made: dict[str, Any] = {"conn": "c", "us": 100, **more}
    return [exchange("squeezed", name, {"debug_info": str(i)}, answer, at=i * apart, **made) for i in range(count)]


async def driven(target: Target, exchanges: list[Exchange], **options: Any) -> tuple[Notes, Timing]:
    notes = Notes()
    chosen = Drive(**{"allow_writes": True, "deadline": 5.0, **options})
    timing = await drive(exchanges, target, chosen, notes, Bindings({}), Order(), notes.note, asyncio.Event())
    return notes, timing


# --- to whom nothing is sent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [None, 3])
async def test_the_file_beside_a_socket_is_removed(directory: Path, closed: int | None) -> None:
    """From that moment on no write is sent, and reads are; a file that comes back changes nothing in this run."""
    beside = directory / "m.sandbox"
    beside.touch()

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(requests) == 3:
            beside.unlink()
        elif len(requests) == 5:
            beside.touch()
        writer.write(reply("<value><nil/></value>" if b"balance" in requests[-1] else "<value><i8>7</i8></value>"))

    exchanges = [*calls(6), *calls(3, name=READ, answer=7, conn="c2"), *calls(3)]
    exchanges[6:] = [_later(each, 0.1) for each in exchanges[6:]]
    async with (
        daemon(directory / "m", talk) as requests,
        open_target(choose(None, "squeezed", f"http:{directory}/m")) as target,
    ):
        notes, _ = await driven(target, exchanges, closed=closed)
    assert sum(b"balance_memory" in request for request in requests) == 3
    assert sum(READ.encode() in request for request in requests) == 3
    assert notes.reasons == {NO_SANDBOX: 6}


def _later(call: Exchange, seconds: float) -> Exchange:
    moment = str(int(call.request.mono) + round(seconds * 1e9))
    return call._replace(request=msgspec.structs.replace(call.request, mono=moment, ts=moment))


@pytest.mark.parametrize("form", ["http", "framed"])
async def test_another_daemon_takes_the_path(form: str, directory: Path) -> None:
    """It has declared nothing, whatever file stands beside it: it is not asked, not even a read."""
    (directory / "m.sandbox").touch()
    path, seen = directory / "m", bytearray()

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.read())
        writer.close()

    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as waiting:
        first.bind(str(path))
        first.listen(0)
        async with open_target(choose(None, "squeezed", f"{form}:{path}")) as target:
            waiting.connect(str(path))  # the queue is full: who comes now waits for room
            driving_it = asyncio.create_task(driven(target, [*calls(2), *calls(2, name=READ, answer=7, conn="c2")]))
            await asyncio.sleep(0.1)
            path.unlink()
            second = await asyncio.start_unix_server(other, path)
            notes, _ = await driving_it
            second.close()
    assert bytes(seen) == b""
    outcomes = [notes.outcomes.get(seq) for seq in notes.outcomes]
    assert {each.kind for each in outcomes if isinstance(each, Fault)} == {Kind.UNAVAILABLE}
    assert len(notes.why) + len(outcomes) == 4
    assert set(notes.reasons) <= {NO_SANDBOX}


async def test_a_link_declares_nothing(directory: Path) -> None:
    """A file beside a link is no word of the daemon behind it."""
    async with daemon(directory / "real", lambda _reader, _writer: asyncio.sleep(0)):
        (directory / "link").symlink_to(directory / "real")
        (directory / "link.sandbox").touch()
        async with open_target(choose(None, "squeezed", f"http:{directory}/link")) as target:
            assert await target.declares_sandbox() == f"there is no {directory}/real.sandbox"


@pytest.mark.parametrize("what", ["the node goes", "another process serves"])
async def test_a_tree_is_no_sandbox_any_more(what: str) -> None:
    async with running_store("embedded", Path) as process:
        store = Store(process.socket)
        await store.connect()
        executed: list[str] = []

        async def answer(request: Request) -> Response:
            executed.append(request.function)
            if len(executed) == 2:
                if what == "the node goes":
                    await store.rm("/squeezed/sandbox")
                else:
                    await store.write("/squeezed/pid", b"%d" % os.getppid())
            return Response(())

        await store.write("/squeezed/sandbox", b"1")
        server = Server(store, "squeezed", answer, pid=os.getpid())
        await server.register()
        serving = asyncio.create_task(server.run())
        async with open_target(choose(None, "squeezed", f"xenstore:{process.socket}")) as target:
            taken = {"debug_info": "d", "session_id": "me", "reservation_id": "r"}
            exchanges = [
                exchange("squeezed", "delete_reservation", taken, None, at=i * 0.01, us=100, conn="c") for i in range(6)
            ]
            notes, _ = await driven(target, exchanges)
        await server.stop()
        await serving
        await store.close()
    assert executed == ["delete-reservation"] * 2
    assert notes.reasons == {NO_SANDBOX: 4}


async def test_what_a_method_does_is_said_by_the_interface_of_today() -> None:
    """A capture that calls a write a read does not make it one."""
    target = Daemon()
    notes, _ = await run(calls(2, effect="read"), target)
    assert not target.calls
    assert notes.reasons == {planning.WRITE: 2}
    judged = Judge((), date(2027, 1, 1))
    judged.not_sent(calls(1, effect="read")[0], planning.WRITE)
    assert _ended(judged).methods[0].effect == "write"


async def test_a_write_that_waits_for_room_is_looked_at_when_it_has_it() -> None:
    """Not when it began to wait."""
    is_sandbox, first = True, asyncio.Event()

    async def answer(_call: Call) -> Value:
        nonlocal is_sandbox
        first.set()
        await asyncio.sleep(0.1)
        is_sandbox = False
        return None

    async def declares() -> str | None:
        return None if is_sandbox else "it said so"

    backend = Daemon(answer)
    target = Target(backend, Door.HTTP, model.load("squeezed"), "here", declares, at_once=1)
    notes, _ = await driven(target, calls(4, apart=0.0, conn=""))
    assert len(backend.calls) == backend.most == 1
    assert notes.reasons == {NO_SANDBOX: 3}


# --- how often, and after what ---------------------------------------------------------------------------------------


async def test_a_call_for_which_there_was_no_room_in_time_is_never_sent() -> None:
    """Its time is over while it waits, and it is not sent after it."""

    async def answer(_call: Call) -> Value:
        await asyncio.sleep(0.3)
        return 7

    async def declares() -> str | None:
        return None

    backend = Daemon(answer)
    target = Target(backend, Door.HTTP, model.load("squeezed"), "here", declares, at_once=1)
    notes, _ = await driven(target, calls(2, apart=0.0, name=READ, answer=7, conn=""), deadline=0.1)
    assert len(backend.calls) == 1
    told = [each for each in notes.outcomes.values() if isinstance(each, Fault)]
    assert [each.kind for each in told] == [Kind.TIMED_OUT]
    assert "was not sent" in told[0].text


async def test_two_calls_of_one_number() -> None:
    """The second is counted, and the first is not lost over it."""
    first, second = calls(2, apart=0.0, name=READ, answer=7, conn="")
    second = second._replace(request=msgspec.structs.replace(second.request, seq=first.request.seq))

    async def answer(_call: Call) -> Value:
        return await asyncio.sleep(0.05, 7)

    class Both(Notes):
        def not_sent(self, exchange: Exchange, why: str) -> None:
            self.why[-1] = why

    async def declares() -> str | None:
        return None

    notes, backend = Both(), Daemon(answer)
    target = Target(backend, Door.HTTP, model.load("squeezed"), "here", declares)
    await drive([first, second], target, Drive(), notes, Bindings({}), Order(), notes.note, asyncio.Event())
    assert len(backend.calls) == 1
    assert (notes.why, list(notes.outcomes.values()), notes.over) == ({-1: driving.NUMBER_TAKEN}, [7], 2)


@pytest.mark.parametrize("outcome", ["fails", "is not sent"])
async def test_a_name_that_a_failed_call_should_have_given(outcome: str) -> None:
    """Whatever it looks like, its recorded form is not sent: nobody has made what it names."""
    taken: dict[str, Value] = {"debug_info": "d", "session_id": "me", "reservation_id": "r1"}
    session = RESERVED if outcome == "is not sent" else "me"
    made: dict[str, Value] = {"debug_info": "d", "session_id": session, "kib": 5}
    exchanges = [
        exchange("squeezed", "reserve_memory", made, "r1", us=100),
        exchange("squeezed", "delete_reservation", taken, None, at=0.01),
    ]

    async def answer(_call: Call) -> Value:
        raise Fault(Kind.DECLARED, "no", code="Cannot_free_this_much_memory", argument=(9, 3))

    backend = Daemon(answer)
    notes, _ = await run(exchanges, backend, allow_writes=True)
    assert [call.method.name for _, call in backend.calls] == (["reserve_memory"] if outcome == "fails" else [])
    assert notes.why[exchanges[1].request.seq] == "unbound reservation"


def test_a_name_that_was_given_after_all() -> None:
    """A later call that gives it counts, and so does an earlier one."""
    bindings, service = Bindings({}), model.load("squeezed")
    made = exchange("squeezed", "reserve_memory", {"debug_info": "d", "session_id": "me", "kib": 5}, "r1")
    taken = exchange(
        "squeezed", "delete_reservation", {"debug_info": "d", "session_id": "me", "reservation_id": "r1"}, None
    )
    making, taking = method("squeezed", "reserve_memory"), method("squeezed", "delete_reservation")
    assert bindings.arguments(taken, taking, service)["reservation_id"] == "r1"
    bindings.failed(made, making, service)
    with pytest.raises(Unbound):
        bindings.arguments(taken, taking, service)
    bindings.learn(made, making, service, "r9")
    bindings.failed(made, making, service)
    assert bindings.arguments(taken, taking, service)["reservation_id"] == "r9"


def test_calls_follow_those_that_were_over_before_them() -> None:
    """Random recordings: on a connection, about a handle, and after the write that gave it, by whatever way."""
    service = model.load("squeezed")
    for seed in range(400):
        dice, waits, before = (
            random.Random(seed),
            dict[int, set[int]](),
            list[tuple[Exchange, set[str], float, float]](),
        )
        order, at = Order(), 0.0
        for _ in range(dice.randint(3, 14)):
            at += dice.choice((0.0, 0.0005, 0.001, 0.003))
            handle = f"{RESERVED[:-1]}{dice.randrange(3)}"
            made = _call(dice, handle, at)
            seq, keys = made.request.seq, {made.request.conn} - {""} | {handle} & {_taken(made)}
            waits[seq] = set(order.waits(made, method("squeezed", made.request.method), service))
            for each in waits[seq].copy():
                waits[seq] |= waits[each]
            for earlier, its_keys, over in before:
                gave = _taken(earlier) is None and earlier.reply is not None and _given(earlier) == _taken(made)
                if (keys & its_keys and over <= at) or gave:
                    assert earlier.request.seq in waits[seq], (seed, seq)
            before.append((made, keys, at + made.reply.us / 1e6 if made.reply else float("inf")))


def _call(dice: random.Random, handle: str, at: float) -> Exchange:
    more: dict[str, Any] = {
        "at": at, "us": dice.choice((100, 1000, 2500, 6000)), "conn": dice.choice(("", "c1", "c2")),
    }  # fmt: skip
    if dice.random() < 0.4:
        return exchange("squeezed", "reserve_memory", {"debug_info": "d", "session_id": "", "kib": 5}, handle, **more)
    taken: dict[str, Value] = {"debug_info": "d", "session_id": "", "reservation_id": handle}
    made = exchange("squeezed", "delete_reservation", taken, None, **more)
    return made._replace(reply=None) if dice.random() < 0.1 else made


def _taken(made: Exchange) -> str | None:
    found: str | None = (made.request.arguments or {}).get("reservation_id")
    return found


def _given(made: Exchange) -> str | None:
    assert made.reply is not None
    found: str | None = made.reply.result
    return found


# --- whose lateness it is --------------------------------------------------------------------------------------------


async def test_a_slow_target_does_not_spoil_the_schedule(directory: Path) -> None:
    """More calls than it has room for wait on its account: that is latency of its, and no lateness of ours."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        writer.write(reply("<value><i8>7</i8></value>"))

    (directory / "m.sandbox").touch()
    exchanges = calls(150, apart=0.002, name=READ, answer=7, conn="")
    async with (
        daemon(directory / "m", talk) as requests,
        open_target(choose(None, "squeezed", f"http:{directory}/m")) as target,
    ):
        notes, timing = await driven(target, exchanges)
    assert len(requests) == len(notes.outcomes) == timing.lateness.count == 150
    assert (most := max(notes.us.values())) > 800_000
    assert timing.lateness.p50 < most / 4
    assert timing.lateness.most < most - 400_000


async def test_memory_that_a_slow_target_fills_is_no_lateness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was held back in the capture meanwhile was held back by the target."""
    monkeypatch.setattr(driving, "AHEAD", 4)

    async def answer(_call: Call) -> Value:
        return await asyncio.sleep(0.1, 7)

    notes, timing = await run(calls(40, apart=0.001, name=READ, answer=7, conn=""), Daemon(answer))
    assert (most := max(notes.us.values())) > 700_000
    assert timing.lateness.most < most / 2
    assert timing.lateness.p50 < most / 4


# --- what is no PASS -------------------------------------------------------------------------------------------------


def _ended(judged: Judge) -> Result:
    return judged.result(capture="c", target="t", started="s", timing=Timing("open loop"), interrupted=False)


MIXES = [
    ({"same": 5}, {"same": 5}, {}, Verdict.PASS, ""),
    ({"same": 5, "unbound x": 5}, {}, {}, Verdict.PASS, ""),
    ({"same": 4, "unbound x": 5}, {}, {}, Verdict.INCONCLUSIVE, "only 4 of 9 calls that were meant"),
    ({"same": 90}, {"same": 1, "unbound x": 2}, {}, Verdict.INCONCLUSIVE, "only 1 of 3 writes that were meant"),
    ({"same": 90}, {"incomplete": 2, "same": 1}, {}, Verdict.INCONCLUSIVE, "only 1 of 3 writes that were meant"),
    ({"same": 2}, {planning.WRITE: 9}, {planning.OTHER_SERVICE: 9}, Verdict.PASS, ""),
    ({"same": 90}, {"same": 9, NO_SANDBOX: 1}, {}, Verdict.INCONCLUSIVE, NO_SANDBOX),
    ({}, {}, {}, Verdict.INCONCLUSIVE, "nothing was compared"),
    ({}, {"incomplete": 3}, {}, Verdict.INCONCLUSIVE, "nothing was compared"),
    ({"same": 1, "different": 1}, {"unbound x": 7}, {}, Verdict.FAIL, f"squeezed {READ} result"),
]


@pytest.mark.parametrize(("reads", "writes", "others", "verdict", "first"), MIXES)
def test_how_much_must_be_compared(
    reads: dict[str, int], writes: dict[str, int], others: dict[str, int], verdict: Verdict, first: str
) -> None:
    """At least half of the calls, and of the writes, that somebody meant to send; the reason stands first."""
    judged = Judge((), date(2027, 1, 1))
    for counts, name, answer in ((reads, READ, 7), (writes, WRITE, None), (others, READ, 7)):
        for became, count in counts.items():
            for each in calls(count, name=name, answer=answer):
                _judge(judged, each, became, answer)
    result = _ended(judged)
    assert result.verdict is verdict
    assert first in "".join(result.reasons[:1])
    assert {planning.LONG_POLL, planning.OTHER_SERVICE, planning.WRITE} == NOT_MEANT


def _judge(judged: Judge, each: Exchange, became: str, answer: Value) -> None:
    match became:
        case "same":
            assert judged.judge(each, answer, 1) is Judgement.SAME
        case "different":
            assert judged.judge(each, 8, 1) is Judgement.DIFFERENT
        case "incomplete":
            assert judged.judge(each._replace(reply=None), answer, 1) is Judgement.INCOMPLETE
        case why:
            judged.not_sent(each, why)


@pytest.mark.parametrize(("now", "found"), [({"a": "x", "b": "y"}, Judgement.SAME), ({"b": "y"}, Judgement.DIFFERENT)])
def test_nothing_does_not_stand_for_what_was_redacted(now: Value, found: Judgement) -> None:
    """A field of which the capture has no value is there in both answers, or that is a difference."""
    called = "VM.get_other_config"
    made = exchange("xapi", called, {"session_id": "s", "self": "v"}, {"a": "(secret)", "b": "y"})
    assert made.reply is not None
    made = made._replace(reply=msgspec.structs.replace(made.reply, redacted=["result.a"]))
    assert Judge((), date(2027, 1, 1)).judge(made, now, 1) is found


def test_a_fault_that_names_nothing_is_not_taken_for_one_that_names_a_handle() -> None:
    """The text None in a fault is that text."""
    taken: dict[str, Value] = {"debug_info": "d", "session_id": "me", "reservation_id": "r1"}
    made = exchange("squeezed", "delete_reservation", taken, None)
    fault = Fault(Kind.DECLARED, "", code="Unknown_reservation", argument="None")
    back = Bindings({}).back(made, method("squeezed", "delete_reservation"), model.load("squeezed"), fault)
    assert isinstance(back, Fault)
    assert back.argument == "None"


# --- a stand-in whose ground goes away -------------------------------------------------------------------------------


@asynccontextmanager
async def standing(where: str) -> AsyncIterator[tuple[asyncio.Event, asyncio.Task[None]]]:
    recorded, stop, ready = Recorded(model.load("squeezed"), lambda _text: None), asyncio.Event(), asyncio.Event()
    recorded.load(calls(1, name=READ, answer=7))
    serving = asyncio.create_task(serve([choose(None, "squeezed", where)], recorded, stop, lambda _texts: ready.set()))
    async with asyncio.timeout(20):
        await ready.wait()
        yield stop, serving
        await serving


async def test_the_store_goes_away() -> None:
    """The stand-in ends when it is told to, without a defect."""
    async with running_store("embedded", Path) as process, standing(f"xenstore:{process.socket}") as (stop, _):
        await process.kill()
        stop.set()


async def test_the_bus_goes_away_while_it_ends(bus_daemon: BusDaemon) -> None:
    """There is no name to be given up any more."""
    async with standing(f"bus:{bus_daemon.address}") as (stop, _):
        stop.set()
        bus_daemon.kill()


@pytest.mark.parametrize("hides", [hiding.near(0.02, 4), hiding.times(None)])
def test_a_number_beyond_all_floats_ends_no_run(hides: hiding.Hides) -> None:
    """It is a difference, as any other."""
    assert not hides(10**400, 5)
    assert not hides(5, -(10**400))
