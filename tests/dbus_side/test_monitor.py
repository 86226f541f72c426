"""A connection that gets copies of what passes between others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from dbus_side import frames, wire
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.messages import MethodCall

Connect = Callable[[], Awaitable[Bus]]
SERVICE = "org.xen.xcp.squeezed"
RULES = (
    f"type='method_call',destination='{SERVICE}'",
    f"type='method_return',sender='{SERVICE}'",
    f"type='error',sender='{SERVICE}'",
)
PATIENCE = 20


async def answer(call: MethodCall) -> tuple[str, tuple[object, ...]]:
    if call.member == "Refuse":
        raise BusRefused("org.xen.xcp.squeezed.Error.No", "s", ("no",))
    return call.signature, call.body


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what the monitor has heard
            await asyncio.sleep(0.01)


async def test_it_hears_whole_messages_and_says_nothing(connect: Connect) -> None:
    """Calls by name and by unique name, answers and errors, in their order; nothing of others; and it may stay."""
    service, caller, other, monitor = [await connect() for _ in range(4)]
    service.serve(answer)
    other.serve(answer)
    await service.request_name(SERVICE)
    heard: list[tuple[wire.Head, str, tuple[object, ...]]] = []
    await monitor.monitor(RULES, lambda frame: heard.append((wire.read_head(frame), *wire.read_body(frame))))
    for name, member, text in (
        (SERVICE, "Echo", "one"),
        (service.unique_name, "Echo", "two"),
        (SERVICE, "Refuse", "three"),
    ):
        with suppress(BusRefused):
            await caller.call(name, "/o", "org.x.I", member, "s", (text,), timeout=PATIENCE)
        await caller.call(other.unique_name, "/o", "org.x.I", "Echo", "s", ("not for it",), timeout=PATIENCE)
    await until(lambda: sum(head.kind != frames.SIGNAL for head, _, _ in heard) == 6)
    found = [(head.kind, head.sender, *rest) for head, *rest in heard if head.kind != frames.SIGNAL]
    call, reply = (frames.METHOD_CALL, caller.unique_name), (frames.METHOD_RETURN, service.unique_name)
    assert found == [
        (*call, "s", ("one",)), (*reply, "s", ("one",)),
        (*call, "s", ("two",)), (*reply, "s", ("two",)),
        (*call, "s", ("three",)), (frames.ERROR, service.unique_name, "s", ("no",)),
    ]  # fmt: skip
    calls = [head for head, _, _ in heard if head.kind == frames.METHOD_CALL]
    answers = [head for head, _, _ in heard if head.kind in (frames.METHOD_RETURN, frames.ERROR)]
    assert [(head.sender, head.serial) for head in calls] == [(head.destination, head.reply_serial) for head in answers]
    assert not monitor.closed.is_set()


async def test_a_rule_that_is_none(connect: Connect) -> None:
    """The bus says no, and the connection is one like any other still."""
    service, monitor = await connect(), await connect()
    service.serve(answer)
    with pytest.raises(BusRefused, match="MatchRuleInvalid"):
        await monitor.monitor(("type='nonsense'",), lambda _: None)
    reply = await monitor.call(service.unique_name, "/o", "org.x.I", "Echo", "s", ("still",), timeout=PATIENCE)
    assert reply.body == ("still",)


async def test_what_is_told_of_it_fails(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next message is told all the same."""
    service, caller, monitor = [await connect() for _ in range(3)]
    service.serve(answer)
    await service.request_name(SERVICE)
    heard: list[bytes] = []

    def fail(frame: bytes) -> None:
        heard.append(frame)
        raise RuntimeError("a defect")

    await monitor.monitor(RULES[:1], fail)
    for _ in range(2):
        await caller.call(SERVICE, "/o", "org.x.I", "Echo", timeout=PATIENCE)
    await until(lambda: sum(frame[1] == frames.METHOD_CALL for frame in heard) == 2)
    assert "a callback of the bus failed" in caplog.text
