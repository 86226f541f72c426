"""Targets: what an address means, whether anything was sent when a call fails, who counts as a sandbox."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import respx

from bridges import backends
from bridges.calls import Call, Door
from bridges.faults import Fault, Kind
from bridges.replay.http_client import HttpxClient
from bridges.replay.targets import SANDBOX, Target, WrongTarget, choose, open_target
from bridges.settings import HttpDoorSettings, ServiceSettings, Settings
from bridges.tongues import Tongues
from dbus_side import introspection
from dbus_side.bus import Bus
from dbus_side.exported import ObjectTree
from dbus_side.messages import MethodCall
from tests.fixtures_host import ROOT
from tests.fixtures_xenstored import running_store
from tests.replay.exchanged import Talk, daemon, method, short_directory
from xenstore_rpc.connection import Store
from xmlrpc_gateway import errors

URL = "http://localhost/memory"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture
def directory() -> Iterator[Path]:
    """For sockets."""
    with short_directory() as found:
        yield found


@pytest.fixture
async def client(directory: Path) -> AsyncIterator[HttpxClient]:
    """A client of the socket that the tests serve."""
    found = HttpxClient(URL, str(directory / "memory"))
    yield found
    await found.close()


# --- what an error of httpx says, without a daemon ---

OUTCOMES = {
    "refused": (httpx.ConnectError("refused"), errors.DaemonUnreachable),
    "connecting takes too long": (httpx.ConnectTimeout("late"), errors.DaemonUnreachable),
    "no connection is free": (httpx.PoolTimeout("late"), errors.DaemonUnreachable),
    "what we would send is wrong": (httpx.LocalProtocolError("bad"), errors.DaemonUnreachable),
    "sending takes too long": (httpx.WriteTimeout("late"), errors.DaemonTimedOut),
    "the answer takes too long": (httpx.ReadTimeout("late"), errors.DaemonTimedOut),
    "lost while sending": (httpx.WriteError("reset"), errors.DaemonGone),
    "lost while reading": (httpx.ReadError("reset"), errors.DaemonGone),
    "no HTTP": (httpx.RemoteProtocolError("illegal status line"), errors.BadReply),
    "not found": (httpx.Response(404, content=b"no"), errors.BadReply),
    "elsewhere": (httpx.Response(302, headers={"location": URL}), errors.BadReply),
}


@pytest.mark.parametrize("name", OUTCOMES)
async def test_what_failed_says_whether_it_was_sent(name: str, client: HttpxClient) -> None:
    """Each failure is the one that the bridge's own client would raise, after one attempt."""
    outcome, expected = OUTCOMES[name]
    with respx.mock() as router:
        answer = {"return_value": outcome} if isinstance(outcome, httpx.Response) else {"side_effect": outcome}
        route = router.post(URL).mock(**answer)
        with pytest.raises(errors.DaemonError) as caught:
            await client.call(b"<call/>", timeout=5)
        assert route.call_count == 1
    assert type(caught.value) is expected
    assert caught.value.sent is (expected is not errors.DaemonUnreachable)


