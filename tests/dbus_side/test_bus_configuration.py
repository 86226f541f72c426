"""The configuration of the private bus as it is shipped; `bus_daemon` runs it with only address and user replaced."""

import asyncio
import os
import subprocess
import sys

import pytest
from dbus_next.message import Message

from dbus_side.bus import NameOutcome
from dbus_side.errors import BusRefused

NAME = "org.xen.xcp.squeezed"

# Connects as another user and prints what the bus says; run by root only.
STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
bus = socket.socket(socket.AF_UNIX)
bus.connect(sys.argv[1])
bus.sendall(b"\\0AUTH EXTERNAL " + b"65534".hex().encode() + b"\\r\\n")
answer = bus.recv(512)
bus.sendall(b"BEGIN\\r\\n" + bytes.fromhex(sys.argv[2]))
print(answer[:2].decode(), "answer" if bus.recv(512) else "no answer")
"""

WIDER = """<busconfig><policy context="mandatory"><allow user="65534"/></policy></busconfig>"""


async def test_what_root_needs_works(connect):
    """Own a service and its candidate, call, signal."""
    service, client = await connect(), await connect()
    assert await service.request_name(NAME) is NameOutcome.OWNER
    assert await service.request_name(NAME + ".Candidate") is NameOutcome.OWNER

    async def answer(_call):
        return "", ()

    service.serve(answer)
    await client.call(NAME, "/a", "a.b", "M", timeout=10)
    await client.call(service.unique_name, "/a", "a.b", "M", timeout=10)


@pytest.mark.parametrize("name", ["com.example.A", "org.xen.xcpx.a", "org.freedesktop.systemd1"])
async def test_other_names_cannot_be_owned(connect, name):
    """Not even by root."""
    bus = await connect()
    with pytest.raises(BusRefused, match="AccessDenied"):
        await bus.request_name(name)


async def test_many_calls_may_be_open(connect):
    """The built-in limit of 128 pending replies does not hold here."""
    service, client = await connect(), await connect()
    everybody = asyncio.Event()
    inside = 0

    async def wait_for_all(_call):
        nonlocal inside
        inside += 1
        if inside == 500:
            everybody.set()
        await everybody.wait()
        return "", ()

    service.serve(wait_for_all)
    async with asyncio.TaskGroup() as group:
        for _ in range(500):
            group.create_task(client.call(service.unique_name, "/a", "a.b", "M", timeout=30))


async def test_a_message_over_the_buses_built_in_limit_passes(connect):
    """32 MiB would be the built-in limit, and the sender would be disconnected."""
    service, client = await connect(message_limit=40 * 1024 * 1024), await connect(message_limit=40 * 1024 * 1024)

    async def count(call):
        return "x", (len(call.body[0]),)

    service.serve(count)
    data = bytes(36 * 1024 * 1024)
    reply = await client.call(service.unique_name, "/a", "a.b", "M", "ay", (data,), timeout=30)
    assert reply.body == (len(data),)


@pytest.fixture
def connect_as_stranger(bus_daemon):
    """A function that connects as user 65534 and tells the answer to AUTH and whether Hello was answered."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    bus_daemon.directory.chmod(0o755)
    hello = Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", serial=1)
    command = [sys.executable, "-c", STRANGER, str(bus_daemon.directory / "bus"), hello._marshall().hex()]

    def connect():
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    return connect


async def test_only_root_connects_until_a_local_file_says_otherwise(bus_daemon, connect, connect_as_stranger):
    """A stranger's Hello ends the connection; after a file in xcp-bus.d and a reload it is answered."""
    root = await connect()
    assert await asyncio.to_thread(connect_as_stranger) == "OK no answer"
    local = bus_daemon.directory / "xcp-bus.d"
    local.mkdir()
    (local / "stranger.conf").write_text(WIDER)
    driver = "org.freedesktop.DBus"
    await root.call(driver, "/org/freedesktop/DBus", driver, "ReloadConfig", timeout=10)
    assert await asyncio.to_thread(connect_as_stranger) == "OK answer"
