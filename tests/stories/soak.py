"""A whole host that is moved and killed at random while everybody calls: the machinery of `test_soak`.

`Soak.run` lets callers call at all doors, moves both services over the whole ladder, and ends parts by force, as the
seed has it. It plays the supervisor (what ended is started again) and the operator (what is frozen by its own doing is
acknowledged). Whatever may not be is a problem in its `accounts`, and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from bridges import cutover
from bridges.cutover import MEANINGS, Stage
from tests.fixtures_dbus import BusDaemon
from tests.fixtures_host import Host
from tests.fixtures_xenstored import StoreProcess
from tests.stories.soak_accounts import Accounts, Turn, journal_rows
from tests.stories.soak_callers import BusCaller, Caller, FramedCaller, HttpCaller, TreeCaller, is_running
from xenstore_rpc.connection import Store

SERVICES: Final = """
[services.squeezed]
xenstore = "squeezed"
http = {{ socket = "{directory}/memory", legacy = "{directory}/memory.legacy" }}
framed = {{ socket = "{directory}/memory.json", legacy = "{directory}/memory.json.legacy" }}
reach = "{reach}"
stale_at_start = "{stale}"
[services.xenopsd]
http = {{ socket = "{directory}/xenopsd", legacy = "{directory}/xenopsd.legacy" }}
"""
NAMES: Final = ("squeezed", "xenopsd")
# A verb may wait for a move before it, for a drain, for a daemon's start and for a part that died: each has its bound.
VERB_SECONDS: Final = 120.0
SETTLE_SECONDS: Final = 60.0
LOST: Final = (OSError, asyncio.IncompleteReadError, json.JSONDecodeError)
# These say that something is broken, whatever was done to the host.
NEVER: Final = frozenset({"ACCOUNTS", "STATE", "STORE_LOST", "TREE_LOST", "NAME_TAKEN"})


def changes_of(audit: list[dict[str, Any]]) -> int:
    """How often the authority changed at most, by these lines of the audit; a move that went back counts twice."""
    return sum(
        2 if str(line["outcome"]).startswith(("refused", "undone")) else 1
        for line in audit
        if MEANINGS[Stage(line["origin"])].authority is not MEANINGS[Stage(line["target"])].authority
    )


class SoakHost(Host):
    """A host whose squeezed has every door."""

    def legacy_commands(self) -> dict[str, list[str]]:
        """Slow enough to be hit in the middle of a call."""
        squeezed = ["--xenstore", self.store.socket, "--http", f"{self.directory}/memory"]
        squeezed += ["--framed", f"{self.directory}/memory.json", "--slow-ms", "8"]
        xenopsd = ["--socket", f"{self.directory}/xenopsd", "--slow-ms", "8"]
        return {
            "squeezed": self.example("squeezed", "legacy_squeezed.py", *squeezed),
            "xenopsd": self.example("xenopsd", "legacy_xenopsd.py", *xenopsd),
        }

    def write_settings(self, *, reach: str = "xenstore", stale: str = "refuse") -> None:
        """As the host of the other stories, with a framed socket."""
        self.settle(SERVICES, reach=reach, stale=stale)

    def daemons(self, script: str) -> list[int]:
        """The processes of this host that run a script and have not ended."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                    if script in command and str(self.directory) in command and is_running(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def runs(self, name: str) -> bool:
        """Whether the legacy daemon that the pid file names runs."""
        with contextlib.suppress(OSError, ValueError):
            return self.legacy_pid(name) in self.daemons(f"legacy_{name}.py")
        return False

    def has(self, name: str) -> bool:
        """Whether a process of ours runs."""
        return name in self._processes and self.is_alive(name)


