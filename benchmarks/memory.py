"""Memory of a worker: idle, and over a million events."""

from __future__ import annotations

import asyncio

import psutil

from benchmarks.payload import TYPE, payload


async def idle(url: str) -> dict[str, float]:
    """A worker with three steps that waits."""
    from ag06 import Event, Workflow

    app = Workflow("idle", store=url)
    for name in ("one", "two", "three"):

        @app.step(f"bench.{name}", name=name)
        async def noop(event: Event) -> None:
            """Nothing to do."""

    async with app.running():
        await asyncio.sleep(2)
        return {"rss_mb": psutil.Process().memory_info().rss / 1e6}


async def growth(url: str, count: int) -> dict[str, float]:
    """Publish and process `count` events in one process; compare memory after a tenth and at the end."""
    from ag06 import Event, Workflow

    app = Workflow("growth", store=url, dedup_window=5)

    @app.step(TYPE)
    async def noop(event: Event) -> None:
        """Nothing to do."""

    process = psutil.Process()
    early = 0.0
    async with app.running():
        for start in range(0, count, 1000):
            await app.events.persist_events(
                [{"event_type": TYPE, "source": "bench", "data": payload(n)} for n in range(start, start + 1000)]
            )
            if start % 10_000 == 0:
                await app.drain()
            if start == count // 10:
                early = process.memory_info().rss
        await app.drain()
        late = process.memory_info().rss
    return {"early_mb": early / 1e6, "late_mb": late / 1e6, "growth_mb": (late - early) / 1e6}
