"""The state file."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bridges.cutover import STEPS, Stage, Step
from bridges.state import BALLAST_BYTES, SPACE_BYTES, VERSION, NotWritten, Order, Standing, State, StateError

ROOT = Path(__file__).parents[2]
ORDER = Order("uid 0", "a reason", skip="none", override="seen by hand")
OFF, RELAY, LIVE = Standing(Stage.OFF, 0), Standing(Stage.RELAY, 1), Standing(Stage.LIVE, 2)
FENCED = STEPS.index(Step.FENCED)

# The tables as the first version of the file had them.
SCHEMA_1 = """
CREATE TABLE service (
    name TEXT PRIMARY KEY, stage TEXT NOT NULL, epoch INTEGER NOT NULL, changed TEXT NOT NULL
) STRICT;
CREATE TABLE flip (
    id INTEGER PRIMARY KEY, service TEXT NOT NULL, origin TEXT NOT NULL, target TEXT NOT NULL, epoch INTEGER NOT NULL,
    who TEXT NOT NULL, reason TEXT NOT NULL, skip TEXT, step TEXT, started TEXT NOT NULL, ended TEXT, outcome TEXT
) STRICT;
PRAGMA user_version=1;
"""


@contextmanager
def opened(directory: Path) -> Iterator[State]:
    with closing(State(directory)) as state:
        yield state


@contextmanager
def the_file(directory: Path) -> Iterator[sqlite3.Connection]:
    """The file in the hands of another program; what it changes is committed."""
    with closing(sqlite3.connect(directory / "state.sqlite")) as database, database:
        yield database


def move(state: State, origin: Standing, target: Stage, service: str = "squeezed") -> Standing:
    standing = Standing(target, origin.epoch + 1)
    state.commit(state.begin(service, origin, target, ORDER), service, origin, standing, ORDER, 0.25)
    return standing


def make_live(directory: Path) -> None:
    """A state in which squeezed is live and xenopsd is in relay."""
    with opened(directory) as state:
        assert move(state, move(state, OFF, Stage.RELAY), Stage.LIVE) == LIVE
        move(state, OFF, Stage.RELAY, "xenopsd")


def outcomes(state: State, service: str = "squeezed") -> list[str]:
    return [line["outcome"] for line in state.audit(service)]


def test_a_service_never_moved_is_off(tmp_path: Path) -> None:
    """The first standing is off at epoch 0, and the directory is made for root only."""
    with opened(tmp_path / "deep" / "state") as state:
        assert state.standing("squeezed") == OFF
        assert state.recover("squeezed") == (OFF, None)
        assert state.frozen("squeezed") is None
        assert state.candidate("squeezed") is None
        assert state.audit() == []
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_committed_flip_is_there_after_reopening(tmp_path: Path) -> None:
    """Stage, epoch, the line of the audit and the copy outlive the process."""
    with opened(tmp_path) as state:
        flip = state.begin("squeezed", OFF, Stage.RELAY, ORDER)
        state.reached(flip, Step.PREPARED)
        state.commit(flip, "squeezed", OFF, RELAY, ORDER, 0.25)
        state.keep_candidate("squeezed", "12:34")
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == RELAY
        assert state.standing("xenopsd") == OFF
        assert state.candidate("squeezed") == "12:34"
        assert state.recover("squeezed") == (RELAY, None)
        (line,) = state.audit("squeezed")
        assert state.audit("xenopsd") == []
    time = line.pop("time")
    assert time.endswith("+00:00")
    assert line == {
        "id": 1, "service": "squeezed", "verb": "stage", "origin": "off", "target": "relay", "epoch": 1, "who": "uid 0",
        "reason": "a reason", "skip": "none", "override": "seen by hand", "outcome": "done", "held_seconds": 0.25,
    }  # fmt: skip
    copy = json.loads((tmp_path / "stages.json").read_text())
    assert copy == {"services": {"squeezed": {"stage": "relay", "epoch": 1}}}


def test_a_step_is_durable_while_the_process_lives(tmp_path: Path) -> None:
    """A copy of the files, as a crash would leave them, has the step that was reached."""
    with opened(tmp_path / "a") as state:
        flip = state.begin("squeezed", RELAY, Stage.LIVE, ORDER)
        state.reached(flip, Step.FENCED)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    with opened(tmp_path / "b") as crashed:
        assert crashed.recover("squeezed")[0] == LIVE


def test_the_disk_is_waited_for(tmp_path: Path) -> None:
    """No kill shows whether a commit waits for the disk, so SQLite is asked how it is set."""
    with opened(tmp_path) as state:
        names = ("journal_mode", "synchronous", "locking_mode")
        found = {name: state._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    assert found == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive"}


@pytest.mark.parametrize("reached", [None, *STEPS])
def test_recovery_after_each_step(tmp_path: Path, reached: Step | None) -> None:
    """A flip that was cut off becomes not begun, or completed, once and for good, with a line in the audit."""
    with opened(tmp_path) as state:
        move(state, OFF, Stage.RELAY)
        flip = state.begin("squeezed", RELAY, Stage.LIVE, ORDER)
        if reached is not None:
            state.reached(flip, reached)
    is_done = reached is not None and STEPS.index(reached) >= FENCED
    expected = LIVE if is_done else RELAY
    with opened(tmp_path) as state:
        standing, story = state.recover("squeezed")
        assert standing == expected == state.standing("squeezed")
        step = reached or Step.PREPARED
        assert story == f"flip 2 relay to live was cut off when {step}: the service is {standing.stage}"
        *_, line = state.audit()
        assert (line["origin"], line["target"], line["epoch"]) == ("relay", "live", 2)
        assert (line["who"], line["reason"], line["override"], line["verb"]) == (
            "uid 0", "a reason", "seen by hand", "stage",
        )  # fmt: skip
        assert line["outcome"] == ("completed after a crash" if is_done else "undone after a crash")
        assert state.recover("squeezed") == (expected, None)
        assert len(state.audit()) == 2
    copy = json.loads((tmp_path / "stages.json").read_text())
    assert copy["services"]["squeezed"] == {"stage": str(expected.stage), "epoch": expected.epoch}


def test_a_flip_that_went_back_behind_its_fence_is_found_not_begun(tmp_path: Path) -> None:
    """After a retreat the old side rules again, so a crash from there on must not complete the flip."""
    with opened(tmp_path) as state:
        flip = state.begin("squeezed", RELAY, Stage.LIVE, ORDER)
        state.reached(flip, Step.TRANSFERRED)
        state.retreat(flip)
    with opened(tmp_path) as state:
        assert state.recover("squeezed")[0] == OFF


@pytest.mark.parametrize("later", [(Stage.LIVE, Stage.RELAY), (Stage.LIVE, Stage.RELAY, Stage.LIVE)])
def test_only_the_newest_flip_can_have_been_cut_off(tmp_path: Path, later: tuple[Stage, ...]) -> None:
    """One whose end could not be written is over: it neither brings an old stage back nor lets epochs repeat."""
    with opened(tmp_path) as state:
        move(state, OFF, Stage.RELAY)
        state.reached(state.begin("squeezed", RELAY, Stage.LIVE, ORDER), Step.FENCED)
        last = RELAY
        for target in later:
            last = move(state, last, target)
    with opened(tmp_path) as state:
        standing, story = state.recover("squeezed")
        assert standing == last == state.standing("squeezed") == Standing(later[-1], 1 + len(later))
        assert story == f"flip 2 relay to live was cut off when fenced: the service is {later[-1]}"
        assert outcomes(state)[-1] == "undone after a crash"


def test_flips_of_two_services_are_recovered_each_for_itself(tmp_path: Path) -> None:
    """Recovering one service leaves the other's open flip alone."""
    with opened(tmp_path) as state:
        state.reached(state.begin("squeezed", RELAY, Stage.LIVE, ORDER), Step.FENCED)
        state.begin("xenopsd", OFF, Stage.RELAY, ORDER)
        assert state.recover("squeezed")[0] == LIVE
        assert state.standing("xenopsd") == OFF
        assert state.recover("xenopsd")[1] is not None


