"""A describer and what doors would hand it, for the tests of captures."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any
from urllib.parse import quote

from bridges import dbus_translation
from bridges.calls import Door
from bridges.capture import records
from bridges.capture.describing import Describer, Heard, Seen
from bridges.capture.messages import BusCall, DatagramCall, Message, StoreCall, Tongue
from bridges.capture.records import Leg
from bridges.capture.redaction import Redactor
from bridges.interfaces import model
from bridges.interfaces.model import Method
from tests.bridges.fidelity_forms import Form
from xmlrpc_gateway.http_messages import Headers, HttpRequest, Peer

PEER = Peer(0, 0, 4711)
_DOORS = {BusCall: Door.BUS, StoreCall: Door.XENSTORE, DatagramCall: Door.DATAGRAM}


class Teller:
    """One service's describer; every call of `ask` is another call unless it is named."""

    def __init__(self, stem: str, **limits: int) -> None:
        self.service = model.load(stem)
        self.on_bus = dbus_translation.Translation(self.service)
        self.describer = Describer(self.service, self.service.dialect, self.on_bus, Redactor(b"k" * 32), **limits)
        self.seq = itertools.count(1)
        self.ids = itertools.count(1)

    def ask(
        self,
        message: Message,
        *,
        door: Door | None = None,
        call: str = "",
        leg: Leg = Leg.CALLER,
        peer: Peer | str | None = None,
        method: Method | None = None,
        mono: int = 1_000,
    ) -> records.Request:
        """The record of a request, as a reader of the capture finds it."""
        found = door or _DOORS.get(type(message), Door.HTTP)
        seen = Seen(
            call or f"new {next(self.ids)}", leg, found, message, 5, mono, "legacy", "relay", 3, "9", peer, method, ""
        )  # fmt: skip
        record = self.describer.request(seen, next(self.seq))
        assert records.decode(records.encode(record)) == record
        return record

    def answer(
        self, call: records.Request | str, message: Message, leg: Leg = Leg.CALLER, mono: int = 3_000_000
    ) -> records.Reply | None:
        """The record of its answer."""
        name = call if isinstance(call, str) else call.id
        record = self.describer.reply(Heard(name, leg, message, 6, mono, "legacy", 3), next(self.seq))
        assert record is None or records.decode(records.encode(record)) == record
        return record

    def exchange(self, asked: Message, answer: Message, **how: Any) -> tuple[records.Request, records.Reply]:
        """A call with its answer."""
        request = self.ask(asked, **how)
        reply = self.answer(request, answer)
        assert reply is not None
        assert reply.re == request.seq
        return request, reply


def tongue(form: Form) -> Tongue:
    return form.encoding, form.translation


def post(body: bytes, target: str = "/", headers: Headers = (("Host", "x"), ("User-Agent", "y"))) -> HttpRequest:
    return HttpRequest("POST", target, "1.1", headers, body, PEER)


def method_of(stem: str, name: str) -> Method:
    found = model.load(stem).method(name)
    assert found is not None
    return found


def spellings(secret: str) -> dict[str, bytes]:
    """In how many ways a text may stand in a file."""
    raw = secret.encode()
    found = {
        "plain": raw,
        "JSON": json.dumps(secret)[1:-1].encode(),
        "JSON twice": json.dumps(json.dumps(secret)[1:-1])[1:-1].encode(),
        "URL": quote(secret, safe="").encode(),
        "hex": raw.hex().encode(),
        "base64": base64.b64encode(raw).rstrip(b"="),
        "backwards": raw[::-1],
    }
    for shift in (1, 2):  # where it stands behind something else
        found[f"base64 at {shift}"] = base64.b64encode(b"\0" * shift + raw)[4:-4]
    return {name: text for name, text in found.items() if len(text) >= 6}


def leaks(record: records.Record | None, secret: str) -> list[str]:
    """In which spellings a secret stands in a record's line."""
    line = b"" if record is None else records.encode(record)
    return [name for name, text in spellings(secret).items() if text in line]
