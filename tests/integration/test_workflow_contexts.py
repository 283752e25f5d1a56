"""Context variables that a step sets belong to the call: the next event of the same worker sees nothing of them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from ag06 import CircuitBreaker, Context, Event, Retry, Workflow
from flows import SECONDS, letters

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
outside: ContextVar[str] = ContextVar("outside", default="unset")


class Odd:
    """A value that cannot be compared, as arrays cannot."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = object.__hash__


odd: ContextVar[object] = ContextVar("odd", default=None)


@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "behind a breaker"])
@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "suspended"])
async def test_what_a_step_sets_is_gone_with_its_next_event(guarded: bool, timeout: float | None, waits: bool) -> None:
    app = Workflow("shop", store="memory://")
    breaker = CircuitBreaker(minimum_calls=100) if guarded else None
    found: list[tuple[str, object, str]] = []
    kept: list[str] = []

    @app.step("order", concurrency=2, breaker=breaker, timeout=timeout, retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        found.append((tenant.get(), odd.get(), outside.get()))
        mine = f"tenant {event.data}"
        tenant.set(mine)
        odd.set(Odd())
        if waits:
            await asyncio.sleep(0)
            await asyncio.gather(asyncio.sleep(0.001), asyncio.to_thread(lambda: None))
        kept.append(await asyncio.create_task(_tell()))
        assert tenant.get() == mine
        if event.data % 3 == 0 and ctx.attempt == 1:
            raise ConnectionError

    outside.set("as the workflow began")
    async with app.running():
        for n in range(30):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert len(found) == 40
    assert set(found) == {("nobody", None, "as the workflow began")}
    assert {f"tenant {n}" for n in range(30)} == set(kept)


async def _tell() -> str:
    return tenant.get()


async def test_a_batch_step_leaves_nothing_behind_either_and_a_plain_step_never_did() -> None:
    app = Workflow("shop", store="memory://")
    found: list[str] = []

    @app.batch_step("order", max_size=2)
    async def store(events: list[Event]) -> None:
        found.append(tenant.get())
        tenant.set("somebody")

    @app.step("order", concurrency=1)
    def bill(event: Event) -> None:
        found.append(tenant.get())
        tenant.set("somebody else")

    async with app.running():
        for n in range(10):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
    assert len(found) >= 15
    assert set(found) == {"nobody"}


async def test_a_timeout_ends_a_step_in_its_own_context_and_its_cleanup_runs_there() -> None:
    app = Workflow("shop", store="memory://")
    cleaned: list[str] = []

    @app.step("order", concurrency=1, timeout=0.05, retry=Retry(attempts=1))
    async def bill(event: Event) -> None:
        tenant.set(f"tenant {event.data}")
        try:
            if event.data:
                await asyncio.sleep(3600)
        finally:
            cleaned.append(tenant.get())

    async with app.running():
        for n in range(3):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert [letter.error for letter in await letters(app)] == ["StepTimeout", "StepTimeout"]
    assert cleaned == ["tenant 0", "tenant 1", "tenant 2"]


async def test_values_that_cannot_be_compared_do_no_harm() -> None:
    app = Workflow("shop", store="memory://")
    found: list[object] = []

    @app.step("order", concurrency=1)
    async def bill(event: Event) -> None:
        found.append(odd.get())
        odd.set(Odd())

    original = Odd()
    odd.set(original)
    async with app.running():
        for n in range(3):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert [value is original for value in found] == [True] * 3
