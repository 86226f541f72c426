"""A squeezed on the bus keeps the protocol of a daemon under migration, and does the work of the old one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.signatures import Variant
from tests.fixtures_host import Host
from xenstore_rpc.connection import Store

Start = Callable[..., Awaitable[Bus]]
NAME, CANDIDATE = "org.xen.xcp.squeezed", "org.xen.xcp.squeezed.Candidate"


async def ask(bus: Bus, member: str, signature: str, *body: Any, name: str = CANDIDATE) -> tuple[Any, ...]:
    """Calls the Memory interface."""
    path = "/org/xen/xcp/squeezed/Memory"
    return (await bus.call(name, path, "org.xen.xcp.squeezed.Memory1", member, signature, body, timeout=20)).body


async def tell(bus: Bus, member: str, epoch: int) -> None:
    """Calls Candidate1."""
    await bus.call(CANDIDATE, "/org/xen/xcp/squeezed", "org.xen.xcp.Candidate1", member, "t", (epoch,), timeout=20)


async def error_of(call: Awaitable[object]) -> str:
    """The name of the error that a call gets."""
    with pytest.raises(BusRefused) as caught:
        await call
    return caught.value.name


async def test_it_writes_nothing_before_assume(start_on_bus: Start, host: Host) -> None:
    """A candidate answers reads, refuses writes without counting them, and does not ask for the service's name."""
    bus = await start_on_bus()
    await bus.track_owner(NAME, lambda _owner: None)
    assert await ask(bus, "GetHostReservedMemory", "s", "d") == (73728,)
    assert await error_of(ask(bus, "Login", "ss", "d", "t")) == "org.xen.xcp.Error.Unavailable"
    assert bus.owner(NAME) is None
    assert host.executions() == {("get_host_reserved_memory", "d"): 1}


async def test_assume_takes_the_name_and_an_old_epoch_is_refused(start_on_bus: Start) -> None:
    """The epoch can be read, may come again, and never goes back."""
    bus = await start_on_bus()
    await bus.track_owner(NAME, lambda _owner: None)
    await bus.track_owner(CANDIDATE, lambda _owner: None)
    await tell(bus, "Assume", 7)
    assert bus.owner(NAME) == bus.owner(CANDIDATE)
    for member in ("Assume", "Yield"):
        assert await error_of(tell(bus, member, 6)) == "org.xen.xcp.Error.InvalidArgument"
    reply = await bus.call(
        CANDIDATE, "/org/xen/xcp/squeezed", "org.freedesktop.DBus.Properties", "Get", "ss",
        ("org.xen.xcp.Candidate1", "Epoch"), timeout=20,
    )  # fmt: skip
    assert reply.body == (Variant("t", 7),)
    await tell(bus, "Assume", 7)
    assert await ask(bus, "Login", "ss", "d", "t", name=NAME) == ("t",)


async def test_it_waits_in_the_names_queue_while_another_owns_it(start_on_bus: Start) -> None:
    """Assume succeeds while the bridge still holds the name, which passes on when the bridge lets go."""
    bus = await start_on_bus()
    passed = asyncio.Event()
    await bus.request_name(NAME)
    await bus.track_owner(NAME, lambda _owner: passed.set())
    await bus.track_owner(CANDIDATE, lambda _owner: None)
    await tell(bus, "Assume", 1)
    assert bus.owner(NAME) == bus.unique_name
    await bus.release_name(NAME)
    async with asyncio.timeout(20):
        await passed.wait()
    assert bus.owner(NAME) == bus.owner(CANDIDATE)


async def test_yield_returns_after_the_last_write(start_on_bus: Start, host: Host) -> None:
    """Writes that run are finished, further ones are refused, the name is left; a later Assume takes up again."""
    bus = await start_on_bus("--slow-ms", "500")
    await bus.track_owner(NAME, lambda _owner: None)
    await tell(bus, "Assume", 1)
    running = [asyncio.create_task(ask(bus, "Login", "ss", "d", f"t{number}")) for number in range(2)]
    async with asyncio.timeout(20):
        while not host.executions():  # noqa: ASYNC110 -- a file grows and tells nobody
            await asyncio.sleep(0.01)
    yielding = asyncio.create_task(tell(bus, "Yield", 2))
    refused = asyncio.create_task(error_of(ask(bus, "Login", "ss", "d", "late")))
    assert await refused == "org.xen.xcp.Error.Unavailable"
    await yielding
    assert [task.done() and task.result() for task in running] == [("t0",), ("t1",)]
    assert bus.owner(NAME) is None
    assert await error_of(ask(bus, "Login", "ss", "d", "t")) == "org.xen.xcp.Error.Unavailable"
    await tell(bus, "Assume", 2)
    assert await ask(bus, "Login", "ss", "d", "t") == ("t",)
    assert host.executions() == {("login", token): 1 for token in ("t0", "t1", "t")}
    assert host.sides() == {"bus": 3}


async def test_it_does_what_squeezed_does(start_on_bus: Start, store: Store) -> None:
    """Reservations stand in the store as the legacy daemon writes them, and its errors have typed arguments."""
    bus = await start_on_bus("--host-kib", "1000")
    await tell(bus, "Assume", 1)
    reservation, kib = await ask(bus, "ReserveMemoryRange", "ssxx", "d", "me", 10, 5000)
    assert kib == 1000
    assert await store.read(f"/squeezed/state/me/{reservation}") == b"1000"
    with pytest.raises(BusRefused) as caught:
        await ask(bus, "ReserveMemory", "ssx", "d", "me", 1)
    assert caught.value.name == "org.xen.xcp.squeezed.Error.Cannot_free_this_much_memory"
    assert (caught.value.signature, caught.value.body[1:]) == ("sxx", (1, 0))
    await ask(bus, "TransferReservationToDomain", "sssx", "d", "me", reservation, 5)
    assert await store.read("/local/domain/5/memory/initial-reservation") == b"1000"
    assert await ask(bus, "QueryReservationOfDomain", "ssx", "d", "me", 5) == (reservation,)
    errors = "org.xen.xcp.squeezed.Error."
    again = ask(bus, "TransferReservationToDomain", "sssx", "d", "me", reservation, 5)
    assert await error_of(again) == errors + "Unknown_reservation"
    assert await error_of(ask(bus, "QueryReservationOfDomain", "ssx", "d", "me", 6)) == errors + "No_reservation"
    assert await error_of(ask(bus, "ReserveMemory", "ssx", "d", "me", -1)) == errors + "Invalid_memory_value"
    assert await error_of(ask(bus, "Login", "ss", "d", "")) == errors + "Internal_error"
    await ask(bus, "Login", "ss", "d", "me")
    assert await store.directory_or_empty("/squeezed/state") == []


async def test_it_ends_when_the_bus_is_lost(start_on_bus: Start, host: Host) -> None:
    """A supervisor starts it again: it says why and ends with 1."""
    await start_on_bus()
    process = host._processes["bus"]
    host.bus.kill()
    async with asyncio.timeout(20):
        assert await process.wait() == 1
    assert "the connection to the bus is lost" in host.log("bus")


async def test_sigterm_is_orderly(start_on_bus: Start, host: Host) -> None:
    """It ends with 0."""
    bus = await start_on_bus()
    await tell(bus, "Assume", 1)
    assert await host.end("bus") == 0
