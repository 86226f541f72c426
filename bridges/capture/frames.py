"""Records in checksummed zstd frames, chained: what a segment file is made of.

A segment is repeated (data frame, trailer). The data frame is zstd with content size and checksum. The trailer is a
zstd skippable frame, which other tools pass over: a JSON object with

    n      records with a `seq` in the frame (a header has none)
    first  the `seq` of the first of them, or of the first to come; 0 when it is not known
    size   bytes of the data frame
    frame  sha256 of the data frame, hex
    chain  sha256 of the chain before (hex) and `frame`; the chain before the first frame of a capture is empty
    crc    crc32 of all before it, hex

`frame` and zstd's checksum find what was changed, `chain` what was taken out. Nothing is believed of a trailer whose
`crc` is wrong; its data frame is still read then, by zstd's own checksum.

Source of the layout: RFC 8878, 3.1.1 (frames and blocks) and 3.1.2 (skippable frames).
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple, Protocol

import msgspec
import zstandard

RECORDS: Final = 64
FRAME_BYTES: Final = 256 * 1024
LIMIT: Final = 256 * 1024 * 1024  # the longest content of a frame that is unpacked
ZSTD_MAGIC: Final = (0xFD2FB528).to_bytes(4, "little")

_MAGIC: Final = (0x184D2A5E).to_bytes(4, "little")
_HEAD: Final = Struct("<4sI")
_LONGEST_TRAILER: Final = 512
_LONGEST_FRAME: Final = LIMIT + LIMIT // 128  # zstd's own bound is 1/256 more than the content
_LONGEST_HEADER: Final = 18
_CRC: Final = b',"crc":"%08x"}'
_CRC_LENGTH: Final = len(_CRC % 0)
_HEADER: Final = b'{"t":"hdr"'
_RAW, _RLE, _COMPRESSED = 0, 1, 2
_NO_TRAILER: Final = "the trailer of the frame before is damaged or missing"


class Source(Protocol):
    """What a segment is read from: bytes, a memory map, or a file in pieces."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> bytes: ...
    def find(self, wanted: bytes, start: int, /) -> int: ...


class Frame(NamedTuple):
    """The lines of a frame that is whole, as they were packed. `offset` and `size` are those of the data frame.

    `after` is the `seq` that comes next, None when it is not known. `chain` is empty when it is not known.
    """

    offset: int
    size: int
    lines: list[bytes]
    first: int
    chain: str
    after: int | None


class Damage(NamedTuple):
    """What is wrong at a place, and how many records are lost by it; None: nobody can know."""

    offset: int
    what: str
    records: int | None


class Behind(NamedTuple):
    """What is known of the end of a segment: the chain there, and the `seq` that comes next."""

    chain: str
    seq: int | None


class _Trailer(msgspec.Struct):
    n: int
    first: int
    size: int
    frame: str
    chain: str
    offset: int = 0
    end: int = 0

    @property
    def after(self) -> int | None:
        return self.first + self.n if self.first else None


class _Numbered(msgspec.Struct):
    seq: int = 0


class _Unreadable(Exception):
    pass


_trailers: Final = msgspec.json.Decoder(_Trailer)
_numbers: Final = msgspec.json.Decoder(_Numbered)


def compressor() -> zstandard.ZstdCompressor:
    """What `pack` uses. One may be used for many frames, by one thread at a time."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True)


def groups(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Lines as they go into frames: at most RECORDS and FRAME_BYTES; a longer line stands alone."""
    start = size = 0
    for index, line in enumerate(lines):
        if index > start and (index - start == RECORDS or size + len(line) > FRAME_BYTES):
            yield lines[start:index]
            start, size = index, 0
        size += len(line)
    if start < len(lines):
        yield lines[start:]


