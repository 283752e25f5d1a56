"""What every log promises about taking events in."""

from __future__ import annotations

import asyncio
import time

from ag06.persistence.log import Appended, EventLog
from conftest import OpenLog
from records import TYPE, collect, done, events, nothing, number, output, record, registered


async def test_events_come_back_in_the_order_they_were_appended(log: EventLog) -> None:
    for group in range(5):
        assert await log.append([record(group * 10 + n) for n in range(10)]) == [Appended.STORED] * 10
    assert [event.data["number"] for event in await events(log)] == list(range(50))


async def test_an_event_comes_back_as_it_was_said(log: EventLog) -> None:
    said = record(
        1, subject="order-1", priority="high", correlation_id="c", causation_id="b", traceparent="00-ab-cd-01"
    )
    await log.append([said])
    (event,) = await events(log)
    assert (event.id, event.type, event.source, event.data) == (said.id, TYPE, "test", {"number": 1})
    assert (event.subject, event.priority.name, event.correlation_id) == ("order-1", "HIGH", "c")
    assert (event.causation_id, event.traceparent) == ("b", "00-ab-cd-01")
    assert event.recorded is not None
    assert abs(event.recorded.timestamp() - time.time()) < 60


async def test_recorded_and_position_never_decrease(log: EventLog) -> None:
    from ag06.persistence.log import Query

    for n in range(50):
        await log.append([record(n, priority=n % 4)])
    stored = [entry async for page in log.read(Query()) for entry in page]
    positions = [entry.position for entry in stored]
    assert positions == sorted(set(positions))
    assert [entry.recorded_ms for entry in stored] == sorted(entry.recorded_ms for entry in stored)


async def test_the_same_content_within_the_window_is_a_duplicate(log: EventLog) -> None:
    assert await log.append([record(1)]) == [Appended.STORED]
    assert await log.append([record(1), record(2)]) == [Appended.DUPLICATE, Appended.STORED]
    assert len(await events(log)) == 2
    assert (await log.stats()).duplicates == 1


async def test_two_equal_records_of_one_call_are_stored_once(log: EventLog) -> None:
    assert await log.append([record(1), record(1)]) == [Appended.STORED, Appended.DUPLICATE]
    assert len(await events(log)) == 1


async def test_an_identity_is_forgotten_after_its_window(log: EventLog) -> None:
    first, second = record(1, idempotency_key="k"), record(2, idempotency_key="k")
    import msgspec

    short = msgspec.structs.replace(first, window_ms=80)
    assert await log.append([short]) == [Appended.STORED]
    assert await log.append([second]) == [Appended.DUPLICATE]
    await asyncio.sleep(0.2)
    assert await log.append([second]) == [Appended.STORED]


async def test_concurrent_equal_events_are_stored_once(log: EventLog) -> None:
    outcomes = await asyncio.gather(*(log.append([record(1)]) for _ in range(50)))
    assert sorted(outcome for (outcome,) in outcomes) == [Appended.STORED] + [Appended.DUPLICATE] * 49
    assert len(await events(log)) == 1


