"""Where a service stands now, as all its parts see it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from bridges.cutover import MEANINGS, Meaning, Stage
from bridges.state import Standing

LOG: Final = logging.getLogger("bridges")


class DoorError(Exception):
    """An address or a daemon is not as it must be; the text says what is so and what to do."""


@dataclass
class Situation:
    """One service's standing, what is wrong with it, and the lock that a move holds.

    `alarms` maps a name (SPLIT_OWNER, NAME_TAKEN, NO_AUTHORITY, BUS_LOST, STORE_LOST, TREE_LOST, DOORS) to a sentence
    for the operator.
    """

    service: str
    standing: Standing = field(default_factory=lambda: Standing(Stage.OFF, 0))
    alarms: dict[str, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.standing.stage]

    def alarm(self, name: str, text: str) -> None:
        """Raises an alarm; the same one again is not logged again."""
        if self.alarms.get(name) != text:
            self.alarms[name] = text
            LOG.error("%s: %s: %s", self.service, name, text)

    def calm(self, name: str) -> None:
        """What an alarm was about is over."""
        if self.alarms.pop(name, None) is not None:
            LOG.info("%s: %s is over", self.service, name)
