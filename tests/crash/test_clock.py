"""The wall clock of the machine jumps, by seconds or hours, forward and back, under everything that runs there."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from crash.life import Life
from crash.preload import Clock
from crash.results import cycles, toll
from servers import ValkeyServer

FAULT = "clock jump"
HOUR = 3600.0


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("store", ["SQLite", "Valkey"])
async def test_a_clock_that_jumps_loses_nothing_and_events_flow_on(store: str, tmp_path: Path) -> None:
    """At times a worker dies while the clock is wrong: what it held must not wait until the clock comes there again."""
    rng = random.Random()
    clock = Clock(tmp_path / "clock")
    server = ValkeyServer(tmp_path, environment=clock.environment)
    url = f"sqlite:///{tmp_path}/clock.db" if store == "SQLite" else server.start().url
    life = Life(url, "server", tmp_path / "told", clock.environment)
    try:
        with toll(FAULT, store) as counted:
            await life.begin(2, 4)
            for cycle in range(cycles(FAULT, 4)):
                await life.some_more(20)
                jump = rng.choice([-1, 1]) * rng.choice([2.0, 60.0, HOUR, 24 * HOUR]) * rng.random()
                clock.set(jump if cycle else HOUR)
                await life.some_more(20)
                if not cycle or rng.random() < 0.3:
                    await life.kill()
                    clock.set(0.0)
                    await life.begin(2, 4)
                counted.cycles += 1
            clock.set(0.0)
            await life.some_more(20)
            for process in life.processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in life.processes))
            await life.finish(counted)
    finally:
        await life.kill()
        server.stop()
    assert counted.clean(), counted
