"""`xcp-bridge replay ...` with what cannot be replayed, with wrong words, and stopped in the middle."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import msgspec
import pytest

from bridges.capture.records import encode
from tests.live import captured
from tests.live.captured import Command, calls, run, write

SECOND = 10**9
MASK = """
[[mask]]
where = "squeezed.get_diagnostics:result"
kind = "ignore"
reason = "a text for people"
owner = "toolstack"
expires = 2099-12-31
"""


class _Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ()
    disable_nagle_algorithm = False


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer, SimpleXMLRPCDispatcher):
    """A daemon at a socket that answers what it is told to; `asked` is set by its third call."""

    daemon_threads = True
    logRequests = False  # noqa: N815 -- as the handler calls it

    def __init__(self, path: str) -> None:
        SimpleXMLRPCDispatcher.__init__(self, allow_none=True)
        socketserver.UnixStreamServer.__init__(self, path, _Handler)
        self.asked = threading.Event()
        self.count = 0
        self.register_function(self.answer, "get_diagnostics")

    def answer(self, *_: Any) -> dict[str, str]:
        self.count += 1
        if self.count == 3:
            self.asked.set()
        return {"Status": "Success", "Value": "text"}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one, for sockets."""
    while "_" in (name := tempfile.mkdtemp(prefix="rc", dir="/tmp")):
        Path(name).rmdir()
    yield Path(name)
    shutil.rmtree(name)


@contextmanager
def daemon(path: Path) -> Iterator[Daemon]:
    with Daemon(str(path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def stand_in(capture: Path, at: Path) -> Iterator[Command]:
    """`replay serve` of squeezed, which serves."""
    with Command("replay", "serve", capture, "squeezed", "--at", f"http:{at}") as command:
        line = command.errors.readline().decode()
        assert line.endswith("Ctrl-C ends it\n"), line
        yield command


# ---- what people type


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("lint", 2, "Missing argument 'CAPTURE'"),
        ("lint CAPTURE --wrong", 2, "No such option: --wrong"),
        ("lint CAPTURE --bind x", 2, "--bind: expected RECORDED=NOW, got 'x'"),
        ("lint CAPTURE --html /nosuch/page.html", 2, "/nosuch/page.html: cannot be written: No such file"),
        ("lint CAPTURE --html /tmp", 2, "/tmp: cannot be written: Is a directory"),
        ("lint CAPTURE --html CAPTURE/page.html", 2, "is in the capture that is read"),
        ("serve CAPTURE", 2, "Missing argument 'SERVICE'"),
        ("serve CAPTURE squeezed", 2, "Missing option '--at'"),
        ("serve CAPTURE squeezed --at window", 2, "--at: expected bus, legacy, bus:ADDRESS"),
        ("serve CAPTURE nosuch --at http:/tmp/x", 2, "--at: no interface is written down for 'nosuch'"),
        ("serve CAPTURE xenopsd --at http:/tmp/x", 3, "there is no answer of xenopsd in the capture"),
        ("serve CAPTURE squeezed --at http:/nosuch/socket", 3, "/nosuch/socket cannot be served: No such file"),
        ("drive CAPTURE", 2, "Missing option '--to'"),
        ("drive CAPTURE --to window", 2, "--to: expected bus, legacy, bus:ADDRESS"),
        ("drive CAPTURE --to legacy", 2, "--to: legacy: needs settings that say where that is"),
        ("drive CAPTURE --to http:/nosuch", 3, "http:/nosuch: "),
        ("drive CAPTURE --to framed:/nosuch", 3, "framed:/nosuch: "),
        ("drive CAPTURE --to bus:unix:path=/nosuch", 3, "bus unix:path=/nosuch: No such file or directory"),
        ("drive CAPTURE --to http://localhost:75535/", 2, "with a port from 1 to 65535"),
        ("drive CAPTURE --to bus:nonsense", 2, "--to: bus:nonsense: bus address: not valid in D-Bus"),
        ("drive CAPTURE --to http:/x --bind =x", 2, "--bind: expected RECORDED=NOW, got '=x'"),
        ("drive CAPTURE --to http:/x --rate 3 --closed 3", 2, "--rate and --closed exclude each other"),
        ("drive CAPTURE --to http:/x --speed 3 --rate 3", 2, "--speed and --rate exclude each other"),
        ("drive CAPTURE --to http:/x --speed 3 --closed 3", 2, "--speed and --closed exclude each other"),
        ("drive CAPTURE --to http:/x --speed -1", 2, "--speed"),
        ("drive CAPTURE --to http:/x --speed nan", 2, "--speed"),
        ("drive CAPTURE --to http:/x --rate inf", 2, "--rate"),
        ("drive CAPTURE --to http:/x --closed 0", 2, "--closed"),
        ("drive CAPTURE --to http:/x --closed 1000000000", 2, "--closed"),
        ("drive CAPTURE --to http:/x --deadline 0", 2, "--deadline"),
        ("drive CAPTURE --to http:/x --door window", 2, "'window' is not one of 'xenstore', 'http'"),
        ("drive CAPTURE --to http:/x --service nosuch", 2, "no interface is written down for 'nosuch'"),
        ("drive CAPTURE --to http:/x --dialect nosuch", 2, "dialect: expected one of rpclib"),
        ("drive CAPTURE --to http:/x --html /nosuch/page.html", 2, "/nosuch/page.html: cannot be written"),
        ("drive CAPTURE --to http:/x --junit CAPTURE", 2, "is in the capture that is read"),
        ("drive CAPTURE --to http:/x --masks /nosuch.toml", 2, "/nosuch.toml: cannot be read: No such file"),
        ("drive CAPTURE --to http:/x --masks /tmp", 2, "/tmp: cannot be read: Is a directory"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: str, code: int, told: str) -> None:
    write(tmp_path / "one", calls(3))
    said = run("replay", *words.replace("CAPTURE", str(tmp_path / "one")).split())
    assert (said.code, said.output) == (code, ""), said
    assert told in said.errors
    assert run("capture", "verify", tmp_path / "one").code == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\x89PNG", "expected UTF-8 text, got byte 0x89 at 0"),
        (b"[[mask", "Expected"),
        (b"mask = 3", "mask: expected [[mask]] tables, got 3"),
        (MASK.replace("ignore", "pretend").encode(), "kind: expected one of ignore, shape"),
        (MASK.replace('owner = "toolstack"\n', "").encode(), "mask 1.owner: is missing: expected a text"),
        (MASK.replace("get_diagnostics", "nosuch").encode(), "squeezed has no method 'nosuch'"),
        (MASK.replace("2099-12-31", "soon").encode(), ""),
    ],
)
def test_masks_that_are_none(tmp_path: Path, text: bytes, told: str) -> None:
    """Each mistake with the file and the mask, before anybody is asked."""
    write(tmp_path / "one", calls(3))
    masks = tmp_path / "masks.toml"
    masks.write_bytes(text)
    said = run("replay", "drive", tmp_path / "one", "--to", "http:/nosuch", "--masks", masks)
    assert (said.code, said.output) == (2, "")
    assert said.errors.startswith(f"xcp-bridge: {masks}: ")
    assert told in said.errors


