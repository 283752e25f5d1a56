"""What every log promises about the part of it that every step is done with: it can be named, read and dropped."""

from __future__ import annotations

import asyncio
import time

import pytest

from ag06.persistence.log import Appended, Bury, Cut, EventLog, Postpone, Query, StepSpec
from conftest import OpenLog
from records import GROUP, TYPE, collect, done, events, failure, number, numbers, record, registered

LAST = "log.ended"
"""A type of its own for the newest event of the log, which a store may keep whatever becomes of it."""


def later_ms() -> int:
    return int(time.time() * 1000) + 60_000


async def end_of(log: EventLog) -> None:
    assert await log.append([record("last", LAST)]) == [Appended.STORED]


async def of(log: EventLog, event_type: str = TYPE) -> list[object]:
    return [event.data["number"] for event in await events(log, types=(event_type,))]


async def read_cut(log: EventLog, cut: Cut) -> list[object]:
    found = await events(log, types=(cut.type,), level=cut.level, below=cut.below)
    return [event.data["number"] for event in found]


async def settled_here(log: EventLog, event_type: str = TYPE) -> list[Cut]:
    return await log.settled(later_ms(), [event_type])


async def test_what_no_step_has_acknowledged_is_not_settled(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(5)])
    await end_of(log)
    assert await settled_here(log) == []
    deliveries = await collect(subscription, 3)
    assert await settled_here(log) == []
    assert await subscription.commit([done(deliveries[0]), done(deliveries[1])]) == [True, True]
    (cut,) = await settled_here(log)
    assert (cut.type, cut.level) == (TYPE, 1)
    assert await read_cut(log, cut) == [0, 1]
    assert await log.drop(cut) == 2
    assert await of(log) == [2, 3, 4]
    assert await settled_here(log) == []


async def test_every_step_of_a_type_must_have_acknowledged(log: EventLog) -> None:
    bill = await registered(log)
    ship = await registered(log, group="shop.ship", start="beginning")
    await log.append([record(n) for n in range(4)])
    await end_of(log)
    await bill.commit([done(delivery) for delivery in await collect(bill, 4)])
    assert await settled_here(log) == []
    await ship.commit([done(delivery) for delivery in await collect(ship, 1)])
    (cut,) = await settled_here(log)
    assert await read_cut(log, cut) == [0]


@pytest.mark.parametrize("hold", ["leased", "postponed", "released", "behind its subject"])
async def test_an_open_delivery_holds_what_comes_behind_it(log: EventLog, hold: str) -> None:
    subscription = await registered(log)
    await log.append([record(n, subject="s" if hold == "behind its subject" else None) for n in range(2)])
    await log.append([record(n) for n in range(2, 4)])
    await end_of(log)
    deliveries = await collect(subscription, 3 if hold == "behind its subject" else 4)
    (first,) = (delivery for delivery in deliveries if number(delivery) == 0)
    await subscription.commit([done(delivery) for delivery in deliveries if delivery is not first])
    if hold == "postponed":
        await subscription.commit([Postpone(first, 60_000, 1, 1)])
    elif hold == "released":
        await subscription.release([first])
    assert await settled_here(log) == []
    assert await log.drop(Cut(TYPE, 1, 1 << 62)) == 0
    assert await of(log) == [0, 1, 2, 3]


async def test_a_type_without_a_step_is_settled(log: EventLog) -> None:
    await log.append([record(n) for n in range(3)])
    await end_of(log)
    (cut,) = await settled_here(log)
    assert await read_cut(log, cut) == [0, 1, 2]
    assert await log.drop(cut) == 3
    assert await of(log) == []


