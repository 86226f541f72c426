"""The law, whatever happens in whatever order: one authority, at most one execution, never half a move.

State, journal, dispatch, routing and the ladder are the real ones. What stands around them is a model: two services,
each with a legacy daemon and a bus daemon that log what they execute, and a flip that does the steps of `bridges.flip`
one by one, so that a crash, a failure or a kill can come between any two of them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridges import cutover, journal, routing
from bridges.calls import Door, Side
from bridges.cutover import LADDER, MEANINGS, Compared, IllegalMove, Keeper, Requirement, Stage, Step
from bridges.dispatch import Dispatch, arrival
from bridges.durable import Durable
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Effect, Method
from bridges.journal import Journal
from bridges.state import Order, Standing, State

T = TypeVar("T")
MEMORY = Path("/dev/shm")
NOW = "2026-01-01T00:00:00.000+00:00"
SQUEEZED, XENOPSD = "squeezed", "xenopsd"
REQUIRES = {SQUEEZED: (), XENOPSD: (Requirement(SQUEEZED, Stage.RELAY),)}
DOORS = {SQUEEZED: (Door.HTTP, Door.XENSTORE, Door.BUS), XENOPSD: (Door.HTTP, Door.FRAMED, Door.BUS)}
# By hand and not from the data's effects: what may reach a candidate, what may not, and what only waits.
READS = {SQUEEZED: ("get_diagnostics", "query_reservation_of_domain"), XENOPSD: ("VM.list", "VM.stat")}
WRITES = {SQUEEZED: ("login", "reserve_memory"), XENOPSD: ("VM.start", "VM.suspend")}
POLLS = {SQUEEZED: (), XENOPSD: ("UPDATES.get",)}


class Failed(Exception):
    """A step of a flip failed."""


class Call:
    """A call at one of our doors. `is_doubtful`: whoever had it in hand died before its result was known."""

    def __init__(self, number: int, method: Method, asked: asyncio.Future[Any], reply: asyncio.Future[Any]) -> None:
        self.number = number
        self.method = method
        self.is_write = method.name in WRITES[method.service]
        self.asked = asked
        self.reply = reply
        self.task: asyncio.Task[None]
        self.side: Side | None = None
        self.is_doubtful = False


class Host:
    """What goes on when the bridge dies: the daemons of one service, and what callers and daemons remember."""

    def __init__(self) -> None:
        self.legacy_runs = True
        self.rival_runs = False
        self.bus_runs = True
        self.assumed: int | None = None
        self.executed: list[int] = []
        self.heard_by_candidate: list[str] = []
        self.epochs: list[tuple[int, Stage]] = [(0, Stage.OFF)]
        self.is_frozen = False
        self.admitted = self.answered = self.in_doubt = self.abandoned = 0
        self.left_by_callers = 0

    def can_execute(self, side: Side) -> bool:
        return self.legacy_runs if side is Side.LEGACY else self.bus_runs and self.assumed is not None


class Service:
    """One service in one life of the bridge."""

    def __init__(self, name: str, host: Host, calls: Journal) -> None:
        self.name = name
        self.host = host
        self.dispatch = Dispatch(name, calls)
        self.calls: list[Call] = []
        self.flip: Generator[None, None, None] | None = None
        self.way: tuple[Standing, Standing] | None = None
        self.is_undoing = False
        self.must_hold = False

    def in_flight(self) -> list[Call]:
        return [call for call in self.calls if call.asked.done() and not call.task.done()]

    def enter(self, standing: Standing) -> None:
        self.dispatch.standing = standing
        if self.host.epochs[-1] != (standing.epoch, standing.stage):
            self.host.epochs.append((standing.epoch, standing.stage))


def sorted_by_ladder(stages: list[Stage]) -> list[Stage]:
    return sorted(stages, key=LADDER.index)


class Machine(RuleBasedStateMachine):
    """Rules are what callers, operators, daemons and bad luck do; `live` is the life of the bridge."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where there is such a place: a crash is a copy of the files, so nothing need reach a disk.
        self.root = Path(tempfile.mkdtemp(prefix="machine", dir=MEMORY if MEMORY.is_dir() else None))
        self.loop = asyncio.new_event_loop()
        self.lives = 0
        self.number = 0
        self.hosts = {name: Host() for name in (SQUEEZED, XENOPSD)}
        (self.root / "0").mkdir()
        self.open()

    def teardown(self) -> None:
        try:
            self.close()
        finally:
            self.loop.close()
            shutil.rmtree(self.root)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(stages=st.lists(st.sampled_from(Stage), min_size=2, max_size=2).map(sorted_by_ladder))
    def start(self, stages: list[Stage]) -> None:
        """The services stand somewhere already; squeezed, which xenopsd requires, the further."""
        for name, stage in zip((XENOPSD, SQUEEZED), stages, strict=True):
            host, service = self.hosts[name], self.services[name]
            for step in LADDER[1 : LADDER.index(stage) + 1]:
                origin = service.dispatch.standing
                standing, order = Standing(step, origin.epoch + 1), Order("uid 0", "before")
                self.state.commit(self.state.begin(name, origin, step, order), name, origin, standing, order, None)
                service.enter(standing)
            host.legacy_runs = MEANINGS[stage].authority is Side.LEGACY
            self.keep_candidate(service)

    # -- the bridge's life

    def open(self) -> None:
        """A start: what was cut off is ended, then the service is brought to its stage, as `Endpoints.run` does it."""
        self.state = State(self.root / str(self.lives), now=lambda: NOW)
        self.durable = Durable(self.root / str(self.lives) / "records.sqlite", journal.SCHEMA, 1)
        self.journal = Journal(self.durable, lambda: NOW)
        self.lost = self.journal.recover()
        self.services = {name: Service(name, host, self.journal) for name, host in self.hosts.items()}
        for service in self.services.values():
            standing, story = self.state.recover(service.name)
            service.enter(standing)
            host = service.host
            if MEANINGS[standing.stage].authority is Side.BUS:
                self.keep_candidate(service)
            else:
                host.legacy_runs |= host.rival_runs or story is not None
                host.rival_runs = False

    def close(self) -> None:
        for service in self.services.values():
            for call in service.calls:
                call.task.cancel()
            self.run(_all_done([call.task for call in service.calls]))
        self.durable.close()
        self.state.close()

    @staticmethod
    def keep_candidate(service: Service) -> None:
        """While the bus rules and nothing is being moved, a bus daemon that is there gets Assume."""
        standing = service.dispatch.standing
        if MEANINGS[standing.stage].authority is Side.BUS and service.host.bus_runs:
            service.host.assumed = standing.epoch

    # -- callers

    @rule(data=st.data(), count=st.integers(1, 4))
    def call(self, data: st.DataObject, count: int) -> None:
        """Calls come to any doors: they wait at ours while a service is moved; at another they never come to us."""
        for _ in range(count):
            self.one_call(data)

    def one_call(self, data: st.DataObject) -> None:
        service = self.services[data.draw(st.sampled_from([SQUEEZED, XENOPSD]))]
        door = data.draw(st.sampled_from(DOORS[service.name]))
        name = data.draw(st.sampled_from(READS[service.name] + WRITES[service.name] + POLLS[service.name]))
        method = model.load(service.name).method(name)
        assert method is not None
        keeper = routing.keeper_of(service.dispatch.standing.stage, door)
        if keeper.is_ours:
            self.run(self.at_our_door(service, door, method))
        elif keeper is not Keeper.CLOSED:
            self.at_their_own_door(service, Side.LEGACY if keeper is Keeper.LEGACY else Side.BUS, method)

    def at_their_own_door(self, service: Service, side: Side, method: Method) -> None:
        if service.host.can_execute(side) and method.name in WRITES[service.name]:
            self.number += 1
            self.execute(service, side, self.number)

    async def at_our_door(self, service: Service, door: Door, method: Method) -> None:
        self.number += 1
        call = Call(self.number, method, self.loop.create_future(), self.loop.create_future())
        host, dispatch = service.host, service.dispatch

        async def work(side: Side) -> str:
            assert call.side is None, "sent twice"
            assert not service.must_hold, "let through while it is moved"
            assert side is MEANINGS[dispatch.standing.stage].authority
            assert door is Door.BUS or dispatch.standing.stage is not Stage.COMPLETE, "through a closed door"
            call.side = side
            host.admitted += 1
            call.asked.set_result(None)
            if not host.can_execute(side):
                raise Fault(Kind.UNAVAILABLE, "it does not run")
            return str(await call.reply)

        async def ask() -> None:
            try:
                await dispatch.run(arrival(door, method), work)
            except Fault as fault:
                if fault.kind is Kind.IN_DOUBT:
                    assert call.is_doubtful
                    host.in_doubt += 1
                    return
                if fault.kind is Kind.RETIRED:
                    assert dispatch.standing.stage is Stage.COMPLETE
                    return
            host.answered += 1
            if dispatch.goes_to_candidate(method):
                host.heard_by_candidate.append(method.name)

        call.task = self.loop.create_task(ask())
        service.calls.append(call)
        await self.settled(service, [call])

    @staticmethod
    async def settled(service: Service, calls: list[Call]) -> None:
        """Until each of them waits at the gate, is in a daemon's hands or is over."""
        for call in calls:
            if service.dispatch.is_held:
                await asyncio.sleep(0)
            else:
                await asyncio.wait([call.task, call.asked], return_when=asyncio.FIRST_COMPLETED)
        for call in calls:
            if call.asked.done() and call.side is not None and not service.host.can_execute(call.side):
                await asyncio.wait([call.task])

    def execute(self, service: Service, side: Side, number: int) -> None:
        """A daemon does what was asked of it."""
        assert service.host.can_execute(side)
        assert number not in service.host.executed, "executed twice"
        service.host.executed.append(number)

    def any_in_flight(self) -> bool:
        return any(service.in_flight() for service in self.services.values())

    @precondition(any_in_flight)
    @rule(data=st.data(), is_answered=st.booleans())
    def daemon_executes(self, data: st.DataObject, is_answered: bool) -> None:
        """The daemon that has a call executes it; the answer comes at once, or only later, or never."""
        service = data.draw(st.sampled_from([each for each in self.services.values() if each.in_flight()]))
        call = data.draw(st.sampled_from(service.in_flight()))
        self.finish(service, call, is_answered=is_answered)

    def finish(self, service: Service, call: Call, *, is_answered: bool = True) -> None:
        assert call.side is not None
        assert call.side is MEANINGS[service.dispatch.standing.stage].authority, "finishes under another authority"
        if call.is_write and call.number not in service.host.executed:
            self.execute(service, call.side, call.number)
        if is_answered:
            call.reply.set_result("done")
            self.run(_all_done([call.task]))

    @precondition(any_in_flight)
    @rule()
    def daemons_answer_everything(self) -> None:
        """No caller waits any more but those whose calls are held."""
        for service in self.services.values():
            for call in service.in_flight():
                self.finish(service, call)

    @precondition(any_in_flight)
    @rule(data=st.data())
    def caller_leaves(self, data: st.DataObject) -> None:
        """Nobody waits for the answer any more; what became of a write that he had sent is not known."""
        service = data.draw(st.sampled_from([each for each in self.services.values() if each.in_flight()]))
        call = data.draw(st.sampled_from(service.in_flight()))
        call.task.cancel()
        self.run(_all_done([call.task]))
        service.host.abandoned += 1
        service.host.left_by_callers += call.is_write

    # -- operators

    @rule(
        name=st.sampled_from([SQUEEZED, XENOPSD]),
        wanted=st.one_of(st.sampled_from(Stage), st.integers(0, 7)),
        skips=st.booleans(),
        is_kill=st.integers(0, 5).map(lambda number: number == 0),
        steps=st.integers(0, 12),
    )
    def begin(self, name: str, wanted: Stage | int, skips: bool, is_kill: bool, steps: int) -> None:
        """A move to any stage, or a kill; refused by the ladder, by a freeze or for the order of the services."""
        if self.is_moving():
            return
        service = self.services[name]
        stages = {each.name: each.dispatch.standing.stage for each in self.services.values()}
        if not isinstance(wanted, Stage):  # one of those that an operator is told of
            legal = cutover.legal_stages(stages[name])
            wanted = Stage(legal[wanted % len(legal)].partition(" ")[0])
        if is_kill:
            killed = cutover.kill_target(stages[name])
            end = MEANINGS[killed or stages[name]]
            assert end.authority is Side.LEGACY
            assert end.compared is not Compared.READS
            if killed is None:
                return
            wanted = killed
        elif service.host.is_frozen or not _is_in_order(name, wanted, stages):
            return
        try:
            way = cutover.moves(stages[name], wanted, skips=skips)
        except IllegalMove:
            return
        service.flip = self.moving(service, way, is_kill=is_kill)
        for _ in range(steps):
            self.advance()

    @rule(name=st.sampled_from([SQUEEZED, XENOPSD]), is_far=st.booleans(), steps=st.integers(3, 12))
    def begin_to_cross(self, name: str, is_far: bool, steps: int) -> None:
        """A move that changes the authority, while nobody calls."""
        meaning = MEANINGS[self.services[name].dispatch.standing.stage]
        wanted = Stage.LIVE if meaning.authority is Side.LEGACY else Stage.RELAY if is_far else Stage.SHADOW
        if not self.is_moving():
            self.daemons_answer_everything()
            self.begin(name=name, wanted=wanted, skips=True, is_kill=False, steps=steps)

    def is_moving(self) -> bool:
        return any(each.flip is not None for each in self.services.values())

    def moved(self) -> Service:
        return next(each for each in self.services.values() if each.flip is not None)

    @precondition(is_moving)
    @rule()
    def advance(self) -> None:
        """The flip does its next step."""
        service = next((each for each in self.services.values() if each.flip is not None), None)
        if service is not None and service.flip is not None and next(service.flip, self) is self:
            self.ended(service)

    @precondition(lambda self: self.is_moving() and not self.moved().is_undoing)
    @rule(steps=st.integers(0, 3), is_crash=st.booleans())
    def fail(self, steps: int, is_crash: bool) -> None:
        """The flip fails where it is: what it did is undone, as far as it had come, unless a crash comes between."""
        service = self.moved()
        try:
            assert service.flip is not None
            service.flip.throw(Failed)
        except (StopIteration, Failed):
            self.ended(service)
        for _ in range(steps):
            self.advance()
        self.crash(is_crash=is_crash)

    def ended(self, service: Service) -> None:
        service.flip, service.way, service.is_undoing = None, None, False
        assert not service.dispatch.is_held
        self.keep_candidate(service)

    # -- the flip, as bridges.flip does it

    def moving(self, service: Service, way: tuple[Stage, ...], *, is_kill: bool) -> Generator[None, None, None]:
        for target in way:
            origin = service.dispatch.standing
            committed = Standing(target, origin.epoch + 1)
            order = Order("uid 0", "a reason", verb="kill" if is_kill else "stage")
            number = self.state.begin(service.name, origin, target, order)
            service.way = origin, committed
            try:
                yield
                for step in (Step.PREPARED, Step.GATED):
                    self.state.reached(number, step)
                    yield
                yield from self.steps(service, number, order, is_kill=is_kill)
            except Failed:
                self.state.refuse(number, service.name, origin, target, order, "refused: it failed")
                self.resume(service)
                return
            self.resume(service)
            self.state.reached(number, Step.RESUMED)
            service.way, service.is_undoing = None, False
            yield

    def steps(self, service: Service, number: int, order: Order, *, is_kill: bool) -> Generator[None, None, None]:
        assert service.way is not None
        origin, committed = service.way
        before, after = MEANINGS[origin.stage], MEANINGS[committed.stage]
        if before.authority is not after.authority:
            assert before.sockets.is_ours
            assert after.sockets.is_ours
        if before.authority is not after.authority or (before.sockets.is_ours and not after.sockets.is_ours):
            service.dispatch.hold()
            service.must_hold = True
            self.state.reached(number, Step.HELD)
            yield
            while not self.drain(service) and not is_kill:
                yield
            self.state.reached(number, Step.DRAINED)
            yield
        if before.authority is not after.authority:
            yield from (self.to_bus if after.authority is Side.BUS else self.to_legacy)(service, number, is_kill)
        self.state.commit(number, service.name, origin, committed, order, None)
        service.enter(committed)

    def to_bus(self, service: Service, number: int, _is_kill: bool) -> Generator[None, None, None]:
        assert service.way is not None
        host, (_, committed) = service.host, service.way
        assert not service.in_flight()
        host.legacy_runs = False
        try:
            yield
            self.state.reached(number, Step.FENCED)
            yield
            if not host.bus_runs:
                raise Failed
            host.assumed = committed.epoch
            yield
            self.state.reached(number, Step.TRANSFERRED)
            yield
        except Failed:
            service.is_undoing = True
            host.assumed = None
            yield
            self.state.retreat(number)
            yield
            host.legacy_runs, host.rival_runs = True, False
            yield
            raise

    def to_legacy(self, service: Service, number: int, is_kill: bool) -> Generator[None, None, None]:
        host = service.host
        for call in service.in_flight():  # a bus daemon that is told to yield finishes what it has
            self.finish(service, call)
        host.assumed = None
        try:
            yield
            self.state.reached(number, Step.FENCED)
        except Failed:
            self.keep_candidate(service)
            raise
        try:
            yield
            host.legacy_runs, host.rival_runs = True, False
            yield
            self.state.reached(number, Step.TRANSFERRED)
            yield
        except Failed:
            service.is_undoing = True
            host.legacy_runs = False
            if is_kill:
                return
            yield
            self.state.retreat(number)
            yield
            self.keep_candidate(service)
            yield
            raise

    def drain(self, service: Service) -> bool:
        async def drained() -> bool:
            only_polls = all(call.method.deadline is None for call in service.in_flight())
            is_idle = await service.dispatch.drain(5.0 if only_polls else 0.0)
            await _all_done([call.task for call in service.in_flight() if call.method.deadline is None])
            return is_idle

        return self.run(drained())

    def resume(self, service: Service) -> None:
        service.must_hold = False
        service.dispatch.resume()
        self.run(self.settled(service, [call for call in service.calls if not call.task.done()]))

    # -- bad luck

    @rule(is_crash=st.booleans())
    def crash(self, is_crash: bool) -> None:
        """The bridge is killed and started again: memory is lost, the files are as they were."""
        if not is_crash:
            return
        ways = {name: each.way or (each.dispatch.standing,) * 2 for name, each in self.services.items()}
        expected = {}
        for name, service in self.services.items():
            host = service.host
            writes = [call for call in service.in_flight() if call.is_write]
            expected[name] = len(writes)
            host.in_doubt += len(writes)
            host.abandoned += len(service.in_flight()) - len(writes)
        before = {name: self.counts(host) for name, host in self.hosts.items()}
        ignored = shutil.ignore_patterns("ballast")
        shutil.copytree(self.root / str(self.lives), self.root / str(self.lives + 1), ignore=ignored)
        self.close()
        for name, host in self.hosts.items():  # what the dying bridge did in its last moments, nobody saw
            host.admitted, host.answered, host.in_doubt, host.abandoned = before[name]
        shutil.rmtree(self.root / str(self.lives))
        self.lives += 1
        self.open()
        assert {name: self.lost[name] for name in expected} == expected, "in doubt is what a crash hit, and no more"
        for name, service in self.services.items():
            assert service.dispatch.standing in ways[name], "half a move"

    @staticmethod
    def counts(host: Host) -> tuple[int, int, int, int]:
        return host.admitted, host.answered, host.in_doubt, host.abandoned

    @rule(name=st.sampled_from([SQUEEZED, XENOPSD]))
    def bus_daemon_dies_or_comes_back(self, name: str) -> None:
        """What it had in hand is in doubt when it may have changed something; once back it gets Assume again."""
        service, host = self.services[name], self.hosts[name]
        if not host.bus_runs:
            host.bus_runs = True
            if service.flip is None:
                self.keep_candidate(service)
            return
        host.bus_runs, host.assumed = False, None
        for call in service.in_flight():
            if call.side is Side.BUS:
                call.is_doubtful = call.is_write
                kind = Kind.IN_DOUBT if call.is_write else Kind.UNAVAILABLE
                call.reply.set_exception(Fault(kind, "it died"))
                self.run(_all_done([call.task]))

    @rule(name=st.sampled_from([SQUEEZED, XENOPSD]))
    def legacy_daemon_is_started_by_hand(self, name: str) -> None:
        """While the bus rules it is a rival: no call of ours reaches it, and the service is frozen."""
        service, host = self.services[name], self.hosts[name]
        if host.legacy_runs or host.rival_runs:
            return
        if service.flip is None and MEANINGS[service.dispatch.standing.stage].authority is Side.LEGACY:
            host.legacy_runs = True
            return
        host.rival_runs = True
        if service.flip is None:
            self.state.freeze(name, "SPLIT_OWNER: a legacy daemon runs")
            host.is_frozen = True

    @rule(name=st.sampled_from([SQUEEZED, XENOPSD]))
    def acknowledge(self, name: str) -> None:
        """Somebody has ended the rival and looked."""
        host = self.hosts[name]
        host.rival_runs = host.is_frozen = False
        self.state.freeze(name, None)

    # -- the law

    @invariant()
    def at_most_one_side_may_write(self) -> None:
        for name, host in self.hosts.items():
            assert not (host.can_execute(Side.LEGACY) and host.can_execute(Side.BUS)), f"{name} has two authorities"

    @invariant()
    def who_may_write_is_who_rules(self) -> None:
        for service in self.services.values():
            if service.flip is None:
                rules = MEANINGS[service.dispatch.standing.stage].authority
                other = Side.BUS if rules is Side.LEGACY else Side.LEGACY
                assert not service.host.can_execute(other)

    @invariant()
    def every_write_is_executed_at_most_once(self) -> None:
        for host in self.hosts.values():
            assert len(host.executed) == len(set(host.executed))

    @invariant()
    def no_candidate_has_heard_of_a_write(self) -> None:
        for name, host in self.hosts.items():
            assert set(host.heard_by_candidate) <= set(READS[name])

    @invariant()
    def every_call_is_accounted_for(self) -> None:
        for name, host in self.hosts.items():
            service = self.services[name]
            assert service.dispatch.adds_up
            in_flight = len(service.in_flight())
            assert service.dispatch.in_flight == in_flight
            assert host.admitted == host.answered + in_flight + host.in_doubt + host.abandoned
            assert self.journal.in_doubt_count(name) == host.in_doubt + host.left_by_callers

    @invariant()
    def epochs_grow(self) -> None:
        for name, host in self.hosts.items():
            epochs = [epoch for epoch, _ in host.epochs]
            assert epochs == sorted(set(epochs))
            assert self.services[name].dispatch.standing == self.state.standing(name)

    @invariant()
    def a_freeze_is_kept(self) -> None:
        for name, host in self.hosts.items():
            assert (self.state.frozen(name) is not None) is host.is_frozen

    @invariant()
    def services_stand_in_their_order(self) -> None:
        stages = {name: each.dispatch.standing.stage for name, each in self.services.items()}
        if stages[XENOPSD] not in (Stage.OFF, Stage.OBSERVE):
            assert stages[SQUEEZED] not in (Stage.OFF, Stage.OBSERVE)


