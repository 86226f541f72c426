"""The recorded xenstore sessions of squeezed, call by call, carried over the bus and back."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from bridges import xenstore_translation
from bridges.faults import Fault
from bridges.interfaces import model
from tests.bridges.fidelity_cases import Outcome, Proof, arguments_over_bus, fault_over_bus, result_over_bus
from tests.bridges.fidelity_recordings import lines
from xenstore_rpc.packets import Op, PacketReader
from xenstore_rpc.records import Request, Response

FILE: Final = "xenstore/squeezed-2012.jsonl"
STEMS: Final = ("squeezed", "squeezed-2012")


class Conversation(NamedTuple):
    """One call of a recorded session: what the client wrote, and what it read back."""

    name: str
    request: Request
    response: Response


@cache
def proofs_of_sessions() -> tuple[Proof, ...]:
    """Every request and every response, by both interfaces: each must come out as the same records."""
    return tuple(proof for stem in STEMS for call in conversations() for proof in _proofs(stem, call))


def conversations() -> Iterator[Conversation]:
    """The calls of every session: all operations with their replies, in order."""
    for line in lines(FILE):
        yield from _calls(line["exchange"], *(base64.b64decode(line[key]) for key in ("request", "response")))


def _calls(session: str, sent: bytes, received: bytes) -> Iterator[Conversation]:
    replies = [packet for packet in PacketReader().feed(received) if packet.op != Op.WATCH_EVENT]
    written: dict[str, dict[str, bytes]] = {}
    read: dict[str, dict[str, bytes]] = {}
    answered: list[str] = []
    for packet, reply in zip(PacketReader().feed(sent), replies, strict=True):
        path, _, value = packet.payload.partition(b"\0")
        parts = path.decode().removeprefix("/squeezed/rpc/").split("/")
        key = "/".join(parts[1:3])
        if parts[0] == "request" and packet.op == Op.MKDIR:
            written[key] = {}
        elif parts[0] == "request" and packet.op == Op.WRITE:
            written[key][parts[3]] = value
        elif parts[0] == "response" and packet.op == Op.DIRECTORY:
            answered.append(key)
        elif parts[0] == "response" and packet.op == Op.READ and len(parts) == 4:
            read.setdefault(key, {})[parts[3]] = reply.payload
    for number, key in enumerate(answered):
        function, request_id = key.split("/")
        request = Request(function, request_id, tuple(written[key].items()))
        yield Conversation(f"{session} {number} {function}", request, Response(tuple(read.get(key, {}).items())))


def _proofs(stem: str, call: Conversation) -> Iterator[Proof]:
    request, response = carried(stem, call)
    for part, out, original in (
        ("call", dict(request.arguments), dict(call.request.arguments)),
        ("reply", dict(response.results), dict(call.response.results)),
    ):
        outcome, why = (Outcome.SAME, "") if out == original else (Outcome.LOST, f"{original!r} came out as {out!r}")
        method = model.load(stem).by_xenstore_function.get(call.request.function)
        name = method.name if method is not None else ""
        yield Proof(FILE, call.name, part, stem, "xenstore", name, True, outcome, why)


def carried(stem: str, call: Conversation) -> tuple[Request, Response]:
    """Request and response after they were typed and on the bus; a request that is refused stays as it is."""
    service = model.load(stem)
    request, method, arguments = call.request, None, {}
    try:
        method = xenstore_translation.method_of(service, request)
        arguments = xenstore_translation.read_arguments(method, request)
        function, records = xenstore_translation.write_arguments(method, arguments_over_bus(stem, method, arguments))
        request = Request(function, request.request_id, tuple(records))
        result = xenstore_translation.read_response(service, method, arguments, call.response)
        return request, xenstore_translation.write_response(method, result_over_bus(stem, method, result))
    except Fault as fault:
        told = fault if method is None else fault_over_bus(stem, method, fault)
        return request, xenstore_translation.write_fault(service, arguments, told)
