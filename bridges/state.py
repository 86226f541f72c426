"""What must survive a crash: the stage and epoch of each service, and every flip with the step it reached.

SQLite in WAL mode with synchronous=FULL: a commit that returned is on the disk. Reading is done once, at start; each
write is one small transaction, made only while a service is being moved. Beside it stands `stages.json`, a copy of the
committed stages: should the state file be lost or damaged, the last committed stages are taken from there, and every
service is frozen until somebody has looked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, ParamSpec

from bridges.cutover import Stage, Step, outcome
from bridges.durable import DurableError, open_file

LOG: Final = logging.getLogger("bridges.state")
P = ParamSpec("P")

VERSION: Final = 3
# Given up when the disk is full, so that the end of a move which could not be committed can still be written.
BALLAST_BYTES: Final = 256 * 1024
SPACE_BYTES: Final = 1 << 20

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS service (
    name TEXT PRIMARY KEY, stage TEXT NOT NULL, epoch INTEGER NOT NULL, changed TEXT NOT NULL, frozen TEXT,
    candidate TEXT, registered INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS flip (
    id INTEGER PRIMARY KEY, service TEXT NOT NULL, origin TEXT NOT NULL, target TEXT NOT NULL, epoch INTEGER NOT NULL,
    who TEXT NOT NULL, reason TEXT NOT NULL, skip TEXT, step TEXT, started TEXT NOT NULL, ended TEXT, outcome TEXT,
    verb TEXT NOT NULL DEFAULT 'stage', override TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, service TEXT NOT NULL, verb TEXT NOT NULL, origin TEXT NOT NULL,
    target TEXT NOT NULL, epoch INTEGER NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL, skip TEXT, override TEXT,
    outcome TEXT NOT NULL, held_seconds REAL
) STRICT;
CREATE TRIGGER IF NOT EXISTS audit_is_not_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_is_not_shortened BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""
_SET_STANDING: Final = """
INSERT INTO service (name, stage, epoch, changed) VALUES (?,?,?,?)
    ON CONFLICT (name) DO UPDATE SET stage = excluded.stage, epoch = excluded.epoch, changed = excluded.changed
"""
_ADD_TO_AUDIT: Final = """
INSERT INTO audit (time, service, verb, origin, target, epoch, who, reason, skip, override, outcome, held_seconds)
    VALUES (?,?,?,?,?,?,?,?,?,?,?,?)
"""
_UPGRADES: Final = {
    1: """
ALTER TABLE service ADD COLUMN frozen TEXT;
ALTER TABLE service ADD COLUMN candidate TEXT;
ALTER TABLE flip ADD COLUMN verb TEXT NOT NULL DEFAULT 'stage';
ALTER TABLE flip ADD COLUMN override TEXT;
UPDATE flip SET step = 'transferred' WHERE step = 'handed over';
INSERT INTO audit (time, service, verb, origin, target, epoch, who, reason, skip, outcome)
    SELECT ended, service, verb, origin, target, epoch, who, reason, skip, outcome FROM flip
    WHERE outcome IS NOT NULL ORDER BY id;
""",
    2: "ALTER TABLE service ADD COLUMN registered INTEGER;",
}


class StateError(Exception):
    """The state directory cannot be used; the text names the file and what to do."""


class NotWritten(Exception):
    """The state could not be made durable: the disk is full or the file cannot be written. What is there stays."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a service stands. Epoch 0 was before the bridge ever moved it."""

    stage: Stage
    epoch: int


@dataclass(frozen=True, slots=True)
class Order:
    """An operator's wish: who (uid), why, the reasons for leaving stages out and for passing gates, and the verb."""

    who: str
    reason: str
    skip: str | None = None
    override: str | None = None
    verb: str = "stage"


