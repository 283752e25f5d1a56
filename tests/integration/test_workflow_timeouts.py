"""What a workflow promises about `timeout=`: a late call is a failure, nothing of it is kept, none runs beside it."""

from __future__ import annotations

import asyncio
import threading
import time

from ag06 import Context, Event, Retry, StepFailed, Workflow
from flows import SECONDS, letters, said


async def test_a_call_that_takes_too_long_is_cancelled_and_tried_again(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    cancelled: list[int] = []

    @app.step("order", timeout=0.02, retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed")
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            cancelled.append(ctx.attempt)
            raise

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
        assert await said(app, "billed") == []
    assert cancelled == [1, 2]
    assert (letter.reason, letter.error, letter.attempts) == ("failed", "StepTimeout", 2)
    assert letter.message == "step 'bill' took longer than its timeout of 0.02 s"


async def test_a_call_that_swallows_its_cancellation_is_late_all_the_same() -> None:
    app = Workflow("shop", store="memory://")

    @app.step("order", timeout=0.02, retry=Retry(attempts=1))
    async def bill(event: Event, ctx: Context) -> None:
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            await ctx.publish("billed")

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
        assert await said(app, "billed") == []
    assert letter.error == "StepTimeout"


async def test_a_timeout_error_of_the_steps_own_is_told_as_what_it_is() -> None:
    app = Workflow("shop", store="memory://")

    @app.step("order", timeout=SECONDS, retry=Retry(attempts=1))
    async def bill(event: Event) -> None:
        raise TimeoutError("the bank did not answer")

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert (letter.error, letter.message) == ("TimeoutError", "the bank did not answer")


async def test_a_late_thread_keeps_nothing_and_the_next_attempt_waits_until_it_is_back(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    lock = threading.Lock()
    running = highest = 0
    attempts: list[int] = []

    @app.step("order", timeout=0.05, retry=Retry(attempts=2, initial=0.0, maximum=0.0))
    def bill(event: Event, ctx: Context) -> None:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            _publish_until_fenced(ctx)
            time.sleep(0.1)  # a second attempt, if there were one beside this, would come now
        else:
            ctx.publish("billed", ctx.attempt)
        with lock:
            running -= 1

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert await said(app, "late") == []
        assert await said(app, "billed") == [2]
    assert attempts == [1, 2]
    assert highest == 1


def _publish_until_fenced(ctx: Context) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            ctx.publish("late")
        except StepFailed:
            return
        time.sleep(0.002)
    raise AssertionError("the call was never fenced")


async def test_a_timeout_leaves_the_other_calls_alone() -> None:
    app = Workflow("shop", store="memory://")
    leave = asyncio.Event()

    @app.step("order", timeout=0.02, concurrency=2, retry=Retry(attempts=1))
    async def bill(event: Event, ctx: Context) -> None:
        if event.data == "slow":
            await asyncio.sleep(SECONDS)
        await ctx.publish("billed", event.data)

    @app.step("unlimited")
    async def unlimited(event: Event, ctx: Context) -> None:
        await leave.wait()
        await ctx.publish("billed", event.data)

    async with app.running():
        await app.publish("unlimited", data="long")
        await app.publish("order", data="slow")
        for n in range(5):
            await app.publish("order", data=n)
        while not await letters(app):
            await asyncio.sleep(0.005)
        leave.set()
        await app.drain(SECONDS)
        assert sorted(map(str, await said(app, "billed"))) == ["0", "1", "2", "3", "4", "long"]
