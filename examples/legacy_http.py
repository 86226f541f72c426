"""XML-RPC over HTTP on a Unix socket with the manners of the OCaml daemons of the toolstack.

One request per connection, then close. Anything but POST gets an empty 404. What cannot be read, and an unknown method,
get nothing at all: the connection is closed without a byte. The path of the request does not matter. Integers and text
look alike on this wire (no tag), so both are `str` here and who knows the type calls `integer`.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Answer = Callable[[str, list[Value]], Value]


class Unreadable(Exception):
    """No XML-RPC call, or a value that no type fits."""


class UnknownMethod(Exception):
    """The service has no such method."""


class Failure(Exception):
    """The service's own error: what ErrorDescription holds, a constructor's name or [name, argument]."""

    def __init__(self, description: Value) -> None:
        super().__init__(str(description))
        self.description = description


def marshal_error(reason: str) -> Failure:
    """How the generated OCaml code answers arguments that do not fit."""
    return Failure(["Internal_error", f'Idl.MarshalError("{reason}")'])


_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F][0-9a-fA-F_]*|0[oO][0-7][0-7_]*|0[bB][01][01_]*|[0-9][0-9_]*)")


def integer(text: Value) -> int:
    """The 64 bit integer in a text, as OCaml reads it: prefixes and underscores, no blanks. ValueError."""
    if not isinstance(text, str) or not _INTEGER.fullmatch(text):
        raise ValueError(text)
    digits = text.replace("_", "")
    plain = digits.lstrip("+-")
    number = int(digits, {"0x": 16, "0o": 8, "0b": 2}.get(plain[:2].lower(), 10))
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number


class HttpServer(socketserver.ThreadingUnixStreamServer):
    """Serves `path` in threads of its own. An old socket there is simply removed, as those daemons do."""

    request_queue_size = 5
    daemon_threads = True

    def __init__(self, path: Path, name: str, answer: Answer) -> None:
        self.name = name
        self.answer = answer
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    server: HttpServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, Unreadable, UnknownMethod):
            request, headers = self._head()
            if not request.startswith("POST "):
                self._send("404 Not Found", b"")
                return
            if not headers.get("content-length", "").isdecimal():
                raise Unreadable("no Content-Length")
            body = self.rfile.read(int(headers["content-length"]))
            self._send("200 OK", _reply(self.server.answer, body))

    def _head(self) -> tuple[str, dict[str, str]]:
        request = self.rfile.readline(4096).decode("latin-1")
        headers = {}
        while (line := self.rfile.readline(4096).decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return request, headers

    def _send(self, status: str, body: bytes) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nuser-agent: {self.server.name}\r\n\r\n"
        self.wfile.write(head.encode() + body)


def _reply(answer: Answer, body: bytes) -> bytes:
    name, params = read_call(body)
    try:
        envelope: Value = {"Status": "Success", "Value": answer(name, params)}
    except Failure as failure:
        envelope = {"Status": "Failure", "ErrorDescription": failure.description}
    return f"{_DECLARATION}<methodResponse><params><param>{_write(envelope)}</param></params></methodResponse>".encode()


_DECLARATION = '<?xml version="1.0"?>'


def read_call(body: bytes) -> tuple[str, list[Value]]:
    """Method name and positional parameters. Raises Unreadable."""
    try:
        call = ET.fromstring(body)
        if call.tag != "methodCall":
            raise Unreadable(call.tag)
        return call.findtext("methodName", ""), [_read(param.find("value")) for param in call.findall("params/param")]
    except (ET.ParseError, ValueError) as error:
        raise Unreadable(str(error)) from None


def write_call(method: str, params: list[Value]) -> bytes:
    """The call as the OCaml clients send it."""
    written = "".join(f"<param>{_write(param)}</param>" for param in params)
    call = f"<methodCall><methodName>{method}</methodName><params>{written}</params></methodCall>"
    return (_DECLARATION + call).encode()


def read_reply(body: bytes) -> Value:
    """The value of a reply. Raises Failure for the service's errors, Unreadable."""
    try:
        envelope = _read(ET.fromstring(body).find("params/param/value"))
    except (ET.ParseError, ValueError) as error:
        raise Unreadable(str(error)) from None
    if not isinstance(envelope, dict) or "Status" not in envelope:
        raise Unreadable("no envelope")
    if envelope["Status"] != "Success":
        raise Failure(envelope.get("ErrorDescription"))
    return envelope.get("Value")


def _read(value: ET.Element | None) -> Value:
    if value is None:
        raise Unreadable("no value")
    if len(value) == 0:
        return value.text or ""
    inner = value[0]
    text = inner.text or ""
    match inner.tag:
        case "string" | "int" | "i4" | "i8" | "dateTime.iso8601":
            return text
        case "boolean":
            return text == "1"
        case "double":
            return float(text)
        case "nil":
            return None
        case "array":
            return [_read(item) for item in inner.findall("data/value")]
        case "struct":
            return {member.findtext("name", ""): _read(member.find("value")) for member in inner.findall("member")}
    raise Unreadable(inner.tag)


def _write(value: Value) -> str:
    match value:
        case None:
            inner = "<nil/>"
        case bool():
            inner = f"<boolean>{value:d}</boolean>"
        case int():
            inner = str(value)
        case float():
            inner = f"<double>{value:.16g}</double>"
        case str():
            inner = _escape(value)
        case list():
            inner = f"<array><data>{''.join(_write(item) for item in value)}</data></array>"
        case dict():
            members = (f"<member><name>{name}</name>{_write(item)}</member>" for name, item in value.items())
            inner = f"<struct>{''.join(members)}</struct>"
    return f"<value>{inner}</value>"


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
# Control bytes vanish on this wire, all but tab and line ends.
_ESCAPES = str.maketrans({chr(code): "" for code in range(32) if code not in {9, 10, 13}} | _ENTITIES)


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)
