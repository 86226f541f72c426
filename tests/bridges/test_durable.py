"""The file that many write at once."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bridges.durable import Durable, DurableError, NotDurable

ROOT = Path(__file__).parents[2]
SCHEMA = "CREATE TABLE IF NOT EXISTS thing (id INTEGER PRIMARY KEY, text TEXT NOT NULL, data BLOB) STRICT;"
INSERT = "INSERT INTO thing (id, text, data) VALUES (?,?,?)"


@contextmanager
def opened(path: Path) -> Iterator[Durable]:
    with closing(Durable(path, SCHEMA, 1)) as durable:
        yield durable


def ids(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [number for (number,) in database.execute("SELECT id FROM thing ORDER BY id")]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def pages(durable: Durable) -> int:
    return int(durable.read_now("PRAGMA page_count")[0][0])


async def test_a_write_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """A copy of the files, as a crash would leave them, has it."""
    with opened(tmp_path / "a" / "file.sqlite") as durable:
        await durable.write(INSERT, (1, "one", None))
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert ids(tmp_path / "b" / "file.sqlite") == [1]


async def test_the_disk_is_waited_for(tmp_path: Path) -> None:
    """No kill shows whether a commit waits for the disk, so SQLite is asked how it is set."""
    with opened(tmp_path / "file.sqlite") as durable:
        set_to = {name: durable.read_now(f"PRAGMA {name}") for name in ("journal_mode", "synchronous", "locking_mode")}
        assert set_to == {"journal_mode": [("wal",)], "synchronous": [(2,)], "locking_mode": [("exclusive",)]}


async def test_statements_are_carried_out_in_their_order(tmp_path: Path) -> None:
    """A read sees what was submitted before it and nothing of what came after."""
    with opened(tmp_path / "file.sqlite") as durable:
        count = "SELECT count(*) FROM thing"
        futures = []
        for number in range(100):
            durable.submit(INSERT, (number, "text", None))
            futures.append(durable.submit(count))
        assert [rows for (rows,) in await asyncio.gather(*futures)] == [(number + 1,) for number in range(100)]
        assert await durable.submit("UPDATE thing SET text = 'x' WHERE id > 97 RETURNING id") == [(98,), (99,)]


async def test_many_writes_share_a_commit(tmp_path: Path) -> None:
    """A thousand at once need far fewer commits than a thousand; one after the other each needs its own."""
    with opened(tmp_path / "file.sqlite") as durable:
        await asyncio.gather(*(durable.write(INSERT, (number, "text", None)) for number in range(1000)))
        assert 1 <= durable.commits < 50
        before = durable.commits
        for number in range(1000, 1010):
            await durable.write(INSERT, (number, "text", None))
        assert durable.commits == before + 10
    assert ids(tmp_path / "file.sqlite") == list(range(1010))


@pytest.mark.parametrize(
    ("statement", "parameters", "error"),
    [
        (INSERT, (50, "twice", None), sqlite3.IntegrityError),
        (INSERT, (1000, None, None), sqlite3.IntegrityError),
        (INSERT, (1000, "too few"), sqlite3.ProgrammingError),
        (INSERT, (1000, object(), None), sqlite3.ProgrammingError),
        (INSERT, (1 << 64, "too large", None), OverflowError),
        (INSERT, (1000, "\ud800", None), UnicodeEncodeError),
        ("NO STATEMENT", (), sqlite3.OperationalError),
        ("COMMIT; BEGIN", (), sqlite3.ProgrammingError),
    ],
)  # fmt: skip
async def test_a_bad_statement_harms_only_itself(
    tmp_path: Path, statement: str, parameters: tuple[object, ...], error: type[Exception]
) -> None:
    """Its caller gets the error as it came; those in its group are written."""
    with opened(tmp_path / "file.sqlite") as durable:
        good = [durable.submit(INSERT, (number, "text", None)) for number in range(51)]
        bad = durable.submit(statement, parameters)
        good += [durable.submit(INSERT, (number, "text", None)) for number in range(51, 100)]
        outcomes = await asyncio.gather(bad, *good, return_exceptions=True)
        assert type(outcomes[0]) is error
        assert outcomes[1:] == [[]] * 100
        await durable.write(INSERT, (100, "text", None))
    assert ids(tmp_path / "file.sqlite") == list(range(101))


async def test_a_caller_that_leaves_does_not_take_its_write_back(tmp_path: Path) -> None:
    """Cancelled writes are carried out, and those beside them are answered."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    with opened(tmp_path / "file.sqlite") as durable:
        tasks = [asyncio.create_task(durable.write(INSERT, (number, "text", None))) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [outcome is None for outcome in outcomes] == [False, True] * 10
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
        assert await durable.read("SELECT count(*) FROM thing") == [(20,)]
    assert told == []


async def test_closing_commits_what_was_submitted(tmp_path: Path) -> None:
    """It may be closed twice; thread and write-ahead log are gone, and a later write is refused."""
    threads = threading.active_count()
    durable = Durable(tmp_path / "file.sqlite", SCHEMA, 1)
    futures = [durable.submit(INSERT, (number, "text", None)) for number in range(100)]
    assert threading.active_count() == threads + 1
    durable.close()
    durable.close()
    assert threading.active_count() == threads
    assert names(tmp_path) == ["file.sqlite"]
    assert ids(tmp_path / "file.sqlite") == list(range(100))
    assert await asyncio.gather(*futures) == [[]] * 100
    with pytest.raises(NotDurable, match=r"file\.sqlite is closed"):
        await durable.write(INSERT, (100, "text", None))


def test_the_loop_may_end_first(tmp_path: Path) -> None:
    """What was submitted is written although nobody can be told any more."""

    async def leave() -> None:
        for number in range(100):
            durable.submit(INSERT, (number, "text", None))

    durable = Durable(tmp_path / "file.sqlite", SCHEMA, 1)
    asyncio.run(leave())
    durable.close()
    assert ids(tmp_path / "file.sqlite") == list(range(100))


async def test_never_used_and_closed(tmp_path: Path) -> None:
    """No thread is needed to close it, and none is started afterwards."""
    threads = threading.active_count()
    durable = Durable(tmp_path / "file.sqlite", SCHEMA, 1)
    durable.close()
    with pytest.raises(NotDurable):
        await durable.write(INSERT, (1, "text", None))
    assert threading.active_count() == threads


def test_on_uvloop(tmp_path: Path) -> None:
    """The other event loop."""
    uvloop = pytest.importorskip("uvloop")

    async def story() -> None:
        with opened(tmp_path / "file.sqlite") as durable:
            await asyncio.gather(*(durable.write(INSERT, (number, "text", None)) for number in range(100)))
            assert await durable.read("SELECT count(*) FROM thing") == [(100,)]

    uvloop.run(story())
    assert ids(tmp_path / "file.sqlite") == list(range(100))


async def test_a_full_file(tmp_path: Path) -> None:
    """What does not fit is refused and not there; what fits is written beside it; with space all is well again."""
    with opened(tmp_path / "file.sqlite") as durable:
        limit = pages(durable) + 10
        assert durable.read_now(f"PRAGMA max_page_count={limit}") == [(limit,)]
        large = bytes(100_000)
        futures = [durable.submit(INSERT, (n, "text", large if n % 2 else None)) for n in range(10)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert outcomes[::2] == [[]] * 5
        assert all(isinstance(outcome, NotDurable) for outcome in outcomes[1::2])
        assert "file.sqlite cannot be written: database or disk is full: free space there" in str(outcomes[1])
        assert await durable.read("SELECT id FROM thing ORDER BY id") == [(0,), (2,), (4,), (6,), (8,)]
        await durable.read("PRAGMA max_page_count=100000")
        await durable.write(INSERT, (1, "text", large))
    assert ids(tmp_path / "file.sqlite") == [0, 1, 2, 4, 6, 8]


FULL = """
import asyncio, json, resource, sys
from contextlib import closing
from pathlib import Path
from bridges.durable import Durable, NotDurable

INSERT = "INSERT INTO thing (id, text, data) VALUES (?,?,?)"

async def story(durable):
    written, refused = [], []
    async def write(number):
        try:
            await durable.write(INSERT, (number, "text", bytes(20_000)))
            written.append(number)
        except NotDurable as error:
            refused.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for number in range(30):
        await write(number)
    await asyncio.gather(*(write(number) for number in range(30, 60)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await asyncio.gather(*(write(number) for number in range(60, 90)))
    seen = [number for (number,) in await durable.read("SELECT id FROM thing ORDER BY id")]
    print(json.dumps([sorted(written), seen, refused]))

with closing(Durable(Path(sys.argv[1]), sys.argv[2], 1)) as durable:
    asyncio.run(story(durable))
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """Errors of the file system itself: exactly what was told to be written is there, and space helps."""
    path = tmp_path / "file.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), SCHEMA], cwd=ROOT, check=True, capture_output=True, timeout=30
    )
    written, seen, refused = json.loads(done.stdout)
    assert written == seen == ids(path)
    assert 0 < sum(number < 60 for number in written) < 20
    assert written[-30:] == list(range(60, 90))
    assert len(refused) == 90 - len(written)
    assert "file.sqlite cannot be written: disk I/O error: free space there, or correct its owner" in refused[0]


def test_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """It is refused by its number, and its own version can still open it."""
    path = tmp_path / "file.sqlite"
    Durable(path, SCHEMA, 2).close()
    with pytest.raises(DurableError, match=r"file\.sqlite: written by a newer version \(2, known is 1\)"):
        Durable(path, SCHEMA, 1)
    Durable(path, SCHEMA, 2).close()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """A second one is refused, and may come when the first has gone."""
    path = tmp_path / "file.sqlite"
    with opened(path), pytest.raises(DurableError, match=r"file\.sqlite.*locked: another bridge is running"):
        Durable(path, SCHEMA, 1)
    Durable(path, SCHEMA, 1).close()


def test_no_database_is_named_and_kept(tmp_path: Path) -> None:
    """A file of something else is refused with a way out, and not overwritten."""
    path = tmp_path / "file.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(DurableError, match=r"file\.sqlite: is damaged \(file is not a database\): move it away"):
        Durable(path, SCHEMA, 1)
    assert path.read_bytes() == b"no database at all" * 100


def test_a_damaged_page_is_noticed(tmp_path: Path) -> None:
    """Damage behind an intact head is found at the start."""
    path = tmp_path / "file.sqlite"
    with opened(path) as durable:
        durable.write_now(INSERT, (1, "text", None))
        size = durable.read_now("PRAGMA page_size")[0][0]
    with path.open("r+b") as file:
        file.seek(size)
        file.write(b"\xff" * size)
    with pytest.raises(DurableError, match=r"file\.sqlite: is damaged \(.*\): move it away"):
        Durable(path, SCHEMA, 1)


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    """A file where the directory should be, and a directory where the file should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DurableError, match=r"file: File exists: check the directory's owner and space"):
        Durable(tmp_path / "file" / "file.sqlite", SCHEMA, 1)
    (tmp_path / "file.sqlite").mkdir()
    with pytest.raises(DurableError, match=r"file\.sqlite: unable to open .*: check the directory's owner and space"):
        Durable(tmp_path / "file.sqlite", SCHEMA, 1)


async def test_before_the_thread_has_it(tmp_path: Path) -> None:
    """Reads and writes of a start are durable too; once the thread has the file they are refused."""
    with opened(tmp_path / "file.sqlite") as durable:
        durable.write_now(INSERT, (1, "text", None))
        assert durable.read_now("SELECT id FROM thing") == [(1,)]
        durable.read_now(f"PRAGMA max_page_count={pages(durable)}")
        with pytest.raises(NotDurable, match="disk is full: free space there"):
            durable.write_now(INSERT, (2, "text", bytes(100_000)))
        assert await durable.read("SELECT id FROM thing") == [(1,)]
        with pytest.raises(AssertionError, match="the thread has the file"):
            durable.read_now("SELECT 1")
