"""How commits gather: what joins which, and when none waits for company any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from ag06 import Knob
from ag06.errors import TooLarge
from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Settlement
from ag06.runtime.committer import Committer
from flows import SECONDS, until


class Store:
    """Accepts every commit, and notes of how many settlements each was."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.settled: list[Settlement] = []
        self.refusals = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        raise NotImplementedError

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        self.commits.append(len(settlements))
        await self.may_answer.wait()
        if self.refusals:
            self.refusals -= 1
            raise TooLarge("the store takes nothing of this size")
        self.settled += settlements
        return [True] * len(settlements)

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        raise NotImplementedError

    async def survived(self, deliveries: Sequence[Delivery], attempts: int = 1) -> None:
        raise NotImplementedError

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        raise NotImplementedError

    def renew(self) -> None:
        raise NotImplementedError

    async def close(self) -> None: ...


class Desk:
    """A committer that runs, what it holds, and how long a commit waits: for ever, as far as a test is concerned."""

    def __init__(self, held: int) -> None:
        self.store = Store()
        self.held = held
        self.wait = Knob("commit_wait", low=0.0, high=3600.0, default=3600.0)
        self.committer = Committer("s", self.store, self._settled, wait=self.wait, held=lambda: self.held)

    def _settled(self, settlements: Sequence[Settlement], accepted: Sequence[bool]) -> None:
        self.held -= len(settlements)

    async def put(self, count: int) -> None:
        """Settle so many, one after the other, each in a turn of its own."""
        for number in range(count):
            self.committer.put(Acknowledge((Delivery(token=number, recorded_ms=0, level=1, body=b"{}"),)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def desk(held: int) -> AsyncIterator[Desk]:
    found = Desk(held)
    running = asyncio.create_task(found.committer.run())
    await asyncio.sleep(0)  # it waits for a first settlement by now: what comes does so while it runs
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_commit_waits_for_all_that_are_held_and_then_no_longer() -> None:
    async with desk(held=5) as found:
        await found.put(4)
        assert found.store.commits == []
        await found.put(1)
        await asyncio.wait_for(found.committer.drained(), SECONDS)
        assert found.store.commits == [5]


async def test_one_that_is_held_alone_waits_for_nobody() -> None:
    async with desk(held=1) as found:
        await found.put(1)
        assert found.store.commits == [1]


async def test_a_full_commit_waits_for_nobody() -> None:
    async with desk(held=10_000) as found:
        await found.put(499)
        assert found.store.commits == []
        await found.put(1)
        await until(lambda: found.store.commits == [500])


async def test_the_end_waits_for_nobody_neither_now_nor_later() -> None:
    async with desk(held=10) as found:
        await found.put(2)
        await asyncio.wait_for(found.committer.drained(), SECONDS)
        assert found.store.commits == [2]
        await found.put(1)
        await asyncio.wait_for(found.committer.drained(), SECONDS)
        assert found.store.commits == [2, 1]


async def test_without_a_wait_whatever_gathers_during_a_commit_is_the_next() -> None:
    async with desk(held=10) as found:
        found.wait.set(0.0)
        found.store.may_answer.clear()
        await found.put(4)
        assert found.store.commits == [1]
        found.store.may_answer.set()
        await asyncio.wait_for(found.committer.drained(), SECONDS)
        assert found.store.commits == [1, 3]


async def test_what_gathered_during_a_long_commit_has_waited_already() -> None:
    async with desk(held=10) as found:
        found.wait.set(0.05)
        found.store.may_answer.clear()
        await found.put(1)
        await until(lambda: found.store.commits == [1])
        await found.put(2)
        await asyncio.sleep(0.06)
        found.store.may_answer.set()
        for _ in range(8):  # turns of the loop, in which no time is waited for
            await asyncio.sleep(0)
        assert found.store.commits == [1, 2]


async def test_what_the_store_refuses_becomes_a_dead_letter_and_then_waits_and_a_refused_wait_is_repeated() -> None:
    for refusals, expected in ((1, Bury), (2, Postpone), (5, Postpone)):
        async with desk(held=1) as found:
            found.store.refusals = refusals
            await found.put(1)
            await asyncio.wait_for(found.committer.drained(), SECONDS)
            (settled,) = found.store.settled
            assert type(settled) is expected
            assert found.store.commits == [1] * (refusals + 1)
