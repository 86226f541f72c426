"""One SQLite file that many callers write at once, by one thread, in groups.

SQLite in WAL mode with synchronous=FULL: a commit that returned is on the disk. What is submitted while the thread is
in a commit goes into the next one together, so that many callers share one wait for the disk. Statements are carried
out in the order in which they were submitted, reads among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, Final

from bridges.pacing import GivingWay

Rows = list[tuple[Any, ...]]
Parameters = tuple[object, ...]
_Job = tuple[str, Parameters, asyncio.Future[Rows]]

# What is wrong with the statement, not with the file: such an error is the caller's own and is raised as it came.
_OF_THE_STATEMENT: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)


class DurableError(Exception):
    """The file cannot be used; the text names it and what to do."""


class NotDurable(Exception):
    """A statement could not be made durable: the disk is full or the file cannot be written. Nothing of it is kept."""


class Durable:
    """The file at `path`; one process at a time holds it. Raises DurableError.

    `schema` is carried out at every start, so it creates what does not exist; `version` is its version. `commits`
    counts the transactions since the start. The thread starts with the first `submit`, on whose event loop everything
    is awaited.
    """

    def __init__(self, path: Path, schema: str, version: int) -> None:
        self.path = path
        self.commits = 0
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._giving_way = GivingWay()
        try:
            self._database = open_file(path, schema, version)
        except sqlite3.DatabaseError as error:
            text = "move it away to begin anew, what it recorded is then no longer known"
            raise DurableError(f"{path}: is damaged ({error}): {text}") from None

    def submit(self, statement: str, parameters: Parameters = ()) -> asyncio.Future[Rows]:
        """Hands a statement to the thread; the future has its rows once it is durable.

        It is carried out whatever becomes of the future. The future fails with NotDurable, or with the error that the
        statement itself is to blame for; neither harms the statements beside it.
        """
        if self._loop is None:
            self._start()
            assert self._loop is not None
        future: asyncio.Future[Rows] = self._loop.create_future()
        if self._is_closed:
            future.set_exception(NotDurable(f"{self.path} is closed"))
        else:
            self._queue.put((statement, parameters, future))
            self._giving_way.begun()
        return future

    async def write(self, statement: str, parameters: Parameters = ()) -> None:
        """Returns once it is durable. Raises NotDurable. A caller that is cancelled meanwhile does not take it back."""
        await self.submit(statement, parameters)

    async def read(self, statement: str, parameters: Parameters = ()) -> Rows:
        """The rows, after all that was submitted before. Raises NotDurable when the file cannot be read."""
        return await self.submit(statement, parameters)

    def read_now(self, statement: str, parameters: Parameters = ()) -> Rows:
        """The rows, at a start: before anything was submitted. Raises NotDurable when the file cannot be read."""
        assert self._thread is None, "the thread has the file"
        try:
            return self._database.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._told(error) from None

    def write_now(self, statement: str, parameters: Parameters = ()) -> None:
        """Writes at a start: before anything was submitted. Raises NotDurable."""
        self.read_now(statement, parameters)

    def close(self) -> None:
        """Commits what was submitted, ends the thread and lets go of the file."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        self._database.close()

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self._is_closed:
            # A daemon thread: a process that ends by an error is not kept alive by what nobody awaits any more.
            self._thread = threading.Thread(target=self._work, name=f"durable {self.path.name}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        queue = self._queue
        assert self._loop is not None
        is_open = True
        while is_open:
            taken = [queue.get(), *(queue.get() for _ in range(queue.qsize()))]
            group = [job for job in taken if job is not None]
            is_open = len(group) == len(taken)
            outcomes = self._carry_out(group)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits any more
                self._loop.call_soon_threadsafe(self._resolve, group, outcomes)

    def _carry_out(self, group: list[_Job]) -> list[Rows | Exception]:
        """What came of each job: together, or one by one when one of them fails."""
        try:
            return [*self._transact(group)]
        except Exception as error:  # whatever it is, it is told to the caller of the statement, and the thread goes on
            if len(group) == 1:
                return [self._told(error)]
            return [outcome for job in group for outcome in self._carry_out([job])]

    def _transact(self, group: list[_Job]) -> list[Rows]:
        execute = self._database.execute
        try:
            execute("BEGIN IMMEDIATE")
            rows = [execute(statement, parameters).fetchall() for statement, parameters, _ in group]
            execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk has ended it already
                execute("ROLLBACK")
            raise
        self.commits += 1
        return rows

    def _resolve(self, group: list[_Job], outcomes: list[Rows | Exception]) -> None:
        for (_, _, future), outcome in zip(group, outcomes, strict=True):
            self._giving_way.over()
            if future.done():  # its caller was cancelled
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _told(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.Error):
            return error
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)  # absent: said by Python, of the parameters
        if code & 0xFF in _OF_THE_STATEMENT:
            return error
        return NotDurable(f"{self.path} cannot be written: {error}: free space there, or correct its owner, then again")


def open_file(
    path: Path, schema: str, version: int, upgrades: Mapping[int, str] = MappingProxyType({})
) -> sqlite3.Connection:
    """A file of ours: a commit that returned is on the disk, and one process at a time holds it.

    `schema` is carried out at every start, and behind it what `upgrades` has for the version that was found and those
    after it. Raises DurableError, and sqlite3.DatabaseError for a file that is damaged.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DurableError(f"{path.parent}: {error.strerror}: check the directory's owner and space") from None
    try:
        return _open(path, schema, version, upgrades)
    except sqlite3.OperationalError as error:
        locked = "locked" in str(error)
        hint = "another bridge is running with it" if locked else "check the directory's owner and space"
        raise DurableError(f"{path}: {error}: {hint}") from None


def _open(path: Path, schema: str, version: int, upgrades: Mapping[int, str]) -> sqlite3.Connection:
    # By whichever thread it is used later, that one alone.
    database = sqlite3.connect(path, isolation_level=None, timeout=0.5, check_same_thread=False)
    try:
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            raise DurableError(f"{path}: written by a newer version ({found}, known is {version}): use that one")
        state = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(" ".join(state.split()))
        later = " ".join(upgrades.get(each, "") for each in range(found, version)) if found else ""  # 0: a new file
        script = f"{schema} {later} PRAGMA user_version={version};"
        database.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
    except BaseException:
        database.close()
        raise
    return database
