"""What a workflow promises about its steps: who gets what, in which thread, with which context."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from contextvars import ContextVar

import pytest

from ag06 import Context, Event, Retry, Workflow
from flows import SECONDS, letters, said, until

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def test_every_step_of_a_type_gets_every_event(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    billed: list[int] = []
    shipped: list[int] = []
    other: list[int] = []

    @app.step("order.placed")
    async def bill(event: Event) -> None:
        billed.append(event.data)

    @app.step("order.placed")
    def ship(event: Event) -> None:
        shipped.append(event.data)

    @app.step("order.paid")
    async def thank(event: Event) -> None:
        other.append(event.data)

    async with app.running():
        for n in range(50):
            await app.publish("order.placed", data=n)
        await app.publish("order.paid", data=99)
        await app.drain(SECONDS)
    assert sorted(billed) == sorted(shipped) == list(range(50))
    assert other == [99]


async def test_a_failing_step_never_runs_another_again(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    calls = {"good": 0, "bad": 0}

    @app.step("t")
    async def good(event: Event) -> None:
        calls["good"] += 1

    @app.step("t", retry=Retry(attempts=4, initial=0.001))
    async def bad(event: Event) -> None:
        calls["bad"] += 1
        raise ValueError("broken")

    async with app.running():
        await app.publish("t")
        await app.drain(SECONDS)
        assert [letter.step for letter in await letters(app)] == ["shop.bad"]
    assert calls == {"good": 1, "bad": 4}


async def test_steps_with_and_without_await_and_context_run_alike() -> None:
    app = Workflow("shop", store="memory://")

    class Stored:
        def method(self, event: Event, ctx: Context) -> None:
            ctx.publish("done", "method")

        async def __call__(self, event: Event, ctx: Context) -> None:
            await ctx.publish("done", "object")

    @app.step("t")
    async def awaited(event: Event, ctx: Context) -> None:
        await ctx.publish("done", "awaited")

    @app.step("t")
    async def not_awaited(event: Event, ctx: Context) -> None:
        ctx.publish("done", "not awaited")

    @app.step("t")
    def threaded(event: Event, ctx: Context) -> None:
        ctx.publish("done", "threaded")

    app.step("t")(Stored().method)
    app.step("t", name="object")(Stored())
    async with app.running():
        await app.publish("t")
        await app.drain(SECONDS)
        assert sorted(await said(app, "done")) == ["awaited", "method", "not awaited", "object", "threaded"]


async def test_a_step_knows_where_it_stands() -> None:
    app = Workflow("shop", store="memory://")
    seen: list[tuple[str, str, int, bool]] = []

    @app.step("t", retry=Retry(attempts=3, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        seen.append((ctx.workflow, ctx.step, ctx.attempt, ctx.taken_over))
        if ctx.attempt < 3:
            raise ConnectionError

    async with app.running():
        await app.publish("t")
        await app.drain(SECONDS)
    assert seen == [("shop", "bill", attempt, False) for attempt in (1, 2, 3)]


async def test_a_plain_step_runs_in_a_thread_and_holds_nobody_up() -> None:
    app = Workflow("shop", store="memory://")
    entered, leave = threading.Event(), threading.Event()
    threads: list[str] = []

    @app.step("slow")
    def slow(event: Event) -> None:
        threads.append(threading.current_thread().name)
        entered.set()
        assert leave.wait(SECONDS)

    @app.step("quick")
    async def quick(event: Event) -> None:
        leave.set()  # never reached if the plain step blocked the loop

    async with app.running():
        await app.publish("slow")
        await until(entered.is_set)
        await app.publish("quick")
        await app.drain(SECONDS)
    assert threads != [threading.current_thread().name]


async def test_a_plain_step_sees_the_context_variables_of_whoever_runs_the_workflow() -> None:
    app = Workflow("shop", store="memory://")
    seen: list[str] = []

    @app.step("t")
    def plain(event: Event) -> None:
        seen.append(tenant.get())
        tenant.set("changed in a thread")

    tenant.set("alice")
    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
    assert seen == ["alice"] * 3
    assert tenant.get() == "alice"


@pytest.mark.parametrize("plain", [False, True])
async def test_as_many_calls_run_at_once_as_the_concurrency_says_and_no_more(plain: bool) -> None:
    app = Workflow("shop", store="memory://")
    lock = threading.Lock()
    running = highest = 0
    full = threading.Event()

    def enter() -> None:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
            if running == 3:
                full.set()

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    if plain:

        @app.step("t", concurrency=3)
        def in_threads(event: Event) -> None:
            enter()
            assert full.wait(SECONDS)
            leave()
    else:

        @app.step("t", concurrency=3)
        async def in_tasks(event: Event) -> None:
            enter()
            await until(full.is_set)
            await asyncio.sleep(0)
            leave()

    async with app.running():
        for n in range(30):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
    assert highest == 3


async def test_a_step_reads_a_knob_that_is_moved_while_it_runs() -> None:
    app = Workflow("mixer", store="memory://")
    size = app.knob("block_size", low=64, high=16384, default=256, scale="log", integer=True)

    @app.step("audio")
    async def level(event: Event, ctx: Context) -> None:
        await ctx.publish("levelled", size.value)

    async with app.running():
        await app.publish("audio", data=1)
        await app.drain(SECONDS)
        size.set(1024)
        await app.publish("audio", data=2)
        await app.drain(SECONDS)
        assert await said(app, "levelled") == [256, 1024]


async def test_a_plain_function_that_returns_a_coroutine_is_done_when_that_is_done() -> None:
    app = Workflow("shop", store="memory://")
    done: list[int] = []

    async def inner(event: Event) -> None:
        await asyncio.sleep(0)
        if event.data == 0:
            raise ValueError("zero")
        done.append(event.data)

    @app.step("t", retry=Retry(attempts=1))
    def wrapper(event: Event) -> object:
        return inner(event)

    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert sorted(done) == [1, 2]
    assert (letter.error, letter.event.data) == ("ValueError", 0)


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
async def test_a_step_that_raises_what_ends_programs_ends_only_its_own_call(error: BaseException) -> None:
    app = Workflow("shop", store="memory://")

    @app.step("t", concurrency=1)
    async def step(event: Event) -> None:
        if event.data == 0:
            raise error

    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert letter.error == type(error).__name__


@pytest.mark.parametrize("asks", [True, False], ids=["the task is asked to end", "only the exception is raised"])
async def test_a_call_that_is_cancelled_from_within_is_tried_again_and_its_caller_goes_on(asks: bool) -> None:
    app = Workflow("shop", store="memory://")
    calls: list[int] = []

    @app.step("t", concurrency=1, retry=Retry(attempts=2, initial=0.0))
    async def step(event: Event) -> None:
        calls.append(event.data)
        if event.data == 0:
            task = asyncio.current_task()
            if asks and task is not None:
                task.cancel()
                await asyncio.sleep(0)
            raise asyncio.CancelledError

    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert sorted(calls) == [0, 0, 1, 2]
    assert (letter.error, letter.attempts) == ("StepFailed", 2)
    assert "cancelled" in letter.traceback


async def test_every_failed_attempt_and_every_dead_letter_is_told_with_its_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Workflow("shop", store="memory://")

    @app.step("t", retry=Retry(attempts=2, initial=0.0))
    async def step(event: Event) -> None:
        raise ValueError("no such account")

    with caplog.at_level("WARNING"):
        async with app.running():
            event_id = await app.publish("t", data=1, subject="alice")
            await app.drain(SECONDS)
    failed, buried = [record.message for record in caplog.records if event_id in record.message]
    assert "attempt 1 of 2 failed" in failed
    assert "ValueError: no such account" in failed
    assert "subject alice" in buried
    assert f"ag06 dead-letters show {event_id}" in buried


@pytest.mark.parametrize("timeout", [None, 30.0])
async def test_an_async_function_that_returns_an_awaitable_is_done_when_that_is_done(timeout: float | None) -> None:
    """A wrapper that forgot to await: otherwise nothing of the step has run, and its event is acknowledged."""
    app = Workflow("shop", store="memory://")
    done: list[str] = []

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        done.append(name)

    @app.step("order", name="coroutine", timeout=timeout)
    async def coroutine(event: Event) -> Awaitable[None]:
        return work("coroutine")

    @app.step("order", name="task", timeout=timeout)
    async def task(event: Event) -> Awaitable[None]:
        return asyncio.create_task(work("task"))

    @app.step("order", name="twice", timeout=timeout)
    async def twice(event: Event) -> Awaitable[object]:
        return coroutine(event)

    @app.step("order", name="fails", timeout=timeout, retry=Retry(attempts=1))
    async def fails(event: Event) -> Awaitable[None]:
        async def fail() -> None:
            raise ValueError("late")

        return fail()

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert [letter.message for letter in await letters(app)] == ["late"]
    assert sorted(done) == ["coroutine", "coroutine", "task"]
