"""The squeezed of the examples with three faults that a rehearsal must find.

    python tests/stories/broken_squeezed.py --bus unix:path=/tmp/x/bus --xenstore /tmp/x/store --settled --sandbox

It says that it gave one KiB more than it reserved, calls another failure than the legacy daemon for a reservation that
is not there, and names another policy for domain 0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import squeezed_on_bus

from dbus_side.signatures import Variant


class Memory(squeezed_on_bus.Memory):
    """The service."""

    async def reserve_memory_range(
        self, debug_info: str, session_id: str, minimum: int, maximum: int
    ) -> tuple[Any, ...]:
        reservation, kib = await super().reserve_memory_range(debug_info, session_id, minimum, maximum)
        return (reservation, kib + 1)

    async def transfer_reservation_to_domain(
        self, debug_info: str, session_id: str, reservation_id: str, domid: int
    ) -> tuple[Any, ...]:
        try:
            return await super().transfer_reservation_to_domain(debug_info, session_id, reservation_id, domid)
        except squeezed_on_bus.Fault:
            raise squeezed_on_bus.Fault("No_reservation", "there is no such reservation") from None

    async def get_domain_zero_policy(self, _debug_info: str) -> tuple[Any, ...]:
        return (("Fixed_size", Variant("x", 512 << 20)),)


if __name__ == "__main__":
    squeezed_on_bus.Memory = Memory
    squeezed_on_bus.main()
