"""Frames: packed and read again, and whatever is done to the bytes is noticed and costs its own frame."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from itertools import pairwise
from typing import NamedTuple

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.capture.frames import FRAME_BYTES, RECORDS, Behind, Damage, Frame, groups, pack, scan

HEADER = b'{"t":"hdr","schema":1}\n'


class Segment(NamedTuple):
    """`pairs` are (start, end of the data frame, end of the trailer); `packed` the lines of each."""

    data: bytes
    pairs: list[tuple[int, int, int]]
    packed: list[list[bytes]]
    behind: Behind


def segment(packed: list[list[bytes]], first: int = 1, chain: str = "") -> Segment:
    data, pairs = b"", []
    for lines in packed:
        frame, chain = pack(lines, first, chain)
        size = trailer(frame)["size"]
        pairs.append((len(data), len(data) + size, len(data) + len(frame)))
        first += len(lines) - lines[0].startswith(b'{"t":"hdr"')
        data += frame
    return Segment(data, pairs, packed, Behind(chain, first))


def trailer(frame: bytes) -> dict[str, int]:
    """The payload of a trailer, by looking for its brace: the frame is in front of it."""
    found: dict[str, int] = json.loads(frame[frame.rindex(b'{"n":') :])
    return found


def record(seq: int, text: str) -> bytes:
    return json.dumps({"t": "req", "seq": seq, "text": text}).encode() + b"\n"


def example(frames: int = 5, each: int = 3, seed: int = 1) -> Segment:
    """A header's frame, and `frames` more; their texts do not compress to nothing."""
    chance = random.Random(seed)
    texts = iter(lambda: chance.randbytes(chance.randrange(1, 60)).hex(), None)
    packed = [[record(1 + index * each + i, next(texts)) for i in range(each)] for index in range(frames)]
    return segment([[HEADER], *packed])


def read(data: bytes, built: Segment, chain: str | None = "") -> tuple[list[Frame], list[Damage]]:
    items = list(scan(data, chain, 1, built.behind))
    return [i for i in items if isinstance(i, Frame)], [i for i in items if isinstance(i, Damage)]


def check(data: bytes, built: Segment, hurt: set[int]) -> list[Damage]:
    """Every frame that is not hurt is read, nothing is read that was not written, and the damage is counted."""
    frames, damages = read(data, built)
    found = [frame.lines for frame in frames]
    whole = [lines for index, lines in enumerate(built.packed) if index not in hurt]
    rest = iter(found)
    assert all(lines in rest for lines in whole), "a whole frame was not read, or out of order"
    assert all(lines in built.packed for lines in found)
    assert damages
    numbered = sum(len(lines) for lines in built.packed if lines != [HEADER])
    missing = numbered - sum(len(lines) for lines in found if lines != [HEADER])
    counts = [damage.records for damage in damages]
    assert None not in counts
    assert sum(filter(None, counts)) == missing
    assert [damage.offset for damage in damages] == sorted(damage.offset for damage in damages)
    return damages


@given(st.lists(st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"") + b"\n"), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_read(lines: list[bytes]) -> None:
    """Any lines come back as they were, in frames of at most 64, chained."""
    built = segment([list(group) for group in groups(lines)])
    frames, damages = read(built.data, built)
    assert damages == []
    assert [line for frame in frames for line in frame.lines] == lines
    assert [len(frame.lines) for frame in frames[:-1]] == [RECORDS] * (len(frames) - 1)
    assert frames[-1].chain == built.behind.chain
    assert [frame.first for frame in frames] == [1 + RECORDS * index for index in range(len(frames))]
    assert frames[-1].after == built.behind.seq


def test_a_frame_ends_at_its_size_too() -> None:
    """A long record stands alone; those before and behind it do not wait for it."""
    short, long = b"x" * 999 + b"\n", b"x" * (FRAME_BYTES + 1) + b"\n"
    assert [len(group) for group in groups([short, long, short, short])] == [1, 1, 2]
    sizes = [sum(map(len, group)) for group in groups([b"x" * 9_999 + b"\n"] * 60)]
    assert max(sizes) <= FRAME_BYTES
    assert len(sizes) == 3
    assert list(groups([])) == []


def test_a_trailer_says_what_the_contract_says() -> None:
    """Another reader can follow the chain with sha256 alone."""
    built = example(2)
    chain = ""
    for (start, middle, end), lines in zip(built.pairs, built.packed, strict=True):
        assert built.data[middle : middle + 4] == bytes.fromhex("5e2a4d18")
        payload = built.data[middle + 8 : end]
        assert int.from_bytes(built.data[middle + 4 : middle + 8], "little") == len(payload)
        digest = hashlib.sha256(built.data[start:middle]).hexdigest()
        chain = hashlib.sha256((chain + digest).encode()).hexdigest()
        said = json.loads(payload)
        crc = said.pop("crc")
        assert int(crc, 16) == zlib.crc32(payload[: payload.index(b',"crc"')])
        n = 0 if lines == [HEADER] else 3
        assert said.pop("first") == (4 if lines == built.packed[2] else 1)
        assert said == {"n": n, "size": middle - start, "frame": digest, "chain": chain}
        parameters = zstandard.get_frame_parameters(built.data[start:])
        assert parameters.has_checksum
        assert parameters.content_size == sum(map(len, lines))


