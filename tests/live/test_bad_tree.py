"""Bad input at the xenstore door while squeezed is live on the bus: answered with the convention's codes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.fixtures_host import Host

# function, arguments, the answer
CASES: dict[str, tuple[str, dict[str, bytes], dict[str, bytes]]] = {
    "unknown function": ("nosuch", {"a": b"1"}, {"code": b"1", "description": b"nosuch"}),
    "unknown function without arguments": ("nosuch", {}, {"code": b"1", "description": b"nosuch"}),
    "no arguments needed": ("balance-memory", {}, {}),
    "all arguments missing": ("reserve-memory", {}, {"code": b"3", "description": b"session_id"}),
    "one argument missing": ("reserve-memory", {"session_id": b"s"}, {"code": b"3", "description": b"kib"}),
    "amount refused": (
        "reserve-memory",
        {"session_id": b"s", "kib": b"-1"},
        {"code": b"1003", "description": b"kib"},
    ),
    "unknown reservation": (
        "transfer-reservation-to-domain",
        {"session_id": b"s", "reservation_id": b"nosuch", "domid": b"7"},
        {"code": b"1002", "description": b"nosuch"},
    ),
}
INTEGERS = [b"", b"seven", b"7 ", b"9223372036854775808", b"1.5", b"0x", b"--1"]


async def test_bad_requests(moved: Any) -> None:
    """Each is answered with its code, and every door works after them."""
    for name, (function, arguments, expected) in CASES.items():
        assert await moved.ask_store(function, arguments) == expected, name
    for text in INTEGERS:
        answer = await moved.ask_store("reserve-memory", {"session_id": b"s", "kib": text})
        assert answer["code"] == b"2", (text, answer)
        assert b"kib: expected int64" in answer["description"], (text, answer)
    answer = await moved.ask_store("login", {"service_name": b"\xff\xfe"})
    assert answer == {
        "code": b"2",
        "description": b"InvalidArgument: service_name: expected UTF-8 text, got byte 0xff at 0",
    }
    log = moved.host.log("bridge")
    for words in ("nosuch at the xenstore door: UnknownMethod", "Declared: Missing_argument", "kib: expected int64"):
        assert words in log
    assert "Traceback" not in log
    assert moved.host.executions()["reserve_memory", "s"] == 1  # the amount that squeezed itself refused
    await moved.every_door()


async def test_what_is_ignored(moved: Any) -> None:
    """Arguments that the function does not have, nodes below an argument, a value on the request itself."""
    arguments = {"session_id": b"more", "kib": b"1", "colour": b"blue", "kib/deeper": b"2"}
    assert list(await moved.ask_store("reserve-memory", arguments)) == ["reservation_id"]
    assert moved.host.executions()["reserve_memory", "more"] == 1
    await moved.every_door()


async def test_a_request_that_is_answered_already_is_not_executed(moved: Any) -> None:
    """Its response stays as it is, also when the request is touched again."""
    await moved.connect_store()
    where = "/squeezed/rpc/response/reserve-memory/old"
    await moved.store.write(f"{where}/reservation_id", b"kept")
    await moved.request("reserve-memory", "old", {"session_id": b"old", "kib": b"1"})
    await moved.every_door()
    assert await moved.store.read(f"{where}/reservation_id") == b"kept"
    assert moved.host.executions()["reserve_memory", "old"] == 0


async def test_a_caller_who_gave_up(host: Host, relayed: Any) -> None:
    """A request that is taken back while it is executed gets no response; the tree is clean and the doors work."""
    await host.start_bus_squeezed("--slow-ms", "300")
    await host.stage("squeezed", "live")
    await relayed.request("reserve-memory", "gone", {"session_id": b"gone", "kib": b"1"})
    await host.until(lambda: host.executions()["reserve_memory", "gone"] == 1)
    await relayed.store.rm("/squeezed/rpc/request/reserve-memory/gone")
    await relayed.every_door()
    assert not await relayed.exists("/squeezed/rpc/response/reserve-memory/gone")
    assert host.executions()["reserve_memory", "gone"] == 1


@pytest.mark.parametrize("length", [1, 4000])
async def test_strange_functions_and_ids(moved: Any, length: int) -> None:
    """Names at the store's limits are answered or left alone; nobody else is harmed."""
    function = "f" * min(length, 900)
    answer = await moved.ask_store(function, {"a": b"x" * min(length, 2000)})
    assert answer["code"] == b"1"
    await moved.store.write("/squeezed/rpc/request/reserve-memory", b"a value where a directory was meant")
    await moved.store.write("/squeezed/rpc/request", b"again")
    await moved.every_door()


async def test_requests_of_many_callers_at_once(moved: Any) -> None:
    """Good and bad ones mixed: each gets its own answer."""
    await moved.connect_store()
    async with asyncio.TaskGroup() as tasks:
        answers = [
            tasks.create_task(
                moved.ask_store("reserve-memory", {"session_id": b"m%d" % number, "kib": b"1" if number % 2 else b"x"})
            )
            for number in range(100)
        ]
    assert [("reservation_id" in answer.result()) for answer in answers] == [bool(n % 2) for n in range(100)]
