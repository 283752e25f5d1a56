from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ag06.persistence.log import EventLog, Settlement
from ag06.runtime.committer import Committer
from ag06.runtime.knobs import commit_wait
from records import GROUP, collect, done, numbers, record, registered


async def test_what_a_worker_still_holds_of_a_batch_that_was_partly_taken_over_is_given_back(log: EventLog) -> None:
    paused = await registered(log, worker="paused")
    other = await registered(log, worker="other")
    await log.append([record(1)])
    (first,) = await collect(paused, 1)
    assert await log.release_worker("paused") == 1
    assert await other.commit([done(*await collect(other, 1))]) == [True]
    await log.append([record(2)])
    (second,) = await collect(paused, 1)

    told: asyncio.Queue[bool] = asyncio.Queue()

    def settled(settlements: Sequence[Settlement], accepted: Sequence[bool]) -> None:
        for kept in accepted:
            told.put_nowait(kept)

    committer = Committer(GROUP, paused, settled, wait=commit_wait(), held=lambda: 2)
    running = asyncio.create_task(committer.run())
    try:
        committer.put(done(first, second))
        assert not await asyncio.wait_for(told.get(), 10)
    finally:
        running.cancel()
        await asyncio.wait([running])
    # Its lease lasts for 30 s, and a worker that lives renews it: nobody would ever see it again.
    assert numbers(await collect(other, 1)) == [2]
