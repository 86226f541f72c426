"""Long polls: many at once beside other calls, on both sides, as long as their callers are there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dbus_side.bus import Bus
from tests.fixtures_toolstack import Toolstack

NAME, PATH = "org.xen.xcp.xapi", "/org/xen/xcp/xapi"
MANY = 150  # more than the bridge has connections for other calls to one daemon
PATIENCE = 40

pytestmark = pytest.mark.timeout(180)


async def post(host: Toolstack, method: str, *params: Any) -> Any:
    """A JSON-RPC call on a connection of its own."""
    body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        writer.write(b"POST /jsonrpc HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        head, _, reply = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200"), head
        return json.loads(reply)
    finally:
        writer.close()


async def result(host: Toolstack, method: str, *params: Any) -> Any:
    reply = await post(host, method, *params)
    assert "error" not in reply, reply
    return reply["result"]


@pytest.fixture(params=["relay", "live"])
async def xapi(toolstack: Toolstack, request: pytest.FixtureRequest) -> Toolstack:
    """xapi in a stage of the bridge."""
    await toolstack.start_xapi(request.param)
    return toolstack


async def test_many_waiters_hold_up_nobody(xapi: Toolstack) -> None:
    """All of them hear of a change; a call beside them is answered at once, and time-outs are their own."""
    session = await result(xapi, "session.login_with_password", "root", "xapi")
    (vm,) = await result(xapi, "VM.get_by_name_label", session, "vm1")
    token = (await result(xapi, "event.from", session, ["vm"], "", 1.0))["token"]
    waiters = [
        asyncio.create_task(result(xapi, "event.from", session, ["vm"], token, 60.0), name="waiter")
        for _ in range(MANY)
    ]
    await xapi.until_in_flight(MANY)
    async with asyncio.timeout(PATIENCE):
        nothing = await result(xapi, "event.from", session, ["sr"], token, 0.2)
        assert nothing["events"] == []
        await result(xapi, "VM.set_name_description", session, vm, "changed")
        batches = await asyncio.gather(*waiters)
    for batch in batches:
        assert any(event["snapshot"]["name_description"] == "changed" for event in batch["events"])
    assert await xapi.in_flight() == 0


async def test_a_wait_ends_with_its_caller(xapi: Toolstack) -> None:
    """A caller that leaves, over HTTP or on the bus, leaves no call behind."""
    session = await result(xapi, "session.login_with_password", "root", "xapi")
    token = (await result(xapi, "event.from", session, ["vm"], "", 1.0))["token"]
    waiter = asyncio.create_task(post(xapi, "event.from", session, ["vm"], token, 3600.0), name="waiter")
    await xapi.until_in_flight(1)
    waiter.cancel()
    await asyncio.wait([waiter])
    await xapi.until_in_flight(0)
    if xapi.stage_name == "live":
        return  # a bus caller talks to the bus daemon itself
    bus = await Bus.connect(xapi.bus.address)
    where = (NAME, f"{PATH}/event", f"{NAME}.event1", "From", "sassd")
    call = asyncio.create_task(bus.call(*where, (session, ["vm"], token, 3600.0), timeout=PATIENCE), name="bus waiter")
    await xapi.until_in_flight(1)
    call.cancel()
    await bus.close()
    await asyncio.wait([call])
    await xapi.until_in_flight(0)


async def test_a_move_ends_the_waits(toolstack: Toolstack) -> None:
    """They change nothing, so that a move need not wait for them: their callers are told to ask again."""
    await toolstack.start_xapi("relay")
    session = await result(toolstack, "session.login_with_password", "root", "xapi")
    token = (await result(toolstack, "event.from", session, ["vm"], "", 1.0))["token"]
    waiter = asyncio.create_task(post(toolstack, "event.from", session, ["vm"], token, 3600.0), name="waiter")
    await toolstack.until_in_flight(1)
    await toolstack.start_xapi_candidate()
    await toolstack.stage("xapi", "live")
    reply = await waiter
    assert reply["error"]["message"] == "INTERNAL_ERROR"
    assert "is being moved: the wait was ended, ask again" in reply["error"]["data"][0]
