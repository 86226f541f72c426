"""Clients that were not written for us: Python's xmlrpc.client and the XenAPI package, against a door."""

from __future__ import annotations

import asyncio
import http.client
import socket
import xmlrpc.client
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from xmlrpc_gateway import manners
from xmlrpc_gateway.dialects import failure, success
from xmlrpc_gateway.http_messages import HttpReply, HttpRequest
from xmlrpc_gateway.server import HttpDoor
from xmlrpc_gateway.xmlrpc_codec import Value, decode_call, encode_response

MakeDoor = Callable[..., Awaitable[tuple[HttpDoor, Path]]]


async def answer(request: HttpRequest) -> HttpReply:
    """A very small xapi."""
    method, params = decode_call(request.body)
    reply: Value
    match method:
        case "session.login_with_password":
            reply = success("OpaqueRef:s")
        case "session.logout":
            reply = success("")
        case "VM.get_all_records":
            reply = success({f"OpaqueRef:{i}": {"name_label": "\u00fc<&>" * 20, "memory": "17"} for i in range(50)})
        case "echo":
            reply = params
        case _:
            reply = failure(["MESSAGE_METHOD_UNKNOWN", method])
    return HttpReply(200, (), encode_response(reply))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket that the host names in percent encoding."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host.replace("%2F", "/"))


class UnixTransport(xmlrpc.client.Transport):
    """xmlrpc.client over a Unix socket, kept alive."""

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        if self._connection is None or self._connection[0] != host:
            self._connection = host, UnixConnection(host)
        connection = self._connection[1]
        assert connection is not None
        return connection


@pytest.mark.parametrize("manner", [manners.XAPI, manners.rpclib("xcp-rrdd")], ids=["xapi", "rpclib"])
async def test_xmlrpc_client(make_door: MakeDoor, manner: manners.HttpManner) -> None:
    """Python's own client calls again and again, whether its connection is kept or closed."""
    _, path = await make_door(answer, manner=manner)

    def story() -> None:
        uri = f"http://{str(path).replace('/', '%2F')}/"
        with xmlrpc.client.ServerProxy(uri, transport=UnixTransport(), allow_none=True) as proxy:
            for value in ({"a": [1, None, True, 2.5]}, "x" * 5000, b"\0\1", "\u00e9\n<&>"):
                (back,) = proxy.echo(value)  # type: ignore[misc]
                assert (back.data if isinstance(value, bytes) else back) == value  # type: ignore[union-attr]

    await asyncio.to_thread(story)


async def test_xenapi_over_its_unix_socket(make_door: MakeDoor) -> None:
    """XenAPI.py logs in, calls, meets a failure and logs out, by its rule that `_` in the host means `/`."""
    _, path = await make_door(answer, manner=manners.XAPI)

    def story() -> None:
        session = XenAPI.Session(f"http://{str(path).replace('/', '_')}/", transport=XenAPI.UDSTransport())
        session.login_with_password("root", "", "1.0", "test")
        records = session.xenapi.VM.get_all_records()
        assert len(records) == 50
        assert records["OpaqueRef:7"] == {"name_label": "\u00fc<&>" * 20, "memory": "17"}
        with pytest.raises(XenAPI.Failure) as caught:
            session.xenapi.VM.nonsense()
        assert caught.value.details == ["MESSAGE_METHOD_UNKNOWN", "VM.nonsense"]
        session.xenapi.session.logout()
        session("close")()

    await asyncio.to_thread(story)


async def test_xenapi_over_tcp_with_gzip(make_door: MakeDoor) -> None:
    """Over TCP XenAPI.py posts to /RPC2 and takes the compressed reply that it asks for."""
    requests: list[HttpRequest] = []

    async def watch(request: HttpRequest) -> HttpReply:
        requests.append(request)
        return await answer(request)

    door, _ = await make_door(watch, manner=manners.XAPI)
    host, port = (await door.listen_tcp("127.0.0.1", 0)).getsockname()

    def story() -> None:
        session = XenAPI.Session(f"http://{host}:{port}")
        session.login_with_password("root", "", "1.0", "test")
        assert len(session.xenapi.VM.get_all_records()) == 50
        session("close")()

    await asyncio.to_thread(story)
    assert {request.target for request in requests} == {"/RPC2"}
    assert ("Accept-Encoding", "gzip") in requests[0].headers