def _is_in_order(name: str, target: Stage, stages: dict[str, Stage]) -> bool:
    """As the bridge's own verbs ask it: what this one needs, and who needs this one."""
    after = {**stages, name: target}
    return not any(cutover.unmet(after[each], REQUIRES[each], after) for each in (SQUEEZED, XENOPSD))


async def _all_done(tasks: list[asyncio.Task[None]]) -> None:
    for done in await asyncio.gather(*tasks, return_exceptions=True):
        assert done is None or isinstance(done, asyncio.CancelledError), done


# The machine waits for nothing but a thread, and takes ten times as long while other tests run beside it.
pytestmark = pytest.mark.timeout(300)
TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize(("origin", "target"), [(Stage.SHADOW, Stage.LIVE), (Stage.LIVE, Stage.RELAY)])
def test_a_crash_between_any_two_steps_of_a_move_or_of_its_undoing(origin: Stage, target: Stage, steps: int) -> None:
    """After so many steps the bridge is killed; or the move fails there, and it is killed after each step back."""
    for undone in (None, *range(5)):
        machine = Machine()
        try:
            machine.start(stages=[Stage.OFF, origin])
            machine.begin(name=SQUEEZED, wanted=target, skips=False, is_kill=False, steps=steps)
            if undone is None:
                machine.crash(is_crash=True)
            elif machine.is_moving():
                machine.fail(steps=undone, is_crash=True)
            machine.at_most_one_side_may_write()
            machine.who_may_write_is_who_rules()
            machine.epochs_grow()
            standing = machine.services[SQUEEZED].dispatch.standing
            assert machine.hosts[SQUEEZED].can_execute(MEANINGS[standing.stage].authority), "nobody rules"
        finally:
            machine.teardown()


def test_the_methods_of_the_model_are_what_they_are_taken_for() -> None:
    """What the model calls a read, a write and a long poll is so in the interfaces."""
    for service in (SQUEEZED, XENOPSD):
        known = {method.name: method for method in model.load(service).methods()}
        assert {known[name].effect for name in READS[service]} == {Effect.READ}
        assert {known[name].effect for name in WRITES[service]} == {Effect.WRITE}
        assert all(known[name].deadline is None for name in POLLS[service])
        assert all(known[name].deadline is not None for name in READS[service] + WRITES[service])
