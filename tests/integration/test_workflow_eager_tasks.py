"""Workflows in an event loop whose tasks begin to run inside `create_task` (Python 3.12 and newer)."""

from __future__ import annotations

import asyncio
import sys

import pytest

from ag06 import Context, Event, Workflow
from ag06.monitoring import observability
from conftest import OpenLog
from flows import SECONDS

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no eager tasks")


@pytest.fixture(autouse=True)
async def eager() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]


async def test_an_eager_task_factory_hangs_no_loop(store_url: str, open_store: OpenLog) -> None:
    await open_store()
    app = Workflow("shop", store=store_url)
    billed: list[int] = []
    batches: list[int] = []

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed", event.data)

    @app.step("billed")
    def book(event: Event) -> None:
        billed.append(event.data)

    @app.batch_step("billed", max_wait=0.01)
    async def many(events: list[Event]) -> None:
        await asyncio.gather(*(asyncio.sleep(0) for _ in events))
        batches.extend(event.data for event in events)

    for number in range(2):
        async with app.running(http_port=0):
            tasks = [asyncio.create_task(app.publish("order", data=number * 100 + n)) for n in range(50)]
            await asyncio.gather(*tasks)
            await app.drain(SECONDS)
            assert (await observability.health.check_health()).components["store"].status == "pass"
    everything = [*range(50), *range(100, 150)]
    assert sorted(billed) == everything
    assert sorted(batches) == everything


async def test_a_store_that_is_shared_by_eager_callers_is_opened_once(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    ids = await asyncio.gather(*(app.events.persist_event("order", "test", n) for n in range(20)))
    assert None not in ids
    await app.close()


async def test_a_cancelled_eager_life_leaves_nothing(store_url: str) -> None:
    app = Workflow("shop", store=store_url, grace=0.0)
    app.step("order", name="bill")(lambda event: None)
    before = asyncio.all_tasks()

    async def live() -> None:
        async with app.running():
            await asyncio.sleep(SECONDS)

    for turns in range(0, 40, 5):
        task = asyncio.create_task(live())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == before
