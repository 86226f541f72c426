"""Captures on the disk: written, limited, read; damaged in every way, on a full disk, foreign, huge."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.capture import frames, records
from bridges.capture.records import End, Flip, Header, Leg, Lost, Record, Reply, Request
from bridges.capture.segments import File
from bridges.capture.store import Capture, CaptureError, Place, find, open_capture
from bridges.capture.verifying import Report, verify
from bridges.capture.writing import Limits, Writer, write_all
from tests.capture.small_disk import run_on_small_disk

ROOT = Path(__file__).parents[2]
SECOND = 10**9
WALL, STEADY = 1_700_000_000 * SECOND, 500 * SECOND


def header(number: int, chain: str) -> Header:
    return Header(records.SCHEMA, "test 1", "host-a", "boot-1", str(WALL), str(STEADY), number, chain)


def times(seq: int) -> dict[str, str]:
    return {"ts": str(WALL + seq * SECOND), "mono": str(STEADY + seq * SECOND)}


def request(seq: int, leg: Leg = Leg.CALLER, text: str = "") -> Request:
    return Request(
        seq, f"id{seq}", leg, service="squeezed", door="http", name="login", arguments={"name": text}, **times(seq)
    )


def reply(seq: int, to: int, leg: Leg = Leg.CALLER) -> Reply:
    return Reply(
        seq, f"id{to}", leg, service="squeezed", door="http", re=to, us=120, outcome=records.ANSWERED, **times(seq)
    )


def end(seq: int, count: int) -> End:
    return End(seq, records=count, why="stopped", **times(seq))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


SMALL = Limits(segment_bytes=3000)


def written(directory: Path, count: int = 300, limits: Limits = SMALL, *, closed: bool = True) -> list[bytes]:
    """A capture of `count` records in several segments, and its lines without headers."""
    chance = random.Random(count)
    lines = [records.encode(request(seq, text=chance.randbytes(20).hex())) for seq in range(1, count + 1)]
    writer = Writer(directory, header, limits, Clock())
    for start in range(0, count, 10):
        writer.write(lines[start : start + 10], start + 1)
    if closed:
        lines.append(records.encode(end(count + 1, count)))
        writer.close(lines[-1], count + 1)
    else:
        writer.abandon()
    return lines


def read(capture: Capture) -> tuple[list[Record], list[str]]:
    """What was read but headers, and what was said."""
    damages: list[str] = []
    found = [record for _, record in capture.read(damages.append)]
    return [record for record in found if not isinstance(record, Header)], damages


def seqs(found: list[Record]) -> list[int]:
    return [record.seq for record in found if not isinstance(record, Header)]


def zstdcat(*paths: Path) -> bytes:
    return subprocess.run(["zstdcat", *paths], check=True, capture_output=True).stdout


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_written_is_read_and_zstdcat_reads_it_too(tmp_path: Path) -> None:
    """In order, with the headers; modes are for the owner alone."""
    directory = tmp_path / "captures" / "one"
    lines = written(directory)
    capture = open_capture(directory)
    assert len(capture.segments) > 3
    assert [head.segment for head in capture.headers] == list(range(1, len(capture.segments) + 1))
    assert capture.size == sum((directory / name).stat().st_size for name in capture.segments)
    printed = zstdcat(*(directory / name for name in capture.segments)).splitlines(keepends=True)
    assert [line for line in printed if not line.startswith(b'{"t":"hdr"')] == lines
    assert len(printed) == len(lines) + len(capture.segments)
    assert printed[0] == records.encode(header(1, ""))
    progress: list[int] = []
    found = list(capture.read(pytest.fail, progress.append))
    assert [records.encode(record) for _, record in found] == printed
    assert [str(place) for place, _ in found[:3]] == [f"000001.jsonl.zst record {number}" for number in (1, 2, 3)]
    assert progress == sorted(progress)
    assert progress[-1] == capture.size
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert files(directory) == [*capture.segments, "MANIFEST.json"]
    assert capture.manifest is not None
    assert capture.manifest.closed
    assert sum(entry.records for entry in capture.manifest.segments) == len(lines)
    assert sum(entry.bytes for entry in capture.manifest.segments) == capture.size


def test_a_directory_is_written_once(tmp_path: Path) -> None:
    """Nobody writes into a capture that is there."""
    written(tmp_path / "one", 1)
    with pytest.raises(FileExistsError):
        Writer(tmp_path / "one", header, Limits(), Clock())


def test_a_capture_that_is_being_written(tmp_path: Path) -> None:
    """It is read up to its last whole frame, and said to be open; half a frame is no damage then."""
    writer = Writer(tmp_path / "one", header, Limits(), Clock())
    try:
        capture = open_capture(tmp_path / "one")
        assert capture.is_being_written
        assert read(capture) == ([], [])
        writer.write([records.encode(request(seq)) for seq in range(1, 101)], 1)
        path = tmp_path / "one" / "000001.jsonl.zst"
        whole = path.read_bytes()
        for cut in range(1, 400):
            path.write_bytes(whole[:-cut])
            found, damages = read(open_capture(tmp_path / "one"))
            assert (len(found) in {64, 100}, damages) == (True, [])
        path.write_bytes(whole)
        assert verify(open_capture(path)).state == "being written"
        writer.write([records.encode(request(101))], 101)
        assert seqs(read(open_capture(tmp_path / "one"))[0]) == list(range(1, 102))
    finally:
        writer.abandon()
    capture = open_capture(tmp_path / "one")
    assert not capture.is_being_written
    assert read(capture)[1] == ["000001.jsonl.zst: has no end: it was not closed"]
    assert verify(capture).state == "not closed"


def test_a_segment_ends_by_time_too(tmp_path: Path) -> None:
    """Also when nothing comes any more, so that the age limit reaches it; an empty one is kept."""
    clock = Clock()
    writer = Writer(tmp_path / "one", header, Limits(segment_seconds=10, age_seconds=100), clock)
    clock.now = 50
    writer.sync()
    writer.write([records.encode(request(1))], 1)
    clock.now = 55
    writer.write([records.encode(request(2))], 2)
    assert files(tmp_path / "one") == ["000001.jsonl.zst"]
    clock.now = 61
    writer.sync()
    assert files(tmp_path / "one") == ["000001.jsonl.zst", "000002.jsonl.zst", "MANIFEST.json"]
    clock.now = 162
    writer.sync()
    assert files(tmp_path / "one") == ["000002.jsonl.zst", "MANIFEST.json"]
    assert [writer.take_removed(), writer.take_removed()] == [(2, "age limit"), None]
    writer.close(records.encode(end(3, 2)), 3)
    assert read(open_capture(tmp_path / "one")) == ([end(3, 2)], [])


def test_the_oldest_segments_are_removed(tmp_path: Path) -> None:
    """Within the size limit at every moment but for one frame, counted, and what is left is a whole capture."""
    limits = Limits(segment_bytes=3000, total_bytes=10_000)
    writer = Writer(tmp_path / "one", header, limits, Clock())
    removed = 0
    for seq in range(1, 601):
        writer.write([records.encode(request(seq, text=random.Random(seq).randbytes(20).hex()))], seq)
        total = sum(path.stat().st_size for path in (tmp_path / "one").glob("*.zst"))
        assert total <= limits.total_bytes
        manifest = tmp_path / "one" / "MANIFEST.json"
        named = [part["name"] for part in json.loads(manifest.read_bytes())["segments"]] if manifest.exists() else []
        assert set(named) < set(files(tmp_path / "one"))
        while found := writer.take_removed():
            removed += found[0]
            assert found[1] == "size limit"
    writer.close(records.encode(end(601, 600)), 601)
    capture = open_capture(tmp_path / "one")
    found_records, damages = read(capture)
    assert damages == []
    assert capture.missing == []
    assert seqs(found_records) == list(range(removed + 1, 602))
    assert removed > 300


def test_reading_while_segments_come_and_go(tmp_path: Path) -> None:
    """Whatever the writer does meanwhile: nothing is raised, and only what the limits removed is said to be gone."""
    writer = Writer(tmp_path / "one", header, Limits(segment_bytes=1000, total_bytes=6000), Clock())
    is_over = threading.Event()

    def write() -> None:
        seq = 1
        while not is_over.is_set():
            writer.write([records.encode(request(seq + n, text=str(seq * 7919))) for n in range(20)], seq)
            seq += 20
        writer.close(records.encode(end(seq, seq - 1)), seq)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        said: list[str] = []
        most = 0
        while most < 1500:
            capture = open_capture(tmp_path / "one")
            found, damages = read(capture)
            assert seqs(found) == sorted(seqs(found))
            said += damages
            most = max([most, *seqs(found)])
    finally:
        is_over.set()
        thread.join()
    assert {text.split(": ", 1)[1] for text in said} <= {"was removed meanwhile, by the limits"}
    assert verify(open_capture(tmp_path / "one")).is_whole


@pytest.mark.parametrize("begun", [b"", b"\x28\xb5\x2f\xfd\x24"])
def test_a_segment_that_has_just_begun(tmp_path: Path, begun: bytes) -> None:
    """Its header is not there yet: no damage while there is a writer."""
    writer = Writer(tmp_path / "one", header, Limits(), Clock())
    try:
        writer.write([records.encode(request(1))], 1)
        (tmp_path / "one" / "000002.jsonl.zst").write_bytes(begun)
        assert read(open_capture(tmp_path / "one")) == ([request(1)], [])
    finally:
        writer.abandon()
    found, damages = read(open_capture(tmp_path / "one"))
    assert (found, len(damages)) == ([request(1)], 2)
    assert damages[0].startswith("000002.jsonl.zst: is ")


def test_what_the_limits_remove_under_a_reader(tmp_path: Path) -> None:
    """Named, and the rest is read."""
    writer = Writer(tmp_path / "one", header, Limits(segment_bytes=1), Clock())
    try:
        for seq in range(1, 5):
            writer.write([records.encode(request(seq))], seq)
        capture = open_capture(tmp_path / "one")
        (tmp_path / "one" / "000001.jsonl.zst").unlink()
        found, damages = read(capture)
        assert (seqs(found), damages) == ([2, 3, 4], ["000001.jsonl.zst: was removed meanwhile, by the limits"])
        assert open_capture(tmp_path / "one").missing == []
    finally:
        writer.abandon()
    assert open_capture(tmp_path / "one").missing == ["000001.jsonl.zst"]


@pytest.mark.parametrize("place", range(65530, 65540))
def test_a_file_is_searched_across_its_pieces(tmp_path: Path, place: int) -> None:
    """What is looked for may lie in two of them."""
    path = tmp_path / "file"
    path.write_bytes(bytes(place) + b"abcd" + bytes(200_000) + b"abcd")
    with File(path) as file:
        assert [file.find(b"abcd", 0), file.find(b"abcd", place), file.find(b"abcd", place + 1)] == [
            place,
            place,
            place + 200_004,
        ]
        assert file.find(b"abce", 0) == -1


def parts(directory: Path) -> list[tuple[str, int, int, list[int]]]:
    """Every frame of a capture: file, start, end of its trailer, seqs."""
    found = []
    for path in sorted(directory.glob("*.zst")):
        data = path.read_bytes()
        whole = [item for item in frames.scan(data, None) if isinstance(item, frames.Frame)]
        ends = [frame.offset for frame in whole[1:]] + [len(data)]
        for frame, stop in zip(whole, ends, strict=True):
            inside = [seq for line in frame.lines if (seq := json.loads(line).get("seq"))]
            found.append((path.name, frame.offset, stop, inside))
    return found


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "one"
    written(directory)
    return directory


@contextmanager
def copy_of(sample: Path, tmp: Path) -> Iterator[Path]:
    shutil.copytree(sample, tmp / "copy")
    try:
        yield tmp / "copy"
    finally:
        shutil.rmtree(tmp / "copy")


def damage(directory: Path, kind: str, chance: int) -> tuple[set[int], str]:
    """Does it; the seqs that may be gone, and the file that should be named."""
    frames_there = parts(directory)
    name, start, stop, inside = frames_there[chance % len(frames_there)]
    path = directory / name
    data = bytearray(path.read_bytes())
    match kind:
        case "flip":
            data[start + chance % (stop - start)] ^= 1 << (chance % 8)
        case "cut":
            length = start + chance % (stop - start)
            inside = [seq for at, _, there, found in frames_there if at == name and there > length for seq in found]
            del data[length:]
        case "frame":
            del data[start:stop]
        case "segment":
            path.unlink()
            return {seq for at, _, _, found in frames_there if at == name for seq in found}, name
    path.write_bytes(data)
    return set(inside), name


@given(kind=st.sampled_from(["flip", "cut", "frame", "segment"]), chance=st.integers(0, 10**12))
@settings(max_examples=120, deadline=None)
@pytest.mark.parametrize("is_closed", [True, False])
def test_damage_is_noticed_named_and_costs_its_own(
    sample: Path, tmp_path_factory: pytest.TempPathFactory, is_closed: bool, kind: str, chance: int
) -> None:
    """Whatever happens to one place: the file is named, all other frames are read, and the loss is counted."""
    with copy_of(sample, tmp_path_factory.mktemp("d")) as directory:
        if not is_closed:
            (directory / "MANIFEST.json").unlink()
        gone, name = damage(directory, kind, chance)
        found, damages = read(open_capture(directory))
        there = set(seqs(found))
        assert there >= set(range(1, 302)) - gone
        assert damages
        if is_closed:
            assert any(name in text or next_name(name) in text for text in damages)
            counts = [re.search(r"(\d+) records? lost$", text) for text in damages]
            assert sum(int(found[1]) for found in counts if found) == 301 - len(there)


def next_name(name: str) -> str:
    return f"{int(name[:6]) + 1:06}.jsonl.zst"


def test_the_sentences(sample: Path, tmp_path: Path) -> None:
    """What a person reads."""
    first, _, third = sorted(sample.glob("*.zst"))[:3]
    last = max(sample.glob("*.zst"))
    with copy_of(sample, tmp_path) as copy:
        data = bytearray((copy / first.name).read_bytes())
        (_, start, stop, inside) = parts(sample)[2]
        data[start + 20] ^= 1
        (copy / first.name).write_bytes(data)
        size = stop - start
        (copy / third.name).write_bytes(third.read_bytes()[:-1000])
        (copy / last.name).unlink()
        damages = read(open_capture(copy))[1]
        assert damages[0] == f"{first.name} offset {start}: {size} bytes are damaged: {len(inside)} records lost"
        assert damages[1].startswith(f"{third.name} offset ")
        assert damages[2].startswith(f"{last.name}: is missing: ")
        assert len(damages) == 3
        assert open_capture(copy).missing == [last.name]
        report = verify(open_capture(copy))
        assert (report.damages, report.gaps, report.is_whole) == (damages, [], False)


@pytest.mark.parametrize("numbers", [[1], [2], [3], [2, 3], [1, 2]])
@pytest.mark.parametrize("has_manifest", [True, False])
def test_missing_segments(sample: Path, tmp_path: Path, numbers: list[int], has_manifest: bool) -> None:
    """Said once for those side by side, with the number of their records."""
    names = [f"{number:06}.jsonl.zst" for number in numbers]
    with copy_of(sample, tmp_path) as copy:
        lost = sum(len(inside) for name, _, _, inside in parts(copy) if name in names)
        for name in names:
            (copy / name).unlink()
        if not has_manifest:
            (copy / "MANIFEST.json").unlink()
        capture = open_capture(copy)
        named = f"{names[0]}: is" if len(names) == 1 else f"{names[0]} to {names[-1]}: are"
        count = f"{lost} records lost" if has_manifest or 1 not in numbers else "nobody knows how many records are lost"
        assert capture.missing == names
        assert read(capture)[1] == [f"{named} missing: {count}"]


@pytest.mark.parametrize("content", [b"\x89PNG" + bytes(99), b"", b"some text"])
def test_a_foreign_file_among_the_segments(sample: Path, tmp_path: Path, content: bytes) -> None:
    """It is damage: the others are read."""
    with copy_of(sample, tmp_path) as copy:
        (copy / "000002.jsonl.zst").write_bytes(content)
        inside = [seq for name, _, _, found in parts(sample) if name == "000002.jsonl.zst" for seq in found]
        found, (said,) = read(open_capture(copy))
        assert set(seqs(found)) == set(range(1, 302)) - set(inside)
        assert said.startswith("000002.jsonl.zst: is ")
        assert said.endswith(f"{len(inside)} records lost")


def test_a_record_that_is_none_costs_itself(tmp_path: Path) -> None:
    """Named by segment and record; those beside it are read."""
    lines = [records.encode(request(1)), b'{"t":"new kind","seq":2}\n', b"no JSON\n", records.encode(request(4))]
    writer = Writer(tmp_path / "one", header, Limits(), Clock())
    writer.write(lines, 1)
    writer.close(records.encode(end(5, 4)), 5)
    found, damages = read(open_capture(tmp_path / "one"))
    assert seqs(found) == [1, 4, 5]
    assert [text.split(":")[0] for text in damages] == [f"000001.jsonl.zst record {number}" for number in (3, 4)]


def test_a_damaged_manifest_is_not_needed(sample: Path, tmp_path: Path) -> None:
    """It is said, and the capture is read by itself."""
    for content in (b"", b"\xff", b"[]", b'{"schema":1,"tool":"","closed":true,"segments":[{"name":"../x"}]}'):
        with copy_of(sample, tmp_path) as copy:
            (copy / "MANIFEST.json").write_bytes(content)
            found, (said,) = read(open_capture(copy))
            assert seqs(found) == list(range(1, 302))
            assert said.startswith("MANIFEST.json: is damaged")


def test_one_segment_alone(sample: Path, tmp_path: Path) -> None:
    """A file is read as well as a directory, under any name."""
    path = tmp_path / "sent-by-mail.zst"
    shutil.copy(sample / "000002.jsonl.zst", path)
    inside = [seq for name, _, _, found in parts(sample) if name == "000002.jsonl.zst" for seq in found]
    found, damages = read(open_capture(path))
    assert seqs(found) == inside
    assert damages == ["sent-by-mail.zst: has no end: it was not closed, or more segments follow"]
    (_, start, stop, _), *_ = parts(sample)
    data = (sample / "000001.jsonl.zst").read_bytes()
    path.write_bytes(data[stop:])
    assert "sent-by-mail.zst: its header is missing" in read(open_capture(path))[1]
    assert start == 0


def _newer() -> bytes:
    line = json.dumps({"t": "hdr", "schema": records.SCHEMA + 1, "made": {"by": "somebody"}}).encode() + b"\n"
    return frames.pack([line], 0, "")[0]


FOREIGN = {
    "a PNG image": (b"\x89PNG\r\n\x1a\n" + bytes(900), 2, "is no segment of a capture but a PNG image"),
    "text": (b"some words\n" * 50, 2, "but text"),
    "JSON": (records.encode(request(1)) * 9, 2, "but JSON that is in no zstd frame"),
    "gzip": (gzip.compress(b"{}"), 2, "but a gzip file"),
    "bytes": (bytes(range(200)), 2, "but something else"),
    "zstd": (zstandard.ZstdCompressor(write_checksum=True).compress(b"some text\n"), 2, "first line is no JSON object"),
    "zstd of JSON": (
        zstandard.ZstdCompressor(write_checksum=True).compress(b"{}\n"),
        2,
        "first line is no record of ours",
    ),
    "zstd stream": (zstandard.ZstdCompressor().compress(b"some text\n"), 2, "but a zstd file without a frame"),
    "newer": (
        _newer(),
        2,
        "000001.jsonl.zst record 1: written by a newer version (schema 2, known is 1): use that one",
    ),
    "empty": (b"", 3, "000001.jsonl.zst: is empty"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_capture(tmp_path: Path, name: str) -> None:
    """Alone or in a directory: the file is named, with what it is."""
    content, code, text = FOREIGN[name]
    path = tmp_path / "000001.jsonl.zst"
    path.write_bytes(content)
    for given_path in (path, tmp_path):
        with pytest.raises(CaptureError) as refused:
            open_capture(given_path)
        assert str(path) in str(refused.value)
        assert text in str(refused.value)
        assert refused.value.code == code


def test_what_is_no_directory_of_a_capture(tmp_path: Path) -> None:
    """Missing, empty, of something else, of captures, of no kind that can be read."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    written(tmp_path / "captures" / "x", 1)
    os.mkfifo(tmp_path / "pipe")
    for name, code, text in (
        ("nothing", 2, "nothing: cannot be read: No such file or directory"),
        ("empty", 3, "empty: is empty: expected segments named 000001.jsonl.zst"),
        ("photos", 2, "photos: has no segments: expected files named 000001.jsonl.zst, found cat.png"),
        ("captures", 2, f"captures: is no capture, but has 1: name one of them, as {tmp_path}/captures/x"),
        ("pipe", 2, "pipe: is neither a directory nor a file"),
    ):
        with pytest.raises(CaptureError) as refused:
            open_capture(tmp_path / name)
        assert str(refused.value).endswith(text)
        assert refused.value.code == code


