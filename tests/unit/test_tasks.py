"""What is begun is done whole, whoever is cancelled meanwhile; and what is timed is the work alone."""

from __future__ import annotations

import asyncio
import time

import pytest

from ag06.ml.trial import _Timed
from ag06.tasks import completed, end, finished, start_task


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


async def test_a_task_of_the_project_starts_lazily_whatever_the_task_factory_does() -> None:
    began: list[str] = []

    def refuse(loop: asyncio.AbstractEventLoop, work: object, **_: object) -> asyncio.Task[None]:
        raise AssertionError("the factory was asked")

    async def work() -> None:
        began.append("work")

    loop = asyncio.get_running_loop()
    former = loop.get_task_factory()
    loop.set_task_factory(refuse)  # type: ignore[arg-type]
    try:
        task = start_task(work(), "its name")
    finally:
        loop.set_task_factory(former)
    assert not began
    assert task.get_name() == "its name"
    await task
    assert began


async def test_work_whose_own_task_is_cancelled_is_begun_again_once() -> None:
    begun: list[asyncio.Task[None] | None] = []

    async def work() -> str:
        begun.append(asyncio.current_task())
        if len(begun) == 1:
            await asyncio.sleep(3600)
        return "done"

    waiter = asyncio.create_task(finished(work))
    while not begun:
        await asyncio.sleep(0)
    assert begun[0] is not None
    begun[0].cancel()
    assert await waiter == "done"
    assert len(begun) == 2


@pytest.mark.parametrize("hurried", [True, False])
async def test_a_cancelled_caller_hurries_the_work_or_is_cancelled_when_it_is_over(hurried: bool) -> None:
    go = asyncio.Event()
    done: list[int] = []

    async def work() -> int:
        await go.wait()
        done.append(1)
        return 1

    waiter = asyncio.create_task(finished(work, go.set if hurried else None))
    for _ in range(3):
        await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait([waiter])
    assert done == [1]
    assert waiter.cancelled() is not hurried
