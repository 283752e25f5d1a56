"""A no-op step end to end: everything is published before, then one worker process works it off."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.payload import TYPE, payload, timed


async def ours(url: str, count: int, durability: str | None = None) -> dict[str, float]:
    """From the start of the worker until the last acknowledgement is in the store."""
    from ag06 import Event, Workflow

    app = Workflow("bench", store=url, durability=durability)  # type: ignore[arg-type]

    @app.step(TYPE)
    async def noop(event: Event) -> None:
        """Nothing to do."""

    await timed(500, count, lambda n: app.publish(TYPE, "bench", payload(n)))
    started = time.perf_counter()
    async with app.running():
        await app.drain()
        took = time.perf_counter() - started
    return {"rate": count / took}


async def faststream(url: str, count: int) -> dict[str, float]:
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(url, max_connections=50, logger=None)
    seen = 0
    done = asyncio.Event()

    @broker.subscriber(stream=StreamSub("fs", group="bench", consumer="one", max_records=500, last_id=">"))
    async def noop(message: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    await broker.connect()
    await _preload(url, broker, count)
    started = time.perf_counter()
    await broker.start()
    await asyncio.wait_for(done.wait(), 300)
    took = time.perf_counter() - started
    await broker.stop()
    return {"rate": count / took}


async def _preload(url: str, broker: Any, count: int) -> None:
    """Make the group first: FastStream's begins at the end of the stream."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.xgroup_create("fs", "bench", id="0", mkstream=True)
    await client.aclose()
    await timed(20, count, lambda n: broker.publish(payload(n), stream="fs"))


async def taskiq(url: str, count: int) -> dict[str, float]:
    from taskiq.api import run_receiver_task
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(url, queue_name="taskiq-bench", consumer_id="0")
    seen = 0
    done = asyncio.Event()

    @broker.task
    async def noop(number: int, text: str) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    await broker.startup()
    await timed(20, count, lambda n: noop.kiq(**payload(n)))
    started = time.perf_counter()
    receiver = asyncio.create_task(run_receiver_task(broker, max_async_tasks=100, max_prefetch=500))
    await asyncio.wait_for(done.wait(), 300)
    took = time.perf_counter() - started
    receiver.cancel()
    return {"rate": count / took}
