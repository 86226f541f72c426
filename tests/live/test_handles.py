"""Sessions and event tokens of xapi: what callers know instead, and what they meet when the process behind changes."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

import pytest
import XenAPI

from dbus_side.bus import Bus
from dbus_side.errors import BusError
from tests.fixtures_toolstack import Toolstack

NAME, PATH = "org.xen.xcp.xapi", "/org/xen/xcp/xapi"
REFERENCE = re.compile("OpaqueRef:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOKEN = re.compile("([0-9]{6})([0-9]{14}),0{20}")
VMS = 6  # that the example has when it is told to have 4
PATIENCE = 40

pytestmark = pytest.mark.timeout(180)


async def exchange(host: Toolstack, request: bytes, where: str = "") -> tuple[bytes, bytes]:
    """Head and body of what comes back for these bytes, at xapi's TCP port or at a socket of that name."""
    async with asyncio.timeout(PATIENCE):
        if where:
            reader, writer = await asyncio.open_unix_connection(str(host.path(where)))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        try:
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head, body
        finally:
            writer.close()


async def post(host: Toolstack, target: str, body: bytes, where: str = "") -> bytes:
    head, reply = await exchange(
        host, b"POST %s HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (target.encode(), len(body), body), where
    )
    assert b" 200 " in head, head
    return reply


def xml(method: str, *params: str) -> bytes:
    """A call whose parameters are texts."""
    written = "".join(f"<param><value>{escape(param)}</value></param>" for param in params)
    return f"<methodCall><methodName>{method}</methodName><params>{written}</params></methodCall>".encode()


async def ask(host: Toolstack, method: str, *params: Any, where: str = "") -> Any:
    """A result, or the failure's description in a list after "failed"."""
    call = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
    reply = json.loads(await post(host, "/jsonrpc", json.dumps(call).encode(), where))
    return ["failed", reply["error"]["message"], *reply["error"]["data"]] if "error" in reply else reply["result"]


async def login(host: Toolstack, where: str = "") -> str:
    session: str = await ask(host, "session.login_with_password", "root", "xapi", where=where)
    assert REFERENCE.fullmatch(session), session
    return session


async def handles(host: Toolstack) -> list[dict[str, Any]]:
    """`xcp-bridge handles xapi`."""
    status, output, errors = await host.cli("handles", "xapi", "--json")
    assert status == 0, errors
    rows: list[dict[str, Any]] = json.loads(output)["handles"]
    return rows


@pytest.fixture
async def bus(toolstack: Toolstack) -> AsyncIterator[Bus]:
    """A caller on the host's bus."""
    connection = await Bus.connect(toolstack.bus.address)
    yield connection
    await connection.close()


async def on_bus(bus: Bus, where: str, member: str, signature: str, *arguments: Any) -> Any:
    """The result of a call at a class of xapi on the bus."""
    reply = await bus.call(NAME, f"{PATH}/{where}", f"{NAME}.{where}1", member, signature, arguments, timeout=PATIENCE)
    return reply.body[0] if reply.body else None


