"""What every log promises of a delivery that has come back to the worker that lost it: only its last lease counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ag06.persistence.log import Acknowledge, Bury, Delivery, EventLog, Postpone, Settlement, Subscription
from conftest import OpenLog
from records import GROUP, collect, done, events, failure, nothing, number, output, record, registered

Return = Callable[[EventLog, Subscription, Delivery], Awaitable[object]]


async def _taken_over_and_postponed(log: EventLog, worker: Subscription, delivery: Delivery) -> None:
    await log.release_worker("w1")
    other = log.subscribe(GROUP, "other", 30)
    (taken,) = await collect(other, 1)
    await other.commit([Postpone(taken, 0, 1, 1)])


async def _released_and_left_by_another(log: EventLog, worker: Subscription, delivery: Delivery) -> None:
    await worker.release([delivery])
    other = log.subscribe(GROUP, "other", 30)
    await collect(other, 1)
    await other.close()


async def _released(log: EventLog, worker: Subscription, delivery: Delivery) -> None:
    await worker.release([delivery])


async def _postponed(log: EventLog, worker: Subscription, delivery: Delivery) -> None:
    assert await worker.commit([Postpone(delivery, 0, 1, 1)]) == [True]


async def _retried_as_a_dead_letter(log: EventLog, worker: Subscription, delivery: Delivery) -> None:
    assert await worker.commit([Bury(delivery, failure())]) == [True]
    (letter,) = await log.dead_letters()
    assert await log.retry_dead_letters([(GROUP, letter.event_id)]) == 1


async def _declared_dead(log: EventLog, worker: Subscription, delivery: Delivery) -> None:
    assert await log.release_worker("w1") == 1


RETURNS = [
    _taken_over_and_postponed,
    _released_and_left_by_another,
    _released,
    _postponed,
    _retried_as_a_dead_letter,
    _declared_dead,
]

Old = Callable[[Delivery, Delivery], Settlement]
SETTLEMENTS: dict[str, Old] = {
    "acknowledge": lambda old, held: done(old),
    "with outputs": lambda old, held: done(old, outputs=[output(1, "billed", old)]),
    "in a batch": lambda old, held: Acknowledge((held, old)),
    "postpone": lambda old, held: Postpone(old, 0, 5, 5),
    "bury": lambda old, held: Bury(old, failure()),
}


@pytest.fixture(params=RETURNS, ids=lambda way: way.__name__.strip("_"))
def comes_back(request: pytest.FixtureRequest) -> Return:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[None, "s"], ids=["no subject", "subject"])
def subject(request: pytest.FixtureRequest) -> str | None:
    return request.param  # type: ignore[no-any-return]


async def test_an_old_lease_settles_nothing(log: EventLog, comes_back: Return, subject: str | None) -> None:
    worker = await registered(log)
    await log.append([record(1, subject=subject)])
    (old,) = await collect(worker, 1)
    await comes_back(log, worker, old)
    (new,) = await collect(worker, 1)
    await log.append([record(2, subject=subject), record(3)])
    held = {number(one): one for one in await collect(worker, 1 if subject else 2)}
    for name, settle in SETTLEMENTS.items():
        assert await worker.commit([settle(old, held[3])]) == [False], name
    assert await nothing(worker)
    assert await events(log, types=("billed",)) == []
    assert await log.dead_letters() == []
    assert await worker.commit([done(new), done(held[3])]) == [True, True]
    assert await worker.commit([done(old), done(new)]) == [False, False]
    if subject:
        held.update({number(one): one for one in await collect(worker, 1)})
    assert await worker.commit([done(held[2])]) == [True]
    assert await log.pending([GROUP]) == 0


async def test_an_old_lease_gives_nothing_back_and_starts_nothing(log: EventLog, comes_back: Return) -> None:
    worker = await registered(log)
    await log.append([record(1)])
    (old,) = await collect(worker, 1)
    await comes_back(log, worker, old)
    (new,) = await collect(worker, 1)
    await worker.mark_started([old])
    await worker.release([old])
    other = log.subscribe(GROUP, "heir", 30)
    assert await nothing(other)
    await log.release_worker("w1")
    (taken,) = await collect(other, 1)
    assert (number(taken), taken.deaths) == (1, new.deaths)
    assert await worker.commit([done(new)]) == [False]
    assert await other.commit([done(taken)]) == [True]


async def test_a_settlement_of_old_and_new_lease_together_is_refused_for_the_old(log: EventLog) -> None:
    worker = await registered(log)
    await log.append([record(1)])
    (old,) = await collect(worker, 1)
    await worker.release([old])
    (new,) = await collect(worker, 1)
    assert await worker.commit([done(old), done(new), done(new)]) == [False, True, False]
    assert await log.pending([GROUP]) == 0


async def test_an_earlier_process_of_the_same_name_keeps_no_lease_of_the_later_one_alive(open_store: OpenLog) -> None:
    first, second = await open_store(), await open_store()
    earlier = await registered(first, visibility=0.4)
    await first.append([record(1)])
    (old,) = await collect(earlier, 1)
    await second.release_worker("w1")
    later = second.subscribe(GROUP, "w1", 0.4)
    (new,) = await collect(later, 1)  # and it dies
    heir = second.subscribe(GROUP, "heir", 30)
    taken: list[Delivery] = []
    for _ in range(100):
        await asyncio.to_thread(earlier.renew)
        if taken := await heir.fetch(1, 0.05):
            break
    assert [number(one) for one in taken] == [1]
    assert await earlier.commit([done(old)]) == [False]
    assert await later.commit([done(new)]) == [False]
    assert await heir.commit([done(*taken)]) == [True]


async def test_what_a_process_of_the_same_name_left_behind_gets_a_lease_of_its_own(open_store: OpenLog) -> None:
    """The later process is not told of the death of the earlier one, which is only paused."""
    first, second = await open_store(), await open_store()
    earlier = await registered(first, visibility=0.3)
    await first.append([record(1)])
    (old,) = await collect(earlier, 1)
    later = second.subscribe(GROUP, "w1", 0.3)
    (new,) = await collect(later, 1)
    assert await earlier.commit([done(old)]) == [False]
    assert await later.commit([done(new)]) == [True]
