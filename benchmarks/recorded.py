"""Captures to be measured: records made of real wire bytes as the bridge makes them, and the store with its peers."""

from __future__ import annotations

import io
import itertools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import zstandard

from benchmarks.calls import CALLS, RESERVATION, VM, Measured
from bridges import dbus_translation, xmlrpc_translation
from bridges.calls import Door
from bridges.capture import frames, records
from bridges.capture.describing import Describer, Heard, Seen
from bridges.capture.messages import (
    AS_CALLER,
    BusAnswer,
    BusCall,
    HttpCall,
    Message,
    SocketAnswer,
    StoreAnswer,
    StoreCall,
)
from bridges.capture.records import End, Header, Leg, Record
from bridges.capture.redaction import Redactor
from bridges.capture.store import open_capture
from bridges.capture.verifying import verify
from bridges.capture.writing import Limits, Writer, write_all
from bridges.interfaces import model
from bridges.interfaces.model import Method
from xenstore_rpc.records import Request, Response
from xmlrpc_gateway import dialects
from xmlrpc_gateway.encodings import XML
from xmlrpc_gateway.http_messages import Headers, HttpRequest, Peer

HEADERS: Final[Headers] = (("host", "localhost"), ("content-type", "text/xml"), ("user-agent", "xapi"))
MEMORY: Final = str(4 << 30).encode()
MB: Final = 1e6
STEP_NS: Final = 250_000
SEED: Final = 5


class Maker:
    """Records of one service's calls, as its bridge makes them in relay."""

    def __init__(self, service: str, seq: Iterator[int]) -> None:
        self.service = model.load(service)
        self.on_bus = dbus_translation.Translation(self.service)
        self._tongue = XML, xmlrpc_translation.Translation(dialects.DIALECTS["rpclib"])
        self._describer = Describer(self.service, self.service.dialect, self.on_bus, Redactor(b"k" * 32))
        self._seq = seq
        self._calls = itertools.count(1)
        self._now = time.time_ns()

    def passed_through(self, measured: Measured, request: bytes, reply: bytes) -> Iterator[Record]:
        """An HTTP caller's call to the legacy daemon, byte for byte."""
        method, call = self._method(measured.method), str(next(self._calls))
        came = HttpCall(self._tongue, HttpRequest("POST", "/", "1.1", HEADERS, request, Peer(0, 0, 4711)))
        yield self._asked(call, Leg.CALLER, Door.HTTP, came, method)
        yield self._asked(call, Leg.BACKEND, Door.HTTP, AS_CALLER, method)
        yield self._answered(call, Leg.BACKEND, SocketAnswer(self._tongue, reply))
        yield self._answered(call, Leg.CALLER, AS_CALLER)

    def into_the_store(self, body: tuple[Any, ...], reservation: str) -> Iterator[Record]:
        """A bus caller's `reserve_memory`, translated to the tree."""
        method, call = self._method("reserve_memory"), str(next(self._calls))
        form = self.on_bus.of(method)
        came = BusCall(form, "org.xen.xcp.squeezed", ":1.7", 12, body)
        nodes = (("session_id", body[1].encode()), ("kib", b"%d" % body[2]))
        asked = StoreCall(Request("reserve-memory", call, nodes), "reserve-memory", call)
        yield self._asked(call, Leg.CALLER, Door.BUS, came, method)
        yield self._asked(call, Leg.BACKEND, Door.XENSTORE, asked, method)
        yield self._answered(call, Leg.BACKEND, StoreAnswer(Response((("reservation_id", reservation.encode()),))))
        yield self._answered(call, Leg.CALLER, BusAnswer(form, form.output_signature, (reservation,)))

    def at_a_door(self, name: str, asked: Message, answer: Message) -> Iterator[Record]:
        """The caller's side of a call alone."""
        call = str(next(self._calls))
        door = Door.BUS if isinstance(asked, BusCall) else Door.HTTP
        yield self._asked(call, Leg.CALLER, door, asked, self._method(name))
        yield self._answered(call, Leg.CALLER, answer)

    def http(self, measured: Measured) -> tuple[Message, Message]:
        """A measured call with its canned answer, at the HTTP door."""
        request = HttpRequest("POST", "/", "1.1", HEADERS, measured.request, Peer(0, 0, 4711))
        return HttpCall(self._tongue, request), SocketAnswer(self._tongue, measured.reply())

    def _method(self, name: str) -> Method:
        found = self.service.method(name)
        assert found is not None
        return found

    def _time(self) -> int:
        self._now += random.randrange(STEP_NS)
        return self._now

    def _asked(self, call: str, leg: Leg, door: Door, message: Message, method: Method) -> Record:
        now = self._time()
        effect = str(method.effect)
        conn = call if leg is Leg.CALLER else ""  # its own, so that in a replay no call waits for another
        seen = Seen(call, leg, door, message, now, now, "legacy", "relay", 1, conn, None, method, effect)
        return self._describer.request(seen, next(self._seq))

    def _answered(self, call: str, leg: Leg, message: Message) -> Record:
        now = self._time()
        found = self._describer.reply(Heard(call, leg, message, now, now, "legacy", 1), next(self._seq))
        assert found is not None
        return found


