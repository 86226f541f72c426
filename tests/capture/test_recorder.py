"""The recorder with its taps, in process, into real files: switched at run time, bounded, on full disks, cancelled."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridges import dbus_translation
from bridges.calls import Door, Side
from bridges.capture import frames, records
from bridges.capture.messages import (
    AS_CALLER,
    DatagramCall,
    Nothing,
    SocketAnswer,
    SocketCall,
    Tongue,
)
from bridges.capture.recorder import CLOCK, LARGE_BYTES, QUEUE_BYTES, QUEUE_LIMIT, CaptureRefused, Recorder
from bridges.capture.records import Complete, End, Flip, Header, Leg, Lost, Record, Reply, Request
from bridges.capture.store import open_capture
from bridges.capture.taps import Clock, Tap
from bridges.capture.verifying import verify
from bridges.capture.writing import Limits
from bridges.cutover import Stage
from bridges.interfaces import model
from tests.bridges.fidelity_forms import forms
from tests.capture.small_disk import run_on_small_disk
from tests.capture.telling import tongue
from xmlrpc_gateway.encodings import IncomingCall, XmlEncoding

ROOT = Path(__file__).parents[2]
PATIENCE = 20
LIMITS = Limits()
XML = forms("squeezed")[0]
SEEN = DatagramCall(b"refresh")


class Bench:
    """A recorder that works, below a directory, with the taps of squeezed and perfmon."""

    def __init__(self, directory: Path, limits: Limits = LIMITS, *, body_limit: int = 1 << 20, clock: Clock = CLOCK):
        self.directory = directory
        self.recorder = Recorder(directory, limits, body_limit=body_limit, clock=clock)
        self.squeezed, self.perfmon = (self._tap(name) for name in ("squeezed", "perfmon"))
        self.task: asyncio.Task[None] | None = None

    def _tap(self, name: str) -> Tap:
        service = model.load(name)
        tap = self.recorder.tap(service, service.dialect, dbus_translation.Translation(service))
        tap.enter(Stage.RELAY, 3)
        return tap

    def work(self) -> None:
        self.task = asyncio.create_task(self.recorder.run())

    async def end(self) -> None:
        """As the bridge ends it."""
        assert self.task is not None
        if not self.task.cancelling():
            self.task.cancel()
        await asyncio.wait([self.task])
        assert self.task.cancelled()

    @property
    def status(self) -> dict[str, Any]:
        found = self.recorder.status()
        assert found is not None
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert self.task is None or not self.task.done(), self.task
                await asyncio.sleep(0.005)


@asynccontextmanager
async def working(
    directory: Path,
    limits: Limits = LIMITS,
    *,
    body_limit: int = 1 << 20,
    clock: Clock = CLOCK,
) -> AsyncIterator[Bench]:
    bench = Bench(directory, limits, body_limit=body_limit, clock=clock)
    bench.work()
    try:
        yield bench
    finally:
        await bench.end()


def command(tap: Tap) -> None:
    """A call with its end: two events."""
    trail = tap.came(Door.DATAGRAM, SEEN, None)
    if trail is not None:
        trail.left(Nothing())


def call(text: str, by: Tongue | None = None) -> SocketCall:
    return SocketCall(by or tongue(XML), XML.write_call("login", ["d", text]))


def login(tap: Tap, text: str = "xenopsd", by: Tongue | None = None) -> None:
    """A call of squeezed that is relayed: four events."""
    asked = call(text, by)
    trail = tap.came(Door.HTTP, asked, XML.method("login"))
    if trail is not None:
        trail.asked(Side.LEGACY, Door.HTTP, AS_CALLER)
        trail.answered(AS_CALLER)
        trail.left(SocketAnswer(asked.tongue, XML.encoding.write_success(None, "s1")))


def read(path: Path) -> list[Record]:
    """The records of a capture, which is whole."""
    damage: list[str] = []
    found = [record for _, record in open_capture(path).read(damage.append) if not isinstance(record, Header)]
    assert damage == []
    return found


def kinds(found: list[Record]) -> Counter[str]:
    return Counter(type(record).__name__ for record in found)


def lost(found: list[Record]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for record in found:
        if isinstance(record, Lost):
            counts[record.service, record.why] += record.n
    return counts


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


# --- switching -------------------------------------------------------------------------------------------------------


async def test_services_are_put_under_capture_and_taken_out(tmp_path: Path) -> None:
    """Into one capture while it runs; what comes of a service while it is not under capture is not there."""
    async with working(tmp_path / "captures") as bench:
        recorder = bench.recorder
        command(bench.perfmon)
        assert recorder.status() is None
        assert recorder.status_of("squeezed") == {}
        with pytest.raises(CaptureRefused, match="no capture is running"):
            await recorder.stop()
        directory = await recorder.start(["squeezed"], "first")
        assert directory == tmp_path / "captures" / "first"
        login(bench.squeezed)
        command(bench.perfmon)
        assert await recorder.start(["perfmon"]) == directory
        for services, name, why in (
            (["squeezed"], None, "squeezed is under capture already, in first"),
            (["perfmon", "squeezed"], "first", "perfmon, squeezed is under capture already, in first"),
            (["perfmon"], "second", "first is running: stop it first, or leave the name out"),
        ):
            with pytest.raises(CaptureRefused, match=why):
                await recorder.start(services, name)
        command(bench.perfmon)
        assert bench.status["services"] == ["squeezed", "perfmon"]
        assert await recorder.stop(["perfmon"]) == (directory, ["perfmon"])
        command(bench.perfmon)
        with pytest.raises(CaptureRefused, match="perfmon is not under capture; under capture: squeezed"):
            await recorder.stop(["squeezed", "perfmon"])
        assert await recorder.start(["perfmon"], "first") == directory
        bench.perfmon.enter(Stage.LIVE, 4)
        command(bench.perfmon)
        assert bench.status["lost"] == {}
        assert recorder.status_of("squeezed") == {"capture": {"name": "first", "lost": {}, "trouble": ""}}
        assert await recorder.stop() == (directory, ["squeezed", "perfmon"])
        assert recorder.status() is None
        with pytest.raises(CaptureRefused, match="first is there already: choose another name"):
            await recorder.start(["squeezed"], "first")
        assert (await recorder.start(["squeezed"])).name[:2] == "20"
    found = read(directory)
    requests = [record for record in found if isinstance(record, Request)]
    assert [(each.service, each.leg, each.stage, each.epoch) for each in requests] == [
        ("squeezed", Leg.CALLER, "relay", 3),
        ("squeezed", Leg.BACKEND, "relay", 3),
        ("perfmon", Leg.CALLER, "relay", 3),
        ("perfmon", Leg.CALLER, "live", 4),
    ]
    assert [(each.service, each.origin, each.target, each.epoch) for each in found if isinstance(each, Flip)] == [
        ("squeezed", "relay", "relay", 3),
        ("perfmon", "relay", "relay", 3),
        ("perfmon", "relay", "relay", 3),
        ("perfmon", "relay", "live", 4),
    ]
    assert kinds(found) == {"Request": 4, "Reply": 4, "Flip": 4, "End": 1}
    end = found[-1]
    assert isinstance(end, End)
    assert (end.seq, end.records, end.why) == (13, 12, "stopped")
    assert verify(open_capture(directory)).is_whole


async def test_several_at_once_who_switch(tmp_path: Path) -> None:
    """Of starts at one moment the first makes the capture; of stops the first closes it, and no other."""
    async with working(tmp_path) as bench:
        recorder = bench.recorder
        both = await asyncio.gather(recorder.start(["squeezed"], "one"), recorder.start(["perfmon"]))
        assert both == [tmp_path / "one", tmp_path / "one"]
        command(bench.perfmon)
        stopped, again, started = await asyncio.gather(
            recorder.stop(), recorder.stop(), recorder.start(["perfmon"], "two")
        )
        assert stopped == (tmp_path / "one", ["squeezed", "perfmon"])
        assert again == (tmp_path / "one", [])
        assert started == tmp_path / "two"
        command(bench.perfmon)
        await recorder.stop()
    assert kinds(read(tmp_path / "one")) == {"Flip": 2, "Request": 1, "Reply": 1, "End": 1}
    assert kinds(read(tmp_path / "two")) == {"Flip": 1, "Request": 1, "Reply": 1, "End": 1}


async def test_a_capture_that_cannot_be_closed(tmp_path: Path) -> None:
    """Is told to who stops it; the next one is as good as the first."""
    async with working(tmp_path) as bench:
        directory = await bench.recorder.start(["squeezed"], "one")
        shutil.rmtree(directory)
        login(bench.squeezed)
        with pytest.raises(CaptureRefused, match=r"one has ended, but is not closed orderly: .*No such file"):
            await bench.recorder.stop()
        assert bench.recorder.status() is None
        assert not bench.squeezed.is_on
        directory = await bench.recorder.start(["squeezed"], "two")
        login(bench.squeezed)
    assert kinds(read(directory)) == {"Flip": 1, "Request": 2, "Reply": 2, "End": 1}


@pytest.mark.parametrize("kind", ["a file", "below a file"])
async def test_where_no_capture_can_be(tmp_path: Path, kind: str) -> None:
    """Is told, and the next start is as good as the first."""
    (tmp_path / "file").write_text("")
    async with working(tmp_path / "file" if kind == "a file" else tmp_path / "file" / "below") as bench:
        for _ in range(2):
            with pytest.raises(CaptureRefused, match=r"cannot be written: .*(exists|Not a directory)"):
                await bench.recorder.start(["squeezed"], "one")
        command(bench.squeezed)
        assert bench.recorder.status() is None


# --- what is under way -----------------------------------------------------------------------------------------------


async def test_what_is_under_way(tmp_path: Path) -> None:
    """A call that was there before the capture is not in it; one that outlives it has no reply there."""
    async with working(tmp_path) as bench:
        assert bench.squeezed.came(Door.HTTP, call("before"), None) is None
        one = await bench.recorder.start(["squeezed"], "one")
        trail = bench.squeezed.came(Door.HTTP, call("between"), None)
        assert trail is not None
        trail.asked(Side.LEGACY, Door.HTTP, AS_CALLER)
        await bench.recorder.stop()
        trail.answered(AS_CALLER)
        two = await bench.recorder.start(["squeezed"], "two")
        trail.left(SocketAnswer(tongue(XML), XML.encoding.write_success(None, "s1")))
        await bench.until(lambda: bench.status["lost"] == {"squeezed": {"request not known": 1}})
        await bench.recorder.stop()
    assert kinds(read(one)) == {"Flip": 1, "Request": 2, "End": 1}
    assert kinds(read(two)) == {"Flip": 1, "Lost": 1, "End": 1}
    assert lost(read(two)) == {("squeezed", "request not known"): 1}
    report = verify(open_capture(one))
    assert (report.unanswered, report.strays) == ({"caller": 1, "backend": 1}, {})


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_queue_that_is_full(tmp_path: Path) -> None:
    """Nobody waits for it, written or not: what is too much is dropped, counted and told; later calls are there."""
    bench = Bench(tmp_path)  # nobody writes yet
    directory = await bench.recorder.start(["perfmon", "squeezed"], "one")
    for _ in range(QUEUE_LIMIT // 2 + 10):
        command(bench.perfmon)  # a plain call: it cannot wait
    login(bench.squeezed)
    assert bench.status["lost"] == {"perfmon": {"queue full": 22}, "squeezed": {"queue full": 4}}
    assert bench.status["pending"] == QUEUE_LIMIT
    bench.work()
    await bench.until(lambda: bench.status["pending"] < QUEUE_LIMIT - 1000)
    login(bench.squeezed)
    await bench.recorder.stop()
    await bench.end()
    found = read(directory)
    assert lost(found) == {("perfmon", "queue full"): 22, ("squeezed", "queue full"): 4}
    count = QUEUE_LIMIT // 2 + 1
    assert kinds(found) == {"Flip": 2, "Request": count, "Reply": count, "Lost": 2, "End": 1}
    assert verify(open_capture(directory)).is_whole


async def test_a_queue_that_holds_too_many_bytes(tmp_path: Path) -> None:
    """So does one of few messages that are large."""
    async with working(tmp_path, body_limit=1000) as bench:
        directory = await bench.recorder.start(["squeezed"], "one")
        large = SocketCall(tongue(XML), bytes(QUEUE_BYTES // 4))
        for _ in range(6):
            assert bench.squeezed.came(Door.HTTP, large, None) is not None
        assert bench.status["lost"] == {"squeezed": {"queue full": 2}}
        await bench.until(lambda: bench.status["records"] == 6)
        login(bench.squeezed)
        await bench.recorder.stop()
    found = read(directory)
    assert lost(found) == {("squeezed", "queue full"): 2}
    requests = [record for record in found if isinstance(record, Request)]
    assert [(each.complete, each.size) for each in requests[:-2]] == [(Complete.CUT, QUEUE_BYTES // 4)] * 4
    assert [each.leg for each in requests[-2:]] == [Leg.CALLER, Leg.BACKEND]


async def test_callers_who_do_not_stop(tmp_path: Path) -> None:
    """While more comes than can be written the drops are told, and a service can be taken out."""
    async with working(tmp_path) as bench:
        directory = await bench.recorder.start(["perfmon", "squeezed"], "one")

        async def flood() -> None:
            while True:
                for _ in range(200):
                    command(bench.perfmon)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        await bench.until(lambda: bool(bench.status["lost"]))
        async with asyncio.timeout(PATIENCE):
            await bench.recorder.stop(["squeezed"])
        assert bench.perfmon.is_on
        flooding.cancel()
        await bench.recorder.stop()
    found = read(directory)
    assert kinds(found)["Lost"] > 1
    assert lost(found).keys() <= {("perfmon", "queue full"), ("perfmon", "request not known")}
    assert verify(open_capture(directory)).is_whole


async def test_a_large_message_is_read_beside_the_loop(tmp_path: Path) -> None:
    """The small one is not; what is over the limit is not read at all, and neither is its answer."""
    threads: list[tuple[int, bool]] = []

    class Watched(XmlEncoding):
        def read_call(self, body: bytes) -> IncomingCall:
            threads.append((len(body), threading.current_thread() is threading.main_thread()))
            return super().read_call(body)

    async with working(tmp_path, body_limit=4 * LARGE_BYTES) as bench:
        directory = await bench.recorder.start(["squeezed"], "one")
        by = Watched(), XML.translation
        for count in (10, LARGE_BYTES, 10, 5 * LARGE_BYTES, 10):
            login(bench.squeezed, "x" * count, by)
        await bench.recorder.stop()
    found = read(directory)
    requests = [record for record in found if isinstance(record, Request) and record.leg is Leg.CALLER]
    lengths = [len(each.arguments["service_name"]) if each.arguments else 0 for each in requests]
    assert lengths == [10, LARGE_BYTES, 10, 0, 10]
    assert [each.complete for each in requests].count(Complete.CUT) == 1
    assert [in_loop for _, in_loop in threads] == [True, False, True, True]
    replies = [record for record in found if isinstance(record, Reply) and record.leg is Leg.CALLER]
    assert [each.re for each in replies] == [each.seq for each in requests]
    assert [each.complete for each in replies] == [Complete.COMPLETE] * 3 + [Complete.UNREAD, Complete.COMPLETE]


# --- limits of files -------------------------------------------------------------------------------------------------


async def test_the_oldest_segments_go(tmp_path: Path) -> None:
    """Over the size that a capture may have; what went with them is counted."""
    async with working(tmp_path, Limits(segment_bytes=4000, total_bytes=40_000)) as bench:
        directory = await bench.recorder.start(["squeezed"], "one")
        chance = random.Random(1)
        for _ in range(300):
            login(bench.squeezed, chance.randbytes(50).hex())
        await bench.until(lambda: bench.status["records"] > 1000)
        await bench.until(lambda: "" in bench.status["lost"])
        login(bench.squeezed)
        await bench.recorder.stop()
    found = read(directory)
    counts = kinds(found)
    (removed,) = {why: count for (_, why), count in lost(found).items() if why == "size limit"}.values()
    assert 0 < removed == 1205 - counts["Request"] - counts["Reply"] - counts["Flip"] + _lost_before(found)
    assert "000001.jsonl.zst" not in open_capture(directory).segments
    assert size(directory) < 50_000
    assert verify(open_capture(directory)).is_whole


def _lost_before(found: list[Record]) -> int:
    """How many `lost` records were removed with the others."""
    end = found[-1]
    assert isinstance(end, End)
    return end.records - 1205 - kinds(found)["Lost"]


async def test_a_budget_below_one_segment(tmp_path: Path) -> None:
    """Is kept: a capture gets smaller segments then."""
    async with working(tmp_path, Limits(total_bytes=200_000)) as bench:
        directory = await bench.recorder.start(["squeezed"], "one")
        chance = random.Random(2)
        for number in range(800):
            login(bench.squeezed, chance.randbytes(1000).hex())
            if number % 50 == 0:
                await bench.until(lambda: bench.status["pending"] < 64)
                assert size(directory) < 320_000  # a frame is up to 256 KiB before it is packed
        await bench.recorder.stop()
        assert ("", "size limit") in lost(read(directory))


async def test_the_budget_of_all_captures(tmp_path: Path) -> None:
    """What is there already counts; a start that has no room left is refused with what to do."""
    limits = Limits(segment_bytes=1 << 20, total_bytes=3 << 20)
    async with working(tmp_path, limits) as bench:
        await bench.recorder.start(["squeezed"], "one")
        await bench.recorder.stop()
        with (tmp_path / "one" / "000002.jsonl.zst").open("wb") as file:
            file.truncate((3 << 20) - (1 << 18))
        (tmp_path / "another file").write_bytes(bytes(1 << 20))  # is no capture
        why = f"the captures in {tmp_path} take 2 MiB of 3: move or remove some, or raise capture.total_mib"
        with pytest.raises(CaptureRefused, match=why):
            await bench.recorder.start(["squeezed"], "two")
        assert not (tmp_path / "two").exists()
        (tmp_path / "one" / "000002.jsonl.zst").unlink()
        await bench.recorder.start(["squeezed"], "two")


class Later:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.clock = Clock(lambda: time.time_ns(), lambda: time.monotonic_ns() + int(self.seconds * 1e9))  # noqa: PLW0108 -- as the other one


async def test_segments_age(tmp_path: Path) -> None:
    """The old ones go also while nothing comes; who writes next begins another segment."""
    later = Later()
    async with working(tmp_path, Limits(segment_seconds=10, age_seconds=100), clock=later.clock) as bench:
        directory = await bench.recorder.start(["perfmon"], "one")
        command(bench.perfmon)
        await bench.until(lambda: bench.status["records"] == 3)
        later.seconds = 11
        command(bench.perfmon)
        await bench.until(lambda: bench.status["records"] == 5)
        later.seconds = 500
        await bench.until(lambda: not (directory / "000001.jsonl.zst").exists())
        await bench.until(lambda: bench.status["lost"] == {"": {"age limit": 3}})
        await bench.recorder.stop()
    assert lost(read(directory))["", "age limit"] >= 3
    assert verify(open_capture(directory)).is_whole


# --- full disks ------------------------------------------------------------------------------------------------------

FULL_DISK = """
import asyncio, importlib.util, sys
from pathlib import Path
specification = importlib.util.spec_from_file_location("test_recorder", sys.argv[1])
module = importlib.util.module_from_spec(specification)
sys.modules["test_recorder"] = module
specification.loader.exec_module(module)
asyncio.run(module.fill(Path(sys.argv[2]), sys.argv[3]))
"""


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def use_up(capture: Path, ballast: Path | None) -> None:
    """Not a byte more can be written."""
    if ballast is None:
        _limit_files((capture / "000001.jsonl.zst").stat().st_size)
        return
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


async def fill(directory: Path, kind: str) -> None:
    """In a process of its own: captures until no more can be written, looks, makes space, goes on."""
    ballast = directory.parent / "ballast"
    async with working(directory) as bench:
        capture = await bench.recorder.start(["squeezed"], "one")
        if kind == "disk":
            ballast.write_bytes(bytes(200_000))
        else:
            _limit_files(20_000)
        chance, calls = random.Random(1), 0
        while not bench.status["trouble"]:
            for _ in range(12):
                login(bench.squeezed, chance.randbytes(2000).hex())
            calls += 12
            await bench.until(lambda: bench.status["pending"] < 64)
        assert bench.status["trouble"].endswith({"disk": "No space left on device", "limit": "File too large"}[kind])
        assert bench.recorder.status_of("squeezed")["capture"]["trouble"] == bench.status["trouble"]
        assert 0 < bench.status["lost"][""]["disk"] <= 4 * calls + 1
        use_up(capture, ballast if kind == "disk" else None)
        for _ in range(32):
            login(bench.squeezed, chance.randbytes(2000).hex())
        calls += 32
        # It is tried again every second; what says what was lost is no loss itself.
        later = time.monotonic() + 2.3
        await bench.until(lambda: time.monotonic() > later)
        # That record may find room: on a disk in the segment's last block, below a limit where a write was undone.
        room = not bench.status["trouble"]
        await bench.until(lambda: bench.status["pending"] == (0 if room else 1))
        missing = bench.status["lost"][""]["disk"]
        assert bench.status["records"] + missing == 1 + 4 * calls + room
        if kind == "disk":
            ballast.unlink()
        else:
            _limit_files(resource.RLIM_INFINITY)
        login(bench.squeezed)
        await bench.until(lambda: not bench.status["trouble"])
        await bench.recorder.stop()
    found = read(capture)
    counts = kinds(found)
    assert lost(found) == {("", "disk"): missing}
    assert counts["Flip"] + counts["Request"] + counts["Reply"] + missing == 1 + 4 * (calls + 1)
    assert isinstance(found[-1], End)
    assert found[-1].records == len(found) - 1
    report = verify(open_capture(capture))
    assert (report.damages, report.state) == ([], "closed")


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """What cannot be written is counted and told, and the next is tried."""
    arguments = [sys.executable, "-c", FULL_DISK, __file__, str(tmp_path / "captures"), "limit"]
    subprocess.run(arguments, check=True, cwd=ROOT, timeout=50)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(tmp_path: Path) -> None:
    """The same on a disk of 400 KiB."""
    run_on_small_disk(tmp_path / "disk", FULL_DISK, __file__, "captures")


# --- defects and ends ------------------------------------------------------------------------------------------------


async def test_a_defect_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It costs its record and is in the log; what comes behind it is recorded."""
    unfit: Any = SimpleNamespace(effect="write")  # no method at all
    async with working(tmp_path) as bench:
        directory = await bench.recorder.start(["squeezed"], "one")
        bench.squeezed.came(Door.HTTP, call("x"), unfit)
        login(bench.squeezed)
        await bench.recorder.stop()
    found = read(directory)
    assert lost(found) == {("squeezed", "defect"): 1}
    assert kinds(found) == {"Flip": 1, "Request": 2, "Reply": 2, "Lost": 1, "End": 1}
    assert "squeezed: what was captured could not be described" in caplog.text


