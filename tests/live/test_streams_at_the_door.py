"""HTTP that is no call, at xapi's door: passed on while the legacy daemon rules, and what a move does to it."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from tests.fixtures_toolstack import Toolstack

PATIENCE = 60
MEGABYTES = 24

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def xapi(toolstack: Toolstack) -> Toolstack:
    """xapi behind the bridge, and one on the bus that could take over."""
    await toolstack.start_xapi("relay")
    await toolstack.start_xapi_candidate()
    return toolstack


class Client:
    """One connection to the door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, host: Toolstack) -> Client:
        return cls(*await asyncio.open_unix_connection(str(host.path("xapi"))))

    async def head(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


async def test_an_export_and_an_import(xapi: Toolstack) -> None:
    """Both have every byte; the answer's head is the daemon's own."""
    client = await Client.connect(xapi)
    size = MEGABYTES << 20
    client.writer.write(b"GET /export?bytes=%d HTTP/1.0\r\n\r\n" % size)
    head = await client.head()
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"%d" % size in head
    data = await client.rest()
    assert len(data) == size
    client.close()
    client = await Client.connect(xapi)
    client.writer.write(b"PUT /import HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    client.writer.write(data)
    assert (await client.head()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(await client.rest()) == {"bytes": size, "sha256": hashlib.sha256(data).hexdigest()}
    client.close()
    await xapi.until_in_flight(0)


async def test_a_console_ends_with_a_move(xapi: Toolstack) -> None:
    """Raw bytes both ways after xapi's CONNECT; a move does not wait for whoever looks at a screen."""
    client = await Client.connect(xapi)
    client.writer.write(b"CONNECT /console?session_id=x HTTP/1.0\r\n\r\n")
    assert b" 200 OK" in await client.head()
    client.writer.write(b"keys\0\xff")
    assert await client.reader.readexactly(6) == b"keys\0\xff"
    await xapi.until_in_flight(1)
    await xapi.stage("xapi", "live")
    assert await client.rest() == b""
    client.close()


async def test_an_import_is_waited_for(xapi: Toolstack) -> None:
    """A move in the middle of it is refused; nothing of it is lost; afterwards the service moves."""
    client = await Client.connect(xapi)
    client.writer.write(b"PUT /import HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
    await xapi.until_in_flight(1)
    answer = await xapi.ask_stage("xapi", "live")
    assert not answer["ok"]
    assert "1 calls are still in flight" in str(answer["error"])
    client.writer.write(b"def")
    await client.head()
    assert json.loads(await client.rest())["bytes"] == 6
    client.close()
    await xapi.until_in_flight(0)
    await xapi.stage("xapi", "live")
    client = await Client.connect(xapi)
    client.writer.write(b"GET /export?bytes=10 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.head()).startswith(b"HTTP/1.1 403 ")
    client.close()


async def test_a_stream_without_a_daemon(xapi: Toolstack) -> None:
    """relay, and the legacy daemon is gone: a page of xapi's, and the next one works when it is back."""
    await xapi.end_legacy("xapi")
    client = await Client.connect(xapi)
    client.writer.write(b"GET /rrd_updates HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.head()).startswith(b"HTTP/1.1 500 ")
    client.close()
