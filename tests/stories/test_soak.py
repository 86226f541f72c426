"""A soak: a whole host moved and killed at random while everybody calls. `make soak MINUTES=5` lets it run longer."""

from __future__ import annotations

import os
import random

import pytest
from rich.console import Console

from tests.fixtures_dbus import BusDaemon
from tests.fixtures_xenstored import running_store
from tests.stories.soak import Soak

SECONDS = float(os.environ.get("SOAK_SECONDS") or ("20" if os.environ.get("XCP_BUS_LIBRARY") == "dbus-next" else "40"))


@pytest.mark.timeout(SECONDS + 500)
async def test_nothing_is_lost_or_doubled(bus_daemon: BusDaemon, request: pytest.FixtureRequest) -> None:
    """No write is executed twice, nobody hangs, who is told "not executed" is told the truth; SOAK_SEED sets a run."""
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(2**32))
    async with running_store("oxenstored", lambda: request.getfixturevalue("xenstored_stub")) as store:
        soak = Soak(bus_daemon, store, seed, SECONDS)
        try:
            await soak.run()
            soak.accounts.print(Console(width=140), seed)
            assert not soak.accounts.problems, soak.story()
        finally:
            await soak.close()
