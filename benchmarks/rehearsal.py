"""How well `xcp-bridge replay drive` keeps a rate: against a daemon on the bus, and against an HTTP socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.calls import CALLS
from benchmarks.host import BENCHMARKS, Machine
from benchmarks.recorded import Maker, write_capture
from bridges.capture.messages import BusAnswer, BusCall, Message
from bridges.capture.records import Record
from dbus_side import names
from dbus_side.bus import Bus
from examples.demo_parts import ROOT, PartFailed, python

RATES: Final = (500, 1000, 2000)
ABOVE: Final = (4000, 6000)
CLOSER: Final = 1  # times that the distance between the highest that is kept and the lowest that is not is halved
READS: Final = ("get_host_reserved_memory", "get_host_initial_free_memory", "get_domain_zero_policy")
PATIENCE: Final = 120


class Rehearsals(Machine):
    """A squeezed that lives on the bus, a canned xenopsd at a socket, and captures of their answers."""

    def start(self) -> None:
        """Raises PartFailed."""
        self.start_bus_and_store("embedded")
        options = ["--bus", self.bus, "--xenstore", self.at("store"), "--settled", "--sandbox"]
        self.start_part("squeezed", python(ROOT / "examples" / "squeezed_on_bus.py", *options), "owns its name")
        legacy = python(BENCHMARKS / "daemons.py", "legacy", "--http", self.at("canned"))
        self.start_part("canned", legacy, "canned legacy daemon")

    def measure(self, seconds: float) -> list[dict[str, Any]]:
        """Both targets. Raises PartFailed."""
        squeezed = Maker("squeezed", itertools.count(1))
        answers = asyncio.run(self._ask(squeezed))
        xenopsd = Maker("xenopsd", itertools.count(1))
        canned = {CALLS[name].method: xenopsd.http(CALLS[name]) for name in ("query", "stat")}
        return [
            *self._target("squeezed on the bus, reads", f"bus:{self.bus}", squeezed, answers, seconds),
            *self._target("xenopsd at an HTTP socket", f"http:{self.at('canned')}", xenopsd, canned, seconds),
        ]

    async def _ask(self, maker: Maker) -> dict[str, tuple[Message, Message]]:
        """What squeezed answers now, so that the replay finds the same."""
        bus = await Bus.connect(self.bus)
        found: dict[str, tuple[Message, Message]] = {}
        try:
            for name in READS:
                method = maker.service.method(name)
                assert method is not None
                form, owner = maker.on_bus.of(method), names.service_name("squeezed")
                reply = await bus.call(owner, form.path, form.interface, form.member, "s", ("bench",), timeout=10)
                asked = BusCall(form, owner, ":1.7", 12, ("bench",))
                found[name] = asked, BusAnswer(form, reply.signature, reply.body)
        finally:
            await bus.close()
        return found

    def _target(
        self, title: str, to: str, maker: Maker, known: dict[str, tuple[Message, Message]], seconds: float
    ) -> Iterator[dict[str, Any]]:
        """The rates of RATES, then those that find the highest one that is kept."""

        def run(rate: int) -> dict[str, Any]:
            return {"target": title, **self._run(to, maker, known, rate, round(rate * seconds))}

        found: dict[int, bool] = {}
        for rate in (*RATES, *ABOVE):
            if rate > RATES[-1] and not found[max(found)]:
                break
            row = run(rate)
            yield row
            found[rate] = row["kept"]
        for _ in range(CLOSER):
            kept = max((rate for rate, is_kept in found.items() if is_kept), default=0)
            missed = min((rate for rate in found if rate > kept), default=0)
            if not missed:
                break
            row = run((kept + missed) // 200 * 100)
            yield row
            found[row["rate"]] = row["kept"]

    def _run(
        self, to: str, maker: Maker, known: dict[str, tuple[Message, Message]], rate: int, calls: int
    ) -> dict[str, Any]:
        """One run of the command, as an operator runs it."""
        path = Path(self.at(f"{maker.service.name}-{calls}"))
        if not path.exists():
            write_capture(path, _calls(maker, known, calls))
        words = ["replay", "drive", str(path), "--to", to, "--rate", str(rate), "--json"]
        done = subprocess.run(
            python("-m", "bridges", *words), capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False
        )
        try:
            result = json.loads(done.stdout)
        except ValueError:
            raise PartFailed(f"replay to {to} ended with {done.returncode}: {done.stderr[-500:]}") from None
        timing = result["timing"]
        return {
            "rate": rate,
            "sent": result["sent"],
            "late_p50_ms": timing["lateness"]["p50"] / 1000,
            "late_p99_ms": timing["lateness"]["p99"] / 1000,
            "late_most_ms": timing["lateness"]["most"] / 1000,
            "took_p50_ms": max(row["took_now"]["p50"] for row in result["methods"]) / 1000,
            "kept": timing["kept"],
            "verdict": result["verdict"],
            "reasons": result["reasons"],
        }


def _calls(maker: Maker, known: dict[str, tuple[Message, Message]], count: int) -> Iterator[Record]:
    for name, _ in zip(itertools.cycle(known), range(count), strict=False):
        yield from maker.at_a_door(name, *known[name])
