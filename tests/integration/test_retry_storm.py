"""When everything fails, or a server asks for a pause: no storm, and no event given up for want of budget."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ag06 import Context, Event, Outcome, Retry, RetryAfter, Workflow
from conftest import OpenLog
from flows import SECONDS, letters, until

EVENTS = 400
STUBBORN = Retry(attempts=1000, initial=0.001, maximum=0.002)


class Load:
    """Counts what a step was asked to do, each event of a batch on its own, since it began."""

    def __init__(self) -> None:
        self.attempts = 0
        self.first: set[str] = set()
        self.began = time.monotonic()
        self.worst = 0.0

    def add(self, *events: Event) -> None:
        self.attempts += len(events)
        self.first.update(event.id for event in events)
        seconds = max(1.0, time.monotonic() - self.began)
        self.worst = max(self.worst, self.attempts - 1.2 * len(self.first) - 10 * seconds)


@pytest.mark.parametrize("batches", [False, True], ids=["one by one", "in batches"])
async def test_a_step_that_always_fails_is_no_storm(batches: bool) -> None:
    """Attempts are at no moment more than 1.2 times the events plus ten a second."""
    app = Workflow("shop", store="memory://")
    kinds = Counter[str]()
    app.on_outcome(lambda outcome: kinds.update([outcome.kind]))
    load = Load()

    if batches:

        @app.batch_step("order", retry=STUBBORN, max_size=50)
        async def bill(events: list[Event]) -> None:
            load.add(*events)
            raise ConnectionError

    else:

        @app.step("order", retry=STUBBORN)
        async def bill_one(event: Event) -> None:
            load.add(event)
            raise ConnectionError

    async with app.running():
        for n in range(EVENTS):
            await app.publish("order", data=n)
        await until(lambda: kinds["delayed"] > 2 * EVENTS)
        assert await letters(app) == []
    assert load.worst <= 0
    assert load.attempts > 1.2 * EVENTS, "the budget is spent"
    assert len(load.first) == EVENTS


@pytest.mark.parametrize("attempts", [1, 2])
async def test_for_want_of_budget_no_event_is_given_up(attempts: int) -> None:
    """Events in failing batches: each is tried alone or comes back, and none of the good ones ends as a dead letter."""
    app = Workflow("shop", store="memory://")
    done: list[int] = []

    @app.batch_step("order", retry=Retry(attempts=attempts, initial=0.001), max_size=40)
    async def bill(events: list[Event]) -> None:
        if any(event.data % 2 for event in events):
            raise ValueError("half of them are bad, more than there is budget for")
        done.extend(event.data for event in events)

    for n in range(80):
        await app.publish("order", data=n)
    async with app.running():
        await app.drain(SECONDS)
        dead = {letter.event.data for letter in await letters(app)}
    assert dead == set(range(1, 80, 2))
    assert sorted(done) == list(range(0, 80, 2))


async def test_a_batch_that_is_told_to_wait_waits_and_is_not_tried_one_by_one() -> None:
    app = Workflow("shop", store="memory://")
    sizes: list[int] = []
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.batch_step("order", retry=Retry(attempts=2), max_size=10, max_wait=5.0)
    async def bill(events: list[Event]) -> None:
        sizes.append(len(events))
        raise RetryAfter(3000)

    async with app.running():
        for n in range(10):
            await app.publish("order", data=n)
        await until(lambda: len(outcomes) == 10)
    assert sizes == [10]
    assert {outcome.kind for outcome in outcomes} == {"delayed"}, "none of them has failed by itself"


@asynccontextmanager
async def clinic(store_url: str, *, open_store: OpenLog) -> AsyncIterator[tuple[Workflow, list[Any]]]:
    """A workflow whose step fails until its third attempt, and the log that keeps memory:// alive between two runs."""
    await open_store()
    app = Workflow("shop", store=store_url)
    seen: list[Any] = []

    @app.step("order", retry=Retry(attempts=3, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        seen.append(ctx.attempt)
        if ctx.attempt < 3:
            raise RetryAfter(0.2 if ctx.attempt == 1 else 0.0)

    yield app, seen


async def test_the_count_of_attempts_survives_a_restart(store_url: str, open_store: OpenLog) -> None:
    async with clinic(store_url, open_store=open_store) as (first, seen):
        kinds: list[str] = []
        first.on_outcome(lambda outcome: kinds.append(outcome.kind))
        async with first.running():
            await first.publish("order")
            await until(lambda: kinds == ["retried"])
        assert seen == [1]
    async with clinic(store_url, open_store=open_store) as (second, seen):
        async with second.running():
            await second.drain(SECONDS)
            assert await letters(second) == []
        assert seen == [2, 3]


async def test_an_event_comes_back_when_the_server_said_and_not_before(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    calls: list[float] = []

    @app.step("order", retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        calls.append(asyncio.get_running_loop().time())
        if ctx.attempt == 1:
            error = ConnectionError("503")
            error.retry_after = 0.5  # type: ignore[attr-defined]
            raise error

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert await letters(app) == []
    first, second = calls
    assert second - first >= 0.499
