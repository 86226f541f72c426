"""The framed door and its client on real sockets, with recorded exchanges and with everything that goes wrong."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.xmlrpc_gateway.json16 import load
from xmlrpc_gateway import sockets
from xmlrpc_gateway.errors import (
    BadReply,
    ClosedSilently,
    CodecError,
    DaemonError,
    DaemonGone,
    DaemonTimedOut,
    DaemonUnreachable,
)
from xmlrpc_gateway.framed import FramedClient, FramedDoor
from xmlrpc_gateway.framed_messages import FramedRequest, head
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, Peer
from xmlrpc_gateway.jsonrpc_codec import STYLES, decode_call
from xmlrpc_gateway.sockets import connect_unix

Answer = Callable[[FramedRequest], Awaitable[bytes | CloseSilently]]
MakeDoor = Callable[..., Awaitable[tuple[FramedDoor, Path]]]
MakeDaemon = Callable[..., Awaitable[Path]]
Exchange = Callable[..., Awaitable[bytes]]


def framed(body: bytes) -> bytes:
    return head(body) + body


async def echo(request: FramedRequest) -> bytes:
    return request.body


@pytest.fixture
async def make_framed_door(run_dir: Path) -> AsyncIterator[MakeDoor]:
    """Opens framed doors and closes them; at the end no task of theirs may be left."""
    doors: list[FramedDoor] = []

    async def make(answer: Answer, *, body_limit: int = 64 * 1024 * 1024, **options: object) -> tuple[FramedDoor, Path]:
        door = FramedDoor(answer, body_limit=body_limit, **options)  # type: ignore[arg-type]
        doors.append(door)
        path = run_dir / f"f{len(doors)}"
        await door.listen_unix(path)
        return door, path

    yield make
    for door in doors:
        await door.close()
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in names if name.startswith("FramedDoor.")]


@pytest.fixture
async def make_framed_daemon(run_dir: Path) -> AsyncIterator[MakeDaemon]:
    """Starts one-shot legacy daemons: a frame is read, `respond` gives the raw reply, the connection is closed."""
    servers: list[asyncio.Server] = []
    serving: set[asyncio.Task[object]] = set()

    async def make(respond: Callable[[bytes], Awaitable[bytes]], *, backlog: int = 5) -> Path:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            task.add_done_callback(serving.discard)
            try:
                body = await reader.readexactly(int(await reader.readexactly(16)))
                writer.write(await respond(body))
                await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # the caller went away, as some tests do
            finally:
                writer.close()

        path = run_dir / f"l{len(servers)}"
        servers.append(await asyncio.start_unix_server(serve, str(path), backlog=backlog))
        return path

    yield make
    for server in servers:
        server.close()
        await server.wait_closed()
    waiting = list(serving)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def replying(reply: bytes) -> Callable[[bytes], Awaitable[bytes]]:
    async def respond(_: bytes) -> bytes:
        return reply

    return respond


@pytest.mark.parametrize(
    ("name", "style"), [("xenopsd-json16-errors", "rpclib"), ("xenopsd2013-bin-errors", "rpc-light")]
)
async def test_answers_every_recorded_request_as_the_daemon_did(
    make_framed_door: MakeDoor, exchange: Exchange, name: str, style: str
) -> None:
    """Wrong lengths, wrong JSON and right calls: silent closes are silent, replies are the recorded bytes."""
    recorded = load(name)
    replies = {recording.request_body: recording.response_body for recording in recorded if recording.response}

    async def answer(request: FramedRequest) -> bytes | CloseSilently:
        try:
            method, _, _ = decode_call(request.body, STYLES[style])
        except CodecError:
            return CLOSE_SILENTLY
        return CLOSE_SILENTLY if method == "nosuch" and style == "rpclib" else replies[request.body]

    _, path = await make_framed_door(answer)
    assert len(recorded) > 20
    for recording in recorded:
        # There the recording client ended its sending before the length that it had named.
        ends = recording.label in ("41_len_short_eof", "42_body_short_eof")
        assert await exchange(path, recording.request, ends=ends) == recording.response, recording.label


async def test_hands_on_the_body_and_the_peer(make_framed_door: MakeDoor, exchange: Exchange) -> None:
    """The answer sees the body without its length, and who connected."""
    seen: list[FramedRequest] = []

    async def answer(request: FramedRequest) -> bytes:
        seen.append(request)
        return b""

    _, path = await make_framed_door(answer)
    assert await exchange(path, framed(b"{}")) == b"0000000000000000"
    assert seen == [FramedRequest(b"{}", Peer(os.getuid(), os.getgid(), os.getpid()))]


async def test_takes_requests_in_any_pieces(make_framed_door: MakeDoor) -> None:
    """A request arrives byte by byte."""
    _, path = await make_framed_door(echo)
    reader, writer = await asyncio.open_unix_connection(str(path))
    for byte in framed(b"piecemeal"):
        writer.write(bytes([byte]))
        await writer.drain()
    assert await reader.read() == framed(b"piecemeal")
    writer.close()


async def test_ignores_what_follows_a_request(make_framed_door: MakeDoor) -> None:
    """Also what comes while the call runs: the reply is followed by an orderly end, not by a reset."""
    began, proceed = asyncio.Event(), asyncio.Event()

    async def answer(request: FramedRequest) -> bytes:
        began.set()
        await proceed.wait()
        return request.body

    _, path = await make_framed_door(answer)
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(framed(b"first"))
    await began.wait()
    writer.write(framed(b"second"))
    proceed.set()
    assert await reader.read() == framed(b"first")
    writer.close()


async def test_carries_large_bodies(make_framed_door: MakeDoor) -> None:
    """Ten megabytes pass both ways unchanged."""
    _, path = await make_framed_door(echo)
    body = os.urandom(10 * 1024 * 1024)
    assert await FramedClient(str(path)).call(body, timeout=20) == body


async def test_closes_on_a_body_over_the_limit(
    make_framed_door: MakeDoor, exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    """The length alone decides, and the log says it; a body at the limit passes."""
    _, path = await make_framed_door(echo, body_limit=1000)
    assert await exchange(path, framed(bytes(1000))) == framed(bytes(1000))
    assert await exchange(path, b"0000000000001001") == b""
    assert await exchange(path, framed(bytes(1001))) == b""
    assert caplog.text.count("the body has 1001 bytes, the limit is 1000") == 2


async def test_a_call_goes_on_when_its_client_leaves(make_framed_door: MakeDoor) -> None:
    """The answer is not cancelled by a client that closes, and only its reply is lost."""
    began, proceed, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(_: FramedRequest) -> bytes:
        began.set()
        await proceed.wait()
        done.set()
        return b"x" * 1_000_000

    door, path = await make_framed_door(answer, ends_with_client=lambda request: request.body == b"poll")
    client = await connect_unix(str(path))
    client.send(framed(b"work"))
    await began.wait()
    client.close()
    assert not await door.drain(0.02)
    proceed.set()
    assert await door.drain(5)
    assert done.is_set()


async def test_a_long_poll_ends_with_its_client(make_framed_door: MakeDoor) -> None:
    """Where it is asked for, the call is cancelled when the client closes, also one that had ended its sending."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(_: FramedRequest) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    door, path = await make_framed_door(answer, ends_with_client=lambda request: request.body == b"poll")
    for leave in ("close", "end sending first", "reset"):
        began.clear()
        cancelled.clear()
        client = await connect_unix(str(path))
        client.send(framed(b"poll") + b"surplus" * (leave == "reset"))
        await began.wait()
        if leave == "end sending first":
            client.shutdown(socket.SHUT_WR)
            assert not await door.drain(0.02)
            assert not cancelled.is_set()
        client.close()
        await asyncio.wait_for(cancelled.wait(), 5)
        assert await door.drain(5)


