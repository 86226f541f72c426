"""The journal of writes."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bridges import journal
from bridges.durable import Durable, NotDurable
from bridges.journal import Entry, Found, Journal

ROOT = Path(__file__).parents[2]
ENTRY = Entry("squeezed", "reserve_memory", "xenstore", "one", 3, "live", "bus")


@contextmanager
def opened(directory: Path) -> Iterator[tuple[Journal, Durable]]:
    """A journal whose clock says 1, 2, 3."""
    durable = Durable(directory / "journal.sqlite", journal.SCHEMA, 1)
    clock = count(1)
    try:
        yield Journal(durable, lambda: str(next(clock))), durable
    finally:
        durable.close()


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in rows]


async def test_a_write_and_its_result(tmp_path: Path) -> None:
    """Every column is there at once, and all of it after a restart; numbers are not given again."""
    begun = {
        "service": "squeezed", "method": "reserve_memory", "door": "xenstore", "request": "one", "epoch": 3,
        "stage": "live", "side": "bus", "began": "1", "ended": None, "outcome": None, "acknowledged": None,
    }  # fmt: skip
    with opened(tmp_path) as (calls, _):
        number = await calls.begin(ENTRY)
        assert await calls.entry(number) == {"id": number, **begun}
        assert await calls.find("squeezed", "one") == Found(None, None, "reserve_memory")
        await calls.end(number, "answered", b"<response/>")
    with opened(tmp_path) as (calls, _):
        assert calls.recover() == Counter()
        assert await calls.entry(number) == {"id": number, **begun, "ended": "2", "outcome": "answered"}
        assert await calls.find("squeezed", "one") == Found("answered", b"<response/>", "reserve_memory")
        assert await calls.begin(ENTRY) == number + 1
        assert await calls.entry(number + 2) is None


async def test_a_result_is_recorded_once(tmp_path: Path) -> None:
    """A second one changes nothing, neither the row nor what is counted."""
    with opened(tmp_path) as (calls, _):
        number = await calls.begin(ENTRY)
        await calls.end(number, "InDoubt")
        await calls.end(number, "InDoubt")
        await calls.end(number, "answered", b"late")
        assert calls.in_doubt_count("squeezed") == 1
        assert await calls.find("squeezed", "one") == Found("InDoubt", None, "reserve_memory")


async def test_what_has_no_result_is_in_doubt_after_a_crash(tmp_path: Path) -> None:
    """Those with a result keep it; the doubt lasts over restarts until it is acknowledged."""
    with opened(tmp_path) as (calls, _):
        for service, outcome in (("squeezed", None), ("xenopsd", None), ("squeezed", "Declared"), ("squeezed", None)):
            number = await calls.begin(replace(ENTRY, service=service, request=f"{service} {outcome}"))
            if outcome is not None:
                await calls.end(number, outcome)
    with opened(tmp_path) as (calls, _):
        assert calls.in_doubt_count("squeezed") == 0
        assert calls.recover() == Counter(squeezed=2, xenopsd=1)
        assert calls.recover() == Counter()
        assert (await calls.find("xenopsd", "xenopsd None")) == Found("InDoubt", None, "reserve_memory")
        assert (await calls.find("squeezed", "squeezed Declared")) == Found("Declared", None, "reserve_memory")
    with opened(tmp_path) as (calls, _):
        assert [calls.in_doubt_count(service) for service in ("squeezed", "xenopsd", "networkd")] == [2, 1, 0]
        assert numbers(await calls.in_doubt()) == [4, 2, 1]
        assert numbers(await calls.in_doubt("squeezed")) == [4, 1]
        assert await calls.acknowledge("squeezed", "uid 0: looked at the reservations") == 2
        assert await calls.acknowledge("squeezed", "uid 0: again") == 0
        assert [calls.in_doubt_count(service) for service in ("squeezed", "xenopsd")] == [0, 1]
        assert numbers(await calls.in_doubt()) == [2]
        row = await calls.entry(1)
        assert row is not None
        assert row["acknowledged"] == "uid 0: looked at the reservations"
    with opened(tmp_path) as (calls, _):
        assert [calls.in_doubt_count(service) for service in ("squeezed", "xenopsd")] == [0, 1]


async def test_a_request_is_found_by_service_and_door(tmp_path: Path) -> None:
    """The newest of its name; what another service or another door calls the same is not meant."""
    with opened(tmp_path) as (calls, _):
        await calls.begin(replace(ENTRY, method="old"))
        await calls.begin(replace(ENTRY, method="new"))
        await calls.begin(replace(ENTRY, method="other", service="xenopsd"))
        await calls.begin(replace(ENTRY, method="bus", door="bus"))
        assert await calls.find("squeezed", "one") == Found(None, None, "new")
        assert await calls.find("xenopsd", "one") == Found(None, None, "other")
        assert await calls.find("squeezed", "two") is None


async def test_entries_newest_first(tmp_path: Path) -> None:
    """Of all services or of one, as many as are asked for."""
    with opened(tmp_path) as (calls, _):
        for service in ("squeezed", "xenopsd") * 3:
            await calls.begin(replace(ENTRY, service=service))
        assert numbers(await calls.entries()) == [6, 5, 4, 3, 2, 1]
        assert numbers(await calls.entries(None, 2)) == [6, 5]
        assert numbers(await calls.entries("squeezed", 2)) == [5, 3]


async def test_names_of_any_kind(tmp_path: Path) -> None:
    """What SQLite cannot store is spelled out and still found; a method's name is cut."""
    with opened(tmp_path) as (calls, _):
        await calls.begin(replace(ENTRY, method="ü\ud800\0" + "x" * 1000, request="\udcff"))
        found = await calls.find("squeezed", "\udcff")
        assert found is not None
        assert found.method == "ü\\ud800\0" + "x" * 197


