"""How many calls of a step run at once."""

from __future__ import annotations

import asyncio

import pytest

from ag06 import Event, Workflow
from flows import SECONDS


@pytest.mark.parametrize("concurrency", [1, 2, 7, 10, 40])
async def test_every_call_that_is_free_takes_an_event_though_the_others_do_not_end(
    concurrency: int, store_url: str
) -> None:
    app = Workflow("busy", store=store_url)
    entered, gate = asyncio.Semaphore(0), asyncio.Event()
    at_once = most = 0

    @app.step("t", concurrency=concurrency)
    async def work(event: Event[int]) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        entered.release()
        await gate.wait()
        at_once -= 1

    async with app.running():
        for n in range(concurrency + 5):
            await app.publish("t", data=n)
            if n < concurrency:
                await asyncio.wait_for(entered.acquire(), SECONDS)
        gate.set()
        await app.drain(SECONDS)
    assert most == concurrency


@pytest.mark.parametrize("concurrency", [1, 3, 9])
async def test_every_batch_that_is_free_takes_events_though_the_others_do_not_end(
    concurrency: int, store_url: str
) -> None:
    app = Workflow("busy", store=store_url)
    entered, gate = asyncio.Semaphore(0), asyncio.Event()
    sizes: list[int] = []

    @app.batch_step("t", concurrency=concurrency, max_size=4, max_wait=0.0)
    async def work(events: list[Event]) -> None:
        sizes.append(len(events))
        entered.release()
        await gate.wait()

    async with app.running():
        for n in range(concurrency):
            await app.events.persist_events({"event_type": "t", "source": "s", "data": [n, i]} for i in range(4))
            await asyncio.wait_for(entered.acquire(), SECONDS)
        gate.set()
        await app.drain(SECONDS)
    assert sum(sizes) == 4 * concurrency
