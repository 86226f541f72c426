"""The connection's bytes, when its other end goes away."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from dbus_side.errors import BusLost
from dbus_side.stream import Stream


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_transport_that_closed_by_itself(new_loop: type[asyncio.AbstractEventLoop]) -> None:
    """What was gathered when the bus died is not written any more, which uvloop takes ill; nor is what comes later."""

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        lost = asyncio.Event()
        stream = Stream(lambda _frame: None, lost.set)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: stream, sock=ours)
        stream.write(b"first")
        stream.write(b"gathered")
        transport.abort()  # as it does by itself when it reads the end
        with pytest.raises(BusLost) as refused:
            stream.write(b"late")
        assert not refused.value.sent
        await asyncio.wait_for(lost.wait(), 10)
        stream.close()
        theirs.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(talk())
