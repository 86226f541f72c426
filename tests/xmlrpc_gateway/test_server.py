"""The door on the wire, with raw sockets."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from xmlrpc_gateway import manners
from xmlrpc_gateway.errors import CodecError
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, HttpReply, HttpRequest, Peer
from xmlrpc_gateway.server import HttpDoor
from xmlrpc_gateway.xmlrpc_codec import decode_call

MakeDoor = Callable[..., Awaitable[tuple[HttpDoor, Path]]]
Exchange = Callable[..., Awaitable[bytes]]


async def echo(request: HttpRequest) -> HttpReply:
    return HttpReply(200, (), request.body)


def post(body: bytes, *headers: str, version: str = "1.1", target: str = "/") -> bytes:
    lines = [f"POST {target} HTTP/{version}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def head_lines(reply: bytes) -> list[bytes]:
    return reply.partition(b"\r\n\r\n")[0].split(b"\r\n")


async def test_answers_every_recorded_request_as_the_daemon_did(
    make_door: MakeDoor, exchange: Exchange, recordings: Callable[[str], list[Any]]
) -> None:
    """Wrong HTTP, wrong XML and right calls: silent closes are silent, replies have the recorded status and body."""
    recorded = recordings("xenopsd-http-errors")
    replies = {recording.request_body: recording.response_body for recording in recorded if recording.response_body}

    async def answer(request: HttpRequest) -> HttpReply | CloseSilently:
        try:
            method, _ = decode_call(request.body)
        except CodecError:
            return CLOSE_SILENTLY
        return CLOSE_SILENTLY if method == "nosuch" else HttpReply(200, (), replies[request.body])

    _, path = await make_door(answer)
    for recording in recorded:
        ends = recording.label.startswith(
            "41_"
        )  # there the recording client ended its sending before the body's length
        reply = await exchange(path, recording.request, ends=ends)
        if recording.label.startswith("37_"):
            reply = reply[: reply.index(b"connection: close")]
            assert reply.startswith(b"HTTP/1.1 200 OK")
            continue
        assert bool(reply) == bool(recording.response), recording.label
        if reply:
            assert set(head_lines(recording.response)) <= set(head_lines(reply)), recording.label
            assert reply.endswith(b"\r\n\r\n" + recording.response_body), recording.label


async def test_hands_on_the_request_as_it_came(make_door: MakeDoor, exchange: Exchange) -> None:
    """Method, target, version, header case and order, body and the peer's credentials reach the answer untouched."""
    seen: list[HttpRequest] = []

    async def answer(request: HttpRequest) -> HttpReply:
        seen.append(request)
        return HttpReply(200, (), b"")

    _, path = await make_door(answer, manner=manners.XAPI)
    await exchange(
        path, b"POST http://h/a%20b?c=1&c=2 HTTP/1.0\r\nX-One: \xe9\r\nx-one: 2\r\ncontent-LENGTH: 2\r\n\r\nhi"
    )
    assert seen == [
        HttpRequest(
            "POST",
            "http://h/a%20b?c=1&c=2",
            "1.0",
            (("X-One", "\u00e9"), ("x-one", "2"), ("content-LENGTH", "2")),
            b"hi",
            Peer(os.getuid(), os.getgid(), os.getpid()),
        )
    ]


async def test_replies_in_the_daemons_manner(make_door: MakeDoor, exchange: Exchange) -> None:
    """An rpclib service's own reply has its headers, in one block, and no others; then the connection ends."""
    _, path = await make_door(echo)
    assert await exchange(path, post(b"<a/>", version="1.0")) == (
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nuser-agent: xenopsd-simulator\r\nContent-Type: text/xml\r\n"
        b"connection: close\r\n\r\n<a/>"
    )


async def test_passes_given_headers_through(make_door: MakeDoor, exchange: Exchange) -> None:
    """A reply with headers of its own gets none of the manner's; only what frames it is added."""
    given = HttpReply(404, (("X-Odd", "a"), ("Content-Length", "2")), b"no")

    async def answer(_: HttpRequest) -> HttpReply:
        return given

    _, path = await make_door(answer)
    reply = await exchange(path, post(b""))
    assert reply == b"HTTP/1.1 404 Not Found\r\nX-Odd: a\r\nContent-Length: 2\r\nconnection: close\r\n\r\nno"


