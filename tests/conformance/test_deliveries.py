"""What every log promises about handing out and settling."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from ag06.errors import ConfigurationError
from ag06.persistence.log import Acknowledge, Appended, Bury, EventLog, Postpone, StepSpec
from conftest import OpenLog
from records import (
    GROUP,
    TYPE,
    collect,
    done,
    events,
    eventually,
    failure,
    nothing,
    number,
    numbers,
    output,
    record,
    registered,
)


async def test_every_event_is_delivered_to_every_step_of_its_type(log: EventLog) -> None:
    one = await registered(log, group="shop.bill")
    await log.register("shop", [StepSpec("shop.ship", TYPE, "beginning")])
    two = log.subscribe("shop.ship", "w1", 30)
    await log.append([record(n) for n in range(5)] + [record(9, "other")])
    assert numbers(await collect(one, 5)) == list(range(5))
    assert numbers(await collect(two, 5)) == list(range(5))
    assert await nothing(one)


async def test_workers_of_a_step_share_its_events(open_store: OpenLog) -> None:
    first, second = await open_store(), await open_store()
    one = await registered(first, worker="w1")
    two = await registered(second, worker="w2")
    await first.append([record(n) for n in range(200)])
    seen: list[int] = []

    async def work(subscription: object) -> None:
        while len(seen) < 200:
            deliveries = await subscription.fetch(7, 0.05)  # type: ignore[attr-defined]
            seen.extend(numbers(deliveries))
            await subscription.commit([done(delivery) for delivery in deliveries])  # type: ignore[attr-defined]

    await asyncio.gather(work(one), work(two))
    assert sorted(seen) == list(range(200))
    assert await first.pending([GROUP]) == 0


async def test_a_fetch_is_bounded_by_its_limit(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n, priority=n % 4) for n in range(40)])
    assert 1 <= len(await subscription.fetch(3, 1.0)) <= 3


async def test_a_waiting_fetch_wakes_for_an_event(log: EventLog) -> None:
    subscription = await registered(log)
    waiting = asyncio.create_task(subscription.fetch(10, 20.0))
    await asyncio.sleep(0.1)
    await log.append([record(1)])
    assert numbers(await asyncio.wait_for(waiting, 5)) == [1]


async def test_a_waiting_fetch_wakes_for_an_event_of_another_log(open_store: OpenLog) -> None:
    mine, theirs = await open_store(), await open_store()
    subscription = await registered(mine)
    waiting = asyncio.create_task(subscription.fetch(10, 20.0))
    await asyncio.sleep(0.1)
    await theirs.append([record(1)])
    assert numbers(await asyncio.wait_for(waiting, 5)) == [1]


async def test_a_fetch_without_events_ends(log: EventLog) -> None:
    subscription = await registered(log)
    assert await asyncio.wait_for(subscription.fetch(10, 0.05), 5) == []


async def test_a_cancelled_fetch_loses_nothing(log: EventLog) -> None:
    subscription = await registered(log)
    for n in range(20):
        waiting = asyncio.create_task(subscription.fetch(10, 5.0))
        await asyncio.sleep(0.002 * (n % 5))
        appending = asyncio.create_task(log.append([record(n)]))
        await asyncio.sleep(0.0005 * (n % 4))
        waiting.cancel()
        got = await asyncio.gather(waiting, return_exceptions=True)
        await appending
        if isinstance(got[0], list):
            await subscription.release(got[0])
    await subscription.close()
    fresh = log.subscribe(GROUP, "w2", 30)
    assert sorted(numbers(await collect(fresh, 20))) == list(range(20))


async def test_an_acknowledged_event_does_not_come_back(log: EventLog) -> None:
    subscription = await registered(log, visibility=0.3)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    assert await subscription.commit([done(delivery)]) == [True]
    await asyncio.sleep(0.5)
    assert await nothing(subscription)
    assert await log.pending([GROUP]) == 0


async def test_outputs_enter_the_log_with_the_acknowledgement(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    outputs = [output(n, "billed", delivery, subject="s") for n in (10, 11)]
    assert await subscription.commit([done(delivery, outputs=outputs)]) == [True]
    found = await events(log, types=("billed",))
    assert [(event.data["number"], event.subject) for event in found] == [(10, "s"), (11, "s")]
    assert {event.causation_id for event in found} == {(await events(log))[0].id}


async def test_a_second_commit_of_a_delivery_does_nothing(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    settlement = done(delivery, outputs=[output(2, "billed", delivery)])
    assert await subscription.commit([settlement]) == [True]
    assert await subscription.commit([settlement]) == [False]
    assert len(await events(log, types=("billed",))) == 1


async def test_one_lost_delivery_does_not_spoil_the_others_of_a_commit(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    first, second, third = await collect(subscription, 3)
    await subscription.commit([done(second)])
    kept = await subscription.commit(
        [done(d, outputs=[output(number(d), "billed", d)]) for d in (first, second, third)]
    )
    assert kept == [True, False, True]
    assert [event.data["number"] for event in await events(log, types=("billed",))] == [0, 2]


async def test_an_acknowledgement_of_many_is_all_or_nothing(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    deliveries = await collect(subscription, 3)
    await subscription.commit([done(deliveries[1])])
    together = Acknowledge(tuple(deliveries), (output(1, "billed", deliveries[0]),))
    assert await subscription.commit([together]) == [False]
    assert await events(log, types=("billed",)) == []
    assert await log.pending([GROUP]) == 2
    assert await subscription.commit([done(deliveries[0], deliveries[2])]) == [True]
    assert await log.pending([GROUP]) == 0


@pytest.mark.parametrize("attempts", [2, 0], ids=["an attempt failed", "only its batch failed"])
async def test_a_postponed_delivery_comes_back_with_its_attempts(log: EventLog, attempts: int) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    assert await subscription.commit([Postpone(delivery, 300, attempts, 12345)]) == [True]
    assert await nothing(subscription)
    (again,) = await collect(subscription, 1)
    assert (number(again), again.attempts, again.first_failed_ms, again.suspect) == (1, attempts, 12345, False)
    assert await subscription.commit([done(delivery)]) in ([False], [True])
    await subscription.commit([done(again)])
    assert await log.pending([GROUP]) == 0


async def test_a_buried_delivery_is_a_dead_letter_with_its_story(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    assert await subscription.commit([Bury(delivery, failure("rejected", "no such order"))]) == [True]
    (letter,) = await log.dead_letters()
    assert (letter.group, letter.body, letter.recorded_ms) == (GROUP, delivery.body, delivery.recorded_ms)
    assert letter.failure == failure("rejected", "no such order")
    assert await log.pending([GROUP]) == 0
    assert (await log.stats()).dead_letters == 1
    assert await log.dead_letters("shop.ship") == []


async def test_a_retried_dead_letter_goes_to_its_step_alone(log: EventLog) -> None:
    one = await registered(log)
    await log.register("shop", [StepSpec("shop.ship", TYPE, "beginning")])
    two = log.subscribe("shop.ship", "w1", 30)
    await log.append([record(1), record(2)])
    (delivery,) = await one.fetch(1, 1.0)
    await one.commit([Bury(delivery, failure())])
    (letter,) = await log.dead_letters()
    assert await log.retry_dead_letters([(GROUP, letter.event_id), (GROUP, "unknown")]) == 1
    again = await collect(one, 2)
    assert sorted(numbers(again)) == [1, 2]
    assert {d.attempts for d in again} == {0}
    assert await one.commit([done(d) for d in again]) == [True, True]
    assert await log.dead_letters() == []
    assert numbers(await collect(two, 2)) == [1, 2]
    assert await nothing(two)
    assert await log.pending([GROUP]) == 0


async def test_a_discarded_dead_letter_is_gone(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    for delivery in await collect(subscription, 3):
        await subscription.commit([Bury(delivery, failure())])
    letters = await log.dead_letters(limit=2)
    assert len(letters) == 2
    assert await log.discard_dead_letters([(letters[0].group, letters[0].event_id), (GROUP, "unknown")]) == 1
    assert len(await log.dead_letters()) == 2
    assert await log.retry_dead_letters([(letters[0].group, letters[0].event_id)]) == 0


async def test_dead_letters_are_paged_through_in_order_while_some_are_taken_away(log: EventLog) -> None:
    """Many were buried in one moment, some of them by another step: a place behind a letter that is gone is no gap."""
    subscription = await registered(log)
    await log.register("shop", [StepSpec("shop.ship", TYPE, "beginning")])
    other = log.subscribe("shop.ship", "w1", 30)
    await log.append([record(n) for n in range(450)])
    for end, group in ((subscription, GROUP), (other, "shop.ship")):
        deliveries = await collect(end, 450)
        assert await end.commit([Bury(delivery, failure()) for delivery in deliveries[:350]]) == [True] * 350, group
    whole = await log.dead_letters(limit=10_000)
    assert len({letter.place for letter in whole}) == 700
    paged: list[tuple[str, str]] = []
    after = ""
    while page := await log.dead_letters(GROUP, 40, after):
        paged += [(letter.group, letter.event_id) for letter in page]
        after = page[-1].place
        await log.discard_dead_letters([(letter.group, letter.event_id) for letter in page[1:]])
    assert paged == [(letter.group, letter.event_id) for letter in whole if letter.group == GROUP]
    (first, *_) = await log.dead_letters(GROUP, 1)
    await log.retry_dead_letters([(GROUP, first.event_id)])
    assert first.event_id not in {letter.event_id for letter in await log.dead_letters(GROUP)}
    assert len(await log.dead_letters("shop.ship", 10_000)) == 350
    assert await log.dead_letters(None, 10, whole[-1].place) == []


async def test_a_new_workflow_begins_at_the_beginning_and_a_later_step_at_the_end(log: EventLog) -> None:
    await log.append([record(1)])
    first = await registered(log, group="shop.bill")
    assert numbers(await collect(first, 1)) == [1]
    later = await registered(log, group="shop.ship")
    chosen = await registered(log, group="shop.audit", start="beginning")
    other = await registered(log, group="depot.pack")
    await log.append([record(2)])
    assert numbers(await collect(later, 1)) == [2]
    assert numbers(await collect(chosen, 2)) == [1, 2]
    assert numbers(await collect(other, 2)) == [1, 2]
    assert await log.pending(["shop.ship"]) == 1


async def test_steps_of_a_new_workflow_all_begin_at_the_beginning(log: EventLog) -> None:
    await log.append([record(1)])
    await log.register("shop", [StepSpec("shop.bill", TYPE), StepSpec("shop.ship", TYPE)])
    for group in ("shop.bill", "shop.ship"):
        assert numbers(await collect(log.subscribe(group, "w1", 30), 1)) == [1]


async def test_a_step_can_begin_at_a_time(log: EventLog) -> None:
    await log.append([record(1)])
    await asyncio.sleep(0.02)
    await log.append([record(2)])
    (_, second) = await events(log)
    assert second.recorded is not None
    subscription = await registered(log, start=int(second.recorded.timestamp() * 1000))
    assert numbers(await collect(subscription, 1)) == [2]
    assert await log.pending([GROUP]) == 1


async def test_registering_again_changes_nothing(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    await subscription.commit([done(delivery)])
    again = await registered(log, worker="w2", start="beginning")
    assert await nothing(again)


async def test_a_known_step_cannot_listen_to_another_type(log: EventLog) -> None:
    await registered(log)
    with pytest.raises(ConfigurationError, match=r"ag06 steps remove shop\.bill"):
        await registered(log, event_type="other")


async def test_a_removed_step_is_forgotten_and_its_dead_letters_stay(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    (delivery,) = await subscription.fetch(1, 1.0)
    await subscription.commit([Bury(delivery, failure())])
    await subscription.close()
    assert await log.remove_group(GROUP) is True
    assert await log.remove_group(GROUP) is False
    assert await log.groups() == []
    assert len(await log.dead_letters()) == 1
    assert await log.pending([GROUP]) == 0
    again = await registered(log, worker="w9")
    assert len(await collect(again, 3)) == 3  # the workflow is new to the store again


async def test_the_state_of_a_step_is_told(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(6)])
    deliveries = await collect(subscription, 4)
    await subscription.commit([done(deliveries[0]), Bury(deliveries[1], failure())])
    (group,) = await log.groups()
    assert (group.group, group.type, group.backlog, group.dead_letters) == (GROUP, TYPE, 4, 1)
    assert group.in_flight == 2
    assert group.oldest_ms is not None
    stats = await log.stats()
    assert (stats.events, stats.dead_letters, stats.groups) == (6, 1, (group,))
    assert await log.pending([GROUP]) == 4
    assert await log.pending([]) == 0


async def test_retention_takes_only_what_every_step_settled(open_store: OpenLog) -> None:
    log = await open_store(retention=0.05)
    subscription = await registered(log)
    await log.append([record(n) for n in range(500)])
    deliveries = await collect(subscription, 100)
    await subscription.commit([done(delivery) for delivery in deliveries[:50]])
    await asyncio.sleep(0.2)
    for _ in range(5):
        await log.maintain()
    left = {event.data["number"] for event in await events(log)}
    assert left >= set(range(500)) - set(numbers(deliveries[:50]))
    rest = deliveries[50:] + await collect(subscription, 400)
    assert all(await subscription.commit([done(delivery) for delivery in rest]))
    assert await log.append([record(1000)]) == [Appended.STORED]
    (last,) = await collect(subscription, 1)
    assert number(last) == 1000


async def test_deliveries_survive_reopening(open_store: OpenLog, adapter: str) -> None:
    holder = await open_store()
    log = await open_store()
    subscription = await registered(log)
    await log.append([record(n) for n in range(4)])
    deliveries = await collect(subscription, 2)
    await subscription.commit([Postpone(deliveries[0], 0, 1, 5), done(deliveries[1])])
    await subscription.close()
    await log.close()
    if adapter != "memory":
        await holder.close()
    again = await open_store()
    await eventually(lambda: _is(again.pending([GROUP]), 3))
    found = await collect(again.subscribe(GROUP, "w2", 30), 3)
    assert sorted((number(d), d.attempts) for d in found) == [(0, 1), (2, 0), (3, 0)]


async def _is(value: object, expected: int) -> bool:
    return await value == expected  # type: ignore[misc, no-any-return]


async def test_a_hundred_types_do_not_mix(log: EventLog) -> None:
    specs = [StepSpec(f"shop.step{n}", f"type-{n}") for n in range(20)]
    await log.register("shop", specs)
    await log.append([record(n, f"type-{n % 20}") for n in range(100)])
    for n in range(20):
        subscription = log.subscribe(f"shop.step{n}", "w1", 30)
        assert numbers(await collect(subscription, 5)) == [n, n + 20, n + 40, n + 60, n + 80]
        await subscription.close()


async def test_a_settlement_keeps_its_record_as_it_is(log: EventLog) -> None:
    """Outputs are never compared by content: two parents may say the same thing."""
    subscription = await registered(log)
    await log.append([record(1), record(2)])
    one, two = await collect(subscription, 2)
    first, second = output(7, "billed", one), output(7, "billed", two)
    assert msgspec.structs.replace(first, id="", body=b"") == msgspec.structs.replace(second, id="", body=b"")
    await subscription.commit([done(one, outputs=[first]), done(two, outputs=[second])])
    assert len(await events(log, types=("billed",))) == 2
