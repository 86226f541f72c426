"""xapi moves to the bus and back while clients call by XML-RPC, by JSON-RPC and on the bus."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from xml.sax.saxutils import escape

import pytest

from dbus_side.bus import Bus
from dbus_side.signatures import Variant
from tests.fixtures_toolstack import Toolstack

MOVES = 3
PATIENCE = 60

pytestmark = pytest.mark.timeout(240)
Login = Callable[[str], Awaitable[None]]


async def post(host: Toolstack, target: str, body: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        writer.write(f"POST {target} HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        async with asyncio.timeout(PATIENCE):
            head, _, reply = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200"), head
        return reply.decode()
    finally:
        writer.close()


async def test_every_login_is_executed_once(toolstack: Toolstack) -> None:
    """A login makes a session wherever it is executed: each is answered, and counted once on one of the sides."""
    host = toolstack
    await host.start_xapi("relay")
    await host.start_xapi_candidate()
    bus = await Bus.connect(host.bus.address)

    async def by_xml(token: str) -> None:
        params = "".join(f"<param><value>{escape(p)}</value></param>" for p in ("root", "xapi", "1.0", token))
        call = f"<methodName>session.login_with_password</methodName><params>{params}</params>"
        reply = await post(host, "/RPC2", f"<methodCall>{call}</methodCall>")
        assert "<value>Success</value>" in reply, reply

    async def by_json(token: str) -> None:
        call = {"jsonrpc": "2.0", "method": "session.login_with_password", "id": token}
        reply = json.loads(await post(host, "/jsonrpc", json.dumps({**call, "params": ["root", "xapi", "1.0", token]})))
        assert (reply["id"], "result" in reply) == (token, True), reply

    async def on_bus(token: str) -> None:
        name = "org.xen.xcp.xapi"
        options = {"version": Variant("s", "1.0"), "originator": Variant("s", token)}
        where = (name, "/org/xen/xcp/xapi/session", f"{name}.session1", "LoginWithPassword", "ssa{sv}")
        await bus.call(*where, ("root", "xapi", options), timeout=PATIENCE)

    stop = asyncio.Event()
    numbers = itertools.count()
    answered: list[str] = []

    async def keep_calling(login: Login) -> None:
        while not stop.is_set():
            token = f"{login.__name__}-{next(numbers)}"
            await login(token)
            answered.append(token)

    try:
        async with asyncio.TaskGroup() as callers:
            for login in (by_xml, by_xml, by_json, by_json, on_bus, on_bus):
                callers.create_task(keep_calling(login), name=login.__name__)
            for _ in range(MOVES):
                for stage in ("live", "relay"):
                    before = len(answered)
                    async with asyncio.timeout(PATIENCE):
                        while len(answered) < before + 100:  # noqa: ASYNC110 - other tasks' work
                            await asyncio.sleep(0.01)
                    await host.stage("xapi", stage)
            stop.set()
    finally:
        await bus.close()
    executed = {t: count for (method, t), count in host.executions().items() if method == "session.login_with_password"}
    assert {token: executed.get(token, 0) for token in answered} == dict.fromkeys(answered, 1)
    assert set(executed) == set(answered)
    assert min(host.sides()["legacy"], host.sides()["bus"]) > 100