def pack(
    lines: Sequence[bytes], first: int, chain: str, by: zstandard.ZstdCompressor | None = None
) -> tuple[bytes, str]:
    """A data frame with its trailer, and the chain behind it. Each line brings its end; a header can only be the first.

    `first` is the seq of the first record that has one, or 0.
    """
    frame = (by or compressor()).compress(b"".join(lines))
    n = len(lines) - lines[0].startswith(_HEADER)
    digest = hashlib.sha256(frame).hexdigest()
    chain = _link(chain, digest)
    payload = b'{"n":%d,"first":%d,"size":%d,"frame":"%s","chain":"%s"' % (
        n, first, len(frame), digest.encode(), chain.encode(),
    )  # fmt: skip
    payload += _CRC % zlib.crc32(payload)
    return frame + _HEAD.pack(_MAGIC, len(payload)) + payload, chain


def scan(
    segment: Source, chain: str | None, after: int | None = None, behind: Behind | None = None
) -> Iterator[Frame | Damage]:
    """All whole frames of a segment in order, and what is wrong between them.

    `chain` is the chain before the segment, `after` the seq that comes first in it; None for what is not known. Damage
    is told once, before the frames behind it. A frame whose trailer alone is damaged is given, and no record of it
    counted as lost.
    """
    return _Scan(segment, chain, after, behind).run()


def between(after: int | None, first: int | None) -> int | None:
    """How many records are missing before the seq `first`; None when it is not known."""
    return first - after if after and first and first >= after else None


class _Scan:
    """Goes from trailer to trailer: what stands between two of them is a frame that fits the second, or damage."""

    def __init__(self, segment: Source, chain: str | None, after: int | None, behind: Behind | None) -> None:
        self._segment = segment
        self._end = len(segment)
        self._chain = chain
        self._after = after
        self._behind = behind
        self._at = 0
        self._bare = False  # the frame before was given though it had no trailer, and that was not told yet
        self._unpacker = zstandard.ZstdDecompressor()

    def run(self) -> Iterator[Frame | Damage]:
        trailer = self._trailer_from(0)
        while self._at < self._end:
            if trailer is not None and trailer.offset < self._at:
                trailer = self._trailer_from(self._at)
            frame = None if trailer is None else self._frame_of(trailer)
            if trailer is not None and frame is not None and trailer.offset - len(frame) == self._at:
                yield from self._whole(frame, trailer)
            else:
                yield from self._broken(trailer, fits=frame is not None)
        is_cut = self._behind is not None and self._chain is not None and self._chain != self._behind.chain
        if self._bare or is_cut:
            lost = self._to_the_end()
            cut = "what follows is not of this capture" if lost == 0 else "its end is missing"
            yield Damage(self._end, cut if is_cut else _NO_TRAILER, lost)

    def _trailer_from(self, at: int) -> _Trailer | None:
        """That of the frame that begins here; else the next, by its magic."""
        length = _frame_length(self._segment, at, self._end)
        trailer = None if length is None else _trailer_at(self._segment, at + length)
        if trailer is not None and trailer.size == length:
            return trailer
        return _next_trailer(self._segment, at)

    def _frame_of(self, trailer: _Trailer) -> bytes | None:
        """The data frame before a trailer, if it is what the trailer says."""
        start = trailer.offset - trailer.size
        if start < self._at:
            return None
        frame = self._segment[start : trailer.offset]
        return frame if hashlib.sha256(frame).hexdigest() == trailer.frame else None

    def _whole(self, frame: bytes, trailer: _Trailer) -> Iterator[Frame | Damage]:
        yield from self._tell_bare()
        if self._chain is not None and _link(self._chain, trailer.frame) != trailer.chain:
            yield Damage(self._at, "frames before it are missing", between(self._after, trailer.first))
        try:
            lines = self._unpack(frame)
        except _Unreadable as error:
            yield Damage(self._at, str(error), trailer.n)
        else:
            yield Frame(self._at, len(frame), lines, trailer.first, trailer.chain, trailer.after or self._after)
        self._pass(trailer)

    def _broken(self, trailer: _Trailer | None, *, fits: bool) -> Iterator[Frame | Damage]:
        """What stands here belongs to no trailer: up to the frame that fits the next one, or to that one's end."""
        stop = self._end if trailer is None else trailer.offset - trailer.size if fits else trailer.offset
        frame = self._bare_frame(stop)
        if frame is not None:
            yield from self._tell_bare()
            yield frame
            self._bare = True
            return
        at, was_bare, self._bare = self._at, self._bare, False
        what = "are damaged"
        if trailer is None:
            what = "at the end are damaged or cut"
            lost = self._to_the_end()
            self._at, self._chain = self._end, None
        elif fits:
            lost = between(self._after, trailer.first)
            self._at, self._chain = stop, None
        else:
            lost = between(self._after, trailer.after)
            lost = trailer.n if lost is None else lost
            what = "are damaged" if trailer.n else "are damaged, the header"
            self._pass(trailer)
        yield Damage(at, _NO_TRAILER if was_bare else f"{self._at - at} bytes {what}", lost)

    def _bare_frame(self, stop: int) -> Frame | None:
        """A data frame that is whole, whatever its trailer is."""
        at = self._at
        length = _frame_length(self._segment, at, stop)
        if length is None:
            return None
        frame = self._segment[at : at + length]
        try:
            lines = self._unpack(frame)
        except _Unreadable:
            return None
        first = next(filter(None, map(_seq, lines[:2])), 0)
        if first:
            self._after = first + len(lines) - lines[0].startswith(_HEADER)
        self._at += length
        self._chain = None if self._chain is None else _link(self._chain, hashlib.sha256(frame).hexdigest())
        return Frame(at, length, lines, first, self._chain or "", self._after)

    def _to_the_end(self) -> int | None:
        return None if self._behind is None else between(self._after, self._behind.seq)

    def _tell_bare(self) -> Iterator[Damage]:
        if self._bare:
            self._bare = False
            yield Damage(self._at, _NO_TRAILER, 0)

    def _pass(self, trailer: _Trailer) -> None:
        self._at, self._chain, self._after = trailer.end, trailer.chain, trailer.after or self._after

    def _unpack(self, frame: bytes) -> list[bytes]:
        try:
            parameters = zstandard.get_frame_parameters(frame)
            if parameters.content_size > LIMIT or not parameters.has_checksum:
                raise _Unreadable(f"a frame without checksum or size, or of more than {LIMIT} bytes")
            content = self._unpacker.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _Unreadable(f"a frame that cannot be unpacked ({error})") from None
        lines = io.BytesIO(content).readlines()
        if not lines:
            raise _Unreadable("a frame without a line")
        return lines


