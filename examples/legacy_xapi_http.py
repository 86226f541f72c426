"""The wire of the small legacy xapi: XML-RPC and JSON-RPC, streams and raw connections, as xapi's own server does them.

POST to /jsonrpc is JSON-RPC, to any other path XML-RPC; connections are kept as the version of HTTP says. What is not
understood gets a small page and a close: 500, 501, 403, 431 for a long head (500 on the Unix socket). Whoever comes
over the Unix socket is trusted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http
import json
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

from legacy_http import Unreadable, read_call
from legacy_xapi_objects import DateTime, Failure, Int32, Value

BODY_LIMIT = 300 * 1024
HEAD_LIMIT = 1024
BLOCK = 64 * 1024
XML = '<?xml version="1.0"?><methodResponse><params><param>{}</param></params></methodResponse>'
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "X-Requested-With"}
RRD_UPDATES = (
    '<?xml version="1.0"?><xport><meta><start>0</start><step>5</step><end>5</end><rows>1</rows><columns>1</columns>'
    "<legend><entry>AVERAGE:host:0:cpu0</entry></legend></meta><data><row><t>5</t><v>0.25</v></row></data></xport>"
)
_CONTROL = {code: "" for code in range(32) if code not in {9, 10, 13}}


class Service(Protocol):
    """Who answers."""

    async def call(self, method: str, params: list[Value], *, trusted: bool) -> Value:
        """The result of a call. Raises Failure."""

    def admit(self, name: str, query: dict[str, str], password: str | None, *, trusted: bool) -> None:
        """Lets a transfer begin. Raises Failure."""

    def finish(self, query: dict[str, str], failure: list[Value] | None = None) -> None:
        """A transfer is over; its task ends."""


def xml_value(value: Value) -> str:
    """As rpclib prints it: numbers without a tag, nothing between the tags."""
    match value:
        case bool():
            inner = f"<boolean>{value:d}</boolean>"
        case Int32():
            inner = f"<i4>{value}</i4>"
        case DateTime():
            inner = f"<dateTime.iso8601>{value}</dateTime.iso8601>"
        case int():
            inner = str(value)
        case float():
            inner = f"<double>{value:.16g}</double>"
        case str():
            inner = escape(value.translate(_CONTROL), {'"': "&quot;"})
        case list():
            inner = f"<array><data>{''.join(map(xml_value, value))}</data></array>"
        case dict():
            members = (f"<member><name>{escape(n)}</name>{xml_value(item)}</member>" for n, item in value.items())
            inner = f"<struct>{''.join(members)}</struct>"
        case _:
            inner = "<nil/>"
    return f"<value>{inner}</value>"


async def _ask(service: Service, method: str, params: list[Value], *, trusted: bool) -> Value | Failure:
    try:
        return await service.call(method, params, trusted=trusted)
    except Failure as failure:
        return failure
    except Exception as error:  # a defect of this example must not look like a lost connection
        traceback.print_exc()
        return Failure("INTERNAL_ERROR", repr(error))


async def answer_xml(service: Service, body: bytes, *, trusted: bool) -> bytes:
    """The reply to an XML-RPC call. Raises Unreadable."""
    method, params = read_call(body)
    result = await _ask(service, method, params, trusted=trusted)
    if isinstance(result, Failure):
        envelope: Value = {"Status": "Failure", "ErrorDescription": result.description}
    else:
        envelope = result if method == "system.listMethods" else {"Status": "Success", "Value": result}
    return XML.format(xml_value(envelope)).encode()


async def answer_json(service: Service, body: bytes, *, trusted: bool) -> bytes:
    """The reply to a call in JSON-RPC, version 1 or 2 as the call. Raises Unreadable."""
    try:
        call = json.loads(body)
        method, params, two = call["method"], call.get("params", []), call.get("jsonrpc") == "2.0"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unreadable(repr(error)) from None
    if not isinstance(method, str) or not isinstance(params, list):
        raise Unreadable("no method or no list of parameters")
    result = await _ask(service, method, params, trusted=trusted)
    reply: dict[str, object] = {"jsonrpc": "2.0"} if two else {}
    if not isinstance(result, Failure):
        reply |= {"result": result} if two else {"result": result, "error": None}
    elif two:
        code, *data = result.description
        reply |= {"error": {"code": 1, "message": code, "data": data}}
    else:
        reply |= {"result": None, "error": result.description}
    reply["id"] = call.get("id")
    return json.dumps(reply, separators=(",", ":"), ensure_ascii=False).encode()


def exported(count: int) -> Iterator[bytes]:
    """`count` bytes, the same every time: blocks of 64 KiB that repeat their number, 8 bytes with the highest first."""
    for number in range(-(-count // BLOCK)):
        yield (number.to_bytes(8, "big") * (BLOCK // 8))[: count - number * BLOCK]


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; `query` has the cookies too."""

    method: str
    path: str
    query: dict[str, str]
    version: str
    headers: dict[str, str]

    @property
    def keeps(self) -> bool:
        """Whether the connection stays when it is answered."""
        wish = self.headers.get("connection", "").lower()
        return wish == "keep-alive" if self.version == "HTTP/1.0" else wish != "close"

    @property
    def length(self) -> int | None:
        """Of the body, if the head says it."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() else None

    @property
    def password(self) -> str | None:
        """Of Basic credentials."""
        kind, _, credentials = self.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        with contextlib.suppress(ValueError):
            return base64.b64decode(credentials).decode().partition(":")[2]
        return None


def read_head(head: bytes) -> Request:
    """Raises Unreadable."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    try:
        method, target, version = first.split(" ")
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
    except ValueError:
        raise Unreadable(first) from None
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise Unreadable(version)
    split = urlsplit(target)
    cookies = headers.get("cookie", "").replace(";", "&").replace(" ", "")
    return Request(method, split.path, dict(parse_qsl(cookies) + parse_qsl(split.query)), version, headers)