def test_a_refused_flip_leaves_the_service_where_it_was(tmp_path: Path) -> None:
    """The attempt and its reason stay in the audit; a restart finds nothing that was cut off."""
    with opened(tmp_path) as state:
        flip = state.begin("squeezed", OFF, Stage.RELAY, ORDER)
        state.refuse(flip, "squeezed", OFF, Stage.RELAY, ORDER, "refused: the gate is red")
        state.note("xenopsd", OFF, Stage.LIVE, Order("uid 7", "again", verb="kill"), "refused: already", 0.5)
        assert state.standing("squeezed") == OFF
        assert state.recover("squeezed") == (OFF, None)
        assert [(each["service"], each["verb"], each["target"], each["outcome"]) for each in state.audit()] == [
            ("squeezed", "stage", "relay", "refused: the gate is red"),
            ("xenopsd", "kill", "live", "refused: already"),
        ]
        assert [each["service"] for each in state.audit(limit=1)] == ["xenopsd"]


def test_epochs_never_repeat(tmp_path: Path) -> None:
    """A commit whose epoch does not grow is a defect, whoever asks for it, and changes nothing."""
    with opened(tmp_path) as state:
        move(state, OFF, Stage.RELAY)
        flip = state.begin("squeezed", RELAY, Stage.OFF, ORDER)
        with pytest.raises(AssertionError, match="epochs never repeat: 1 to 1"):
            state.commit(flip, "squeezed", RELAY, Standing(Stage.OFF, 1), ORDER, None)
        assert state.standing("squeezed") == RELAY


