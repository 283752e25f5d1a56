"""What every log answers at the edges: nothing is asked for, the same twice, much at once, or after its end."""

from __future__ import annotations

import asyncio
import time

import pytest

from ag06.errors import StoreError
from ag06.persistence.log import Acknowledge, EventLog, StepSpec
from conftest import OpenLog
from records import GROUP, TYPE, collect, done, events, eventually, nothing, numbers, output, record, registered


async def test_a_delivery_that_is_named_twice_in_one_settlement_is_settled_once(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    one, two, three = await collect(subscription, 3)
    assert await subscription.commit([Acknowledge((one, two, one))]) == [True]
    assert await log.pending([GROUP]) == 1
    assert await subscription.commit([done(three, outputs=[output(1, "billed", three)]), done(three)]) == [True, False]
    assert await log.pending([GROUP]) == 0
    assert len(await events(log, types=("billed",))) == 1


async def test_who_asks_for_nothing_gets_nothing_at_once(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    assert await asyncio.wait_for(subscription.fetch(0, 60.0), 10) == []
    assert await subscription.commit([]) == []
    await subscription.release([])
    await subscription.mark_started([])
    assert numbers(await collect(subscription, 1)) == [1]
    assert await log.append([]) == []
    assert await log.retry_dead_letters([]) == 0
    assert await log.discard_dead_letters([]) == 0
    assert await log.pending([]) == 0


async def test_outputs_without_a_delivery_are_stored(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (parent,) = await collect(subscription, 1)
    assert await subscription.commit([Acknowledge((), (output(1, "billed", parent),))]) == [True]
    assert len(await events(log, types=("billed",))) == 1


async def test_a_step_that_is_to_begin_in_the_future_begins_at_the_end(log: EventLog) -> None:
    await log.register("other", [StepSpec("other.step", TYPE, "beginning")])
    await log.append([record(1)])
    subscription = await registered(log, start=int(time.time() * 1000) + 3_600_000)
    assert await log.pending([GROUP]) == 0
    await log.append([record(2)])
    assert numbers(held := await collect(subscription, 1)) == [2]
    assert await subscription.commit([done(*held)]) == [True]
    assert await log.pending([GROUP]) == 0


async def test_housekeeping_appends_all_that_is_due(log: EventLog) -> None:
    await log.append([record(n, delay=0.6) for n in range(1_200)])
    scheduled = (await log.stats()).scheduled  # fewer, where it took long to append them
    await asyncio.sleep(0.6)

    async def is_done() -> bool:
        await log.maintain()
        return (await log.stats()).scheduled != scheduled

    await eventually(is_done)
    assert (await log.stats()).scheduled == 0
    assert len(await events(log)) == 1_200


async def test_a_subscription_that_has_left_takes_nothing(log: EventLog) -> None:
    leaving = await registered(log, worker="leaving")
    waiting = asyncio.create_task(leaving.fetch(10, 60.0))
    await asyncio.sleep(0.05)
    await leaving.close()
    await log.append([record(n) for n in range(3)])
    assert await asyncio.wait_for(waiting, 20) == []
    assert await nothing(leaving)
    heir = log.subscribe(GROUP, "heir", 30)
    assert sorted(numbers(await collect(heir, 3))) == [0, 1, 2]


async def test_a_log_that_is_closed_takes_nothing(open_store: OpenLog) -> None:
    log, other = await open_store(), await open_store()
    await log.close()
    for use in (log.append([record(1)]), log.stats(), log.groups(), log.write_note("n", b"x"), log.maintain()):
        with pytest.raises(StoreError):
            await use
    assert await events(other) == []
