"""The time that a shutdown leaves: it ends by itself, and earlier when it is hurried."""

from __future__ import annotations

import asyncio

import pytest

from ag06.runtime.grace import Grace, cancel
from flows import SECONDS

HOUR = 3600.0


async def for_ever() -> None:
    await asyncio.sleep(HOUR)


async def test_a_wait_ends_with_its_tasks_or_with_the_time() -> None:
    grace = Grace(0.01)
    grace.begin()
    task = asyncio.create_task(for_ever())
    async with asyncio.timeout(SECONDS):
        assert await grace.wait([asyncio.create_task(asyncio.sleep(0))]) == []
        assert await grace.wait([]) == []
        assert await grace.wait([task]) == [task]
        assert await grace.wait([task], extra=0.05) == [task]
    await cancel([task, None])
    assert task.cancelled()


@pytest.mark.parametrize("early", [True, False])
async def test_a_time_that_is_hurried_twice_is_over(early: bool) -> None:
    grace = Grace(HOUR)
    task = asyncio.create_task(for_ever())
    if early:
        grace.hurry()
        grace.hurry()
    grace.begin()
    waiting = asyncio.create_task(grace.wait([task]))
    await asyncio.sleep(0)
    if not early:
        grace.hurry()
        grace.hurry()
    async with asyncio.timeout(SECONDS):
        assert await waiting == [task]
    await cancel([task])


async def test_work_that_outlasts_its_time_is_cancelled_and_an_error_is_raised() -> None:
    grace = Grace(0.0)
    grace.begin()
    ended: list[bool] = []

    async def work() -> None:
        try:
            await for_ever()
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError, match="did not end in time"):
        await asyncio.wait_for(grace.run(work(), extra=0.01), SECONDS)
    assert ended == [True]
    waiting = asyncio.create_task(grace.run(work(), extra=HOUR))
    while waiting._fut_waiter is None:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert ended == [True, True]


async def test_a_task_that_swallows_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ag06.runtime.grace._FAREWELL", 0.01)

    async def swallow() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await for_ever()

    task = asyncio.create_task(swallow())
    await asyncio.sleep(0)
    await cancel([task])
    assert task.cancelled()


async def test_work_that_begins_after_the_deadline_has_its_extra_time() -> None:
    grace = Grace(0.0)
    grace.begin()
    await asyncio.sleep(0.05)
    await grace.run(asyncio.sleep(0.01), extra=SECONDS)
    assert await grace.wait([asyncio.create_task(asyncio.sleep(0.01))], extra=SECONDS) == []
