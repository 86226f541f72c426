"""A known password goes through every door of a host under capture, and is in nothing that is kept or shown of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import socket
import sys
import xmlrpc.client
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import zstandard

from bridges import dbus_translation
from bridges.capture.detectors import find_canary
from bridges.capture.records import Header, Leg, Request
from bridges.capture.writing import Limits, write_all
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.interfaces.model import Service
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused, SignatureMismatch
from tests.fixtures_dbus import BusDaemon
from tests.fixtures_host import running_host
from tests.fixtures_toolstack import Toolstack
from tests.live.conftest import Callers
from tests.stories.parrot import Parrot

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
XAPI, STORAGE, SQUEEZED = (model.load(name) for name in ("xapi", "storage", "squeezed"))
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
        """xapi: every call as XML-RPC and as both versions of JSON-RPC, on the Unix socket and over TCP."""
        envelope = xmlrpc.client.loads(await self._post("/", _xml("session.login_with_password", "root", CANARY)))
        session = envelope[0][0]["Value"]  # type: ignore[index]
        self.sessions.append(session)
        for method, params in _xapi_calls(session):
            await self._post("/", _xml(method, *params))
            for version in (1, 2):
                await self._post("/jsonrpc", _json(method, params, version))
        whole = _xml("session.change_password", session, CANARY, CANARY + "2")
        await self._post("/", whole[: whole.index(b"Canary") + len(CANARY.encode()) + 12])
        await self._post("/jsonrpc", _json("session.change_password", [session, CANARY], 2)[:-5])
        twice = _xml("SR.create", session, NOBODY, DEVICE, 1, "n", "d", "cifs", "", False, {})
        member = twice[twice.index(b"<member>\n<name>cifs") : twice.index(b"</struct>")]
        await self._post("/", twice.replace(b"</struct>", member + b"</struct>", 1))
        await self._post("/", twice.replace(b"<int>1</int>", f"<int>{quote(CANARY)}</int>".encode()))

    async def _post(self, target: str, body: bytes) -> bytes:
        head = f"POST {target} HTTP/1.1\r\nAuthorization: {_basic()}\r\nCookie: password={quote(CANARY)}\r\n"
        sent = head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        return (await self._raw(sent)).partition(b"\r\n\r\n")[2]

    async def _raw(self, sent: bytes) -> bytes:
        return await self.callers.raw(self.host.path("xapi"), sent)

    async def pages_over_http(self) -> None:
        """HTTP that is no call, and what is no HTTP."""
        head = f"Authorization: {_basic()}\r\nCookie: session_id={NOBODY}; password={quote(CANARY)}\r\n"
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
        copy = where | {"vdi": "v", "vm": "0", "url": f"https://root:{CANARY}@far/", "dest": CANARY, "verify_dest": True}
        bodies = [
            _json("SR.attach", [where | {"device_config": DEVICE}], 1),
            _json("SR.attach", [where | {"device_config": CANARY}], 1),
            _json("SR.attach", [where | {"device_config": DEVICE, "password": CANARY}], 1),
            _json("SR.attach", [where | {"device_config": DEVICE}], 1)[:-6],
            _json("DATA.copy", [copy], 1),
            _json("SR.probe", [{"dbg": "d", "queue": "q", "device_config": DEVICE, "sm_config": {}}], 1),
            _json("SR.connect", [where | {"password": CANARY}], 1),
        ]
        for sent in (*(b"%016d%s" % (len(body), body) for body in bodies), CANARY.encode(), b"9" * 16 + CANARY.encode()):
            await self.callers.raw(self.host.path("storage.json"), sent, half_close=True)

    async def calls_on_the_bus(self) -> None:
        """xapi and storage: right calls, surplus arguments, wrong ones, calls of nothing."""
        session = await self._call(XAPI, "session.login_with_password", "root", CANARY, "1", "test")
        self.sessions.append(session or NOBODY)
        for method, params in _xapi_calls(self.sessions[-1]):
            if XAPI.method(method) is not None and "{}" not in method:
                await self._call(XAPI, method, *params)
        await self._call(XAPI, "session.change_password", NOBODY, CANARY, CANARY, surplus=True)
        await self._call(STORAGE, "SR.attach", "d", "s", DEVICE)
        await self._call(STORAGE, "SR.probe", "d", "q", DEVICE, {})
        await self._call(STORAGE, "DATA.copy", "d", "s", "v", "0", f"https://root:{CANARY}@far/", CANARY, True)
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
    yield "session.login_with_passwd", ["root", CANARY]


def _xml(method: str, *params: Any) -> bytes:
    return xmlrpc.client.dumps(params, method).encode()


def _json(method: str, params: list[Any], version: int) -> bytes:
    call = {"method": method, "params": params, "id": 7} | ({"jsonrpc": "2.0"} if version == 2 else {})
    return json.dumps(call, ensure_ascii=version == 2).encode()


def _basic() -> str:
    return "Basic " + base64.b64encode(f"root:{CANARY}".encode()).decode()


def traces(blob: bytes, text: str) -> list[str]:
    """Where a text of ASCII is in some bytes, in encodings of our own and in those of the detectors."""
    plain = text.encode()
    part = plain[:8]  # it may have been cut
    forms = {"plain": part, "hex": part.hex().encode(), "reversed": plain[::-1][:8], "UTF-16": text[:8].encode("utf-16-le")}
    for shift in range(3):
        forms[f"base64 at {shift}"] = base64.b64encode(bytes(shift) + plain)[4 if shift else 0 : -4]
    lower = blob.lower()
    return [name for name, form in forms.items() if form in blob or form.lower() in lower] + find_canary(blob, CANARY)


def context(blob: bytes, text: str) -> str:
    """What stands around it, for whoever has to mend it."""
    at = max(0, blob.find(text[:8].encode()))
    return repr(blob[max(0, at - 300) : at + 60].decode("utf-8", "replace"))


@pytest.fixture
async def host(bus_daemon: BusDaemon, request: pytest.FixtureRequest) -> AsyncIterator[CanaryHost]:
    async with running_host(CanaryHost, bus_daemon, request) as host:
        yield host


@pytest.fixture
async def parrots() -> AsyncIterator[dict[str, Parrot]]:
    """The daemons of the legacy side, of the candidate, and of the sandbox."""
    found = {name: Parrot(CANARY, f"says {name}") for name in ("legacy", "candidate", "sandbox")}
    yield found
    for parrot in found.values():
        await parrot.close()


@pytest.fixture
async def doors(host: CanaryHost, parrots: dict[str, Parrot]) -> AsyncIterator[Doors]:
    """Every service of the host in relay and under capture."""
    await parrots["legacy"].serve(host.path("xapi"), host.path("storage.json"))
    await parrots["candidate"].serve(host.path("behind"))
    await parrots["sandbox"].serve(host.path("sandbox"))
    host.path("sandbox.sandbox").touch()
    await asyncio.gather(*map(host.start_legacy, host.legacy))
    await host.start_bridge()
    for service in ("xapi", "storage", "squeezed", "perfmon"):
        await host.stage(service, "relay")
    bus = await Bus.connect(host.bus.address)
    doors = Doors(host, bus)
    try:
        yield doors
    finally:
        await doors.callers.close()
        await bus.close()


async def until_quiet(host: CanaryHost) -> None:
    """Nothing waits any more to be compared."""
    async with asyncio.timeout(PATIENCE):
        while True:
            status: Any = await host.control(verb="status")
            if not any(each["round_trips"]["pending"] or each["comparison"]["pending"] for each in status["services"].values()):
                return
            await asyncio.sleep(0.02)


async def run_through(doors: Doors, parrots: Mapping[str, Parrot]) -> None:
    """Everything at every door: while legacy rules, while a candidate is asked too, while the bus rules."""
    host = doors.host

    def heard(name: str) -> int:
        return sum(CORE.encode() in request for request in parrots[name].heard)

    await asyncio.gather(doors.calls_over_http(), doors.calls_in_frames(), doors.requests_in_the_store())
    await asyncio.gather(doors.calls_on_the_bus(), doors.pages_over_http())
    doors.datagrams()
    assert heard("legacy") > 60
    assert any(b"SR.attach" in request and CORE.encode() in request for request in parrots["legacy"].heard)
    await host.until(lambda: CORE in host.path("legacy.log").read_text())  # perfmon's

    arguments = ["--socket", str(host.path("behind"))]
    await asyncio.gather(
        host.start_candidate("xapi", *arguments), host.start_candidate("perfmon"), host.start_bus_squeezed()
    )
    await host.stage("xapi", "shadow")
    await doors.calls_over_http()
    await doors.calls_on_the_bus()
    await until_quiet(host)
    assert any(b"VM.get_other_config" in request for request in parrots["candidate"].heard)
    host.path("state/status-in-shadow").write_text(json.dumps(await host.control(verb="status")))

    for service in ("xapi", "squeezed", "perfmon"):
        await host.stage(service, "live")
    await asyncio.gather(doors.calls_over_http(), doors.requests_in_the_store())
    await asyncio.gather(doors.calls_on_the_bus(), doors.pages_over_http())
    doors.datagrams()
    await host.until(lambda: "unknown command" in host.log("bridge"))
    assert heard("candidate") > 20
    assert any(CORE in token for side, function, token in host._lines() if side == "bus" and function == "login")


async def shown(host: CanaryHost, sandbox: Path) -> dict[str, bytes]:
    """What every command says of it, by command; and the pages that they write."""
    reports = {name: host.path(f"report.{name}") for name in ("lint.html", "html", "xml")}
    drive = ("replay", "drive", "canary", "--to", f"http:{sandbox}", "--service", "xapi", "--allow-writes", "--speed", "1000")
    code, output, errors = await host.cli("capture", "show", "canary", "--json", "--limit", "0")
    assert code == 0, errors
    tokens = {text for text in _texts(json.loads(f"[{','.join(output.splitlines())}]")) if text.startswith("OpaqueRef:5ec3e700")}
    bound = [word for token in sorted(tokens) for word in ("--bind", f"{token}={NOBODY}")]
    commands = [
        ("status", "--json"), ("status",), ("audit",), ("audit", "--json"), ("doctor",), ("handles", "xapi"),
        ("capture", "list"), ("capture", "show", "canary", "--limit", "0"),
        ("capture", "verify", "canary", "--secrets"),
        ("capture", "verify", "canary", "--secrets", "--canary", CANARY),
        *(("capture", "export", "canary", "--as", form) for form in ("pcap", "mermaid", "lines")),
        ("replay", "lint", "canary"), ("replay", "lint", "canary", "--json", "--html", str(reports["lint.html"])),
        drive, (*drive, *bound, "--json", "--html", str(reports["html"]), "--junit", str(reports["xml"])),
    ]  # fmt: skip
    limit = asyncio.Semaphore(3)

    async def said(command: tuple[str, ...]) -> tuple[int, bytes]:
        async with limit:
            return await cli(host, *command)

    answers = await asyncio.gather(*map(said, commands))
    found = {}
    for command, (code, text) in zip(commands, answers, strict=True):
        assert code in (0, 1, 3), text
        assert b"Traceback" not in text, text
        found[f"{' '.join(command)[:60]}: {code}"] = text
    return found | {str(path): path.read_bytes() for path in reports.values()} | {"capture show --json": output.encode()}


async def cli(host: CanaryHost, *arguments: str) -> tuple[int, bytes]:
    """Exit status, and both outputs as they are."""
    environment = {**os.environ, "XCP_BRIDGE_SETTINGS": str(host.settings)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridges", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file as it is, segments also as text."""
    for path in directory.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
            if path.name.endswith(".zst"):
                with path.open("rb") as file:
                    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                    yield f"{path} decompressed", reader.read()


