"""From publish to the start of the step, at 500 events a second, in one process for both sides of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.payload import TYPE, quantiles

RATE = 500


async def _paced(count: int, publish: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    started = time.perf_counter()
    tasks = []
    for number in range(count):
        pause = started + number / RATE - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        data = {"number": number, "sent": time.perf_counter(), "text": "x" * 150}
        tasks.append(asyncio.create_task(publish(data)))  # type: ignore[arg-type]
    await asyncio.gather(*tasks)


async def ours(url: str, seconds: float, durability: str | None = None) -> dict[str, float]:
    from ag06 import Event, Workflow

    app = Workflow("latency", store=url, durability=durability)  # type: ignore[arg-type]
    taken: list[float] = []

    @app.step(TYPE)
    async def noop(event: Event) -> None:
        taken.append(time.perf_counter() - event.data["sent"])

    async with app.running():
        await _paced(RATE, lambda data: app.publish(TYPE, "bench", data))
        await app.drain()
        taken.clear()
        await _paced(int(RATE * seconds), lambda data: app.publish(TYPE, "bench", data))
        await app.drain()
    return quantiles(taken)


async def faststream(url: str, seconds: float) -> dict[str, float]:
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(url, max_connections=50, logger=None)
    taken: list[float] = []

    @broker.subscriber(stream=StreamSub("latency", group="bench", consumer="one", polling_interval=100))
    async def noop(message: dict[str, Any]) -> None:
        taken.append(time.perf_counter() - message["sent"])

    await broker.connect()
    await broker.start()
    await asyncio.sleep(0.5)
    await _paced(RATE, lambda data: broker.publish(data, stream="latency"))
    await asyncio.sleep(0.5)
    taken.clear()
    await _paced(int(RATE * seconds), lambda data: broker.publish(data, stream="latency"))
    await asyncio.sleep(0.5)
    await broker.stop()
    return quantiles(taken)