class Connection:
    """One connection: `serve` is the whole of it."""

    def __init__(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, trusted: bool
    ) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._trusted = trusted

    async def serve(self) -> None:
        """Answers until one side has enough."""
        try:
            while await self._exchange():
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writer.close()

    async def _exchange(self) -> bool:
        """One request; whether another one may follow."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            head = b""
        if not 0 < len(head) <= HEAD_LIMIT:
            return await self._refuse(500 if self._trusted else 431, "the header is too long")
        try:
            request = read_head(head)
            match request.method:
                case "POST":
                    return await self._call(request)
                case "OPTIONS":
                    return await self._send(request, 200, b"", **CORS)
                case "GET" | "PUT" | "CONNECT":
                    return await self._transfer(request)
        except Unreadable as error:
            return await self._refuse(500, escape(str(error)))
        return await self._refuse(501, "not implemented")

    async def _call(self, request: Request) -> bool:
        if request.length is None:
            return await self._refuse(500, "a content-length is required")
        if request.length > BODY_LIMIT:
            return await self._refuse(500, "the request is too large")
        body = await self._reader.readexactly(request.length)
        is_json = request.path == "/jsonrpc"
        reply = await (answer_json if is_json else answer_xml)(self._service, body, trusted=self._trusted)
        return await self._send(request, 200, reply, "application/json" if is_json else "text/xml", **CORS)

    async def _transfer(self, request: Request) -> bool:
        handlers: dict[str, Callable[[Request], Awaitable[bool]]] = {
            "GET/export": self._export,
            "PUT/import": self._import,
            "CONNECT/console": self._connect,
            "GET/console": self._websocket,
            "GET/rrd_updates": lambda r: self._send(r, 200, RRD_UPDATES.encode(), "text/xml"),
            "GET/blob": lambda r: self._send(r, 200, b"".join(exported(1000)), "application/octet-stream"),
            "GET/redirect": lambda r: self._send(r, 302, b"", location=r.query.get("to", "/blob")),
        }
        name = request.method + request.path
        if name not in handlers:
            return await self._refuse(403, "forbidden")
        try:
            self._service.admit(name, request.query, request.password, trusted=self._trusted)
        except Failure:
            return await self._refuse(401, "no valid session", **{"WWW-Authenticate": 'Basic realm="xapi"'})
        return await handlers[name](request)

    async def _export(self, request: Request) -> bool:
        if not request.query.get("bytes", "").isdecimal():
            return await self._refuse(500, "bytes must be a number")
        count = int(request.query["bytes"])
        chunked = "chunked" in request.query
        size = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(count)}
        self._head(request.version, 200, {"content-type": "application/octet-stream", **_manner(request), **size})
        for block in exported(count):
            self._writer.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            await self._writer.drain()
        if chunked:
            self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        self._service.finish(request.query)
        return request.keeps

    async def _import(self, request: Request) -> bool:
        """Without a length the body goes on until the other side has no more to say."""
        counted, hashed, length = 0, hashlib.sha256(), request.length
        while counted != length and (block := await self._reader.read(BLOCK if length is None else length - counted)):
            counted += len(block)
            hashed.update(block)
        if length is not None and counted < length:
            self._service.finish(request.query, ["IMPORT_ERROR", f"{counted} of {length} bytes came"])
            return False
        self._service.finish(request.query)
        told = json.dumps({"bytes": counted, "sha256": hashed.hexdigest()})
        return await self._send(request, 200, told.encode(), "application/json") and length is not None

    async def _connect(self, _request: Request) -> bool:
        self._writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        return await self._echo()

    async def _websocket(self, request: Request) -> bool:
        """Agrees to the upgrade; behind it bytes are echoed as they come, masked frames too."""
        if request.headers.get("upgrade", "").lower() != "websocket":
            return await self._refuse(403, "forbidden")
        key = request.headers.get("sec-websocket-key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
        self._head("HTTP/1.1", 101, upgrade)
        return await self._echo()

    async def _echo(self) -> bool:
        while block := await self._reader.read(BLOCK):
            self._writer.write(block)
            await self._writer.drain()
        return False

    async def _send(self, request: Request, status: int, body: bytes, of: str = "", **more: str) -> bool:
        size = {"content-length": str(len(body))}
        self._head(request.version, status, ({"content-type": of} if of else {}) | _manner(request) | size | more)
        self._writer.write(body)
        await self._writer.drain()
        return request.keeps

    async def _refuse(self, status: int, text: str, **more: str) -> bool:
        """A page, then a close that waits a little for a body on its way, so that the page is not lost to a reset."""
        page = f"<html><body><h1>HTTP {status} {http.HTTPStatus(status).phrase}</h1>{text}</body></html>".encode()
        manner = {"connection": "close", "cache-control": "no-cache, no-store"}
        self._head(
            "HTTP/1.1", status, {"content-type": "text/html", **manner, "content-length": str(len(page)), **more}
        )
        self._writer.write(page)
        self._writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while await self._reader.read(BLOCK):
                    pass
        return False

    def _head(self, version: str, status: int, headers: dict[str, str]) -> None:
        lines = [f"{version} {status} {http.HTTPStatus(status).phrase}", *(f"{n}: {v}" for n, v in headers.items())]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def _manner(request: Request) -> dict[str, str]:
    keeps = "keep-alive" if request.keeps else "close"
    return {"connection": keeps, "cache-control": "no-cache, no-store"}
