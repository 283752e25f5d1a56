"""The lead of a process: held while it is renewed, lost when it is not, given up by the last who needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ag06.errors import StoreUnavailable
from ag06.ml.leadership import Leadership
from ag06.persistence.log import EventLog, LogOptions
from ag06.persistence.stores import open_log
from flows import SECONDS


@pytest.fixture
async def log() -> AsyncIterator[EventLog]:
    log = open_log("memory://leadership", LogOptions())
    await log.open()
    yield log
    await log.close()


async def test_two_parts_of_a_process_share_it_and_the_last_gives_it_up(log: EventLog) -> None:
    lead, other = Leadership(log, "r", "one", 60), Leadership(log, "r", "other", 60)
    assert await lead.take()
    assert await lead.take()
    assert not await other.take()
    await lead.give_up()
    assert lead.held
    assert not await other.take()
    await lead.give_up()
    assert not lead.held
    assert await other.take()


async def test_after_a_pause_that_was_too_long_it_is_not_held_whatever_the_store_says(log: EventLog) -> None:
    now = 0.0
    lead = Leadership(log, "r", "one", 60, clock=lambda: now)
    assert await lead.take()
    assert lead.held
    now = 60.0
    assert not lead.held


async def test_keeping_it_ends_when_another_has_it(log: EventLog) -> None:
    lead = Leadership(log, "r", "one", 0.2)
    assert await lead.take()
    keeping = asyncio.create_task(lead.keep())
    await log.lead("r", "one", 0)
    assert await log.lead("r", "other", 60)
    await asyncio.wait_for(keeping, SECONDS)
    assert not lead.held


class Away:
    """A store that does not answer once it is `away`."""

    def __init__(self) -> None:
        self.away = False

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        if self.away:
            raise StoreUnavailable("away")
        return True


async def test_without_the_store_it_lasts_as_long_as_was_agreed() -> None:
    store, now = Away(), 0.0
    lead = Leadership(store, "r", "one", 0.05, clock=lambda: now)  # type: ignore[arg-type]
    assert await lead.take()
    store.away = True
    keeping = asyncio.create_task(lead.keep())
    await asyncio.sleep(0.1)
    assert lead.held
    assert not keeping.done()
    now = 1.0
    await asyncio.wait_for(keeping, SECONDS)
    with pytest.raises(StoreUnavailable):
        await lead.take()


class Slow:
    """A store that answers one after the other when it is let to; `now` is the time there, and here."""

    def __init__(self) -> None:
        self.now = 0.0
        self.holder: str | None = None
        self.until = 0.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.answer_seconds = 0.0

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        led = self.holder in (None, holder) or self.now >= self.until
        if led:
            self.holder, self.until = (holder, self.now + seconds) if seconds else (None, 0.0)
        self.now += self.answer_seconds
        await self.may_answer.wait()
        return led

    def lead_of(self, holder: str) -> Leadership:
        return Leadership(self, "r", holder, 60, clock=lambda: self.now)  # type: ignore[arg-type]


async def turns() -> None:
    """Let all that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_answer_that_was_slow_makes_no_lead_longer_than_the_store_grants_it() -> None:
    store = Slow()
    lead, other = store.lead_of("one"), store.lead_of("other")
    store.answer_seconds = 50.0
    assert await lead.take()
    store.answer_seconds = 0.0
    store.now = 59.0
    assert lead.held
    assert not await other.take()
    store.now = 60.0
    assert await other.take()
    assert not lead.held


async def test_what_one_part_takes_while_another_gives_up_stays_with_this_process() -> None:
    store = Slow()
    lead, other = store.lead_of("one"), store.lead_of("other")
    assert await lead.take()
    store.may_answer.clear()
    taking = asyncio.create_task(lead.take())
    await turns()
    leaving = asyncio.create_task(lead.give_up())
    await turns()
    store.may_answer.set()
    await leaving
    assert await taking
    assert lead.held
    assert not await other.take()
    await lead.give_up()
    assert await other.take()


async def test_what_one_part_gives_up_is_gone_before_another_asks() -> None:
    """Over two connections the questions would come in any order: one that ends a lead must not come last."""
    store = Slow()
    lead = store.lead_of("one")
    assert await lead.take()
    store.may_answer.clear()
    leaving = asyncio.create_task(lead.give_up())
    await turns()
    taking = asyncio.create_task(lead.take())
    await turns()
    assert store.holder is None, "the second question waits for the first answer"
    store.may_answer.set()
    await leaving
    assert await taking
    assert (lead.held, store.holder) == (True, "one")


async def test_a_part_that_did_not_get_it_does_not_keep_another_from_giving_it_up() -> None:
    store = Slow()
    lead, other = store.lead_of("one"), store.lead_of("other")
    assert await other.take()
    assert not await lead.take()
    store.may_answer.clear()
    taking = asyncio.create_task(lead.take())
    await turns()
    taking.cancel()
    await asyncio.wait([taking])
    store.may_answer.set()
    await other.give_up()
    assert await lead.take()
    await lead.give_up()
    assert store.holder is None