async def test_keeps_a_connection_for_several_calls(make_door: MakeDoor, exchange: Exchange) -> None:
    """xapi's connections carry call after call, pipelined or not, until the client asks to close."""
    _, path = await make_door(echo, manner=manners.XAPI)
    reply = await exchange(path, post(b"one") + post(b"two") + post(b"three", "Connection: close"))
    assert [part.split(b"\r\n\r\n")[1] for part in reply.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [
        b"one",
        b"two",
        b"three",
    ]
    assert reply.count(b"connection: close") == 1


async def test_takes_requests_in_any_pieces(make_door: MakeDoor) -> None:
    """Two requests without Host, the second with bare line feeds, arrive byte by byte and are both answered."""
    _, path = await make_door(echo, manner=manners.XAPI)
    reader, writer = await asyncio.open_unix_connection(str(path))
    second = post(b"four", "Connection: close").replace(b"\r\n", b"\n")
    for byte in post(b"one\r\n\r\n") + second:
        writer.write(bytes([byte]))
        await writer.drain()
    reply = await reader.read()
    writer.close()
    assert reply.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\none\r\n\r\nHTTP" in reply
    assert reply.endswith(b"\r\n\r\nfour")


async def test_a_bad_second_request_does_not_take_the_first_along(make_door: MakeDoor, exchange: Exchange) -> None:
    """The reply to a good request is written whatever comes behind it."""
    _, path = await make_door(echo, manner=manners.XAPI)
    for behind in (
        b"nonsense\r\n\r\n",
        b"\0" * 3000,
        b"POST / HTTP/1.1\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\n",
    ):
        reply = await exchange(path, post(b"good") + behind)
        assert reply.startswith(b"HTTP/1.1 200 OK")
        assert b"\r\n\r\ngoodHTTP/1.0 500 " in reply


async def test_mirrors_http_1_0(make_door: MakeDoor, exchange: Exchange) -> None:
    """xapi answers HTTP/1.0 with 1.0 and closes, or keeps the connection when asked to."""
    _, path = await make_door(echo, manner=manners.XAPI)
    assert (await exchange(path, post(b"x", version="1.0"))).startswith(b"HTTP/1.0 200 OK\r\n")
    both = await exchange(path, post(b"x", "Connection: keep-alive", version="1.0") + post(b"y", version="1.0"))
    assert both.count(b"HTTP/1.0 200 OK\r\n") == 2
    assert both.count(b"connection: keep-alive\r\n") == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"DELETE / HTTP/1.1\r\n\r\n", 501),
        (b"OPTIONS / HTTP/1.1\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\n\r\n", 500),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 500),
        (b"POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n", 500),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 500),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc", 500),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), 500),
        (b"POST / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\nContent-Length: 0\r\n\r\n", 500),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else value,
)
async def test_refuses_in_xapis_manner(
    make_door: MakeDoor, exchange: Exchange, request_bytes: bytes, status: int
) -> None:
    """What is no call gets xapi's status, and the connection ends."""
    _, path = await make_door(echo, manner=manners.XAPI)
    reply = await exchange(path, request_bytes)
    assert int(reply.split(b" ")[1]) == status
    assert reply.count(b"HTTP/1.") == 1


async def test_carries_large_bodies(make_door: MakeDoor, exchange: Exchange) -> None:
    """Five megabytes go in and out unchanged, also for a client that waits for 100 Continue."""
    body = os.urandom(5 * 1024 * 1024)
    _, path = await make_door(echo)
    assert (await exchange(path, post(body))).endswith(b"\r\n\r\n" + body)

    reader, writer = await asyncio.open_unix_connection(str(path))
    whole = post(body, "Expect: 100-continue")
    writer.write(whole[: -len(body)])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.read()).endswith(b"\r\n\r\n" + body)
    writer.close()


