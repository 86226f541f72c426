"""Calls to an HTTP daemon that is driven, over httpx: the same outcomes as `xmlrpc_gateway.client`, another's HTTP.

One connection a call, nothing sent twice, no redirects, no proxies. What cannot be told apart here is a connection that
ended within the headers of the reply from one that was closed without a byte: both count as the silent close with which
legacy daemons refuse. For the caller both are the same, a reply that never came.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import anyio.lowlevel
import httpcore
import httpx

from xmlrpc_gateway.errors import (
    BadReply,
    ClosedSilently,
    DaemonError,
    DaemonGone,
    DaemonTimedOut,
    DaemonUnreachable,
)
from xmlrpc_gateway.sockets import connect_unix

AT_ONCE: Final = 64  # connections, as the bridge has: legacy daemons have a thread for each
REPLY_LIMIT: Final = 512 * 1024 * 1024  # legacy answers know no limit; this is against a daemon gone mad
_HEADERS: Final = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "connection": "close",
    "user-agent": "xcp-bridge replay",
}
_CONNECTING: Final = frozenset({"connection.connect_unix_socket.started", "connection.connect_tcp.started"})
_SENDING: Final = "http11.send_request_headers.started"

# Told, in the context of a call, when it leaves: until then it was we who held it back (httpx takes its time).
ON_THE_WAY: ContextVar[Callable[[], None] | None] = ContextVar("on_the_way", default=None)


async def load() -> None:
    """Loads what httpx loads with its first call: a schedule has no time for it."""
    await anyio.lowlevel.checkpoint()


class HttpxClient:
    """A daemon at a Unix socket (`path`), or at the host and port of `url`. Calls are POSTed to `url`.

    `check` is asked once connected to a path, before anything is sent; an OSError of it means that nothing was.
    """

    def __init__(self, url: str, path: str | None = None, check: Callable[[], None] = lambda: None) -> None:
        self._url = url
        # No connection is kept: a daemon may close one at any time, and a call on it would then be in doubt.
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
        transport = (
            httpx.AsyncHTTPTransport(limits=limits, retries=0, trust_env=False)
            if path is None
            else _UnixSocket(path, limits, check)
        )
        self._client = httpx.AsyncClient(transport=transport, headers=_HEADERS, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """Ends what is under way."""
        await self._client.aclose()

    async def call(self, body: bytes, *, timeout: float | None, is_long_poll: bool = False) -> bytes:
        """POSTs a call and gives the body of the reply. Raises DaemonError. `timeout` in seconds, for all of it."""
        sent = False
        on_the_way = ON_THE_WAY.get()

        async def note(event: str, _info: dict[str, Any]) -> None:
            nonlocal sent
            if event in _CONNECTING and on_the_way is not None:
                on_the_way()
            sent = sent or event == _SENDING

        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(body, timeout, note)
        except TimeoutError:
            if sent:
                raise DaemonTimedOut(f"no reply within {timeout} s") from None
            raise DaemonUnreachable(f"no connection within {timeout} s") from None
        except httpx.HTTPError as error:
            raise _told(error) from None

    async def _exchange(self, body: bytes, timeout: float | None, note: Any) -> bytes:
        request = self._client.build_request("POST", self._url, content=body, timeout=timeout)
        request.extensions["trace"] = note
        reply = await self._client.send(request, stream=True)
        received = bytearray()
        try:
            async for block in reply.aiter_raw():
                received += block
                if len(received) > REPLY_LIMIT:
                    raise BadReply(f"the reply exceeds the limit of {REPLY_LIMIT} bytes")
        finally:
            await reply.aclose()
        if reply.status_code != 200:
            raise BadReply(f"expected HTTP status 200, got {reply.status_code}: {bytes(received[:200])!r}")
        return bytes(received)


class _UnixSocket(httpx.AsyncHTTPTransport):
    """httpx on connections of ours.

    Its own way to a Unix socket waits for room in a full queue by asking without a pause, and leaves the socket open
    when that is cancelled (anyio 4.16); legacy daemons have a queue of 5.
    """

    def __init__(self, path: str, limits: httpx.Limits, check: Callable[[], None]) -> None:
        super().__init__(uds=path, limits=limits, retries=0, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            uds=path,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            network_backend=_Network(check),
        )


class _Network(httpcore.AsyncNetworkBackend):
    """Connects Unix sockets. How long anything may take, here and below, is for `HttpxClient.call` to limit."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: object = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            connection = await connect_unix(path)
        except OSError as error:
            raise httpcore.ConnectError(f"{path}: {error}") from error
        try:
            self._check()
        except OSError as error:
            connection.close()
            raise httpcore.ConnectError(f"{path}: {error}") from error
        return _Connection(connection)


class _Connection(httpcore.AsyncNetworkStream):
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._connection, max_bytes)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, buffer)
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._connection.close()


def _told(error: httpx.HTTPError) -> DaemonError:
    """What an error of httpx is for us; above all whether anything had been sent."""
    text = str(error) or type(error).__name__
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout() | httpx.LocalProtocolError():
            return DaemonUnreachable(text)
        case httpx.TimeoutException():
            return DaemonTimedOut(text)
        case httpx.RemoteProtocolError() if "without sending a response" in text:
            return ClosedSilently("the daemon closed the connection without a reply")
        case httpx.RemoteProtocolError() if "complete message body" not in text:
            return BadReply(text)
        case _:
            return DaemonGone(f"the connection was lost: {text}")