async def test_only_what_was_recorded_before_is_settled(log: EventLog) -> None:
    await log.append([record(0), record(1)])
    await asyncio.sleep(0.005)
    await log.append([record(2)])
    await end_of(log)
    (*_, third) = [stored async for page in log.read(Query(types=(TYPE,))) for stored in page]
    (cut,) = await log.settled(third.recorded_ms, [TYPE])
    assert await log.drop(cut) == 2
    assert await of(log) == [2]
    assert await log.settled(third.recorded_ms) == []
    assert await log.settled(0) == await log.settled(-1) == []
    assert [cut.type for cut in await log.settled(1 << 60, [TYPE])] == [TYPE]


async def test_only_types_that_are_asked_for_are_named(log: EventLog) -> None:
    await log.append([record(n, f"type-{n}", priority=n) for n in range(4)])
    await end_of(log)
    cuts = await log.settled(later_ms(), ["type-1", "type-3", "unknown"])
    assert sorted((cut.type, cut.level) for cut in cuts) == [("type-1", 1), ("type-3", 3)]
    assert await log.settled(later_ms(), []) == []
    everything = {cut.type for cut in await log.settled(later_ms())}
    assert everything - {LAST} == {"type-0", "type-1", "type-2", "type-3"}


async def test_a_cut_leaves_other_levels_and_types_alone(log: EventLog) -> None:
    await log.append([record(n, f"type-{n % 2}", priority=n % 4) for n in range(40)])
    await end_of(log)
    cuts = await log.settled(later_ms(), ["type-1"])
    assert sorted(cut.level for cut in cuts) == [1, 3]
    (third,) = (cut for cut in cuts if cut.level == 3)
    assert await read_cut(log, third) == list(range(3, 40, 4))
    assert await log.drop(third) == 10
    left = [event.data["number"] for event in await events(log)]
    assert left == [n for n in range(40) if n % 4 != 3] + ["last"]
    assert (await log.stats()).events == 31


async def test_a_dropped_cut_is_dropped_once(log: EventLog) -> None:
    await log.append([record(n) for n in range(3)])
    await end_of(log)
    (cut,) = await settled_here(log)
    assert [await log.drop(cut), await log.drop(cut)] == [3, 0]
    await log.append([record(3)])
    assert await log.drop(cut) == 0
    assert await of(log) == [3]
    assert await log.drop(Cut("unknown", 0, 1 << 62)) == 0


async def test_many_events_are_dropped_and_all_of_them_counted(log: EventLog) -> None:
    subscription = await registered(log, group="other.step", event_type=LAST)
    await log.append([record(n, dedup=False) for n in range(25_000)])
    await end_of(log)
    (cut,) = await settled_here(log)
    assert await log.drop(cut) == 25_000
    assert (await log.stats()).events == 1
    assert await log.pending(["other.step"]) == 1
    assert numbers(await collect(subscription, 1)) == ["last"]


async def test_a_step_that_begins_at_the_beginning_keeps_what_was_settled_before_it_came(log: EventLog) -> None:
    await log.append([record(n) for n in range(3)])
    await end_of(log)
    (cut,) = await settled_here(log)
    late = await registered(log, start="beginning")
    assert await log.drop(cut) == 0
    assert await settled_here(log) == []
    assert numbers(await collect(late, 3)) == [0, 1, 2]


async def test_a_step_that_comes_behind_a_drop_begins_with_what_is_left(log: EventLog) -> None:
    await log.append([record(n, subject="s") for n in range(3)])
    await end_of(log)
    (cut,) = await settled_here(log)
    await log.drop(cut)
    await log.append([record(3, subject="s")])
    late = await registered(log, start="beginning")
    assert await log.pending([GROUP]) == 1
    assert numbers(await collect(late, 1)) == [3]