def test_a_freeze_lasts_until_somebody_ends_it(tmp_path: Path) -> None:
    """It is kept over restarts and moves, also for a service that was never moved."""
    with opened(tmp_path) as state:
        state.freeze("squeezed", "SPLIT_OWNER: pid 7")
        assert state.standing("squeezed") == OFF
    with opened(tmp_path) as state:
        assert state.frozen("squeezed") == "SPLIT_OWNER: pid 7"
        assert state.frozen("xenopsd") is None
        move(state, OFF, Stage.RELAY)
        assert state.frozen("squeezed") == "SPLIT_OWNER: pid 7"
        state.freeze("squeezed", None)
    with opened(tmp_path) as state:
        assert (state.frozen("squeezed"), state.standing("squeezed")) == (None, RELAY)


def test_a_clock_that_is_set_back_changes_no_order(tmp_path: Path) -> None:
    """The audit stands in the order in which it was written, and epochs grow whatever the clock says."""
    times = iter([f"2026-01-0{9 - number % 9}T00:00:00.000+00:00" for number in range(40)])
    with closing(State(tmp_path, now=lambda: next(times))) as state:
        standing = OFF
        for target in (Stage.RELAY, Stage.LIVE, Stage.RELAY, Stage.OFF):
            standing = move(state, standing, target)
        lines = state.audit()
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["id"] for line in lines] == [1, 2, 3, 4]
    assert [line["time"] for line in lines] != sorted(line["time"] for line in lines)
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == Standing(Stage.OFF, 4)


@pytest.mark.parametrize("statement", ["UPDATE audit SET who = 'nobody'", "DELETE FROM audit"])
def test_the_audit_is_append_only(tmp_path: Path, statement: str) -> None:
    """The file itself refuses to change a line or to lose one."""
    with opened(tmp_path) as state:
        move(state, OFF, Stage.RELAY)
    with the_file(tmp_path) as database, pytest.raises(sqlite3.IntegrityError, match="the audit is append-only"):
        database.execute(statement)
    with opened(tmp_path) as state:
        assert [line["who"] for line in state.audit()] == ["uid 0"]


