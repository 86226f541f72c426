"""Our caller says what the client of 2012 said: recorded sessions, the store's side played back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from xenstore_rpc.connection import Store
from xenstore_rpc.packets import Op, Packet, PacketReader, encode
from xenstore_rpc.records import Response
from xenstore_rpc.rpc import Caller

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
RECORDING = Path(__file__).parent.parent / "golden" / "xenstore" / "squeezed-2012.jsonl"


def sessions() -> Iterator[pytest.param]:
    """The sessions that are calls: (packets of the client, packets of the store)."""
    for line in RECORDING.read_text().splitlines():
        record = json.loads(line)
        sent, received = (PacketReader().feed(base64.b64decode(record[side])) for side in ("request", "response"))
        if sent[0].op == Op.READ:
            yield pytest.param(sent, received, id=sent[2].payload.decode().split("/")[4] + "-" + record["exchange"][:4])


class PlayedStore:
    """Gives the recorded replies in order, each with the request id asked with, and the recorded events after it."""

    def __init__(self, packets: list[Packet]) -> None:
        self.asked: list[Packet] = []
        self._packets = packets
        self._reader = PacketReader()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            for packet in self._reader.feed(data):
                self.asked.append(packet)
                self._reply(packet.request_id, writer)

    def _reply(self, request_id: int, writer: asyncio.StreamWriter) -> None:
        reply = self._packets.pop(0)
        payload = b"%d" % os.getpid() if reply.op == Op.READ and len(self.asked) == 1 else reply.payload
        writer.write(encode(reply.op, request_id, reply.transaction, payload))
        while self._packets and self._packets[0].op == Op.WATCH_EVENT:
            writer.write(encode(*self._packets.pop(0)))


@pytest.mark.parametrize(("sent", "received"), list(sessions()))
async def test_caller_repeats_the_recorded_client(
    connected_to: Callable[[Handler], AbstractAsyncContextManager[Store]], sent: list[Packet], received: list[Packet]
) -> None:
    """Operations, their order, transactions and payloads are those of the recording, and so is the result."""
    function, request_id = sent[2].payload.rstrip(b"\0").decode().split("/")[4:6]
    arguments = []
    for packet in sent:
        if packet.op == Op.WRITE:
            path, _, value = packet.payload.partition(b"\0")
            arguments.append((path.decode().rpartition("/")[2], value))
    reads = [packet.payload for packet in received if packet.op == Op.READ][2:]
    names = next(packet.payload for packet in received if packet.op == Op.DIRECTORY).decode().split("\0")[:-1]
    played = PlayedStore(list(received))
    async with connected_to(played.serve) as store:
        response = await Caller(store, "squeezed").call(function, arguments, timeout=10, request_id=request_id)
    assert [packet._replace(request_id=0) for packet in played.asked] == sent
    assert response == Response(tuple(zip(names, reads, strict=True)))
