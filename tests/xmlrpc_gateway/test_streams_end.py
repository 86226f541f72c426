"""How streams end: early, by either side, without a daemon, and with their door."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.xmlrpc_gateway.conftest import RawDaemon, Wire
from xmlrpc_gateway import manners, streams
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, HttpReply
from xmlrpc_gateway.server import HttpDoor

if TYPE_CHECKING:
    from xmlrpc_gateway.streams import Stream

RelayDoor = Callable[..., Awaitable[tuple[HttpDoor, Path]]]
Dial = Callable[["Path | socket.socket"], "Wire"]

MB = 1024 * 1024
DOWNLOAD = b"GET /export HTTP/1.1\r\n\r\n"
UPLOAD = b"PUT /import HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (64 * MB)
REFUSAL = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"


async def begin(client: Wire, raw_daemon: RawDaemon, request: bytes, reply: bytes = b"") -> Wire:
    """A stream under way: the daemon has read its head, and the client the beginning of the reply."""
    await client.send(request)
    daemon = await raw_daemon.accept()
    await daemon.until(b"\r\n\r\n")
    if reply:
        await daemon.send(reply)
        await client.until(reply)
    return daemon


async def until_refused(wire: Wire) -> None:
    """Sends until the other end takes no more for good."""
    with pytest.raises(ConnectionError):
        await wire.send(bytes(64 * MB))


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a client on TCP is given to read, before its connection is reset under it."""
    monkeypatch.setattr(streams, "_LINGER_SECONDS", 0.2)


@pytest.mark.usefixtures("short_linger")
@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_an_early_answer_reaches_a_client_that_uploads(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial, over: str
) -> None:
    """A daemon that answers and closes with the body unread: the client's sending ends, and it hears why."""
    door, path = await relay_door()
    client = dial(path if over == "unix" else await door.listen_tcp("127.0.0.1", 0))
    daemon = await begin(client, raw_daemon, UPLOAD)
    sending = asyncio.create_task(until_refused(client))
    assert await daemon.count(MB) == MB
    await daemon.send(REFUSAL)
    daemon.close()
    assert await client.until(b"no") == REFUSAL
    await sending
    assert await door.drain(10)