async def test_answers_an_overlong_body_without_reading_it(make_door: MakeDoor, exchange: Exchange) -> None:
    """From the content-length alone `answer_too_large` phrases the refusal; a body at the limit passes."""
    said: list[str] = []

    async def too_large(text: str) -> HttpReply:
        said.append(text)
        return HttpReply(200, (), b"<too large/>")

    _, path = await make_door(echo, body_limit=1000, answer_too_large=too_large)
    assert (await exchange(path, b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", ends=True)).endswith(
        b"<too large/>"
    )
    assert said == ["the body has 1001 bytes, the limit is 1000"]
    assert (await exchange(path, post(bytes(1000)))).endswith(bytes(1000))
    # A client that sends it all before it listens hears the refusal too.
    assert (await exchange(path, post(bytes(300_000)))).endswith(b"<too large/>")


async def test_the_manner_answers_an_overlong_body_by_default(make_door: MakeDoor, exchange: Exchange) -> None:
    """Without a callback an rpclib door closes and xapi's says 500."""
    _, rpclib = await make_door(echo, body_limit=10)
    _, xapi = await make_door(echo, body_limit=10, manner=manners.XAPI)
    request = b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\n"
    assert await exchange(rpclib, request, ends=True) == b""
    assert (await exchange(xapi, request, ends=True)).startswith(b"HTTP/1.1 500 ")


async def test_compresses_for_those_who_accept_it(make_door: MakeDoor, exchange: Exchange) -> None:
    """xapi's large replies are gzipped on request, small ones and those of rpclib services never."""
    _, xapi = await make_door(echo, manner=manners.XAPI)
    _, rpclib = await make_door(echo)
    accept, close = "Accept-Encoding: gzip", "Connection: close"
    head, _, body = (await exchange(xapi, post(b"a" * 5000, accept, close))).partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert f"content-length: {len(body)}".encode() in head
    assert gzip.decompress(body) == b"a" * 5000
    for path, size, headers in ((xapi, 1024, [accept]), (xapi, 5000, []), (rpclib, 5000, [accept])):
        assert (await exchange(path, post(b"a" * size, close, *headers))).endswith(b"\r\n\r\n" + b"a" * size)


async def test_compresses_its_own_replies_only(make_door: MakeDoor, exchange: Exchange) -> None:
    """A reply in JSON is the door's own too; one with other headers was handed on, and stays as it is."""
    given: list[tuple[tuple[str, str], ...]] = [manners.XAPI.headers_for("application/json"), (("X", "y"),)]

    async def answer(request: HttpRequest) -> HttpReply:
        return HttpReply(200, given[int(request.target[1:])], bytes(5000))

    _, path = await make_door(answer, manner=manners.XAPI)
    ours = await exchange(path, post(b"", "Accept-Encoding: gzip", "Connection: close", target="/0"))
    assert {b"Content-Type: application/json", b"Content-Encoding: gzip"} <= set(head_lines(ours))
    assert gzip.decompress(ours.partition(b"\r\n\r\n")[2]) == bytes(5000)
    theirs = await exchange(path, post(b"", "Accept-Encoding: gzip", "Connection: close", target="/1"))
    assert theirs.endswith(bytes(5000))


async def test_takes_compressed_requests_within_the_limit(make_door: MakeDoor, exchange: Exchange) -> None:
    """A gzipped body arrives plain with a fitting content-length; a bomb is overlong, half a body unreadable."""
    seen: list[HttpRequest] = []

    async def answer(request: HttpRequest) -> HttpReply:
        seen.append(request)
        return HttpReply(200, (), b"fine")

    _, path = await make_door(answer, body_limit=100_000)
    packed = gzip.compress(b"a" * 100_000)
    encoding = "Content-Encoding: gzip"
    assert (await exchange(path, post(packed, encoding))).endswith(b"fine")
    assert seen[0].body == b"a" * 100_000
    assert seen[0].headers == (("content-length", "100000"),)
    assert await exchange(path, post(gzip.compress(bytes(50_000_000)), encoding)) == b""
    assert await exchange(path, post(packed[:-9], encoding)) == b""
    assert len(seen) == 1


async def test_a_call_goes_on_when_its_client_leaves(make_door: MakeDoor) -> None:
    """The answer is not cancelled by a client that closes, and only its reply is lost."""
    began, proceed, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(_: HttpRequest) -> HttpReply:
        began.set()
        await proceed.wait()
        done.set()
        return HttpReply(200, (), b"x" * 1_000_000)

    door, path = await make_door(answer)
    for leave in ("close", "reset"):
        for event in (began, proceed, done):
            event.clear()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.sendall(post(b""))
        await began.wait()
        if leave == "close":
            client.shutdown(socket.SHUT_WR)
        client.close()
        proceed.set()
        await done.wait()
    assert await door.drain(5)


@pytest.mark.parametrize(
    "leaves", ["closes", "ends its sending, then closes", "has left", "closes on TCP", "is reset on TCP"]
)
async def test_a_long_poll_ends_with_its_client(make_door: MakeDoor, leaves: str) -> None:
    """A call that `ends_with_client` is cancelled when nobody is left to hear its reply."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(_: HttpRequest) -> HttpReply:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    door, path = await make_door(answer, ends_with_client=lambda request: request.body == b"poll")
    client: socket.socket
    if leaves.endswith("TCP"):
        listener = await door.listen_tcp("127.0.0.1", 0)
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", leaves.startswith("is reset"), 0))
    else:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
    client.sendall(post(b"poll"))
    if leaves == "has left":
        client.close()
        assert await door.drain(5)
        return
    await began.wait()
    if leaves == "ends its sending, then closes":
        client.shutdown(socket.SHUT_WR)
        done, _ = await asyncio.wait([asyncio.create_task(cancelled.wait())], timeout=0.05)
        assert not done
    client.close()
    await cancelled.wait()
    assert await door.drain(5)


async def test_a_long_poll_answers_a_client_that_ended_its_sending(make_door: MakeDoor, exchange: Exchange) -> None:
    """Half a close is no leaving, and a pipelined call is answered after the poll."""
    proceed = asyncio.Event()

    async def answer(request: HttpRequest) -> HttpReply:
        await proceed.wait()
        return HttpReply(200, (), request.body)

    _, path = await make_door(answer, ends_with_client=lambda _: True, manner=manners.XAPI)
    asyncio.get_running_loop().call_later(0.05, proceed.set)
    assert (await exchange(path, post(b"poll"), ends=True)).endswith(b"\r\n\r\npoll")
    assert (await exchange(path, post(b"poll") + post(b"next", "Connection: close"))).endswith(b"\r\n\r\nnext")


async def test_a_client_that_ends_its_sending_gets_its_reply(make_door: MakeDoor, exchange: Exchange) -> None:
    """Shutting down the sending side after a whole request is no hang-up, before and after the call began."""
    _, path = await make_door(echo, manner=manners.XAPI)
    assert (await exchange(path, post(b"body"), ends=True)).endswith(b"\r\n\r\nbody")
    assert (await exchange(path, b"POST / HTTP/1.1\r\nContent", ends=True)) == b""
    assert (await exchange(path, b"", ends=True)) == b""


async def test_a_defect_in_the_answer_stays_inside(
    make_door: MakeDoor, exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception becomes the manner's reply and a log entry, never a traceback on the wire."""

    async def answer(request: HttpRequest) -> HttpReply:
        raise TimeoutError("secret") if request.body else RuntimeError("secret")

    _, rpclib = await make_door(answer)
    _, xapi = await make_door(answer, manner=manners.XAPI)
    for body in (b"", b"x"):
        assert await exchange(rpclib, post(body)) == b""
        reply = await exchange(xapi, post(body))
        assert reply.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in reply
    assert caplog.text.count("answering a request failed") == 4


async def test_serves_tcp(make_door: MakeDoor) -> None:
    """On TCP the peer is an address."""
    seen: list[object] = []

    async def answer(request: HttpRequest) -> HttpReply:
        seen.append(request.peer)
        return HttpReply(200, (), b"")

    door, _ = await make_door(answer)
    listener = await door.listen_tcp("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    host, port = writer.get_extra_info("sockname")
    writer.write(post(b""))
    await reader.read()
    writer.close()
    assert seen == [f"{host}:{port}"]


async def test_stops_accepting_without_refusing_those_who_wait(make_door: MakeDoor, run_dir: Path) -> None:
    """Clients in the listener's queue are served, later ones refused."""
    door, _ = await make_door(echo)
    listener = socket.socket(socket.AF_UNIX)
    path = run_dir / "q"
    listener.bind(str(path))
    listener.listen(64)
    await door.serve_socket(listener)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for client in clients:  # nothing is accepted meanwhile: the loop does not run
        client.connect(str(path))
    await door.stop_accepting(listener)
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(path))
    for client in clients:
        client.sendall(post(b"waited"))
    drained = asyncio.create_task(door.drain(5))
    assert await drained
    for client in clients:
        assert client.recv(4096).endswith(b"\r\n\r\nwaited")
        client.close()


async def test_drains_calls_and_closes_idle_connections(make_door: MakeDoor) -> None:
    """Idle connections end at once, calls under way are answered and their connections then end."""
    proceed, began = asyncio.Event(), asyncio.Event()

    async def answer(request: HttpRequest) -> HttpReply:
        if request.body:
            began.set()
            await proceed.wait()
        return HttpReply(200, (), b"answered")

    door, path = await make_door(answer, manner=manners.XAPI)
    idle_reader, idle_writer = await asyncio.open_unix_connection(str(path))
    idle_writer.write(post(b""))
    await idle_reader.readuntil(b"answered")
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(post(b"x"))
    await began.wait()
    assert not await door.drain(0)
    assert await idle_reader.read() == b""
    draining = asyncio.create_task(door.drain(5))
    proceed.set()
    assert await draining
    assert (await reader.read()).endswith(b"connection: close\r\n\r\nanswered")
    idle_writer.close()
    writer.close()


async def test_close_ends_whatever_goes_on(make_door: MakeDoor) -> None:
    """Closing cancels calls and ends connections, also of clients that read nothing."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(request: HttpRequest) -> HttpReply:
        if request.body == b"big":
            began.set()
            return HttpReply(200, (), bytes(20_000_000))
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    door, path = await make_door(answer)
    _, big_writer = await asyncio.open_unix_connection(str(path), limit=1)
    big_writer.write(post(b"big"))
    await began.wait()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(post(b""))
    _, new_writer = await asyncio.open_unix_connection(str(path))
    assert not await door.drain(0)
    await door.close()
    assert cancelled.is_set() or await reader.read() == b""
    for each in (big_writer, writer, new_writer):
        each.close()


async def test_waits_with_accepting_when_it_is_full(make_door: MakeDoor, exchange: Exchange) -> None:
    """Over the limit of connections callers wait in the queue, and are served when somebody leaves."""
    _, path = await make_door(echo, manner=manners.XAPI, connection_limit=2)
    idle = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
    for reader, writer in idle:
        writer.write(post(b"hold"))
        await reader.readuntil(b"hold")
    waiting = asyncio.create_task(exchange(path, post(b"third", "Connection: close")))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    for _, writer in idle:
        writer.close()
    assert (await waiting).endswith(b"third")


def test_works_on_uvloop(run_dir: Path) -> None:
    """The door and its way of accepting do not depend on asyncio's own loop."""
    uvloop = pytest.importorskip("uvloop")

    async def story() -> bytes:
        door = HttpDoor(echo, manner=manners.rpclib("x"), body_limit=100)
        listener = await door.listen_unix(run_dir / "u")
        reader, writer = await asyncio.open_unix_connection(str(run_dir / "u"))
        writer.write(post(b"hi"))
        reply = await reader.read()
        writer.close()
        await door.stop_accepting(listener)
        assert await door.drain(5)
        await door.close()
        return reply

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(story()).endswith(b"hi")
