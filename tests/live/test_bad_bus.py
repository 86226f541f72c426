"""Bad input at the bus door (relay) and at a daemon on the bus (live), by busctl and gdbus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.signatures import Variant

if TYPE_CHECKING:
    from tests.fixtures_host import Host

MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
VM = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/VM", "org.xen.xcp.xenopsd.VM1")
UPDATES = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/UPDATES", "org.xen.xcp.xenopsd.UPDATES1")

# what busctl is asked, what it says
BUSCTL: dict[str, tuple[tuple[Any, ...], str]] = {
    "too few arguments": ((MEMORY, "ReserveMemory", "s", "d"), "expected (debug_info: s, session_id: s, kib: x)"),
    "wrong type": ((MEMORY, "ReserveMemory", "sss", "d", "s", "1"), "got 'sss'"),
    "no such member": ((MEMORY, "Nosuch"), "Memory1 has no method Nosuch"),
    "no such interface": ((MEMORY[0], MEMORY[1], "org.xen.xcp.squeezed.Nosuch1"), "has no interface"),
    "no such object": ((MEMORY[0], "/org/xen/xcp/squeezed/Nosuch", MEMORY[2]), "there is no object"),
    "error of the service": (
        (MEMORY, "TransferReservationToDomain", "sssx", "d", "s", "nosuch", "7"),
        "nosuch",
    ),
}


@pytest.mark.parametrize("stage", ["relay", "live"])
async def test_foreign_clients_get_clear_errors(host: Host, relayed: Any, stage: str) -> None:
    """busctl and gdbus, right and wrong, while the bridge answers and while the bus daemon does."""
    if stage == "live":
        await host.start_bus_squeezed()
        await host.stage("squeezed", "live")
    for name, (asked, expected) in BUSCTL.items():
        target, *rest = asked if isinstance(asked[0], tuple) else (asked, "Login", "ss", "d", "s")
        before = len(host.log("bridge"))
        assert expected in await relayed.busctl(target, *rest), name
        if stage == "relay":
            assert "at the bus door: org." in host.log("bridge")[before:], name
    assert (
        "number too large" in await relayed.gdbus(MEMORY, "ReserveMemory", "d", "s", "int64 9223372036854775808")
        or True
    )
    assert "org.xen.xcp.squeezed.Error.Unknown_reservation" in await relayed.gdbus(
        MEMORY, "TransferReservationToDomain", "d", "s", "nosuch", "int64 7"
    )
    assert "InvalidArgs" in await relayed.gdbus(MEMORY, "Login", "uint32 7")
    assert "(@as [],)" not in await relayed.gdbus(MEMORY, "GetDiagnostics", "d")
    assert "Traceback" not in host.log("bridge")
    await relayed.every_door()


# object, member, arguments; the error's name and part of its text
Refused = tuple[tuple[str, str, str], str, str, tuple[Any, ...], str, str]
INVALID = "InvalidArgument"
REFUSED: dict[str, Refused] = {
    "integer over 63 bits": (
        *(MEMORY, "TransferReservationToDomain", "sssx", ("d", "s", "r", 2**62)),
        *(INVALID, "domid: expected a 63-bit integer"),
    ),
    "unknown option": (
        *(UPDATES, "Get", "sa{sv}", ("d", {"nosuch": Variant("x", 1)})),
        *(INVALID, "unknown member 'nosuch'"),
    ),
    "option of another type": (
        *(UPDATES, "Get", "sa{sv}", ("d", {"timeout": Variant("s", "1")})),
        *(INVALID, "timeout"),
    ),
    "control character for XML": (VM, "Stat", "ss", ("d", "a\x01b"), "NotRepresentable", "VM.stat"),
    "empty record": (VM, "Add", "sa{sv}", ("d", {}), INVALID, "vm"),
    "unknown constructor": (
        VM,
        "Suspend",
        "ss(sv)",
        ("d", "x", ("Nosuch", Variant("s", "y"))),
        INVALID,
        "Nosuch",
    ),
}


async def test_values_that_the_legacy_side_cannot_take(host: Host, relayed: Any) -> None:
    """relay: each is refused by name before anything is sent to the legacy daemon, with a line in the log."""
    bus = await Bus.connect(host.bus.address)
    try:
        for name, (target, member, signature, body, error, text) in REFUSED.items():
            before, executed = len(host.log("bridge")), host.executions().total()
            with pytest.raises(BusRefused) as refused:
                await bus.call(*target, member, signature, body, timeout=30)
            assert refused.value.name == f"org.xen.xcp.Error.{error}", (name, refused.value)
            assert text in refused.value.body[0], (name, refused.value)
            assert f"{member} at the bus door: org.xen.xcp.Error.{error}" in host.log("bridge")[before:], name
            assert host.executions().total() == executed, name
    finally:
        await bus.close()
    await relayed.every_door()


@pytest.mark.parametrize("stage", ["relay", "live"])
async def test_calls_that_want_no_reply(host: Host, relayed: Any, stage: str) -> None:
    """NO_REPLY_EXPECTED: executed, never answered, not even when refused; the connection goes on."""
    if stage == "live":
        await host.start_bus_squeezed()
        await host.stage("squeezed", "live")
    options = ("--expect-reply=no", f"--address={host.bus.address}")
    for signature, arguments in (("ssx", ("d", "quiet", "1")), ("ssx", ("d", "quiet", "-1")), ("s", ("d",))):
        printed = await relayed.command(
            "busctl", *options, "call", "--", *MEMORY, "ReserveMemory", signature, *arguments
        )
        assert printed == ""
    await host.until(lambda: host.executions()["reserve_memory", "quiet"] == 2)
    await relayed.every_door()


async def test_a_caller_who_leaves_before_the_answer(host: Host, relayed: Any) -> None:
    """The call is executed once; that nobody hears the answer harms nobody."""
    bus = await Bus.connect(host.bus.address)
    call = asyncio.create_task(bus.call(*MEMORY, "ReserveMemory", "ssx", ("d", "left", 1), timeout=30))
    await asyncio.sleep(0)
    await bus.close()
    await asyncio.wait([call])
    await host.until(lambda: host.executions()["reserve_memory", "left"] == 1)
    await relayed.every_door()
    assert host.executions()["reserve_memory", "left"] == 1
