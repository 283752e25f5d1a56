"""What every log promises when a worker dies, pauses, or leaves."""

from __future__ import annotations

import asyncio

import pytest

from ag06.persistence.log import EventLog, Postpone
from conftest import OpenLog
from records import GROUP, TYPE, collect, done, events, nothing, number, numbers, output, record, registered


async def test_a_lease_that_is_not_renewed_is_taken_over(log: EventLog) -> None:
    dead = await registered(log, worker="dead", visibility=0.3)
    await log.append([record(n) for n in range(3)])
    assert len(await collect(dead, 3)) == 3
    heir = log.subscribe(GROUP, "heir", 0.3)
    taken = await collect(heir, 3)
    assert sorted(numbers(taken)) == [0, 1, 2]
    assert {(d.suspect, d.deaths, d.attempts) for d in taken} == {(True, 0, 0)}


async def test_a_paused_worker_cannot_commit_what_was_taken_over(log: EventLog) -> None:
    paused = await registered(log, worker="paused", visibility=0.3)
    await log.append([record(1)])
    (mine,) = await collect(paused, 1)
    heir = log.subscribe(GROUP, "heir", 30)
    (theirs,) = await collect(heir, 1)
    assert await paused.commit([done(mine, outputs=[output(1, "billed", mine)])]) == [False]
    assert await events(log, types=("billed",)) == []
    assert await heir.commit([done(theirs, outputs=[output(1, "billed", theirs)])]) == [True]
    assert await paused.commit([done(mine)]) == [False]
    assert len(await events(log, types=("billed",))) == 1


async def test_a_worker_keeps_what_it_renews(log: EventLog) -> None:
    busy = await registered(log, worker="busy", visibility=0.6)
    await log.append([record(1)])
    (delivery,) = await collect(busy, 1)
    other = log.subscribe(GROUP, "other", 0.6)
    for _ in range(8):
        await asyncio.to_thread(busy.renew)
        assert await other.fetch(1, 0.15) == []
    assert await busy.commit([done(delivery)]) == [True]


async def test_renewing_does_not_bring_back_what_was_lost(log: EventLog) -> None:
    paused = await registered(log, worker="paused", visibility=0.3)
    await log.append([record(1)])
    (mine,) = await collect(paused, 1)
    heir = log.subscribe(GROUP, "heir", 30)
    (theirs,) = await collect(heir, 1)
    await asyncio.to_thread(paused.renew)
    assert await paused.commit([done(mine)]) == [False]
    assert await heir.commit([done(theirs)]) == [True]


async def test_a_death_counts_against_an_event_that_was_started(log: EventLog) -> None:
    subscription = await registered(log, worker="w0", visibility=30)
    await log.append([record(1), record(2)])
    started, waiting = await collect(subscription, 2)
    assert (number(started), number(waiting)) == (1, 2)
    for death in range(1, 4):
        await subscription.mark_started([started])
        assert await log.release_worker(f"w{death - 1}") == 2
        subscription = log.subscribe(GROUP, f"w{death}", 30)
        both = {number(d): d for d in await collect(subscription, 2)}
        started = both[1]
        assert (both[1].deaths, both[1].suspect) == (death, True)
        assert (both[2].deaths, both[2].suspect) == (0, True)


async def test_the_deliveries_of_a_dead_worker_are_handed_out_at_once(log: EventLog) -> None:
    dead = await registered(log, worker="dead", visibility=3600)
    await log.append([record(n) for n in range(5)])
    mine = await collect(dead, 5)
    heir = log.subscribe(GROUP, "heir", 3600)
    waiting = asyncio.create_task(collect(heir, 5))
    await asyncio.sleep(0.1)
    assert await log.release_worker("dead") == 5
    taken = await waiting
    assert all(delivery.suspect for delivery in taken)
    assert await dead.commit([done(mine[0])]) == [False]
    assert await log.release_worker("unknown") == 0


