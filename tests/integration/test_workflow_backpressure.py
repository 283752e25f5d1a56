"""What a workflow promises about `max_backlog`: publishers are told, nothing is dropped, and steps go on."""

from __future__ import annotations

import asyncio

import pytest

from ag06 import Backpressure, Context, Event, Workflow
from flows import SECONDS, said, until


async def test_publishing_is_refused_while_the_slowest_step_is_too_far_behind(store_url: str) -> None:
    app = Workflow("shop", store=store_url, max_backlog=5)
    leave = asyncio.Event()
    quick: list[int] = []

    @app.step("order")
    async def fast(event: Event) -> None:
        quick.append(event.data)

    @app.step("order", concurrency=1)
    async def slow(event: Event, ctx: Context) -> None:
        await leave.wait()
        await ctx.publish("billed", event.data)

    async with app.running():
        for n in range(5):
            await app.publish("order", data=n)
        await until(lambda: len(quick) == 5)
        with pytest.raises(Backpressure, match="'order' is max_backlog=5 events behind; publish again later"):
            await app.publish("order", data=5)
        assert await app.publish("other", data=5) is not None, "another type has steps of its own"
        assert len(await said(app, "order")) == 5
        leave.set()
        await app.drain(SECONDS)
        assert await app.publish("order", data=5) is not None, "what was refused was not remembered as published"
        await app.drain(SECONDS)
        assert sorted(await said(app, "billed")) == [0, 1, 2, 3, 4, 5]


async def test_a_refused_member_of_many_leaves_those_before_it_stored(store_url: str) -> None:
    app = Workflow("shop", store=store_url, max_backlog=3)
    leave = asyncio.Event()

    @app.step("order")
    async def bill(event: Event) -> None:
        await leave.wait()

    members = [{"event_type": "order", "source": "test", "data": n} for n in range(5)]
    async with app.running():
        with pytest.raises(Backpressure):
            await app.events.persist_events(members)
        assert await said(app, "order") == [0, 1, 2]
        leave.set()
        await app.drain(SECONDS)
        assert [event_id is None for event_id in await app.events.persist_events(members)] == [True] * 3 + [False] * 2
        await app.drain(SECONDS)
        assert await said(app, "order") == [0, 1, 2, 3, 4]


async def test_outputs_are_never_refused(store_url: str) -> None:
    """Their parents were accepted; refusing them could stop the very step that would make room."""
    app = Workflow("shop", store=store_url, max_backlog=2)

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        for n in range(5):
            await ctx.publish("billed", n)

    @app.step("billed", concurrency=1)
    async def mail(event: Event, ctx: Context) -> None:
        await ctx.publish("mailed", event.data)

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert sorted(await said(app, "mailed")) == [0, 1, 2, 3, 4]


async def test_without_steps_of_a_type_there_is_no_backlog(store_url: str) -> None:
    app = Workflow("shop", store=store_url, max_backlog=1)
    for n in range(5):
        assert await app.publish("order", data=n) is not None
    await app.close()
