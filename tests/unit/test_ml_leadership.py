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