@pytest.mark.parametrize(("step", "expected"), [("drained", RELAY), ("handed over", LIVE), (None, RELAY)])
def test_a_file_of_the_first_version_is_carried_on(tmp_path: Path, step: str | None, expected: Standing) -> None:
    """Its stages stand, a flip that was cut off is ended by the step's old name, its attempts are in the audit."""
    flip = "INSERT INTO flip (service, origin, target, epoch, who, reason, skip, step, started, ended, outcome) "
    with the_file(tmp_path) as database:
        database.executescript(SCHEMA_1)
        database.execute("INSERT INTO service VALUES ('squeezed', 'relay', 1, 'T1')")
        database.execute(
            f"{flip} VALUES ('squeezed', 'off', 'relay', 1, 'uid 0', 'week 1', NULL, 'committed', 'T0', 'T1', 'done')"
        )
        database.execute(
            f"{flip} VALUES ('squeezed', 'relay', 'live', 2, 'uid 0', 'week 2', NULL, ?, 'T2', NULL, NULL)", (step,)
        )
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == RELAY
        assert state.frozen("squeezed") is None
        assert state.recover("squeezed")[0] == expected == state.standing("squeezed")
        state.freeze("squeezed", "a freeze")
        state.keep_candidate("squeezed", "1:2")
        state.keep_registered("squeezed", 7)
        first, last = state.audit()
    assert (first["time"], first["reason"], first["verb"], first["outcome"]) == ("T1", "week 1", "stage", "done")
    assert (last["reason"], last["target"]) == ("week 2", "live")
    with opened(tmp_path) as state:
        assert len(state.audit()) == 2
        assert (state.frozen("squeezed"), state.candidate("squeezed")) == ("a freeze", "1:2")
        assert (state.registered("squeezed"), state.registered("xenopsd")) == (7, None)


def test_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """A file of a later version is refused by its number and can still be opened by that version."""
    make_live(tmp_path)
    with the_file(tmp_path) as database:
        database.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(StateError, match=f"newer version \\({VERSION + 1}, known is {VERSION}\\): use that one"):
        State(tmp_path)
    with the_file(tmp_path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ballast", "stages.json", "state.sqlite"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second holder is refused, and may come when the first has gone."""
    with opened(tmp_path), pytest.raises(StateError, match=r"state\.sqlite.*locked: another bridge is running"):
        State(tmp_path)
    State(tmp_path).close()


def test_a_damaged_file_without_a_copy_is_named_and_kept(tmp_path: Path) -> None:
    """What is no database is refused with a way out, and not overwritten."""
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError, match=r"not a database\) and there is no stages\.json beside it: move it away"):
        State(tmp_path)
    assert path.read_bytes() == b"no database at all" * 100


def _overwrite_start(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def _overwrite_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:12288] = bytes(8192)
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [_overwrite_start, _overwrite_middle, _cut_short], ids=lambda each: each.__name__)
def test_a_damaged_file_is_set_aside_and_its_stages_come_from_the_copy(tmp_path: Path, damage: object) -> None:
    """Each service stands where the last commit left it and is frozen, until somebody has looked."""
    make_live(tmp_path)
    assert callable(damage)
    damage(tmp_path / "state.sqlite")
    damaged = (tmp_path / "state.sqlite").read_bytes()
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == LIVE
        assert state.standing("xenopsd") == RELAY
        (aside,) = tmp_path.glob("state.damaged-*.sqlite")
        assert aside.read_bytes() == damaged
        for service in ("squeezed", "xenopsd"):
            why = state.frozen(service)
            assert why is not None
            assert f"and was set aside as {aside.name}: the stages are those of stages.json; acknowledge it" in why
        assert move(state, LIVE, Stage.RELAY) == Standing(Stage.RELAY, 3)
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == Standing(Stage.RELAY, 3)
        assert state.frozen("squeezed") is not None


