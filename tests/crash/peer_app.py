"""The same two jobs in each of three tools: `peer_app.py TOOL worker|publisher URL`.

A worker hears a number, works a few milliseconds and says it on: that is the effect, and it should appear once. A
publisher counts, and prints each number that its tool took; a refused one it tries again. Each tool is set up to lose
as little as its documentation knows how: it acknowledges after the work, tries again what failed, takes over after a
second what a dead worker held, and reads few events ahead, so that none of them waits for a second in a live worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import sys
from collections.abc import Awaitable, Callable

SECOND_MS = 1000
AHEAD = 10
IN, OUT = "in", "out"


async def work(say: Callable[[], Awaitable[object]]) -> None:
    await asyncio.sleep(random.uniform(0, 0.004))
    await say()
    await asyncio.sleep(random.uniform(0, 0.002))


async def publish(say: Callable[[str], Awaitable[object]]) -> None:
    """Say numbers of four callers; a number is the process, the caller and a count, between two letters n."""

    async def caller(line: int) -> None:
        for count in itertools.count():
            number = f"n{os.getpid()}-{line}-{count}n"
            while True:
                try:
                    await say(number)
                except Exception:  # whatever the tool raises while the server is away
                    await asyncio.sleep(0.02)
                else:
                    break
            print(number, flush=True)
            await asyncio.sleep(0.05)

    await asyncio.gather(*map(caller, range(4)))


async def ag06(role: str, url: str) -> None:
    from ag06 import Context, Event, Workflow

    app = Workflow("peer", store=url, durability="fsync", visibility_timeout=1.0)

    @app.step(IN)
    async def pass_on(event: Event[str], ctx: Context) -> None:
        await work(lambda: ctx.publish(OUT, data=event.data))

    if role == "worker":
        await app.serve()
    else:
        await publish(lambda number: app.publish(IN, data=number))


async def faststream(role: str, url: str) -> None:
    from faststream import AckPolicy, FastStream
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(url, logger=None)
    name = f"worker-{os.getpid()}"

    async def pass_on(number: str) -> None:
        await work(lambda: broker.publish(number, stream=OUT))

    if role == "worker":
        # What is new, and beside it what a worker that is gone did not acknowledge.
        fresh = StreamSub(IN, group="peer", consumer=name, last_id=">", polling_interval=100, max_records=AHEAD)
        left = StreamSub(IN, group="peer", consumer=f"{name}-left", min_idle_time=SECOND_MS, polling_interval=100)
        for stream in (fresh, left):
            broker.subscriber(stream=stream, ack_policy=AckPolicy.NACK_ON_ERROR)(pass_on)
        await FastStream(broker, logger=None).run()
    else:
        await broker.connect()
        await publish(lambda number: broker.publish(number, stream=IN))


async def taskiq(role: str, url: str) -> None:
    from taskiq import SimpleRetryMiddleware
    from taskiq.acks import AcknowledgeType
    from taskiq.api import run_receiver_task
    from taskiq_redis import RedisStreamBroker

    settings = {
        "consumer_id": "0",
        "idle_timeout": SECOND_MS,
        "unacknowledged_lock_timeout": 1.0,
        "xread_block": 100,
        "xread_count": AHEAD,
    }
    broker = RedisStreamBroker(url, queue_name=IN, **settings)
    broker = broker.with_middlewares(SimpleRetryMiddleware(default_retry_count=5))
    effects = RedisStreamBroker(url, queue_name=OUT, **settings)

    @effects.task(task_name="effect")
    async def effect(number: str) -> None:
        """Nobody works on it: that it was sent is what is counted."""

    @broker.task(task_name="pass_on", retry_on_error=True)
    async def pass_on(number: str) -> None:
        await work(lambda: effect.kiq(number))

    await effects.startup()
    if role == "worker":
        await run_receiver_task(broker, ack_time=AcknowledgeType.WHEN_EXECUTED, run_startup=True)
    else:
        await broker.startup()
        await publish(pass_on.kiq)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    tool, role, url = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run({"ag06": ag06, "faststream": faststream, "taskiq": taskiq}[tool](role, url))
