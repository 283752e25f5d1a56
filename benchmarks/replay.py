"""Replay, and what it does to memory."""

from __future__ import annotations

import time

import psutil

from benchmarks.payload import TYPE, payload


async def ours(url: str, count: int) -> dict[str, float]:
    from ag06.persistence import EventStore

    events = EventStore(url)
    await events.initialize(url)
    for start in range(0, count, 2000):
        await events.persist_events(
            [
                {"event_type": TYPE, "source": "bench", "data": payload(n)}
                for n in range(start, min(start + 2000, count))
            ]
        )
    process = psutil.Process()
    async for _ in events.replay(limit=5000):
        continue
    before = process.memory_info().rss
    highest = before
    seen = 0
    started = time.perf_counter()
    async for _ in events.replay():
        seen += 1
        if seen % 20_000 == 0:
            highest = max(highest, process.memory_info().rss)
    took = time.perf_counter() - started
    await events.close()
    if seen != count:
        raise AssertionError(f"{seen} of {count} events came back")
    return {"rate": count / took, "growth_mb": (highest - before) / 1e6}
