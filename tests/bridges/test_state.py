"""The state file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bridges.cutover import STEPS, Stage, Step
from bridges.state import VERSION, Order, Standing, State, StateError

ORDER = Order("uid 0", "a reason", skip="none")


@contextmanager
def opened(directory: Path) -> Iterator[State]:
    with closing(State(directory)) as state:
        yield state


def test_a_service_never_moved_is_off(tmp_path: Path) -> None:
    """The first standing is off at epoch 0, and the directory is made for root only."""
    with opened(tmp_path / "deep" / "state") as state:
        assert state.standing("squeezed") == Standing(Stage.OFF, 0)
        assert state.recover("squeezed") == (Standing(Stage.OFF, 0), None)
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_committed_flip_is_there_after_reopening(tmp_path: Path) -> None:
    """Stage, epoch and the flip's record outlive the process."""
    with opened(tmp_path) as state:
        flip = state.begin("squeezed", Standing(Stage.OFF, 0), Stage.RELAY, ORDER)
        state.reached(flip, Step.PREPARED)
        state.commit(flip, "squeezed", Standing(Stage.RELAY, 1))
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == Standing(Stage.RELAY, 1)
        assert state.standing("xenopsd") == Standing(Stage.OFF, 0)
        assert state.recover("squeezed") == (Standing(Stage.RELAY, 1), None)
        (record,) = state.flips("squeezed")
    expected = {
        "service": "squeezed",
        "origin": "off",
        "target": "relay",
        "epoch": 1,
        "who": "uid 0",
        "reason": "a reason",
        "skip": "none",
        "step": "committed",
        "outcome": "done",
    }
    assert record.items() >= expected.items()


def test_a_step_is_durable_while_the_process_lives(tmp_path: Path) -> None:
    """A copy of the files, as a crash would leave them, has the step that was reached."""
    with opened(tmp_path / "a") as state:
        flip = state.begin("squeezed", Standing(Stage.RELAY, 3), Stage.LIVE, ORDER)
        state.reached(flip, Step.FENCED)
        (tmp_path / "b").mkdir()
        for file in (tmp_path / "a").iterdir():
            (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    with opened(tmp_path / "b") as crashed:
        assert crashed.recover("squeezed")[0] == Standing(Stage.LIVE, 4)


@pytest.mark.parametrize("reached", [None, *STEPS])
def test_recovery_after_each_step(tmp_path: Path, reached: Step | None) -> None:
    """A flip that was cut off becomes not begun, or completed, once and for good."""
    with opened(tmp_path) as state:
        state.commit(
            state.begin("squeezed", Standing(Stage.OFF, 0), Stage.RELAY, ORDER), "squeezed", Standing(Stage.RELAY, 1)
        )
        flip = state.begin("squeezed", Standing(Stage.RELAY, 1), Stage.LIVE, ORDER)
        if reached is not None:
            state.reached(flip, reached)
    done = reached in (Step.FENCED, Step.HANDED_OVER, Step.COMMITTED)
    expected = Standing(Stage.LIVE, 2) if done else Standing(Stage.RELAY, 1)
    with opened(tmp_path) as state:
        standing, story = state.recover("squeezed")
        assert standing == expected == state.standing("squeezed")
        assert story is not None
        assert f"relay to live was cut off when {reached or 'prepared'}: the service is {expected.stage}" in story
        assert state.flips("squeezed")[0]["outcome"] == ("completed after a crash" if done else "undone after a crash")
        assert state.recover("squeezed") == (expected, None)


def test_a_refused_flip_leaves_the_service_where_it_was(tmp_path: Path) -> None:
    """The attempt and its reason stay in the record, newest first."""
    with opened(tmp_path) as state:
        flip = state.begin("squeezed", Standing(Stage.OFF, 0), Stage.RELAY, ORDER)
        state.refuse(flip, "the gate is red")
        state.begin("xenopsd", Standing(Stage.OFF, 0), Stage.RELAY, ORDER)
        assert state.standing("squeezed") == Standing(Stage.OFF, 0)
        assert [(f["service"], f["outcome"]) for f in state.flips()] == [
            ("xenopsd", None), ("squeezed", "the gate is red"),
        ]  # fmt: skip
        assert [f["service"] for f in state.flips(limit=1)] == ["xenopsd"]
        assert state.recover("squeezed") == (Standing(Stage.OFF, 0), None)


def test_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """A file of a later version is refused by its number and can still be opened by that version."""
    State(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as database:
        database.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(StateError, match=f"newer version \\({VERSION + 1}, known is {VERSION}\\)"):
        State(tmp_path)
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second holder is refused, and may come when the first has gone."""
    with opened(tmp_path), pytest.raises(StateError, match=r"state\.sqlite.*locked: another bridge is running"):
        State(tmp_path)
    State(tmp_path).close()


def test_a_corrupt_file_is_named_and_kept(tmp_path: Path) -> None:
    """What is no database is refused with a way out, and not overwritten."""
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError, match="not a database: move it away"):
        State(tmp_path)
    assert path.read_bytes() == b"no database at all" * 100


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    """A file where the directory should be is refused with a hint."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"file.*check the directory's owner and space"):
        State(tmp_path / "file")
