"""Publishing while the store is down, at 1,000 events a second, and how fast the journal is drained afterwards."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.servers import ValkeyServer

from benchmarks.payload import TYPE, payload, quantiles
from benchmarks.report import Row, bounded
from benchmarks.rounds import in_turns, median

RATE = 1_000
MOST_TIMES = 1.5
"""The p99 of a publish into the journal, as a multiple of SQLite's at the same rate in the same run."""


async def _paced(events: Any, numbers: range, taken: list[float]) -> None:
    """Publish at `RATE`, each event in a task of its own, as the requests of a web service come."""
    started = time.perf_counter()

    async def one(number: int) -> None:
        begun = time.perf_counter()
        await events.persist_event(TYPE, "bench", payload(number), subject=f"s{number % 50}")
        taken.append(time.perf_counter() - begun)

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            pause = started + (number - numbers.start) / RATE - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            group.create_task(one(number))


async def down(seconds: float) -> dict[str, float]:
    """Kill the server under load; return the latencies from then on, and the rate at which the journal drains."""
    from ag06.persistence import EventStore

    with tempfile.TemporaryDirectory(prefix="ag06-bench-") as name:
        directory = Path(name)
        server = await asyncio.to_thread(ValkeyServer(directory, appendonly="yes", appendfsync="always").start)
        events = EventStore(server.url, journal=str(directory / "journal"))
        await _paced(events, range(RATE), [])
        await asyncio.to_thread(server.kill)
        await events.persist_event(TYPE, "bench", payload(RATE))  # this one opens the breaker
        taken: list[float] = []
        count = int(RATE * seconds)
        await _paced(events, range(RATE + 1, RATE + 1 + count), taken)
        await asyncio.to_thread(server.start)
        waiting = (await events.journal_state()).events  # type: ignore[union-attr]
        while (state := await events.journal_state()) and state.events == waiting:
            await asyncio.sleep(0.001)
        begun, left = time.perf_counter(), state.events if state else 0
        while (state := await events.journal_state()) and state.active:
            await asyncio.sleep(0.001)
        rate = left / (time.perf_counter() - begun)
        stored = len(await events.replay_from(0))
        await events.close()
        server.stop()
    if stored != RATE + 1 + count:
        raise AssertionError(f"{stored} events in the log, {RATE + 1 + count} were published")
    return {**quantiles(taken), "rate": rate, "longest": max(taken) * 1000}


async def sqlite(seconds: float) -> dict[str, float]:
    """The same load on a log in an SQLite file: what the disk allows."""
    from ag06.persistence import EventStore

    with tempfile.TemporaryDirectory(prefix="ag06-bench-") as name:
        events = EventStore(f"sqlite:///{name}/log.db")
        await _paced(events, range(RATE), [])
        taken: list[float] = []
        await _paced(events, range(RATE, RATE + int(RATE * seconds)), taken)
        await events.close()
    return quantiles(taken)


def rows(*, rounds: int, scale: float) -> list[Row]:
    """Publishing into the journal beside publishing into SQLite, and the drain."""
    away, near = "publish at 1,000/s while Valkey is down", "the same on SQLite"
    seconds = {"seconds": 10 * scale}
    results = in_turns(rounds, {away: ("outage.down", seconds), near: ("outage.sqlite", seconds)})
    p99, other = median(results[away], "p99"), median(results[near], "p99")
    times = p99 / other
    return [
        Row(
            f"{away}, p99",
            f"{p99:.2f} ms",
            f"{near}: {other:.2f} ms",
            f"{times:.2f}",
            f"<= {MOST_TIMES} x SQLite",
            times <= MOST_TIMES,
        ),
        Row(f"{away}, p50", f"{median(results[away], 'p50'):.2f} ms", f"{near}: {median(results[near], 'p50'):.2f} ms"),
        bounded("journal to Valkey, in order and deduplicated", median(results[away]), "/s", "", True),
    ]