async def test_a_call_is_posted_as_it_is(client: HttpxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body as given, one connection a call, whatever proxies the environment names."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with respx.mock() as router:
        route = router.post(URL).respond(200, content=b"answer")
        assert await client.call(b"<call/>", timeout=5) == b"answer"
        sent = route.calls.last.request
    assert sent.content == b"<call/>"
    assert sent.headers["connection"] == "close"


# --- the same on sockets ---


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await writer.drain()
    found = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def says(data: bytes) -> Talk:
    """A daemon that says that and closes."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return talk


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


TALKS: dict[str, tuple[Talk, type[errors.DaemonError]]] = {
    "closes without a byte": (says(b""), errors.ClosedSilently),
    "closes within the body": (says(OK[:-1]), errors.DaemonGone),
    "speaks no HTTP": (says(b"ELEPHANT\r\n\r\n"), errors.BadReply),
    "says 500": (says(OK.replace(b"200 OK", b"500 No")), errors.BadReply),
    "says nothing": (silent, errors.DaemonTimedOut),
}


@pytest.mark.parametrize("name", TALKS)
async def test_a_daemon_that_gives_no_answer(name: str, client: HttpxClient, directory: Path) -> None:
    """A call is with the daemon once, and what became of it is said as it is."""
    talk, expected = TALKS[name]
    async with daemon(directory / "memory", talk) as requests:
        with pytest.raises(errors.DaemonError) as caught:
            await client.call(b"<call/>", timeout=0.3)
    assert type(caught.value) is expected
    assert [request[-7:] for request in requests] == [b"<call/>"]


async def test_a_connection_that_is_lost(client: HttpxClient, directory: Path) -> None:
    """Whatever it is called, the daemon may have executed the call."""
    async with daemon(directory / "memory", reset) as requests:
        with pytest.raises(errors.DaemonError) as caught:
            await client.call(b"<call/>", timeout=5)
    assert caught.value.sent
    assert len(requests) == 1


async def test_a_daemon_that_trickles(client: HttpxClient, directory: Path) -> None:
    """The deadline is for all of an answer, not for each piece."""

    async def trickle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b".")
            await asyncio.sleep(0.02)

    began = time.monotonic()
    async with daemon(directory / "memory", trickle):
        with pytest.raises(errors.DaemonTimedOut):
            await client.call(b"<call/>", timeout=0.3)
    assert time.monotonic() - began < 2


async def test_nobody_takes_the_connection(client: HttpxClient, directory: Path) -> None:
    """A full queue and a missing socket: nothing was sent."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(directory / "memory"))
        listener.listen(0)
        other.connect(str(directory / "memory"))
        with pytest.raises(errors.DaemonUnreachable):
            await client.call(b"<call/>", timeout=0.2)
    (directory / "memory").unlink()
    with pytest.raises(errors.DaemonUnreachable):
        await client.call(b"<call/>", timeout=5)


async def test_an_answer_without_a_length(client: HttpxClient, directory: Path) -> None:
    """It goes to the end of the connection, as legacy daemons may answer."""
    async with daemon(directory / "memory", says(b"HTTP/1.0 200 OK\r\n\r\nall of it")):
        assert await client.call(b"<call/>", timeout=5) == b"all of it"


async def test_a_write_that_was_lost_is_in_doubt(directory: Path) -> None:
    """Behind the client stands the backend of the bridge: a read is unavailable, a write in doubt."""
    async with (
        daemon(directory / "memory", says(b"")),
        open_target(choose(None, "squeezed", f"http:{directory}/memory")) as it,
    ):
        assert await kind_of(it, "balance_memory") is Kind.IN_DOUBT
        assert await kind_of(it, "get_host_reserved_memory") is Kind.UNAVAILABLE


async def kind_of(target: Target, name: str) -> Kind:
    """How a call fails."""
    call = Call(method("squeezed", name), {"debug_info": "d"}, target.door, time.monotonic() + 5)
    with pytest.raises(Fault) as caught:
        await target.backend.ask(call)
    return caught.value.kind


# --- what an address means ---

SETTINGS = Settings(
    bus_address="unix:path=/b",
    xenstore_socket="/x",
    services={
        "squeezed": ServiceSettings(
            "squeezed", xenstore="sq", http=HttpDoorSettings(Path("/m"), Path("/m.legacy")), reach="xenstore"
        )
    },
)
MEANINGS = {
    "bus": (Door.BUS, "org.xen.xcp.squeezed on unix:path=/b"),
    "legacy": (Door.XENSTORE, "/sq in xenstore:/x"),
    "bus:unix:path=/other": (Door.BUS, "org.xen.xcp.squeezed on unix:path=/other"),
    "http:/tmp/m": (Door.HTTP, "http:/tmp/m"),
    "http://127.0.0.1:8080/": (Door.HTTP, "http://127.0.0.1:8080/"),
    "framed:/tmp/m.json": (Door.FRAMED, "framed:/tmp/m.json"),
    "xenstore:/tmp/x": (Door.XENSTORE, "/sq in xenstore:/tmp/x"),
    "datagram:@squeezed": (Door.DATAGRAM, "datagram:@squeezed"),
}


@pytest.mark.parametrize("to", MEANINGS)
def test_what_an_address_means(to: str) -> None:
    """Door and description."""
    chosen = choose(SETTINGS, "squeezed", to)
    assert (chosen.door, chosen.text) == MEANINGS[to]


@pytest.mark.parametrize("to", ["", "buss", "legacy:x", "http:m", "http:", "framed:m", "xenstore:", "ftp://h/", "bus:"])
def test_what_is_no_address(to: str) -> None:
    """The text says what was expected, and what was given."""
    with pytest.raises(WrongTarget) as caught:
        choose(SETTINGS, "squeezed", to)
    assert f"framed:PATH, xenstore:SOCKET or datagram:@ADDRESS, got {to!r}" in str(caught.value)


def test_what_else_is_wrong_with_a_target() -> None:
    """Each mistake names its field."""
    for arguments, more, expected in (
        ((None, "squeezed", "bus"), {}, "bus: needs settings"),
        ((None, "squeezed", "legacy"), {}, "legacy: needs settings"),
        ((Settings(), "squeezed", "legacy"), {}, "have no service 'squeezed'"),
        ((None, "nosuch", "http:/m"), {}, "no interface is written down for 'nosuch'"),
        ((None, "squeezed", "http:/m"), {"dialect": "xenapi"}, "dialect: expected one of"),
        ((None, "squeezed", "http:/m"), {"name": "org.x"}, "a name is for targets on the bus"),
        ((SETTINGS, "squeezed", "bus"), {"name": "x"}, "name: expected a bus name"),
        ((None, "squeezed", "http://user@host/"), {}, "expected http://HOST:PORT/"),
    ):
        with pytest.raises(WrongTarget, match=expected):
            choose(*arguments, **more)


@pytest.mark.parametrize(
    ("service", "dialect", "form", "page"),
    [("squeezed", "rpclib", "xml", "/m"), ("xapi", "xenapi", "xml", "/"), ("xapi", "xenapi", "json", "/jsonrpc")],
)
async def test_where_calls_are_posted(service: str, dialect: str, form: str, page: str, directory: Path) -> None:
    """rpclib daemons are asked at the socket's path, xapi at its pages: as the bridge's own client does."""
    path = directory / "m"
    http = HttpDoorSettings(path, path, form)
    settings = Settings(services={service: ServiceSettings(service, http=http, dialect=dialect)})
    name = "get_diagnostics" if service == "squeezed" else "VM.get_all"
    async with daemon(path, says(b"")) as requests:
        ours = backends.LegacyOverSocket(
            lambda: Tongues(settings.services[service]).http_client(str(path)),
            *Tongues(settings.services[service]).call(),
        )
        async with open_target(choose(settings, service, "legacy")) as target:
            for backend in (ours, target.backend):
                parameters = method(service, name).parameters
                call = Call(method(service, name), {p.name: "x" for p in parameters}, Door.HTTP, time.monotonic() + 5)
                with pytest.raises(Fault):
                    await backend.ask(call)
        lines = [request.partition(b"\r\n")[0].decode() for request in requests]
        bodies = {re.sub(rb'"id":\d+', b"", request.partition(b"\r\n\r\n")[2]) for request in requests}
    assert lines == [f"POST {page if page != '/m' else path} HTTP/1.1"] * 2
    assert len(bodies) == 1


async def test_nobody_is_there(directory: Path, bus_address: str) -> None:
    """Said once, before anything is sent."""
    (directory / "file").touch()
    for to, expected in (
        (f"http:{directory}/m", "No such file"),
        (f"framed:{directory}/file", "is no socket"),
        (f"bus:unix:path={directory}/bus", "bus"),
        (f"bus:{bus_address}", "nobody owns org.xen.xcp.squeezed"),
    ):
        with pytest.raises(Fault, match=expected) as caught:
            async with open_target(choose(None, "squeezed", to)):
                pass
        assert caught.value.kind is Kind.UNAVAILABLE


# --- who says that it is a sandbox ---


async def test_a_socket_is_a_sandbox_by_a_file_beside_it(directory: Path) -> None:
    """For HTTP and frames; TCP has no such place."""
    async with daemon(directory / "m", silent):
        for form in ("http", "framed"):
            async with open_target(choose(None, "squeezed", f"{form}:{directory}/m")) as target:
                assert await target.declares_sandbox() == f"there is no {directory}/m.sandbox"
                (directory / "m.sandbox").touch()
                assert await target.declares_sandbox() is None
                (directory / "m.sandbox").unlink()
    for to in ("http://127.0.0.1:1/", "datagram:@x"):
        async with open_target(choose(None, "squeezed", to)) as target:
            assert "has no place where it could say" in (await target.declares_sandbox() or "")


async def test_a_tree_is_a_sandbox_by_a_node() -> None:
    """The node must hold 1."""
    async with running_store("embedded", Path) as process:
        store = Store(process.socket)
        await store.connect()
        async with open_target(choose(None, "squeezed", f"xenstore:{process.socket}", tree="sq")) as target:
            assert await target.declares_sandbox() == "there is no node /sq/sandbox"
            await store.write("/sq/sandbox", b"0")
            assert await target.declares_sandbox() == "/sq/sandbox: expected 1, got b'0'"
            await store.write("/sq/sandbox", b"1")
            assert await target.declares_sandbox() is None
        await store.close()


async def no_method(_call: MethodCall, _method: introspection.Method) -> tuple[object, ...]:
    raise AssertionError("the interface has no method")


async def owner_of(address: str, name: str, sandbox: object) -> Bus:
    """A connection that owns a name, and says that of itself (None: nothing)."""
    bus = await Bus.connect(address)
    objects = ObjectTree()
    if sandbox is not None:
        objects.add("/org/xen/xcp/squeezed", SANDBOX, no_method, {"Sandbox": lambda: sandbox})
    bus.serve(objects.answer)
    await bus.request_name(name, allow_replacement=True, replace_existing=True)
    return bus


async def test_a_bus_daemon_is_a_sandbox_by_a_property(bus_address: str) -> None:
    """Which it must answer, with true; a name other than the service's can be asked."""
    name = "org.xen.xcp.squeezed.Candidate"
    for sandbox, expected in (
        (None, "does not say that it is a sandbox"),
        (False, "the target says that it is no sandbox"),
        (True, None),
    ):
        bus = await owner_of(bus_address, name, sandbox)
        async with open_target(choose(None, "squeezed", f"bus:{bus_address}", name=name)) as target:
            found = await target.declares_sandbox()
            assert found is None if expected is None else expected in str(found)
        await bus.close()


async def test_whoever_takes_the_name_later_is_not_driven(bus_address: str) -> None:
    """What was declared holds for the process that declared it; another one gets nothing."""
    name = "org.xen.xcp.squeezed"
    first = await owner_of(bus_address, name, sandbox=True)
    async with open_target(choose(None, "squeezed", f"bus:{bus_address}")) as target:
        assert await target.declares_sandbox() is None
        called: list[MethodCall] = []

        async def note(call: MethodCall) -> tuple[str, tuple[object, ...]]:
            called.append(call)
            return "", ()

        second = await owner_of(bus_address, name, sandbox=False)
        second.serve(note)
        await first.close()
        assert await kind_of(target, "balance_memory") is Kind.UNAVAILABLE
        assert called == []
    await second.close()


async def test_the_example_declares_itself(bus_address: str) -> None:
    """With `--sandbox`, and not without."""
    async with running_store("embedded", Path) as process:
        for options, is_one in ((["--sandbox"], True), ([], False)):
            script = [str(ROOT / "examples" / "squeezed_on_bus.py"), "--settled", *options]
            squeezed = await asyncio.create_subprocess_exec(
                sys.executable, *script, "--bus", bus_address, "--xenstore", process.socket,
                stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert squeezed.stdout is not None
            assert b"owns its name" in await squeezed.stdout.readline()
            async with open_target(choose(None, "squeezed", f"bus:{bus_address}")) as target:
                assert (await target.declares_sandbox() is None) is is_one
            squeezed.terminate()
            assert await squeezed.wait() == 0
