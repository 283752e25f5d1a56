from __future__ import annotations

import asyncio

import pytest

from ag06.persistence.log import Delivery
from ag06.runtime.intake import Intake, Prefetch


def delivery(number: int, recorded_ms: int = 0, level: int = 1) -> Delivery:
    return Delivery(token=number, recorded_ms=recorded_ms, level=level, body=b"")


async def test_deliveries_leave_by_priority_and_age_and_equals_as_they_came() -> None:
    intake = Intake()
    intake.put([delivery(1), delivery(2, level=0), delivery(3, level=3), delivery(4), delivery(5, 15_000, level=2)])
    found = [await intake.get() for _ in range(5)]
    assert [one.token for one in found if one is not None] == [3, 1, 4, 5, 2]
    assert len(intake) == 0


async def test_whoever_waits_first_is_served_first() -> None:
    intake = Intake()
    waiting = [asyncio.create_task(intake.get()) for _ in range(3)]
    await asyncio.sleep(0)
    intake.put([delivery(n) for n in range(3)])
    found = await asyncio.gather(*waiting)
    assert [one.token for one in found if one is not None] == [0, 1, 2]


async def test_a_waiter_that_is_cancelled_as_it_is_woken_passes_the_wake_up_on() -> None:
    intake = Intake()
    first, second = asyncio.create_task(intake.get()), asyncio.create_task(intake.get())
    await asyncio.sleep(0)
    intake.put([delivery(7)])
    first.cancel()
    found = await asyncio.wait_for(second, 5)
    assert found is not None
    assert found.token == 7
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_closing_returns_what_waited_and_ends_every_wait() -> None:
    intake = Intake()
    waiting = [asyncio.create_task(intake.get()) for _ in range(2)]
    await asyncio.sleep(0)
    assert intake.close() == []
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [None, None]
    full = Intake()
    full.put([delivery(1), delivery(2)])
    assert sorted(one.token for one in full.close()) == [1, 2]
    assert await full.get() is None
    await full.wait()


async def test_a_delivery_taken_by_another_sends_the_waiter_back_to_wait() -> None:
    intake = Intake()
    waiting = asyncio.create_task(intake.get())
    await asyncio.sleep(0)
    intake.put([delivery(1)])
    assert intake.take() is not None
    await asyncio.sleep(0)
    assert not waiting.done()
    intake.put([delivery(2)])
    found = await asyncio.wait_for(waiting, 5)
    assert found is not None
    assert found.token == 2


def test_a_worker_holds_what_runs_at_once_and_a_tenth_of_a_second_of_work() -> None:
    prefetch = Prefetch(10, 1000)
    assert prefetch.target == 10
    for tick in range(200):
        prefetch.settled(50, tick * 0.025)  # 2000 a second
    assert 200 <= prefetch.target <= 215
    for tick in range(200, 400):
        prefetch.settled(1, tick * 1.0)
    assert prefetch.target == 10


def test_a_worker_never_holds_more_than_its_ceiling_or_less_than_runs_at_once() -> None:
    fast = Prefetch(10, 1000)
    for tick in range(100):
        fast.settled(5_000, tick * 0.02)
    assert fast.target == 1000
    fast.floor = 5_000
    assert fast.target == 5_000
    assert Prefetch(5_000, 1000).target == 5_000


def test_what_a_worker_holds_follows_its_seconds_of_work() -> None:
    prefetch = Prefetch(10, 1000)
    for tick in range(200):
        prefetch.settled(50, tick * 0.025)  # 2000 a second
    prefetch.seconds = 0.01
    assert 25 <= prefetch.target <= 35
    prefetch.seconds = 2.0
    assert prefetch.target == 1000


async def test_whoever_waits_is_told_to_look_again_and_loses_nothing() -> None:
    intake = Intake()
    looking = [asyncio.create_task(intake.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    intake.wake_all()
    await asyncio.wait_for(asyncio.gather(*looking), 5)
    getting = asyncio.create_task(intake.get())
    await asyncio.sleep(0)
    intake.wake_all()
    await asyncio.sleep(0)
    assert not getting.done()
    intake.put([delivery(1)])
    assert (await asyncio.wait_for(getting, 5)) is not None
