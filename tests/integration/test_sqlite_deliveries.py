"""What is special to SQLite about deliveries, counts and the retention."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.event import decode_event
from ag06.persistence.admission import Admission
from ag06.persistence.log import Appended, Bury, Delivery, LogOptions, Postpone, Query
from ag06.persistence.sqlite import SqliteLog, claiming, deliveries, settling, writer
from ag06.persistence.sqlite import log as sqlite_log
from records import (
    GROUP,
    TYPE,
    collect,
    done,
    events,
    failure,
    number,
    numbers,
    output,
    record,
    registered,
)

Open = Callable[..., Awaitable[SqliteLog]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Open the log of this test, with a clock that the test may set; everything is closed at its end."""
    logs: list[SqliteLog] = []

    async def open_one(**settings: Any) -> SqliteLog:
        clock = settings.pop("clock", None)
        path = str(tmp_path / "events.db")
        log = (
            SqliteLog(path, LogOptions(**settings)) if clock is None else SqliteLog(path, LogOptions(**settings), clock)
        )
        await log.open()
        logs.append(log)
        return log

    yield open_one
    for log in logs:
        await log.close()


def _rows(log: SqliteLog, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        return connection.execute(statement).fetchall()


def _id(delivery: Delivery) -> str:
    return decode_event(delivery.body, delivery.recorded_ms).id


@pytest.mark.parametrize(
    "statement",
    [settling._UNBLOCK, claiming._READY, deliveries._FALL_DUE, deliveries._ANYTHING_DUE, deliveries._NEXT_DUE],
)
async def test_those_that_wait_are_found_by_index_however_many_they_are(opened: Open, statement: str) -> None:
    log = await opened()
    count = max([0, *map(int, re.findall(r"\?(\d)", statement))]) or statement.count("?")
    connection = sqlite3.connect(log.path)
    plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + statement, [1] * count)]
    connection.close()
    assert not [line for line in plan if "deliveries" in line and "deliveries_waiting" not in line]
    assert not [line for line in plan if " d " in line and "deliveries_waiting" not in line]
    assert any("deliveries_waiting" in line for line in plan)


async def test_a_busy_subject_is_looked_past_in_short_transactions(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "_FARTHEST", 30)
    monkeypatch.setattr(claiming, "_PAGE", 10)
    log = await opened()
    subscription = await registered(log)
    await log.append([record(n, subject="busy") for n in range(200)])
    await log.append([record("other", subject="calm")])
    (first,) = await subscription.fetch(1, 0)
    looks: list[int] = []
    run = claiming.Claim.run

    def counted(self: claiming.Claim) -> list[Delivery]:
        found = run(self)
        looks.append(self._blocked)
        return found

    monkeypatch.setattr(claiming.Claim, "run", counted)
    assert numbers(await collect(subscription, 1)) == ["other"]
    assert max(looks) <= 40
    assert sum(looks) == 199
    assert await subscription.commit([done(first)]) == [True]
    assert numbers(await collect(subscription, 1)) == [1]


async def test_no_count_misses_an_event_that_moves_on_to_another_step(opened: Open) -> None:
    log = await opened()
    there = await registered(log, group="there.take", event_type="b")
    here = await registered(log, group="here.take", event_type="a")
    await log.append([record(1, "a")])
    counts: list[int] = []
    moving = True

    async def count() -> None:
        while moving:
            counts.append(await log.pending(["there.take", "here.take"]))

    counting = asyncio.create_task(count())
    for n in range(150):
        (delivery,) = await collect(here, 1)
        await here.commit([done(delivery, outputs=[output(n, "b", delivery)])])
        (delivery,) = await collect(there, 1)
        await there.commit([done(delivery, outputs=[output(n, "a", delivery)])])
    moving = False
    await counting
    assert set(counts) == {1}


