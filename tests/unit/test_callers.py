"""As many calls at once as a limit says, while it moves; who waits is let in as it came."""

from __future__ import annotations

import asyncio
import random

import pytest

from ag06.runtime.callers import Callers
from flows import SECONDS


async def test_no_more_are_inside_than_the_limit_says_and_they_enter_as_they_came() -> None:
    callers = Callers(2)
    order: list[int] = []
    gates = [asyncio.Event() for _ in range(6)]

    async def call(number: int) -> None:
        async with callers:
            order.append(number)
            await gates[number].wait()

    tasks = [asyncio.create_task(call(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert order == [0, 1]
    callers.resize(4)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3]
    callers.resize(1)
    for number in (2, 0, 3):
        gates[number].set()
        await tasks[number]
        assert order == [0, 1, 2, 3]
    gates[1].set()
    await tasks[1]
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3, 4]
    for gate in gates:
        gate.set()
    await asyncio.wait_for(asyncio.gather(*tasks), SECONDS)
    assert order == list(range(6))


async def test_one_that_is_cancelled_as_it_is_let_in_leaves_its_place_to_the_next() -> None:
    callers = Callers(1)
    await callers.__aenter__()
    first, second = (asyncio.create_task(callers.__aenter__()) for _ in range(2))
    await asyncio.sleep(0)
    await callers.__aexit__()
    first.cancel()
    await asyncio.wait_for(second, SECONDS)
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_the_limit_does_and_whoever_is_cancelled_all_others_get_in(seed: int) -> None:
    rng = random.Random(seed)
    callers = Callers(3)
    inside = done = 0

    async def call() -> None:
        nonlocal inside, done
        async with callers:
            inside += 1
            try:
                assert inside <= most
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                done += 1
            finally:
                inside -= 1

    most = 10
    tasks = [asyncio.create_task(call()) for _ in range(300)]
    cancelled = rng.sample(tasks, 40)
    while not all(task.done() for task in tasks):
        callers.resize(rng.randint(1, most))
        if cancelled and rng.random() < 0.5:
            cancelled.pop().cancel()
        await asyncio.sleep(0)
    assert done == sum(not task.cancelled() for task in tasks)
    assert done < 300
    callers.resize(1)
    async with asyncio.timeout(SECONDS), callers:
        pass