async def test_a_removed_step_holds_nothing_back(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    await end_of(log)
    await collect(subscription, 1)
    assert await settled_here(log) == []
    await log.remove_group(GROUP)
    (cut,) = await settled_here(log)
    assert await log.drop(cut) == 3


async def test_a_buried_event_is_settled_and_its_dead_letter_can_still_be_retried(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(0), record(1)])
    await end_of(log)
    bad, good = await collect(subscription, 2)
    await subscription.commit([Bury(bad, failure()), done(good)])
    (cut,) = await settled_here(log)
    assert await log.drop(cut) == 2
    (letter,) = await log.dead_letters()
    assert await log.retry_dead_letters([(GROUP, letter.event_id)]) == 1
    (again,) = await collect(subscription, 1)
    assert (number(again), again.recorded_ms) == (0, bad.recorded_ms)
    assert await of(log) == [], "what was dropped does not come back into the log"
    assert (await log.stats()).events == 1
    assert await settled_here(log) == []
    assert await subscription.commit([Bury(again, failure(message="again"))]) == [True]
    (letter,) = await log.dead_letters()
    assert letter.failure.message == "again"
    assert await log.retry_dead_letters([(GROUP, letter.event_id)]) == 1
    assert await subscription.commit([done(*await collect(subscription, 1))]) == [True]
    assert await settled_here(log) == []
    assert await of(log) == []


async def test_a_dead_letter_that_is_retried_while_its_event_is_dropped_is_delivered(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(0, subject="s"), record(1)])
    await end_of(log)
    bad, good = sorted(await collect(subscription, 2), key=number)
    await subscription.commit([Bury(bad, failure()), done(good)])
    (cut,) = await settled_here(log)
    (letter,) = await log.dead_letters()
    assert await log.retry_dead_letters([(GROUP, letter.event_id)]) == 1
    await log.drop(cut)
    await log.append([record(2, subject="s")])
    (again,) = await collect(subscription, 1)
    assert number(again) == 0
    assert await subscription.commit([done(again)]) == [True]
    assert numbers(await collect(subscription, 1)) == [2]


async def test_what_is_held_while_a_cut_is_dropped_can_be_committed(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(10)])
    deliveries = await collect(subscription, 10)
    await subscription.commit([done(delivery) for delivery in deliveries[:5]])
    (cut,) = await settled_here(log)
    assert await log.drop(cut) == 5
    assert await subscription.commit([done(delivery) for delivery in deliveries[5:]]) == [True] * 5
    assert await log.pending([GROUP]) == 0


async def test_positions_and_chosen_ids_live_on_behind_a_drop(log: EventLog) -> None:
    said, other = record(1, id="mine", dedup=False), record(2, id="mine", dedup=False)
    await log.append([said])
    await end_of(log)
    (first,) = [stored async for page in log.read(Query(types=(TYPE,))) for stored in page]
    for cut in await log.settled(later_ms()):
        await log.drop(cut)
    assert await of(log) == []
    assert await log.append([said, other]) == [Appended.REPEATED, Appended.CLASH]
    await log.append([record(3)])
    (then,) = [stored async for page in log.read(Query(types=(TYPE,))) for stored in page]
    assert then.position > first.position


async def test_reading_and_appending_go_on_while_a_cut_is_dropped(log: EventLog) -> None:
    subscription = await registered(log, event_type=LAST)
    await log.append([record(n, dedup=False) for n in range(12_000)])
    await log.append([record(n, LAST, priority=n % 4) for n in range(100)])
    (cut,) = await settled_here(log)
    dropping = asyncio.create_task(log.drop(cut))
    appended = 0
    while not dropping.done():
        assert await of(log, LAST) == list(range(100 + appended))
        assert await log.append([record(100 + appended, LAST)]) == [Appended.STORED]
        appended += 1
        seen = await of(log)
        assert seen == sorted(seen)
    assert appended > 0
    assert await dropping == 12_000
    assert await of(log) == []
    assert len(await collect(subscription, 100 + appended)) == 100 + appended


