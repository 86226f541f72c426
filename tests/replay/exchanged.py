"""Exchanges of a capture, and daemons that do with a connection what a test says."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bridges.calls import Value
from bridges.capture import typed
from bridges.capture.records import ANSWERED, Leg, Reply, Request
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.interfaces.model import Method
from bridges.replay.pairs import Exchange

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BOOT = "b"
_seqs = itertools.count(1)


def method(service: str, name: str) -> Method:
    """A method of today's interface."""
    found = model.load(service).method(name)
    assert found is not None
    return found


def exchange(
    service: str,
    name: str,
    arguments: dict[str, Value],
    answer: Value | Fault,
    *,
    at: float = 0.0,
    us: int = 1000,
    **more: Any,
) -> Exchange:
    """A recorded call and its answer; `at` is in seconds. `more` are fields of the request."""
    called, seq = method(service, name), next(_seqs)
    moment, over = str(round(at * 1e9) + 10**9), str(round(at * 1e9) + us * 1000 + 10**9)
    said: dict[str, Any] = {"outcome": ANSWERED, "result": None}
    if isinstance(answer, Fault):
        said = {"outcome": "fault", "fault": typed.write_fault(called, answer)}
    else:
        said["result"] = typed.write(called.result, answer)
    fields: dict[str, Any] = {"arguments": typed.write_arguments(called, arguments), "method": name, **more}
    request = Request(seq, str(seq), Leg.CALLER, moment, moment, service, "http", name, **fields)
    reply = Reply(seq + 10**6, str(seq), Leg.CALLER, over, over, service, "http", seq, us, method=name, **said)
    return Exchange(request, reply, None, BOOT)  # type: ignore[arg-type] -- no file


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory for sockets."""
    while "_" in (name := tempfile.mkdtemp(prefix="rp", dir="/tmp")):
        Path(name).rmdir()
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name)


@asynccontextmanager
async def daemon(path: Path, talk: Talk) -> AsyncIterator[list[bytes]]:
    """Somebody who listens at `path`, reads a request (its head and its body) and does `talk`; gives the requests."""
    requests: list[bytes] = []
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            requests.append(head + await reader.readexactly(int(length[15:])))
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield requests
    finally:
        server.close()
        for task in tasks:
            assert task is not None
            task.cancel()
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