@pytest.mark.parametrize("is_there", [False, True])
def test_a_lost_file_is_made_anew_from_the_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_there: bool
) -> None:
    """A file that is gone, or was left empty by a crash half-way through this, does not make a live service off."""
    make_live(tmp_path)
    (tmp_path / "state.sqlite").unlink()
    if is_there:
        with the_file(tmp_path) as database:
            database.execute("PRAGMA journal_mode=WAL")
    with caplog.at_level(logging.ERROR), opened(tmp_path) as state:
        assert (state.standing("squeezed"), state.standing("xenopsd")) == (LIVE, RELAY)
        assert [state.frozen(name) for name in ("squeezed", "xenopsd")] == [caplog.messages[0]] * 2
        assert "state.sqlite was missing or empty: the stages are those of stages.json" in caplog.messages[0]
        assert state.frozen("networkd") is None
    caplog.clear()
    with opened(tmp_path) as state:
        assert state.frozen("squeezed") is not None
    assert caplog.messages == []


@pytest.mark.parametrize(
    "copy",
    ["", "{", "[]", '{"services": []}', '{"services": {"squeezed": {"stage": "lvie", "epoch": 2}}}',
     '{"services": {"squeezed": {"stage": "live"}}}', '{"services": {"squeezed": {"stage": "live", "epoch": null}}}'],
)  # fmt: skip
def test_a_copy_that_cannot_be_read_is_never_guessed_at(tmp_path: Path, copy: str) -> None:
    """Both files are named, with what to do; the file that was lost is not believed at the next start either."""
    make_live(tmp_path)
    (tmp_path / "state.sqlite").unlink()
    (tmp_path / "stages.json").write_text(copy)
    for _ in range(2):
        with pytest.raises(StateError, match=r"stages\.json cannot be read: .*: remove both to begin anew"):
            State(tmp_path)
    (tmp_path / "state.sqlite").unlink()
    (tmp_path / "stages.json").unlink()
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == OFF


def test_a_copy_that_cannot_be_written_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that is out of date would be worse, and a move that is committed does not fail for want of it."""
    with opened(tmp_path) as state:
        move(state, OFF, Stage.RELAY)
        (tmp_path / "stages.new").mkdir()
        assert move(state, RELAY, Stage.LIVE) == LIVE
        assert not (tmp_path / "stages.json").exists()
        assert "stages.json cannot be written: Is a directory" in caplog.text
        assert state.standing("squeezed") == LIVE
        (tmp_path / "stages.new").rmdir()
        move(state, LIVE, Stage.RELAY)
    assert json.loads((tmp_path / "stages.json").read_text())["services"]["squeezed"]["epoch"] == 3


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    """A file where the directory or its parent should be, a directory where the file should be: each with a hint."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match=f"{path}: .*: check the directory's owner and space"):
            State(path)
    (tmp_path / "state" / "state.sqlite").mkdir(parents=True)
    with pytest.raises(StateError, match="unable to open database file: check the directory's owner and space"):
        State(tmp_path / "state")


def test_a_file_that_may_not_be_written_raises_not_written_and_keeps_what_is_there(tmp_path: Path) -> None:
    """Every write of a move says so, and reading goes on."""
    with opened(tmp_path) as state:
        move(state, OFF, Stage.RELAY)
        flip = state.begin("squeezed", RELAY, Stage.LIVE, ORDER)
        state._database.execute("PRAGMA query_only=ON")
        writes = {
            "begin": lambda: state.begin("squeezed", RELAY, Stage.LIVE, ORDER),
            "reached": lambda: state.reached(flip, Step.HELD),
            "retreat": lambda: state.retreat(flip),
            "commit": lambda: state.commit(flip, "squeezed", RELAY, LIVE, ORDER, None),
            "refuse": lambda: state.refuse(flip, "squeezed", RELAY, Stage.LIVE, ORDER, "refused"),
            "note": lambda: state.note("squeezed", RELAY, Stage.LIVE, ORDER, "refused"),
            "freeze": lambda: state.freeze("squeezed", "a freeze"),
            "keep_candidate": lambda: state.keep_candidate("squeezed", "1:2"),
        }
        for write in writes.values():
            with pytest.raises(NotWritten, match=r"state\.sqlite cannot be written: .*readonly.*: free space there"):
                write()
        with pytest.raises(StateError, match="cannot be written"):
            state.recover("squeezed")
        assert (state.standing("squeezed"), state.frozen("squeezed"), outcomes(state)) == (RELAY, None, ["done"])
        state._database.execute("PRAGMA query_only=OFF")
        state.commit(flip, "squeezed", RELAY, LIVE, ORDER, None)
    with opened(tmp_path) as state:
        assert state.standing("squeezed") == LIVE


