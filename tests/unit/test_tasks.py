"""What is begun is done whole, whoever is cancelled meanwhile; and what is timed is the work alone."""

from __future__ import annotations

import asyncio
import time

import pytest

from ag06.ml.trial import _Timed
from ag06.tasks import completed, end


async def test_work_goes_on_to_its_end_though_its_waiter_is_cancelled_twice() -> None:
    go, done = asyncio.Event(), []

    async def work() -> int:
        await go.wait()
        done.append(1)
        return 1

    waiter = asyncio.create_task(completed(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        waiter.cancel()
    await asyncio.sleep(0)
    assert not waiter.done()
    go.set()
    await asyncio.wait([waiter])
    assert waiter.cancelled()
    assert done == [1]
    assert await completed(work()) == 1


async def test_an_error_of_the_work_is_the_waiters() -> None:
    async def work() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await completed(work())


async def test_a_task_that_is_ended_has_ended_though_it_takes_its_time_and_its_waiter_is_cancelled() -> None:
    go = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await go.wait()

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    waiter = asyncio.create_task(end(task))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.sleep(0)
    assert not waiter.done()
    go.set()
    await asyncio.wait([waiter])
    assert waiter.cancelled()
    assert task.cancelled()


async def test_the_time_of_a_look_is_its_own_and_not_that_of_what_ran_meanwhile() -> None:
    def burn(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    async def other() -> None:
        burn(0.2)

    async def look() -> str:
        burn(0.01)
        await asyncio.create_task(other())
        burn(0.01)
        return "seen"

    work = _Timed(look())
    assert await work == "seen"
    assert 0.02 <= work.seconds < 0.2


async def test_a_look_that_is_cancelled_is_cancelled_and_one_that_fails_fails() -> None:
    ended = []

    async def look() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("wrong")

    async def timed() -> None:
        await _Timed(look())

    task = asyncio.create_task(timed())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), ended) == (True, [1])
    with pytest.raises(ValueError, match="wrong"):
        await _Timed(fail())
