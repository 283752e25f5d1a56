"""What a long log costs: publishing to it, working it off, taking a look at it."""

from __future__ import annotations

import asyncio
import time

from benchmarks.payload import TYPE, payload, quantiles, timed

_SAMPLE = 20_000
_FILLERS = 4
_PAGE = 2_000


async def ours(url: str, events: int) -> dict[str, float]:
    """Put `events` unprocessed events into the log, then measure on top of them."""
    from ag06 import Event, Outcome, Workflow

    app = Workflow("backlog", store=url)
    enough = asyncio.Event()
    processed = 0

    @app.step(TYPE)
    async def noop(event: Event) -> None:
        """Nothing to do."""

    @app.on_outcome
    def count(outcome: Outcome) -> None:
        nonlocal processed
        processed += 1
        if processed == min(_SAMPLE, events):
            enough.set()

    await app.publish(TYPE, "bench", payload(-1))
    await _fill(app.events, events)
    rate = await timed(100, _SAMPLE, lambda n: app.publish(TYPE, "bench", payload(n)))
    alone = []
    for number in range(_SAMPLE, _SAMPLE + 1_000):
        started = time.perf_counter()
        await app.publish(TYPE, "bench", payload(number))
        alone.append(time.perf_counter() - started)
    looks = []
    for _ in range(20):
        started = time.perf_counter()
        await app.events.stats()
        looks.append(time.perf_counter() - started)
    started = time.perf_counter()
    async with app.running():
        await enough.wait()
        took = time.perf_counter() - started
    return {
        "publish": rate,
        "p50": quantiles(alone)["p50"],
        "process": min(_SAMPLE, events) / took,
        "stats": quantiles(looks)["p50"],
    }


async def _fill(log: object, events: int) -> None:
    pages = iter(range(0, events, _PAGE))

    async def filler() -> None:
        for start in pages:
            numbers = range(start, min(start + _PAGE, events))
            await log.persist_events(  # type: ignore[attr-defined]
                [{"event_type": TYPE, "source": "bench", "data": payload(n), "dedup": False} for n in numbers]
            )

    await asyncio.gather(*(filler() for _ in range(_FILLERS)))
