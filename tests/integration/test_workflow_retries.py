"""What a workflow promises about failures: tried again, then kept with their story, never acknowledged by default."""

from __future__ import annotations

import datetime as dt
from collections import Counter

from ag06 import CircuitBreaker, CircuitOpen, Context, Event, Outcome, Reject, Retry, Workflow
from ag06.runtime.dead_letters import discard_dead_letters, list_dead_letters, retry_dead_letters
from flows import SECONDS, letters, said, until

QUICK = Retry(attempts=3, initial=0.001)


async def test_a_failed_event_is_not_acknowledged_by_default(store_url: str) -> None:
    """With no retry given at all, a failure is tried again until it works (taskiq-python/taskiq#371)."""
    app = Workflow("shop", store=store_url)
    attempts: list[int] = []

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("away")
        await ctx.publish("billed", ctx.attempt)

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert await said(app, "billed") == [3]
        assert await letters(app) == []
    assert attempts == [1, 2, 3]


async def test_an_event_that_never_works_ends_in_the_dead_letters_with_its_story(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(milliseconds=1)

    @app.step("order", retry=QUICK)
    async def bill(event: Event, ctx: Context) -> None:
        price = {"attempt": ctx.attempt}
        raise KeyError(f"no price at {price}")

    async with app.running():
        event_id = await app.publish("order", "web", {"n": 1}, subject="alice")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert (letter.step, letter.reason, letter.error, letter.attempts) == ("shop.bill", "failed", "KeyError", 3)
    assert "no price at {'attempt': 3}" in letter.message
    assert letter.traceback.startswith("Traceback (most recent call last)")
    assert 'raise KeyError(f"no price at {price}")' in letter.traceback
    assert before <= letter.first_failed <= letter.last_failed <= dt.datetime.now(dt.UTC)
    assert (letter.event.id, letter.event.data, letter.event.subject) == (event_id, {"n": 1}, "alice")


async def test_a_failing_event_holds_up_only_its_own_subject(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    billed: list[tuple[str | None, int]] = []
    failures = Counter[int]()

    @app.step("order", retry=QUICK)
    async def bill(event: Event) -> None:
        if event.data == 0:
            failures[0] += 1
            raise ValueError
        billed.append((event.subject, failures[0]))

    await app.publish("order", data=0, subject="alice")
    await app.publish("order", data=1, subject="alice")
    await app.publish("order", data=2, subject="bob")
    await app.publish("order", data=3)
    async with app.running():
        await app.drain(SECONDS)
    assert sorted(str(subject) for subject, _ in billed) == ["None", "alice", "bob"]
    assert ("alice", 3) in billed, "the subject's next event ran before the failing one was settled"


async def test_a_rejected_event_goes_to_the_dead_letters_at_once(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    calls = 0

    @app.step("order", retry=Retry(attempts=9))
    def bill(event: Event, ctx: Context) -> None:
        nonlocal calls
        calls += 1
        ctx.publish("billed")
        raise Reject("an order must have a price")

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
        assert await said(app, "billed") == []
    assert (letter.reason, letter.error, letter.message) == ("rejected", "Reject", "an order must have a price")
    assert (letter.attempts, calls) == (1, 1)


async def test_only_named_exceptions_are_worth_another_attempt() -> None:
    app = Workflow("shop", store="memory://")
    calls = Counter[str]()

    @app.step("order", retry=Retry(attempts=3, initial=0.001, on=(ConnectionError, TimeoutError)))
    async def bill(event: Event) -> None:
        calls[event.data] += 1
        raise {"reset": ConnectionResetError, "late": TimeoutError, "wrong": ValueError}[event.data]

    async with app.running():
        for kind in ("reset", "late", "wrong"):
            await app.publish("order", data=kind)
        await app.drain(SECONDS)
        found = {letter.event.data: letter.attempts for letter in await letters(app)}
    assert calls == {"reset": 3, "late": 3, "wrong": 1}
    assert found == {"reset": 3, "late": 3, "wrong": 1}


async def test_a_retry_without_budget_waits_and_costs_no_attempt() -> None:
    app = Workflow("shop", store="memory://")
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    attempts: list[int] = []

    @app.step("order", retry=Retry(attempts=2, initial=0.0, maximum=0.0))
    async def bill(event: Event, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionError

    async with app.running():
        for n in range(24):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert Counter(attempts) == {1: 24, 2: 24}
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert (kinds["retried"], kinds["processed"], kinds["dead"]) == (24, 24, 0)
    assert kinds["delayed"] > 0, "24 retries at once fit into no budget of 10 and a fifth"


async def test_an_open_circuit_delays_and_costs_no_attempt(store_url: str) -> None:
    breaker = CircuitBreaker("crm", open_seconds=0.02)
    breaker.force_open()
    app = Workflow("shop", store=store_url)
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    attempts: list[int] = []

    @app.step("order", retry=Retry(attempts=1), breaker=breaker)
    async def bill(event: Event, ctx: Context) -> None:
        attempts.append(ctx.attempt)

    async with app.running():
        await app.publish("order")
        await until(lambda: len(outcomes) >= 3)
        assert attempts == []
        breaker.reset()
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert attempts == [1]
    assert {outcome.kind for outcome in outcomes[:-1]} == {"delayed"}
    assert (outcomes[-1].kind, outcomes[-1].attempt) == ("processed", 1)


async def test_a_breaker_opens_on_failures_and_the_event_comes_through_when_it_closes() -> None:
    app = Workflow("shop", store="memory://")
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    breaker = CircuitBreaker("crm", minimum_calls=3, open_seconds=0.05, half_open_calls=1)
    broken = True

    @app.step("order", retry=Retry(attempts=4, initial=0.001), breaker=breaker, concurrency=1)
    def bill(event: Event) -> None:
        if broken:
            raise ConnectionError

    async with app.running():
        await app.publish("order")
        await until(lambda: breaker.metrics.refused > 0)
        broken = False
        await app.drain(SECONDS)
        assert await letters(app) == []
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds[:3] == ["retried"] * 3
    assert set(kinds[3:-1]) == {"delayed"}
    assert (kinds[-1], outcomes[-1].attempt) == ("processed", 4)
    assert breaker.state == "closed"


async def test_a_circuit_of_the_steps_own_that_is_open_costs_no_attempt_either() -> None:
    app = Workflow("shop", store="memory://")
    attempts: list[int] = []

    @app.step("order", retry=Retry(attempts=1))
    async def bill(event: Event, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) < 3:
            raise CircuitOpen("mine", 0.01)

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert attempts == [1, 1, 1]


async def test_a_dead_letter_that_is_retried_has_all_its_attempts_again(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    calls = Counter[str]()
    attempts: list[int] = []
    broken = True

    @app.step("order", retry=QUICK)
    async def bill(event: Event, ctx: Context) -> None:
        calls["bill"] += 1
        attempts.append(ctx.attempt)
        if broken or ctx.attempt < 3:
            raise ValueError
        await ctx.publish("billed", ctx.attempt)

    @app.step("order")
    async def audit(event: Event) -> None:
        calls["audit"] += 1

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        log = await app.events.log()
        found = await list_dead_letters(log, "shop.bill")
        broken = False
        assert await retry_dead_letters(log, found) == 1
        await app.drain(SECONDS)
        assert await letters(app) == []
        assert await said(app, "billed") == [3]
        assert await retry_dead_letters(log, found) == 0
    assert attempts == [1, 2, 3, 1, 2, 3]
    assert calls == {"bill": 6, "audit": 1}


async def test_a_dead_letter_that_is_discarded_is_gone_for_good(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("order")
    async def bill(event: Event) -> None:
        raise Reject(f"number {event.data}")

    async with app.running():
        for n in range(3):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        log = await app.events.log()
        found = await letters(app)
        assert {letter.message for letter in found} == {"number 0", "number 1", "number 2"}
        assert await list_dead_letters(log, "shop.other") == []
        assert len(await list_dead_letters(log, limit=2)) == 2
        assert await discard_dead_letters(log, found[:2]) == 2
        assert [letter.message for letter in await letters(app)] == [found[2].message]
        assert await discard_dead_letters(log, found) == 1
        assert (await app.events.stats()).dead_letters == 0