# ---- what is in captures


def test_captures_of_two_hosts_are_not_replayed(tmp_path: Path) -> None:
    path = captured.mixed(tmp_path / "mixed")
    for words in (["lint"], ["drive", "--to", "http:/x"], ["serve", "squeezed", "--at", "http:/x"]):
        said = run("replay", words[0], path, *words[1:])
        assert (said.code, said.output) == (2, "")
        assert f"000001.jsonl.zst is of host {'h' * 32}, 000002.jsonl.zst is of host {'g' * 32}" in said.errors
    assert run("replay", "lint", path / "000002.jsonl.zst").code == 0


def test_records_that_repeat_others_are_told(tmp_path: Path, directory: Path) -> None:
    """Two captures of one host in one directory."""
    twice = [encode(each) for each in chain(calls(3), calls(2))]
    captured.write_lines(tmp_path / "twice", twice)
    said = run("replay", "lint", tmp_path / "twice", "--json")
    (found,) = (row for row in json.loads(said.output)["findings"] if row["kind"] == "repeated record")
    assert (found["count"], found["first"]) == (4, "000001.jsonl.zst record 8")
    with daemon(directory / "s"):
        said = run("replay", "drive", tmp_path / "twice", "--to", f"http:{directory}/s", "--json")
    assert "000001.jsonl.zst record 8: 4 records left out" in json.loads(said.output)["damage"][0]


@pytest.mark.parametrize(
    ("more", "kind", "code"),
    [({"method": "nosuch"}, "unknown method", 1), ({"service": "nosuch"}, "unknown service", 1), ({}, None, 0)],
)
def test_lint_of_what_is_not_written_down(tmp_path: Path, more: dict[str, str], kind: str | None, code: int) -> None:
    write(tmp_path / "one", calls(2, **more))
    said = run("replay", "lint", tmp_path / "one", "--json")
    assert (said.code, said.errors) == (code, "")
    findings = json.loads(said.output)["findings"]
    assert [row["kind"] for row in findings] == ([] if kind is None else [kind])
    if kind is not None:
        assert findings[0]["first"] == "000001.jsonl.zst record 2"


def test_half_pairs_are_sent_and_not_compared(tmp_path: Path, directory: Path) -> None:
    write(tmp_path / "half", (each for number, each in enumerate(calls(4, text="text")) if number % 4 != 1))
    with daemon(directory / "s") as server:
        said = run("replay", "drive", tmp_path / "half", "--to", f"http:{directory}/s", "--json")
    assert server.count == 4
    (row,) = json.loads(said.output)["methods"]
    assert (row["sent"], row["incomplete"]) == (4, 2)


