"""A host under capture, and callers who put a known password into every door of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import socket
import sys
import xmlrpc.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from bridges import dbus_translation
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.interfaces.model import Service
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused, SignatureMismatch
from tests.fixtures_toolstack import Toolstack
from tests.live.conftest import Callers

CORE = secrets.token_hex(8)
CANARY = f"Canary-{CORE}-&<é"
PATIENCE = 30
NOBODY = "OpaqueRef:00000000-0000-4000-8000-000000000001"
SERVICES = """
[services.xapi]
http = {{ socket = "{directory}/xapi", listen = ["tcp:127.0.0.1:{port}"] }}
[services.storage]
framed = {{ socket = "{directory}/storage.json" }}
[services.squeezed]
xenstore = "squeezed"
http = {{ socket = "{directory}/memory" }}
reach = "xenstore"
[services.perfmon]
datagram = "{perfmon}"
"""
XAPI, STORAGE = model.load("xapi"), model.load("storage")
FAR = f"https://root:{CANARY}@far/"
DEVICE = {"server": "nas", "cifspassword": CANARY}


class CanaryHost(Toolstack):
    """The daemons of xapi and storage, and the candidate's, are parrots in the test's own process."""

    def legacy_commands(self) -> dict[str, list[str]]:
        commands = super().legacy_commands()
        squeezed = ["--xenstore", self.store.socket, "--http", f"{self.directory}/memory"]
        return {
            "squeezed": self.example("squeezed", "legacy_squeezed.py", *squeezed),
            "perfmon": commands["perfmon"],
            # What is stopped when the service moves; its socket is the parrot's.
            "xapi": ["/bin/sh", "-c", f"sleep 600 >/dev/null 2>&1 & echo $! > {self.directory}/xapi.pid"],
        }

    def write_settings(self, *, reach: str = "", stale: str = "") -> None:
        self.settle(SERVICES, port=self.port, perfmon=self.perfmon)

    async def start_bridge(self) -> None:
        """With everything in its log that it can say."""
        command = [sys.executable, "-m", "bridges", "run", "--verbose", "--settings", str(self.settings)]
        await self._spawn("bridge", command)
        await self.until(lambda: " ready: " in self.log("bridge"))


class Doors:
    """Whoever calls at the doors of the host, always with the password."""

    def __init__(self, host: CanaryHost, bus: Bus) -> None:
        self.host = host
        self.callers = Callers(host)
        self.sessions: list[str] = []
        self._bus = bus

    async def calls_over_http(self) -> None:
        """xapi: every call as XML-RPC on the Unix socket, and as both versions of JSON-RPC over TCP."""
        (envelope,), _ = xmlrpc.client.loads(
            await self._post("/", as_xml("session.login_with_password", "root", CANARY))
        )
        assert isinstance(envelope, dict)
        session = str(envelope["Value"])
        self.sessions.append(session)
        for method, params in _xapi_calls(session):
            await self._post("/", as_xml(method, *params))
            for version in (1, 2):
                await self._post("/jsonrpc", as_json(method, params, version))
        whole = as_xml("session.change_password", session, CANARY, CANARY + "2")
        await self._post("/", whole[: whole.index(b"Canary") + len(CANARY.encode()) + 12])
        await self._post("/jsonrpc", as_json("session.change_password", [session, CANARY], 2)[:-5])
        twice = as_xml("SR.create", session, NOBODY, DEVICE, 1, "n", "d", "cifs", "", False, {})
        member = twice[twice.index(b"<member>\n<name>cifs") : twice.index(b"</struct>")]
        await self._post("/", twice.replace(b"</struct>", member + b"</struct>", 1))
        await self._post("/", twice.replace(b"<int>1</int>", f"<int>{quote(CANARY)}</int>".encode()))

    async def _post(self, target: str, body: bytes) -> bytes:
        head = f"POST {target} HTTP/1.1\r\nAuthorization: {basic()}\r\nCookie: password={quote(CANARY)}\r\n"
        sent = head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        reply = await (self._over_tcp(sent) if target == "/jsonrpc" else self._raw(sent))
        return reply.partition(b"\r\n\r\n")[2]

    async def _raw(self, sent: bytes) -> bytes:
        return await self.callers.raw(self.host.path("xapi"), sent)

    async def _over_tcp(self, sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.host.port)
        try:
            writer.write(sent)
            async with asyncio.timeout(PATIENCE):
                return await reader.read()
        finally:
            writer.close()

    async def pages_over_http(self) -> None:
        """HTTP that is no call, and what is no HTTP."""
        head = f"Authorization: {basic()}\r\nCookie: session_id={NOBODY}; password={quote(CANARY)}\r\n"
        query = f"session_id={self.sessions[-1]}&password={quote(CANARY)}"
        await self._raw(f"GET /export?{query} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        await self._raw(f"PUT /import?{query} HTTP/1.1\r\n{head}Content-Length: 99\r\n\r\n{CANARY}".ljust(500).encode())
        await self._raw(f"GET /export?{query} {CANARY} HTTP/1.1\r\n\r\n".encode())
        await self._raw(f"POST / HTTP/1.1\r\npassword {CANARY}\r\n\r\n".encode())
        await self._raw(f"POST / HTTP/1.1\r\nContent-Length: {CANARY}\r\n\r\n".encode())
        await self._raw(f"{CANARY} / HTTP/1.1\r\n\r\n".encode())

    async def calls_in_frames(self) -> None:
        """storage, with calls that are cut, wrong or unknown among them."""
        where = {"dbg": "d", "sr": "s"}
        copy = where | {
            "vdi": "v",
            "vm": "0",
            "url": FAR,
            "dest": CANARY,
            "verify_dest": True,
        }
        bodies = [
            as_json("SR.attach", [where | {"device_config": DEVICE}], 1),
            as_json("SR.attach", [where | {"device_config": CANARY}], 1),
            as_json("SR.attach", [where | {"device_config": DEVICE, "password": CANARY}], 1),
            as_json("SR.attach", [where | {"device_config": DEVICE}], 1)[:-6],
            as_json("DATA.copy", [copy], 1),
            as_json("SR.probe", [{"dbg": "d", "queue": "q", "device_config": DEVICE, "sm_config": {}}], 1),
            as_json("SR.connect", [where | {"password": CANARY}], 1),
        ]
        for sent in (
            *(b"%016d%s" % (len(body), body) for body in bodies),
            CANARY.encode(),
            b"9" * 16 + CANARY.encode(),
        ):
            await self.callers.raw(self.host.path("storage.json"), sent, half_close=True)

    async def calls_on_the_bus(self) -> None:
        """xapi and storage: right calls, surplus arguments, wrong ones, calls of nothing."""
        session = await self._call(XAPI, "session.login_with_password", "root", CANARY, "1", "test")
        self.sessions.append(session or NOBODY)
        for method, params in _xapi_calls(self.sessions[-1]):
            if XAPI.method(method) is not None:
                await self._call(XAPI, method, *params)
        await self._call(XAPI, "session.change_password", NOBODY, CANARY, CANARY, surplus=True)
        await self._call(STORAGE, "SR.attach", "d", "s", DEVICE)
        await self._call(STORAGE, "SR.probe", "d", "q", DEVICE, {})
        await self._call(STORAGE, "DATA.copy", "d", "s", "v", "0", FAR, CANARY, True)
        for path, interface, member in (
            ("session", "org.xen.xcp.xapi.session1", "LoginWithPasswd"),
            ("session", "org.xen.xcp.xapi.session7", "LoginWithPassword"),
            ("nothing", "org.xen.xcp.xapi.session1", "LoginWithPassword"),
        ):
            with contextlib.suppress(BusRefused):
                where = ("org.xen.xcp.xapi", f"/org/xen/xcp/xapi/{path}", interface)
                await self._bus.call(*where, member, "ss", ("root", CANARY), timeout=PATIENCE)
        for signature, body in (("ss", ("d", f"password={CANARY}")), ("s", (CANARY,))):
            with contextlib.suppress(BusRefused):
                where = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
                await self._bus.call(*where, "Login", signature, body, timeout=PATIENCE)

    async def _call(self, service: Service, name: str, *params: Any, surplus: bool = False) -> Any:
        method = service.method(name)
        assert method is not None
        form = dbus_translation.Translation(service).of(method)
        arguments = dict(zip((p.name for p in method.parameters), params, strict=False))
        with contextlib.suppress(BusRefused, SignatureMismatch, Fault):
            signature, body = form.input_signature, form.write_arguments(arguments)
            if surplus:
                signature, body = f"{signature}s", (*body, CANARY)
            where = names.service_name(service.name), form.path, form.interface, form.member
            reply = await self._bus.call(*where, signature, body, timeout=PATIENCE)
            return reply.body[0] if reply.body else None

    async def requests_in_the_store(self) -> None:
        """squeezed: where a rule knows it, where nobody declared anything, where an error repeats it."""
        hinted, bare = f"password={CANARY}".encode(), CANARY.encode()
        for function, arguments in (
            ("login", {"service_name": hinted}),
            ("reserve-memory", {"session_id": hinted, "kib": b"1"}),
            ("reserve-memory", {"session_id": b"s", "kib": bare}),
            ("reserve-memory", {"session_id": b"s", "kib": b"1", "undeclared": bare}),
            ("delete-reservation", {"password": bare}),
            ("no-such-function", {"password": bare}),
            ("echo", {"password": bare, "text": hinted}),
        ):
            await self.callers.ask_store(function, arguments)

    def datagrams(self) -> None:
        """perfmon: a command that there is not."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(CANARY.encode(), self.host.perfmon.replace("@", "\0", 1))


