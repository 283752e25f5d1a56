"""Dead letters: found by what is known of them, delivered again or deleted in bulk, however many there are."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from ag06 import ConfigurationError, DeadLetter, Event, Reject, Retry, Workflow
from ag06.runtime.dead_letters import DeadLetters
from flows import SECONDS, stored

MANY = 1_200


class Order(msgspec.Struct):
    price: int


class Shop:
    """A workflow that fails in several ways until it is mended."""

    def __init__(self, url: str, name: str = "shop") -> None:
        self.app = Workflow(name, store=url)
        self.mended = False
        self.billed: list[Event] = []

        @self.app.step("order.placed", retry=Retry(attempts=2, initial=0.001), concurrency=50)
        async def bill(event: Event[Order]) -> None:
            if not self.mended and event.data.price < 0:
                raise Reject("negative")
            if not self.mended and event.data.price > 100:
                raise LookupError("no such price")
            self.billed.append(event)

        @self.app.step("parcel.sent")
        async def track(event: Event) -> None:
            if not self.mended:
                raise Reject("lost")

    async def publish(self, *prices: Any, event_type: str = "order.placed") -> list[str]:
        events = [
            {"event_type": event_type, "source": "web", "data": {"price": price}, "correlation_id": f"c{price}"}
            for price in prices
        ]
        return [event_id for event_id in await self.app.events.persist_events(events) if event_id is not None]

    async def fill(self) -> None:
        """Leave five dead letters: -1, -2 rejected, 101 failed, "x" invalid, and a parcel."""
        await self.app.publish("order.placed", data={"price": 1})
        await self.publish(-1, -2, 101, "x")
        await self.publish(7, event_type="parcel.sent")
        await self.app.drain(SECONDS)


def prices(letters: list[DeadLetter]) -> set[Any]:
    return {letter.event.data["price"] for letter in letters}


async def test_dead_letters_are_found_by_what_is_known_of_them(store_url: str) -> None:
    shop = Shop(store_url)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    async with shop.app.running():
        await shop.fill()
        letters = shop.app.dead_letters
        assert prices(await letters.list()) == {-1, -2, 101, "x", 7}
        assert prices(await letters.list(step="bill")) == {-1, -2, 101, "x"}
        assert prices(await letters.list(step="shop.track")) == {7}
        assert prices(await letters.list(type="parcel.sent")) == {7}
        assert prices(await letters.list(reason="rejected")) == {-1, -2, 7}
        assert prices(await letters.list(reason="rejected", step="bill")) == {-1, -2}
        assert prices(await letters.list(reason="invalid")) == {"x"}
        assert prices(await letters.list(error="LookupError")) == {101}
        (failed,) = await letters.list(reason="failed")
        assert (failed.error, failed.message, failed.attempts) == ("LookupError", "no such price", 2)
        assert prices(await letters.list(ids=[failed.event.id])) == {101}
        assert prices(await letters.list(since=before)) == {-1, -2, 101, "x", 7}
        assert await letters.list(until=before.timestamp()) == []
        assert 101 in prices(await letters.list(since=failed.last_failed))
        assert 101 not in prices(await letters.list(until=failed.last_failed))
        assert len(await letters.list(2)) == 2
        assert prices(await letters.list(error=LookupError)) == {101}
        assert prices(await letters.list(since=failed.last_failed, until=failed.last_failed)) == set()
        assert await letters.list(ids=[]) == []


@pytest.mark.parametrize("adapter", ["sqlite", "redis"])
async def test_a_step_without_dead_letters_is_known_and_so_is_one_that_was_removed(store_url: str) -> None:
    shop = Shop(store_url)
    async with shop.app.running():
        assert await shop.app.dead_letters.list(step="bill") == []
        await shop.publish(-1)
        await shop.app.drain(SECONDS)
    everybody = DeadLetters(shop.app.events.log)
    log = await shop.app.events.log()
    for step in ("shop.bill", "shop.track"):
        await log.remove_group(step)
    assert prices(await everybody.list(step="shop.bill")) == {-1}
    with pytest.raises(ConfigurationError, match=r"knows no step 'shop.track'"):
        await everybody.list(step="shop.track")
    await shop.app.close()


async def test_retry_and_discard_take_what_the_filters_name_and_no_more(store_url: str) -> None:
    shop, stranger = Shop(store_url), Shop(store_url, "other")
    async with shop.app.running(), stranger.app.running():
        await shop.fill()
        await stranger.app.drain(SECONDS)
        letters = shop.app.dead_letters
        assert await letters.discard(reason="invalid") == 1
        (failed,) = await letters.list(error="LookupError")
        shop.mended = True
        assert await letters.retry(step="bill") == 3
        await shop.app.drain(SECONDS)
        assert {event.data.price for event in shop.billed} == {1, -1, -2, 101}
        (again,) = [event for event in shop.billed if event.data.price == 101]
        assert (again.id, again.correlation_id) == (failed.event.id, "c101"), "it kept its id and its correlation"
        assert len(await stored(shop.app, "order.placed")) == 5, "no event was published again"
        assert prices(await letters.list()) == {7}
        assert await letters.retry(step="bill") == 0
        assert await letters.discard() == 1
        assert prices(await stranger.app.dead_letters.list()) == {-1, -2, 101, "x", 7}, "another workflow's are its own"
        everybody = DeadLetters(shop.app.events.log)
        assert len(await everybody.list()) == 5


async def test_thousands_of_dead_letters_are_paged_through_retried_and_discarded(store_url: str) -> None:
    shop = Shop(store_url)
    async with shop.app.running():
        await shop.publish(*range(-MANY, 0))
        await shop.app.drain(SECONDS)
        letters = shop.app.dead_letters
        assert len(await letters.list()) == 1000
        found = [letter async for letter in letters.read()]
        assert prices(found) == set(range(-MANY, 0))
        assert [letter.last_failed for letter in found] == sorted(letter.last_failed for letter in found)
        assert await letters.retry() == MANY  # not mended: they all come back, each once
        await shop.app.drain(SECONDS)
        assert len([letter async for letter in letters.read()]) == MANY
        shop.mended = True
        assert await letters.retry() == MANY
        await shop.app.drain(SECONDS)
        assert sorted(event.data.price for event in shop.billed) == list(range(-MANY, 0))
        assert await letters.discard() == 0


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"reason": "bored"}, "reason='bored'; use one of failed, rejected, invalid, worker_died"),
        ({"since": dt.datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - that is the mistake
        ({"until": "yesterday"}, "until='yesterday'; an aware datetime or seconds since the epoch"),
        ({"since": float("nan")}, "since=nan"),
        ({"since": 2e9, "until": 1e9}, r"since=2033-\S+ is later than until=2001-"),
        ({"step": "bil"}, r"the store knows no step 'shop.bil'; see"),
        ({"step": "other.bill"}, r"step='other.bill' is not one of the workflow 'shop'"),
        ({"step": 5}, "step=5; give text"),
        ({"type": 5}, "type=5; give text"),
        ({"type": ""}, "type=''; give text, not empty"),
        ({"error": 5}, "error=5; give text, or the class"),
        ({"error": ValueError()}, r"error=ValueError\(\); give text, or the class"),
        ({"error": int}, "error=<class 'int'>; give text, or the class"),
        ({"error": ""}, "error=''; give text"),
        ({"ids": 5}, "ids=5; ids of events as text"),
        ({"ids": [5]}, r"ids=\[5\]; ids of events as text"),
        ({"reason": 5}, "reason=5; use one of"),
        ({"stop": "shop.bill"}, "no filter 'stop'; use step, type, reason"),
    ],
)
async def test_a_filter_that_makes_no_sense_is_an_error_and_deletes_nothing(
    filters: dict[str, Any], words: str
) -> None:
    shop = Shop("memory://")
    async with shop.app.running():
        await shop.fill()
        with pytest.raises(ConfigurationError, match=words):
            await shop.app.dead_letters.discard(**filters)
        assert len(await shop.app.dead_letters.list()) == 5


@pytest.mark.parametrize("limit", [0, -1, None, "5", 1.5])
async def test_a_limit_that_nothing_can_keep_is_an_error(limit: Any) -> None:
    shop = Shop("memory://")
    async with shop.app.running():
        with pytest.raises(ConfigurationError, match=r"limit=.*a whole number, 1 or more"):
            await shop.app.dead_letters.list(limit)