def _began(real: int, number: int, chain: str) -> Header:
    return msgspec.structs.replace(header(number, chain), real=str(real))


def test_captures_are_found_oldest_first(tmp_path: Path) -> None:
    """By what their headers say, not by their names."""
    for name, began in (("a", 3), ("b", 1), ("c", 2)):
        write_all(tmp_path / name, partial(_began, began), [], Limits())
    (tmp_path / "d").mkdir()
    (tmp_path / "e").write_bytes(b"")
    assert [path.name for path in find(tmp_path)] == ["b", "c", "a"]
    assert find(tmp_path / "nothing") == []


FULL_DISK = """
import importlib.util, os, sys
from pathlib import Path
specification = importlib.util.spec_from_file_location("test_store", sys.argv[1])
store = importlib.util.module_from_spec(specification)
sys.modules["test_store"] = store
specification.loader.exec_module(store)
store.fill(Path(sys.argv[2]), sys.argv[3])
"""


def fill(directory: Path, kind: str) -> None:
    """In a process of its own: writes until no more can be, looks, makes space, writes on."""
    ballast = directory.parent / "ballast"
    if kind == "disk":
        ballast.write_bytes(bytes(100_000))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    chance, clock, seq = random.Random(1), Clock(), 1
    writer = Writer(directory, header, Limits(), clock)
    try:
        while True:
            lines = [records.encode(request(seq + n, text=chance.randbytes(300).hex())) for n in range(3)]
            writer.write(lines, seq)
            seq += 3
    except OSError as error:
        assert error.errno == {"disk": errno.ENOSPC, "limit": errno.EFBIG}[kind]  # noqa: PT017 -- ends the loop
    assert writer.records == seq - 1
    found, damages = read(open_capture(directory))
    assert (seqs(found), damages) == (list(range(1, seq)), [])
    items = [*frames.scan((directory / "000001.jsonl.zst").read_bytes(), "")]
    assert {type(item) for item in items} == {frames.Frame}, "the segment ends with its last whole frame"
    if kind == "disk":
        with pytest.raises(OSError, match="No space"):
            Writer(directory.parent / "two", header, Limits(), clock)
        assert not (directory.parent / "two").exists()
        clock.now = 10_000.0  # the next segment cannot begin either
        with pytest.raises(OSError, match="No space"):
            writer.write(lines, seq)
        assert files(directory) == ["000001.jsonl.zst"]
        ballast.unlink()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.write(lines, seq)
    writer.close(records.encode(end(seq + 3, seq + 2)), seq + 3)
    capture = open_capture(directory)
    assert seqs(read(capture)[0]) == list(range(1, seq + 4))
    assert read(capture)[1] == []
    assert len(capture.segments) == (2 if kind == "disk" else 1)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The segment ends with its last whole frame, and goes on when it may."""
    command = [sys.executable, "-c", FULL_DISK, __file__, str(tmp_path / "one"), "limit"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=30)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk(tmp_path: Path) -> None:
    """The same on a disk of 400 KiB."""
    run_on_small_disk(tmp_path / "disk", FULL_DISK, __file__, "one")
    assert files(tmp_path / "disk") == []


def _repeated(path: Path, count: int) -> None:
    """A segment of `count` equal frames, rightly chained."""
    data, chain = frames.pack([records.encode(header(1, ""))], 0, "")
    line = records.encode(request(1, text=random.Random(1).randbytes(125_000).hex()))
    frame = frames.compressor().compress(line)
    digest = hashlib.sha256(frame).hexdigest()
    with path.open("wb") as file:
        file.write(data)
        for _ in range(count):
            chain = hashlib.sha256((chain + digest).encode()).hexdigest()
            payload = f'{{"n":1,"first":1,"size":{len(frame)},"frame":"{digest}","chain":"{chain}"'.encode()
            payload += b',"crc":"%08x"}' % zlib.crc32(payload)
            file.write(frame + bytes.fromhex("5e2a4d18") + len(payload).to_bytes(4, "little") + payload)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Read, verified, and resynchronised over a hole of 100 MB: the most that was held at once stays the same."""
    peaks = []
    for count in (10, 1000):
        path = tmp_path / f"{count}.zst"
        _repeated(path, count)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + 100 * 1000 * count)
        tracemalloc.start()
        capture = open_capture(path)
        found = sum(1 for _ in capture.read(lambda _: None))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == count + 1
        path.unlink()
    assert capture.size > 200 * 10**6
    assert peaks[1] < peaks[0] * 1.2 < 4 * 10**6


