"""How late delayed events and retries come on each store: `python -m benchmarks.lateness`.

The worker idles in a long fetch before the first one. Events are published in its process or in another one.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.servers import ValkeyServer

from benchmarks.payload import TYPE
from benchmarks.report import Row, show
from benchmarks.rounds import measure

COUNT = 200
SHORTEST, LONGEST = 0.05, 2.0
"""Seconds of delay."""
BOUND_MS = 20.0
_IDLE_SECONDS = 2.0
_GROUP = "lateness.step"


async def delayed(url: str, apart: bool = False) -> dict[str, float]:
    """Return the lateness of delayed events, and the share of a processor that the idle worker took.

    `apart`: another process publishes.
    """
    from ag06 import Event, Workflow

    app = Workflow("lateness", store=url)
    late: list[float] = []

    @app.step(TYPE)
    async def step(event: Event) -> None:
        late.append(time.time() - event.data["due"])

    async with app.running():
        await asyncio.sleep(1.0)
        used, since = time.process_time(), time.monotonic()
        await asyncio.sleep(_IDLE_SECONDS)
        idle = (time.process_time() - used) / (time.monotonic() - since)
        if apart:
            await asyncio.to_thread(measure, "lateness.publish", url=url)
        else:
            await _publish(app)
        while len(late) < COUNT:
            await asyncio.sleep(0.05)
    return _figures(late) | {"idle": idle * 100}


async def publish(url: str) -> dict[str, float]:
    """Publish from a process that runs no step."""
    from ag06 import Workflow

    app = Workflow("publisher", store=url)
    await app.publish("bench.first", data=None)  # opens the store
    await _publish(app)
    await app.close()
    return {}


async def retried(url: str, apart: bool = False) -> dict[str, float]:
    """Return the lateness of deliveries that were postponed; `apart`: by a worker of another process."""
    from ag06.persistence.admission import Admission
    from ag06.persistence.log import LogOptions, StepSpec
    from ag06.persistence.stores import open_log

    log = open_log(url, LogOptions())
    await log.open()
    await log.register("lateness", [StepSpec(_GROUP, TYPE)])
    await log.append([Admission().admit(TYPE, "bench", number) for number in range(COUNT)])
    subscription = log.subscribe(_GROUP, "here", 30)
    if apart:
        postponing = asyncio.create_task(asyncio.to_thread(measure, "lateness.postpone", url=url))
        while (await log.groups())[0].in_flight < COUNT:  # until all of them are in the other worker's hands
            await asyncio.sleep(0.05)
    else:
        postponing = asyncio.create_task(_postpone(subscription, await _take(subscription)))
    came: dict[str, float] = {}
    while len(came) < COUNT:
        for delivery in await subscription.fetch(100, 5.0):
            came[_id_of(delivery)] = time.time()
    due = await postponing
    await subscription.close()
    await log.close()
    return _figures([came[name] - at for name, at in due.items()])


async def postpone(url: str) -> dict[str, float]:
    """Take all deliveries and postpone them one by one, beside a worker that waits; return when each is due."""
    from ag06.persistence.log import LogOptions
    from ag06.persistence.stores import open_log

    log = open_log(url, LogOptions())
    await log.open()
    subscription = log.subscribe(_GROUP, "there", 30)
    held = await _take(subscription)
    await asyncio.sleep(1.0)  # the other worker has begun to wait
    due = await _postpone(subscription, held)
    await log.close()
    return due


async def _take(subscription: Any) -> list[Any]:
    held: list[Any] = []
    while len(held) < COUNT:
        held += await subscription.fetch(COUNT, 1.0)
    return held


async def _postpone(subscription: Any, held: list[Any]) -> dict[str, float]:
    from ag06.persistence.log import Postpone

    rng = random.Random(7)
    due: dict[str, float] = {}
    for delivery in held:
        delay_ms = rng.randint(int(SHORTEST * 1000), int(LONGEST * 1000))
        due[_id_of(delivery)] = time.time() + delay_ms / 1000
        await subscription.commit([Postpone(delivery, delay_ms, 1, 1)])
    return due


def _id_of(delivery: Any) -> str:
    from ag06.event import decode_event

    return decode_event(delivery.body, delivery.recorded_ms).id


def _figures(late: list[float]) -> dict[str, float]:
    late.sort()
    places = {"p50": COUNT // 2, "p99": COUNT * 99 // 100, "max": COUNT - 1}
    return {name: late[place] * 1000 for name, place in places.items()}


async def _publish(app: Any) -> None:
    rng = random.Random(3)
    for number in range(COUNT):
        delay = rng.uniform(SHORTEST, LONGEST)
        await app.publish(TYPE, data={"number": number, "due": time.time() + delay}, delay=delay)
        await asyncio.sleep(rng.uniform(0.0, 0.01))


def rows(redis: str) -> list[Row]:
    """Return a row for each store, kind of lateness and origin."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ag06-lateness-") as directory:
        for work in ("delayed", "retried"):
            for apart in (False, True):
                urls = {
                    "SQLite": f"sqlite:///{directory}/{work}-{apart:d}.db",
                    "Valkey": f"{redis}/4?log={work}-{apart:d}",
                } | ({} if apart else {"memory": f"memory://{work}"})
                for store, url in urls.items():
                    result = measure(f"lateness.{work}", url=url, apart=apart)
                    late = ", ".join(f"{key} {result[key]:.1f}" for key in ("p50", "p99", "max"))
                    idle = f"idle worker: {result['idle']:.1f}% of a processor" if "idle" in result else ""
                    where = "another process" if apart else "one process"
                    must, met = f"p99 <= {BOUND_MS:.0f} ms", result["p99"] <= BOUND_MS
                    found.append(Row(f"{store}: {work}, {where}", f"{late} ms late", idle, must=must, met=met))
    return found


def main() -> None:
    """Start a server, measure, print."""
    with tempfile.TemporaryDirectory(prefix="ag06-lateness-") as directory:
        server = ValkeyServer(Path(directory), databases="32").start()
        try:
            show({"lateness": rows(f"redis://127.0.0.1:{server.port}")})
        finally:
            server.stop()


if __name__ == "__main__":
    main()
