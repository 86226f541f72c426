"""Doors, one-shot legacy daemons, raw exchanges and recordings for the tests of the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xmlrpc_gateway import manners
from xmlrpc_gateway.server import HttpDoor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from xmlrpc_gateway.http_messages import CloseSilently, HttpReply, HttpRequest
    from xmlrpc_gateway.manners import HttpManner

GOLDEN = Path(__file__).parents[1] / "golden" / "xmlrpc"


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
    assert not [name for name in names if name.startswith(("RequestHandler.", "Connection.", "HttpDoor._"))]


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
