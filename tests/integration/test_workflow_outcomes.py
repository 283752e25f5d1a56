"""What a workflow promises to listeners: one outcome for each delivery that this process settled, after it was."""

from __future__ import annotations

import logging
import time

import pytest

from ag06 import Context, Event, Outcome, Workflow
from flows import SECONDS, said, step_that_ends_in_every_way, until
from records import collect


async def test_every_way_a_delivery_ends_has_its_kind(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    outcomes: list[Outcome] = []
    assert app.on_outcome(outcomes.append) is not None
    step_that_ends_in_every_way(app)

    async with app.running():
        ids = {name: await app.publish("order", data=name) for name in ("good", "retried", "delayed", "rejected")}
        ids["broken"] = await app.publish("order", data="broken")
        await app.drain(SECONDS)
        await until(lambda: len(outcomes) == 8)
    names = {event_id: name for name, event_id in ids.items()}
    found: dict[str, list[tuple[str, int, str | None]]] = {name: [] for name in ids}
    for outcome in outcomes:
        found[names[outcome.event_id]].append((outcome.kind, outcome.attempt, outcome.error))
        assert (outcome.step, outcome.taken_over) == ("bill", False)
        assert outcome.recorded_ms / 1000 <= outcome.started + 1 <= time.time() + 1
        assert 0 <= outcome.seconds < SECONDS
    assert found == {
        "good": [("processed", 1, None)],
        "retried": [("retried", 1, "ConnectionError: away"), ("processed", 2, None)],
        "delayed": [
            ("delayed", 1, "CircuitOpen: circuit breaker crm refuses calls; try again in 0.010 s"),
            ("processed", 1, None),
        ],
        "rejected": [("dead", 1, "Reject: no")],
        "broken": [("retried", 1, "ValueError: broken"), ("dead", 2, "ValueError: broken")],
    }


async def test_invalid_data_is_told_with_the_event_it_came_in() -> None:
    app = Workflow("shop", store="memory://")
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.step("order")
    async def bill(event: Event[int]) -> None: ...

    async with app.running():
        event_id = await app.publish("order", data="five")
        await app.drain(SECONDS)
        await until(lambda: outcomes)
    (outcome,) = outcomes
    assert (outcome.kind, outcome.event_id) == ("dead", event_id)
    assert str(outcome.error).startswith("ValidationError")


async def test_a_result_that_came_after_a_takeover_is_told_as_fenced(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    calls = 0

    @app.step("order", concurrency=1)  # so that this worker does not fetch it again itself
    async def bill(event: Event, ctx: Context) -> None:
        nonlocal calls
        calls += 1
        await ctx.publish("billed")
        log = await app.events.log()
        assert app._worker is not None
        await log.release_worker(app._worker.name)  # somebody believes this worker to be dead
        await collect(log.subscribe("shop.bill", "heir", 3600), 1)

    async with app.running():
        event_id = await app.publish("order")
        await until(lambda: outcomes)
        assert await said(app, "billed") == []
    assert [(outcome.kind, outcome.event_id) for outcome in outcomes] == [("fenced", event_id)]
    assert calls == 1


async def test_a_listener_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    app = Workflow("shop", store="memory://")
    heard: list[str] = []

    @app.on_outcome
    def broken(outcome: Outcome) -> None:
        raise ZeroDivisionError

    app.on_outcome(lambda outcome: heard.append(outcome.kind))

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed")

    with caplog.at_level(logging.ERROR, "ag06.runtime"):
        async with app.running():
            for n in range(3):
                await app.publish("order", data=n)
            await app.drain(SECONDS)
            assert len(await said(app, "billed")) == 3
            await until(lambda: len(heard) == 3)
    assert heard == ["processed"] * 3
    assert caplog.text.count("a listener failed on processed of step bill") == 3


async def test_a_listener_that_comes_later_hears_what_comes_later() -> None:
    app = Workflow("shop", store="memory://")
    heard: list[str] = []

    @app.step("order")
    async def bill(event: Event) -> None: ...

    async with app.running():
        await app.publish("order", data=1)
        await app.drain(SECONDS)
        app.on_outcome(lambda outcome: heard.append(outcome.event_id))
        second = await app.publish("order", data=2)
        await app.drain(SECONDS)
        await until(lambda: heard)
    assert heard == [second]