async def test_a_client_that_ends_its_sending_gets_its_reply(make_framed_door: MakeDoor, exchange: Exchange) -> None:
    """Shutting down the sending side after a whole request is no hang-up, for long polls too; before, it is nothing."""
    proceed = asyncio.Event()

    async def answer(request: FramedRequest) -> bytes:
        await proceed.wait()
        return request.body

    for ends_with_client in (None, lambda _: True):
        proceed.clear()
        _, path = await make_framed_door(answer, ends_with_client=ends_with_client)
        replies = asyncio.create_task(exchange(path, framed(b"body"), ends=True))
        done, _ = await asyncio.wait([replies], timeout=0.02)
        assert not done
        proceed.set()
        assert await replies == framed(b"body")
        assert await exchange(path, framed(b"body")[:-1], ends=True) == b""
        assert await exchange(path, b"", ends=True) == b""


async def test_a_defect_in_the_answer_stays_inside(
    make_framed_door: MakeDoor, exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception becomes a silent close and a log entry."""

    async def answer(request: FramedRequest) -> bytes:
        raise TimeoutError("secret") if request.body else RuntimeError("secret")

    _, path = await make_framed_door(answer)
    for body in (b"", b"x"):
        assert await exchange(path, framed(body)) == b""
    assert caplog.text.count("answering a request failed") == 2


async def test_drains_calls_under_way(make_framed_door: MakeDoor) -> None:
    """Draining waits for the reply of each, and says when its time is over first."""
    began, proceed = asyncio.Event(), asyncio.Event()

    async def answer(request: FramedRequest) -> bytes:
        began.set()
        await proceed.wait()
        return request.body

    door, path = await make_framed_door(answer)
    call = asyncio.create_task(FramedClient(str(path)).call(b"x", timeout=5))
    await began.wait()
    assert not await door.drain(0.01)
    draining = asyncio.create_task(door.drain(5))
    proceed.set()
    assert await draining
    assert await call == b"x"
    assert await door.drain(0)


async def test_stops_accepting_without_refusing_those_who_wait(make_framed_door: MakeDoor, run_dir: Path) -> None:
    """Clients in the listener's queue are served, over the limit too; later ones are refused."""
    door, _ = await make_framed_door(echo, connection_limit=8)
    path = run_dir / "q"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    await door.serve_socket(listener)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for client in clients:  # nothing is accepted meanwhile: the loop does not run
        client.connect(str(path))
        client.sendall(framed(b"waited"))
    await door.stop_accepting(listener)
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(path))
    assert await door.drain(5)
    for client in clients:
        assert client.recv(4096) == framed(b"waited")
        assert client.recv(1) == b""
        client.close()


