"""The running capture of this bridge: what taps hand over becomes records, in slices of time that callers do not miss.

One capture at a time holds all services that are under capture, so that their order shows. The queue before it is
bounded: what does not fit is dropped and counted, in a `lost` record and in the status. A write that fails is counted
the same way, and the next is tried. The key behind the tokens is made for the capture and never leaves this process.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridges.capture import records
from bridges.capture.describing import Describer, Heard, Seen
from bridges.capture.frames import FRAME_BYTES, RECORDS
from bridges.capture.headers import header_of
from bridges.capture.messages import Late
from bridges.capture.records import End, Flip, Header, Lost
from bridges.capture.redaction import Redactor
from bridges.capture.store import CaptureError, find
from bridges.capture.taps import Clock, Entered, Event, Missed, Tap
from bridges.capture.writing import Limits, Writer
from bridges.dbus_translation import Translation
from bridges.interfaces.model import Service
from bridges.pacing import GivingWay, Pace
from xmlrpc_gateway.callers import command_of
from xmlrpc_gateway.http_messages import Peer

LOG: Final = logging.getLogger("bridges.capture")

QUEUE_LIMIT: Final = 16384
QUEUE_BYTES: Final = 64 * 1024 * 1024
SHARE: Final = 0.15
# Events after which what was lost is told, and whoever wants to stop the capture gets his turn.
BATCH: Final = 1024
POLL_SECONDS: Final = 0.02
FLUSH_SECONDS: Final = 1.0
# Describing a larger message is done beside the event loop.
LARGE_BYTES: Final = 64 * 1024

CLOCK: Final = Clock(time.time_ns, time.monotonic_ns)
_UNKNOWN: Final = "request not known"


class CaptureRefused(Exception):
    """A capture that cannot be started or stopped now; the text says why."""


class _Source(NamedTuple):
    """What is needed to read a service's messages."""

    tap: Tap
    service: Service
    dialect: str
    on_bus: Translation


@dataclass(slots=True)
class _Running:
    """The capture that is being written.

    `lines` wait to be written; `telling` says which of them are `lost` records, and of what. `told` has what such
    records were made of, `lost` what they have to be made of.
    """

    directory: Path
    writer: Writer
    redactor: Redactor
    describers: dict[str, Describer] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    first: int = 1
    seq: int = 1
    bytes: int = 0
    since: float = 0.0
    synced: float = 0.0
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    telling: dict[int, tuple[tuple[str, str], int]] = field(default_factory=dict)
    trouble: str = ""
    commands: dict[int, str] = field(default_factory=dict)

    def command_of(self, pid: int) -> str:
        """As it was looked up last, since the last frame."""
        found = self.commands.get(pid)
        if found is None:
            found = self.commands[pid] = command_of(pid)
        return found

    @property
    def is_full(self) -> bool:
        """Whether a frame is."""
        return len(self.lines) >= RECORDS or self.bytes >= FRAME_BYTES


