"""A service's datagram address: bound by us while the bus side rules, the legacy daemon's own before.

Like the tree in the store it has no middle: an abstract address has one owner, and whoever owns it executes. So it
moves with the authority, after the legacy daemon was seen to end. In between nobody listens, as when that daemon
restarts.
"""

from __future__ import annotations

import asyncio

from bridges.doors import DatagramDoor
from bridges.situation import DoorError, Situation
from xmlrpc_gateway import datagrams
from xmlrpc_gateway.errors import AddressTaken


class DatagramAddress:
    """The address of one service, such as `@perfmon`."""

    def __init__(self, situation: Situation, address: str, door: DatagramDoor) -> None:
        self._address = address
        self._situation = situation
        self._door = door
        self._bound: datagrams.DatagramDoor | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Binds the address when the stage says that it is ours. Raises DoorError when somebody else has it."""
        if not self._situation.meaning.tree.is_ours or self._bound is not None:
            return
        bound = datagrams.DatagramDoor(self._address, self._receive)
        try:
            await bound.open()
        except (AddressTaken, OSError) as error:
            raise DoorError(f"{self._address} cannot be bound: {error}; does a legacy daemon run?") from None
        self._bound = bound

    async def leave(self) -> None:
        """Gives the address up; the calls that its datagrams had begun go on."""
        bound, self._bound = self._bound, None
        if bound is not None:
            await bound.close()

    async def close(self) -> None:
        """Gives the address up and waits for its calls."""
        await self.leave()
        if self._calls:
            await asyncio.wait(self._calls)

    def _receive(self, payload: bytes) -> None:
        task = asyncio.create_task(self._door.receive(payload), name=f"datagram of {self._situation.service}")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
