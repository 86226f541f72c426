"""`xcp-bridge capture ...` with what is no capture, with what was damaged, and by people in a hurry."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard

from bridges.capture.records import encode
from tests.live import captured
from tests.live.captured import Command, calls, damaged, run, write

GOLDEN = Path(__file__).parents[1] / "golden"
EXCHANGES = GOLDEN / "xenstore" / "squeezed-2012.jsonl"
LONG_NAME = "n" * 300
NO_CALLS: list[str] = ["capture show CAPTURE", "capture verify CAPTURE", "replay lint CAPTURE"]
READERS = (
    "capture show CAPTURE",
    "capture verify CAPTURE --json",
    "capture export CAPTURE --as lines",
    "replay lint CAPTURE --json",
    "replay serve CAPTURE squeezed --at http:/nosuch/socket",
    "replay drive CAPTURE --to http:/nosuch/socket --json",
)


def files(directory: Path, **contents: bytes) -> Path:
    """A directory of files; those named `s1` are called like segments."""
    directory.mkdir()
    for name, content in contents.items():
        (directory / name.replace("s1", "000001.jsonl.zst")).write_bytes(content)
    return directory


def file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def newer(path: Path) -> Path:
    write(path, calls(3), schema=2)
    return path


def two(path: Path) -> Path:
    path.mkdir()
    for name in ("monday", "tuesday"):
        write(path / name, calls(3))
    return path


PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
LINES = b"".join(map(encode, calls(3)))
NOT_CAPTURES: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "missing": (lambda _: None, 2, "{0}: there is no such capture"),
    "empty-directory": (Path.mkdir, 3, "{0}: is empty: expected segments named 000001.jsonl.zst"),
    "other-files": (lambda p: files(p, notes=b"x"), 2, "{0}: has no segments: expected files named"),
    "empty-file": (Path.touch, 3, "{0}: is empty"),
    "empty-segment": (lambda p: files(p, s1=b""), 3, "{0}/000001.jsonl.zst: is empty"),
    "png": (lambda p: file(p, PNG), 2, "{0}: is no segment of a capture but a PNG image"),
    "png-segment": (lambda p: files(p, s1=PNG), 2, "{0}/000001.jsonl.zst: is no segment of a capture but a PNG"),
    "text": (lambda p: file(p, b"hello\n"), 2, "but text"),
    "gzip": (lambda p: file(p, gzip.compress(b"hello\n" * 99)), 2, "but a gzip file"),
    "json-lines": (lambda p: file(p, LINES), 2, "but JSON that is in no zstd frame"),
    "zstd": (lambda p: file(p, zstandard.compress(LINES)), 2, "but a zstd file"),
    "newer": (newer, 2, "{0}/000001.jsonl.zst record 1: written by a newer version (schema 2, known is 1)"),
    "directory-of-captures": (two, 2, "{0}: is no capture, but has 2: name one of them, as {0}/"),
    "fifo": (os.mkfifo, 2, "{0}: is neither a directory nor a file"),
}


@pytest.mark.parametrize("kind", NOT_CAPTURES)
@pytest.mark.parametrize("reader", ["capture verify CAPTURE --json", "replay lint CAPTURE --json"])
def test_what_is_no_capture(tmp_path: Path, kind: str, reader: str) -> None:
    make, code, text = NOT_CAPTURES[kind]
    path = tmp_path / kind
    make(path)
    said = run(*reader.replace("CAPTURE", str(path)).split())
    assert (said.code, said.output) == (code, ""), said
    assert text.format(path) in said.errors
    assert said.errors.startswith("xcp-bridge: ")
    assert said.errors.count("\n") == 1


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_alike(tmp_path: Path, reader: str) -> None:
    words = reader.replace("CAPTURE", str(newer(tmp_path / "newer"))).split()
    said = run(*words)
    assert (said.code, said.output) == (2, "")
    assert "000001.jsonl.zst record 1: written by a newer version" in said.errors


def test_a_name_that_is_too_long() -> None:
    said = run("capture", "show", LONG_NAME)
    assert (said.code, said.output) == (2, "")
    assert "File name too long" in said.errors


# Once as root first, which loads everything: the checkout and Python may be for root alone.
AS_NOBODY = """
import os, sys
from typer.testing import CliRunner
from bridges import cli
CliRunner().invoke(cli.app, [*sys.argv[1:-1], "nosuch"])
os.setuid(65534)
cli.main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("reader", ["capture verify CAPTURE", "replay lint CAPTURE"])
def test_captures_of_others(tmp_path: Path, reader: str) -> None:
    """A capture is its writer's alone (0700). The reader goes there before it becomes nobody: it may not look above."""
    write(tmp_path / "one", calls(3))
    command = [sys.executable, "-c", AS_NOBODY, *reader.replace("CAPTURE", "one").split()]
    said = subprocess.run(
        command, check=False, cwd=tmp_path, env=captured.environment(), capture_output=True, text=True, timeout=50
    )
    assert (said.returncode, said.stdout) == (2, ""), said
    assert "one: cannot be read: Permission denied" in said.stderr