async def test_close_ends_whatever_goes_on(make_framed_door: MakeDoor) -> None:
    """Closing cancels calls and ends connections: those in a call, those that send or read nothing, the newest."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(request: FramedRequest) -> bytes:
        if request.body == b"big":
            return bytes(20_000_000)
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    door, path = await make_framed_door(answer)
    big, calling, silent, newest = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for client, request in ((big, framed(b"big")), (calling, framed(b"")), (silent, b"00000")):
        client.connect(str(path))
        client.sendall(request)
    await began.wait()
    big.settimeout(0)
    await asyncio.get_running_loop().sock_recv(big, 1)
    newest.connect(str(path))
    assert not await door.drain(0)
    await door.close()
    assert cancelled.is_set()
    for client in (calling, silent):
        assert client.recv(100) == b""
    for client in (big, calling, silent, newest):
        client.close()


async def test_waits_with_accepting_when_it_is_full(make_framed_door: MakeDoor, exchange: Exchange) -> None:
    """Over the limit of connections callers wait in the queue, and are served when somebody leaves."""
    door, path = await make_framed_door(echo, connection_limit=2)
    idle = [await connect_unix(str(path)) for _ in range(2)]
    waiting = asyncio.create_task(exchange(path, framed(b"third")))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    idle.pop().close()
    assert await waiting == framed(b"third")
    idle.pop().close()
    assert await door.drain(5)


def test_works_on_uvloop(run_dir: Path) -> None:
    """Neither the door nor its watch over leaving clients depends on asyncio's own loop."""
    uvloop = pytest.importorskip("uvloop")

    async def story() -> bytes:
        began = asyncio.Event()

        async def answer(request: FramedRequest) -> bytes:
            if request.body == b"poll":
                began.set()
                await asyncio.Event().wait()
            return request.body

        door = FramedDoor(answer, body_limit=100, ends_with_client=lambda request: request.body == b"poll")
        listener = await door.listen_unix(run_dir / "u")
        poll = asyncio.create_task(FramedClient(str(run_dir / "u")).call(b"poll", timeout=None))
        await began.wait()
        poll.cancel()
        reply = await FramedClient(str(run_dir / "u")).call(b"hi", timeout=5)
        await door.stop_accepting(listener)
        assert await door.drain(5)
        await door.close()
        return reply

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(story()) == b"hi"


