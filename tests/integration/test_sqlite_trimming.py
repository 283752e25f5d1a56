"""SQLite: what leaves the log, and what is forgotten with it so that the file does not grow without end."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ag06.persistence.log import Appended, Bury, LogOptions
from ag06.persistence.sqlite import SqliteLog, schema, turns
from records import GROUP, TYPE, collect, done, events, failure, number, numbers, record, registered

DAY = 86_400.0
Open = Callable[..., Awaitable[SqliteLog]]


class Clock:
    """Seconds since the epoch, as the test sets them."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    @property
    def ms(self) -> int:
        return int(self.now * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def opened(tmp_path: Path, clock: Clock) -> AsyncIterator[Open]:
    logs: list[SqliteLog] = []

    async def open_one(**settings: Any) -> SqliteLog:
        log = SqliteLog(str(tmp_path / "events.db"), LogOptions(**settings), clock)
        await log.open()
        logs.append(log)
        return log

    yield open_one
    for log in logs:
        await log.close()


def _rows(log: SqliteLog, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        return connection.execute(statement).fetchall()


async def _drop_all(log: SqliteLog, clock: Clock) -> int:
    clock.now += 1
    await log.append([record("last", "log.ended", dedup=False)])
    return sum([await log.drop(cut) for cut in await log.settled(clock.ms, [TYPE])])


async def _maintain(log: SqliteLog, clock: Clock, times: int = 3) -> None:
    for _ in range(times):
        clock.now += 31
        await log.maintain()


async def test_a_step_that_comes_later_does_not_wait_for_a_dead_letter_of_another_one(
    opened: Open, clock: Clock
) -> None:
    log = await opened()
    bill = await registered(log)
    await log.append([record(1, subject="s")])
    (buried,) = await collect(bill, 1)
    await bill.commit([Bury(buried, failure())])
    assert await _drop_all(log, clock) == 1
    (letter,) = await log.dead_letters()
    assert await log.retry_dead_letters([(GROUP, letter.event_id)]) == 1
    await log.append([record(2, subject="s", priority=3)])
    late = await registered(log, group="late.take", start="beginning")
    assert numbers(await collect(late, 1)) == [2]
    (again,) = await collect(bill, 1)
    assert number(again) == 1
    assert await bill.fetch(1, 0.05) == []
    await bill.commit([done(again)])
    assert numbers(await collect(bill, 1)) == [2]


async def test_the_newest_events_are_read_past_those_of_retried_dead_letters(opened: Open, clock: Clock) -> None:
    log = await opened()
    bill = await registered(log)
    await log.append([record(n) for n in range(5)])
    await bill.commit([Bury(delivery, failure()) for delivery in await collect(bill, 5)])
    assert await _drop_all(log, clock) == 5
    await log.retry_dead_letters([(letter.group, letter.event_id) for letter in await log.dead_letters()])
    await log.append([record("new", "log.ended")])
    assert [event.data["number"] for event in await events(log)] == ["last", "new"]
    assert [event.data["number"] for event in await events(log, newest=2)] == ["last", "new"]


async def test_what_came_back_for_dead_letters_goes_when_they_are_settled(
    opened: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_SLICE", 3)
    log = await opened()
    bill = await registered(log)
    await log.append([record(n) for n in range(10)])
    await bill.commit([Bury(delivery, failure()) for delivery in await collect(bill, 10)])
    assert await _drop_all(log, clock) == 10
    await log.retry_dead_letters([(letter.group, letter.event_id) for letter in await log.dead_letters()])
    await bill.commit([done(delivery) for delivery in await collect(bill, 6)])
    await _maintain(log, clock, 8)
    assert _rows(log, "SELECT count(*) FROM events WHERE stream < 0") == [(4,)]
    assert sorted(numbers(await collect(bill, 4))) == [6, 7, 8, 9]
    await log.remove_group(GROUP)
    await _maintain(log, clock, 8)
    assert _rows(log, "SELECT count(*) FROM events WHERE stream < 0") == [(0,)]


async def test_a_chosen_id_is_remembered_for_seven_days_behind_its_event(
    opened: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_SLICE", 3)
    log = await opened(retention=1.0)
    early = [record(n, id=f"early-{n}", dedup=False) for n in range(8)]
    await log.append(early)
    await log.append([record("end", dedup=False)])
    clock.now += 5
    await log.maintain()
    clock.now += DAY
    late = record("late", id="late", dedup=False)
    await log.append([late])
    clock.now += 5
    await log.append([record("end", dedup=False)])
    await log.maintain()
    assert [event.data["number"] for event in await events(log)] == ["end"]
    for _ in range(6):
        clock.now += DAY - 20
        await log.maintain()
    assert await log.append(early) == [Appended.REPEATED] * 8
    for _ in range(4):
        clock.now += 3700
        await log.maintain()
    assert _rows(log, "SELECT id FROM trimmed_ids") == [("late",)]
    assert await log.append([early[0], late]) == [Appended.STORED, Appended.REPEATED]


async def test_subjects_are_forgotten_with_what_was_dropped(
    opened: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_SLICE", 3)
    log = await opened()
    await log.append([record(n, subject=f"s{n}") for n in range(10)])
    assert await _drop_all(log, clock) == 10
    await log.append([record("kept", subject="s4")])
    await _maintain(log, clock, 6)
    assert _rows(log, "SELECT subject FROM subjects") == [("s4",)]
    await _drop_all(log, clock)
    await _maintain(log, clock, 3)
    assert _rows(log, "SELECT subject FROM subjects") == []


async def test_housekeeping_of_a_log_that_nothing_left_writes_nothing(opened: Open, clock: Clock) -> None:
    log = await opened()
    await log.append([record(n, subject=f"s{n}") for n in range(10)])
    await log.maintain()
    with contextlib.closing(sqlite3.connect(log.path)) as watching:
        (before,) = watching.execute("PRAGMA data_version").fetchone()
        for _ in range(5):
            clock.now += 1
            await log.maintain()
        assert watching.execute("PRAGMA data_version").fetchone() == (before,)


async def test_a_file_of_an_earlier_schema_remembers_its_ids_for_seven_days_more(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "events.db"
    said = record(1, id="mine", dedup=False)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for step in itertools.islice(schema._STEPS, 3):
            connection.executescript(step)
        connection.execute("INSERT INTO trimmed_ids VALUES ('mine', ?)", (said.content,))
        connection.execute("PRAGMA user_version = 3")
        connection.commit()
    log = SqliteLog(str(path), LogOptions())
    await log.open()
    try:
        await log.maintain()
        assert await log.append([said]) == [Appended.REPEATED]
        assert await log.archives() == []
    finally:
        await log.close()


async def test_a_clock_that_was_ahead_of_its_time_puts_no_housekeeping_off(opened: Open, clock: Clock) -> None:
    log = await opened()
    clock.now += 400 * DAY
    await _maintain(log, clock)
    assert await log.lead("archive", "dead", 30)
    clock.now -= 400 * DAY
    await log.append([record(n) for n in range(5)])
    clock.now += 3600
    await _maintain(log, clock)
    assert _rows(log, "SELECT count(*) FROM identities") == [(0,)]
    assert not await log.lead("archive", "alive", 30), "the dead one's lead begins when it is found"
    clock.now += 30
    assert await log.lead("archive", "alive", 30)
    assert not await log.lead("archive", "another", 30)
