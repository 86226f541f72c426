"""The bridge's own verbs: org.xen.xcp.Bridge1 on the bus, and the control socket."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bridges.control_doors import BUS_NAME, BUS_PATH, INTERFACE
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.signatures import Variant

if TYPE_CHECKING:
    from dbus_side.messages import SignalMessage
    from tests.fixtures_host import Host


async def call(bus: Bus, member: str, signature: str = "", *body: object) -> tuple[object, ...]:
    reply = await bus.call(BUS_NAME, BUS_PATH, INTERFACE.name, member, signature, body, timeout=30)
    return reply.body


async def test_the_verbs_on_the_bus(host: Host) -> None:
    """Status, Plan and SetStage do what the command line does; StageChanged tells everybody who listens."""
    await host.start_legacy("squeezed")
    await host.start_legacy("xenopsd")
    await host.start_bridge()
    bus = await Bus.connect(host.bus.address)
    try:
        changed: asyncio.Queue[SignalMessage] = asyncio.Queue()
        await bus.subscribe(INTERFACE.name, "StageChanged", changed.put_nowait, sender=BUS_NAME, path=BUS_PATH)
        (steps,) = await call(bus, "Plan", "ss", "squeezed", "relay")
        assert isinstance(steps, list)
        assert any("take the sockets" in step for step in steps)
        epoch, held = await call(bus, "SetStage", "sssa{sv}", "squeezed", "relay", "test", {"skip": Variant("s", "x")})
        assert epoch == 1
        assert isinstance(held, float)
        signal = await asyncio.wait_for(changed.get(), 10)
        assert signal.body == ("squeezed", "off", "relay", 1)
        (status,) = await call(bus, "Status")
        assert isinstance(status, dict)
        assert status["squeezed"]["stage"] == Variant("s", "relay")
        assert status["xenopsd"]["epoch"] == Variant("x", 0)
        for arguments, error in (
            (("squeezed", "relay", "again", {}), "org.xen.xcp.bridge.Error.Refused"),
            (("squeezed", "nowhere", "x", {}), "org.xen.xcp.Error.InvalidArgument"),
            (("nobody", "relay", "x", {}), "org.xen.xcp.Error.InvalidArgument"),
            (("squeezed", "off", " ", {}), "org.xen.xcp.Error.InvalidArgument"),
        ):
            with pytest.raises(BusRefused) as refused:
                await call(bus, "SetStage", "sssa{sv}", *arguments)
            assert refused.value.name == error
    finally:
        await bus.close()


async def test_wrong_requests_on_the_control_socket(host: Host) -> None:
    """The socket is the owner's alone; what is no request is answered with what was expected, line by line."""
    await host.start_bridge()
    path = host.path("control")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        for line, words in (
            (b"nonsense", "Expecting value"),
            (b"[]", "expected a JSON object"),
            (b"{}", "unknown verb None"),
            (b'{"verb": "stage"}', "service: expected text"),
            (b'{"verb": "stage", "service": "squeezed", "stage": "relay"}', "needs a reason"),
        ):
            writer.write(line + b"\n")
            answer = json.loads(await asyncio.wait_for(reader.readline(), 10))
            assert answer["ok"] is False
            assert words in answer["error"]
        writer.write(b'{"verb": "audit"}\n')
        assert json.loads(await asyncio.wait_for(reader.readline(), 10)) == {"ok": True, "entries": []}
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
async def test_another_user_is_not_heard(host: Host) -> None:
    """Whoever is neither root nor the bridge's user is refused, even where the file lets them in."""
    await host.start_bridge()
    host.directory.chmod(0o755)
    host.path("control").chmod(0o666)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"verb": "status"}\\n\'); print(s.makefile().readline())'
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(host.path("control"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"ok": False, "error": "uid 65534 may not control the bridge", "refused": True}
