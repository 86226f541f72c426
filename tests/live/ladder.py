"""squeezed with every kind of door on one host, and a call at each: for tests of what the stages compare."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from dbus_side.bus import Bus

if TYPE_CHECKING:
    from tests.fixtures_host import Host

MEMORY = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
RESERVED_KIB = 73728
DOORS = ("http", "framed", "xenstore", "bus")
SERVICES = """
[services.squeezed]
xenstore = "squeezed"
http = {{ socket = "{directory}/memory", legacy = "{directory}/memory.legacy" }}
framed = {{ socket = "{directory}/memory.json", legacy = "{directory}/memory.json.legacy" }}
reach = "http"
quiet_hours = {quiet_hours}
[services.xenopsd]
http = {{ socket = "{directory}/xenopsd", legacy = "{directory}/xenopsd.legacy" }}
requires = {requires}
"""


def settle(host: Host, *, quiet_hours: float = 168, requires: tuple[str, ...] = ()) -> None:
    """The settings of such a host, and a legacy squeezed that serves all of these doors."""
    if "--framed" not in host.legacy["squeezed"]:
        host.legacy["squeezed"] += ["--framed", str(host.path("memory.json"))]
    host.settle(SERVICES, quiet_hours=quiet_hours, requires=json.dumps(requires))


async def live(host: Host, **settings: float) -> None:
    """squeezed in live, on a host of such settings."""
    settle(host, **settings)
    await host.start_legacy("squeezed")
    await host.start_bridge()
    await host.stage("squeezed", "relay")
    await host.start_bus_squeezed()
    await host.until_candidate()
    await host.stage("squeezed", "live")


async def status(host: Host, service: str = "squeezed") -> dict[str, Any]:
    """The service as `xcp-bridge status --json` has it."""
    answer: Any = await host.control(verb="status")
    found: dict[str, Any] = answer["services"][service]
    return found


def adds_up(counts: dict[str, Any], begun: str) -> bool:
    """What was begun is the same, different, pending or dropped."""
    known = counts["same"] + counts["different"] + counts["pending"] + sum(counts["dropped"].values())
    return bool(counts[begun] == known)


async def until(host: Host, member: str, **wanted: object) -> dict[str, Any]:
    """Waits until a member of squeezed's status has these values; it adds up at every reading."""
    async with asyncio.timeout(30):
        while True:
            counts: dict[str, Any] = (await status(host))[member]
            assert adds_up(counts, "made" if member == "round_trips" else "sent"), counts
            if all(counts[name] == value for name, value in wanted.items()):
                return counts
            await asyncio.sleep(0.02)


async def framed(callers: Any, method: str, *params: object, name: str = "memory.json") -> Any:
    """The reply to one call at a socket of frames."""
    body = json.dumps({"method": method, "params": params, "id": 1}).encode()
    reply = await callers.raw(callers.host.path(name), b"%016d%s" % (len(body), body))
    return json.loads(reply[16:])


async def reads(callers: Any, bus: Bus, count: int = 1) -> None:
    """So many reads at each door, each answered as the legacy daemon answers it."""
    for number in range(count):
        reply = await callers.rpc("memory", "get_host_reserved_memory", f"http{number}")
        assert reply == {"Status": "Success", "Value": str(RESERVED_KIB)}, reply
        reply = await framed(callers, "get_host_reserved_memory", f"framed{number}")
        assert reply["result"] == RESERVED_KIB, reply
        reply = await callers.ask_store("echo", {"session_id": b"tree%d" % number})
        assert reply == {"session_id": b"tree%d" % number}, reply
        answer = await bus.call(*MEMORY, "GetHostReservedMemory", "s", (f"bus{number}",), timeout=30)
        assert answer.body == (RESERVED_KIB,)


async def writes(callers: Any, bus: Bus) -> list[str]:
    """Every write of squeezed at each door; returns the sessions of reservations that are left in the store."""
    for door in DOORS:
        session = f"w-{door}"
        await write(callers, bus, door, "login", service_name=session)
        first = (await write(callers, bus, door, "reserve_memory", session_id=session, kib=4))[0]
        second = (await write(callers, bus, door, "reserve_memory_range", session_id=session, min=1, max=8))[0]
        await write(callers, bus, door, "delete_reservation", session_id=session, reservation_id=first)
        await write(
            callers, bus, door, "transfer_reservation_to_domain", session_id=session, reservation_id=second, domid=7
        )
        await write(callers, bus, door, "balance_memory")
        await write(callers, bus, door, "reserve_memory", session_id=session, kib=2)
    return [f"w-{door}" for door in DOORS]


async def write(callers: Any, bus: Bus, door: str, method: str, **arguments: str | int) -> list[str]:
    """One write at a door: its results as texts."""
    texts = [str(value) for value in arguments.values()]
    match door:
        case "http":
            reply = await callers.rpc("memory", method, "d", *texts)
            assert reply["Status"] == "Success", reply
            value = reply.get("Value", "")
            return [str(each) for each in (value if isinstance(value, list) else [value])]
        case "framed":
            reply = await framed(callers, method, "d", *arguments.values())
            assert reply["error"] is None, reply
            value = reply["result"]
            return [str(each) for each in (value if isinstance(value, list) else [value])]
        case "xenstore":
            encoded = {name: str(value).encode() for name, value in arguments.items()}
            nodes = await callers.ask_store(method.replace("_", "-"), encoded)
            assert "code" not in nodes, nodes
            return [nodes[name].decode() for name in sorted(nodes, reverse=True)]
        case _:
            member = "".join(word.capitalize() for word in method.split("_"))
            signature = "s" + "".join("x" if isinstance(value, int) else "s" for value in arguments.values())
            answer = await bus.call(*MEMORY, member, signature, ("d", *arguments.values()), timeout=30)
            return [str(each) for each in answer.body]
