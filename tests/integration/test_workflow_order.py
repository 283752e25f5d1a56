"""What a workflow promises about order: within a subject always, between subjects by priority and age."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, defaultdict

from ag06 import Context, Event, Priority, Retry, Workflow
from ag06.persistence.log import AGEING_MS, EventLog, LogOptions
from ag06.persistence.memory import MemoryLog
from flows import SECONDS, said, until


async def test_a_subject_is_processed_in_order_and_one_at_a_time_whatever_fails(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    running = Counter[str]()
    seen: dict[str, list[int]] = defaultdict(list)
    rng = random.Random(11)
    failing = set(rng.sample(range(80), 8))

    @app.step("order", concurrency=8, retry=Retry(attempts=3, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        subject = str(event.subject)
        running[subject] += 1
        assert running[subject] == 1
        await asyncio.sleep(rng.uniform(0, 0.003))
        running[subject] -= 1
        if event.data in failing and ctx.attempt == 1:
            raise ConnectionError
        seen[subject].append(event.data)
        await ctx.publish("billed", event.data, subject=subject)

    for n in range(80):
        await app.publish("order", data=n, subject=f"s{n % 4}", priority=rng.randrange(4))
    async with app.running():
        await app.drain(SECONDS)
        billed = await said(app, "billed")
    lines = {f"s{subject}": list(range(subject, 80, 4)) for subject in range(4)}
    assert seen == lines
    assert {f"s{s}": [n for n in billed if n % 4 == s] for s in range(4)} == lines


async def test_events_without_a_subject_wait_for_nobody() -> None:
    app = Workflow("shop", store="memory://")
    leave = asyncio.Event()
    seen: list[int] = []

    @app.step("order", concurrency=2)
    async def bill(event: Event) -> None:
        if event.data == 0:
            await leave.wait()
        seen.append(event.data)

    async with app.running():
        for n in range(10):
            await app.publish("order", data=n, subject="s" if n in (0, 5) else None)
        await until(lambda: len(seen) == 8)
        assert 5 not in seen
        leave.set()
        await app.drain(SECONDS)
    assert seen[-2:] == [0, 5]


async def test_the_more_urgent_event_goes_first(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    seen: list[str] = []

    @app.step("order", concurrency=1)
    async def bill(event: Event) -> None:
        seen.append(event.data)

    names = [f"{level.name} {n}" for n, level in itertools.product(range(3), Priority)]
    for name in names:
        await app.publish("order", data=name, priority=name.split()[0].lower())
    async with app.running():
        await app.drain(SECONDS)
    assert seen == sorted(names, key=lambda name: (-Priority[name.split()[0]], name))


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_waiting_raises_an_event_by_one_level_every_ten_seconds() -> None:
    clock = Clock()
    app = Workflow("shop", store="memory://")
    seen: list[str] = []

    @app.step("order", concurrency=1)
    async def bill(event: Event) -> None:
        seen.append(event.data)

    log = await _with_clock(app, clock)
    await app.publish("order", data="low at 0 s", priority="low")
    clock.now += 2.5 * AGEING_MS / 1000
    await app.publish("order", data="high at 25 s", priority="high")
    await app.publish("order", data="critical at 25 s", priority="critical")
    clock.now += 1.0 * AGEING_MS / 1000
    await app.publish("order", data="critical at 35 s", priority="critical")
    async with app.running():
        await app.drain(SECONDS)
    await log.close()
    assert seen == ["critical at 25 s", "low at 0 s", "high at 25 s", "critical at 35 s"]


async def _with_clock(app: Workflow, clock: Clock) -> EventLog:
    """Let the workflow's log in memory go by a clock of the test's."""
    log = MemoryLog("ageing", LogOptions(), clock)
    await log.open()
    app.use_store("memory://ageing")
    opened = await app.events.log()
    assert isinstance(opened, MemoryLog)
    opened._clock = clock
    return log
