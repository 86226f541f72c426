"""Datagrams at abstract addresses, between our own two ends and as perfmon's plugin sends them."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from xmlrpc_gateway import datagrams
from xmlrpc_gateway.datagrams import DatagramDoor
from xmlrpc_gateway.errors import AddressTaken, DaemonUnreachable, Forbidden

_numbers = itertools.count()

Receive = Callable[[bytes], None]
OpenDoor = Callable[[Receive], Awaitable[DatagramDoor]]


@pytest.fixture
def name() -> str:
    """An abstract address of this test's own."""
    return f"perfmon-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def open_door(name: str) -> AsyncIterator[OpenDoor]:
    """Opens doors at the address and closes them."""
    doors: list[DatagramDoor] = []

    async def make(receive: Receive) -> DatagramDoor:
        doors.append(DatagramDoor(name, receive))
        await doors[-1].open()
        return doors[-1]

    yield make
    for door in doors:
        await door.close()


async def fill(name: str) -> int:
    """Sends numbers until the receiver's queue is full; how many."""
    for number in itertools.count():
        try:
            await datagrams.send(name, str(number).encode(), timeout=0.05)
        except DaemonUnreachable as error:
            if "its queue was full for 0.05 s" not in str(error):
                raise
            return number
    raise AssertionError


async def test_receives_what_the_plugin_sends(name: str, open_door: OpenDoor) -> None:
    """The address is NUL and the name, not a byte more; datagrams come one by one, in order, and nothing goes back."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    await open_door(seen.put_nowait)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plugin:
        plugin.bind(f"\0{name}-plugin")
        plugin.settimeout(0)
        for payload in (b"refresh", b"debug_mem", b""):
            plugin.sendto(payload, b"\0" + name.encode())
        assert [await seen.get() for _ in range(3)] == [b"refresh", b"debug_mem", b""]
        with pytest.raises(BlockingIOError):
            plugin.recv(1)


async def test_reads_256_bytes_of_a_datagram(name: str, open_door: OpenDoor) -> None:
    """The rest is lost, and does not come as the next one."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    await open_door(seen.put_nowait)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(range(256)) + b"lost", f"\0{name}")
        sender.sendto(b"next", f"\0{name}")
    assert [await seen.get(), await seen.get()] == [bytes(range(256)), b"next"]


async def test_sends_to_whoever_has_the_address(name: str, open_door: OpenDoor) -> None:
    """Up to 256 bytes arrive whole; the name may be written with the @ that stands for NUL."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    await open_door(seen.put_nowait)
    await datagrams.send(name, b"refresh", timeout=5)
    await datagrams.send(f"@{name}", b"x" * 256, timeout=5)
    assert [await seen.get(), await seen.get()] == [b"refresh", b"x" * 256]


async def test_sends_nothing_that_would_be_cut_off(name: str, open_door: OpenDoor) -> None:
    """A longer payload is refused before sending."""
    seen: list[bytes] = []
    door = await open_door(seen.append)
    with pytest.raises(Forbidden, match="has 257 bytes, 256 of them are read"):
        await datagrams.send(name, bytes(257), timeout=5)
    await door.close()
    assert seen == []


async def test_nobody_there(name: str) -> None:
    """Without a receiver nothing was sent."""
    with pytest.raises(DaemonUnreachable, match=name) as caught:
        await datagrams.send(name, b"refresh", timeout=5)
    assert not caught.value.sent


async def test_waits_while_the_queue_is_full(name: str) -> None:
    """Senders wait for room, each datagram arrives once and in order; at the deadline nothing was sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
        slow.bind(f"\0{name}")
        slow.settimeout(0)
        sent = await fill(name)
        late = asyncio.create_task(datagrams.send(name, b"late", timeout=5))
        done, _ = await asyncio.wait([late], timeout=0.02)
        assert not done
        first = slow.recv(100)
        await late
        received = [first, *(slow.recv(100) for _ in range(sent))]
        assert received == [*(str(number).encode() for number in range(sent)), b"late"]
        with pytest.raises(BlockingIOError):
            slow.recv(1)


async def test_an_address_has_one_owner(name: str, open_door: OpenDoor) -> None:
    """A second owner is refused by name, and the first goes on."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    await open_door(seen.put_nowait)
    with pytest.raises(AddressTaken, match=name):
        await DatagramDoor(f"@{name}", seen.put_nowait).open()
    await datagrams.send(name, b"refresh", timeout=5)
    assert await seen.get() == b"refresh"


async def test_leaves_nothing_when_it_cannot_open() -> None:
    """An address that the system refuses raises OSError."""
    with pytest.raises(OSError, match="too long"):
        await DatagramDoor("x" * 200, print).open()


async def test_closing_receives_what_waits_and_frees_the_address(name: str, open_door: OpenDoor) -> None:
    """What was sent before is not lost, and afterwards somebody else may have the address."""
    seen: list[bytes] = []
    door = await open_door(seen.append)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for payload in (b"1", b"2", b"3"):  # the loop does not run meanwhile
            sender.sendto(payload, f"\0{name}")
    await door.close()
    await door.close()
    assert seen == [b"1", b"2", b"3"]
    with pytest.raises(DaemonUnreachable):
        await datagrams.send(name, b"refresh", timeout=5)
    await open_door(seen.append)


async def test_a_defect_of_the_receiver_stays_inside(
    name: str, open_door: OpenDoor, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is logged, and the next datagram is received."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    def receive(payload: bytes) -> None:
        if payload == b"bad":
            raise ValueError("defect")
        seen.put_nowait(payload)

    await open_door(receive)
    for payload in (b"bad", b"good"):
        await datagrams.send(name, payload, timeout=5)
    assert await seen.get() == b"good"
    assert caplog.text.count(f"receiving a datagram at {name} failed") == 1
