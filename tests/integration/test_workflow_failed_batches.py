"""A failed batch: each event is judged by a call of its own, with the data as it is stored, and waits for that."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import msgspec
import pytest

from ag06 import CircuitOpen, Context, Event, Outcome, Reject, Retry, RetryAfter, Workflow
from ag06.retry import RetryBudget
from flows import SECONDS, letters, said, until


class Basket(msgspec.Struct):
    n: int
    items: list[str]


async def publish(app: Workflow, data: list[Any]) -> None:
    await app.events.persist_events([{"event_type": "order", "source": "test", "data": each} for each in data])


def without_budget(monkeypatch: pytest.MonkeyPatch, *, tokens: int) -> None:
    """Let the budget have so many tokens, and no more before half a second is over."""
    left = itertools.count(-tokens)
    began = time.monotonic()
    monkeypatch.setattr(RetryBudget, "withdraw", lambda _: next(left) < 0 or time.monotonic() > began + 0.5)


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_each_event_is_tried_alone_with_its_data_as_stored(store_url: str, plain: bool) -> None:
    app = Workflow("shop", store=store_url)

    def add(events: list[Event[Basket]], ctx: Context) -> None:
        for event in events:
            event.data.items.append("fee")
            if event.data.n == 2:
                raise ValueError("two")
            ctx.publish("added", event.data, cause=event)

    async def add_async(events: list[Event[Basket]], ctx: Context) -> None:
        add(events, ctx)

    retry = Retry(attempts=2, initial=0.001)
    app.batch_step("order", max_size=4, max_wait=3600, retry=retry, name="add")(add if plain else add_async)
    async with app.running():
        await publish(app, [{"n": n, "items": []} for n in range(4)])
        await app.drain(SECONDS)
        added = {data["n"]: data["items"] for data in await said(app, "added")}
        (letter,) = await letters(app)
    assert added == {0: ["fee"], 1: ["fee"], 3: ["fee"]}
    assert (letter.event.data, letter.attempts) == ({"n": 2, "items": []}, 2)


@pytest.mark.parametrize(
    ("attempts", "failure"),
    [(1, Reject("bad")), (2, ValueError("bad")), (1, ValueError("bad")), (2, KeyError("not in on="))],
    ids=str,
)
async def test_without_budget_events_wait_for_a_call_of_their_own_at_no_cost(
    monkeypatch: pytest.MonkeyPatch, attempts: int, failure: Exception
) -> None:
    without_budget(monkeypatch, tokens=2)
    app = Workflow("shop", store="memory://")
    alone: dict[int, list[int]] = {n: [] for n in range(10)}
    kinds: dict[str, list[str]] = {}
    app.on_outcome(lambda outcome: kinds.setdefault(outcome.event_id, []).append(outcome.kind))

    @app.batch_step("order", max_size=10, max_wait=3600, retry=Retry(attempts=attempts, initial=0.001, on=ValueError))
    async def bill(events: list[Event], ctx: Context) -> None:
        if len(events) == 1:
            alone[events[0].data].append(ctx.attempt)
        if any(event.data < 6 for event in events):
            raise failure

    async with app.running():
        await publish(app, list(range(10)))
        await app.drain(SECONDS)
        found = {letter.event.data: letter.attempts for letter in await letters(app)}
    own = attempts if isinstance(failure, ValueError) else 1
    assert found == dict.fromkeys(range(6), own)
    assert alone == {n: list(range(1, own + 1)) if n < 6 else [1] for n in range(10)}
    assert sum("delayed" in seen for seen in kinds.values()) >= 8


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_batch_that_asks_for_a_wait_costs_its_events_no_attempt(attempts: int) -> None:
    app = Workflow("shop", store="memory://")
    calls: list[tuple[float, list[int], int]] = []

    @app.batch_step("order", max_size=3, max_wait=3600, retry=Retry(attempts=attempts, initial=0.001))
    async def bill(events: list[Event], ctx: Context) -> None:
        calls.append((time.monotonic(), [event.data for event in events], ctx.attempt))
        if len(events) > 1:
            raise ExceptionGroup("two servers", [RetryAfter(0.1), RetryAfter(0.2)])

    async with app.running():
        await publish(app, [0, 1, 2])
        await app.drain(SECONDS)
        assert await letters(app) == []
    (first, together, _), *others = calls
    assert sorted(together) == [0, 1, 2]
    assert sorted((data, attempt) for _, data, attempt in others) == [([0], 1), ([1], 1), ([2], 1)]
    assert min(at for at, _, _ in others) >= first + 0.199


async def test_an_event_whose_every_call_asks_for_a_wait_ends_in_the_dead_letters_all_the_same() -> None:
    app = Workflow("shop", store="memory://")

    @app.batch_step("order", max_size=3, max_wait=0.05, retry=Retry(attempts=2, initial=0.001))
    async def bill(events: list[Event]) -> None:
        raise RetryAfter(0.001)

    async with app.running():
        await publish(app, [0, 1, 2])
        await app.drain(SECONDS)
        assert {letter.event.data: letter.attempts for letter in await letters(app)} == {0: 2, 1: 2, 2: 2}


async def test_a_batch_that_a_breaker_refused_in_a_group_comes_back_as_a_batch() -> None:
    app = Workflow("shop", store="memory://")
    sizes: list[int] = []
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    async def child() -> None:
        raise CircuitOpen("crm", 0.01)

    @app.batch_step("order", max_size=3, max_wait=0.5, retry=Retry(attempts=1))
    async def bill(events: list[Event]) -> None:
        sizes.append(len(events))
        if len(sizes) == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())

    async with app.running():
        await publish(app, [0, 1, 2])
        await app.drain(SECONDS)
        await until(lambda: len(outcomes) == 6)
        assert await letters(app) == []
    assert sizes == [3, 3]
    assert [outcome.kind for outcome in outcomes] == ["delayed"] * 3 + ["processed"] * 3


async def test_an_event_that_can_no_longer_be_decoded_alone_is_invalid() -> None:
    app = Workflow("shop", store="memory://")
    decoded = itertools.count(1)

    class Fickle(msgspec.Struct):
        n: int

        def __post_init__(self) -> None:
            if next(decoded) > 2:
                raise ValueError("not any more")

    @app.batch_step("order", max_size=2, max_wait=3600)
    async def bill(events: list[Event[Fickle]]) -> None:
        raise KeyError

    async with app.running():
        await publish(app, [{"n": 0}, {"n": 1}])
        await app.drain(SECONDS)
        assert [letter.reason for letter in await letters(app)] == ["invalid", "invalid"]


async def test_a_step_may_take_its_list_apart() -> None:
    app = Workflow("shop", store="memory://")
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.batch_step("order", max_size=3, max_wait=3600)
    async def bill(events: list[Event], ctx: Context) -> None:
        while events:
            event = events.pop()
        await ctx.publish("billed", event.data)

    async with app.running():
        await publish(app, [0, 1, 2])
        await publish(app, [3, 4, 5])
        await app.drain(SECONDS)
        assert len(await said(app, "billed")) == 2
        await until(lambda: len(outcomes) == 6)
    assert len({outcome.event_id for outcome in outcomes}) == 6
