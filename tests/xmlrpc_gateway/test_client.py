"""The client against raw one-shot daemons that behave and misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.errors import (
    BadReply,
    ClosedSilently,
    DaemonError,
    DaemonGone,
    DaemonTimedOut,
    DaemonUnreachable,
)
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, HttpReply, HttpRequest
from xmlrpc_gateway.server import HttpDoor
from xmlrpc_gateway.sockets import connect_unix

if TYPE_CHECKING:
    from tests.xmlrpc_gateway.conftest import RawDaemon

MakeDaemon = Callable[..., Awaitable[Path]]
MakeDoor = Callable[..., Awaitable[tuple[HttpDoor, Path]]]

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nuser-agent: x\r\n\r\nhi"


def replying(reply: bytes) -> Callable[[bytes], Awaitable[bytes]]:
    async def respond(_: bytes) -> bytes:
        return reply

    return respond


async def test_sends_exactly_what_legacy_clients_send(make_daemon: MakeDaemon) -> None:
    """The target is the socket's path, and there are three headers, in rpclib's order and case."""
    seen: list[bytes] = []

    async def respond(request: bytes) -> bytes:
        seen.append(request)
        return REPLY

    path = await make_daemon(respond)
    assert await DaemonClient(str(path)).call(b"<call/>", timeout=5) == b"hi"
    head = f"POST {path} HTTP/1.1\r\ncontent-length: 7\r\nhost: localhost\r\nuser-agent: xcp-dbus-bridge\r\n\r\n"
    assert seen == [head.encode() + b"<call/>"]


async def test_forty_calls_at_once_to_a_queue_of_one(make_daemon: MakeDaemon) -> None:
    """A listener with a full queue makes callers wait; none fails, and no more than the limit are with the daemon."""
    present, most = 0, 0

    async def respond(request: bytes) -> bytes:
        nonlocal present, most
        present += 1
        most = max(most, present)
        await asyncio.sleep(0)
        present -= 1
        body = request.partition(b"\r\n\r\n")[2]
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    path = await make_daemon(respond, backlog=1)
    client = DaemonClient(str(path), limit=16)
    bodies = [str(number).encode() for number in range(40)]
    assert await asyncio.gather(*(client.call(body, timeout=10) for body in bodies)) == bodies
    assert most <= 16


async def test_large_bodies_both_ways(make_daemon: MakeDaemon) -> None:
    """Ten megabytes go out and come back, with a content-length or up to the end of the connection."""
    body = bytes(range(256)) * 40_000

    async def respond(request: bytes) -> bytes:
        sent = request.partition(b"\r\n\r\n")[2]
        length = b"content-length: %d\r\n" % len(sent) if sent[:1] == b"\0" else b""
        return b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + sent

    client = DaemonClient(str(await make_daemon(respond)))
    assert await client.call(body, timeout=10) == body
    assert await client.call(body[1:], timeout=10) == body[1:]


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (b"", ClosedSilently, "without a reply"),
        (b"HTTP/1.1 500 Internal\r\ncontent-length: 3\r\n\r\nwhy", BadReply, "got 500: b'why'"),
        (b"0000000000000002hi\n\n", BadReply, "expected an HTTP status line"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, BadReply, "headers within"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", BadReply, "the limit is"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", BadReply, "'chunked'"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", DaemonGone, "within the headers of the reply, after 27 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", DaemonGone, "after 2 of 9 bytes"),
    ],
)
async def test_wrong_replies(make_daemon: MakeDaemon, reply: bytes, error: type[DaemonError], says: str) -> None:
    """Each wrong reply has its own error, which counts the call as one that may have run."""
    client = DaemonClient(str(await make_daemon(replying(reply))))
    with pytest.raises(error) as caught:
        await client.call(b"x", timeout=5)
    assert says in str(caught.value)
    assert type(caught.value) is error
    assert caught.value.sent


async def test_a_reset_is_no_silent_close(run_dir: Path) -> None:
    """A daemon that dies with the request unread is gone, which is not the refusal that a silent close is."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_dir / "s"))
    listener.listen()
    listener.settimeout(0)
    call = asyncio.create_task(DaemonClient(str(run_dir / "s")).call(b"x" * 50_000, timeout=5))
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    connection.recv(100)
    connection.close()
    with pytest.raises(DaemonGone):
        await call
    listener.close()