# ---- damage


def without_end(content: bytearray) -> bytearray:
    return content[: len(content) // 2]


def with_a_flipped_bit(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 4
    return content


@pytest.mark.parametrize(
    ("change", "told"),
    [(without_end, "at the end are damaged or cut: 345 records lost"), (with_a_flipped_bit, "are damaged: 64 records")],
)
def test_damage_is_named_and_costs_its_frame(tmp_path: Path, change: Callable[..., bytearray], told: str) -> None:
    path = damaged(tmp_path / "one", change)
    shown = run("capture", "show", path, "--limit", "2")
    assert (shown.code, shown.output.count("\n")) == (0, 2)
    assert "damage: 000001.jsonl.zst offset " in shown.errors
    assert told in shown.errors
    assert (verified := run("capture", "verify", path, "--json")).code == 1
    assert told in json.loads(verified.output)["damages"][0]
    lines = run("capture", "export", path, "--as", "lines")
    assert lines.code == 0
    assert [json.loads(line)["t"] for line in lines.output.splitlines()].count("req") >= 128
    assert told in lines.errors
    linted = run("replay", "lint", path, "--json")
    assert told in json.loads(linted.output)["damage"][0]


def test_a_removed_segment_and_a_record_of_tomorrow(tmp_path: Path) -> None:
    write(tmp_path / "gone", calls(300), segment_bytes=1000)
    (tmp_path / "gone" / "000003.jsonl.zst").unlink()
    said = run("capture", "verify", tmp_path / "gone")
    assert said.code == 1
    assert "missing: 000003.jsonl.zst\ndamage: 000003.jsonl.zst: is missing: 64 records lost\n" in said.output
    lines = [encode(each) for each in calls(2)]
    lines[1] = b'{"t":"new","seq":2}\n'
    captured.write_lines(tmp_path / "tomorrow", lines)
    said = run("capture", "verify", tmp_path / "tomorrow")
    assert said.code == 1
    assert "damage: 000001.jsonl.zst record 3: is no record of ours" in said.output
    assert "without an answer" not in said.output.split("damage")[1]


def test_many_places_of_damage_are_told_in_few_lines(tmp_path: Path) -> None:
    captured.write_lines(tmp_path / "many", [b"[]\n"] * 50)
    said = run("capture", "export", tmp_path / "many", "--as", "lines", "-o", tmp_path / "lines")
    assert said.code == 0
    assert said.errors.count("\n") == 21
    assert "in 30 more places" in said.errors


@pytest.mark.parametrize("command", NO_CALLS)
def test_nothing_in_it(tmp_path: Path, command: str) -> None:
    write(tmp_path / "none", calls(0))
    said = run(*command.replace("CAPTURE", str(tmp_path / "none")).split())
    assert said.code == 3
    assert "no call" in said.output + said.errors


def test_half_pairs_and_two_hosts(tmp_path: Path) -> None:
    halves = (each for number, each in enumerate(calls(20)) if number % 4 != 1)
    write(tmp_path / "half", halves)
    said = run("capture", "verify", tmp_path / "half")
    assert said.code == 1
    assert "caller: 20 requests, 10 without an answer\n" in said.output
    assert "gap: 000001.jsonl.zst record 3: seq 3, expected 2" in said.output
    said = run("capture", "verify", captured.mixed(tmp_path / "mixed"))
    assert said.code == 1
    assert f"000001.jsonl.zst is of host {'h' * 32}, 000002.jsonl.zst of host {'g' * 32}" in said.output


@pytest.mark.parametrize(("ts", "mono", "told"), [(3600, 0, "+3600"), (-3600, 0, "-3600"), (0, -100, "+100")])
def test_clocks_that_jump(tmp_path: Path, ts: int, mono: int, told: str) -> None:
    found = captured.shifted(calls(30), 30, ts=ts * 10**9, mono=mono * 10**9)
    write(tmp_path / "jump", found)
    said = run("capture", "verify", tmp_path / "jump")
    assert said.code == 0
    assert f"clock: 000001.jsonl.zst record 32: the wall clock moved by {told}.000 s" in said.output


@pytest.mark.parametrize("time", ["noon", "9" * 29, "-5", ""])
def test_times_that_are_none(tmp_path: Path, time: str) -> None:
    found = (msgspec.structs.replace(each, ts=time, mono=time) for each in calls(3))
    write(tmp_path / "odd", found)
    assert run("capture", "show", tmp_path / "odd").output.count("get_diagnostics") == 3
    assert run("capture", "verify", tmp_path / "odd").code == 0
    assert run("replay", "lint", tmp_path / "odd", "--html", tmp_path / "page.html").code == 0


def test_what_a_wire_brought_does_not_reach_the_terminal_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "evil", calls(1, method="get\x1b[31m\u202e", text="\x1b[2J\u202e"))
    said = run("capture", "show", tmp_path / "evil")
    assert "get\\x1b[31m\\u202e(" in said.output
    assert "\x1b" not in said.output
    assert "\u202e" not in said.output


# ---- what people type


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("show CAPTURE --limit -1", 2, "--limit"),
        ("show CAPTURE --slower -1", 2, "--slower"),
        ("show CAPTURE --slower nan", 2, "--slower"),
        ("show CAPTURE --slower inf", 2, "--slower"),
        ("show CAPTURE --door window", 2, "'window' is not one of 'xenstore', 'http'"),
        ("show CAPTURE --method nosuch", 3, "no call of the capture is like that"),
        ("show CAPTURE --wrong", 2, "No such option: --wrong"),
        ("show", 2, "Missing argument 'CAPTURE'"),
        ("verify CAPTURE --canary=", 2, "--canary: expected a text to look for"),
        ("export CAPTURE", 2, "Missing option '--as'"),
        ("export CAPTURE --as pdf", 2, "'pdf' is not one of 'pcap', 'mermaid', 'lines'"),
        ("export CAPTURE --as lines -o /nosuch/lines", 2, "/nosuch/lines: cannot be written: No such file"),
        ("export CAPTURE --as lines -o /tmp", 2, "/tmp: cannot be written: Is a directory"),
        ("export CAPTURE --as lines -o CAPTURE/000001.jsonl.zst", 2, "is in the capture that is read"),
        ("export CAPTURE --as mermaid --limit 0", 2, "--limit"),
        ("list --settings /nosuch.toml", 2, "/nosuch.toml: cannot be read"),
        ("dance", 2, "No such command 'dance'"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: str, code: int, told: str) -> None:
    write(tmp_path / "one", calls(3))
    said = run("capture", *words.replace("CAPTURE", str(tmp_path / "one")).split())
    assert (said.code, said.output) == (code, "")
    assert told in said.errors
    assert run("capture", "verify", tmp_path / "one").code == 0  # whatever was said, it is untouched


def test_list_tells_of_each_what_is_the_matter(tmp_path: Path) -> None:
    captures = tmp_path / "captures"
    write(captures / "good", calls(3))
    damaged(captures / "headless", lambda content: content[:2] + b"x" + content[3:])
    newer(captures / "newer")
    files(captures / "png", s1=PNG)
    settings = file(tmp_path / "bridge.toml", f'[state]\ndirectory = "{tmp_path}"\n'.encode())
    said = run("capture", "list", "--settings", settings, "--json")
    assert said.code == 0, said
    states = {row["capture"]: row["state"] for row in json.loads(said.output)}
    assert states["good"] == "closed"
    assert states["headless"] == "closed"
    assert "written by a newer version" in states["newer"]
    assert "a PNG image" in states["png"]
    assert run("capture", "list", "--settings", settings).code == 0
    assert run("capture", "show", "good", "--settings", settings).output.count("\n") == 3
    said = run("capture", "show", "nosuch", "--settings", settings)
    assert said.errors == f"xcp-bridge: nosuch: there is no such capture, and none of that name in {captures}\n"


@pytest.mark.parametrize("group", ["capture", "replay"])
def test_help_fits_a_small_terminal(group: str) -> None:
    said = run(group, "--help", COLUMNS="80")
    assert said.code == 0
    commands = [line.split()[0] for line in said.output.split("Commands:")[1].splitlines() if line]
    assert len(commands) >= 3
    for words in ([group], *([group, command] for command in commands)):
        said = run(*words, "--help", COLUMNS="80")
        assert "..." not in said.output.replace("[ARGS]...", "").replace("[SERVICE]...", "").replace("]...", ""), words
        assert max(map(len, said.output.splitlines())) <= 80, said.output


# ---- imports


@pytest.mark.parametrize(
    ("content", "words", "code", "told"),
    [
        (None, "", 2, "No such file"),
        (b"", "", 3, "the file is empty"),
        (b"", "--from access-log", 3, "no call of any service is in this log"),
        (b"", "--from dbus", 3, "at byte 0: expected"),
        (PNG, "", 2, "expected an access log of oxenstored, a pcap or pcapng file"),
        (PNG, "--from dbus", 2, "expected a pcap or pcapng file"),
        (b"hello\n", "--from access-log", 2, "line 1: is no line of oxenstored's access log"),
        (b'{"a": 1}\n', "--service squeezed", 2, "line 1: is no recorded exchange"),
        (b'{"a": 1}\n', "", 2, "recorded exchanges do not say whose they are: name it with --service"),
        (b'{"a": 1}\n', "--service nosuch", 2, "got 'nosuch'"),
        (b"[x", "--service squeezed", 2, "--service and --dialect are for recorded exchanges"),
        (b"\x1f\x8b\x08" + bytes(6) + b"\xff" * 20, "", 2, "cannot be unpacked"),
    ],
)
def test_what_cannot_be_imported(tmp_path: Path, content: bytes | None, words: str, code: int, told: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    said = run("capture", "import", path, *words.split())
    assert (said.code, said.output) == (code, ""), said
    assert told in said.errors
    assert str(path) in said.errors or "service" in said.errors
    assert not (tmp_path / "file.capture").exists()


def test_places_of_imports(tmp_path: Path) -> None:
    """A capture is never written over, and what is no place is named."""
    exchanges = file(tmp_path / "exchanges", EXCHANGES.read_bytes())
    command = ("capture", "import", exchanges, "--service", "squeezed")
    said = run(*command, "--json")
    assert (said.code, said.errors) == (0, "")
    assert json.loads(said.output)["records"] > 0
    for words, told in (
        ((), "exchanges.capture is there already: choose another with --to"),
        (("--to", exchanges), "exchanges is there already"),
        (("--to", exchanges / "below"), "exchanges is no directory: choose another place"),
    ):
        said = run(*command, *words)
        assert (said.code, said.output) == (2, "")
        assert told in said.errors
    for path, told in ((tmp_path, "got a directory"), (tmp_path / "fifo", "got something else")):
        if not path.exists():
            os.mkfifo(path)
        said = run("capture", "import", path)
        assert (said.code, said.output) == (2, "")
        assert told in said.errors


def test_a_packed_log_that_was_cut(tmp_path: Path) -> None:
    """What stands before is imported, and the capture says that there was more."""
    call = "/squeezed/rpc/request/login/R{0}"
    lines = "".join(
        f"[20261125T17:31:44.019Z]  A3.{number}  {what} \n"
        for number in range(400)
        for path in (call.format(number),)
        for what in (f"mkdir {path}", f"write {path}/service_name s{number * 7919}", "commit")
    )
    packed = gzip.compress(lines.encode())
    said = run("capture", "import", file(tmp_path / "log.gz", packed[: len(packed) // 2]))
    assert said.code == 0
    assert "cannot be unpacked" in said.errors
    said = run("capture", "verify", tmp_path / "log.gz.capture")
    assert "the log log.gz is damaged" in said.output


# ---- people in a hurry


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture that takes seconds to read."""
    path = tmp_path_factory.mktemp("long") / "one"
    write(path, calls(60_000), segment_bytes=1 << 16)
    return path


@pytest.mark.parametrize(
    "words",
    ["verify CAPTURE", "verify CAPTURE --json", "show CAPTURE --method nosuch", "export CAPTURE --as lines -o OUT"],
)
def test_ctrl_c(long: Path, tmp_path: Path, words: str) -> None:
    """What was found so far, and that it is not all."""
    filled = words.replace("CAPTURE", str(long)).replace("OUT", str(tmp_path / "out")).split()
    with Command("capture", *filled) as command:
        command.until_reading(long)
        command.interrupt()
        said = command.end()
    assert said.code == 3, said
    assert "Traceback" not in said.errors
    assert "xcp-bridge: interrupted: the rest of the capture was not " in said.errors
    if "--json" in words:
        report = json.loads(said.output)
        assert (report["interrupted"], report["state"]) == (True, "read in part")
        assert 0 < report["records"] < 120_001
    elif "verify" in words:
        assert ": read in part, " in said.output
    elif "export" in words:
        assert (tmp_path / "out").stat().st_size > 0


@pytest.mark.parametrize(
    "words", ["show CAPTURE --limit 0", "show CAPTURE --limit 0 --json", "export CAPTURE --as lines"]
)
def test_whoever_reads_it_has_seen_enough(long: Path, words: str) -> None:
    """As with `| head -1`."""
    with Command("capture", *words.replace("CAPTURE", str(long)).split()) as command:
        assert command.output.readline()
        command.output.close()
        assert command.errors.read() == b""


def test_memory_does_not_grow_with_a_capture(long: Path, tmp_path: Path) -> None:
    write(tmp_path / "short", calls(6_000), segment_bytes=1 << 16)
    for words in (
        "capture verify CAPTURE",
        "capture show CAPTURE --method nosuch",
        "capture export CAPTURE --as lines",
    ):
        small, large = (
            captured.peak(*words.replace("CAPTURE", str(path)).split()) for path in (tmp_path / "short", long)
        )
        assert large - small < 4096, (words, small, large)