async def test_two_who_drop_one_cut_at_once_drop_each_event_once(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    await one.append([record(n, dedup=False) for n in range(6_000)])
    await end_of(one)
    (cut,) = await settled_here(two)
    assert sum(await asyncio.gather(one.drop(cut), two.drop(cut))) == 6_000
    assert (await one.stats()).events == 1


async def test_a_drop_and_the_retention_count_each_event_once(open_store: OpenLog) -> None:
    log = await open_store(retention=0.001)
    await log.append([record(n, dedup=False) for n in range(8_000)])
    await asyncio.sleep(0.01)
    await end_of(log)
    (cut,) = await settled_here(log)

    dropping = asyncio.create_task(log.drop(cut))
    while not dropping.done():
        await log.maintain()
        await asyncio.sleep(0)
    assert await dropping <= 8_000
    assert await of(log) == []
    assert (await log.stats()).events == len(await events(log))


async def test_each_type_stays_for_its_own_retention(open_store: OpenLog) -> None:
    log = await open_store(retention=0.02, retention_by_type={"kept.long": 3600.0, "kept.ever": 0.0})
    for event_type in (TYPE, "kept.long", "kept.ever"):
        await log.append([record(1, event_type)])
    await end_of(log)
    await _maintain_until_gone(log, TYPE)
    assert await of(log, "kept.long") == await of(log, "kept.ever") == [1]


async def test_one_type_can_have_a_retention_where_the_others_stay(open_store: OpenLog) -> None:
    log = await open_store(retention=0.0, retention_by_type={"kept.briefly": 0.02})
    late = await registered(log, group="shop.late", event_type="kept.briefly")
    await log.append([record(n, "kept.briefly") for n in range(2)])
    await log.append([record(1)])
    await end_of(log)
    await late.commit([done(*await collect(late, 1))])
    await asyncio.sleep(0.1)
    await log.maintain()
    assert 1 in await of(log, "kept.briefly"), "its step is not done with it"
    await late.commit([done(*await collect(late, 1))])
    await _maintain_until_gone(log, "kept.briefly")
    assert await of(log) == [1]


async def _maintain_until_gone(log: EventLog, event_type: str) -> None:
    async with asyncio.timeout(10):
        while await of(log, event_type):
            await asyncio.sleep(0.03)
            await log.maintain()


async def test_a_query_selects_a_level_and_what_lies_below_a_position(log: EventLog) -> None:
    await log.append([record(n, f"type-{n % 2}", priority=n % 4) for n in range(2_400)])
    stored = [entry async for page in log.read(Query()) for entry in page]
    middle = stored[1200].position

    async def found(**query: object) -> list[int]:
        return [event.data["number"] for event in await events(log, **query)]

    assert await found(below=middle) == list(range(1200))
    assert await found(level=3) == list(range(3, 2_400, 4))
    assert await found(level=3, below=middle) == list(range(3, 1200, 4))
    assert await found(types=("type-0",), level=2, below=middle) == list(range(2, 1200, 4))
    assert await found(types=("type-0",), level=3) == []
    assert await found(after=stored[99].position, below=stored[104].position) == [100, 101, 102, 103]
    assert await found(below=0) == await found(after=middle, below=middle) == []
    assert (await found(below=middle, newest=10))[-10:] == list(range(1190, 1200))
    assert (await found(level=1, below=middle, newest=5))[-5:] == [1181, 1185, 1189, 1193, 1197]
    assert len(await found(level=1, below=middle, newest=5)) < 20
    assert await found(types=("type-1",), level=1, newest=1) == [2397]


async def test_steps_of_types_that_share_a_beginning_do_not_hold_each_other_back(log: EventLog) -> None:
    await log.register("shop", [StepSpec("shop.a", "order"), StepSpec("shop.b", "order.placed")])
    await log.append([record(1, "order"), record(2, "order.placed")])
    await end_of(log)
    subscription = log.subscribe("shop.a", "w1", 30)
    await subscription.commit([done(*await collect(subscription, 1))])
    assert [cut.type for cut in await log.settled(later_ms(), ["order", "order.placed"])] == ["order"]
