"""What passes through a door as a stream, byte for byte, both ways."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xmlrpc_gateway import manners
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.http_messages import HttpReply, HttpRequest, Peer
from xmlrpc_gateway.server import HttpDoor

if TYPE_CHECKING:
    from tests.xmlrpc_gateway.conftest import RawDaemon, Wire
    from xmlrpc_gateway.streams import Stream

RelayDoor = Callable[..., Awaitable[tuple[HttpDoor, Path]]]
Dial = Callable[["Path | socket.socket"], "Wire"]

MB = 1024 * 1024
BLOCK = bytes(range(256)) * 4096  # 1 MB


async def test_a_large_download_arrives_whole(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """64 MB up to the end of the connection come out as they went in."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(b"GET /export?ref=OpaqueRef:1 HTTP/1.0\r\n\r\n")
    daemon = await raw_daemon.accept()
    assert await daemon.until(b"\r\n\r\n") == b"GET /export?ref=OpaqueRef:1 HTTP/1.0\r\n\r\n"

    async def send() -> None:
        await daemon.send(b"HTTP/1.0 200 OK\r\nX-Odd:  kept \r\n\r\n")
        for _ in range(64):
            await daemon.send(BLOCK)
        daemon.close()

    sending = asyncio.create_task(send())
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.0 200 OK\r\nX-Odd:  kept \r\n\r\n"
    for _ in range(64):
        assert await client.until(BLOCK) == BLOCK
    assert await client.rest() == b""
    await sending


async def test_a_slow_reader_stops_the_daemons_sending(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """Nothing is collected on the way: without a reader only the kernel's buffers and one block fill up."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(b"GET /export HTTP/1.1\r\n\r\n")
    daemon = await raw_daemon.accept()
    sent = await daemon.send_until_stalled(BLOCK, 64 * MB)
    assert 0 < sent < 2 * MB
    daemon.end()
    assert await client.count(64 * MB) == sent


async def test_a_slow_daemon_stops_the_clients_sending(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """An upload is held in the client while the daemon does not read, and goes on when it does."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(b"PUT /import HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (64 * MB))
    daemon = await raw_daemon.accept()
    sent = await client.send_until_stalled(BLOCK, 64 * MB)
    assert 0 < sent < 2 * MB
    await daemon.until(b"\r\n\r\n")
    left = asyncio.create_task(client.send(bytes(64 * MB - sent)))
    assert await daemon.count(64 * MB) == 64 * MB
    await left


