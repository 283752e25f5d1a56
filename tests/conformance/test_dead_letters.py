"""What every log promises of dead letters that are delivered again after their step has changed."""

from __future__ import annotations

import time

from ag06.persistence.log import Bury, EventLog, StepSpec, Subscription
from records import GROUP, TYPE, collect, done, failure, nothing, number, numbers, record, registered


async def _bury(log: EventLog, subscription: Subscription, count: int = 1) -> list[tuple[str, str]]:
    held = await collect(subscription, count)
    assert await subscription.commit([Bury(delivery, failure()) for delivery in held]) == [True] * count
    return [(letter.group, letter.event_id) for letter in await log.dead_letters()]


async def test_no_step_gets_a_dead_letter_of_a_type_that_it_does_not_listen_to(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1), record(2, subject="s")])
    letters = await _bury(log, subscription, 2)
    await subscription.close()
    await log.remove_group(GROUP)
    assert await log.retry_dead_letters(letters) == 0
    other = await registered(log, event_type="another.type")
    assert await log.retry_dead_letters(letters) == 0
    assert await nothing(other)
    assert await log.pending([GROUP]) == 0
    assert len(await log.dead_letters(GROUP)) == 2
    await log.remove_group(GROUP)
    again = await registered(log, start="end", worker="w2")
    assert await log.retry_dead_letters(letters) == 2
    assert sorted(numbers(await collect(again, 2))) == [1, 2]


async def test_some_letters_of_another_type_do_not_hold_up_the_others(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    before = await _bury(log, subscription)
    await log.remove_group(GROUP)
    other = await registered(log, event_type="another.type")
    await log.append([record(2, "another.type")])
    letters = await _bury(log, other)
    assert len(letters) == 2
    assert await log.retry_dead_letters(letters) == 1
    assert numbers(await collect(other, 1)) == [2]
    assert [(letter.group, letter.event_id) for letter in await log.dead_letters()] == before


async def test_a_step_that_begins_again_does_not_get_the_event_of_a_dead_letter_twice(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1), record(2), record(3, subject="s")])
    letters = await _bury(log, subscription, 3)
    await subscription.close()
    await log.remove_group(GROUP)
    again = await registered(log, start="beginning", worker="w2")
    (first,) = await again.fetch(1, 1.0)  # it has this one, and the others are still before it
    assert await log.retry_dead_letters(letters) == 3
    assert await log.dead_letters() == []
    held = {number(first): first} | {number(one): one for one in await collect(again, 2)}
    assert sorted(held) == [1, 2, 3]
    assert await nothing(again)
    assert await again.commit([done(one) for one in held.values()]) == [True] * 3
    assert await log.pending([GROUP]) == 0
    assert (await log.groups())[0].in_flight == 0


async def test_a_dead_letter_that_is_retried_is_as_old_as_its_event(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = held = await collect(subscription, 1)
    assert await subscription.commit([Bury(delivery, failure())]) == [True]
    while time.time() * 1000 < held[0].recorded_ms + 20:
        assert await nothing(subscription)
    await log.retry_dead_letters([(GROUP, (await log.dead_letters())[0].event_id)])
    (info,) = await log.groups()
    assert (info.backlog, info.oldest_ms) == (1, held[0].recorded_ms)
    assert numbers(await collect(subscription, 1)) == [1]


async def test_a_letter_that_is_named_twice_is_delivered_once(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (letter,) = await _bury(log, subscription)
    assert await log.retry_dead_letters([letter, letter, (GROUP, "unknown"), ("no.group", letter[1])]) == 1
    assert numbers(await collect(subscription, 1)) == [1]
    assert await nothing(subscription)


async def test_a_letter_stays_for_its_step_alone(log: EventLog) -> None:
    subscription = await registered(log)
    await log.register("shop", [StepSpec("shop.ship", TYPE, "beginning")])
    await log.append([record(1)])
    letters = await _bury(log, subscription)
    assert await log.retry_dead_letters([("shop.ship", letters[0][1])]) == 0
    assert await log.discard_dead_letters([("shop.ship", letters[0][1]), *letters, *letters]) == 1