async def test_the_bridge_ends(tmp_path: Path) -> None:
    """What was handed over by then is written, and the capture is closed."""
    async with working(tmp_path) as bench:
        directory = await bench.recorder.start(["squeezed", "perfmon"], "one")
        for _ in range(200):
            command(bench.perfmon)
    found = read(directory)
    assert kinds(found) == {"Flip": 2, "Request": 200, "Reply": 200, "End": 1}
    assert isinstance(found[-1], End)
    assert found[-1].why == "the bridge ended"
    assert not bench.perfmon.is_on


class Held:
    """Holds up a thread that is not the loop's, until it is let go."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_met = threading.Event()
        self.let_go = threading.Event()

    def meet(self) -> None:
        if self.is_wanted and threading.current_thread() is not threading.main_thread():
            self.is_met.set()
            assert self.let_go.wait(PATIENCE)


@pytest.mark.parametrize("where", ["describing", "writing"])
async def test_the_bridge_ends_while_a_thread_works(tmp_path: Path, where: str) -> None:
    """Its work is waited for, and every record is there once."""
    held = Held()

    class Slow(XmlEncoding):
        def read_call(self, body: bytes) -> IncomingCall:
            if where == "describing":
                held.meet()
            return super().read_call(body)

    def mono() -> int:
        if where == "writing":
            held.meet()
        return time.monotonic_ns()

    async with working(tmp_path, clock=Clock(time.time_ns, mono)) as bench:
        directory = await bench.recorder.start(["squeezed", "perfmon"], "one")
        held.is_wanted = True
        login(bench.squeezed, "x" * LARGE_BYTES, (Slow(), XML.translation))
        for _ in range(100):
            command(bench.perfmon)
        await bench.until(held.is_met.is_set)
        assert bench.task is not None
        bench.task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not bench.task.done()
        held.let_go.set()
    found = read(directory)
    assert kinds(found) == {"Flip": 2, "Request": 102, "Reply": 102, "End": 1}
    assert verify(open_capture(directory)).is_whole


# --- the running file ------------------------------------------------------------------------------------------------


def zstdcat(directory: Path) -> bytes:
    paths = sorted(directory.glob("*.zst"))
    return subprocess.run(["zstdcat", *paths], capture_output=True, check=False).stdout


async def test_others_read_it_while_it_runs(tmp_path: Path) -> None:
    """What came is in the file soon, also when no frame is full; frames have 64 records at most."""
    async with working(tmp_path) as bench:
        directory = await bench.recorder.start(["perfmon"], "one")
        command(bench.perfmon)
        await bench.until(lambda: bench.status["records"] == 3)
        lines = zstdcat(directory).splitlines(keepends=True)
        assert [type(records.decode(line)) for line in lines] == [Header, Flip, Request, Reply]
        capture = open_capture(directory)
        assert capture.is_being_written
        assert [type(record) for _, record in capture.read(pytest.fail)] == [Header, Flip, Request, Reply]
        for _ in range(200):
            command(bench.perfmon)
        await bench.until(lambda: bench.status["records"] == 403)
        assert bench.status["pending"] == 0
        assert len(zstdcat(directory).splitlines()) == 404
        found = list(frames.scan((directory / "000001.jsonl.zst").read_bytes(), ""))
    counts = [len(frame.lines) for frame in found if isinstance(frame, frames.Frame)]
    assert len(counts) == len(found)
    assert max(counts) == frames.RECORDS
    assert counts[:2] == [1, 3]


# --- everything is accounted for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_what_was_handed_over_is_recorded_or_counted(tmp_path: Path, seed: int) -> None:
    """Whatever is switched meanwhile, and however much comes at once."""
    chance = random.Random(seed)
    begun = 0
    directories: set[Path] = set()
    async with working(tmp_path) as bench:
        recorder, number = bench.recorder, 0
        open_trails = []
        for _ in range(60):
            match chance.randrange(6):
                case 0:
                    off = [name for name in ("squeezed", "perfmon") if not getattr(bench, name).is_on]
                    if off:
                        number += recorder.status() is None
                        running = recorder.status()
                        directories.add(await recorder.start(off, None if running else f"c{number}"))
                case 1 if recorder.status() is not None:
                    on = [name for name in ("squeezed", "perfmon") if getattr(bench, name).is_on]
                    await recorder.stop(chance.choice([None, on[:1]]))
                case 2:
                    await asyncio.sleep(chance.random() / 50)
                case _:
                    for _ in range(chance.choice([1, 50, 50, QUEUE_LIMIT // 8])):
                        trail = bench.perfmon.came(Door.DATAGRAM, SEEN, None)
                        if trail is not None:
                            begun += 1
                            open_trails.append(trail)
                    login(bench.squeezed)
                    begun += bench.squeezed.is_on
                    while open_trails and chance.random() < 0.9:
                        open_trails.pop().left(Nothing())
    found = [record for directory in sorted(directories) for record in read(directory)]
    requests = Counter(each.id for each in found if isinstance(each, Request) and each.leg is Leg.CALLER)
    assert set(requests.values()) <= {1}
    dropped = sum(count for (_, why), count in lost(found).items() if why == "queue full")
    assert len(requests) <= begun <= len(requests) + dropped
    assert dropped or len(requests) == begun
    for directory in directories:
        assert verify(open_capture(directory)).is_whole
        in_it = read(directory)
        known = {each.seq: each.id for each in in_it if isinstance(each, Request)}
        callers = {each.id for each in in_it if isinstance(each, Request) and each.leg is Leg.CALLER}
        backends = {each.id for each in in_it if isinstance(each, Request) and each.leg is Leg.BACKEND}
        assert len(backends - callers) <= sum(lost(in_it).values())
        assert all(known[each.re] == each.id for each in in_it if isinstance(each, Reply))