class State:
    """The state file `state.sqlite` in the state directory; one process at a time holds it."""

    def __init__(self, directory: Path, now: Callable[[], str] | None = None) -> None:
        self.path = directory / "state.sqlite"
        self._copy = directory / "stages.json"
        self._ballast = directory / "ballast"
        self._now = now or _now
        what = "was missing or empty"
        try:
            self._database = open_file(self.path, _SCHEMA, VERSION, _UPGRADES)
        except DurableError as error:
            raise StateError(str(error)) from None
        except sqlite3.DatabaseError as error:
            what = self._set_aside(f"is damaged ({error})")
        if self._copy.exists() and self._database.execute("SELECT 1 FROM service").fetchone() is None:
            self._restore(f"{self.path} {what}")
        self._keep_ballast()

    def _set_aside(self, what: str) -> str:
        """A damaged file makes room for a new one; what was committed is known from the copy. Returns what was done."""
        if not self._copy.exists():
            text = "and there is no stages.json beside it: move it away to begin anew, with every service off"
            raise StateError(f"{self.path}: {what} {text}") from None
        aside = self.path.with_name(f"state.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}.sqlite")
        try:
            for name in (self.path, *(self.path.with_name(f"{self.path.name}-{part}") for part in ("wal", "shm"))):
                with contextlib.suppress(FileNotFoundError):
                    name.rename(aside.with_name(name.name.replace(self.path.name, aside.name)))
            self._database = open_file(self.path, _SCHEMA, VERSION, _UPGRADES)
        except (OSError, sqlite3.Error, DurableError) as error:
            text = f"{self.path}: {what} and no new one can be made: {error}: check the directory's owner and space"
            raise StateError(text) from None
        return f"{what} and was set aside as {aside.name}"

    def _restore(self, why: str) -> None:
        try:
            services = json.loads(self._copy.read_text())["services"]
            standings = {name: Standing(Stage(each["stage"]), int(each["epoch"])) for name, each in services.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._database.close()
            text = (
                f"{why}, and {self._copy} cannot be read: {error!r}: remove both to begin anew, with every service off"
            )
            raise StateError(text) from None
        text = f"{why}: the stages are those of {self._copy.name}; acknowledge it when they are right"
        LOG.error("%s", text)
        insert = "INSERT INTO service (name, stage, epoch, changed, frozen) VALUES (?,?,?,?,?)"
        try:  # all or none: a file with some of them would be believed at the next start
            self._transact(*((insert, (n, s.stage, s.epoch, self._now(), text)) for n, s in standings.items()))
        except NotWritten as error:
            self._database.close()
            raise StateError(str(error)) from None

    def close(self) -> None:
        """Lets go of the file; another process may then hold it."""
        self._database.close()

    def standing(self, service: str) -> Standing:
        """Where the service stands by the last commit; a service never moved is off."""
        row = self._database.execute("SELECT stage, epoch FROM service WHERE name = ?", (service,)).fetchone()
        return Standing(Stage(row[0]), row[1]) if row else Standing(Stage.OFF, 0)

    def frozen(self, service: str) -> str | None:
        """Why the service may not be moved, None when it may."""
        row = self._database.execute("SELECT frozen FROM service WHERE name = ?", (service,)).fetchone()
        return row[0] if row else None

    def freeze(self, service: str, why: str | None) -> None:
        """Keeps a freeze, or its end, over restarts. Raises NotWritten."""
        standing = self.standing(service)
        self._write(
            "INSERT INTO service (name, stage, epoch, changed, frozen) VALUES (?,?,?,?,?) "
            "ON CONFLICT (name) DO UPDATE SET frozen = excluded.frozen",
            (service, standing.stage, standing.epoch, self._now(), why),
        )

    def candidate(self, service: str) -> str | None:
        """The process that took the last Assume, `PID:START:BOOT`, for the proof that it ended when there is no bus."""
        row = self._database.execute("SELECT candidate FROM service WHERE name = ?", (service,)).fetchone()
        return row[0] if row else None

    def keep_candidate(self, service: str, process: str) -> None:
        """Remembers the process that took Assume. Raises NotWritten."""
        self._write("UPDATE service SET candidate = ? WHERE name = ?", (process, service))

    def registered(self, service: str) -> int | None:
        """The pid with which a bridge last registered as the server of the service's tree, None if none ever did."""
        row = self._database.execute("SELECT registered FROM service WHERE name = ?", (service,)).fetchone()
        return row[0] if row else None

    def keep_registered(self, service: str, pid: int) -> None:
        """Remembers a registration that is about to be made, of a service moved before. Raises NotWritten."""
        self._insist(self._write, "UPDATE service SET registered = ? WHERE name = ?", (pid, service))

    def recover(self, service: str) -> tuple[Standing, str | None]:
        """Ends flips that a crash cut off: each becomes not begun, or completed.

        Only the newest can have been on its way: an older one was over, its end could not be written.
        Returns the standing and what was done, None when no flip was cut off. Raises StateError.
        """
        try:
            return self._recover(service)
        except NotWritten as error:
            raise StateError(str(error)) from None

    def _recover(self, service: str) -> tuple[Standing, str | None]:
        standing = self.standing(service)
        story = None
        newest = self._database.execute("SELECT max(id) FROM flip WHERE service = ?", (service,)).fetchone()[0]
        rows = self._database.execute(
            "SELECT id, origin, target, epoch, step, who, reason, skip, override, verb FROM flip "
            "WHERE service = ? AND outcome IS NULL ORDER BY id",
            (service,),
        ).fetchall()
        for number, origin, target, epoch, step, *wish in rows:
            reached = Step(step) if step else Step.PREPARED
            stage = outcome(Stage(origin), Stage(target), reached) if number == newest else standing.stage
            story = f"flip {number} {origin} to {target} was cut off when {reached}: the service is {stage}"
            order, before = Order(*wish), Standing(Stage(origin), epoch - 1)
            if number == newest and stage == target:
                standing = Standing(stage, epoch)
                self._insist(self._finish, number, service, before, standing, order, "completed after a crash", None)
            else:
                self._insist(self._end, number, service, before, Stage(target), order, "undone after a crash")
        return standing, story

    def begin(self, service: str, origin: Standing, target: Stage, order: Order) -> int:
        """Writes the intent to flip; returns its number. Raises NotWritten."""
        cursor = self._write(
            "INSERT INTO flip (service, origin, target, epoch, who, reason, skip, started, verb, override) "
            "VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                service, origin.stage, target, origin.epoch + 1,
                order.who, order.reason, order.skip, self._now(), order.verb, order.override,
            ),
        )  # fmt: skip
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def reached(self, flip: int, step: Step) -> None:
        """Makes durable that the flip reached a step, before the next one begins. Raises NotWritten."""
        self._write("UPDATE flip SET step = ? WHERE id = ?", (step, flip))

    def retreat(self, flip: int) -> None:
        """The flip went back behind its fence: a restart finds it not begun. Written even when the disk is full."""
        self._insist(self.reached, flip, Step.DRAINED)

    def check_space(self) -> None:
        """Raises NotWritten when a flip could run into a full disk half-way."""
        found = os.statvfs(self.path.parent)
        if found.f_bavail * found.f_frsize < SPACE_BYTES:
            raise NotWritten(f"{self.path.parent} has less than {SPACE_BYTES >> 20} MiB left: free space there first")

    def commit(
        self, flip: int, service: str, origin: Standing, standing: Standing, order: Order, held_seconds: float | None
    ) -> None:
        """The flip is done: new stage and epoch, in one transaction with its record. Raises NotWritten."""
        if standing.epoch <= origin.epoch:
            raise AssertionError(f"epochs never repeat: {origin.epoch} to {standing.epoch}")
        self._finish(flip, service, origin, standing, order, "done", held_seconds)

    def refuse(self, flip: int, service: str, origin: Standing, target: Stage, order: Order, why: str) -> None:
        """The flip was not done, and the service stands where it stood. This is written even when the disk is full."""
        self._insist(self._end, flip, service, origin, target, order, why)
        self._keep_ballast()

    def note(
        self, service: str, origin: Standing, target: Stage, order: Order, what: str, held_seconds: float | None = None
    ) -> None:
        """Adds a line to the audit. Raises NotWritten."""
        self._write(*self._audit_line(service, origin, target, order, what, held_seconds))

    def audit(self, service: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The newest attempts and events, in the order in which they were made."""
        cursor = self._database.execute(
            "SELECT * FROM (SELECT id, time, service, verb, origin, target, epoch, who, reason, skip, override, "
            "outcome, held_seconds FROM audit WHERE ?1 IS NULL OR service = ?1 ORDER BY id DESC LIMIT ?2) ORDER BY id",
            (service, limit),
        )
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor]

    def _write(self, statement: str, parameters: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, parameters)
        except sqlite3.Error as error:
            raise self._not_written(error) from None

    def _insist(self, write: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Writes it, if need be in the place of the ballast. Raises NotWritten."""
        try:
            write(*args, **kwargs)
        except NotWritten:
            self._ballast.unlink(missing_ok=True)
            write(*args, **kwargs)

    def _not_written(self, error: sqlite3.Error) -> NotWritten:
        return NotWritten(f"{self.path} cannot be written: {error}: free space there, or correct its owner, then again")

    def _finish(
        self,
        flip: int,
        service: str,
        origin: Standing,
        standing: Standing,
        order: Order,
        how: str,
        held_seconds: float | None,
    ) -> None:
        self._transact(
            (
                _SET_STANDING,
                (service, standing.stage, standing.epoch, self._now()),
            ),
            (
                "UPDATE flip SET step = ?, ended = ?, outcome = ? WHERE id = ?",
                (Step.COMMITTED, self._now(), how, flip),
            ),
            self._audit_line(service, origin, standing.stage, order, how, held_seconds),
        )
        self._write_copy()

    def _end(self, flip: int, service: str, origin: Standing, target: Stage, order: Order, how: str) -> None:
        self._transact(
            ("UPDATE flip SET ended = ?, outcome = ? WHERE id = ?", (self._now(), how, flip)),
            self._audit_line(service, origin, target, order, how, None),
        )

    def _audit_line(
        self, service: str, origin: Standing, target: Stage, order: Order, what: str, held_seconds: float | None
    ) -> tuple[str, tuple[object, ...]]:
        return (
            _ADD_TO_AUDIT,
            (
                self._now(), service, order.verb, origin.stage, target, origin.epoch + 1, order.who, order.reason,
                order.skip, order.override, what, held_seconds,
            ),
        )  # fmt: skip

    def _transact(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for statement, parameters in statements:
                self._database.execute(statement, parameters)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:  # a full disk has ended it already
                self._database.execute("ROLLBACK")
            raise self._not_written(error) from None

    def _write_copy(self) -> None:
        """A copy that is out of date would be worse than none."""
        rows = self._database.execute("SELECT name, stage, epoch FROM service ORDER BY name")
        text = json.dumps({"services": {name: {"stage": stage, "epoch": epoch} for name, stage, epoch in rows}})
        new = self._copy.with_suffix(".new")
        try:
            with new.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._copy)
        except OSError as error:
            LOG.warning("%s cannot be written: %s", self._copy, error.strerror)
            for path in (new, self._copy):
                with contextlib.suppress(OSError):  # what it is a copy of is committed: nothing may fail here
                    path.unlink(missing_ok=True)

    def _keep_ballast(self) -> None:
        if not self._ballast.exists():
            try:
                self._ballast.write_bytes(bytes(BALLAST_BYTES))
            except OSError as error:
                LOG.warning("%s cannot be written: %s", self._ballast, error.strerror)
                self._ballast.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
