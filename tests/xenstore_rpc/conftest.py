"""Fixtures of the xenstore room."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from xenstore_rpc.connection import Store


@pytest.fixture
async def store(store_server: str) -> AsyncIterator[Store]:
    """A connected Store on each kind of server in turn."""
    connection = Store(store_server)
    await connection.connect()
    yield connection
    await connection.close()
