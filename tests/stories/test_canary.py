"""A known password goes through every door of a host under capture, and is in nothing that is kept or shown of it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from bridges.capture.detectors import find_canary
from bridges.capture.records import Header, Leg, Request
from bridges.capture.writing import Limits, write_all
from dbus_side.bus import Bus
from tests.fixtures_dbus import BusDaemon
from tests.fixtures_host import running_host
from tests.stories.canary_doors import CANARY, CORE, NOBODY, PATIENCE, CanaryHost, Doors, as_xml, basic
from tests.stories.parrot import Parrot


def traces(blob: bytes, text: str) -> list[str]:
    """Where a text of ASCII is in some bytes, in encodings of our own and in those of the detectors."""
    plain = text.encode()
    part = plain[:8]  # it may have been cut
    forms = {
        "plain": part,
        "hex": part.hex().encode(),
        "reversed": plain[::-1][:8],
        "UTF-16": text[:8].encode("utf-16-le"),
    }
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


async def until_quiet(host: CanaryHost) -> bytes:
    """Waits until nothing waits any more to be compared; gives the status, which another stage begins anew."""
    async with asyncio.timeout(PATIENCE):
        while True:
            status: Any = await host.control(verb="status")
            tallies = [each[what] for each in status["services"].values() for what in ("round_trips", "comparison")]
            if not any(tally["pending"] for tally in tallies):
                return json.dumps(status).encode()
            await asyncio.sleep(0.02)


async def run_through(doors: Doors, parrots: Mapping[str, Parrot]) -> dict[str, bytes]:
    """Everything at every door: while legacy rules, while a candidate is asked too, while the bus rules.

    Gives the status at the end of each.
    """
    host = doors.host

    def heard(name: str) -> int:
        return sum(CORE.encode() in request for request in parrots[name].heard)

    await asyncio.gather(doors.calls_over_http(), doors.calls_in_frames(), doors.requests_in_the_store())
    await asyncio.gather(doors.calls_on_the_bus(), doors.pages_over_http())
    doors.datagrams()
    assert heard("legacy") > 60
    assert any(b"SR.attach" in request and CORE.encode() in request for request in parrots["legacy"].heard)
    await host.until(lambda: CORE in host.path("legacy.log").read_text())  # perfmon's

    in_relay = await until_quiet(host)
    arguments = ["--socket", str(host.path("behind"))]
    await asyncio.gather(
        host.start_candidate("xapi", *arguments), host.start_candidate("perfmon"), host.start_bus_squeezed()
    )
    await host.stage("xapi", "shadow")
    await doors.calls_over_http()
    await doors.calls_on_the_bus()
    in_shadow = await until_quiet(host)
    assert any(b"VM.get_other_config" in request for request in parrots["candidate"].heard)
    assert b"VM.get_other_config result" in in_shadow

    for service in ("xapi", "squeezed", "perfmon"):
        await host.stage(service, "live")
    await asyncio.gather(doors.calls_over_http(), doors.requests_in_the_store())
    await asyncio.gather(doors.calls_on_the_bus(), doors.pages_over_http())
    doors.datagrams()
    await host.until(lambda: "unknown command" in host.log("bridge"))
    assert heard("candidate") > 20
    assert any(CORE in token for side, function, token in host._lines() if side == "bus" and function == "login")
    return {"relay": in_relay, "shadow": in_shadow, "live": await until_quiet(host)}


async def shown(host: CanaryHost, sandbox: Path) -> dict[str, bytes]:
    """What every command says of it, by command; and the pages that they write."""
    reports = {name: host.path(f"report.{name}") for name in ("lint.html", "html", "xml")}
    drive: tuple[str, ...] = (
        "replay",
        "drive",
        "canary",
        "--to",
        f"http:{sandbox}",
        "--service",
        "xapi",
        "--allow-writes",
    )
    drive = (*drive, "--speed", "1000")
    code, output, errors = await host.cli("capture", "show", "canary", "--json", "--limit", "0")
    assert code == 0, errors
    tokens = sorted(set(re.findall("OpaqueRef:5ec3e700-[0-9a-f-]+", output)))
    secret = ("session.login_with_password.pwd", "session.change_password.new_pwd", "pool.join.master_password")
    words = [f"{known}={NOBODY}" for known in (NOBODY, *tokens)] + [f"{place}={CANARY}" for place in secret]
    bound = [option for word in words for option in ("--bind", word)]
    commands = [
        ("status", "--json"), ("audit", "--json"), ("doctor",), ("capture", "show", "canary", "--limit", "0"),
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
        found[f"{' '.join(command)} gave {code}"] = text
    pages = {str(path): path.read_bytes() for path in reports.values()}
    return found | pages | {"capture show --json": output.encode()}


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
    statuses = await run_through(doors, parrots)
    assert (await host.cli("capture", "stop"))[0] == 0
    written = await shown(host, host.path("sandbox"))
    assert any(b"VM.get_other_config" in request for request in parrots["sandbox"].heard)
    records = [json.loads(line) for line in written["capture show --json"].splitlines()]
    found = {(each["request"]["door"], each["request"]["leg"]) for each in records}
    assert {door for door, _ in found} == {"http", "framed", "xenstore", "bus", "datagram"}
    assert {leg for _, leg in found} == set(Leg)
    blobs = {**statuses, **written, **dict(files(host.path("state"))), "log": host.log("bridge").encode()}
    leaks = {f"{name}: {traces(blob, CORE)}": context(blob, CORE) for name, blob in blobs.items() if traces(blob, CORE)}
    assert not leaks, "\n\n".join(f"{name}\n{text}" for name, text in leaks.items())
    verified = written[f"capture verify canary --secrets --canary {CANARY} gave 0"]
    assert b"secrets: none found" in verified, verified
    assert any(b'"t":"end"' in blob for name, blob in blobs.items() if name.endswith("decompressed"))
    sessions = [*doors.sessions, *(each for parrot in parrots.values() for each in parrot.sessions)]
    assert len(sessions) > 6
    kept = {name: blob for name, blob in blobs.items() if "sqlite" not in name}
    assert not [
        (name, context(blob, each)) for name, blob in kept.items() for each in sessions if each.encode() in blob
    ]


@pytest.mark.parametrize("asked", [("--secrets",), ("--canary", CANARY), ("--secrets", "--canary", CANARY)])
def test_a_planted_password_is_found(tmp_path: Path, asked: tuple[str, ...]) -> None:
    """A record that nothing has redacted is told with its place, and the password is not repeated."""
    body = as_xml("session.login_with_password", "root", CANARY, "1.0", "test").decode()
    planted = Request(
        seq=1, id="1", leg=Leg.CALLER, ts="1", mono="1", service="xapi", door="http",
        name="session.login_with_password", method="session.login_with_password",
        arguments={"uname": "root", "pwd": CANARY, "version": "1.0", "originator": "test"},
        native={"line": "POST / HTTP/1.1", "headers": [["authorization", basic()]], "body": body},
    )  # fmt: skip
    header = Header(schema=1, tool="test", host="h", boot="b", real="1", mono="1", segment=1)
    write_all(tmp_path / "planted", lambda _segment, _chain: header, [planted], Limits())
    command = [sys.executable, "-m", "bridges", "capture", "verify", str(tmp_path / "planted"), *asked]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)
    assert done.returncode == 1, done.stdout
    assert b"000001.jsonl.zst record 2: " in done.stdout
    assert b"secrets: none found" not in done.stdout
    assert ("--canary" in asked) == (b"the canary, plain" in done.stdout)
    assert not traces(done.stdout, CORE)
