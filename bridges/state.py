"""What must survive a crash: the stage and epoch of each service, and every flip with the step it reached.

SQLite in WAL mode with synchronous=FULL: a commit that returned is on the disk. Reading is done once, at start; each
write is one small transaction, made only while a service is being moved.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bridges.cutover import Stage, Step, outcome

VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS service (
    name TEXT PRIMARY KEY, stage TEXT NOT NULL, epoch INTEGER NOT NULL, changed TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS flip (
    id INTEGER PRIMARY KEY, service TEXT NOT NULL, origin TEXT NOT NULL, target TEXT NOT NULL, epoch INTEGER NOT NULL,
    who TEXT NOT NULL, reason TEXT NOT NULL, skip TEXT, step TEXT, started TEXT NOT NULL, ended TEXT, outcome TEXT
) STRICT;
"""


class StateError(Exception):
    """The state directory cannot be used; the text names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a service stands. Epoch 0 was before the bridge ever moved it."""

    stage: Stage
    epoch: int


@dataclass(frozen=True, slots=True)
class Order:
    """An operator's wish to move a service: who (uid), why, and the stages waived."""

    who: str
    reason: str
    skip: str | None = None


class State:
    """The state file `state.sqlite` in the state directory; one process at a time holds it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.sqlite"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, isolation_level=None, timeout=0.5)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{self.path}: {error}: check the directory's owner and space") from None
        try:
            self._prepare()
        except sqlite3.OperationalError as error:
            self._database.close()
            locked = "locked" in str(error)
            hint = "another bridge is running with it" if locked else "check the directory's owner and space"
            raise StateError(f"{self.path}: {error}: {hint}") from None
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise StateError(f"{self.path}: {error}: move it away to begin anew, with every service off") from None
        except StateError:
            self._database.close()
            raise

    def _prepare(self) -> None:
        self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise StateError(f"{self.path}: written by a newer version ({version}, known is {VERSION}): use that one")
        self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")

    def close(self) -> None:
        """Lets go of the file; another process may then hold it."""
        self._database.close()

    def standing(self, service: str) -> Standing:
        """Where the service stands by the last commit; a service never moved is off."""
        row = self._database.execute("SELECT stage, epoch FROM service WHERE name = ?", (service,)).fetchone()
        return Standing(Stage(row[0]), row[1]) if row else Standing(Stage.OFF, 0)

    def recover(self, service: str) -> tuple[Standing, str | None]:
        """Ends flips that a crash cut off: each becomes not begun, or completed.

        Returns the standing and what was done, None when no flip was cut off.
        """
        standing = self.standing(service)
        story = None
        rows = self._database.execute(
            "SELECT id, origin, target, epoch, step FROM flip WHERE service = ? AND outcome IS NULL ORDER BY id",
            (service,),
        ).fetchall()
        for number, origin, target, epoch, step in rows:
            reached = Step(step) if step else Step.PREPARED
            stage = outcome(Stage(origin), Stage(target), reached)
            story = f"flip {number} {origin} to {target} was cut off when {reached}: the service is {stage}"
            if stage == target:
                standing = Standing(stage, epoch)
                self._finish(number, service, standing, "completed after a crash")
            else:
                self._end(number, "undone after a crash")
        return standing, story

    def begin(self, service: str, origin: Standing, target: Stage, order: Order) -> int:
        """Writes the intent to flip; returns its number."""
        cursor = self._database.execute(
            "INSERT INTO flip (service, origin, target, epoch, who, reason, skip, started) VALUES (?,?,?,?,?,?,?,?)",
            (service, origin.stage, target, origin.epoch + 1, order.who, order.reason, order.skip, _now()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def reached(self, flip: int, step: Step) -> None:
        """Makes durable that the flip reached a step, before the next one begins."""
        self._database.execute("UPDATE flip SET step = ? WHERE id = ?", (step, flip))

    def commit(self, flip: int, service: str, standing: Standing) -> None:
        """The flip is done: new stage and epoch, in one transaction with its record."""
        self._finish(flip, service, standing, "done")

    def refuse(self, flip: int, why: str) -> None:
        """The flip was not done, and the service stands where it stood."""
        self._end(flip, why)

    def flips(self, service: str | None = None, limit: int = 50) -> list[dict[str, object]]:
        """The newest flips and attempts first."""
        cursor = self._database.execute(
            "SELECT id, service, origin, target, epoch, who, reason, skip, step, started, ended, outcome FROM flip "
            "WHERE ?1 IS NULL OR service = ?1 ORDER BY id DESC LIMIT ?2",
            (service, limit),
        )
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor]

    def _finish(self, flip: int, service: str, standing: Standing, how: str) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.execute(
                "INSERT INTO service (name, stage, epoch, changed) VALUES (?,?,?,?) ON CONFLICT (name) DO UPDATE SET "
                "stage = excluded.stage, epoch = excluded.epoch, changed = excluded.changed",
                (service, standing.stage, standing.epoch, _now()),
            )
            self._database.execute(
                "UPDATE flip SET step = ?, ended = ?, outcome = ? WHERE id = ?", (Step.COMMITTED, _now(), how, flip)
            )
            self._database.execute("COMMIT")
        except sqlite3.Error:
            self._database.execute("ROLLBACK")
            raise

    def _end(self, flip: int, how: str) -> None:
        self._database.execute("UPDATE flip SET ended = ?, outcome = ? WHERE id = ?", (_now(), how, flip))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
