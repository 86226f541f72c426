"""Fixtures of the xenstore room."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from xenstore_rpc.connection import Store

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def store(store_server: str) -> AsyncIterator[Store]:
    """A connected Store on each kind of server in turn."""
    connection = Store(store_server)
    await connection.connect()
    yield connection
    await connection.close()


@asynccontextmanager
async def _connected_to(handle: Handler) -> AsyncIterator[Store]:
    handlers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        try:
            await handle(reader, writer)
        except ConnectionError:
            pass  # the Store may close with bytes unread
        finally:
            writer.transport.abort()

    directory = tempfile.mkdtemp(prefix="xs", dir="/tmp")
    server = await asyncio.start_unix_server(serve, f"{directory}/socket")
    store = Store(f"{directory}/socket")
    try:
        await store.connect()
        yield store
    finally:
        await store.close()
        server.close()
        await server.wait_closed()
        await asyncio.gather(*(handler for handler in handlers if handler is not None))
        shutil.rmtree(directory)


@pytest.fixture
def connected_to() -> Callable[[Handler], AbstractAsyncContextManager[Store]]:
    """Gives a Store connected to a peer that behaves as a handler of streams says."""
    return _connected_to