class Recorder:
    """The captures of one bridge, below a directory."""

    def __init__(self, directory: Path, limits: Limits, *, body_limit: int, clock: Clock = CLOCK) -> None:
        self._directory = directory
        self._limits = limits
        self._body_limit = body_limit
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        self._queue: deque[tuple[str, Event, int]] = deque()
        self._bytes = 0
        self._running: _Running | None = None
        self._giving_way = GivingWay()
        self._work = asyncio.Lock()
        self._begun = asyncio.Event()

    def tap(self, service: Service, dialect: str, on_bus: Translation) -> Tap:
        """A service's way in."""
        tap = Tap(service.name, self._clock, self._offer)
        self._sources[service.name] = _Source(tap, service, dialect, on_bus)
        return tap

    def _offer(self, service: str, event: Event, size: int) -> None:
        running = self._running
        if running is None:
            return
        if len(self._queue) >= QUEUE_LIMIT or self._bytes + size > QUEUE_BYTES:
            running.lost[service, records.QUEUE_FULL] += 1
            return
        self._queue.append((service, event, size))
        self._bytes += size

    # ---- switching

    async def start(self, services: list[str], name: str | None = None) -> Path:
        """Puts services under capture, in the running one or in a new one of that name. Raises CaptureRefused."""
        async with self._work:
            if running := self._running:
                if name is not None and name != running.directory.name:
                    raise CaptureRefused(f"{running.directory.name} is running: stop it first, or leave the name out")
                if already := [each for each in services if self._sources[each].tap.is_on]:
                    raise CaptureRefused(f"{', '.join(already)} is under capture already, in {running.directory.name}")
            else:
                now = datetime.fromtimestamp(self._clock.real() / 1e9, UTC)
                chosen = self._directory / (name or f"{now:%Y-%m-%dT%H-%M-%SZ}")
                self._running = running = await self._giving_way.in_thread(self._open, chosen)
                self._begun.set()
            for each in services:
                source = self._sources[each]
                running.describers[each] = Describer(
                    source.service, source.dialect, source.on_bus, running.redactor, self._body_limit
                )
                source.tap.open()
        return running.directory

    def _open(self, directory: Path) -> _Running:
        redactor = Redactor(secrets.token_bytes(32))
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            used = sum(file.stat().st_size for each in find(self._directory) for file in each.iterdir())
            left = self._limits.total_bytes - used
            if left < min(self._limits.segment_bytes, self._limits.total_bytes) // 4:
                text = f"the captures in {self._directory} take {used >> 20} MiB of {self._limits.total_bytes >> 20}"
                raise CaptureRefused(f"{text}: move or remove some, or raise capture.total_mib in the settings")
            header = self._header(redactor)
            # The segment that is written never goes, so it may not be all that is left.
            segment_bytes = min(self._limits.segment_bytes, left // 4)
            limits = self._limits._replace(segment_bytes=segment_bytes, total_bytes=left)
            writer = Writer(directory, header, limits, lambda: self._clock.mono() / 1e9)
        except (OSError, CaptureError) as error:
            if isinstance(error, FileExistsError) and directory.exists():
                raise CaptureRefused(f"{directory} is there already: choose another name") from None
            raise CaptureRefused(f"{directory} cannot be written: {error}") from None
        return _Running(directory, writer, redactor)

    def _header(self, redactor: Redactor) -> Callable[[int, str], Header]:
        """Makes the header of each segment."""
        host, boot = self._host(), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        dialects = {name: source.dialect for name, source in self._sources.items()}

        def header(segment: int, chain: str) -> Header:
            now = self._clock.real(), self._clock.mono()
            return header_of(redactor, dialects, "bridge", segment, chain, host=host, boot=boot, now=now)

        return header

    def _host(self) -> str:
        """The random id of this host, made once."""
        file = self._directory / "host-id"
        with suppress(FileNotFoundError):
            if host := file.read_text().strip():  # empty if the disk was full when it was made
                return host
        host = uuid.uuid4().hex[:16]
        file.write_text(f"{host}\n")
        return host

    async def stop(self, services: list[str] | None = None, why: str = "stopped") -> tuple[Path, list[str]]:
        """Ends the capture of these services, or of all; with the last of them the capture is closed.

        Gives its directory and the services. Raises CaptureRefused.
        """
        if (running := self._running) is None:
            raise CaptureRefused("no capture is running")
        on = [name for name, source in self._sources.items() if source.tap.is_on]
        wanted = on if services is None else services
        if strange := [name for name in wanted if name not in on]:
            raise CaptureRefused(f"{', '.join(strange)} is not under capture; under capture: {', '.join(on)}")
        for name in wanted:
            self._sources[name].tap.close()
        async with self._work:
            if self._running is running:
                await self._take(running, len(self._queue), Pace(1.0))
                await self._flush(running)
                if not any(source.tap.is_on for source in self._sources.values()):
                    await self._close(running, why)
        return running.directory, wanted

    async def _close(self, running: _Running, why: str) -> None:
        await self._flush(running)  # what was lost by the write before
        self._running = None
        self._begun.clear()
        end = End(running.seq, str(self._clock.real()), str(self._clock.mono()), running.writer.records, why)
        try:
            await self._giving_way.in_thread(running.writer.close, records.encode(end), running.seq)
        except OSError as error:
            LOG.error("capture %s is not closed orderly: %s", running.directory, error)
            raise CaptureRefused(f"{running.directory} has ended, but is not closed orderly: {error}") from None

    def status(self) -> dict[str, Any] | None:
        """JSON-ready; None while nothing is captured. `pending` events wait to be written."""
        if (running := self._running) is None:
            return None
        lost: dict[str, dict[str, int]] = {}
        for (service, why), count in running.lost.items():
            lost.setdefault(service, {})[why] = count
        return {
            "capture": running.directory.name,
            "directory": str(running.directory),
            "services": [name for name, source in self._sources.items() if source.tap.is_on],
            "records": running.writer.records,
            "pending": len(self._queue) + len(running.lines),
            "lost": lost,
            "trouble": running.trouble,
        }

    def status_of(self, service: str) -> dict[str, Any]:
        """What the operator sees of one service, JSON-ready: nothing while it is not under capture."""
        running = self._running
        if running is None or not self._sources[service].tap.is_on:
            return {}
        lost = {why: count for (of, why), count in running.lost.items() if of in ("", service)}
        return {"capture": {"name": running.directory.name, "lost": lost, "trouble": running.trouble}}

    # ---- the work

    async def run(self) -> None:
        """Writes what was handed over, until it is cancelled; a capture that runs then is closed."""
        pace = Pace(SHARE)
        try:
            while True:
                await self._begun.wait()
                # A round is never cut off: its thread would go on with the writer, beside the one that closes.
                await asyncio.shield(asyncio.create_task(self._round(pace), name="capture round"))
                await asyncio.sleep(POLL_SECONDS)
        finally:
            with suppress(CaptureRefused):
                await self.stop(why="the bridge ended")

    async def _round(self, pace: Pace) -> None:
        """Records are written when a frame is full, or a second has passed."""
        async with self._work:
            if (running := self._running) is None:
                return
            await self._take(running, min(len(self._queue), BATCH), pace)
            self._tell_lost(running)
            now = time.monotonic()
            if running.lines and now - running.since > FLUSH_SECONDS:
                await self._write(running)
            if now - running.synced > FLUSH_SECONDS:
                await self._sync(running)

    async def _take(self, running: _Running, count: int, pace: Pace) -> None:
        """So many events become records."""
        for _ in range(count):
            service, event, size = self._queue.popleft()
            self._bytes -= size
            began = time.monotonic()
            if size < LARGE_BYTES:
                found = self._describe(running, service, event)
            else:
                found = await self._giving_way.in_thread(self._describe, running, service, event)
            if isinstance(found, bytes):
                self._add(running, found)
            else:
                running.lost[service, found] += 1
            await pace.spent(time.monotonic() - began)
            if running.is_full:  # compressed in a thread, which holds up nobody
                await self._write(running)

    def _describe(self, running: _Running, service: str, event: Event) -> bytes | str:
        """The next record, encoded; or why there is none. It may be in a thread of its own: nothing is counted here."""
        try:
            describer = running.describers[service]
            record: records.Record | None
            if isinstance(event, Seen | Heard) and isinstance(event.message, Late):
                event = event._replace(message=event.message.read())
            if isinstance(event, Entered):
                times = str(event.ts), str(event.mono)
                record = Flip(running.seq, *times, service, event.origin, event.target, event.epoch)
            elif isinstance(event, Missed):
                record = Lost(running.seq, str(event.ts), str(event.mono), 0, event.why, service)
            elif isinstance(event, Seen):
                if isinstance(event.peer, Peer):
                    event = event._replace(command=running.command_of(event.peer.pid))
                record = describer.request(event, running.seq)
            else:
                record = describer.reply(event, running.seq)
            # Without one: its request was dropped, or was there before the capture began.
            return _UNKNOWN if record is None else records.encode(record)
        except Exception:
            LOG.exception("%s: what was captured could not be described", service)
            return records.DEFECT

    def _add(self, running: _Running, line: bytes) -> None:
        if not running.lines:
            running.first, running.since = running.seq, time.monotonic()
        running.lines.append(line)
        running.bytes += len(line)
        running.seq += 1

    def _tell_lost(self, running: _Running) -> None:
        """What was lost since it was told last, as records."""
        if removed := running.writer.take_removed():
            count, why = removed
            running.lost["", why] += count
        for key, count in list(running.lost.items()):
            if missing := count - running.told[key]:
                running.told[key] = count
                service, why = key
                times = str(self._clock.real()), str(self._clock.mono())
                running.telling[len(running.lines)] = key, missing
                self._add(running, records.encode(Lost(running.seq, *times, missing, why, service)))

    async def _flush(self, running: _Running) -> None:
        self._tell_lost(running)
        if running.lines:
            await self._write(running)

    async def _write(self, running: _Running) -> None:
        lines, telling, writer = running.lines, running.telling, running.writer
        running.lines, running.telling, running.bytes = [], {}, 0
        running.commands.clear()
        before = writer.records
        try:
            await self._giving_way.in_thread(writer.write, lines, running.first)
        except Exception as error:  # a full disk or a defect: the next is tried
            written = writer.records - before
            missing = len(lines) - written
            for place, (key, count) in telling.items():
                if place >= written:  # is told again, and is no loss itself
                    running.told[key] -= count
                    missing -= 1
            if missing:
                running.lost["", records.DISK] += missing
            self._note_trouble(running, error)
        else:
            running.trouble = ""

    async def _sync(self, running: _Running) -> None:
        """Also while nothing comes: segments age."""
        running.synced = time.monotonic()
        try:
            await self._giving_way.in_thread(running.writer.sync)
        except Exception as error:
            self._note_trouble(running, error)

    @staticmethod
    def _note_trouble(running: _Running, error: Exception) -> None:
        if not running.trouble:
            lost = running.lost["", records.DISK]
            LOG.error("capture %s cannot be written, %d records are lost by it: %s", running.directory, lost, error)
        running.trouble = str(error) or type(error).__name__
