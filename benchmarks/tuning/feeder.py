"""A publisher in a process of its own: it keeps so many events waiting, until it is killed."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from ag06 import Event, Workflow

TYPE = "work"
_BATCH = 500


async def feed(url: str, waiting: int, data: dict[str, Any]) -> None:
    app = Workflow("live", store=url, journal="off")
    app.step(TYPE, name="step")(_nothing)  # declared alike, so that events are kept for the worker's group
    log = await app.events.log()
    await app.publish(TYPE, data=data, dedup=False)
    while True:
        backlog = await log.pending(["live.step"])
        if backlog >= waiting:
            await asyncio.sleep(0.005)
            continue
        count = min(_BATCH, waiting - backlog)
        await app.events.persist_events(
            {"event_type": TYPE, "source": "feeder", "data": data, "dedup": False} for _ in range(count)
        )


async def _nothing(event: Event) -> None:
    """Runs elsewhere."""


if __name__ == "__main__":
    asyncio.run(feed(sys.argv[1], int(sys.argv[2]), {"n": "x" * 100}))
