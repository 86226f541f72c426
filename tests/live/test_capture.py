"""Capturing at every door of a running host: what stands in the capture, and what of it the commands show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fixtures_host import Host
    from tests.live.conftest import Callers


async def shown(host: Host, *arguments: str) -> list[dict[str, Any]]:
    """What `capture show --json` prints."""
    code, output, errors = await host.cli("capture", "show", *arguments, "--json", "--limit", "0")
    assert code == 0, errors
    return [json.loads(line) for line in output.splitlines()]


async def test_every_door_and_leg_is_in_the_capture(relayed: Callers) -> None:
    host = relayed.host
    code, output, errors = await host.cli("capture", "start", "--name", "first")
    assert (code, errors) == (0, ""), output
    assert output == f"capturing squeezed, xenopsd into {host.path('state')}/captures/first\n"
    await relayed.every_door()
    code, output, errors = await host.cli("capture", "stop")
    assert (code, errors) == (0, "")
    assert output.endswith("captures/first closed\n")
    found = await shown(host, "first")
    seen = {(each["request"]["service"], each["request"]["door"], each["request"]["leg"]) for each in found}
    assert seen == {
        ("squeezed", "http", "caller"),
        ("squeezed", "http", "backend"),
        ("squeezed", "xenstore", "observed"),
        ("squeezed", "xenstore", "backend"),
        ("squeezed", "bus", "caller"),
        ("xenopsd", "http", "backend"),
        ("xenopsd", "bus", "caller"),
    }