async def test_concurrent_equal_events_of_two_logs_are_stored_once(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    outcomes = await asyncio.gather(*(log.append([record(n)]) for n in range(20) for log in (one, two)))
    assert sum(outcome == Appended.STORED for (outcome,) in outcomes) == 20
    assert len(await events(one)) == 20


async def test_a_repeated_id_with_the_same_content_is_stored_once(log: EventLog) -> None:
    assert await log.append([record(1, id="mine")]) == [Appended.STORED]
    assert await log.append([record(1, id="mine")]) == [Appended.REPEATED]
    assert len(await events(log)) == 1
    assert (await log.stats()).duplicates == 0


async def test_an_id_that_is_taken_by_other_content_clashes(log: EventLog) -> None:
    await log.append([record(1, id="mine")])
    assert await log.append([record(2, id="mine")]) == [Appended.CLASH]
    assert [event.data["number"] for event in await events(log)] == [1]
    assert await log.append([record(2)]) == [Appended.STORED]  # the clash left no trace of its content


async def test_a_publisher_that_lost_the_reply_may_repeat_its_event_by_id(log: EventLog) -> None:
    first = record(1)
    await log.append([first])
    assert await log.append([record(1, id=first.id)]) == [Appended.REPEATED]
    undeduplicated = record(2, dedup=False)
    await log.append([undeduplicated])
    assert await log.append([record(2, id=undeduplicated.id, dedup=False)]) == [Appended.REPEATED]
    assert len(await events(log)) == 2


async def test_without_deduplication_equal_events_are_stored_again(log: EventLog) -> None:
    assert await log.append([record(1, dedup=False), record(1, dedup=False)]) == [Appended.STORED] * 2


async def test_a_full_backlog_refuses_and_remembers_nothing(log: EventLog) -> None:
    subscription = await registered(log)
    assert await log.append([record(n) for n in range(3)], max_backlog=3) == [Appended.STORED] * 3
    assert await log.append([record(3)], max_backlog=3) == [Appended.FULL]
    assert await log.append([record(3, id="mine")], max_backlog=3) == [Appended.FULL]
    assert await log.append([record(0)], max_backlog=3) == [Appended.DUPLICATE]
    (delivery, *_) = await collect(subscription, 3)
    assert await subscription.commit([done(delivery)]) == [True]
    assert await log.append([record(3)], max_backlog=3) == [Appended.STORED]
    assert len(await events(log)) == 4


async def test_a_batch_counts_against_the_backlog_as_it_grows(log: EventLog) -> None:
    await registered(log)
    outcomes = await log.append([record(n) for n in range(5)], max_backlog=3)
    assert outcomes == [Appended.STORED] * 3 + [Appended.FULL] * 2


async def test_a_type_that_no_step_listens_to_has_no_backlog(log: EventLog) -> None:
    assert await log.append([record(n) for n in range(5)], max_backlog=3) == [Appended.STORED] * 5


async def test_a_scheduled_event_enters_the_log_when_it_is_due_and_not_before(log: EventLog) -> None:
    subscription = await registered(log)
    before = time.time()
    assert await log.append([record(1, delay=0.5), record(2)]) == [Appended.STORED] * 2
    assert [event.data["number"] for event in await events(log)] == [2]
    assert (await log.stats()).scheduled == 1
    assert await log.pending(["shop.bill"]) == 2
    first, second = await collect(subscription, 2)
    assert [number(first), number(second)] == [2, 1]
    assert second.recorded_ms >= int((before + 0.5) * 1000)
    assert (await log.stats()).scheduled == 0


async def test_a_scheduled_event_is_deduplicated_when_it_is_published(log: EventLog) -> None:
    assert await log.append([record(1, delay=60)]) == [Appended.STORED]
    assert await log.append([record(1)]) == [Appended.DUPLICATE]
    assert await log.append([record(2, id="mine", delay=60)]) == [Appended.STORED]
    assert await log.append([record(2, id="mine", delay=60)]) == [Appended.REPEATED]
    assert await log.append([record(3, id="mine")]) == [Appended.CLASH]


async def test_maintenance_alone_appends_what_is_due(log: EventLog) -> None:
    await log.append([record(1, delay=0.05)])
    await asyncio.sleep(0.1)
    await log.maintain()
    assert [event.data["number"] for event in await events(log)] == [1]


async def test_an_output_that_is_due_later_waits(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    later = output(2, TYPE, delivery, delay=0.3)
    assert await subscription.commit([done(delivery, outputs=[later])]) == [True]
    assert await nothing(subscription)
    (following,) = await collect(subscription, 1)
    assert number(following) == 2


async def test_many_callers_at_once_each_get_their_own_answer(log: EventLog) -> None:
    outcomes = await asyncio.gather(*(log.append([record(n % 300)]) for n in range(600)))
    assert sum(outcome == Appended.STORED for (outcome,) in outcomes) == 300
    assert sorted(event.data["number"] for event in await events(log)) == list(range(300))


async def test_a_large_call_is_stored_whole_and_in_order(log: EventLog) -> None:
    outcomes = await log.append([record(n) for n in range(5000)])
    assert outcomes == [Appended.STORED] * 5000
    assert [event.data["number"] for event in await events(log)] == list(range(5000))


async def test_events_of_every_size_come_back_whole(log: EventLog) -> None:
    from records import ADMISSION

    texts = ["", "ü€𝄞\x00\n", "x" * 1_000_000]
    await log.append([ADMISSION.admit("t", "s", {"text": text}) for text in texts])
    assert [event.data["text"] for event in await events(log)] == texts