class Soak:
    """One run. `seconds` of disorder, then everything must be in order by itself."""

    def __init__(self, bus: BusDaemon, store: StoreProcess, seed: int, seconds: float) -> None:
        self.host = SoakHost(bus, store)
        self.seed = seed
        self.rng = random.Random(seed)
        self.accounts = Accounts(self.host.path("executions"))
        self._bus = bus
        self._seconds = seconds
        self._stop = asyncio.Event()
        self._calm = asyncio.Event()
        self._moving = {name: asyncio.Lock() for name in NAMES}
        self._bus_is_there = True
        self._bridge_is_there = asyncio.Event()
        self._rogue = False
        self._stages: dict[str, Stage] = dict.fromkeys(NAMES, Stage.OFF)
        self._deaths = 0

    # ---- the whole

    async def run(self) -> None:
        """Everything; problems are in the accounts."""
        host, accounts = self.host, self.accounts
        for name in NAMES:
            await host.start_legacy(name)
        await self._start_bridge()
        await self._start_candidate()
        try:
            async with asyncio.timeout(self._seconds + 4 * VERB_SECONDS), asyncio.TaskGroup() as tasks:
                for number, caller in enumerate(self._callers()):
                    tasks.create_task(caller.run(self._stop), name=f"caller {number}")
                scraper = tasks.create_task(self._scrape(), name="scraper")
                actors = [tasks.create_task(self._mover(name), name=f"mover of {name}") for name in NAMES]
                actors.append(tasks.create_task(self._disorder(), name="disorder"))
                tasks.create_task(self._clock(), name="clock")
                await asyncio.wait(actors)
                await self._come_to_order()
                self._stop.set()
                await asyncio.wait([scraper])
        except* AssertionError as group:
            for error in group.exceptions:
                accounts.problem(f"{error}")
        except* TimeoutError:
            accounts.problem("the soak did not come to its end")
        await self._check_end()

    async def _clock(self) -> None:
        """Until the time is over or something is wrong."""
        end = time.monotonic() + self._seconds
        while time.monotonic() < end and not self.accounts.problems:  # noqa: ASYNC110 - many may find one
            await asyncio.sleep(0.1)
        self._calm.set()

    def _callers(self) -> list[Caller]:
        host, calls = self.host, self.accounts.calls
        kinds: list[tuple[type[Caller], str, str, int]] = [
            (TreeCaller, "squeezed", host.store.socket, 2),
            (HttpCaller, "squeezed", f"{host.directory}/memory", 2),
            (FramedCaller, "squeezed", f"{host.directory}/memory.json", 2),
            (BusCaller, "squeezed", host.bus.address, 2),
            (HttpCaller, "xenopsd", f"{host.directory}/xenopsd", 1),
            (BusCaller, "xenopsd", host.bus.address, 1),
        ]
        return [
            kind(f"{kind.door}-{service[0]}{number}", service, place, calls, random.Random(self.rng.random()))
            for kind, service, place, count in kinds
            for number in range(count)
        ]

    # ---- the movers

    async def _mover(self, name: str) -> None:
        rng = random.Random(self.rng.random())
        while not self._calm.is_set():
            # Long where there is most to break: while the bus daemon rules and every door is open.
            await self._pause(rng.uniform(0, 4 if self._stages[name] is Stage.LIVE or name == "xenopsd" else 0.8))
            async with self._moving[name]:
                await self._turn(name, rng)

    async def _turn(self, name: str, rng: random.Random) -> None:
        """One move, or more than one at a time; what it changed is known from the audit."""
        accounts = self.accounts
        await self._bridge_is_there.wait()
        before, lines = await self._look(name), await self._audit(name)
        begun = accounts.offset()
        verbs = [self._verb(name, before, rng)]
        if rng.random() < 0.1:
            verbs.append(self._after(rng.uniform(0, 0.5), {"verb": "kill", "service": name, "reason": "soak"}))
        await asyncio.gather(*(self._ask(verb) for verb in verbs))
        await self._bridge_is_there.wait()
        after, last = await self._look(name), lines[-1]["id"] if lines else 0
        changes = changes_of([line for line in await self._audit(name) if line["id"] > last])
        if name == "squeezed":
            sides = [str(MEANINGS[stage].authority) for stage in (before, after)]
            accounts.turns.append(Turn(begun, accounts.offset(), *sides, changes))

    def _verb(self, name: str, here: Stage, rng: random.Random) -> Callable[[], Awaitable[dict[str, Any]]]:
        if rng.random() < 0.12:
            return self._after(0, {"verb": "kill", "service": name, "reason": "soak"})
        legal = []
        for stage in cutover.LADDER:
            with contextlib.suppress(cutover.IllegalMove):
                cutover.moves(here, stage, skips=True)
                legal.append(stage)
        # Down the ladder lead more ways than up it, and in complete most doors are closed.
        up = [Stage.LIVE, *cutover.LADDER[cutover.LADDER.index(here) + 1 : -2]]
        weights = [5 if stage in up else 2 for stage in legal]
        target = rng.choice(cutover.LADDER) if rng.random() < 0.05 else rng.choices(legal, weights)[0]
        reasons = {"reason": "soak", "skip": "soak", "override": "soak"}
        return self._after(0, {"verb": "stage", "service": name, "stage": str(target), **reasons})

    def _after(self, pause: float, request: dict[str, Any]) -> Callable[[], Awaitable[dict[str, Any]]]:
        async def ask() -> dict[str, Any]:
            await asyncio.sleep(pause)
            self.accounts.note(f"ask {' '.join(str(request[k]) for k in ('verb', 'service', 'stage') if k in request)}")
            return await self.host.control(**request)

        return ask

    async def _ask(self, verb: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        accounts, deaths, begun = self.accounts, self._deaths, time.monotonic()
        try:
            async with asyncio.timeout(VERB_SECONDS):
                answer = await verb()
        except LOST as error:
            accounts.flips["lost with the bridge"] += 1
            accounts.note(f"  lost: {error!r}")
            if deaths == self._deaths and self._bridge_is_there.is_set():
                accounts.problem(f"the control socket gave no answer: {error!r}")
            return
        except TimeoutError:
            accounts.problem(f"a verb had no answer within {VERB_SECONDS:.0f} s")
            return
        took = f"after {time.monotonic() - begun:.3f} s"
        if answer["ok"]:
            for receipt in answer["receipts"]:
                accounts.flips[f"{receipt['origin']} to {receipt['target']}"] += 1
                accounts.longest_hold = max(accounts.longest_hold, receipt["held_seconds"])
                accounts.note(f"  {receipt['origin']} to {receipt['target']} {took}, held {receipt['held_seconds']}")
        elif answer["refused"]:
            accounts.flips["refused"] += 1
            accounts.note(f"  refused {took}: {answer['error']}")
        else:
            accounts.problem(f"a verb failed: {answer}")

    def _authority(self, name: str) -> str:
        return str(MEANINGS[self._stages[name]].authority)

    async def _look(self, name: str) -> Stage:
        services = await self._insist(verb="status")
        self._stages[name] = Stage(services["services"][name]["stage"])
        return self._stages[name]

    async def _audit(self, name: str) -> list[dict[str, Any]]:
        """The newest lines of the audit, the oldest of them first."""
        return list((await self._insist(verb="audit", service=name, limit=40))["entries"])

    async def _insist(self, **request: object) -> dict[str, Any]:
        """An answer of the bridge, of the next one if this one is killed."""
        while True:
            await self._bridge_is_there.wait()
            deaths = self._deaths
            try:
                async with asyncio.timeout(VERB_SECONDS):
                    return await self.host.control(**request)
            except LOST:
                assert deaths != self._deaths, "the control socket gave no answer"

    # ---- the scraper

    async def _scrape(self) -> None:
        """Reads the status all the time: the counters add up, no alarm or freeze is there without a reason."""
        raised: set[tuple[str, str]] = set()
        while not self._stop.is_set():
            await self._bridge_is_there.wait()
            deaths = self._deaths
            try:
                async with asyncio.timeout(10):
                    status: dict[str, Any] = await self.host.control(verb="status")
            except (*LOST, TimeoutError) as error:
                if deaths == self._deaths and self._bridge_is_there.is_set():
                    self.accounts.problem(f"no status: {error!r}")
                await asyncio.sleep(0.01)
                continue
            self.accounts.scrapes += 1
            now = set()
            for name, service in status["services"].items():
                self._check_status(name, service)
                now |= {(name, alarm) for alarm in service["alarms"]}
            for name, alarm in now - raised:
                self.accounts.alarms[alarm] += 1
                self.accounts.note(f"alarm {alarm}: {status['services'][name]['alarms'][alarm]}")
            raised = now
            await asyncio.sleep(0.02)

    def _check_status(self, name: str, service: dict[str, Any]) -> None:
        calls = service["calls"]
        if calls["admitted"] != calls["answered"] + calls["in_flight"] + calls["in_doubt"] + calls["abandoned"]:
            self.accounts.problem(f"{name} does not add up: {calls}")
        for alarm, text in service["alarms"].items():
            if alarm in NEVER:
                self.accounts.problem(f"{name}: {alarm}: {text}")
        if service["frozen"] is not None and not (self._rogue and name == "squeezed"):
            self.accounts.problem(f"{name} is frozen, by nothing that the soak did: {service['frozen']}")

    # ---- disorder

    async def _disorder(self) -> None:
        rng = random.Random(self.rng.random())
        parts: dict[str, Callable[[random.Random], Awaitable[None]]] = {
            "bridge": self._kill_bridge,
            "bus": self._kill_bus,
            "candidate": self._kill_candidate,
            "squeezed": self._kill_squeezed,
            "xenopsd": self._kill_xenopsd,
        }
        while not self._calm.is_set():
            await self._pause(rng.uniform(0.1, 2))
            if self._calm.is_set():
                break
            if rng.random() < 0.08:
                await self._start_rogue(rng)
                continue
            rules = self._authority("squeezed") == "bus"
            weights = (40, 15, 30 * rules, 30 * (not rules), 10)
            chosen = rng.choices(list(parts), weights, k=1 if rng.random() < 0.8 else 2)
            for part in dict.fromkeys(chosen):
                await parts[part](rng)
                await asyncio.sleep(rng.choice((0, 0, rng.uniform(0, 0.3))))
            await asyncio.sleep(rng.choice((0, rng.uniform(0, 1.5))))
            await self._mend(rng)

    async def _mend(self, rng: random.Random) -> None:
        """What a supervisor and an operator do: whatever has ended and is needed is started again."""
        if not self._bus_is_there:
            self._bus.start()
            self._bus_is_there = True
            self.accounts.note("bus started")
        if not self.host.has("bridge"):
            if rng.random() < 0.5:
                code, output, errors = await self.host.cli("release")
                self.accounts.note(f"release: {' '.join(output.split())}")
                if code != 0:
                    self.accounts.problem(f"release ended with {code}: {output}{errors}")
            self.host.write_settings(
                reach=rng.choice(("xenstore", "http", "framed")), stale=rng.choice(("refuse", "execute"))
            )
            await self._start_bridge()
        if not self.host.has("bus"):
            await self._start_candidate()
        for name in NAMES:
            async with self._moving[name]:
                stage = await self._look(name)
                if MEANINGS[stage].authority == "legacy" and not self.host.runs(name):
                    await self.host.start_legacy(name)
                    self.accounts.note(f"legacy {name} started by hand in {stage}")
                await self._count_daemons(name)

    async def _count_daemons(self, name: str) -> None:
        """One legacy daemon while legacy rules, else none; a start command may still be on its way to its end."""
        wanted, running = int(self._authority(name) == "legacy"), list[int]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while len(running := self.host.daemons(f"legacy_{name}.py")) != wanted:  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(0.05)
        if len(running) != wanted:
            self.accounts.problem(f"{name} is {self._stages[name]} and {len(running)} legacy daemons run: {running}")

    async def _start_bridge(self) -> None:
        await self.host.start_bridge()
        self.accounts.note("bridge started")
        self._bridge_is_there.set()

    async def _start_candidate(self) -> None:
        await self.host.start_bus_squeezed("--slow-ms", "8")
        self.accounts.note("candidate started")

    async def _end_bridge(self, number: signal.Signals) -> None:
        blow = self.accounts.blow("bridge" if number is signal.SIGKILL else "bridge ended orderly")
        self._bridge_is_there.clear()
        self._deaths += 1
        await self.host.end("bridge", number)
        self.accounts.over(blow)

    async def _kill_bridge(self, _rng: random.Random) -> None:
        await self._end_bridge(signal.SIGKILL)

    async def _kill_bus(self, _rng: random.Random) -> None:
        """The candidate ends by itself then, as a supervisor wants it."""
        blow = self.accounts.blow("bus")
        self._bus_is_there = False
        await asyncio.to_thread(self._bus.kill)
        self.accounts.over(blow)
        if self.host.has("bus"):
            await self.host.end("bus", signal.SIGCONT)

    async def _kill_candidate(self, _rng: random.Random) -> None:
        if self.host.has("bus"):
            blow = self.accounts.blow("candidate")
            await self.host.end("bus", signal.SIGKILL)
            self.accounts.over(blow)

    async def _kill_squeezed(self, _rng: random.Random) -> None:
        await self._kill_legacy("squeezed")

    async def _kill_xenopsd(self, _rng: random.Random) -> None:
        await self._kill_legacy("xenopsd")

    async def _kill_legacy(self, name: str) -> None:
        if self._authority(name) == "legacy" and self.host.runs(name):
            blow = self.accounts.blow(f"legacy {name}")
            await self.host.end_legacy(name)
            self.accounts.over(blow)

    async def _start_rogue(self, rng: random.Random) -> None:
        """A legacy daemon is started although the bus daemon rules: a freeze, which an operator ends."""
        host, accounts = self.host, self.accounts
        async with self._moving["squeezed"]:
            if MEANINGS[await self._look("squeezed")].authority != "bus":
                return
            accounts.note(f"legacy squeezed started by hand in {self._stages['squeezed']}")
            begun, self._rogue = accounts.offset(), True
            await host.start_legacy("squeezed")
            frozen = await self._until_frozen()
            blow = accounts.blow("rogue squeezed")
            await host.end_legacy("squeezed")
            accounts.over(blow)
            if not frozen:
                accounts.problem("two daemons ran, and nothing was frozen")
            if rng.random() < 0.5:
                await self._end_bridge(signal.SIGTERM)
                await self._start_bridge()
            else:
                await self._ask(self._after(0, {"verb": "kill", "service": "squeezed", "reason": "soak"}))
            answer = await host.control(verb="acknowledge", service="squeezed", reason="it was ended")
            accounts.freezes["SPLIT_OWNER"] += 1
            accounts.note(f"acknowledged: {answer}")
            after = str(MEANINGS[await self._look("squeezed")].authority)
            accounts.turns.append(Turn(begun, accounts.offset(), "bus", after, 1))
            accounts.rogues.append((begun, accounts.offset()))
            self._rogue = False

    async def _until_frozen(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while True:
                    status = await self._insist(verb="status")
                    if status["services"]["squeezed"]["frozen"] is not None:
                        return True
                    await asyncio.sleep(0.05)
        return False

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()

    # ---- the end

    async def _come_to_order(self) -> None:
        """With every part there again, the alarms end by themselves and no request is left without a response."""
        self.accounts.note("calm")
        if self.accounts.problems:
            return
        await self._mend(self.rng)
        status: dict[str, Any] = {}
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while True:
                    status = (await self._insist(verb="status"))["services"]
                    if not any(service["alarms"] or service["frozen"] for service in status.values()):
                        break
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.accounts.problem(f"all parts are there, and yet: {status}")
        self._stop.set()
        await self._check_tree()

    async def _check_tree(self) -> None:
        store = Store(self.host.store.socket)
        await store.connect()
        left: set[str] = set()
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while True:
                    listed = [await self._tree(store, part) for part in ("response", "request")]
                    left = listed[1] - listed[0]
                    if not left:
                        break
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.accounts.problem(f"requests without a response: {sorted(left)[:10]}")
        finally:
            await store.close()

    @staticmethod
    async def _tree(store: Store, part: str) -> set[str]:
        root = f"/squeezed/rpc/{part}"
        functions = await store.directory_or_empty(root)
        return {f"{name}/{each}" for name in functions for each in await store.directory_or_empty(f"{root}/{name}")}

    async def _check_end(self) -> None:
        host, accounts = self.host, self.accounts
        if host.has("bridge"):
            code = await host.end("bridge")
            if code != 0:
                accounts.problem(f"the bridge ended with {code} at SIGTERM")
        if "Traceback" in host.log("bridge") or "defect" in host.log("bridge"):
            accounts.problem("the bridge's log has a traceback")
        accounts.settle(journal_rows(host.path("state") / "records.sqlite"))

    async def close(self) -> None:
        """Ends everything, also what a bridge that was killed had left half started."""
        await self.host.stop()
        for pid in self.host.daemons(".py"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while self.host.daemons(".py"):  # noqa: ASYNC110 - init collects them, and tells nobody
                await asyncio.sleep(0.05)

    def story(self) -> str:
        """What somebody needs who looks into a failure."""
        parts = [
            f"seed {self.seed}",
            *self.accounts.problems[:20],
            "",
            "the last events:",
            *self.accounts.events[-300:],
        ]
        for name in ("bridge", "bus", "legacy"):
            lines = [line for line in self.host.log(name).splitlines() if " at the " not in line]
            parts += ["", f"the end of {name}.log:", *lines[-60:]]
        return "\n".join(part[:400] for part in parts)