async def test_a_caller_that_leaves_before_it_is_recorded(tmp_path: Path) -> None:
    """Its write is not dispatched, so it is not in doubt later."""
    with opened(tmp_path) as (calls, _):
        task = asyncio.create_task(calls.begin(ENTRY))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await calls.entries() == []
        assert await calls.begin(ENTRY) == 2


async def test_a_caller_that_leaves_while_its_result_is_recorded(tmp_path: Path) -> None:
    """The result is recorded, and the doubt counted, all the same."""
    with opened(tmp_path) as (calls, _):
        for number, outcome in enumerate(("InDoubt", "answered"), 1):
            assert await calls.begin(ENTRY) == number
            task = asyncio.create_task(calls.end(number, outcome))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert [row["outcome"] for row in await calls.entries()] == ["answered", "InDoubt"]
        assert calls.in_doubt_count("squeezed") == 1


async def test_a_full_disk(tmp_path: Path) -> None:
    """A write that cannot be recorded is not there; one whose result cannot be, stays without; space mends it."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    with opened(tmp_path) as (calls, durable):
        pages = durable.read_now("PRAGMA page_count")[0][0]
        durable.read_now(f"PRAGMA max_page_count={pages}")
        begun = 0
        with pytest.raises(NotDurable, match=r"journal\.sqlite cannot be written: database or disk is full"):  # noqa: PT012
            while True:
                begun = await calls.begin(replace(ENTRY, request="x" * 500))
        with pytest.raises(NotDurable):
            await calls.end(begun, "InDoubt", bytes(10_000))
        assert calls.in_doubt_count("squeezed") == 0
        assert numbers(await calls.entries(None, 1000)) == list(range(begun, 0, -1))
        await durable.read("PRAGMA max_page_count=10000")
        await calls.end(begun, "InDoubt", bytes(10_000))
        assert calls.in_doubt_count("squeezed") == 1
        assert await calls.begin(ENTRY) == begun + 2
    assert told == []


async def test_old_calls_are_removed(tmp_path: Path) -> None:
    """The newest stay, and of the older ones those without a result or in doubt; once acknowledged these go too."""
    old, total = 2000, 2000 + journal.KEPT_CALLS
    with opened(tmp_path) as (_, durable):
        durable.write_now(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?) "
            "INSERT INTO call (id, service, method, door, request, epoch, stage, side, began, outcome) "
            "SELECT n, 'xenopsd', 'VM.start', 'http', '', 1, 'live', 'bus', '', "
            "CASE n % 1000 WHEN 0 THEN 'InDoubt' WHEN 1 THEN NULL ELSE 'answered' END FROM number",
            (total - 1,),
        )
    with opened(tmp_path) as (calls, durable):
        last = await calls.begin(ENTRY)
        assert last == total
        for _ in range(journal.TRIM_EVERY - 1):
            await calls.end(last, "answered")
        assert await durable.read("SELECT count(*) FROM call") == [(total,)]
        await calls.end(last, "answered")
        kept = await durable.read("SELECT id FROM call WHERE id <= ? ORDER BY id", (old,))
        assert kept == [(1,), (1000,), (1001,), (2000,)]
        assert await durable.read("SELECT count(*) FROM call") == [(journal.KEPT_CALLS + 4,)]
        assert await calls.acknowledge("xenopsd", "uid 0: looked") == total // 1000 - 1
        await asyncio.gather(*(calls.end(last, "answered") for _ in range(journal.TRIM_EVERY)))
        assert await durable.read("SELECT id FROM call WHERE id <= ? ORDER BY id", (old,)) == [(1,), (1001,)]


WRITER = """
import asyncio, sys
from pathlib import Path
from bridges import journal
from bridges.durable import Durable

calls = journal.Journal(Durable(Path(sys.argv[1]), journal.SCHEMA, 1), lambda: "now")

def tell(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

async def write(caller):
    for request in range(1_000_000):
        number = await calls.begin(journal.Entry("squeezed", "m", "xenstore", f"{caller}-{request}", 1, "live", "bus"))
        tell("began", number, f"{caller}-{request}")
        await calls.end(number, "answered", b"response %d" % number)
        tell("ended", number, f"{caller}-{request}")

async def main():
    await asyncio.gather(*(write(caller) for caller in range(5)))

asyncio.run(main())
"""


def told_before_the_kill(path: Path, lines: int) -> list[list[str]]:
    """What a writer said until it was killed after so many lines, word by word."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        told += writer.stdout.readlines()
    return [line.split() for line in told if line.endswith("\n")]


@pytest.mark.parametrize("turn", range(6))
async def test_what_was_told_is_there_after_a_kill(tmp_path: Path, turn: int) -> None:
    """Killed at any moment: each write that began is there, and each result that was recorded."""
    lines = random.randrange(1, 400 * (turn + 1))
    words = told_before_the_kill(tmp_path / "journal.sqlite", lines)
    began = {int(number): request for what, number, request in words if what == "began"}
    ended = {int(number) for what, number, _ in words if what == "ended"}
    assert began, f"{lines} lines"
    with opened(tmp_path) as (calls, durable):
        in_doubt = calls.recover()["squeezed"]
        rows = dict(await durable.read("SELECT id, outcome FROM call"))
        assert [number for number in ended if rows.get(number) != "answered"] == [], f"{lines} lines"
        assert [number for number in began if rows.get(number) not in ("answered", "InDoubt")] == [], f"{lines} lines"
        assert in_doubt == calls.in_doubt_count("squeezed") <= 5
        for number in sorted(ended)[-5:]:
            found = Found("answered", b"response %d" % number, "m")
            assert await calls.find("squeezed", began[number]) == found