def test_a_capture_from_elsewhere(tmp_path: Path) -> None:
    """Records of any source become a closed capture; a gap in seq stays one."""
    given_records = [request(1), reply(2, 1), *(request(seq) for seq in range(5, 105))]
    assert write_all(tmp_path / "one", header, iter(given_records), Limits()) == 102
    capture = open_capture(tmp_path / "one")
    found, damages = read(capture)
    assert found[:-1] == given_records
    assert found[-1] == End(105, records=102, ts=given_records[-1].ts, mono=given_records[-1].mono)
    assert damages == []
    data = (tmp_path / "one" / "000001.jsonl.zst").read_bytes()
    assert [item.first for item in frames.scan(data, "") if isinstance(item, frames.Frame)] == [0, 1, 5, 69, 105]
    report = verify(capture)
    assert report.gaps == ["000001.jsonl.zst record 4: seq 5, expected 3: 2 before it are not there"]
    assert write_all(tmp_path / "none", header, [], Limits()) == 0
    assert read(open_capture(tmp_path / "none")) == ([End(1, str(WALL), str(STEADY), 0)], [])


def test_what_an_import_does_not_keep_is_counted(tmp_path: Path) -> None:
    """The limits hold for imports, and the capture says what they removed."""
    chance = random.Random(1)
    many = (request(seq, text=chance.randbytes(200).hex()) for seq in range(1, 401))
    assert write_all(tmp_path / "one", header, many, Limits(segment_bytes=20_000, total_bytes=60_000)) == 400
    report = verify(open_capture(tmp_path / "one"))
    assert report.is_whole
    assert report.lost.keys() == {"size limit"}
    assert report.lost["size limit"] + sum(report.requests.values()) == 400


