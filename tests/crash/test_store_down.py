from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from crash.load import PATIENCE, Load
from crash.results import cycles, toll
from faults import running_server

FAULT = "store down for 60 s"
SECONDS = 60.0 if "AG06_TORTURE" in os.environ else 1.0
PUBLISHERS = 20
RATE = 1000
"""Events a second."""


async def waits_in_a_journal(load: Load) -> bool:
    state = await load.app.events.journal_state()
    return state is not None and state.active


@pytest.mark.timeout(14_400)
async def test_a_store_that_is_down_for_a_minute_costs_no_event_and_no_publisher_its_id(tmp_path: Path) -> None:
    """Nobody is refused meanwhile: events wait in the journal, and come in order when the store is back."""
    with toll(FAULT, "Valkey") as counted:
        for cycle in range(cycles(FAULT, 1)):
            async with running_server(tmp_path / f"{cycle}", appendonly="yes", appendfsync="always") as server:
                load = Load(server.url, durability="fsync", publishers=PUBLISHERS, pause=PUBLISHERS / RATE)
                async with load.running(counted):
                    await load.some_more(RATE)
                    await asyncio.to_thread(server.kill)
                    down = asyncio.sleep(SECONDS + random.uniform(0.0, 1.0))
                    await asyncio.gather(down, load.some_more(int(RATE * SECONDS / 2)))  # nobody waits for the store
                    assert await waits_in_a_journal(load)
                    await asyncio.to_thread(server.start)
                    async with asyncio.timeout(PATIENCE):
                        while await waits_in_a_journal(load):
                            await asyncio.sleep(0.05)
                    await load.some_more(RATE)
                assert load.refused == 0
            counted.cycles += 1
    assert counted.clean(), counted
