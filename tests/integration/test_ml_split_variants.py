"""Events that are split: a step sees the values of its event's variant, however it is called, and nobody else does."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from contextvars import ContextVar
from typing import Any

import pytest

from ag06 import CircuitBreaker, Context, Event, Retry, Workflow
from ag06.runtime.step import Step
from ag06.runtime.variants import SPLITS, Split
from flows import SECONDS, letters, said

mine: ContextVar[str] = ContextVar("mine", default="")


class Told:
    """A meter that writes down what it is told."""

    def __init__(self) -> None:
        self.begun_for: list[tuple[str, str]] = []
        self.ended_with: list[tuple[str, str]] = []

    def begun(self, step: Step, event: Event[Any], unit: str, variant: str) -> str:
        self.begun_for.append((unit, variant))
        return unit

    def ended(self, call: Any, seconds: float, failure: BaseException | None) -> None:
        assert seconds >= 0
        self.ended_with.append((call, type(failure).__name__))

    def dropped(self, call: Any) -> None:
        self.ended_with.append((call, "dropped"))


def by_first_letter(unit: str) -> str:
    return "b" if unit.startswith("b") else "a"


class Shop:
    """A workflow with a knob `size`: 1 where it stands, 10 in variant a and 20 in variant b."""

    def __init__(self, store: str = "memory://") -> None:
        self.app = Workflow("shop", store=store, dedup_window=0)
        self.size = self.app.knob("size", low=1, high=100, default=1, integer=True)
        self.found: defaultdict[str | None, list[int]] = defaultdict(list)
        self.told = Told()

    def split(self) -> Split:
        variants = {"a": {self.size: 10}, "b": {self.size: 20}}
        return Split(self.app.steps.values(), variants, by_first_letter, self.told)

    async def run(self, split: Split, subjects: list[str] | None = None) -> None:
        async with self.app.running():
            split.open()
            for subject in subjects or ["ann", "bob"] * 10:
                await self.app.publish("order", data={}, subject=subject)
            await self.app.drain(SECONDS)
            split.close()


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "behind a breaker"])
@pytest.mark.parametrize("way", ["async", "thread", "async that leaves context behind"])
async def test_each_event_sees_the_variant_of_its_subject(way: str, guarded: bool, timeout: float | None) -> None:
    shop = Shop()
    breaker = CircuitBreaker(minimum_calls=1000) if guarded else None
    declare = shop.app.step("order", timeout=timeout, breaker=breaker)
    if way == "thread":

        @declare
        def pack(event: Event) -> None:
            assert threading.current_thread() is not threading.main_thread()
            shop.found[event.subject].append(shop.size.value)

    else:

        @declare
        async def bill(event: Event) -> None:
            if way != "async":
                mine.set(event.id)
            before = shop.size.value
            await asyncio.gather(asyncio.sleep(0.001), asyncio.to_thread(lambda: None))
            assert await asyncio.to_thread(lambda: shop.size.value) == before
            shop.found[event.subject].append(shop.size.value)

    await shop.run(shop.split())
    assert shop.found == {"ann": [10] * 10, "bob": [20] * 10}
    assert sorted(shop.told.begun_for) == [("ann", "a")] * 10 + [("bob", "b")] * 10
    assert sorted(shop.told.ended_with) == [("ann", "NoneType")] * 10 + [("bob", "NoneType")] * 10
    assert (shop.size.value, SPLITS) == (1, {})


async def test_before_and_after_it_every_event_sees_where_the_knob_stands() -> None:
    shop = Shop()

    @shop.app.step("order")
    async def bill(event: Event) -> None:
        shop.found[event.subject].append(shop.size.value)

    split = shop.split()
    async with shop.app.running():
        for begin in (lambda: None, split.open, split.close):
            begin()
            await shop.app.publish("order", data={}, subject="bob")
            await shop.app.drain(SECONDS)
    assert shop.found == {"bob": [1, 20, 1]}


async def test_an_event_without_a_subject_goes_by_its_id_in_each_attempt() -> None:
    shop = Shop()

    @shop.app.step("order", retry=Retry(attempts=3, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        shop.found[event.id].append(shop.size.value)
        if ctx.attempt < 3:
            raise ConnectionError("away")

    split = shop.split()
    async with shop.app.running():
        split.open()
        await shop.app.publish("order", id="a1", data={})
        await shop.app.publish("order", id="b1", data={})
        await shop.app.drain(SECONDS)
        split.close()
        assert await letters(shop.app) == []
    assert shop.found == {"a1": [10, 10, 10], "b1": [20, 20, 20]}
    assert shop.told.ended_with.count(("b1", "ConnectionError")) == 2


async def test_batches_see_where_the_knob_stands_and_outputs_go_their_own_way() -> None:
    shop = Shop()

    @shop.app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed", data=shop.size.value, subject=event.subject)

    @shop.app.batch_step("billed")
    async def store(events: list[Event]) -> None:
        shop.found[None].append(shop.size.value)

    split = shop.split()
    async with shop.app.running():
        split.open()
        for subject in ("ann", "bob"):
            await shop.app.publish("order", data={}, subject=subject)
        await shop.app.drain(SECONDS)
        assert sorted(await said(shop.app, "billed")) == [10, 20]
        split.close()
    assert set(shop.found[None]) == {1}


async def test_two_workflows_of_one_name_are_split_apart() -> None:
    shop, other = Shop("memory://one"), Shop("memory://other")
    for one in (shop, other):

        @one.app.step("order")
        async def bill(event: Event, *, one: Shop = one) -> None:
            one.found[event.subject].append(one.size.value)

    split = shop.split()
    async with shop.app.running(), other.app.running():
        split.open()
        for one in (shop, other):
            await one.app.publish("order", data={}, subject="bob")
            await one.app.drain(SECONDS)
        split.close()
    assert (shop.found, other.found) == ({"bob": [20]}, {"bob": [1]})


async def test_a_call_that_the_shutdown_breaks_off_is_told_as_such() -> None:
    shop = Shop()
    shop.app.grace = 0.0
    entered = asyncio.Event()

    @shop.app.step("order")
    async def bill(event: Event) -> None:
        entered.set()
        await asyncio.sleep(3600)

    split = shop.split()
    async with shop.app.running():
        split.open()
        await shop.app.publish("order", data={}, subject="ann")
        await asyncio.wait_for(entered.wait(), SECONDS)
    split.close()
    assert shop.told.ended_with == [("ann", "dropped")]