async def test_a_released_delivery_comes_back_unharmed(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    await subscription.commit([Postpone(delivery, 0, 1, 7)])
    (delivery,) = await collect(subscription, 1)
    await subscription.mark_started([delivery])
    await subscription.release([delivery])
    other = log.subscribe(GROUP, "other", 30)
    (again,) = await collect(other, 1)
    assert (again.attempts, again.first_failed_ms, again.deaths, again.suspect) == (1, 7, 0, False)
    assert await subscription.commit([done(delivery)]) == [False]


async def test_a_worker_that_leaves_gives_everything_back(log: EventLog) -> None:
    leaving = await registered(log, worker="leaving", visibility=3600)
    await log.append([record(n) for n in range(10)])
    await collect(leaving, 4)
    await leaving.close()
    heir = log.subscribe(GROUP, "heir", 3600)
    taken = await collect(heir, 10)
    assert sorted(numbers(taken)) == list(range(10))
    assert not any(delivery.suspect or delivery.deaths for delivery in taken)


async def test_a_lease_that_lapsed_is_told_apart_from_a_death(log: EventLog) -> None:
    paused = await registered(log, worker="paused", visibility=0.2)
    await log.append([record(1)])
    await collect(paused, 1)
    heir = log.subscribe(GROUP, "heir", 3600)
    (delivery,) = await collect(heir, 1)
    assert (delivery.suspect, delivery.lapsed) == (True, True)
    assert await heir.commit([Postpone(delivery, 0, 0, 0)]) == [True]  # not tried, but its worker had time to come back
    (delivery,) = await collect(heir, 1)
    assert (delivery.suspect, delivery.lapsed) == (True, False)
    assert await log.release_worker("heir") == 1
    (delivery,) = await collect(log.subscribe(GROUP, "next", 3600), 1)
    assert (delivery.suspect, delivery.lapsed) == (True, False)


@pytest.mark.parametrize("noted", [False, True])
async def test_a_worker_that_comes_back_takes_back_the_death_charged_for_it(log: EventLog, noted: bool) -> None:
    slow = await registered(log, worker="slow", visibility=0.2)
    await log.append([record(1), record(2)])
    (mine, _) = await collect(slow, 2)
    if noted:
        await slow.mark_started([mine])
    heir = log.subscribe(GROUP, "heir", 3600)
    (delivery, _) = sorted(await collect(heir, 2), key=number)
    assert (delivery.deaths, delivery.attempts) == (int(noted), 0)
    assert await slow.commit([done(mine)]) == [False]
    await slow.survived([mine])
    await heir.survived([delivery])  # it holds it still: nothing was charged
    assert await log.release_worker("heir") == 2
    (again, unharmed) = sorted(await collect(log.subscribe(GROUP, "next", 3600), 2), key=number)
    assert (again.deaths, again.attempts, again.suspect) == (int(noted) - 1, 1, True)
    assert (unharmed.deaths, unharmed.attempts) == (0, 0)


async def test_an_expired_lease_that_nobody_took_over_still_commits(log: EventLog) -> None:
    subscription = await registered(log, visibility=0.2)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    await asyncio.sleep(0.4)
    assert await subscription.commit([done(delivery)]) == [True]


async def test_a_worker_paused_past_its_lease_does_not_take_over_from_itself(log: EventLog) -> None:
    frozen = await registered(log, visibility=0.3)
    await log.append([record(1)])
    (delivery,) = await collect(frozen, 1)
    await frozen.mark_started([delivery])
    await asyncio.sleep(0.6)
    assert await nothing(frozen)
    heir = log.subscribe(GROUP, "heir", 30)
    assert await heir.fetch(1, 0.01) == []  # the fetch has begun the lease anew
    await log.release_worker("w1")
    (taken,) = await collect(heir, 1)
    assert taken.deaths == 1
    assert await frozen.commit([done(delivery)]) == [False]
    assert await heir.commit([done(taken)]) == [True]


async def test_a_retry_after_a_takeover_is_trusted_again(log: EventLog) -> None:
    dead = await registered(log, worker="dead")
    await log.append([record(1)])
    (delivery,) = await collect(dead, 1)
    await dead.mark_started([delivery])
    await log.release_worker("dead")
    heir = log.subscribe(GROUP, "heir", 30)
    (delivery,) = await collect(heir, 1)
    await heir.commit([Postpone(delivery, 0, 1, 7)])
    (again,) = await collect(heir, 1)
    assert (again.deaths, again.suspect, again.attempts) == (1, False, 1)


async def test_a_suspect_that_was_not_even_tried_stays_one(log: EventLog) -> None:
    dead = await registered(log, worker="dead")
    await log.append([record(1)])
    await collect(dead, 1)
    await log.release_worker("dead")
    heir = log.subscribe(GROUP, "heir", 30)
    for delay_ms in (0, 20, 0):
        (delivery,) = await collect(heir, 1)
        assert (delivery.deaths, delivery.suspect) == (0, True)
        await heir.mark_started([delivery])
        assert await heir.commit([Postpone(delivery, delay_ms, delivery.attempts, delivery.first_failed_ms)]) == [True]
    await log.release_worker("heir")
    (delivery,) = await collect(log.subscribe(GROUP, "last", 30), 1)
    assert (delivery.deaths, delivery.suspect) == (0, True)


@pytest.mark.parametrize("same_subject", [False, True])
async def test_a_takeover_waits_for_nobody(open_store: OpenLog, same_subject: bool) -> None:
    """A delivery that a dead worker holds blocks its subject and nothing else."""
    first, second = await open_store(), await open_store()
    dead = await registered(first, worker="dead", visibility=3600)
    await first.append([record(1, subject="s")])
    assert len(await collect(dead, 1)) == 1
    await first.append([record(2, subject="s" if same_subject else "t")])
    heir = second.subscribe(GROUP, "heir", 3600)
    if same_subject:
        assert await nothing(heir)
        await second.release_worker("dead")
        (one,) = await collect(heir, 1)
        assert number(one) == 1
        await heir.commit([done(one)])
    (two,) = await collect(heir, 1)
    assert (number(two), two.suspect) == (2, False)


async def test_positions_and_types_are_not_confused_between_steps(log: EventLog) -> None:
    one = await registered(log, group="shop.bill", worker="w")
    await log.register("shop", [StepSpec_beginning("shop.ship")])
    two = log.subscribe("shop.ship", "w", 30)
    await log.append([record(1)])
    (mine,) = await collect(one, 1)
    assert await two.commit([done(mine)]) == [False]
    (theirs,) = await collect(two, 1)
    assert await one.commit([done(mine)]) == [True]
    assert await two.commit([done(theirs)]) == [True]


def StepSpec_beginning(group: str) -> object:  # noqa: N802 - reads as what it makes
    from ag06.persistence.log import StepSpec

    return StepSpec(group, TYPE, "beginning")


async def test_a_worker_that_is_vouched_for_keeps_all_its_leases(log: EventLog) -> None:
    held_up = await registered(log, worker="held up", visibility=0.4)
    await log.append([record(1)])
    (delivery,) = await collect(held_up, 1)
    other = log.subscribe(GROUP, "other", 3600)
    for turn in range(8):
        assert await log.vouch("held up", 0.4, groups=[GROUP] if turn % 2 else None) == 0
        assert await other.fetch(1, 0.1) == []
    assert await held_up.commit([done(delivery)]) == [True]
    assert await log.vouch("unknown", 0.4, {}) == 0


async def test_what_a_held_up_worker_does_not_run_is_given_back_unharmed(log: EventLog) -> None:
    held_up = await registered(log, worker="held up", visibility=0.4)
    await log.append([record(n) for n in range(4)])
    running, *waiting = sorted(await collect(held_up, 4), key=number)
    await held_up.mark_started(waiting[:1])
    other = log.subscribe(GROUP, "other", 3600)
    assert await log.vouch("held up", 0.4, {GROUP: {running.name}}) == 3
    taken = await collect(other, 3)
    assert sorted(numbers(taken)) == [1, 2, 3]
    assert not any(delivery.suspect or delivery.deaths for delivery in taken)
    assert await held_up.commit([done(waiting[0])]) == [False]
    assert await held_up.commit([done(running)]) == [True]
    assert await log.vouch("held up", 0.4, {GROUP: set()}) == 0
