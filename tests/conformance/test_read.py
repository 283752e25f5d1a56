"""What every log promises about reading back."""

from __future__ import annotations

import asyncio

from ag06.persistence.log import EventLog, Query
from conftest import OpenLog
from records import events, record


async def test_types_and_priorities_are_merged_in_log_order(log: EventLog) -> None:
    for n in range(40):
        await log.append([record(n, f"type-{n % 3}", priority=n % 4)])
    assert [event.data["number"] for event in await events(log)] == list(range(40))


async def test_a_query_selects_types(log: EventLog) -> None:
    await log.append([record(n, f"type-{n % 3}", priority=n % 4) for n in range(30)])
    found = await events(log, types=("type-0", "type-2", "unknown"))
    assert [event.data["number"] for event in found] == [n for n in range(30) if n % 3 != 1]
    assert await events(log, types=("unknown",)) == []
    assert await events(log, types=()) == []


async def test_a_range_includes_its_start_and_not_its_end(log: EventLog) -> None:
    for n in range(5):
        await log.append([record(n)])
        await asyncio.sleep(0.005)
    stored = [entry async for page in log.read(Query()) for entry in page]
    times = [entry.recorded_ms for entry in stored]
    found = await events(log, start_ms=times[1], end_ms=times[3])
    assert [event.data["number"] for event in found] == [1, 2]
    assert await events(log, start_ms=times[4] + 1) == []
    assert await events(log, end_ms=times[0]) == []


async def test_reading_goes_on_behind_a_position(log: EventLog) -> None:
    await log.append([record(n, priority=n % 4) for n in range(20)])
    stored = [entry async for page in log.read(Query()) for entry in page]
    found = await events(log, after=stored[11].position)
    assert [event.data["number"] for event in found] == list(range(12, 20))


async def test_a_read_ends_with_what_was_recorded_when_it_began(log: EventLog) -> None:
    await log.append([record(n) for n in range(2500)])
    seen = 0
    async for page in log.read(Query()):
        seen += len(page)
        await log.append([record(10_000 + seen)])
    assert seen == 2500


async def test_pages_are_bounded(log: EventLog) -> None:
    await log.append([record(n) for n in range(4500)])
    pages = [len(page) async for page in log.read(Query())]
    assert sum(pages) == 4500
    assert max(pages) <= 2000


async def test_the_newest_can_be_read_without_the_rest(log: EventLog) -> None:
    await log.append([record(n, f"type-{n % 2}", priority=n % 4) for n in range(100)])
    found = await events(log, newest=10)
    assert [event.data["number"] for event in found][-10:] == list(range(90, 100))
    assert len(found) < 60
    odd = await events(log, newest=5, types=("type-1",))
    assert [event.data["number"] for event in odd][-5:] == [91, 93, 95, 97, 99]


async def test_an_empty_log_reads_as_empty(log: EventLog) -> None:
    assert await events(log) == []
    assert (await log.stats()).events == 0


async def test_two_logs_on_one_store_see_the_same_events(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    await one.append([record(1)])
    await two.append([record(2)])
    assert [event.data["number"] for event in await events(one)] == [1, 2]
    assert [event.data["number"] for event in await events(two)] == [1, 2]


async def test_what_was_stored_is_there_after_reopening(open_store: OpenLog, adapter: str) -> None:
    holder = await open_store()
    log = await open_store()
    await log.append([record(n) for n in range(10)])
    await log.close()
    if adapter != "memory":  # a log in memory lives as long as someone holds it
        await holder.close()
    again = await open_store()
    assert [event.data["number"] for event in await events(again)] == list(range(10))