def _next_trailer(segment: Source, at: int) -> _Trailer | None:
    while (at := segment.find(_MAGIC, at)) >= 0:
        trailer = _trailer_at(segment, at)
        if trailer is not None:
            return trailer
        at += 1
    return None


def _trailer_at(segment: Source, at: int) -> _Trailer | None:
    data = segment[at : at + _HEAD.size + _LONGEST_TRAILER]
    if len(data) < _HEAD.size:
        return None
    magic, length = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        return None
    payload = data[_HEAD.size : _HEAD.size + length]
    body = payload[:-_CRC_LENGTH]
    if len(payload) < length or payload[-_CRC_LENGTH:] != _CRC % zlib.crc32(body):
        return None
    try:
        trailer = _trailers.decode(payload)
    except msgspec.MsgspecError:
        return None
    if not 0 < trailer.size <= _LONGEST_FRAME or trailer.n < 0 or trailer.first < 0:
        return None
    trailer.offset, trailer.end = at, at + _HEAD.size + length
    return trailer


def _frame_length(segment: Source, at: int, stop: int) -> int | None:
    """The length of the zstd frame at a place, by the heads of its blocks; None when none ends before `stop`."""
    head = segment[at : min(at + _LONGEST_HEADER, stop)]
    try:
        if not head.startswith(ZSTD_MAGIC) or zstandard.get_frame_parameters(head).content_size > LIMIT:
            return None
        place = at + zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        return None
    is_last = False
    while not is_last and place + 3 <= stop:
        block = int.from_bytes(segment[place : place + 3], "little")
        is_last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        if kind > _COMPRESSED:
            return None
        place += 3 + (1 if kind == _RLE else size)
    length = place + 4 - at  # 4: the checksum
    return length if is_last and at + length <= stop and length <= _LONGEST_FRAME else None


def _seq(line: bytes) -> int:
    try:
        return _numbers.decode(line).seq
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0


def _link(chain: str, digest: str) -> str:
    return hashlib.sha256((chain + digest).encode()).hexdigest()