async def test_an_early_answer_to_an_unread_body_is_heard(run_dir: Path) -> None:
    """A daemon may refuse by the headers alone; its reply counts although the body could not be sent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_dir / "s"))
    listener.listen()
    listener.settimeout(0)
    call = asyncio.create_task(DaemonClient(str(run_dir / "s")).call(b"x" * 5_000_000, timeout=5))
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    connection.sendall(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
    connection.close()
    with pytest.raises(BadReply, match="got 500"):
        await call
    listener.close()


async def test_nobody_there(run_dir: Path) -> None:
    """A missing socket and a dead one are unreachable at once: nothing was sent."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(run_dir / "dead"))
    dead.close()
    for name in ("missing", "dead"):
        with pytest.raises(DaemonUnreachable) as caught:
            await DaemonClient(str(run_dir / name)).call(b"x", timeout=5)
        assert not caught.value.sent
        assert str(run_dir / name) in str(caught.value)


async def test_deadlines_tell_sent_from_unsent(make_daemon: MakeDaemon) -> None:
    """A call that the daemon has may have run when its time is over; one that waits for its turn has not."""
    began = asyncio.Event()

    async def respond(_: bytes) -> bytes:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    client = DaemonClient(str(await make_daemon(respond)), limit=1)
    slow = asyncio.create_task(client.call(b"x", timeout=0.3))
    await began.wait()
    with pytest.raises(DaemonUnreachable) as unsent:
        await client.call(b"y", timeout=0.01)
    assert not unsent.value.sent
    with pytest.raises(DaemonTimedOut) as sent:
        await slow
    assert sent.value.sent


async def test_a_full_queue_at_the_deadline_is_unreachable(run_dir: Path) -> None:
    """A daemon that accepts nobody has seen nothing."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_dir / "s"))
    listener.listen(0)
    filling = [await connect_unix(str(run_dir / "s"))]
    with pytest.raises(DaemonUnreachable):
        await DaemonClient(str(run_dir / "s")).call(b"x", timeout=0.05)
    for each in (*filling, listener):
        each.close()


async def test_a_cancelled_call_leaves_its_place(make_daemon: MakeDaemon) -> None:
    """Cancelling closes the connection and frees the place of the next caller."""
    began = asyncio.Event()

    async def respond(request: bytes) -> bytes:
        if request.endswith(b"stay"):
            began.set()
            await asyncio.Event().wait()
        return REPLY

    client = DaemonClient(str(await make_daemon(respond)), limit=1)
    call = asyncio.create_task(client.call(b"stay", timeout=None))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await client.call(b"go", timeout=5) == b"hi"


async def test_two_hundred_long_polls_hold_up_nobody(
    make_daemon: MakeDaemon, make_door: MakeDoor, exchange: Callable[..., Awaitable[bytes]]
) -> None:
    """Calls pass at once while two hundred callers wait, and each waiting caller is answered in the end."""
    waiting, happened = 0, asyncio.Event()

    async def respond(request: bytes) -> bytes:
        nonlocal waiting
        if request.endswith(b"event.from"):
            waiting += 1
            await happened.wait()
        return REPLY

    client = DaemonClient(str(await make_daemon(respond)), limit=1)

    async def answer(request: HttpRequest) -> HttpReply | CloseSilently:
        is_long_poll = request.body == b"event.from"
        return await client.forward(request, timeout=None if is_long_poll else 5, is_long_poll=is_long_poll)

    door, path = await make_door(answer, ends_with_client=lambda request: request.body == b"event.from")

    def post(body: bytes) -> bytes:
        return b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    polls = [asyncio.create_task(exchange(path, post(b"event.from"))) for _ in range(200)]
    own = asyncio.create_task(client.call(b"event.from", timeout=None, is_long_poll=True))
    async with asyncio.timeout(20):
        while waiting < 201:  # noqa: ASYNC110 - the daemon counts
            await asyncio.sleep(0.01)
    for _ in range(5):
        assert (await exchange(path, post(b"VM.get_all"))).endswith(b"hi")
    assert await client.call(b"VM.get_all", timeout=5) == b"hi"
    for poll in polls[:100]:
        poll.cancel()
    happened.set()
    for poll in polls[100:]:
        assert (await poll).endswith(b"hi")
    assert await own == b"hi"
    assert await door.drain(5)


async def test_a_call_can_have_another_target(make_daemon: MakeDaemon) -> None:
    """xapi's calls go to `/` and not to the socket's path."""
    seen: list[bytes] = []

    async def respond(request: bytes) -> bytes:
        seen.append(request)
        return REPLY

    client = DaemonClient(str(await make_daemon(respond)), target="/")
    await client.call(b"<a/>", timeout=5)
    assert [request.split(b"\r\n")[0] for request in seen] == [b"POST / HTTP/1.1"]


async def test_remembers_the_ends_of_long_polls_that_it_ended(raw_daemon: RawDaemon) -> None:
    """The daemon goes on waiting for them; ends of calls that had an answer are none, nor those of other calls."""
    client = DaemonClient(str(raw_daemon.path))
    ends = []
    for body, is_long_poll, is_answered in ((b"poll", True, False), (b"poll", True, True), (b"call", False, False)):
        call = asyncio.create_task(client.call(body, timeout=None, is_long_poll=is_long_poll))
        daemon = await raw_daemon.accept()
        await daemon.until(body)
        if is_answered:
            await daemon.send(REPLY)
            assert await call == b"hi"
        else:
            call.cancel()
            await asyncio.wait([call])
        ends.append(os.fstat(daemon.socket.fileno()).st_ino)
    assert client.left_behind == {ends[0]}


async def test_refuses_calls_after_close(make_daemon: MakeDaemon) -> None:
    """A closed client has sent nothing."""
    client = DaemonClient(str(await make_daemon(replying(REPLY))))
    await client.close()
    with pytest.raises(DaemonUnreachable):
        await client.call(b"x", timeout=5)


async def test_calls_over_tcp() -> None:
    """A daemon on TCP is called by its host's name, at the path /."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(1)
        writer.write(REPLY)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = DaemonClient(host="localhost", port=port)
    assert await client.call(b"x", timeout=5) == b"hi"
    assert seen[0].startswith(b"POST / HTTP/1.1\r\n")
    server.close()
    await server.wait_closed()
    with pytest.raises(DaemonUnreachable, match=f"localhost:{port}"):
        await client.call(b"x", timeout=5)


