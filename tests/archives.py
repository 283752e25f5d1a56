"""Short ways to say what the tests of an archive say all the time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ag06.event import Event
from ag06.persistence import EventStore

TYPE = "order.placed"


def later() -> float:
    """A moment that everything recorded by now is before, whatever the clock of the store says."""
    return time.time() + 60


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[EventStore]:
    events = EventStore(url, **settings)
    await events.log()
    try:
        yield events
    finally:
        await events.close()


async def fill(events: EventStore, count: int, start: int = 0, event_type: str = TYPE, **more: Any) -> None:
    """Store `count` numbered events, with what an event may have of each kind."""
    await events.persist_events(
        [
            {
                "event_type": event_type,
                "source": f"source-{number % 3}",
                "data": {"number": number, "text": "ß€😀" * (number % 4), "list": [None, 1.5, {"a": []}]},
                "priority": number % 4,
                "subject": f"subject-{number % 5}" if number % 2 else None,
                "correlation_id": f"correlation-{number % 10}",
                "dedup": False,
                **more,
            }
            for number in range(start, start + count)
        ]
    )


async def everything(events: EventStore, **selection: Any) -> list[Event[Any]]:
    return [event async for event in events.replay(**selection)]


def numbers(found: list[Event[Any]]) -> list[int]:
    return [event.data["number"] for event in found]


def segments(archive: Path) -> list[Path]:
    return sorted(archive.rglob("*.parquet"))


def manifests(archive: Path) -> list[Path]:
    return sorted(archive.rglob("manifests/*.json"))


async def live(events: EventStore) -> int:
    """How many events the live log holds."""
    return (await events.stats()).events