# Run with a small file system of its own: fills it, then walks through a move whose writes all meet a full disk.
FULL = r"""
import sys
from pathlib import Path
from bridges.cutover import Stage, Step
from bridges.state import NotWritten, Order, Standing, State, StateError

directory, case = Path(sys.argv[1]), sys.argv[2]
order = Order("uid 0", "a reason")
off, relay, live = Standing(Stage.OFF, 0), Standing(Stage.RELAY, 1), Standing(Stage.LIVE, 2)
state = State(directory / "state")
state.commit(state.begin("squeezed", off, Stage.RELAY, order), "squeezed", off, relay, order, None)
state.check_space()
flip = state.begin("squeezed", relay, Stage.LIVE, order)
state.reached(flip, Step.TRANSFERRED if case in ("retreat", "recover") else Step.DRAINED)
# Whatever space SQLite has put by must be used up too: its log is begun anew after a checkpoint.
with (directory / "filler").open("wb", buffering=0) as filler:
    for size in (65536, 4096, 512, 1):
        try:
            while True:
                filler.write(bytes(size))
        except OSError:
            pass

def refused(write, *arguments):
    try:
        write(*arguments)
    except NotWritten as error:
        assert str(error).endswith("free space there, or correct its owner, then again"), error
        return
    raise SystemExit(f"{write.__name__} was written to a full disk")

def spoil(write, *arguments):
    "Until the log has no more room"
    for _ in range(2000):
        try:
            write(*arguments)
        except NotWritten:
            return
    raise SystemExit("the disk is never full")

try:
    state.check_space()
except NotWritten as error:
    assert str(error) == f"{directory / 'state'} has less than 1 MiB left: free space there first", error
else:
    raise SystemExit("a full disk has space")
spoil(state.note, "squeezed", relay, Stage.LIVE, order, "x" * 2000)
refused(state.begin, "squeezed", relay, Stage.LIVE, order)
refused(state.reached, flip, Step.FENCED)
refused(state.commit, flip, "squeezed", relay, live, order, None)
assert state.standing("squeezed") == relay
assert (directory / "state" / "ballast").stat().st_size == 256 * 1024
if case == "refuse":
    state.refuse(flip, "squeezed", relay, Stage.LIVE, order, "refused: the disk is full")
elif case == "retreat":
    state.retreat(flip)
    assert not (directory / "state" / "ballast").exists()
    state.refuse(flip, "squeezed", relay, Stage.LIVE, order, "refused: the disk is full")
else:
    state.recover("squeezed")
(directory / "filler").unlink()
last = state.audit()[-1]["outcome"]
state.close()
state = State(directory / "state")
assert (directory / "state" / "ballast").exists()
print(last, *state.recover("squeezed"), sep="|")
state.close()
"""


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("refuse", "refused: the disk is full|Standing(stage=<Stage.RELAY: 'relay'>, epoch=1)|None"),
        ("retreat", "refused: the disk is full|Standing(stage=<Stage.RELAY: 'relay'>, epoch=1)|None"),
        ("recover", "completed after a crash|Standing(stage=<Stage.LIVE: 'live'>, epoch=2)|None"),
    ],
)
def test_the_end_of_a_move_is_written_to_a_full_disk(tmp_path: Path, case: str, expected: str) -> None:
    """begin, reached and commit fail and change nothing; refuse, retreat and recover take the ballast's place."""
    mount = 'mount -t tmpfs -o size=3m none "$1" && exec "$2" -c "$3" "$1" "$4"'
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own, 'mount -t tmpfs none "$0"', tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system of his own")
    command = [*own, mount, "sh", tmp_path, sys.executable, FULL, case]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=50)
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr
    assert BALLAST_BYTES * 2 < SPACE_BYTES
