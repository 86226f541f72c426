"""A daemon that repeats in its answers what it was told: XML-RPC and JSON-RPC over HTTP, JSON in frames."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
import xmlrpc.client
from html import escape
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The service's own error: a code and texts."""

    def __init__(self, code: str, *texts: str) -> None:
        super().__init__(code)
        self.description = [code, *texts]


class Parrot:
    """One process for every socket of a host. `heard` is what came, request by request; `accent` tells two of them
    apart by their answers."""

    def __init__(self, password: str, accent: str) -> None:
        self.heard: list[bytes] = []
        self.sessions: list[str] = []
        self._password = password
        self._accent = accent
        self._servers: list[asyncio.Server] = []

    async def serve(self, *paths: Path) -> None:
        """Serves these sockets, whatever protocol a connection speaks."""
        for path in paths:
            self._servers.append(await asyncio.start_unix_server(self._connected, str(path)))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await self._exchange(reader))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass  # what cannot be read has no answer
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes:
        start = await reader.readexactly(16)
        if start.isdigit():
            self.heard.append(body := await reader.readexactly(int(start)))
            reply = self._answer_json(body) if b'"SR.probe"' not in body else b"no reply: " + body
            return b"%016d%s" % (len(reply), reply)
        head = start + await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        self.heard.append(head + body)
        status, page = b"500 Internal Error", escape((head + body).decode("utf-8", "replace")).encode()
        if head.startswith(b"POST") and b"<methodName>VM.set_name_label" not in body:
            try:
                page = (self._answer_json if head.startswith(b"POST /jsonrpc") else self._answer_xml)(body)
                status = b"200 OK"
            except Exception as error:
                page += repr(error).encode()
        return b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (status, len(page), page)

    def _answer_xml(self, body: bytes) -> bytes:
        params, method = xmlrpc.client.loads(body)
        try:
            envelope = {"Status": "Success", "Value": self._say(str(method), list(params))}
        except Refused as refused:
            envelope = {"Status": "Failure", "ErrorDescription": refused.description}
        return xmlrpc.client.dumps((envelope,), methodresponse=True, allow_none=True).encode()

    def _answer_json(self, body: bytes) -> bytes:
        call = json.loads(body)
        two = call.get("jsonrpc") == "2.0"
        reply: dict[str, Any] = {"id": call["id"]} | ({"jsonrpc": "2.0"} if two else {"result": None, "error": None})
        try:
            reply["result"] = self._say(call["method"], call["params"])
        except Refused as refused:
            code, *data = refused.description
            reply["error"] = {"code": 1, "message": code, "data": data} if two else refused.description
        return json.dumps(reply).encode()

    def _event(self) -> dict[str, Any]:
        snapshot = {"name_label": self._accent, "other_config": {"password": self._password}}
        found = {"id": "1", "timestamp": "0", "class": "vm", "operation": "mod", "ref": "OpaqueRef:1"}
        return found | {"obj_uuid": "u", "snapshot": snapshot}

    def _say(self, method: str, params: list[Any]) -> Any:
        """The result of a call."""
        match method:
            case "session.login_with_password" if params[0] == "root":
                self.sessions.append(f"OpaqueRef:{uuid.uuid4()}")
                return self.sessions[-1]
            case "session.change_password" | "VM.add_to_other_config":
                return ""
            case "SR.create":
                return f"OpaqueRef:{uuid.uuid4()}"
            case "SR.attach":
                return None
            case "secret.get_value":
                return self._password + self._accent
            case "VM.get_other_config":
                return {"password": self._password + self._accent, "site": f"{self._accent} password={self._password}"}
            case "VM.get_name_description":
                return f"{self._accent} mount -o password={self._password}"
            case "host.call_plugin":
                return f"password={self._password}"
            case "event.from":
                return {"events": [self._event()], "valid_ref_counts": {}, "token": "1"}
        code = "Internal_error" if isinstance(params[0], dict) else "INTERNAL_ERROR"
        raise Refused(code, f"{method} failed: {params}, known as {self._password}")
