"""What every log promises about order: within a subject always, between subjects by priority and age."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import msgspec

from ag06.event import decode_event
from ag06.persistence.log import Bury, Delivery, EventLog, Postpone, Subscription, dispatch_key
from conftest import OpenLog
from records import GROUP, collect, done, failure, nothing, number, numbers, record, registered


async def test_events_of_a_subject_are_handed_out_one_at_a_time(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n, subject="s") for n in range(5)])
    for expected in range(5):
        (delivery,) = await collect(subscription, 1)
        assert number(delivery) == expected
        assert await nothing(subscription)
        assert await subscription.commit([done(delivery)]) == [True]
    assert await log.pending([GROUP]) == 0


async def test_subjects_do_not_wait_for_each_other(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n, subject=f"s{n % 3}") for n in range(9)] + [record(9), record(10)])
    assert sorted(numbers(await collect(subscription, 5))) == [0, 1, 2, 9, 10]
    assert await nothing(subscription)


async def test_a_later_event_of_a_subject_waits_whatever_its_priority(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1, subject="s", priority="low"), record(2, subject="s", priority="critical")])
    (first,) = await collect(subscription, 1)
    assert number(first) == 1
    assert await nothing(subscription)
    await subscription.commit([done(first)])
    (second,) = await collect(subscription, 1)
    assert number(second) == 2


async def test_a_subject_waits_for_a_retry(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1, subject="s"), record(2, subject="s")])
    (first,) = await collect(subscription, 1)
    await subscription.commit([Postpone(first, 300, 1, 5)])
    assert await nothing(subscription)
    (again,) = await collect(subscription, 1)
    assert (number(again), again.attempts) == (1, 1)
    await subscription.commit([done(again)])
    assert numbers(await collect(subscription, 1)) == [2]


async def test_a_subject_goes_on_behind_a_dead_letter(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1, subject="s"), record(2, subject="s")])
    (first,) = await collect(subscription, 1)
    await subscription.commit([Bury(first, failure())])
    assert numbers(await collect(subscription, 1)) == [2]


async def test_the_same_subject_of_another_type_is_another_line(log: EventLog) -> None:
    bill = await registered(log)
    ship = await registered(log, group="depot.ship", event_type="shipped")
    await log.append([record(1, subject="s"), record(2, "shipped", subject="s"), record(3, subject="s")])
    assert numbers(await collect(bill, 1)) == [1]
    assert numbers(await collect(ship, 1)) == [2]


async def test_a_later_step_does_not_wait_for_what_lies_before_its_start(log: EventLog) -> None:
    await registered(log)
    await log.append([record(1, subject="s")])
    later = await registered(log, group="shop.ship")
    await log.append([record(2, subject="s"), record(3, subject="s")])
    assert numbers(await collect(later, 1)) == [2]
    assert await nothing(later)


async def test_an_event_between_two_workers_keeps_its_subject_in_order(open_store: OpenLog) -> None:
    logs = [await open_store(), await open_store()]
    workers = [await registered(log, worker=f"w{n}", visibility=30) for n, log in enumerate(logs)]
    rng = random.Random(7)
    total = 240
    for start in range(0, total, 20):
        await logs[0].append(
            [record(n, subject=f"s{n % 7}", priority=rng.randrange(4)) for n in range(start, start + 20)]
        )
    committed: dict[int, list[int]] = defaultdict(list)
    running: set[int] = set()

    async def work(subscription: Subscription) -> None:
        while sum(map(len, committed.values())) < total:
            for delivery in await subscription.fetch(5, 0.05):
                subject = number(delivery) % 7
                assert subject not in running
                running.add(subject)
                await asyncio.sleep(rng.uniform(0, 0.002))
                running.discard(subject)
                committed[subject].append(number(delivery))
                assert await subscription.commit([done(delivery)]) == [True]

    await asyncio.gather(*(work(worker) for worker in workers))
    assert {subject: sorted(seen) for subject, seen in committed.items()} == committed


async def test_a_batch_holds_one_event_of_a_subject(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n, subject=f"s{n % 4}") for n in range(40)])
    seen: list[int] = []
    while len(seen) < 40:
        batch = await subscription.fetch(40, 1.0)
        assert len({number(d) % 4 for d in batch}) == len(batch)
        seen += numbers(batch)
        assert await subscription.commit([done(*batch)]) == [True]
    assert sorted(seen) == list(range(40))


async def test_a_higher_priority_is_handed_out_first(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(f"{level}-{n}", priority=level) for n in range(3) for level in range(4)])
    assert [number(d)[0] for d in await collect(subscription, 12)] == list("333222111000")


async def test_waiting_raises_an_event_by_a_level_every_ten_seconds() -> None:
    low = Delivery(token=None, recorded_ms=0, level=0, body=b"")
    critical = Delivery(token=None, recorded_ms=29_999, level=3, body=b"")
    assert critical.key < low.key
    assert msgspec.structs.replace(critical, recorded_ms=30_001).key > low.key
    assert dispatch_key(20_000, 2) == dispatch_key(10_000, 1) == dispatch_key(0, 0)


async def test_a_flood_of_urgent_events_does_not_starve_a_low_one(log: EventLog) -> None:
    """Handed out by age: a low event is overtaken only by what came within 30 s of it."""
    subscription = await registered(log)
    await log.append([record("low", priority="low")])
    await log.append([record(n, priority="critical") for n in range(300)])
    seen: list[object] = []
    while "low" not in seen:
        deliveries = await collect(subscription, 1)
        seen += numbers(deliveries)
        assert all(await subscription.commit([done(d) for d in deliveries]))
    assert len(seen) <= 301


async def test_a_long_line_of_one_subject_is_worked_off(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n, subject="s") for n in range(150)])
    seen: list[int] = []
    while len(seen) < 150:
        for delivery in await collect(subscription, 1):
            seen.append(number(delivery))
            assert await subscription.commit([done(delivery)]) == [True]
    assert seen == list(range(150))


async def _buried(log: EventLog, subscription: Subscription, *contents: str) -> list[tuple[str, str]]:
    """Append events of the subject `s`, bury each; return what to retry them by."""
    found = []
    for content in contents:
        await log.append([record(content, subject="s")])
        (delivery,) = await collect(subscription, 1)
        assert number(delivery) == content
        assert await subscription.commit([Bury(delivery, failure())]) == [True]
        found.append((GROUP, decode_event(delivery.body, delivery.recorded_ms).id))
    return found


async def _one_at_a_time(subscription: Subscription, count: int) -> list[object]:
    """Settle so many deliveries, each of them the only one to be had; return them in order."""
    seen: list[object] = []
    for _ in range(count):
        (delivery,) = await collect(subscription, 1)
        assert await nothing(subscription)
        seen.append(number(delivery))
        assert await subscription.commit([done(delivery)]) == [True]
    assert await nothing(subscription)
    return seen


async def test_a_retried_dead_letter_runs_beside_no_event_of_its_subject(log: EventLog) -> None:
    subscription = await registered(log)
    letters = await _buried(log, subscription, "E1")
    await log.append([record("E2", subject="s")])
    (second,) = await collect(subscription, 1)
    assert await log.retry_dead_letters(letters) == 1
    assert await nothing(subscription)
    await log.append([record("E3", subject="s"), record("E4", subject="s", priority="critical")])
    assert await nothing(subscription)
    assert await subscription.commit([done(second)]) == [True]
    assert await _one_at_a_time(subscription, 3) == ["E1", "E3", "E4"]
    assert await log.pending([GROUP]) == 0


async def test_a_retried_dead_letter_goes_behind_what_is_unread_of_its_subject(log: EventLog) -> None:
    subscription = await registered(log)
    letters = await _buried(log, subscription, "E1")
    await log.append([record("E2", subject="s"), record("E3", subject="s", priority="low")])
    assert await log.retry_dead_letters(letters) == 1
    await log.append([record("E4", subject="s", priority="critical")])
    assert await _one_at_a_time(subscription, 4) == ["E2", "E3", "E1", "E4"]


async def test_a_dead_letter_retried_alone_goes_before_what_comes_later(log: EventLog) -> None:
    subscription = await registered(log)
    letters = await _buried(log, subscription, "E1")
    assert await log.retry_dead_letters(letters) == 1
    await log.append([record("E2", subject="s", priority="critical")])
    assert await _one_at_a_time(subscription, 2) == ["E1", "E2"]


async def test_a_dead_letter_that_fails_again_is_retried_in_order_again(log: EventLog) -> None:
    subscription = await registered(log)
    letters = await _buried(log, subscription, "E1")
    await log.append([record("E2", subject="s")])
    for _ in range(2):
        assert await log.retry_dead_letters(letters) == 1
        if await log.pending([GROUP]) == 2:
            await subscription.commit([done(*await collect(subscription, 1))])
        (first,) = await collect(subscription, 1)
        assert number(first) == "E1"
        await subscription.commit([Postpone(first, 0, 1, 5)])
        (first,) = await collect(subscription, 1)
        assert (number(first), first.attempts) == ("E1", 1)
        assert await subscription.commit([Bury(first, failure())]) == [True]
    await log.append([record("E3", subject="s")])
    assert await log.retry_dead_letters(letters) == 1
    assert await _one_at_a_time(subscription, 2) == ["E3", "E1"]


async def test_dead_letters_of_a_subject_are_retried_one_at_a_time(log: EventLog) -> None:
    subscription = await registered(log)
    letters = await _buried(log, subscription, "E1", "E2", "E3")
    await log.append([record("E4", subject="s")])
    (fourth,) = await collect(subscription, 1)
    assert await log.retry_dead_letters(letters[1:]) == 2
    assert await log.retry_dead_letters(letters[:1]) == 1
    await log.append([record("E5", subject="s")])
    assert await nothing(subscription)
    assert await subscription.commit([done(fourth)]) == [True]
    assert await _one_at_a_time(subscription, 4) == ["E2", "E3", "E1", "E5"]


async def test_dead_letters_retried_at_different_times_keep_their_places(log: EventLog) -> None:
    subscription = await registered(log)
    letters = await _buried(log, subscription, "E1", "E2")
    await log.append([record("E3", subject="s")])
    (third,) = await collect(subscription, 1)
    assert await log.retry_dead_letters(letters[:1]) == 1
    await log.append([record("E4", subject="s")])
    assert await log.retry_dead_letters(letters[1:]) == 1
    await log.append([record("E5", subject="s")])
    assert await nothing(subscription)
    assert await subscription.commit([done(third)]) == [True]
    assert await _one_at_a_time(subscription, 4) == ["E1", "E4", "E2", "E5"]
