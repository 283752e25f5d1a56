"""Power is cut under a Valkey that syncs once a second: what `durability="fsync"` confirmed is there.

Its WAITAOF answers before the disk has the write (redis/redis pull request 13793); the log waits for the sync itself.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from crash.results import cycles, toll
from crash.test_power_loss import FAULT, Machine

CYCLES = max(2, cycles(FAULT, 20) // 10)
EVERY_SECOND = {"appendonly": "yes", "appendfsync": "everysec"}


@pytest.mark.timeout(3_600)
async def test_power_loss_takes_nothing_confirmed_as_synced_by_a_server_that_syncs_once_a_second(
    tmp_path: Path,
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    machine = Machine(tmp_path / "machine", rng, "fsync", EVERY_SECOND)
    with toll(FAULT, "Valkey, appendfsync everysec") as counted:
        try:
            for _ in range(CYCLES):
                await machine.start()
                await machine.life.begin(2, rng.choice([20, 40]))
                await machine.life.some_more(rng.randint(10, 60))
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                await machine.cut_power()
                counted.cycles += 1
            await machine.start()
            await machine.life.finish(counted)
        finally:
            await machine.kill()
    assert counted.clean(), counted