def _xapi_calls(session: str) -> Iterator[tuple[str, list[Any]]]:
    sr: list[Any] = [session, NOBODY, DEVICE, 1, "n", "d", "cifs", "", False, {"password": CANARY}]
    yield "session.login_with_password", ["root", CANARY]
    yield "session.login_with_password", ["root", CANARY, "1.0", f"script password={CANARY}"]
    yield "session.login_with_password", ["guest", CANARY]
    yield "session.change_password", [session, CANARY, CANARY + "2"]
    yield "pool.join", [session, "10.0.0.1", "root", CANARY]
    yield "SR.create", sr
    yield "SR.create", [*sr[:2], CANARY, *sr[3:]]
    yield "SR.create", [*sr[:3], f"password={CANARY}", *sr[4:]]
    yield "VM.add_to_other_config", [session, NOBODY, "password", CANARY]
    yield "VM.set_name_label", [session, NOBODY, f"password={CANARY}"]
    yield "VM.get_other_config", [session, NOBODY]
    yield "VM.get_name_description", [session, NOBODY]
    yield "secret.get_value", [session, NOBODY]
    yield "host.call_plugin", [session, NOBODY, "p", "f", {"password": CANARY}]
    yield "event.from", [session, ["vm"], "", 0.0]
    yield "session.login_with_passwd", ["root", CANARY]
    yield f"session.login?password={CANARY}", ["root"]


def as_xml(method: str, *params: Any) -> bytes:
    """A call in XML-RPC."""
    return xmlrpc.client.dumps(params, method).encode()


def as_json(method: str, params: list[Any], version: int) -> bytes:
    """A call in JSON-RPC 1 or 2; the text is escaped in the one and not in the other."""
    call = {"method": method, "params": params, "id": 7} | ({"jsonrpc": "2.0"} if version == 2 else {})
    return json.dumps(call, ensure_ascii=version == 2).encode()


def basic() -> str:
    """The header's value with the password."""
    return "Basic " + base64.b64encode(f"root:{CANARY}".encode()).decode()
