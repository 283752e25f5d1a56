"""What a workflow promises about growth: the log is trimmed behind the slowest step and the retention, never before."""

from __future__ import annotations

import asyncio

import pytest

from ag06 import Event, Workflow
from ag06.persistence.log import StepSpec
from flows import SECONDS, letters, said, until
from records import collect, eventually
from servers import ValkeyServer

COUNT = 1200
NEWEST = 1
"""SQLite keeps the newest event: positions go on from it."""


async def publish(app: Workflow, count: int) -> None:
    members = [{"event_type": "order", "source": "test", "data": n, "dedup": False} for n in range(count)]
    await app.events.persist_events(members)


async def kept(app: Workflow) -> int:
    """Let the store do its housekeeping as often as it takes, then count."""
    log = await app.events.log()
    for _ in range(3):
        await log.maintain()
        await asyncio.sleep(0.11)  # the store trims no more often than once in a retention
    return (await app.events.stats()).events


async def trimmed(app: Workflow) -> bool:
    await (await app.events.log()).maintain()
    return (await app.events.stats()).events <= NEWEST


async def test_a_log_is_trimmed_behind_its_slowest_step_and_does_not_grow_without_bound(store_url: str) -> None:
    """Redis streams have no bound of their own (redis/redis#7059)."""
    app = Workflow("shop", store=store_url, retention=0.1)
    leave = asyncio.Event()
    fast: list[int] = []
    slow: list[int] = []

    @app.step("order")
    async def quick(event: Event) -> None:
        fast.append(event.data)

    @app.batch_step("order", max_size=300)
    async def thorough(events: list[Event]) -> None:
        await leave.wait()
        slow.extend(event.data for event in events)

    async with app.running():
        await publish(app, COUNT)
        await until(lambda: len(fast) == COUNT)
        assert await kept(app) == COUNT, "the slow step needs them all"
        leave.set()
        await app.drain(SECONDS)
        await eventually(lambda: trimmed(app))
        await publish(app, 10)
        await app.drain(SECONDS)
    assert sorted(slow) == sorted([*range(COUNT), *range(10)])


async def test_acknowledged_events_stay_for_the_retention(store_url: str) -> None:
    app = Workflow("shop", store=store_url, retention=3600)

    @app.step("order")
    async def bill(event: Event) -> None: ...

    async with app.running():
        await publish(app, 300)
        await app.drain(SECONDS)
        assert await kept(app) == 300


async def test_a_step_that_runs_nowhere_shows_and_holds_the_log_until_it_is_removed(store_url: str) -> None:
    app = Workflow("shop", store=store_url, retention=0.1)

    @app.step("order")
    async def bill(event: Event) -> None: ...

    log = await app.events.log()
    await log.register("shop", [StepSpec("shop.bill", "order"), StepSpec("shop.retired", "order")])
    async with app.running():
        await publish(app, 300)
        await eventually(lambda: _done(app, "shop.bill"))
        assert await kept(app) == 300
        assert {group.group: group.backlog for group in (await app.events.stats()).groups} == {
            "shop.bill": 0,
            "shop.retired": 300,
        }
        assert await log.remove_group("shop.retired")
        await eventually(lambda: trimmed(app))


async def _done(app: Workflow, group: str) -> bool:
    return await (await app.events.log()).pending([group]) == 0


async def test_a_dead_letter_outlives_its_event(store_url: str) -> None:
    app = Workflow("shop", store=store_url, retention=0.1)
    broken = True
    billed: list[int] = []

    @app.step("order")
    async def bill(event: Event[int]) -> None:
        if broken:
            raise SystemExit
        billed.append(event.data)

    async with app.running():
        await publish(app, 1)
        await app.events.persist_event("other", "test")
        await app.drain(SECONDS)
        await eventually(lambda: trimmed(app))
        assert await said(app, "order") == []
        (letter,) = await letters(app)
        assert letter.event.data == 0
        broken = False
        log = await app.events.log()
        assert await log.retry_dead_letters([(letter.step, letter.event.id)]) == 1
        await app.drain(SECONDS)
    assert billed == [0]


@pytest.mark.parametrize("adapter", ["redis"])
async def test_a_worker_leaves_no_consumer_behind_and_loses_nothing_that_was_pending(
    store_url: str, valkey: ValkeyServer
) -> None:
    """Deleting a consumer deletes what is pending under it (watermill-redisstream#24); keeping it, they pile up."""
    name = store_url.rpartition("=")[2]
    app = Workflow("shop", store=store_url, grace=0.0)
    stuck = asyncio.Event()

    @app.step("order", concurrency=5)
    async def bill(event: Event) -> None:
        stuck.set()
        await asyncio.sleep(SECONDS)

    await publish(app, 12)
    async with app.running():
        assert app._worker is not None
        worker = app._worker.name.encode()
        await asyncio.wait_for(stuck.wait(), SECONDS)
        assert worker in valkey.command("XINFO", "CONSUMERS", f"{{{name}}}:s:order:1", "shop.bill")
    for level in range(4):
        assert worker not in valkey.command("XINFO", "CONSUMERS", f"{{{name}}}:s:order:{level}", "shop.bill")
    log = await app.events.log()
    again = await collect(log.subscribe("shop.bill", "heir", 3600), 12)
    assert [(delivery.attempts, delivery.suspect) for delivery in again] == [(0, False)] * 12
    await app.close()
