"""Doors, one-shot legacy daemons, raw exchanges and recordings for the tests of the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import select
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xmlrpc_gateway import manners
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.errors import ClosedSilently, DaemonGone, DaemonUnreachable
from xmlrpc_gateway.http_messages import HttpReply
from xmlrpc_gateway.server import HttpDoor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from xmlrpc_gateway.http_messages import CloseSilently, HttpRequest
    from xmlrpc_gateway.manners import HttpManner
    from xmlrpc_gateway.streams import Stream

GOLDEN = Path(__file__).parents[1] / "golden" / "xmlrpc"


class Wire:
    """One end of a connection as plain bytes, read and written by the test itself."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.socket = connection
        self._read = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def send_until_stalled(self, block: bytes, limit: int) -> int:
        """Sends blocks, `limit` bytes at most, until nothing has been taken for a while; gives how many bytes were."""
        loop = asyncio.get_running_loop()
        sent = 0
        while sent < limit:
            try:
                sent += self.socket.send(block)
            except BlockingIOError:
                writable = loop.create_future()
                loop.add_writer(self.socket, lambda ready=writable: ready.done() or ready.set_result(None))
                done, _ = await asyncio.wait([writable], timeout=0.5)
                loop.remove_writer(self.socket)
                if not done:
                    break
            else:
                await asyncio.sleep(0)
        return sent

    async def until(self, marker: bytes) -> bytes:
        """All bytes up to and including the marker. Fails at the end of the connection."""
        while marker not in self._read:
            block = await self._receive()
            assert block, f"the connection ended after {self._read[-200:]!r}"
            self._read += block
        end = self._read.index(marker) + len(marker)
        found, self._read = self._read[:end], self._read[end:]
        return found

    async def count(self, size: int) -> int:
        """Reads bytes away, `size` at most; gives how many came before the end of the connection."""
        left = size - len(self._read)
        self._read = b""
        while left > 0 and (block := await self._receive(min(left, 256 * 1024))):
            left -= len(block)
        return size - left

    async def rest(self) -> bytes:
        """All bytes to the end of the connection. Raises ConnectionError."""
        while block := await self._receive():
            self._read += block
        return self._read

    def end(self) -> None:
        """Ends the sending side."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    async def _receive(self, size: int = 256 * 1024) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, size)


class RawDaemon:
    """A listener at a path; the test plays the daemon on each connection that it accepts."""

    def __init__(self, path: Path, backlog: int = 5) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._listener.settimeout(0)
        self._wires: list[Wire] = []

    async def accept(self) -> Wire:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        self._wires.append(Wire(connection))
        return self._wires[-1]

    def has_callers(self) -> bool:
        """Whether somebody has connected who was not accepted yet."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def close(self) -> None:
        for wire in self._wires:
            wire.close()
        self._listener.close()


@dataclass(frozen=True)
class Recording:
    """One recorded exchange, both directions raw."""

    label: str
    request: bytes
    response: bytes

    @property
    def request_body(self) -> bytes:
        return re.split(rb"\r?\n\r?\n", self.request, maxsplit=1)[-1]

    @property
    def response_body(self) -> bytes:
        return self.response.partition(b"\r\n\r\n")[2]