@pytest.mark.parametrize(("ts", "mono"), [(3600, 0), (-3600, 0), (0, -100), (-3600, -3600)])
def test_clocks_that_jump_do_not_change_the_schedule(tmp_path: Path, directory: Path, ts: int, mono: int) -> None:
    """Neither an hour's wait nor everything at once."""
    write(tmp_path / "jump", captured.shifted(calls(30), 30, ts=ts * SECOND, mono=mono * SECOND))
    masks, page, xml = (tmp_path / name for name in ("masks.toml", "page.html", "report.xml"))
    masks.write_text(MASK)
    with daemon(directory / "s") as server:
        words = ("--to", f"http:{directory}/s", "--masks", masks, "--html", page, "--junit", xml, "--json")
        said = run("replay", "drive", tmp_path / "jump", *words)
    result = json.loads(said.output)
    assert (server.count, result["sent"]) == (30, 30)
    assert 0.25 < result["timing"]["planned_seconds"] < 0.5
    assert result["timing"]["took_seconds"] < 10
    assert "get_diagnostics" in page.read_text()
    assert ET.parse(xml).getroot().tag == "testsuites"


@pytest.mark.parametrize("time", ["noon", "9" * 29])
def test_times_that_are_none_have_no_schedule(tmp_path: Path, directory: Path, time: str) -> None:
    write(tmp_path / "odd", (msgspec.structs.replace(each, ts=time, mono=time) for each in calls(3)))
    with daemon(directory / "s"):
        said = run("replay", "drive", tmp_path / "odd", "--to", f"http:{directory}/s", "--json")
    assert json.loads(said.output)["sent"] == 3


# ---- who is there


def test_a_socket_where_nobody_listens(tmp_path: Path, directory: Path) -> None:
    """Nothing is sent; that would be a difference in every call."""
    write(tmp_path / "one", calls(3))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{directory}/stale")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for target, told in (
        (f"http:{directory}/stale", "Connection refused"),
        (f"framed:{directory}/stale", "Connection refused"),
        (f"http:{directory}/{'s' * 120}", "AF_UNIX path too long"),
        (f"http://127.0.0.1:{port}/", "cannot be reached: "),
    ):
        said = run("replay", "drive", tmp_path / "one", "--to", target, "--html", tmp_path / "page.html")
        assert (said.code, said.output) == (3, ""), said
        assert told in said.errors
        assert said.errors.startswith(f"xcp-bridge: {target}: ")
    assert not (tmp_path / "page.html").exists()


def test_a_stand_in_answers_what_was_recorded_until_ctrl_c(tmp_path: Path, directory: Path) -> None:
    write(tmp_path / "one", calls(20))
    with stand_in(tmp_path / "one", directory / "s") as served:
        for pace in ("--speed", "--rate", "--closed"):
            words = ("--to", f"http:{directory}/s", pace, "5", "--json")
            said = run("replay", "drive", tmp_path / "one", *words)
            assert json.loads(said.output)["methods"][0]["different"] == (0 if pace == "--speed" else 19)
        served.interrupt()
        ended = served.end()
    assert (ended.code, ended.output) == (0, "served: get_diagnostics 60\n")
    assert not (directory / "s").exists()


# ---- people in a hurry


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture that lint reads for seconds, and that drive sends for minutes."""
    path = tmp_path_factory.mktemp("long") / "one"
    write(path, calls(20_000), segment_bytes=1 << 14)
    return path


def test_ctrl_c_in_lint(long: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with Command("replay", "lint", long, "--json", "--html", page) as command:
        command.until_reading(long)
        command.interrupt()
        said = command.end()
    assert (said.code, said.errors) == (3, "")
    report = json.loads(said.output)
    assert report["interrupted"]
    assert 0 < report["records"] < 40_000
    assert "NOT ALL READ" in page.read_text()


@pytest.mark.parametrize("pace", [(), ("--rate", "100"), ("--closed", "2")])
def test_ctrl_c_in_drive(long: Path, tmp_path: Path, directory: Path, pace: tuple[str, ...]) -> None:
    """The report of what was sent so far; what was sent was waited for."""
    masks, page = tmp_path / "masks.toml", tmp_path / "page.html"
    masks.write_text(MASK)
    words = ("--to", f"http:{directory}/s", "--masks", masks, "--html", page, "--json", *pace)
    with daemon(directory / "s") as server, Command("replay", "drive", long, *words) as command:
        assert server.asked.wait(30)
        command.interrupt()
        said = command.end()
        asked = server.count
    assert (said.code, said.errors) == (3, ""), said
    result = json.loads(said.output)
    assert (result["verdict"], result["interrupted"]) == ("INCONCLUSIVE", True)
    assert 3 <= result["sent"] == asked < 20_000
    assert "it was interrupted" in page.read_text()


def test_ctrl_c_before_a_stand_in_stands(long: Path, directory: Path) -> None:
    with Command("replay", "serve", long, "squeezed", "--at", f"http:{directory}/s") as command:
        command.until_reading(long)
        command.interrupt()
        said = command.end()
    assert (said.code, said.output) == (3, "")
    assert said.errors == "xcp-bridge: interrupted: the capture was not read to its end, and nobody stood in\n"
    assert not list(directory.iterdir())


def test_memory_of_lint_does_not_grow_with_a_capture(long: Path, tmp_path: Path) -> None:
    write(tmp_path / "short", calls(2_000), segment_bytes=1 << 14)
    small, large = (captured.peak("replay", "lint", path) for path in (tmp_path / "short", long))
    assert large - small < 8192, (small, large)
