"""Captures in the forms of other tools: bus messages for Wireshark and Bustle, plain lines for everything else.

A pcap shows what came to the doors, whatever door it was, as the bus would carry it: callers and daemons have made-up
unique names, values are the redacted ones. What cannot be made into a message is counted, by why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import BinaryIO, Final, NamedTuple

from bridges import dbus_values, xmlrpc_values
from bridges.capture import records, typed
from bridges.capture.records import Complete, Header, Leg, Record, Reply, Request
from bridges.capture.store import Place
from bridges.dbus_translation import MethodForm, Translation
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.interfaces.model import InterfaceError, Method
from dbus_side import frames, names, wire
from dbus_side import pcap as files
from dbus_side.errors import BusError

OPEN_LIMIT: Final = 65536
"""Calls whose answer is waited for; beyond, the answer of the oldest is left out."""

_LAST: Final = 2**32 * 1_000_000_000  # nanoseconds: the file counts seconds in 32 bits


class _Open(NamedTuple):
    """A call that was written: the message, and what its answer is made with."""

    head: wire.Head
    method: Method
    form: MethodForm


class _LeftOut(Exception):
    """A record that no message can be made of; the text says why."""


def lines(found: Iterable[tuple[Place, Record]], out: BinaryIO) -> int:
    """Writes the records as JSON Lines; how many there are."""
    written = 0
    for _, record in found:
        out.write(records.encode(record))
        written += 1
    return written


def pcap(found: Iterable[tuple[Place, Record]], out: BinaryIO, note: Callable[[str], None]) -> int:
    """Writes calls and answers as a pcap file of bus messages; how many. What was left out goes to `note`, by why."""
    writer = files.Writer(out)
    messages = _Messages()
    written, left_out = 0, Counter[str]()
    for _, record in found:
        if isinstance(record, Header):
            messages.dialects = record.dialects
        if not isinstance(record, Request | Reply):
            continue
        try:
            if record.leg not in (Leg.CALLER, Leg.OBSERVED):
                raise _LeftOut("behind the bridge")
            time = _time(record)
            data = messages.request(record) if isinstance(record, Request) else messages.reply(record)
        except _LeftOut as reason:
            left_out[str(reason)] += 1
        except (Fault, BusError, dbus_values.Mismatch, xmlrpc_values.Mismatch):
            left_out["a value that the bus cannot carry"] += 1
        else:
            writer.write(time, data)
            written += 1
    for why, count in sorted(left_out.items()):
        note(f"{count:,} records were left out: {why}")
    return written


def _time(record: Request | Reply) -> int:
    text = record.ts
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < _LAST):
        raise _LeftOut("its time is none that the file can hold")
    return int(text)


class _Messages:
    """Makes messages of records. `dialects` are those of the capture's header."""

    def __init__(self) -> None:
        self.dialects: dict[str, str] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._open: dict[int, _Open] = {}
        self._serial = 0

    def request(self, record: Request) -> bytes:
        method, form = self._method(record)
        if record.arguments is None:
            raise _LeftOut(f"arguments are not there: {record.complete}")
        body = form.write_arguments(typed.read_arguments(method, record.arguments))
        head = wire.Head(
            kind=frames.METHOD_CALL,
            serial=self._next_serial(),
            reply_serial=0,
            sender=self._name(record.door, record.conn),
            destination=names.service_name(record.service),
            path=form.path,
            interface=form.interface,
            member=form.member,
            error_name="",
            reply_expected=True,
        )
        data = wire.write(head, form.input_signature, body)
        if len(self._open) >= OPEN_LIMIT:
            del self._open[next(iter(self._open))]
        self._open[record.seq] = _Open(head, method, form)
        return data

    def reply(self, record: Reply) -> bytes:
        asked = self._open.pop(record.re, None)
        if asked is None:
            raise _LeftOut("the request was left out")
        if record.complete is not Complete.COMPLETE:
            raise _LeftOut(f"the answer is not there: {record.complete}")
        kind, error_name = frames.METHOD_RETURN, ""
        if record.outcome == records.ANSWERED:
            signature = asked.form.output_signature
            body = asked.form.write_result(typed.read(asked.method.result, record.result))
        elif record.fault is not None:
            refusal = asked.form.write_fault(typed.read_fault(asked.method, record.fault))
            kind, error_name, signature, body = frames.ERROR, refusal.name, refusal.signature, refusal.body
        else:
            raise _LeftOut(f"the answer is not there: {record.outcome}")
        head = wire.Head(
            kind=kind,
            serial=self._next_serial(),
            reply_serial=asked.head.serial,
            sender=self._name("", record.service),
            destination=asked.head.sender,
            path="",
            interface="",
            member="",
            error_name=error_name,
            reply_expected=False,
        )
        return wire.write(head, signature, body)

    def _method(self, record: Request) -> tuple[Method, MethodForm]:
        try:
            translation = _translation(record.service, self.dialects.get(record.service, ""))
        except InterfaceError:
            raise _LeftOut("the service is not written down") from None
        method = translation.service.method(record.method)
        if method is None:
            raise _LeftOut("the method is not written down")
        return method, translation.of(method)

    def _name(self, door: str, conn: str) -> str:
        """A made-up unique name of a caller's connection, or of the daemon behind a service (no door)."""
        return self._names.setdefault((door, conn), f":1.{len(self._names) + 1}")

    def _next_serial(self) -> int:
        self._serial = self._serial % 0xFFFF_FFFF + 1
        return self._serial


@cache
def _translation(service: str, dialect: str) -> Translation:
    return Translation(model.load_dialect(service, dialect))