@pytest.fixture(scope="session")
def recordings() -> Callable[[str], list[Recording]]:
    """Loads a file of recorded exchanges by its name without suffix."""

    def load(name: str) -> list[Recording]:
        return [
            Recording(entry["exchange"], base64.b64decode(entry["request"]), base64.b64decode(entry["response"]))
            for entry in map(json.loads, (GOLDEN / f"{name}.jsonl").read_text().splitlines())
        ]

    return load


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets, and without `_`, which XenAPI.py cannot address."""
    while "_" in (name := tempfile.mkdtemp(prefix="x", dir="/tmp")):
        Path(name).rmdir()
    yield Path(name)
    shutil.rmtree(name)


@pytest.fixture
async def make_door(run_dir: Path) -> AsyncIterator[Callable[..., Awaitable[tuple[HttpDoor, Path]]]]:
    """Opens doors on Unix sockets and closes them; at the end no task of theirs may be left."""
    doors: list[HttpDoor] = []

    async def make(
        answer: Callable[[HttpRequest], Awaitable[HttpReply | CloseSilently]],
        *,
        manner: HttpManner | None = None,
        body_limit: int = 8 * 1024 * 1024,
        **options: object,
    ) -> tuple[HttpDoor, Path]:
        manner = manner or manners.rpclib("xenopsd-simulator")
        door = HttpDoor(answer, manner=manner, body_limit=body_limit, **options)  # type: ignore[arg-type]
        doors.append(door)
        path = run_dir / f"d{len(doors)}"
        await door.listen_unix(path)
        return door, path

    yield make
    for door in doors:
        await door.close()
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in names if name.startswith(("RequestHandler.", "Connection.", "HttpDoor._", "Stream."))]


@pytest.fixture
def exchange() -> Callable[..., Awaitable[bytes]]:
    """Sends raw bytes on a connection of their own and gives all that came back until its end."""

    async def send(path: Path, data: bytes, *, ends: bool = False) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            writer.write(data)
            if ends:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()

    return send


@pytest.fixture
async def make_daemon(run_dir: Path) -> AsyncIterator[Callable[..., Awaitable[Path]]]:
    """Starts one-shot legacy daemons: one request per connection, read by its content-length, answered raw, closed."""
    servers: list[asyncio.Server] = []
    serving: set[asyncio.Task[object]] = set()

    async def make(respond: Callable[[bytes], Awaitable[bytes]], *, backlog: int = 5) -> Path:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            task.add_done_callback(serving.discard)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].partition(b":")[2])) if lengths else b""
                writer.write(await respond(head + body))
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
    # Some tests leave their daemon waiting for ever.
    waiting = list(serving)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.fixture
def raw_daemon(run_dir: Path) -> Iterator[RawDaemon]:
    """A daemon that the test plays byte by byte."""
    daemon = RawDaemon(run_dir / "raw")
    yield daemon
    daemon.close()


@pytest.fixture
def dial() -> Iterator[Callable[[Path | socket.socket], Wire]]:
    """Connects to a path, or to a TCP listener's address."""
    wires: list[Wire] = []

    def connect(to: Path | socket.socket) -> Wire:
        if isinstance(to, socket.socket):
            connection = socket.create_connection(to.getsockname())
        else:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(to))
        wires.append(Wire(connection))
        return wires[-1]

    yield connect
    for wire in wires:
        wire.close()


@pytest.fixture
def relay_door(
    make_door: Callable[..., Awaitable[tuple[HttpDoor, Path]]], raw_daemon: RawDaemon
) -> Callable[..., Awaitable[tuple[HttpDoor, Path]]]:
    """Opens doors that relay what is no call to the raw daemon and echo calls; an unanswered stream gets a 502."""

    async def echo(request: HttpRequest) -> HttpReply:
        return HttpReply(200, (), request.body)

    async def make(
        *, manner: HttpManner = manners.XAPI, daemon: Path = raw_daemon.path, **options: object
    ) -> tuple[HttpDoor, Path]:
        client = DaemonClient(str(daemon))

        async def relay(stream: Stream) -> HttpReply | CloseSilently | None:
            try:
                await client.relay(stream, timeout=5)
            except DaemonUnreachable:
                return manner.unreachable
            except (ClosedSilently, DaemonGone) as error:
                return HttpReply(502, (), type(error).__name__.encode())
            return None

        def is_stream(method: str, target: str) -> bool:
            return not manner.is_call(method, target)

        options = {"answer_stream": relay, **options}
        return await make_door(echo, manner=manner, is_stream=is_stream, **options)

    return make