@given(st.integers(0, 10**9), st.integers(0, 7), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=400, deadline=None)
def test_one_flipped_bit(place: int, bit: int, frames: int, seed: int) -> None:
    """Wherever it is: one damage, in its own frame; in a trailer, not even that frame is lost."""
    built = example(frames, seed=seed)
    place %= len(built.data)
    data = bytearray(built.data)
    data[place] ^= 1 << bit
    hurt = next(index for index, (_, _, end) in enumerate(built.pairs) if place < end)
    start, middle, end = built.pairs[hurt]
    (damage,) = check(bytes(data), built, {hurt} if place < middle else set())
    assert start <= damage.offset <= end
    if place >= middle:
        assert damage.records == 0


def test_every_bit_of_a_segment() -> None:
    """No place of the layout was left to chance."""
    built = example(2, each=1)
    for place in range(len(built.data)):
        data = bytearray(built.data)
        data[place] ^= 1 << (place % 8)
        hurt = next(index for index, (_, _, end) in enumerate(built.pairs) if place < end)
        assert len(check(bytes(data), built, {hurt} if place < built.pairs[hurt][1] else set())) == 1, place


@pytest.mark.parametrize("length", range(0, 1200, 7))
def test_cut_anywhere(length: int) -> None:
    """What is whole before the cut is read; the rest is one damage."""
    built = example()
    assert length < len(built.data)
    hurt = {index for index, (_, middle, _) in enumerate(built.pairs) if middle > length}
    (damage,) = check(built.data[:length], built, hurt)
    assert damage.offset <= length


def without(built: Segment, start: int, end: int) -> bytes:
    return built.data[:start] + built.data[end:]


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("what", ["frame and trailer", "frame", "trailer"])
def test_a_removed_frame(what: str, index: int) -> None:
    """With its trailer, without it, or the trailer alone; at the start, within, at the end."""
    built = example()
    start, middle, end = built.pairs[index]
    cut = {"frame and trailer": (start, end), "frame": (start, middle), "trailer": (middle, end)}[what]
    (damage,) = check(without(built, *cut), built, set() if what == "trailer" else {index})
    assert damage.records == (0 if what == "trailer" or index == 0 else 3)
    assert damage.offset == cut[0]


@given(
    st.lists(
        st.tuples(st.sampled_from(["flip", "cut out", "put in", "zero"]), st.integers(0, 10**9)), min_size=1, max_size=4
    )
)
@settings(max_examples=300, deadline=None)
def test_several_damages_at_once(kinds: list[tuple[str, int]]) -> None:
    """Every frame whose pair is untouched and still in place is read, whatever happened around it."""
    built = example(8)
    pieces = [built.data[start:end] for start, _, end in built.pairs]
    for kind, chance in kinds:
        index = chance % len(pieces)
        piece = bytearray(pieces[index])
        place = chance % max(1, len(piece))
        end = place + 1 + chance % 50
        match kind:
            case "flip" if piece:
                piece[place] ^= 1
            case "cut out":
                del piece[place:end]
            case "put in":
                piece[place:place] = random.Random(chance).randbytes(end - place)
            case "zero":
                piece[place:end] = bytes(len(piece[place:end]))
        pieces[index] = bytes(piece)
    touched = {index for index, (start, _, end) in enumerate(built.pairs) if pieces[index] != built.data[start:end]}
    frames, damages = read(b"".join(pieces), built)
    found = [frame.lines for frame in frames]
    assert all(lines in found for index, lines in enumerate(built.packed) if index not in touched)
    assert all(lines in built.packed for lines in found)
    assert bool(damages) == bool(touched)


def test_a_damaged_trailer_before_a_removed_frame() -> None:
    """Told once, with what was removed."""
    built = example()
    data = bytearray(built.data)
    data[built.pairs[2][1] + 20] ^= 1
    start, _, end = built.pairs[3]
    (damage,) = check(bytes(data[:start] + data[end:]), built, {3})
    assert damage.records == 3


def test_the_first_frame_when_nothing_is_known_of_it() -> None:
    """Its own trailer says how many records it had."""
    built = segment([[HEADER]], first=0)
    frame, _ = pack([b"a\n", b"b\n"], 5, built.behind.chain)
    data = built.data + b"?" + frame[1:]
    _, damage = scan(data, None)
    assert isinstance(damage, Damage)
    assert damage.records == 2


