"""Calls of services found in a file of captured bus messages (`dbus-monitor --pcap`, `busctl capture`, Wireshark).

What this cannot carry
    * a message that was cut (busctl: 4096 bytes unless told otherwise): `complete` is CUT, nothing of it is typed
    * calls to a daemon by its unique name, and to names that are no service's: counted
    * what the bodies of such messages hold: they are not read
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridges.calls import Door
from bridges.capture.imports import Asked, Found, Imported, Maker, Note, Pending, Places, Spoken, imported
from bridges.capture.messages import BusAnswer, BusCall, BusFailure
from bridges.capture.records import ANSWERED, Complete, Fault, Leg, Record
from bridges.capture.store import CaptureError
from bridges.dbus_translation import MethodForm, Translation
from bridges.faults import FROM_DBUS, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Method
from dbus_side import frames, names, pcap, wire
from dbus_side.errors import BusRefused
from dbus_side.pcap import Packet, PcapCut, PcapInvalid

SOURCE: Final = "D-Bus capture"

_FAULT: Final = "fault"
_KINDS: Final = {
    frames.METHOD_CALL: "calls of others",
    frames.METHOD_RETURN: "answers to others",
    frames.ERROR: "errors to others",
    frames.SIGNAL: "signals",
}

_Key = tuple[str, int]


def dbus_capture(path: Path, note: Note, services: Iterable[str] | None = None) -> Imported:
    """The calls to services in a pcap or pcapng file; `services` are those that are looked for, by default all.

    Raises CaptureError and OSError, now or while the records are read.
    """
    wanted = tuple(model.services() if services is None else services)
    maker = Maker()
    dialects = {name: model.dialects(name)[0] for name in wanted}
    return imported(SOURCE, maker, dialects, _Import(path, note, maker, wanted).run())


class _Target(NamedTuple):
    """The method that a call names: `form` is how it looks on the bus."""

    spoken: Spoken
    method: Method
    form: MethodForm


class _Interfaces:
    """The methods of one service by interface and member, those of its older dialect included; found when asked for."""

    def __init__(self, service: str) -> None:
        self.name = service
        self._spoken: list[tuple[Spoken, Translation]] = []
        self._known: dict[tuple[str, str, str], _Target | None] = {}

    def find(self, path: str, interface: str, member: str) -> _Target | None:
        """None for what is not written down. A call may leave its interface out."""
        key = (path, interface, member)
        if key not in self._known:
            self._known[key] = self._look(*key)
        return self._known[key]

    def _look(self, path: str, interface: str, member: str) -> _Target | None:
        if not self._spoken:
            for dialect in model.dialects(self.name):
                service = model.load_dialect(self.name, dialect)
                self._spoken.append((Spoken(service, dialect), Translation(service)))
        for spoken, translation in self._spoken:
            if (method := translation.find(path, interface, member)) is not None:
                return _Target(spoken, method, translation.of(method))
        return None


class _Import:
    """One import."""

    def __init__(self, path: Path, note: Note, maker: Maker, services: Iterable[str]) -> None:
        self._path = path
        self._note = note
        self._maker = maker
        self._interfaces = {names.service_name(name): _Interfaces(name) for name in services}
        self._pending: Pending[_Key, tuple[Asked, _Target | None]] = Pending()
        self._strange = Places(note)
        self._others: Counter[str] = Counter()
        self._found = 0
        self._packets = 0
        self._last = 0

    def run(self) -> Iterator[Record]:
        try:
            with self._path.open("rb") as stream:
                for packet in pcap.read(stream):
                    yield from self._records(packet)
        except PcapCut as cut:
            if not self._packets:
                raise CaptureError(f"{self._path}: {cut}", 3 if cut.offset == 0 else 2) from None
            self._note(f"{self._path}: {cut}: what stands before was imported")
            yield self._maker.lost(0, "the file ends within a message", self._last)
        except PcapInvalid as error:
            raise CaptureError(f"{self._path}: {error}") from None
        self._strange.tell_rest("{} packets in all are no messages of D-Bus: they were skipped")
        if self._strange.count:
            yield self._maker.lost(0, "packets that are no messages", self._last)
        if self._others:
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(self._others.items()))
            self._note(f"{self._path}: not imported, since it is no call of a service: {told}")
        if not self._found:
            raise CaptureError(f"{self._path}: no call of a service is in this file", 3)

    def _records(self, packet: Packet) -> Iterator[Record]:
        time = self._last if packet.time is None else packet.time
        self._last = max(self._last, time)
        self._packets += 1
        try:
            head = wire.read_head(packet.data)
        except wire.MessageUnreadable as error:
            self._strange.tell(f"{self._path} at byte {packet.offset}: {error}")
            return
        interfaces = self._interfaces.get(head.destination)
        if head.kind == frames.METHOD_CALL and interfaces is not None:
            if head.interface.startswith("org.freedesktop.DBus."):
                self._others["calls of the bus's own interfaces"] += 1
                return
            self._found += 1
            yield self._request(packet, head, interfaces, time)
        elif head.kind in (frames.METHOD_RETURN, frames.ERROR):
            key = (head.destination, head.reply_serial)
            if (known := self._pending.take(key)) is not None:
                yield from self._reply(packet, head, *known, time)
                return
            self._others[_KINDS[head.kind]] += 1
        else:
            self._others[_KINDS.get(head.kind, "messages of no known kind")] += 1

    def _request(self, packet: Packet, head: wire.Head, interfaces: _Interfaces, time: int) -> Record:
        found = Found(time, Leg.CALLER, Door.BUS, conn=head.sender, peer=head.sender)
        target = interfaces.find(head.path, head.interface, head.member)
        asked: Asked | None = None
        complete, text = Complete.UNREAD, ""
        if target is None:
            text = "no method of the service"
        elif len(packet.data) < packet.size:
            complete, text = Complete.CUT, _cut(packet)
        elif (read := _read_body(packet)) is None:
            text = "its body cannot be read"
        elif read[0] != target.form.input_signature:
            text = f"its signature is {read[0]!r}, declared is {target.form.input_signature!r}"
        else:
            message = BusCall(target.form, head.destination, head.sender, head.serial, read[1])
            asked = self._maker.request(target.spoken, message, target.method, found)
        if asked is None:
            asked = self._maker.bare_request(
                interfaces.name,
                head.member,
                found,
                complete=complete,
                size=packet.size,
                note=text,
                method=None if target is None else target.method,
            )
        if head.reply_expected:
            self._pending.put((head.sender, head.serial), (asked, target))
        return asked.record

    def _reply(
        self, packet: Packet, head: wire.Head, asked: Asked, target: _Target | None, time: int
    ) -> Iterator[Record]:
        is_cut = len(packet.data) < packet.size
        read = None if is_cut or target is None or asked.describer is None else _read_body(packet)
        if read is None or target is None:
            fault = _fault(head, target) if head.kind == frames.ERROR else None
            yield self._maker.bare_reply(
                asked,
                ANSWERED if fault is None else _FAULT,
                time,
                complete=Complete.CUT if is_cut else Complete.UNREAD,
                size=packet.size,
                note=_cut(packet) if is_cut else "not read",
                fault=fault,
            )
            return
        message: BusAnswer | BusFailure = BusAnswer(target.form, *read)
        if head.kind == frames.ERROR:
            message = BusFailure(target.form, BusRefused(head.error_name, *read))
        reply = self._maker.reply(asked, message, time)
        if reply is not None:
            yield reply


def _read_body(packet: Packet) -> tuple[str, tuple[Any, ...]] | None:
    try:
        return wire.read_body(packet.data)
    except wire.MessageUnreadable:
        return None


def _cut(packet: Packet) -> str:
    return f"the file has {len(packet.data)} of {packet.size} bytes"


def _fault(head: wire.Head, target: _Target | None) -> Fault:
    """What an error's name alone says."""
    if target is None:
        return Fault(str(FROM_DBUS.get(head.error_name, Kind.UNDECLARED)))
    found = target.form.read_fault(BusRefused(head.error_name))
    is_declared = found.code in target.spoken.service.errors
    return Fault(str(Kind.DECLARED if is_declared else found.kind), found.code if is_declared else "")