async def test_forty_calls_at_once_to_a_queue_of_one(make_framed_daemon: MakeDaemon) -> None:
    """A listener with a full queue makes callers wait; none fails, and no more than the limit are with the daemon."""
    present, most = 0, 0

    async def respond(body: bytes) -> bytes:
        nonlocal present, most
        present += 1
        most = max(most, present)
        await asyncio.sleep(0)
        present -= 1
        return framed(body)

    client = FramedClient(str(await make_framed_daemon(respond, backlog=1)), limit=16)
    bodies = [str(number).encode() for number in range(40)]
    assert await asyncio.gather(*(client.call(body, timeout=10) for body in bodies)) == bodies
    assert most <= 16


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (b"", ClosedSilently, "without a reply"),
        (b"HTTP/1.1 200 OK\r\n\r\n", BadReply, "the reply: expected a length in 16 characters, got b'HTTP/1.1 200 OK"),
        (b"0000999999999999", BadReply, "the limit is"),
        (b"-000000000000001", BadReply, "negative"),
        (b"000000", DaemonGone, "within the reply, after 6 bytes"),
        (b"0000000000000009hi", DaemonGone, "within the reply, after 18 bytes"),
    ],
)
async def test_wrong_replies(make_framed_daemon: MakeDaemon, reply: bytes, error: type[DaemonError], says: str) -> None:
    """Each wrong reply has its own error, which counts the call as one that may have run."""
    client = FramedClient(str(await make_framed_daemon(replying(reply))))
    with pytest.raises(error) as caught:
        await client.call(b"x", timeout=5)
    assert says in str(caught.value)
    assert type(caught.value) is error
    assert caught.value.sent


async def test_ignores_what_follows_a_reply(make_framed_daemon: MakeDaemon) -> None:
    """The length decides."""
    assert (
        await FramedClient(str(await make_framed_daemon(replying(b"0000000000000002hi!!")))).call(b"", timeout=5)
        == b"hi"
    )


async def test_sends_what_legacy_clients_send(make_framed_daemon: MakeDaemon) -> None:
    """Recorded calls reach the daemon, and its recorded replies come back."""
    recorded = load("xenopsd-json16-allcalls")[:20]
    replies = {recording.request_body: recording.response for recording in recorded}

    async def respond(body: bytes) -> bytes:
        return replies[body]

    client = FramedClient(str(await make_framed_daemon(respond)))
    for recording in recorded:
        assert await client.call(recording.request_body, timeout=5) == recording.response_body


async def test_a_reset_is_no_silent_close(run_dir: Path) -> None:
    """A daemon that dies with the request unread is gone, which is not the refusal that a silent close is."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "s"))
        listener.listen()
        listener.settimeout(0)
        for size in (50_000, 5_000_000):
            call = asyncio.create_task(FramedClient(str(run_dir / "s")).call(b"x" * size, timeout=5))
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            await asyncio.get_running_loop().sock_recv(connection, 100)
            connection.close()
            with pytest.raises(DaemonGone):
                await call


async def test_an_early_answer_to_an_unread_body_is_heard(run_dir: Path) -> None:
    """A daemon may refuse by the length alone; its reply counts although the body could not be sent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "s"))
        listener.listen()
        listener.settimeout(0)
        call = asyncio.create_task(FramedClient(str(run_dir / "s")).call(bytes(5_000_000), timeout=5))
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        connection.sendall(framed(b"too large"))
        connection.close()
        assert await call == b"too large"