@pytest.mark.timeout(120)
async def test_a_password_is_in_nothing_that_stays(doors: Doors, parrots: dict[str, Parrot]) -> None:
    host = doors.host
    assert (await host.cli("capture", "start", "--name", "canary"))[0] == 0
    await run_through(doors, parrots)
    await until_quiet(host)
    assert (await host.cli("capture", "stop"))[0] == 0
    written = await shown(host, host.path("sandbox"))
    records = [json.loads(line) for line in written["capture show --json"].splitlines()]
    found = {(each["request"]["door"], each["request"]["leg"]) for each in records}
    assert {door for door, _ in found} == {"http", "framed", "xenstore", "bus", "datagram"}
    assert {leg for _, leg in found} == set(Leg)
    blobs = {**written, **dict(files(host.path("state"))), "log": host.log("bridge").encode()}
    leaks = {f"{name}: {traces(blob, CORE)}": context(blob, CORE) for name, blob in blobs.items() if traces(blob, CORE)}
    assert not leaks, "\n\n".join(f"{name}\n{text}" for name, text in leaks.items())
    sessions = [*doors.sessions, *(each for parrot in parrots.values() for each in parrot.sessions)]
    kept = {name: blob for name, blob in blobs.items() if "sqlite" not in name}
    assert not [(name, context(blob, each)) for name, blob in kept.items() for each in sessions if each.encode() in blob]


async def test_a_planted_password_is_found(tmp_path: Path) -> None:
    """A second opinion sees a record that nothing has redacted, and does not repeat it."""