async def test_a_worker_that_was_frozen_past_its_lease_does_not_take_over_from_itself(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(clock=lambda: now)
    frozen = await registered(log, visibility=30)
    await log.append([record(1)])
    (mine,) = await collect(frozen, 1)
    now += 100
    assert await frozen.fetch(1, 0.05) == []
    assert await log.subscribe(GROUP, "other", 30).fetch(1, 0.05) == []
    assert await frozen.commit([done(mine)]) == [True]


async def test_what_a_worker_lost_and_got_again_is_held_by_its_second_run_alone(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(clock=lambda: now)
    frozen = await registered(log, visibility=30)
    await log.append([record(n) for n in range(2)])
    before = await collect(frozen, 2)
    now += 100
    (theirs,) = await collect(log.subscribe(GROUP, "other", 30), 1)
    (again,) = await collect(frozen, 1)
    assert (number(theirs), number(again), again.suspect) == (0, 1, True)
    await frozen.release(before)
    await frozen.mark_started(before)
    assert await frozen.commit([done(delivery) for delivery in before]) == [False, False]
    assert await frozen.commit([Bury(before[1], failure())]) == [False]
    assert await log.release_worker("w1") == 1
    (again,) = await collect(frozen, 1)
    assert again.deaths == 0
    assert await frozen.commit([done(again)]) == [True]


async def test_a_worker_that_came_back_under_its_name_gets_what_it_left_behind(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(clock=lambda: now)
    dead = await registered(log, visibility=30)
    await log.append([record(1)])
    (lost,) = await collect(dead, 1)
    now += 100
    fresh = log.subscribe(GROUP, "w1", 30)
    (again,) = await collect(fresh, 1)
    assert (number(again), again.suspect) == (1, True)
    assert await dead.commit([done(lost)]) == [False]
    assert await fresh.commit([done(again)]) == [True]


async def test_a_step_waits_for_no_event_that_the_retention_took(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(retention=10.0, clock=lambda: now)
    early = await registered(log, group="early.take")
    await log.append([record(1, subject="s", priority=0)])
    await log.append([record(2, subject="s", priority=3)])
    for _ in range(2):
        await early.commit([done(*await collect(early, 1))])
    now += 8
    await log.append([record(3, subject="s", priority=3)])
    now += 5  # the retention takes the first two; the third followed one of another priority
    await log.maintain()
    assert [event.data["number"] for event in await events(log)] == [3]
    late = await registered(log, group="late.take", start="beginning")
    assert numbers(await collect(late, 1)) == [3]


async def test_a_step_that_begins_at_zero_begins_at_the_beginning(opened: Open) -> None:
    log = await opened()
    await registered(log)
    await log.append([record(1)])
    assert numbers(await collect(await registered(log, group="shop.late", start=0), 1)) == [1]


async def test_a_dead_letter_of_a_step_that_came_back_is_delivered_once(opened: Open) -> None:
    log = await opened()
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    await subscription.commit([Bury(delivery, failure())])
    await log.remove_group(GROUP)
    subscription = await registered(log)
    assert await log.retry_dead_letters([(GROUP, _id(delivery))]) == 1
    assert await log.pending([GROUP]) == 1
    await subscription.commit([done(*await collect(subscription, 1))])
    assert await subscription.fetch(1, 0.05) == []
    assert await log.pending([GROUP]) == 0
    assert await log.dead_letters() == []


async def test_a_dead_letter_outlives_the_retention_of_its_event(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(retention=1.0, clock=lambda: now)
    subscription = await registered(log)
    await log.append([record(1), record(2)])
    buried, kept = await collect(subscription, 2)
    await subscription.commit([Bury(buried, failure()), done(kept)])
    now += 5
    await log.maintain()
    assert (await log.stats()).events == 1
    assert await log.retry_dead_letters([(GROUP, _id(buried))]) == 1
    now += 60
    await log.maintain()
    (again,) = await collect(subscription, 1)
    assert (number(again), again.recorded_ms, again.attempts) == (1, buried.recorded_ms, 0)
    assert [event.data["number"] for event in await events(log)] == [2], "it does not come back into the log"
    assert (await log.stats()).events == 1
    await subscription.commit([done(again)])
    now += 60
    await log.maintain()
    assert _rows(log, "SELECT count(*) FROM events") == [(1,)]
    assert (await log.stats()).events == 1
    assert await log.pending([GROUP]) == 0


async def test_a_subject_that_the_retention_forgot_waits_for_its_retried_dead_letter(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(retention=1.0, clock=lambda: now)
    subscription = await registered(log)
    await log.append([record(1, subject="s"), record(2, subject="s", priority=3)])
    (buried,) = await collect(subscription, 1)
    await subscription.commit([Bury(buried, failure())])
    await subscription.commit([done(*await collect(subscription, 1))])
    now += 5
    await log.append([record("last")])
    await subscription.commit([done(*await collect(subscription, 1))])
    for _ in range(2):
        await log.maintain()
    assert [event.data["number"] for event in await events(log)] == ["last"]
    assert await log.retry_dead_letters([(GROUP, _id(buried))]) == 1
    await log.maintain()
    await log.append([record(3, subject="s", priority=3)])
    (again,) = await collect(subscription, 1)
    assert number(again) == 1
    assert await subscription.fetch(1, 0.05) == []
    assert await subscription.commit([done(again)]) == [True]
    assert numbers(await collect(subscription, 1)) == [3]


async def test_the_retention_keeps_up_with_any_rate(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    log = await opened(retention=1.0, clock=lambda: now)
    await log.append([record(n) for n in range(9_000)])
    now += 5
    await log.append([record("last")])
    await log.maintain()
    assert [event.data["number"] for event in await events(log)] == ["last"]
    assert (await log.stats()).events == 1


async def test_a_chosen_id_is_remembered_behind_the_retention(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(retention=1.0, clock=lambda: now)
    said, other = record(1, id="mine", dedup=False), record(2, id="mine", dedup=False)
    await log.append([said])
    now += 5
    await log.append([record("last")])
    await log.maintain()
    assert len(await events(log)) == 1
    assert await log.append([said, other]) == [Appended.REPEATED, Appended.CLASH]


async def test_positions_go_on_behind_the_retention_and_a_clock_set_back(opened: Open) -> None:
    now = 1_700_000_000.0
    log = await opened(retention=1.0, clock=lambda: now)
    await log.append([record(1)])
    now += 5
    await log.maintain()
    now -= 3600
    await log.append([record(2)])
    pages = [page async for page in log.read(Query())]
    first, second = pages[0]
    assert second.position > first.position
    assert second.recorded_ms >= first.recorded_ms


async def test_a_read_of_many_types_is_merged_in_log_order(opened: Open) -> None:
    log = await opened()
    names = [f"type-{n}" for n in range(30)]
    await log.append([record(n, names[n * 7 % 30], dedup=False, priority=n % 4) for n in range(3_000)])
    wanted = names[:25]
    found = [event.data["number"] for event in await events(log, types=tuple(wanted))]
    assert found == [n for n in range(3_000) if names[n * 7 % 30] in wanted]
    assert max([len(page) async for page in log.read(Query(types=tuple(wanted)))]) <= 1_000


async def test_a_long_call_that_ends_halfway_says_that_its_outcome_is_not_known(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "_LARGEST_APPEND", 10)
    log = await opened()
    records = [record(n) for n in range(10)] + [record("y" * 300_000)]
    await log.append([record("room")])
    (pages,) = await log.writer.submit(lambda connection: connection.execute("PRAGMA page_count").fetchone())
    await log.writer.submit(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 20}").fetchone())
    with pytest.raises(OutcomeUnknown, match="the first 10 of 11"):
        await log.append(records)
    with pytest.raises(StoreUnavailable) as refused:
        await log.append(records[10:])
    assert not isinstance(refused.value, OutcomeUnknown)
    assert await log.append(records[:10]) == [Appended.REPEATED] * 10


async def test_a_removed_step_waits_quietly_until_it_is_registered_again(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    log = await opened()
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    await log.remove_group(GROUP)
    with caplog.at_level(logging.WARNING, "ag06.persistence"):
        assert await subscription.fetch(1, 0.05) == []
        assert await subscription.fetch(1, 0.05) == []
    assert len([line for line in caplog.messages if "removed" in line]) == 1
    await subscription.mark_started([delivery])
    assert await subscription.commit([done(delivery)]) == [False]
    waiting = asyncio.create_task(subscription.fetch(1, 30.0))
    await asyncio.sleep(0.05)
    await registered(log)
    assert numbers(await asyncio.wait_for(waiting, 20)) == [1]


async def test_the_write_ahead_log_stays_small_while_events_are_read(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_LARGEST_WAL", 1 << 20)
    monkeypatch.setattr(writer, "_WAL_INTERVAL", 0.0)
    log = await opened()
    await log.append([record(n) for n in range(2_000)])
    reading = True

    async def read() -> int:
        count = 0
        while reading:
            async for page in log.read(Query(types=(TYPE,))):
                count += len(page)
        return count

    readers = [asyncio.create_task(read()) for _ in range(3)]
    largest = 0
    for start in range(0, 40_000, 500):
        await log.append([record(start + n, dedup=False, event_type="other") for n in range(500)])
        largest = max(largest, Path(log.path + "-wal").stat().st_size)
    reading = False
    assert min(await asyncio.gather(*readers)) > 0
    assert Path(log.path).stat().st_size > 12 << 20
    assert largest < 6 << 20


async def test_identities_are_forgotten_when_their_window_has_ended_however_many_there_are(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "events.db"), LogOptions())
    await log.open()
    short, long = Admission(dedup_window=0.001), Admission(dedup_window=600)
    await log.append([short.admit(TYPE, "test", n) for n in range(6_000)])
    await log.append([long.admit(TYPE, "kept", n) for n in range(10)])
    await asyncio.sleep(0.01)
    await log.maintain()
    await log.close()
    connection = sqlite3.connect(log.path)
    assert connection.execute("SELECT count(*) FROM identities").fetchone() == (10,)
    connection.close()


async def test_waits_of_an_older_release_end_in_a_file_that_it_wrote(opened: Open) -> None:
    log = await opened()
    subscription = await registered(log)
    await log.append([record(1), record(2, delay=0.2)])
    (held,) = await collect(subscription, 1)
    assert await subscription.commit([Postpone(held, 200, 1, 1)]) == [True]
    await log.close()
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        for statement in (
            "ALTER TABLE deliveries DROP COLUMN since",
            "ALTER TABLE scheduled DROP COLUMN since",
            "DROP TABLE leases",
            "DROP TABLE leads",
            "DELETE FROM counters WHERE name = 'waits'",
            "PRAGMA user_version = 5",
        ):
            connection.execute(statement)
        connection.commit()
    log = await opened()
    again = await collect(await registered(log, worker="w2", visibility=5.0), 2)
    assert sorted(numbers(again)) == [1, 2]
