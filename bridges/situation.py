"""Where a service stands now, as all its parts see it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bridges.cutover import MEANINGS, Meaning, Stage
from bridges.state import Standing

LOG: Final = logging.getLogger("bridges")


class DoorError(Exception):
    """An address or a daemon is not as it must be; the text says what is so and what to do."""


# What may not be, whatever the operator does: two owners, or calls that nobody can account for.
VIOLATIONS: Final = frozenset({"SPLIT_OWNER", "NAME_TAKEN", "ACCOUNTS"})


@dataclass
class Situation:
    """One service's standing, what is wrong with it, and the lock that a move holds.

    `alarms` maps a name (SPLIT_OWNER, NAME_TAKEN, ACCOUNTS, NO_AUTHORITY, BUS_LOST, STORE_LOST, TREE_LOST, DOORS,
    STATE, ANOTHER_BRIDGE) to a sentence for the operator. `frozen` says why the service may not be moved; `keep_freeze`
    makes that last over restarts. `moving` says what move is on its way.
    """

    service: str
    standing: Standing = field(default_factory=lambda: Standing(Stage.OFF, 0))
    alarms: dict[str, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    moving: str | None = None
    frozen: str | None = None
    keep_freeze: Callable[[str], None] = field(default=lambda _why: None)

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.standing.stage]

    def alarm(self, name: str, text: str) -> None:
        """Raises an alarm; the same one again is not logged again. A violation freezes the service at once."""
        if self.alarms.get(name) == text:
            return
        self.alarms[name] = text
        LOG.error("%s: %s: %s", self.service, name, text)
        if name in VIOLATIONS and self.frozen is None:
            self.frozen = f"{name}: {text}"
            self.keep_freeze(self.frozen)

    def calm(self, name: str) -> None:
        """What an alarm was about is over; a freeze stays until somebody has looked."""
        if self.alarms.pop(name, None) is not None:
            LOG.info("%s: %s is over", self.service, name)