async def test_nobody_there(run_dir: Path) -> None:
    """A missing socket and a dead one are unreachable at once: nothing was sent."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(run_dir / "dead"))
    dead.close()
    for name in ("missing", "dead"):
        with pytest.raises(DaemonUnreachable, match=str(run_dir / name)) as caught:
            await FramedClient(str(run_dir / name)).call(b"x", timeout=5)
        assert not caught.value.sent


async def test_deadlines_tell_sent_from_unsent(make_framed_daemon: MakeDaemon) -> None:
    """A call that the daemon has may have run when its time is over; one that waits for its turn has not."""
    began = asyncio.Event()

    async def respond(body: bytes) -> bytes:
        if body == b"slow":
            began.set()
            await asyncio.Event().wait()
        return framed(body)

    client = FramedClient(str(await make_framed_daemon(respond)), limit=1)
    slow = asyncio.create_task(client.call(b"slow", timeout=0.3))
    await began.wait()
    with pytest.raises(DaemonUnreachable) as unsent:
        await client.call(b"y", timeout=0.01)
    assert not unsent.value.sent
    assert await client.call(b"passes", timeout=5, is_long_poll=True) == b"passes"
    with pytest.raises(DaemonTimedOut) as sent:
        await slow
    assert sent.value.sent


async def test_long_polls_take_no_place(make_framed_daemon: MakeDaemon) -> None:
    """However many wait, other calls find their place free; the daemon's ends of those that we ended are known."""
    began = asyncio.Semaphore(0)

    async def respond(body: bytes) -> bytes:
        if body == b"poll":
            began.release()
            await asyncio.Event().wait()
        return framed(body)

    path = await make_framed_daemon(respond)
    client = FramedClient(str(path), limit=1)
    polls = [asyncio.create_task(client.call(b"poll", timeout=None, is_long_poll=True)) for _ in range(2)]
    for _ in polls:
        await began.acquire()
    assert await client.call(b"go", timeout=5) == b"go"
    for poll in polls:
        poll.cancel()
    ended = await asyncio.gather(*polls, return_exceptions=True)
    assert [type(each) for each in ended] == [asyncio.CancelledError] * 2
    with pytest.raises(DaemonTimedOut):
        await client.call(b"poll", timeout=0.1, is_long_poll=True)
    assert len(client.left_behind) == 3
    with pytest.raises(DaemonTimedOut):
        await client.call(b"poll", timeout=0.1)  # counts as work that the daemon may still do
    assert len(client.left_behind) == 3
    assert client.left_behind < set(sockets.open_connections(path))


async def test_a_full_queue_at_the_deadline_is_unreachable(run_dir: Path) -> None:
    """A daemon that accepts nobody has seen nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "s"))
        listener.listen(0)
        with await connect_unix(str(run_dir / "s")), pytest.raises(DaemonUnreachable):
            await FramedClient(str(run_dir / "s")).call(b"x", timeout=0.05)


async def test_refuses_calls_after_close(make_framed_daemon: MakeDaemon) -> None:
    """A closed client has sent nothing."""
    client = FramedClient(str(await make_framed_daemon(replying(framed(b"hi")))))
    await client.close()
    with pytest.raises(DaemonUnreachable):
        await client.call(b"x", timeout=5)


@pytest.mark.parametrize("name", ["xenopsd-json16-allcalls", "xenopsd2013-bin", "squeezed-json16-rpclight2012"])
async def test_a_relay_changes_no_recorded_byte(
    make_framed_door: MakeDoor, make_framed_daemon: MakeDaemon, exchange: Exchange, name: str
) -> None:
    """Recorded requests reach a daemon behind the door unchanged, and its recorded replies come back unchanged."""
    recorded = load(name)
    replies = {recording.request_body: recording.response for recording in recorded}

    async def respond(body: bytes) -> bytes:
        return replies[body]

    client = FramedClient(str(await make_framed_daemon(respond)))
    _, path = await make_framed_door(lambda request: client.call(request.body, timeout=5))
    for recording in recorded:
        assert await exchange(path, recording.request) == replies[recording.request_body]
