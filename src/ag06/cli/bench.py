"""`ag06 bench`: how fast this machine and this store are, in half a minute."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ag06.cli.output import JsonOption, print_json, print_table, progress

if TYPE_CHECKING:
    from ag06 import Workflow
    from ag06.persistence import EventStore

_ALONE = 2000
_PADDING = "x" * 180


class Row(msgspec.Struct, frozen=True):
    """One measurement."""

    work: str
    value: float
    unit: str


def command(
    store: Annotated[str | None, typer.Option(help="Store URL; a fresh SQLite file unless given.")] = None,
    events: Annotated[int, typer.Option(min=100, max=1_000_000, help="Events for each measurement.")] = 20_000,
    json: JsonOption = False,
) -> None:
    """Measure publishing, processing and replay with events of about 200 bytes.

    A store that is given keeps the events, of a type `bench-...`; the step is removed.

    Example: ag06 bench --store redis://localhost:6379/0 --events 50000
    """
    with tempfile.TemporaryDirectory(prefix="ag06-bench-") as directory:
        rows = asyncio.run(_bench(store or f"sqlite:///{directory}/events.db", events))
    if json:
        print_json(rows)
    else:
        table = [(row.work, f"{row.value:,.{0 if row.value >= 100 else 3}f}", row.unit) for row in rows]
        print_table("Bench", ("work", "measured", "unit"), table)


async def _bench(store: str, count: int) -> list[Row]:
    from ag06 import Event, Workflow
    from ag06.persistence import EventStore

    # Names of its own: a store that is in use keeps its steps, and the backlog of this one is removed at the end.
    name = f"bench-{os.getpid()}-{time.time_ns()}"
    app = Workflow(name, store=store, journal="off")

    @app.step(name, name="noop")
    async def noop(event: Event) -> None:
        """Do nothing: what is measured is everything else."""

    rows: list[Row] = []
    # It stays open while the workflow opens and closes: a log in memory lives as long as somebody holds it.
    events = EventStore(store, journal="off")
    log = await events.log()
    try:
        with progress() as display:
            task = display.add_task("events", total=min(count, _ALONE) + 3 * count)
            rows += await _alone(app, name, min(count, _ALONE))
            display.advance(task, min(count, _ALONE))
            rows.append(await _rate("publish, 100 callers in flight", count, _publish(app, name, count)))
            display.advance(task, count)
            both = count + min(count, _ALONE)
            rows.append(await _rate("process with a no-op step, one process", both, lambda: _process(app)))
            display.advance(task, count)
            rows.append(await _rate("replay", both, lambda: _replay(events, name)))
    finally:
        await app.close()
        await log.remove_group(f"{name}.noop")
        await events.close()
    return rows


async def _alone(app: Workflow, event_type: str, count: int) -> list[Row]:
    taken = []
    for number in range(count):
        started = time.perf_counter()
        await app.publish(event_type, data={"alone": number, "padding": _PADDING})
        taken.append((time.perf_counter() - started) * 1000)
    taken.sort()
    return [
        Row("publish, one caller, p50", taken[count // 2], "ms"),
        Row("publish, one caller, p99", taken[int(count * 0.99)], "ms"),
    ]


async def _rate(work: str, count: int, do: Callable[[], Awaitable[Any]]) -> Row:
    started = time.perf_counter()
    await do()
    return Row(work, count / (time.perf_counter() - started), "events/s")


def _publish(app: Workflow, event_type: str, count: int) -> Callable[[], Awaitable[Any]]:
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await app.publish(event_type, data={"number": number, "padding": _PADDING})

    async def publish() -> None:
        await asyncio.gather(*(caller() for _ in range(100)))

    return publish


async def _process(app: Workflow) -> None:
    async with app.running():
        await app.drain()


async def _replay(events: EventStore, event_type: str) -> None:
    async for _ in events.replay(types=event_type):
        continue