async def test_nothing_is_read_while_a_stream_waits(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """Until the stream is relayed its body stays with the client, and the daemon hears nothing."""
    proceed = asyncio.Event()
    relay = DaemonClient(str(raw_daemon.path)).relay
    seen: list[Stream] = []

    async def hold(stream: Stream) -> None:
        seen.append(stream)
        await proceed.wait()
        await relay(stream)

    _, path = await relay_door(answer_stream=hold)
    client = dial(path)
    await client.send(b"Put /import?x=%20 HTTP/1.1\r\nX: \xe9\r\nx: 2 \r\nContent-LENGTH: 9000000\r\n\r\nbegin")
    assert await client.send_until_stalled(BLOCK, 64 * MB) < 2 * MB
    assert not raw_daemon.has_callers()
    (stream,) = seen
    assert (stream.method, stream.target, stream.version) == ("Put", "/import?x=%20", "1.1")
    assert stream.headers == (("X", "\u00e9"), ("x", "2"), ("Content-LENGTH", "9000000"))
    assert stream.peer == Peer(os.getuid(), os.getgid(), os.getpid())
    assert not stream.is_raw
    proceed.set()
    daemon = await raw_daemon.accept()
    assert (await daemon.until(b"begin")).startswith(b"Put /import?x=%20 HTTP/1.1\r\nX: \xe9\r\nx: 2 \r\n")


async def test_a_body_with_a_length_is_all_that_passes(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """The daemon is told to end the connection, and what follows the body never reaches it."""
    _, path = await relay_door()
    for follows in (b"", b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"):
        client = dial(path)
        await client.send(b"PUT /blob HTTP/1.1\r\nConnection: keep-alive\r\nHost: h\r\nContent-Length: 5\r\n\r\nfi")
        daemon = await raw_daemon.accept()
        await client.send(b"rst" + follows)
        client.end()
        assert await daemon.rest() == (
            b"PUT /blob HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nconnection: close\r\n\r\nfirst"
        )
        await daemon.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        daemon.close()
        assert await client.rest() == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"PUT /import HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"PUT /import?x HTTP/1.0\r\n\r\nas long as it takes",
        b"POST /cli HTTP/1.0\n\nLF only",
        b"POST /remote_db_access HTTP/1.0\nContent-length: 2\n\nhi",
    ],
)
async def test_bodies_pass_as_they_are(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial, request_bytes: bytes
) -> None:
    """Chunks stay chunks, a body without a length goes on to the client's end, line ends stay line ends."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(request_bytes)
    client.end()
    daemon = await raw_daemon.accept()
    assert await daemon.rest() == request_bytes
    daemon.close()


@pytest.mark.parametrize(
    ("request_bytes", "reply"),
    [
        (b"GET /x HTTP/1.1\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: https://other/x\r\nx: 1\r\nX: 2\r\n\r\n"),
        (b"HEAD /x HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"),
        (b"GET /x HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        (b"GET /x HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\nno: length\n\nto the end"),
        (b"GET /x HTTP/1.1\r\n\r\n", b"no HTTP at all"),
        (b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\nx"),
    ],
)
async def test_replies_pass_as_they_are(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial, request_bytes: bytes, reply: bytes
) -> None:
    """Whatever the daemon says goes to the client, byte by byte if it comes so, and ends when it ends."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(request_bytes)
    daemon = await raw_daemon.accept()
    await daemon.until(b"\r\n\r\n")
    for place in range(len(reply)):
        await daemon.send(reply[place : place + 1])
        assert await client.until(reply[place : place + 1])
    daemon.close()
    assert await client.rest() == b""


async def test_connect_with_a_path_is_a_raw_pipe(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """xapi's console: the head goes on unchanged, then both talk as they like, the client also before the answer."""
    _, path = await relay_door()
    client = dial(path)
    head = b"CONNECT /console?session_id=OpaqueRef:s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    await client.send(head + b"early")
    daemon = await raw_daemon.accept()
    assert await daemon.until(b"early") == head + b"early"
    await daemon.send(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nRFB 003.003\n")
    await client.until(b"RFB 003.003\n")
    for word in (b"RFB 003.003\n", b"\0\r\n\r\n\xff", b"POST / HTTP/1.1\r\n\r\n"):
        await client.send(word)
        assert await daemon.until(word) == word
        await daemon.send(word[::-1])
        assert await client.until(word[::-1]) == word[::-1]


async def test_an_upgrade_is_a_raw_pipe(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """A WebSocket works, also the old kind whose client sends eight bytes before it is answered."""
    _, path = await relay_door()
    client = dial(path)
    head = b"GET /console HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n12345678"
    await client.send(head)
    daemon = await raw_daemon.accept()
    assert await daemon.until(b"12345678") == head
    await daemon.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n\r\n")
    await client.until(b"\r\n\r\n")
    await client.send(b"\x81\x85mask")
    assert await daemon.until(b"mask") == b"\x81\x85mask"
    await daemon.send(b"\x81\x02hi")
    assert await client.until(b"hi") == b"\x81\x02hi"


@pytest.mark.parametrize("opening", [b"CONNECT /console HTTP/1.1", b"GET /console HTTP/1.1\r\nUpgrade: websocket"])
async def test_no_second_request_passes_after_a_declined_upgrade(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial, opening: bytes
) -> None:
    """A daemon that says no and keeps the connection sees it end when the client goes on with another request."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(opening + b"\r\n\r\n")
    daemon = await raw_daemon.accept()
    await daemon.until(b"\r\n\r\n")
    for byte in b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n":
        await daemon.send(bytes([byte]))
    await client.until(b"\r\n\r\n")
    await client.send(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    assert await daemon.rest() == b""
    daemon.close()
    assert await client.rest() == b""


async def test_half_closes_are_carried_both_ways(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """Either side may end its sending first and still hear the other."""
    _, path = await relay_door()
    for first in ("client", "daemon"):
        client = dial(path)
        await client.send(b"CONNECT /remotecmd HTTP/1.0\r\n\r\n")
        daemon = await raw_daemon.accept()
        await daemon.until(b"\r\n\r\n")
        await daemon.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await client.until(b"\r\n\r\n")
        ending, other = (client, daemon) if first == "client" else (daemon, client)
        ending.end()
        assert await other.rest() == b""
        await other.send(b"still here")
        assert await ending.until(b"still here")
        other.end()
        assert await ending.rest() == b""


async def test_a_stream_follows_a_call_on_one_connection(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """After a call the same connection carries a stream, whether its request comes later or at once."""
    call = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
    stream = b"GET /rrd_updates HTTP/1.1\r\n\r\n"
    _, path = await relay_door()
    for pieces in ([call, stream], [call + stream], [call + b"\r\n", stream[:9], stream[9:]]):
        client = dial(path)
        await client.send(pieces[0])
        await client.until(b"\r\n\r\nbody")
        for piece in pieces[1:]:
            await client.send(piece)
        daemon = await raw_daemon.accept()
        await daemon.until(b"\r\n\r\n")
        await daemon.send(b"HTTP/1.1 200 OK\r\n\r\n<xport/>")
        daemon.close()
        assert await client.rest() == b"HTTP/1.1 200 OK\r\n\r\n<xport/>"


async def test_a_reply_is_flushed_before_the_stream_that_follows(
    relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial
) -> None:
    """A reply of which the kernel has not taken all when the next request comes is neither cut nor overtaken."""
    left, right = socket.socketpair()
    left.setblocking(False)
    size = left.send(bytes(MB)) + 30_000  # over what one write takes, but within the transport's buffer
    left.close()
    right.close()
    _, path = await relay_door()
    client = dial(path)
    await client.send(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    await client.send(b"GET /x HTTP/1.1\n\n")
    assert await client.until(b"\r\n\r\n")
    assert await client.count(size) == size
    daemon = await raw_daemon.accept()
    await daemon.until(b"\n\n")
    await daemon.send(b"after")
    daemon.close()
    assert await client.rest() == b"after"


async def test_framed_requests_are_answered_framed(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """xapi's frame before a head is no method: calls are answered in a frame, streams go on with a fitting one."""
    _, path = await relay_door()

    def framed(head: bytes) -> bytes:
        return b"FRAME %012d" % len(head) + head

    client = dial(path)
    await client.send(framed(b"POST /RPC2 HTTP/1.1\r\ncontent-length: 2\r\n\r\n") + b"hi")
    reply = await client.until(b"\r\n\r\nhi")
    assert reply == framed(reply[18:-2]) + b"hi"
    await client.send(framed(b"PUT /services/xenops HTTP/1.1\r\n\r\n") + b"memory")
    daemon = await raw_daemon.accept()
    expected = framed(b"PUT /services/xenops HTTP/1.1\r\nconnection: close\r\n\r\n") + b"memory"
    assert await daemon.until(b"memory") == expected
    daemon.close()
    reply = await client.rest()
    head, _, body = reply.partition(b"\r\n\r\n")
    assert body == b"ClosedSilently"
    assert reply == framed(head[18:] + b"\r\n\r\n") + body


async def test_post_to_a_page_is_no_call(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """rrdd takes calls at any path and one POST that is none."""
    _, path = await relay_door(manner=manners.rpclib("xcp-rrdd", "/rrd_unarchive"))
    client = dial(path)
    await client.send(b"POST /var/lib/xcp/xcp-rrdd HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi")
    assert (await client.rest()).endswith(b"hi")
    client = dial(path)
    await client.send(b"POST /rrd_unarchive?uuid=1 HTTP/1.1\r\ncontent-length: 4\r\n\r\n<x/>")
    daemon = await raw_daemon.accept()
    assert (await daemon.until(b"<x/>")).startswith(b"POST /rrd_unarchive?uuid=1 HTTP/1.1\r\n")


async def test_a_head_beyond_all_measure_is_refused(relay_door: RelayDoor, raw_daemon: RawDaemon, dial: Dial) -> None:
    """Legacy daemons take 1024 bytes; what is over 16 kB is not passed on, and is no call either."""
    _, path = await relay_door()
    client = dial(path)
    await client.send(
        b"POST /cli HTTP/1.1\r\nHost: h\r\ncontent-length: 2\r\n" + (b"X: " + b"y" * 6000 + b"\r\n") * 3 + b"\r\nhi"
    )
    assert (await client.rest()).startswith(b"HTTP/1.1 403 ")
    assert not raw_daemon.has_callers()


class UnixConnection(http.client.HTTPConnection):
    """Python's HTTP client on a Unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.host)


async def test_pythons_http_client(relay_door: RelayDoor, raw_daemon: RawDaemon) -> None:
    """A chunked upload and a chunked reply, as a client that was not written for us has them."""
    _, path = await relay_door()

    def put() -> tuple[int, bytes]:
        connection = UnixConnection(str(path))
        connection.request("PUT", "/import", body=iter([b"one", b"two"]), encode_chunked=True)
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        return reply.status, body

    answered = asyncio.create_task(asyncio.to_thread(put))
    daemon = await raw_daemon.accept()
    assert (await daemon.until(b"0\r\n\r\n")).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    await daemon.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndone\r\n0\r\n\r\n")
    daemon.close()
    assert await answered == (200, b"done")


async def test_curl_uploads_and_downloads(relay_door: RelayDoor, raw_daemon: RawDaemon, tmp_path: Path) -> None:
    """curl waits for the daemon's own 100 Continue, sends 20 MB, and gets them back."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    _, path = await relay_door()
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(os.urandom(20 * MB))
    process = await asyncio.create_subprocess_exec(
        curl, "--silent", "--show-error", "--fail", "--max-time", "30", "--unix-socket", str(path),
        "--header", "Expect: 100-continue", "--upload-file", str(sent), "--output", str(received), "http://h/import",
    )  # fmt: skip
    daemon = await raw_daemon.accept()
    head = await daemon.until(b"\r\n\r\n")
    assert b"Expect: 100-continue\r\n" in head
    await daemon.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    while len(body) < 20 * MB:
        body += await daemon._receive()
    await daemon.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
    await daemon.send(body)
    daemon.close()
    assert await process.wait() == 0
    assert received.read_bytes() == sent.read_bytes()


def test_works_on_uvloop(run_dir: Path) -> None:
    """A call and a stream on one connection, and an upload while the download runs, on the other event loop."""
    uvloop = pytest.importorskip("uvloop")

    async def echo(request: HttpRequest) -> HttpReply:
        return HttpReply(200, (), request.body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
        writer.close()

    async def story() -> int:
        server = await asyncio.start_unix_server(serve, str(run_dir / "l"))
        client = DaemonClient(str(run_dir / "l"))
        door = HttpDoor(
            echo,
            manner=manners.XAPI,
            body_limit=100,
            is_stream=lambda method, target: not manners.XAPI.is_call(method, target),
            answer_stream=client.relay,
        )
        await door.listen_unix(run_dir / "u")
        reader, writer = await asyncio.open_unix_connection(str(run_dir / "u"))
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi")
        await reader.readuntil(b"\r\n\r\nhi")
        writer.write(b"CONNECT /migrate HTTP/1.0\r\n\r\n")

        async def send() -> None:
            for _ in range(32):
                writer.write(BLOCK)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        await reader.readuntil(b"\r\n\r\n")
        size = 0
        while block := await reader.read(65536):
            size += len(block)
        await sending
        writer.close()
        assert await door.drain(5)
        await door.close()
        server.close()
        await server.wait_closed()
        return size

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(story()) == 32 * MB