def test_an_import_that_fails_is_not_closed(tmp_path: Path) -> None:
    """What the source raises comes through, and nothing is held any more."""

    def broken() -> Iterator[Record]:
        yield request(1)
        raise ValueError("the log is damaged")

    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(ValueError, match="the log is damaged"):
        write_all(tmp_path / "one", header, broken(), Limits())
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert verify(open_capture(tmp_path / "one")).state == "not closed"


def report_of(directory: Path, *given_records: Record) -> Report:
    write_all(directory, header, given_records, Limits())
    return verify(open_capture(directory))


def test_a_report_of_half_pairs(tmp_path: Path) -> None:
    """By leg: requests nobody answered, and answers to what is not there."""
    report = report_of(
        tmp_path / "one",
        request(1), request(2, Leg.BACKEND), reply(3, 2, Leg.BACKEND), request(4, Leg.CANDIDATE), reply(5, 99),
        Lost(6, n=7, why="queue full", **times(6)), Flip(7, service="x", origin="a", target="b", epoch=1, **times(7)),
        Lost(8, n=2, why="queue full", **times(8)), Lost(9, n=1, why="too large", **times(9)),
    )  # fmt: skip
    assert report == Report(
        path=str(tmp_path / "one"), state="closed", bytes=report.bytes, segments=1, missing=[], records=10,
        requests={"caller": 1, "backend": 1, "candidate": 1}, replies={"backend": 1, "caller": 1},
        unanswered={"caller": 1, "candidate": 1}, strays={"caller": 1}, lost={"queue full": 9, "too large": 1},
        hosts=["host-a"], boots=["boot-1"],
    )  # fmt: skip
    assert report.is_whole
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


