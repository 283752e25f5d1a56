"""Publishing: ours, and what its peers and the bare server do on the same server."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.payload import TYPE, payload, quantiles, timed


async def ours(url: str, callers: int, count: int, size: int = 200, durability: str = "server") -> dict[str, float]:
    from ag06.persistence import EventStore

    events = EventStore(url, durability=durability)
    await events.initialize(url, durability=durability)  # type: ignore[arg-type]
    await timed(callers, min(count, 500), lambda n: events.persist_event(TYPE, "bench", payload(-1 - n, size)))
    result = await _measure(callers, count, lambda n: events.persist_event(TYPE, "bench", payload(n, size)))
    await events.close()
    return result


async def bare(url: str, callers: int, count: int) -> dict[str, float]:
    """redis-py's asyncio client, one XADD a call."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url, max_connections=max(callers, 10))
    bodies = [json.dumps(payload(n)).encode() for n in range(count)]
    await timed(callers, min(count, 500), lambda n: client.xadd("bare", {"d": bodies[n]}))
    result = await _measure(callers, count, lambda n: client.xadd("bare", {"d": bodies[n]}))
    await client.aclose()
    return result


async def pipelined(url: str, count: int) -> dict[str, float]:
    """A pipeline of 100 bare XADDs: what the server can take from one connection."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    bodies = [json.dumps(payload(n)).encode() for n in range(100)]
    started = time.perf_counter()
    for _ in range(count // 100):
        pipe = client.pipeline(transaction=False)
        for body in bodies:
            pipe.xadd("pipelined", {"d": body})
        await pipe.execute()
    rate = (count // 100) * 100 / (time.perf_counter() - started)
    await client.aclose()
    return {"rate": rate}


async def faststream(url: str, callers: int, count: int) -> dict[str, float]:
    from faststream.redis import RedisBroker

    broker = RedisBroker(url, max_connections=max(callers, 10) * 2)
    await broker.connect()
    await timed(callers, min(count, 500), lambda n: broker.publish(payload(n), stream="faststream-publish"))
    result = await _measure(callers, count, lambda n: broker.publish(payload(n), stream="faststream-publish"))
    await broker.stop()
    return result


async def _measure(callers: int, count: int, one: Any) -> dict[str, float]:
    if callers > 1:
        return {"rate": await timed(callers, count, one)}
    taken = []
    for number in range(count):
        started = time.perf_counter()
        await one(number)
        taken.append(time.perf_counter() - started)
    return {"rate": count / sum(taken), **quantiles(taken)}