def test_frames_in_another_order_or_of_another_capture() -> None:
    """The chain tells that they do not belong there."""
    built, other = example(4), example(4, seed=2)
    pieces = [built.data[start:end] for start, _, end in built.pairs]
    assert read(b"".join([*pieces[:2], pieces[3], pieces[2], *pieces[4:]]), built)[1]
    strange = other.data[other.pairs[2][0] : other.pairs[2][2]]
    _, (before, behind) = read(b"".join([*pieces[:2], strange, *pieces[3:]]), built)
    assert [before.what, behind.what] == ["frames before it are missing"] * 2


def test_a_segment_from_the_middle_is_read_without_its_chain() -> None:
    """Nothing is known of what came before, and from its first trailer on the chain must hold."""
    built = segment([[record(seq, "x")] for seq in range(7, 11)], first=7, chain="abc")
    assert [len(part) for part in read(built.data, built, chain=None)] == [4, 0]
    start, _, end = built.pairs[1]
    frames, damages = read(without(built, start, end), built, chain=None)
    assert [frame.first for frame in frames] == [7, 9, 10]
    assert [damage.records for damage in damages] == [1]


def _claims(content: int) -> bytes:
    """A zstd frame that says it has so many bytes: its header, and a last block of one byte repeated."""
    return bytes.fromhex("28b52ffde4") + content.to_bytes(8, "little") + b"\x00" + b"\x03\x00\x10x" + bytes(4)


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (_claims(10**12), "more than 268435456"),
        (_claims(2**17), "cannot be unpacked"),
        (zstandard.ZstdCompressor(write_checksum=False).compress(b"x\n"), "without checksum"),
        (
            zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(b"x\n"),
            "without checksum or size",
        ),
        (zstandard.ZstdCompressor(write_checksum=True).compress(b""), "without a line"),
        (b"nothing of the kind", "cannot be unpacked"),
    ],
)
def test_a_frame_is_not_believed_because_its_digest_fits(frame: bytes, what: str) -> None:
    """A trailer can be made for anything: what cannot be a frame of ours is damage, before it is unpacked."""
    digest = hashlib.sha256(frame).hexdigest()
    payload = json.dumps({"n": 3, "first": 1, "size": len(frame), "frame": digest, "chain": "x"}, separators=(",", ":"))
    body = payload[:-1].encode()
    body += b',"crc":"%08x"}' % zlib.crc32(body)
    pair = frame + bytes.fromhex("5e2a4d18") + len(body).to_bytes(4, "little") + body
    behind, _ = pack([b"y\n"], 4, "x")
    damage, frame_behind = scan(pair + behind, None)
    assert isinstance(damage, Damage)
    assert what in damage.what
    assert damage.records == 3
    assert isinstance(frame_behind, Frame)


def test_trailers_within_trailers_do_not_mislead() -> None:
    """A line that has a whole frame with its trailer in it, between bytes that zstd does not compress."""
    chance = random.Random(3)
    pair, _ = pack([b"inner\n"], 9, "z")
    noise = [chance.randbytes(3000) for _ in range(2)]
    line = pair.join(noise).replace(b"\n", b"") + b"\n"
    built = segment([[line], [b"next\n"]])
    assert bytes.fromhex("5e2a4d18") in built.data[: built.pairs[0][1]]
    frames, damages = read(built.data, built)
    assert ([frame.lines for frame in frames], damages) == ([[line], [b"next\n"]], [])


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b"some text\n" * 100,
        bytes.fromhex("5e2a4d18") * 100,
        b"\x28\xb5\x2f\xfd" * 100,
    ],
)
def test_bytes_that_are_no_segment(foreign: bytes) -> None:
    """One damage, or nothing where nothing is."""
    assert [type(item) for item in scan(foreign, None)] == [Damage] * bool(foreign)


def test_time_grows_with_the_bytes_and_not_faster() -> None:
    """All trailers taken out, the worst for who looks for the next one: each search goes on, none begins anew."""

    class Counted(bytes):
        looked = 0

        def find(self, wanted, start):  # type: ignore[no-untyped-def, override]
            found = super().find(wanted, start)
            Counted.looked += (len(self) if found < 0 else found) - start
            return found

    built = example(200)
    bare = Counted(b"".join(built.data[start:middle] for start, middle, _ in built.pairs))
    items = list(scan(bare, ""))
    assert [type(item) for item in items] == [Frame, *[Damage, Frame] * 200, Damage]
    assert Counted.looked <= 2 * len(bare)


def test_pack_can_share_a_compressor() -> None:
    """It makes the same bytes."""
    shared = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True)
    assert all(pack([line], 1, "", shared) == pack([line], 1, "") for line in (b"a\n", b"b\n"))
    assert all(one != other for one, other in pairwise([pack([b"a\n"], 1, chain)[1] for chain in ("", "x")]))