@pytest.mark.parametrize(
    ("moved", "expected"),
    [(0.9, []), (-0.9, []), (3600.0, ["+3600.000"]), (-3600.0, ["-3600.000"]), (1.5, ["+1.500"])],
)
def test_clocks_that_jump(tmp_path: Path, moved: float, expected: list[str]) -> None:
    """By more than a second between neighbours, said once for each jump."""
    late = request(3)
    wall = int(late.ts) + int(moved * SECOND)
    more = [msgspec.structs.replace(request(seq), ts=str(wall + (seq - 3) * SECOND)) for seq in (3, 4, 5)]
    report = report_of(tmp_path / "one", request(1), request(2), *more)
    found = [
        text.removeprefix("000001.jsonl.zst record 4: the wall clock moved by ").split()[0] for text in report.jumps
    ]
    assert found == expected


def test_clocks_that_are_not_known(tmp_path: Path) -> None:
    """Imported records may have no steady clock: nothing can be said then."""
    changed = [
        msgspec.structs.replace(request(seq), mono=mono) for seq, mono in ((1, "0"), (2, ""), (3, "x"), (4, "9" * 5000))
    ]
    assert report_of(tmp_path / "one", *changed, request(5)).jumps == []


def test_two_captures_of_different_hosts(tmp_path: Path) -> None:
    """Segments that were put together by hand are told apart by their headers."""
    for name, host, boot in (("a", "host-a", "boot-1"), ("b", "host-b", "boot-2"), ("c", "host-a", "boot-9")):

        def of(number: int, chain: str, host: str = host, boot: str = boot) -> Header:
            return msgspec.structs.replace(header(number, chain), host=host, boot=boot)

        writer = Writer(tmp_path / name, of, Limits(segment_bytes=1), Clock())
        *lines, last = (
            records.encode(msgspec.structs.replace(record, mono=str(int(record.mono) + int(boot[-1]) * 10**15)))
            for record in (request(1), request(2), request(3), end(4, 3))
        )
        for seq, line in enumerate(lines, 1):
            writer.write([line], seq)
        writer.close(last, 4)
    for other, text in (
        ("b", "two captures of different hosts: 000001.jsonl.zst is of host host-a, 000002.jsonl.zst of host host-b"),
        ("c", "the host was started again: 000001.jsonl.zst is of boot boot-1, 000002.jsonl.zst of boot boot-9"),
    ):
        mixed = tmp_path / f"mixed-{other}"
        mixed.mkdir()
        shutil.copy(tmp_path / "a" / "000001.jsonl.zst", mixed)
        for number in (2, 3):
            shutil.copy(tmp_path / other / f"{number:06}.jsonl.zst", mixed)
        report = verify(open_capture(mixed))
        assert (report.mixed, report.jumps) == ([text], [])
        assert not report.is_whole
        assert (len(report.hosts), len(report.boots)) == (2 if other == "b" else 1, 2)
        assert any("what follows is not of this capture" in damage for damage in report.damages)


def test_open_requests_are_counted_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest counts as unanswered, and its reply as one without a request."""
    monkeypatch.setattr("bridges.capture.verifying.OPEN", 3)
    report = report_of(tmp_path / "one", *(request(seq) for seq in range(1, 6)), reply(6, 1), reply(7, 5))
    assert report.unanswered == {"caller": 4}
    assert report.strays == {"caller": 1}


def test_a_place_reads_well() -> None:
    """As the messages have it."""
    assert str(Place("000001.jsonl.zst", 17)) == "000001.jsonl.zst record 17"
