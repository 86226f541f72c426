"""relay: what passes is taken to the bus and back once it was answered, and passes whatever comes of that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from tests.live import ladder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures_host import Host

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("wide_terminal")]


async def test_everything_makes_its_round_trip(host: Host, callers: Any) -> None:
    """Calls at every door, right and wrong: as many round trips as calls, and all that passed comes back equal."""
    ladder.settle(host)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    bus = await Bus.connect(host.bus.address)
    try:
        await ladder.reads(callers, bus, 5)
        await ladder.writes(callers, bus)
    finally:
        await bus.close()
    wrong = await callers.rpc("memory", "reserve_memory", "d", "s", "-1")
    assert wrong["ErrorDescription"] == ["Invalid_memory_value", "-1"]
    assert (await ladder.framed(callers, "reserve_memory", "d", "s", -1))["error"] == ["Invalid_memory_value", -1]
    assert await callers.post("memory", b"no XML") == b""
    assert await callers.raw(host.path("memory.json"), b"%016d{}" % 2) == b""
    counts = await ladder.until(host, "round_trips", pending=0)
    found = await ladder.status(host)
    whole = found["observed"]["exchanges"]["complete"]
    assert whole > 0
    # What the legacy daemon closes its door to has no answer that could be compared.
    assert found["calls"]["admitted"] == 5 * 3 + 7 * 3 + 4
    assert counts["made"] == 5 * 3 + 7 * 3 + 2 + whole
    assert counts["same"] == counts["made"], counts
    assert counts["methods"]["get_host_reserved_memory"] == {"same": 15, "different": 0}
    code, output, _ = await host.cli("status")
    assert code == 0
    assert f"{counts['made']} made, {counts['same']} same, 0 different" in output


@asynccontextmanager
async def legacy_door(path: Path, answer: Callable[[bytes], bytes], *, is_framed: bool) -> AsyncIterator[None]:
    """A legacy daemon that answers a call's body with the body that a test wants, on one connection each."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if is_framed:
                body = await reader.readexactly(int(await reader.readexactly(16)))
                reply = answer(body)
                writer.write(b"%016d%s" % (len(reply), reply))
            else:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                assert length is not None, head
                reply = answer(await reader.readexactly(int(length[1])))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(reply), reply))
            await writer.drain()
        except asyncio.IncompleteReadError:  # somebody looked whether it listens
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield
    finally:
        server.close()


TEXT = "a text with \\u0000 in it"
FRAMED = b'{"result":"%s","error":null,"id":0}' % TEXT.encode()
TWICE = (
    b'<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success'
    b"</value></member><member><name>Value</name><value><struct>%s</struct></value></member></struct></value></param>"
    b"</params></methodResponse>"
)
QUERY = (
    b"<member><name>name</name><value>xenopsd</value></member>"
    b"<member><name>name</name><value>xenopsd again</value></member>"
)


async def test_what_the_bus_cannot_carry(host: Host, callers: Any) -> None:
    """It passes byte for byte and is counted with its place; the gate is red, and an operator moves nevertheless."""
    ladder.settle(host)
    host.settings.write_text(host.settings.read_text().replace('xenstore = "squeezed"\n', ""))
    await host.start_bridge()
    async with (
        legacy_door(host.path("memory.json"), lambda _body: FRAMED, is_framed=True),
        legacy_door(host.path("memory"), lambda _body: TWICE % QUERY, is_framed=False),
        legacy_door(host.path("xenopsd"), lambda _body: TWICE % QUERY, is_framed=False),
    ):
        await host.stage("squeezed", "relay")
        await host.stage("xenopsd", "relay")
        call = b'{"method":"get_diagnostics","params":["d"],"id":7}'
        reply = await callers.raw(host.path("memory.json"), b"%016d%s" % (len(call), call))
        assert reply == b"%016d%s" % (len(FRAMED), FRAMED)
        query = b"<methodCall><methodName>query</methodName><params><param><value><struct><member><name>debug_info"
        query += b"</name><value>d</value></member></struct></value></param></params></methodCall>"
        reply = await callers.post("xenopsd", query)
        assert reply.endswith(b"\r\n\r\n" + TWICE % QUERY)
        counts = await ladder.until(host, "round_trips", pending=0, made=1)
        assert counts["different"] == 1
        ((place, seen),) = counts["fields"].items()
        assert place == "get_diagnostics result"
        assert seen["count"] == 1
        assert "NUL" in seen["bus"]
        await host.until(
            lambda: "xenopsd query does not come back from the bus as it was: reply: " in host.log("bridge")
        )
        code, output, _ = await host.cli("status")
        assert "get_diagnostics result differs, 1 times" in output
        assert "query reply differs, 1 times" in output
        await host.start_bus_squeezed()
        await host.until_candidate()
        code, output, errors = await host.cli("stage", "squeezed", "shadow", "--reason", "week 2")
        assert code == 1
        assert "fail  round trips: 1 of 1 differ, most often get_diagnostics result" in output
        assert "squeezed stays relay: not through the gates: round trips (fail); or --override REASON" in errors
        anyway = ("--override", "nobody reads the diagnostics")
        code, output, errors = await host.cli("stage", "squeezed", "shadow", "--reason", "week 2", *anyway)
        assert code == 0, errors
        assert "squeezed: relay -> shadow, epoch 2" in output
        code, output, _ = await host.cli("audit", "squeezed")
        assert "round trips (fail); or --override REASON" in output
        assert "override: nobody reads the diagnostics" in output
        done: Any = (await host.control(verb="audit", service="squeezed"))["entries"]
        assert [(each["outcome"].partition(":")[0], each["override"]) for each in done[-2:]] == [
            ("refused", None),
            ("done", "nobody reads the diagnostics"),
        ]
        await host.stage("squeezed", "off")
        await host.stage("xenopsd", "off")
        await host.end("bridge")