async def test_an_early_answer_to_an_upload_that_pauses(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """The end of the daemon is noticed also when nothing more is sent to it."""
    door, path = await relay_door()
    client = dial(path)
    daemon = await begin(client, raw_daemon, UPLOAD)
    await daemon.send(REFUSAL)
    daemon.end()
    assert await client.rest() == REFUSAL
    await client.send(b"more")  # it only ended its sending, and may still read
    assert await daemon.until(b"more") == b"more"
    daemon.close()
    assert await door.drain(5)


async def test_a_whole_request_ends_with_the_daemons_sending(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """Nothing can follow it: neither the daemon nor a client that keeps its connection is waited for."""
    door, path = await relay_door()
    client = dial(path)
    daemon = await begin(client, raw_daemon, DOWNLOAD)
    await daemon.send(b"HTTP/1.1 200 OK\r\n\r\nall")
    daemon.end()
    assert await client.rest() == b"HTTP/1.1 200 OK\r\n\r\nall"
    assert await door.drain(5)


@pytest.mark.parametrize("request_bytes", [DOWNLOAD, UPLOAD, b"CONNECT /console HTTP/1.0\r\n\r\n"])
async def test_a_client_that_leaves_is_noticed(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial, request_bytes: bytes
) -> None:
    """With and without bytes that it has not read, the daemon sees the end and the door forgets it."""
    door, path = await relay_door()
    for unread in (b"", b"x" * 1000):
        client = dial(path)
        daemon = await begin(client, raw_daemon, request_bytes, b"HTTP/1.1 200 OK\r\n\r\n")
        await daemon.send(b"!" + unread)
        assert await client.count(1) == 1
        client.close()
        assert await daemon.rest() == b""
        if unread:  # a client that closes over what it has not read resets the connection, others may still listen
            assert await door.drain(5)
        await until_refused(daemon)
        assert await door.drain(5)


async def test_a_client_that_leaves_a_download_stops_it(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """A daemon that only sends finds that nobody takes it any more."""
    door, path = await relay_door()
    client = dial(path)
    daemon = await begin(client, raw_daemon, DOWNLOAD)
    sending = asyncio.create_task(until_refused(daemon))
    assert await client.count(2 * MB) == 2 * MB
    client.close()
    await sending
    assert await door.drain(5)


async def test_a_daemon_that_says_nothing_leaves_room_for_an_answer(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """A close in order and a lost connection are told apart, and the client, though it still sends, hears of it."""
    _, path = await relay_door()
    client = dial(path)
    (await begin(client, raw_daemon, DOWNLOAD)).close()
    assert (await client.rest()).endswith(b"connection: close\r\n\r\nClosedSilently")
    client = dial(path)
    sending = asyncio.create_task(client.send(UPLOAD + bytes(64 * MB)))
    (await raw_daemon.accept()).close()
    await sending
    client.end()
    reply = await client.rest()
    assert reply.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert reply.endswith(b"connection: close\r\n\r\nDaemonGone")


async def test_a_reply_cut_short_arrives_short(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """What the daemon had said before it died is the client's, and nothing is added."""
    door, path = await relay_door()
    client = dial(path)
    daemon = await begin(client, raw_daemon, DOWNLOAD)
    await daemon.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
    daemon.close()
    assert await client.rest() == b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
    assert await door.drain(5)


@pytest.mark.usefixtures("short_linger")
async def test_a_reset_in_a_reply_is_a_reset(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """On TCP a client can tell a lost daemon from the end of its reply."""
    door, _ = await relay_door()
    client = dial(await door.listen_tcp("127.0.0.1", 0))
    await client.send(b"PUT /import HTTP/1.0\r\n\r\n")
    daemon = await raw_daemon.accept()
    await daemon.until(b"\r\n\r\n")
    await client.send(b"unread")
    await daemon.send(b"HTTP/1.0 200 OK\r\n\r\nto the end")
    await client.until(b"to the end")
    assert await daemon.count(2) == 2
    daemon.close()
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_a_reset_waits_for_what_was_said_before(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """An answer that still waits in the kernel when its daemon is lost reaches a client on TCP whole."""
    door, _ = await relay_door()
    client = dial(await door.listen_tcp("127.0.0.1", 0))
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    daemon = await begin(client, raw_daemon, UPLOAD + b"unread")
    await client.send(b"unread")
    await daemon.send(bytes(MB))
    daemon.close()
    assert await client.count(MB) == MB


async def test_without_a_daemon_the_manner_answers(relay_door: RelayDoor, run_dir: Path, dial: Dial) -> None:
    """xapi's page, also for a client that uploads before it listens; the silence of an rpclib service."""
    _, path = await relay_door(daemon=run_dir / "nobody")
    client = dial(path)
    await client.send(UPLOAD + bytes(64 * MB))
    reply = await client.rest()
    assert reply.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert reply.endswith(b"the service cannot be reached</body></html>")
    client = dial(path)
    await client.send(b"HEAD / HTTP/1.0\r\n\r\n")
    reply = await client.rest()
    assert reply.startswith(b"HTTP/1.0 500 Internal Server Error\r\n")
    assert reply.endswith(b"\r\n\r\n")
    _, path = await relay_door(manner=manners.rpclib("x"), daemon=run_dir / "nobody")
    client = dial(path)
    await client.send(DOWNLOAD)
    assert await client.rest() == b""


async def test_answers_instead_of_a_relay(relay_door: RelayDoor, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    """`answer_stream` may reply itself or close; a defect in it stays inside."""

    async def answer(stream: Stream) -> HttpReply | CloseSilently | None:
        match stream.target:
            case "/page":
                return HttpReply(200, (("X", "y"),), b"page")
            case "/silence":
                return CLOSE_SILENTLY
            case _:
                raise RuntimeError("secret")

    _, path = await relay_door(answer_stream=answer)
    said = {}
    for target in ("page", "silence", "defect"):
        client = dial(path)
        await client.send(b"GET /%b HTTP/1.1\r\n\r\n" % target.encode())
        said[target] = await client.rest()
    assert said["page"] == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nX: y\r\nconnection: close\r\n\r\npage"
    assert said["silence"] == b""
    assert said["defect"].startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in said["defect"]
    assert "answering a stream failed" in caplog.text


async def test_no_answer_is_put_into_an_answer(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """Whoever ends a relay half-way and then gives a reply is not heard; both sides see the end."""
    relay = DaemonClient(str(raw_daemon.path)).relay
    end = asyncio.Event()

    async def answer(stream: Stream) -> HttpReply | None:
        relaying = asyncio.create_task(relay(stream))
        await end.wait()
        relaying.cancel()
        await asyncio.wait([relaying])
        return HttpReply(500, (), b"too late")

    _, path = await relay_door(answer_stream=answer)
    client = dial(path)
    daemon = await begin(client, raw_daemon, b"CONNECT /console HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n")
    end.set()
    assert await client.rest() == b""
    assert await daemon.rest() == b""


async def test_a_daemon_on_tcp(relay_door: RelayDoor, dial: Dial) -> None:
    """An answer without a length ends there too, although neither end closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0)
    host, port = listener.getsockname()
    door, path = await relay_door(answer_stream=DaemonClient(host=host, port=port).relay)
    client = dial(path)
    await client.send(DOWNLOAD)
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    daemon = Wire(connection)
    await daemon.until(b"\r\n\r\n")
    await daemon.send(b"HTTP/1.0 200 OK\r\n\r\nall")
    daemon.end()
    assert await client.rest() == b"HTTP/1.0 200 OK\r\n\r\nall"
    assert await door.drain(5)
    daemon.close()
    listener.close()


async def test_waits_for_a_place_in_a_short_queue(relay_door: RelayDoor, run_dir: Path, dial: Dial) -> None:
    """Twenty streams at once to a daemon whose queue has one place."""
    raw_daemon = RawDaemon(run_dir / "short", backlog=0)
    _, path = await relay_door(daemon=raw_daemon.path)
    clients = [dial(path) for _ in range(20)]
    for client in clients:
        await client.send(DOWNLOAD)
    for _ in clients:
        daemon = await raw_daemon.accept()
        await daemon.until(b"\r\n\r\n")
        await daemon.send(b"served")
        daemon.close()
    assert [await client.rest() for client in clients] == [b"served"] * 20
    raw_daemon.close()


async def test_streams_take_no_callers_place(raw_daemon: RawDaemon, relay_door: RelayDoor, dial: Dial) -> None:
    """A call goes through while a stream is open, although only one call at a time is allowed."""
    client = DaemonClient(str(raw_daemon.path), limit=1)
    _, path = await relay_door(answer_stream=client.relay)
    stream = dial(path)
    await begin(stream, raw_daemon, DOWNLOAD, b"HTTP/1.1 200 OK\r\n\r\n")
    call = asyncio.create_task(client.call(b"x", timeout=5))
    daemon = await raw_daemon.accept()
    await daemon.until(b"x")
    await daemon.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
    assert await call == b"hi"
    await client.close()
    late = dial(path)
    await late.send(DOWNLOAD)
    assert (await late.rest()).startswith(b"HTTP/1.1 500 ")  # a closed client refuses, and the test's door maps nothing


async def test_drain_waits_for_streams(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """A stream under way is no idle connection, whatever it is doing."""
    door, path = await relay_door()
    client = dial(path)
    daemon = await begin(client, raw_daemon, DOWNLOAD, b"HTTP/1.1 200 OK\r\n\r\n")
    assert not await door.drain(0.05)
    draining = asyncio.create_task(door.drain(5))
    await daemon.send(b"the rest")
    daemon.close()
    assert await client.rest() == b"the rest"
    assert await draining


async def test_close_ends_streams_on_both_sides(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """Streams under way, held and just begun; on TCP a client cannot take it for the reply's end."""
    door, path = await relay_door()
    listener = await door.listen_tcp("127.0.0.1", 0)
    local, remote = dial(path), dial(listener)
    daemons = [await begin(client, raw_daemon, DOWNLOAD, b"HTTP/1.1 200 OK\r\n\r\n") for client in (local, remote)]
    begun = dial(path)
    await begun.send(DOWNLOAD)
    await door.close()
    assert await local.rest() == b""
    with suppress(ConnectionResetError):  # its request may have been read, or not
        assert await begun.rest() == b""
    with pytest.raises(ConnectionResetError):
        await remote.rest()
    for daemon in daemons:
        assert await daemon.rest() == b""


async def test_streams_count_as_connections(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """At the limit nobody else is accepted; when the stream ends somebody is."""
    _, path = await relay_door(connection_limit=1)
    first, second = dial(path), dial(path)
    daemon = await begin(first, raw_daemon, DOWNLOAD)
    await second.send(b"POST / HTTP/1.1\r\nConnection: close\r\ncontent-length: 2\r\n\r\nhi")
    waiting = asyncio.create_task(second.rest())
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    daemon.close()
    first.close()
    assert (await waiting).endswith(b"hi")
