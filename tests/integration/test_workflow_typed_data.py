"""What a workflow promises about typed data: checked before the step sees it, a dead letter where it does not fit."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import msgspec

from ag06 import Context, Event, Retry, Workflow
from flows import SECONDS, letters, said


class Payment(msgspec.Struct):
    account: str
    cents: int
    due: dt.date | None = None


@dataclass
class Order:
    price: float
    tags: list[str]


class Level(TypedDict):
    channel: Literal["left", "right"]
    gain: float


async def test_data_arrives_as_what_the_annotation_says(store_url: str) -> None:
    app = Workflow("bank", store=store_url)
    seen: list[Any] = []

    @app.step("struct")
    async def struct(event: Event[Payment], ctx: Context) -> None:
        seen.append(event.data)
        await ctx.publish("dataclass", Order(event.data.cents / 100, [event.data.account]))

    @app.step("dataclass")
    def dataclass_(event: Event[Order], ctx: Context) -> None:
        seen.append(event.data)
        ctx.publish("typed dict", {"channel": "left", "gain": event.data.price})

    @app.step("typed dict")
    async def typed_dict(event: Event[Level]) -> None:
        seen.append(event.data)

    async with app.running():
        await app.publish("struct", data=Payment("alice", 500, dt.date(2026, 1, 2)))
        await app.drain(SECONDS)
    assert seen == [
        Payment("alice", 500, dt.date(2026, 1, 2)),
        Order(5.0, ["alice"]),
        {"channel": "left", "gain": 5.0},
    ]
    assert isinstance(seen[0], Payment)
    assert isinstance(seen[1], Order)


async def test_data_that_does_not_fit_is_a_dead_letter_at_once_and_the_rest_goes_on(store_url: str) -> None:
    app = Workflow("bank", store=store_url)
    booked: list[int] = []

    @app.step("payment", retry=Retry(attempts=5, initial=0.001))
    async def book(event: Event[Payment]) -> None:
        booked.append(event.data.cents)

    @app.step("payment")
    async def audit(event: Event) -> None: ...

    async with app.running():
        await app.publish("payment", data={"account": "alice", "cents": 1})
        bad_id = await app.publish("payment", data={"account": "bob", "cents": "much"}, subject="bob")
        await app.publish("payment", data={"account": "bob", "cents": 2}, subject="bob")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert sorted(booked) == [1, 2]
    assert (letter.step, letter.event.id, letter.reason) == ("bank.book", bad_id, "invalid")
    assert (letter.error, letter.attempts) == ("ValidationError", 1)
    assert "Expected `int`, got `str`" in letter.message
    assert "$.data.cents" in letter.message
    assert letter.event.data == {"account": "bob", "cents": "much"}


async def test_one_bad_member_does_not_spoil_its_batch(store_url: str) -> None:
    app = Workflow("bank", store=store_url)

    @app.batch_step("payment", max_size=100, max_wait=0.05)
    async def book(events: list[Event[Payment]], ctx: Context) -> None:
        for event in events:
            await ctx.publish("booked", event.data.cents, cause=event)

    for n in range(10):
        await app.publish("payment", data={"account": "a", "cents": n if n != 4 else "much"})
    async with app.running():
        await app.drain(SECONDS)
        assert sorted(await said(app, "booked")) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert [letter.reason for letter in await letters(app)] == ["invalid"]


async def test_data_may_have_more_than_the_type_knows() -> None:
    """Publishers may be newer than steps."""
    app = Workflow("bank", store="memory://")
    seen: list[Payment] = []

    @app.step("payment")
    async def book(event: Event[Payment]) -> None:
        seen.append(event.data)

    async with app.running():
        await app.publish("payment", data={"account": "a", "cents": 1, "currency": "EUR"})
        await app.drain(SECONDS)
    assert seen == [Payment("a", 1)]
