"""A worker under a fixed name is not the dead one that had the name before."""

from __future__ import annotations

import pytest

from ag06 import Context, Event, Workflow
from ag06.persistence.log import StepSpec
from conftest import OpenLog
from flows import SECONDS, until
from records import collect


async def test_what_a_dead_worker_of_the_same_name_held_is_handed_out_at_once(
    store_url: str, open_store: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AG06_WORKER", "fixed")
    app = Workflow("shop", store=store_url, visibility_timeout=600)
    seen: list[tuple[int, bool]] = []

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        seen.append((event.data, ctx.taken_over))

    log = await open_store()
    await log.register("shop", [StepSpec("shop.bill", "order", "beginning")])
    for n in range(3):
        await app.publish("order", data=n)
    dead = log.subscribe("shop.bill", "fixed", 600)
    await collect(dead, 2)  # and it never says a word again
    async with app.running():
        await app.drain(SECONDS)
    assert sorted(seen) == [(0, True), (1, True), (2, False)]


async def test_two_workflows_of_one_process_may_share_the_name(
    store_url: str, open_store: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one to start does not take away what the first one runs."""
    monkeypatch.setenv("AG06_WORKER", "fixed")
    await open_store()
    seen: list[bool] = []
    first, second = (Workflow(name, store=store_url) for name in ("shop", "bank"))

    @first.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        seen.append(ctx.taken_over)
        await until(lambda: len(seen) == 2)

    @second.step("payment")
    async def book(event: Event, ctx: Context) -> None:
        seen.append(ctx.taken_over)

    async with first.running():
        await first.publish("order")
        await until(lambda: len(seen) == 1)
        async with second.running():
            await second.publish("payment")
            await second.drain(SECONDS)
            await first.drain(SECONDS)
    assert seen == [False, False]