@dataclass
class Recorder:
    """A legacy daemon that keeps what it is sent and says what a test wants it to."""

    answer: Callable[[bytes], bytes]
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *([0-9]+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            self.heads.append(head)
            self.bodies.append(body)
            said = self.answer(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Odd:  as it is\r\n\r\n%s" % (len(said), said))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a look at who listens
        finally:
            writer.close()


@pytest.fixture
async def recorder(toolstack: Toolstack) -> AsyncIterator[Recorder]:
    """A recorder in the place of the legacy xapi, and the bridge in front of it in relay."""
    recorder = Recorder(lambda _: b"")
    server = await asyncio.start_unix_server(recorder.serve, toolstack.path("xapi"))
    await toolstack.start_bridge()
    await toolstack.stage("xapi", "relay")
    yield recorder
    await toolstack.end("bridge")
    server.close()
    await server.wait_closed()


NATIVE = "OpaqueRef:00000000-1111-2222-3333-444444444444"
SUCCESS = "<value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name>"
GIVING = [
    f"<methodResponse><params><param>{SUCCESS}<value>{NATIVE}</value></member></struct></value></param></params>",
    f"<?xml version='1.0'?>\n<a>{SUCCESS}\n <value><string>{NATIVE}</string></value></member></struct></value></a>\n",
    f'{{"result":"{NATIVE}","error":null,"id":"7"}}',
    f'{{ "jsonrpc" : "2.0", "id": 7, "result" :\n"{NATIVE}" }}',
]


@pytest.mark.parametrize("giving", GIVING)
async def test_all_else_passes_byte_for_byte(toolstack: Toolstack, recorder: Recorder, giving: str) -> None:
    """However a message is laid out; a session is exchanged in it wherever it stands, and nothing else is."""
    target = "/jsonrpc" if giving.lstrip().startswith("{") else "/"
    recorder.answer = lambda _: giving.encode()
    call = xml("session.login_with_password", "root", "pw")
    if target == "/jsonrpc":
        call = b'{"method": "session.login_with_password", "params": ["root", "pw"], "id": "7"}'
    reply = (await post(toolstack, target, call)).decode()
    (found,) = [match[0] for match in REFERENCE.finditer(reply)]
    assert found != NATIVE
    assert reply == giving.replace(NATIVE, found)
    assert recorder.bodies[-1] == call
    recorder.answer = lambda body: body
    other = "OpaqueRef:99999999-1111-2222-3333-444444444444"
    for method in ("VM.get_record", "VM.nobody_wrote_this_down", "Plugin.call", "Async.VM.start"):
        odd = f"<param><value>{other} {found} é\x07</value></param></params>"
        for name, body in (
            ("/", f"<?xml version='1.0'?><a>\r\n<methodName>{method}</methodName><string>{found}</string>{odd}"),
            ("/jsonrpc", f' {{"method":"{method}","params":["{found}", "{other}", {{"a":["{found}",1.50,"é"]}}]}}'),
            ("/jsonrpc", f'{{"params":["{found}"],"id":1e0,"jsonrpc":"2.0","method":"{method}"}}'),
        ):
            echoed = await post(toolstack, name, body.encode())
            assert recorder.bodies[-1] == body.replace(found, NATIVE).encode()
            assert echoed == recorder.bodies[-1]  # what comes back without a place for sessions is left alone


@pytest.mark.parametrize(
    "form",
    [
        "GET /export?session_id={}&ref=x HTTP/1.0\r\nHost: x\r\n\r\n",
        "GET /export?ref=x&session_id={quoted} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /rrd_updates?start=1 HTTP/1.0\r\nCookie: a=b; session_id={}; c=d\r\n\r\n",
        "PUT /import?session_id={}&task_id={other} HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
        "POST /services/SM HTTP/1.0\r\nCookie: session_id={quoted}\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_sessions_of_streams(toolstack: Toolstack, recorder: Recorder, form: str) -> None:
    """In the target and in cookies, with the colon or as browsers write it; the rest of the head is as it was sent."""
    recorder.answer = lambda _: GIVING[0].encode()
    session = REFERENCE.search((await post(toolstack, "/", xml("session.login_with_password"))).decode())[0]
    recorder.answer = lambda _: b"page"
    other = "OpaqueRef:99999999-1111-2222-3333-444444444444"

    def written(ref: str) -> bytes:
        return form.format(ref, quoted=ref.replace(":", "%3A"), other=other).encode()

    _, page = await exchange(toolstack, written(session))
    assert page == b"page"
    assert (recorder.heads[-1] + recorder.bodies[-1]) == written(NATIVE)


async def test_a_session_by_its_alias(toolstack: Toolstack, bus: Bus) -> None:
    """It looks as xapi's own, works in every form and at every door, for xapi's own transfers too, until logout."""
    await toolstack.start_xapi("relay")
    session = await login(toolstack)
    vms = await ask(toolstack, "VM.get_all", session)
    assert len(vms) == VMS
    # The daemon itself has never heard of it.
    assert await ask(toolstack, "VM.get_all", session, where="xapi.legacy") == ["failed", "SESSION_INVALID", session]
    for target in ("/", "/RPC2"):
        assert vms[0].encode() in await post(toolstack, target, xml("VM.get_all", session))
        assert vms[0].encode() in await post(toolstack, target, xml("VM.get_all", session), "xapi")
    one = {"method": "VM.get_all", "params": [session], "id": "x"}
    assert json.loads(await post(toolstack, "/jsonrpc", json.dumps(one).encode()))["result"] == vms
    assert await on_bus(bus, "VM", "GetAll", "s", session) == vms
    mine = await on_bus(bus, "session", "LoginWithPassword", "ssa{sv}", "root", "xapi", {})
    assert REFERENCE.fullmatch(mine)
    assert await ask(toolstack, "VM.get_all", mine) == vms
    assert await ask(toolstack, "session.get_all_nothing", mine) == [
        "failed", "MESSAGE_METHOD_UNKNOWN", "session.get_all_nothing"
    ]  # fmt: skip
    rows = await handles(toolstack)
    assert [(row["kind"], row["handle"], row["state"]) for row in rows] == [
        ("session", f"{ref[:18]}...", "live") for ref in (session, mine)
    ]
    assert await on_bus(bus, "session", "Logout", "s", mine) is None
    assert await ask(toolstack, "session.logout", session) == ""
    assert await handles(toolstack) == []
    for gone in (session, mine):
        assert (await ask(toolstack, "VM.get_all", gone))[1] == "SESSION_INVALID"
        with pytest.raises(BusError, match="SESSION_INVALID"):
            await on_bus(bus, "VM", "GetAll", "s", gone)


async def test_what_was_had_before_the_bridge(toolstack: Toolstack) -> None:
    """A session and a token that xapi gave out itself go on at the legacy doors while that xapi rules."""
    await toolstack.start_legacy("xapi")
    await toolstack.start_bridge()
    session = await login(toolstack, "xapi")
    batch = await ask(toolstack, "event.from", session, ["vm"], "", 1.0, where="xapi")
    await toolstack.stage("xapi", "relay")
    (vm,) = await ask(toolstack, "VM.get_by_name_label", session, "vm1")
    await ask(toolstack, "VM.set_name_description", session, vm, "changed")
    after = await ask(toolstack, "event.from", session, ["vm"], batch["token"], 5.0)
    assert [event["ref"] for event in after["events"]] == [vm]
    assert TOKEN.fullmatch(after["token"])[1] == "000001"
    assert after["token"] > batch["token"]
    body = xml("VM.get_all_records", session)
    assert await post(toolstack, "/", body) == await post(toolstack, "/", body, "xapi.legacy")
    assert await ask(toolstack, "session.logout", session) == ""
    assert (await ask(toolstack, "VM.get_all", session))[1] == "SESSION_INVALID"


async def test_sessions_over_moves(toolstack: Toolstack) -> None:
    """Each side says its own SESSION_INVALID to those of the other; XenAPI.py logs in again and goes on."""
    await toolstack.start_xapi("relay")
    await toolstack.start_xapi_candidate()
    client = XenAPI.Session(f"http://127.0.0.1:{toolstack.port}", ignore_ssl=True)
    await asyncio.to_thread(client.xenapi.login_with_password, "root", "xapi", "1.0", "test")
    seen = {client._session}
    held = [await login(toolstack)]
    try:
        for before, stage in itertools.pairwise(("relay", "live", "relay", "shadow", "relay", "live", "relay")):
            await toolstack.stage("xapi", stage)
            (vm,) = await asyncio.to_thread(client.xenapi.VM.get_by_name_label, "vm1")
            assert REFERENCE.fullmatch(vm)
            if "shadow" in (stage, before):
                assert client._session in seen  # the same process ruled before
                continue
            assert client._session not in seen
            seen.add(client._session)
            for session in held:
                assert (await ask(toolstack, "VM.get_all", session))[1] == "SESSION_INVALID"
                assert b"<value>SESSION_INVALID</value>" in await post(toolstack, "/", xml("VM.get_all", session))
            held.append(await login(toolstack))
        assert len(seen) == 5
        states = {(row["side"], row["state"]) for row in await handles(toolstack)}
        assert states == {("legacy", "fenced"), ("bus", "fenced"), ("legacy", "live")}
    finally:
        await asyncio.to_thread(client.xenapi.session.logout)
        client("close")()


async def test_tokens_over_moves(toolstack: Toolstack, bus: Bus) -> None:
    """A token goes on while its xapi rules; behind another one its holder is told everything, once, and goes on."""
    await toolstack.start_xapi("relay")
    await toolstack.start_xapi_candidate()
    session = await login(toolstack)
    (vm,) = await ask(toolstack, "VM.get_by_name_label", session, "vm1")
    for number in range(50):  # the next xapi has not come that far
        await ask(toolstack, "VM.set_name_description", session, vm, f"change {number}")
    whole = await ask(toolstack, "event.from", session, ["vm"], "", 1.0)
    everything = {event["ref"] for event in whole["events"]}
    assert len(everything) == VMS
    token = whole["token"]
    assert TOKEN.fullmatch(token)[1] == "000001"

    async def since(token: str, *, ask_bus: bool = False) -> tuple[list[str], str]:
        """The objects that changed, and the next token."""
        if ask_bus:
            batch = await on_bus(bus, "event", "From", "sassd", session, ["vm"], token, 0.2)
            return [event["ref"].value for event in batch["events"].value], batch["token"].value
        batch = await ask(toolstack, "event.from", session, ["vm"], token, 0.2)
        return [event["ref"] for event in batch["events"]], batch["token"]

    for stage in ("shadow", "relay"):
        assert await since(token) == ([], token)
        assert await since(token, ask_bus=True) == ([], token)
        await toolstack.stage("xapi", stage)
    await ask(toolstack, "VM.set_name_description", session, vm, "last")
    changed, after = await since(token)
    assert changed == [vm]
    assert after > token
    for number, stage in ((2, "live"), (3, "relay")):
        await toolstack.stage("xapi", stage)
        session = await login(toolstack)
        for old in (token, after):
            changed, new = await since(old)
            assert set(changed) == everything
            assert TOKEN.fullmatch(new)[1] == f"{number:06}"
            assert new > old
            assert await since(new) == ([], new)
        after = new
    await toolstack.end_legacy("xapi")
    await toolstack.start_legacy("xapi")
    async with asyncio.timeout(PATIENCE):
        while not any(row["state"] == "fenced" and row["home"] == 3 for row in await handles(toolstack)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    session = await login(toolstack)
    for ask_bus in (False, True):
        changed, new = await since(after, ask_bus=ask_bus)
        assert set(changed) == everything
        assert TOKEN.fullmatch(new)[1] == "000004"
        assert await since(new, ask_bus=ask_bus) == ([], new)


async def test_a_session_outlives_the_bridge(toolstack: Toolstack) -> None:
    """It is durable before the reply leaves: a bridge that is killed at that moment knows it when it is back."""
    await toolstack.start_xapi("relay")
    for _ in range(3):
        session = await login(toolstack)
        await toolstack.end("bridge", signal.SIGKILL)
        await toolstack.start_bridge()
        assert len(await ask(toolstack, "VM.get_all", session)) == VMS
