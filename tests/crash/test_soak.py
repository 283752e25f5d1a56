"""Two hours of events in minutes: workers come and go, nothing is lost, and one that stays does not grow."""

from __future__ import annotations

import asyncio
import random
import statistics
from pathlib import Path

import psutil
import pytest

from ag06.persistence import EventStore
from ag06.persistence.log import EventLog, StepSpec
from crash.processes import Killable, start_worker
from crash.results import Toll, share_of, toll
from servers import ValkeyServer

EVENTS = share_of(720_000, 2_000)
"""A hundred a second for two hours."""
BATCH = 500
AHEAD = 5_000
"""How far the publisher may be ahead of the steps, in deliveries."""
SHIFT = max(BATCH, EVENTS // 40)
"""After so many events the worker that comes and goes is replaced."""
GROUPS = ["chain.first", "chain.second"]
GROWTH = 1.3
WARM = 20
"""Batches after which a worker has everything that it ever has."""


async def _wait_until_behind_is_less_than(count: int, log: EventLog) -> None:
    async with asyncio.timeout(300):
        while await log.pending(GROUPS) > count:
            await asyncio.sleep(0.02)


async def _work_through(url: str, events: EventStore, log: EventLog) -> list[int]:
    """Publish everything, replace one worker again and again; return the memory of the other one over time."""
    sizes: list[int] = []
    veteran, other = [await start_worker(url, number, wait=False) for number in range(2)]
    memory = psutil.Process(veteran.process.pid)
    for first in range(0, EVENTS, BATCH):
        batch = [
            {"event_type": "a", "source": "soak", "data": [None, n]} for n in range(first, min(first + BATCH, EVENTS))
        ]
        await events.persist_events(batch)
        await _wait_until_behind_is_less_than(AHEAD, log)
        sizes.append(memory.memory_info().rss)
        if first % SHIFT < BATCH:
            other = await _replace(other, url, first + 2)
    await _wait_until_behind_is_less_than(0, log)
    assert await veteran.terminate() == 0
    await other.terminate()  # it may be too young to have heard
    return sizes


async def _replace(worker: Killable, url: str, number: int) -> Killable:
    if random.random() < 0.5:
        await worker.kill()
    else:
        await worker.terminate()
    return await start_worker(url, number, wait=False)


async def _count_up(events: EventStore, counted: Toll) -> None:
    """Count without holding the events in memory."""
    seen = {event_type: bytearray(EVENTS) for event_type in "abc"}
    async for event in events.replay():
        seen[event.type][event.data[1]] += 1
    counted.events = EVENTS
    for times in seen.values():
        counted.lost += times.count(0)
        counted.doubled += sum(times) - (EVENTS - times.count(0))


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("store", ["SQLite", "Valkey"])
async def test_two_hours_of_events_lose_nothing_and_memory_stays_flat(store: str, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path)
    url = f"sqlite:///{tmp_path}/soak.db" if store == "SQLite" else server.start().url
    events = EventStore(url, dedup_window=0)
    try:
        with toll("soak (720,000 events in a whole run)", store) as counted:
            log = await events.log()
            await log.register("chain", [StepSpec("chain.first", "a"), StepSpec("chain.second", "b")])
            sizes = await _work_through(url, events, log)
            await _count_up(events, counted)
            counted.lost += len(await log.dead_letters())
            counted.cycles = 1
    finally:
        await events.close()
        server.stop()
    assert counted.clean(), counted
    half = len(sizes) // 2
    if half >= WARM:
        assert statistics.median(sizes[-half // 2 :]) < GROWTH * statistics.median(sizes[:half]), sizes
