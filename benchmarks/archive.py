"""Archiving: how fast events become Parquet files, how fast they are replayed from there, how small they are."""

from __future__ import annotations

import gzip
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from benchmarks.payload import TYPE, payload

if TYPE_CHECKING:
    from ag06.persistence import EventStore

_WEBHOOKS = Path(__file__).parents[1] / "examples" / "data" / "github-webhooks.jsonl.gz"


async def _fill(events: EventStore, first: int, end: int) -> None:
    for start in range(first, end, 2000):
        numbers = range(start, min(start + 2000, end))
        await events.persist_events([{"event_type": TYPE, "source": "bench", "data": payload(n)} for n in numbers])


async def moved(url: str, count: int) -> dict[str, float]:
    """Move `count` events; they are archived when the log knows that they were read back, moved when they left it."""
    from ag06.persistence import EventStore

    events = EventStore(url)
    await events.initialize(url)
    await _fill(events, 0, 20_000)  # what is loaded once is loaded here
    with tempfile.TemporaryDirectory() as directory:
        await events.archive_before(time.time() + 60, f"file://{directory}/first")
        await _fill(events, 20_000, 20_000 + count)
        process = psutil.Process()
        before = highest = process.memory_info().rss
        registered = spent = 0.0

        def watch(progress: Any) -> None:
            nonlocal registered, spent, highest
            highest = max(highest, process.memory_info().rss)
            if progress.stage == "registered":
                registered, spent = time.perf_counter(), time.process_time()

        began, started = time.process_time(), time.perf_counter()
        done = await events.archive_before(time.time() + 60, f"file://{directory}/archive", progress=watch)
        ended = time.perf_counter()
        if done.events != count:
            raise AssertionError(f"{done.events} of {count} events were archived")
        replayed, growth = await _replay(events, count + 20_000)
        await events.close()
    return {
        "rate": count / (registered - started),
        "moved": count / (ended - started),
        "cpu_us": (spent - began) / count * 1e6,
        "growth_mb": (highest - before) / 1e6,
        "replay": replayed,
        "replay_growth_mb": growth,
    }


async def _replay(events: EventStore, count: int) -> tuple[float, float]:
    process = psutil.Process()
    before = highest = process.memory_info().rss
    seen = 0
    started = time.perf_counter()
    async for _ in events.replay():
        seen += 1
        if seen % 20_000 == 0:
            highest = max(highest, process.memory_info().rss)
    took = time.perf_counter() - started
    if seen != count:
        raise AssertionError(f"{seen} of {count} events came back")
    return count / took, (highest - before) / 1e6


async def webhooks(repeats: int) -> dict[str, float]:
    """Archive real webhook deliveries `repeats` times over; compare with the same events as JSON lines."""
    from ag06.persistence import EventStore

    deliveries = [msgspec.json.decode(line) for line in gzip.decompress(_WEBHOOKS.read_bytes()).splitlines()]
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/events.db"
        events = EventStore(url)
        await events.initialize(url)
        for _ in range(repeats):
            members = [{"event_type": "github.delivery", "source": "github", "data": one} for one in deliveries]
            await events.persist_events([{**member, "dedup": False} for member in members])
        lines = [msgspec.json.encode(event) async for event in events.replay()]
        done = await events.archive_before(time.time() + 60, f"file://{directory}/archive")
        size = sum(Path(file.removeprefix("file://")).stat().st_size for file in done.files)
        await events.close()
    json = sum(len(line) + 1 for line in lines)
    zipped = len(gzip.compress(b"\n".join(lines)))
    return {"ratio": json / size, "gzip_ratio": json / zipped, "events": float(done.events)}
