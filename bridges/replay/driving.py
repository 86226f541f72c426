"""Recorded calls are sent to a target: each once, on the schedule of the recording, and judged.

Open loop: exchange i is due at t0 + (due_i - due_0) / speed, or i / rate, on an absolute schedule, whatever became of
those before it; a call waits besides for those that it must follow (`planning.Order`) and for its handles. Latency is
measured from the due time: a target that stalls is not asked less for it. How late we were ourselves, beyond the due
time, the end of what a call had to follow and the room that the target had for it, is the lateness; a run that could
not keep its schedule says so.

Closed loop: so many workers, in the order of the recording, each sending when its last call is over. Their latency is
measured from the send, so a stall hides the calls that were not made.

Whether the target is a sandbox is asked anew before each write; once it is not, no write is sent any more.

What is bounded, and what full means
    calls in memory   `AHEAD`: the capture is read no further, and calls behind wait, on the target's account
    calls with it     `Target.at_once`: others wait, each no longer than its deadline
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from bridges.calls import Call, Value
from bridges.comparison import Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Effect, Method
from bridges.pacing import GivingWay
from bridges.replay.bindings import Bindings, Unbound
from bridges.replay.http_client import ON_THE_WAY
from bridges.replay.pairs import Exchange
from bridges.replay.planning import LONG_POLL, NO_SANDBOX, OTHER_SERVICE, WRITE, Order, Schedule, is_late
from bridges.replay.results import Timing
from bridges.replay.tallies import Histogram
from bridges.replay.targets import Target, WrongTarget

LOG: Final = logging.getLogger("bridges.replay")

AHEAD: Final = 10_000
HORIZON: Final = 2.0  # seconds before a call is due that it is made ready
CHUNK: Final = 64  # records of a frame: what is read at a time
GRACE: Final = 5.0
HEAD_START: Final = 0.05  # seconds until the first call is due, to have those after it ready

INTERRUPTED: Final = "interrupted"
NOT_WRITTEN_DOWN: Final = "no such method"
NOT_AT_THIS_DOOR: Final = "not at this door"
NUMBER_TAKEN: Final = "the seq of another call"
CUT_OFF: Final = "stopped before the answer came"

T = TypeVar("T")
Progress = Callable[[int], None]


class Judge(Protocol):
    """Who is told what became of each exchange: it was not sent, or it was answered after so many microseconds."""

    def not_sent(self, exchange: Exchange, why: str) -> None: ...

    def judge(self, exchange: Exchange, outcome: Outcome, us: int) -> object: ...

    def unanswered(self, exchange: Exchange, why: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Drive:
    """How it is sent. `rate` (calls/s) replaces the recorded schedule, `closed` (workers) all of it.

    No call waits longer than `deadline` (seconds), whatever the interface gives it.
    """

    speed: float = 1.0
    rate: float | None = None
    closed: int | None = None
    allow_writes: bool = False
    deadline: float | None = None


class _CutOff:
    """What came of a call whose answer was not waited for."""


class _NotSent(NamedTuple):
    """What came of a call that was held back in the last moment."""

    why: str


class _Sending:
    """One call on its way: waiting for its time, for what it must follow, or for its answer."""

    __slots__ = (
        "after", "due", "exchange", "is_over", "is_sent", "late", "method", "over_at", "ready", "sent_at", "task",
        "timer",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, method: Method, after: list[_Sending], due: float, ready: float) -> None:
        self.exchange = exchange
        self.method = method
        self.after = after
        self.due = due
        self.ready = ready  # when nothing but us holds it up any more
        self.is_sent = False
        self.late = 0.0
        self.sent_at = 0.0
        self.is_over = asyncio.Event()
        self.over_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None


async def drive(
    exchanges: Iterable[Exchange],
    target: Target,
    options: Drive,
    judge: Judge,
    bindings: Bindings,
    order: Order,
    progress: Progress,
    stop: asyncio.Event,
) -> Timing:
    """Sends what may be sent and judges it; returns when all of it is over, or soon after `stop`.

    With `allow_writes` the target must declare itself a sandbox, else nothing is sent: raises WrongTarget.
    `progress` is told how many exchanges are over. Reading `exchanges` is done in a thread; what it raises is raised
    here, after the calls in flight were ended.
    """
    if options.allow_writes and (why := await target.declares_sandbox()) is not None:
        raise WrongTarget(f"no writes may be sent to {target.description}: {why}")
    driver = _Driver(target, options, judge, bindings, order, progress)
    with _short_collections():
        return await driver.run(iter(exchanges), stop)


class _Driver:
    """One run."""

    def __init__(
        self,
        target: Target,
        options: Drive,
        judge: Judge,
        bindings: Bindings,
        order: Order,
        progress: Progress,
    ) -> None:
        self._target = target
        self._options = options
        self._judge = judge
        self._bindings = bindings
        self._order = order
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(options.closed or AHEAD)  # a worker is nothing but the right to have a call open
        self._held_until = 0.0  # when there was room again, after there had been none
        self._at_once = asyncio.Semaphore(target.at_once or AHEAD)
        self._may_write = options.allow_writes
        self._open: dict[int, _Sending] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._schedule = Schedule()
        self._start: float | None = None
        self._first_due = self._last_due = 0.0
        self._admitted = 0
        self._planned = 0.0
        self._over = 0
        self._defect: asyncio.Future[None] = self._loop.create_future()
        self._giving_way = GivingWay()
        self._lateness = Histogram()
        self._service_time = Histogram()

    async def run(self, exchanges: Iterator[Exchange], stop: asyncio.Event) -> Timing:
        began = self._loop.time()
        feeding = asyncio.create_task(self._feed(exchanges), name="replay")
        stopping = asyncio.create_task(stop.wait(), name="replay is stopped")
        try:
            await asyncio.wait((feeding, stopping, self._defect), return_when=asyncio.FIRST_COMPLETED)
            for each in (self._defect, feeding):
                if each.done():
                    await each
        finally:
            self._defect.cancel()
            stopping.cancel()
            feeding.cancel()
            await asyncio.wait((feeding, stopping))
            await self._end()
        return self._timing(self._loop.time() - began)

    async def _feed(self, exchanges: Iterator[Exchange]) -> None:
        """Reads on as far as there is room, until all calls are over."""
        while chunk := await self._in_thread(lambda: list(islice(exchanges, CHUNK))):
            for exchange in chunk:
                method = self._sendable(exchange)
                if method is not None:
                    was_full = self._room.locked()
                    await self._room.acquire()
                    if was_full:
                        self._held_until = self._loop.time()
                    await self._admit(exchange, method)
        await self._idle.wait()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The result of blocking work. Cancelled, it still waits for the thread, which has the capture open."""
        task = asyncio.create_task(self._giving_way.in_thread(work), name="reading the capture")
        try:
            return await asyncio.shield(task)
        finally:
            if not task.done():
                await asyncio.wait([task])
                task.exception()  # nobody else will look at it

    def _sendable(self, exchange: Exchange) -> Method | None:
        """The method to be called; what is not sent is counted."""
        found = self._why_not(exchange)
        if isinstance(found, Method):
            return found
        self._judge.not_sent(exchange, found)
        self._count()
        return None

    def _why_not(self, exchange: Exchange) -> Method | str:
        request = exchange.request
        if request.service != self._target.interface.name:
            return OTHER_SERVICE
        if request.seq in self._open:
            return NUMBER_TAKEN
        method = self._target.interface.method(request.method)
        if method is None:
            return NOT_WRITTEN_DOWN
        if method.deadline is None:
            return LONG_POLL
        if not method.is_at(self._target.door):
            return NOT_AT_THIS_DOOR
        if method.effect is Effect.WRITE and not self._options.allow_writes:
            return WRITE
        return method

    async def _admit(self, exchange: Exchange, method: Method) -> None:
        seq, due = exchange.request.seq, 0.0
        if self._options.closed is None:
            due = self._due(exchange)
            await asyncio.sleep(due - HORIZON - self._loop.time())  # at least for those whose time has come
        waits = self._order.waits(exchange, method, self._target.interface)
        after = [self._open[each] for each in waits if each in self._open]
        sending = self._open[seq] = _Sending(exchange, method, after, due, max(due, self._held_until))
        self._idle.clear()
        if self._options.closed is None:
            sending.timer = self._loop.call_at(sending.due, self._begin, sending)
        else:
            self._begin(sending)
        self._admitted += 1

    def _due(self, exchange: Exchange) -> float:
        """When it is to be sent, on the loop's clock."""
        rate = self._options.rate
        at = self._admitted / rate if rate is not None else self._schedule.due(exchange) / self._options.speed
        if self._start is None:
            self._start, self._first_due = self._loop.time() + HEAD_START, at
        self._planned = max(self._planned, at - self._first_due)
        # Timers of one moment go off in any order: calls are made in that of the recording.
        self._last_due = max(self._start + at - self._first_due, math.nextafter(self._last_due, math.inf))
        return self._last_due

    def _begin(self, sending: _Sending) -> None:
        sending.timer = None
        sending.task = asyncio.create_task(self._carry_out(sending), name="replayed call")
        sending.task.add_done_callback(self._look_for_defect)

    def _look_for_defect(self, task: asyncio.Task[None]) -> None:
        """What is no outcome of a call ends the run: nobody would know what the numbers stand for."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._defect.done():
            self._defect.set_exception(error)

    async def _carry_out(self, sending: _Sending) -> None:
        try:
            for earlier in sending.after:
                await earlier.is_over.wait()
                sending.ready = max(sending.ready, earlier.over_at)
            await self._send(sending)
        except asyncio.CancelledError:
            if not sending.is_sent:
                self._judge.not_sent(sending.exchange, INTERRUPTED)
            raise
        finally:
            self._finish(sending)

    async def _send(self, sending: _Sending) -> None:
        exchange, method = sending.exchange, sending.method
        interface = self._target.interface
        try:
            arguments = self._bindings.arguments(exchange, method, interface)
        except Unbound as unbound:
            self._not_sent(sending, unbound.why)
            return
        sending.sent_at = self._loop.time()
        sending.late = sending.sent_at - sending.ready
        outcome = await self._in_turn(sending, arguments)
        if isinstance(outcome, _NotSent):
            self._not_sent(sending, outcome.why)
            return
        if isinstance(outcome, _CutOff):
            self._judge.unanswered(exchange, CUT_OFF)
            return
        answered = self._loop.time()
        took = answered - sending.sent_at
        self._service_time.add(_microseconds(took))
        if self._options.closed is None:
            self._lateness.add(_microseconds(sending.late))
            took = answered - sending.due
        if isinstance(outcome, Fault):
            self._bindings.failed(exchange, method, interface)
        else:
            self._bindings.learn(exchange, method, interface, outcome)
        outcome = self._bindings.back(exchange, method, interface, outcome)
        self._judge.judge(exchange, outcome, _microseconds(took))

    def _not_sent(self, sending: _Sending, why: str) -> None:
        self._judge.not_sent(sending.exchange, why)
        self._bindings.failed(sending.exchange, sending.method, self._target.interface)

    async def _in_turn(self, sending: _Sending, arguments: dict[str, Value]) -> Outcome | _CutOff | _NotSent:
        """Asks once the target has room for one more call; with a write, only if it is a sandbox in that moment."""
        method = sending.method
        assert method.deadline is not None
        patience = method.deadline if self._options.deadline is None else min(method.deadline, self._options.deadline)
        call = Call(method, arguments, self._target.door, time.monotonic() + patience)
        try:
            async with asyncio.timeout(patience):
                await self._at_once.acquire()
        except TimeoutError:
            return Fault(Kind.TIMED_OUT, f"{method.name}: was not sent, the target had no room for it")
        try:
            if method.effect is Effect.WRITE and not await self._is_sandbox():
                return _NotSent(NO_SANDBOX)
            sending.is_sent = True
            sending.sent_at = self._loop.time()
            ON_THE_WAY.set(partial(self._note_sent, sending))
            return await self._ask(call)
        finally:
            self._at_once.release()

    async def _is_sandbox(self) -> bool:
        """Whether writes may be sent still: what was no sandbox once in a run is none any more."""
        if self._may_write and (why := await self._target.declares_sandbox()) is not None and self._may_write:
            self._may_write = False
            LOG.warning("%s gets no more writes: %s", self._target.description, why)
        return self._may_write

    def _note_sent(self, sending: _Sending) -> None:
        now = self._loop.time()
        sending.late += now - sending.sent_at
        sending.sent_at = now

    async def _ask(self, call: Call) -> Outcome | _CutOff:
        """What the target answers, asked once. Cut off, a write may have been executed."""
        try:
            return await self._target.backend.ask(call)
        except Fault as fault:
            return fault
        except asyncio.CancelledError:
            return _CutOff()
        except Exception:
            LOG.exception("replay: %s %s", call.method.service, call.method.name)
            return Fault(Kind.INTERNAL, f"{call.method.name}: a defect of replay, see the log")

    def _finish(self, sending: _Sending) -> None:
        sending.after = []  # or each call would keep all those before it
        sending.over_at = self._loop.time()
        sending.is_over.set()
        del self._open[sending.exchange.request.seq]
        self._order.over(sending.exchange.request.seq)
        if not self._open:
            self._idle.set()
        self._room.release()
        self._count()

    def _count(self) -> None:
        self._over += 1
        self._progress(self._over)

    async def _end(self) -> None:
        """No call is begun any more; those that were sent are waited for, a little."""
        tasks = [sending.task for sending in self._open.values() if sending.task is not None]
        for sending in self._open.values():
            if sending.timer is not None:
                sending.timer.cancel()
            elif not sending.is_sent and sending.task is not None:
                sending.task.cancel()
        if tasks:
            _, unanswered = await asyncio.wait(tasks, timeout=GRACE)
            for task in unanswered:
                task.cancel()
            await asyncio.wait(tasks)
        for sending in tuple(self._open.values()):  # not begun, or in that moment
            self._judge.not_sent(sending.exchange, INTERRUPTED)
            self._finish(sending)

    def _timing(self, took: float) -> Timing:
        options, lateness = self._options, self._lateness.spread()
        if options.closed is not None:
            return Timing(mode="closed loop", workers=options.closed, took_seconds=took)
        return Timing(
            mode="open loop",
            speed=options.speed if options.rate is None else 0.0,
            rate=options.rate or 0.0,
            planned_seconds=self._planned,
            took_seconds=took,
            lateness=lateness,
            kept=not is_late(lateness, self._service_time.spread()),
        )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


@contextmanager
def _short_collections() -> Iterator[None]:
    """What is there before the first call is not looked at by the garbage collector, which would hold up calls for it
    (measured: 40 to 90 ms)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
