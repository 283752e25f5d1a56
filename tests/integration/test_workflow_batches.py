"""What a workflow promises about batch steps: size and wait, one acknowledgement, each alone after a failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ag06 import CircuitBreaker, Context, Event, Outcome, Reject, Retry, Workflow
from flows import SECONDS, letters, said, stored, until


def data(events: list[Event[Any]]) -> list[Any]:
    return [event.data for event in events]


async def test_what_waits_is_taken_in_batches_of_the_size_asked_for(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    batches: list[list[int]] = []

    @app.batch_step("order", max_size=10, max_wait=0.02)
    async def store(events: list[Event]) -> None:
        batches.append(data(events))

    await app.events.persist_events([{"event_type": "order", "source": "test", "data": n} for n in range(35)])
    async with app.running():
        await app.drain(SECONDS)
    assert sorted(n for batch in batches for n in batch) == list(range(35))
    assert max(map(len, batches)) == 10
    assert len(batches) < 35


async def test_a_batch_that_is_full_waits_for_nothing_more() -> None:
    app = Workflow("shop", store="memory://")
    batches: list[int] = []

    @app.batch_step("order", max_size=5, max_wait=3600)
    async def store(events: list[Event]) -> None:
        batches.append(len(events))

    async with app.running():
        for n in range(5):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
    assert batches == [5]


async def test_a_batch_that_does_not_fill_goes_after_its_wait(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    batches: list[list[int]] = []

    @app.batch_step("order", max_size=1000, max_wait=0.05)
    def store(events: list[Event]) -> None:
        batches.append(data(events))

    async with app.running():
        await app.publish("order", data=7)
        await app.drain(SECONDS)
    assert batches == [[7]]


async def test_a_batch_is_acknowledged_as_a_whole_with_its_outputs(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    published, leave = asyncio.Event(), asyncio.Event()

    @app.batch_step("order", max_size=4, max_wait=3600)
    async def store(events: list[Event], ctx: Context) -> None:
        await ctx.publish("sum", sum(data(events)))
        for event in events:
            await ctx.publish("stored", event.data, cause=event)
        published.set()
        await leave.wait()

    async with app.running():
        ids = [await app.publish("order", data=n, correlation_id=f"c{n}") for n in range(4)]
        await asyncio.wait_for(published.wait(), SECONDS)
        assert await said(app, "sum") == []
        leave.set()
        await app.drain(SECONDS)
        assert await said(app, "sum") == [6]
        found = {event.data: (event.causation_id, event.correlation_id) for event in await stored(app, "stored")}
        (total,) = await stored(app, "sum")
    assert found == {n: (ids[n], f"c{n}") for n in range(4)}
    assert (total.causation_id, total.correlation_id) == (ids[0], "c0")
    assert sorted(outcome.event_id for outcome in outcomes) == sorted(map(str, ids))
    assert {outcome.kind for outcome in outcomes} == {"processed"}


async def test_after_a_failure_each_event_is_tried_alone_so_one_cannot_spoil_the_others(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    calls: list[list[int]] = []

    @app.batch_step("order", max_size=6, max_wait=3600, retry=Retry(attempts=2, initial=0.001))
    async def store(events: list[Event], ctx: Context) -> None:
        calls.append(sorted(data(events)))
        await ctx.publish("stored", sorted(data(events)))
        if 3 in data(events):
            raise ValueError("three")

    async with app.running():
        for n in range(6):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        (letter,) = await letters(app)
        assert sorted(await said(app, "stored")) == [[0], [1], [2], [4], [5]]
    assert calls[0] == [0, 1, 2, 3, 4, 5]
    assert sorted(calls[1:]) == [[0], [1], [2], [3], [3], [4], [5]]
    assert (letter.event.data, letter.attempts, letter.reason) == (3, 2, "failed")


async def test_a_rejection_in_a_batch_meets_the_event_that_is_to_blame_alone() -> None:
    app = Workflow("shop", store="memory://")

    @app.batch_step("order", max_size=3, max_wait=3600)
    def store(events: list[Event], ctx: Context) -> None:
        for event in events:
            if event.data == 1:
                raise Reject("one")
            ctx.publish("stored", event.data, cause=event)

    async with app.running():
        for n in range(3):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert [letter.event.data for letter in await letters(app)] == [1]
        assert sorted(await said(app, "stored")) == [0, 2]


async def test_a_batch_refused_by_its_breaker_costs_no_attempt() -> None:
    breaker = CircuitBreaker("crm", open_seconds=0.02)
    breaker.force_open()
    app = Workflow("shop", store="memory://")
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.batch_step("order", max_size=3, max_wait=0.01, retry=Retry(attempts=1), breaker=breaker)
    async def store(events: list[Event], ctx: Context) -> None:
        await ctx.publish("stored", len(events))

    async with app.running():
        for n in range(3):
            await app.publish("order", data=n)
        await until(lambda: len(outcomes) >= 6)
        breaker.reset()
        await app.drain(SECONDS)
        assert sum(await said(app, "stored")) == 3
        assert await letters(app) == []


async def test_a_batch_that_takes_too_long_is_tried_event_by_event() -> None:
    app = Workflow("shop", store="memory://")

    @app.batch_step("order", max_size=2, max_wait=3600, timeout=0.05)
    async def store(events: list[Event], ctx: Context) -> None:
        await ctx.publish("stored", data(events))
        if len(events) == 2:
            await asyncio.sleep(SECONDS)

    async with app.running():
        for n in range(2):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert sorted(await said(app, "stored")) == [[0], [1]]


@pytest.mark.parametrize("subjects", [1, 3])
async def test_a_batch_holds_one_event_of_a_subject_and_they_come_in_order(store_url: str, subjects: int) -> None:
    app = Workflow("shop", store=store_url)
    batches: list[list[tuple[int, int]]] = []

    @app.batch_step("order", max_size=10, max_wait=0.001)
    async def store(events: list[Event]) -> None:
        batches.append([tuple(event.data) for event in events])

    await app.events.persist_events(
        [
            {"event_type": "order", "source": "test", "data": [n % subjects, n], "subject": f"s{n % subjects}"}
            for n in range(12)
        ]
    )
    async with app.running():
        await app.drain(SECONDS)
    assert all(len({subject for subject, _ in batch}) == len(batch) for batch in batches)
    for subject in range(subjects):
        line = [n for batch in batches for s, n in batch if s == subject]
        assert line == list(range(subject, 12, subjects))