def traffic(calls: int) -> Iterator[Record]:
    """Calls of three sorts in turns: two small ones and one with a VM in its answer, each with its own ids."""
    random.seed(SEED)
    seq = itertools.count(1)
    xenopsd, squeezed = Maker("xenopsd", seq), Maker("squeezed", seq)
    query, stat = CALLS["query"], CALLS["stat"]
    said, told = query.reply(), stat.reply()
    for _ in range(calls // 3):
        vm, memory = str(uuid.UUID(int=random.getrandbits(128))), random.randrange(1 << 20, 1 << 36) & ~0xFFF
        yield from xenopsd.passed_through(query, query.request, said)
        body = told.replace(VM.encode(), vm.encode()).replace(MEMORY, b"%d" % memory)
        yield from xenopsd.passed_through(stat, stat.request.replace(VM.encode(), vm.encode()), body)
        yield from squeezed.into_the_store(("", f"session-{vm[:8]}", memory >> 10), RESERVATION[:8] + vm[8:])


def header(segment: int, chain: str) -> Header:
    """As the bridge writes it, nearly."""
    return Header(1, "benchmark", "host", "boot", "0", "0", segment, chain, dialects={"squeezed": "rpclib"})


def write_capture(directory: Path, found: Iterator[Record]) -> None:
    """A closed capture of these."""
    write_all(directory, header, found, Limits())


def measure_store(directory: Path, calls: int) -> list[dict[str, Any]]:
    """Describing, the store, and what one would write without it: a plain file of lines, and one stream of zstd.

    Everything is made durable once, at its end.
    """
    begun = time.perf_counter()
    lines = [records.encode(record) for record in traffic(calls)]
    described = time.perf_counter() - begun
    raw = sum(map(len, lines))
    found = [{"what": "describe and encode", "write_s": described}]
    for what, write, read in (
        ("the capture", _write_ours, _read_ours),
        ("plain lines", _write_plain, _read_plain),
        ("one zstd stream", _write_stream, _read_stream),
    ):
        path = directory / what.replace(" ", "-")
        row: dict[str, Any] = {"what": what, "write_s": _seconds(lambda: write(path, lines))}  # noqa: B023 -- at once
        row["read_s"] = _seconds(lambda: read(path, len(lines)))  # noqa: B023 -- at once
        row["bytes"] = sum(f.stat().st_size for f in path.iterdir()) if path.is_dir() else path.stat().st_size
        found.append(row)
    ours = directory / "the-capture"
    found[1]["verify_s"] = _seconds(lambda: _verify(ours))
    return [row | {"records": len(lines), "raw_bytes": raw} for row in found]


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _write_ours(path: Path, lines: list[bytes]) -> None:
    writer = Writer(path, header, Limits(), time.monotonic)
    for first in range(0, len(lines), frames.RECORDS):
        writer.write(lines[first : first + frames.RECORDS], first + 1)
    after = len(lines) + 1
    writer.close(records.encode(End(after, "0", "0", len(lines))), after)


def _read_ours(path: Path, count: int) -> None:
    damage: list[str] = []
    assert sum(1 for _ in open_capture(path).read(damage.append)) == count + 2  # header and end
    assert not damage


def _verify(path: Path) -> None:
    assert verify(open_capture(path)).state == "closed"


def _write_plain(path: Path, lines: list[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fdatasync(file.fileno())


def _read_plain(path: Path, count: int) -> None:
    with path.open("rb") as file:
        assert sum(1 for _ in map(records.decode, file)) == count


def _write_stream(path: Path, lines: list[bytes]) -> None:
    with path.open("wb") as file:
        with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as stream:
            for line in lines:
                stream.write(line)
        file.flush()
        os.fdatasync(file.fileno())


def _read_stream(path: Path, count: int) -> None:
    with path.open("rb") as packed, io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed)) as file:
        assert sum(1 for _ in map(records.decode, file)) == count
