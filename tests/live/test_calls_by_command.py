"""`xcp-bridge call` and `xcp-bridge check` at every kind of door."""

from __future__ import annotations

import json

import pytest

from tests.fixtures_toolstack import Toolstack

pytestmark = pytest.mark.timeout(180)


async def test_calls_at_every_door(toolstack: Toolstack) -> None:
    """The same words give the same answer at each door; a wrong door, method or argument is named."""
    host = toolstack
    for service in ("xapi", "squeezed", "perfmon"):
        await host.start_legacy(service)
    await host.start_bridge()
    for service in ("xapi", "squeezed", "perfmon"):
        await host.stage(service, "relay")
    login = ["call", "xapi", "session.login_with_password", "uname=root", "pwd=xapi"]
    for door in ("http", "bus"):
        code, output, errors = await host.cli(*login, "--door", door)
        assert code == 0, errors
        session = json.loads(output)
        code, output, _ = await host.cli(
            "call", "xapi", "VM.get_by_name_label", f"session_id={session}", "label=vm1", "--door", door
        )
        assert (code, len(json.loads(output))) == (0, 1)
    answers = {
        door: await host.cli("call", "squeezed", "get_host_reserved_memory", "--door", door)
        for door in ("http", "framed", "bus")
    }
    assert len({(code, output) for code, output, _ in answers.values()}) == 1, answers
    assert (await host.cli("call", "perfmon", "refresh", "--door", "datagram"))[0] == 0
    await host.until(lambda: host.executions()["refresh", "-"] == 1)
    for words, expected in (
        (["call", "xapi", "VM.start", "--door", "framed"], "VM.start needs session_id=...; it takes session_id, vm"),
        (["call", "xapi", "host.get_servertime", "session_id=x", "host=h", "--door", "framed"], "no framed door"),
        (["call", "xapi", "VM.strat"], "has no method 'VM.strat'"),
        (["call", "xapi", "VM.pause", "session_id=x", "vm=3", "force=1"], "has no argument 'force'"),
    ):
        code, _, errors = await host.cli(*words)
        assert (code, expected in errors) == (2, True), errors
    code, _, errors = await host.cli("call", "xapi", "host.get_all", "session_id=x", "--door", "http")
    assert (code, "SESSION_INVALID" in errors) == (1, True)


async def test_check_looks_at_every_door(toolstack: Toolstack) -> None:
    """A framed socket that nobody serves, and an address at which everybody is root for xapi."""
    await toolstack.start_legacy("xapi")
    code, output, _ = await toolstack.cli("check")
    assert code == 1
    assert "whoever reaches it is root for xapi" in output
    assert "services.squeezed.framed" in output
    await toolstack.start_legacy("squeezed")
    code, output, _ = await toolstack.cli("check")
    assert "memory.json: accepts connections" in output