async def test_relays_requests_and_replies_untouched(make_daemon: MakeDaemon) -> None:
    """Method, target, version, header case, order and duplicates pass; headers of one hop do not."""
    seen: list[bytes] = []

    async def respond(request: bytes) -> bytes:
        seen.append(request)
        return b"HTTP/1.1 404 Nope\r\nX-B: 1\r\nx-a: \xe9\r\nConnection: close\r\nX-B: 2\r\ncontent-length: 2\r\n\r\nhi"

    headers = (("B", "1"), ("Connection", "keep-alive"), ("a", "\u00e9"), ("B", "2"), ("Content-Length", "1"))
    client = DaemonClient(str(await make_daemon(respond)))
    reply = await client.forward(HttpRequest("PUT", "/x%20?y", "1.0", headers, b"!", "peer"), timeout=None)
    assert seen == [b"PUT /x%20?y HTTP/1.0\r\nB: 1\r\na: \xe9\r\nB: 2\r\nContent-Length: 1\r\n\r\n!"]
    assert reply == HttpReply(404, (("X-B", "1"), ("x-a", "\u00e9"), ("X-B", "2"), ("content-length", "2")), b"hi")


async def test_relays_silence_and_replies_without_a_body(make_daemon: MakeDaemon) -> None:
    """A silent close comes out as one, and the answer to HEAD has a length but no body."""
    silent = DaemonClient(str(await make_daemon(replying(b""))))
    assert await silent.forward(HttpRequest("POST", "/", "1.1", (), b"", "peer"), timeout=5) is CLOSE_SILENTLY
    heads = DaemonClient(str(await make_daemon(replying(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"))))
    reply = await heads.forward(HttpRequest("HEAD", "/", "1.1", (), b"", "peer"), timeout=5)
    assert reply == HttpReply(200, (("content-length", "9"),), b"")


@pytest.mark.parametrize("name", ["xenopsd-http-cli", "xenopsd2013-xml"])
async def test_a_relay_changes_no_recorded_byte(
    make_door: MakeDoor,
    make_daemon: MakeDaemon,
    exchange: Callable[..., Awaitable[bytes]],
    recordings: Callable[[str], list[Any]],
    name: str,
) -> None:
    """Recorded requests reach a daemon behind the door unchanged, and its recorded replies come back unchanged."""
    recorded = recordings(name)
    replies = {recording.request: recording.response for recording in recorded}
    seen: list[bytes] = []

    async def respond(request: bytes) -> bytes:
        seen.append(request)
        return replies[request]

    client = DaemonClient(str(await make_daemon(respond)))
    _, path = await make_door(lambda request: client.forward(request, timeout=5))
    for recording in recorded:
        reply = await exchange(path, recording.request)
        assert seen.pop() == recording.request
        assert reply.replace(b"connection: close\r\n", b"", 1) == replies[recording.request].replace(
            b"connection: close\r\n", b"", 1
        )
