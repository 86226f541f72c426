"""The command line against a real host: what it prints for people and for scripts, and its exit codes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.fixtures_host import Host


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.timeout(180)
async def test_without_a_bridge(host: Host, tmp_path: Path) -> None:
    """Wrong usage and settings are 2, no bridge is 3; each says what and where."""
    broken = tmp_path / "broken.toml"
    broken.write_text("[services.squeezed]\nhttp = 7\nreach = 'no'\nold = 1\n")
    for arguments, code, *words in (
        (["--help"], 0, "Commands:", "release"),
        (["stage", "--help"], 0, "--accept-in-doubt"),
        (["kill", "-h"], 0, "Bring a service back"),
        ([], 2, "Usage:"),
        (["dance"], 2, "No such command 'dance'"),
        (["status", "--wrong"], 2, "No such option: --wrong"),
        (["status", "--settings", "/nosuch.toml"], 2, "/nosuch.toml: cannot be read: No such file or directory"),
        (["run", "--settings", "/nosuch.toml"], 2, "/nosuch.toml"),
        (["check", "--settings", str(broken)], 2, "expected a table, got 7", "reach: expected 'http' or 'framed'"),
        (["status"], 3, "no bridge answers at", "is xcp-bridge.service running?"),
        (["status", "--json"], 3, "no bridge answers at"),
        (["stage", "squeezed"], 3, "no bridge answers at"),
        (["stage", "squeezed", "relay"], 2, "a move needs --reason TEXT"),
        (["kill", "squeezed", "--reason", "r"], 3, "no bridge answers at"),
        (["doctor"], 1, "memory: No such file or directory", "could not tell  bridge: no bridge answers at"),
        (["release"], 0, "nothing to do"),
    ):  # fmt: skip
        found, output, errors = await host.cli(*arguments)
        assert found == code, (arguments, output, errors)
        for text in words:
            assert text in (output + errors), (arguments, output, errors)
        assert "Traceback" not in errors


@pytest.mark.timeout(180)
async def test_calls_at_every_door(host: Host, relayed: Any) -> None:
    """`call` reaches each door; faults are 1, what cannot be reached 3, a call as typed that cannot be made 2."""
    reserve = ("call", "squeezed", "reserve_memory")
    for door in ("bus", "http", "xenstore"):
        code, output, errors = await host.cli(*reserve, f"session_id=cli-{door}", "kib=1", "--door", door)
        assert code == 0, errors
        assert len(json.loads(output)) == 36
        assert host.executions()["reserve_memory", f"cli-{door}"] == 1
        code, output, errors = await host.cli(*reserve, "session_id=s", "kib=-1", "--door", door, "--json")
        assert code == 1
        assert json.loads(output)["code"] == "Invalid_memory_value"
        code, output, errors = await host.cli(*reserve, "session_id=s", "kib=-1", "--door", door)
        assert (code, output) == (1, "")
        assert errors.startswith("xcp-bridge: ")
    for arguments, words in (
        (("kib=1",), "reserve_memory needs session_id=..."),
        (("session_id=s", "kib=seven"), "kib: "),
        (("session_id=s", "kib=9223372036854775808"), "kib: "),
        (("session_id=s", "kib=1", "colour=blue"), "has no argument 'colour'"),
        (("nonsense",), "expected ARG=JSON, got 'nonsense'"),
    ):
        code, _, errors = await host.cli(*reserve, *arguments)
        assert code == 2, errors
        assert words in errors
    assert (await host.cli("call", "nosuch", "x"))[0] == 2
    assert (await host.cli("call", "squeezed", "nosuch"))[0] == 2
    assert (await host.cli("call", "xenopsd", "query", "--door", "xenstore"))[0] == 2
    await host.end("bridge")
    await host.end_legacy("squeezed")
    host.bus.kill()
    await host.store.kill()
    for door in ("bus", "http", "xenstore"):
        code, _, errors = await host.cli("call", "squeezed", "login", "service_name=cli", "--door", door)
        assert code == 3, (door, errors)
        assert "Unavailable: " in errors
        assert errors.count("\n") == 1, errors


@pytest.mark.timeout(180)
async def test_status_and_moves(host: Host, relayed: Any) -> None:
    """A table that fits 80 columns, JSON for scripts, a plan before a move, and refusals with 1."""
    code, output, _ = await host.cli("status")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80, output
    assert "squeezed" in output
    assert json.loads((await host.cli("status", "--json"))[1])["xenopsd"]["stage"] == "relay"
    assert json.loads((await host.cli("stage", "squeezed", "--json"))[1])["epoch"] == 1
    anyway = ("--skip", "test", "--override", "test")
    code, output, errors = await host.cli("stage", "squeezed", "live", "--dry-run", *anyway)
    assert code == 1
    assert "relay to live: hold" in output
    assert "start the bus daemon first" in errors
    code, _, errors = await host.cli("stage", "squeezed", "live", "--reason", "test", *anyway)
    assert code == 1
    assert "start the bus daemon first" in errors
    assert (await host.cli("stage", "nosuch"))[0] == 2
    assert (await host.cli("stage", "squeezed", "alive", "--reason", "r"))[0] == 2
    await host.start_bus_squeezed()
    code, output, _ = await host.cli("stage", "squeezed", "live", "--reason", "test", *anyway)
    assert code == 0
    assert "squeezed: relay -> live, epoch 2, calls held for " in output
    await host.end("bus")
    await host.until_alarms("NO_AUTHORITY")
    code, output, errors = await host.cli("status")
    assert code == 0
    assert "NO_AUTHORITY" in output + errors


async def message_switch(path: Path, answer: bytes) -> asyncio.Server:
    """A server that answers every request as message-switch answers `GET /`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, str(path))


@pytest.mark.timeout(180)
async def test_check(host: Host, relayed: Any) -> None:
    """Good hosts are 0, wrong ones 1; every wrong thing comes with what to do; message-switch is detected."""
    code, output, _ = await host.cli("check", "--message-switch", "/nosuch")
    assert code == 0, output
    assert "answers" in output
    switch = host.path("switch")
    queues = {"permanent_queues": {"org.xen.xapi.memory": {}, "other": {}}}
    async with await message_switch(switch, json.dumps(queues).encode()):
        code, output, _ = await host.cli("check", "--message-switch", str(switch))
        assert code == 0
        assert "squeezed has the queue org.xen.xapi.memory" in output
        assert "use-switch=false" in output
    switch.unlink()
    async with await message_switch(switch, b"no JSON"):
        code, output, _ = await host.cli("check", "--message-switch", str(switch))
        assert code == 3
        assert "could not tell" in output
    await host.end("bridge")
    await host.end_legacy("squeezed")
    host.bus.kill()
    await host.store.kill()
    code, output, errors = await host.cli("check", "--message-switch", "/nosuch", "--json")
    assert code == 1
    assert errors == ""
    wrong = {finding["place"].split()[0]: finding for finding in json.loads(output) if finding["verdict"] == "wrong"}
    assert set(wrong) == {"bus", "xenstored", "services.squeezed.http"}
    assert all(finding["mend"] for finding in wrong.values())
