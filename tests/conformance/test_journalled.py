"""What every log promises about records that come late, out of a journal."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from ag06.persistence.log import Appended, EventLog, Record
from records import events, record

STORED, DUPLICATE, REPEATED, CLASH = Appended.STORED, Appended.DUPLICATE, Appended.REPEATED, Appended.CLASH


def journalled(number: int, seconds_ago: float, *, window: float = 300.0, **settings: Any) -> Record:
    persisted_ms = int((time.time() - seconds_ago) * 1000)
    return msgspec.structs.replace(record(number, **settings), persisted_ms=persisted_ms, window_ms=int(window * 1000))


async def test_a_journalled_event_is_stored_once_however_late_it_is_repeated(log: EventLog) -> None:
    late = journalled(1, 3600, window=0.05)
    assert await log.append([late]) == [STORED]
    await asyncio.sleep(0.1)  # its window is over
    assert await log.append([late, late]) == [REPEATED, REPEATED]
    assert len(await events(log)) == 1


async def test_a_journalled_id_that_its_publisher_chose_clashes_with_other_content(log: EventLog) -> None:
    assert await log.append([journalled(1, 60, id="mine")]) == [STORED]
    assert await log.append([journalled(1, 60, id="mine"), journalled(2, 60, id="mine")]) == [REPEATED, CLASH]
    assert await log.append([record(1, id="mine"), record(2, id="mine")]) == [REPEATED, CLASH]


async def test_a_journalled_event_is_a_duplicate_of_what_was_persisted_within_its_window(log: EventLog) -> None:
    assert await log.append([record(1)]) == [STORED]
    assert await log.append([journalled(1, 200)]) == [DUPLICATE]
    assert (await log.stats()).duplicates == 1
    assert len(await events(log)) == 1


async def test_a_journalled_event_is_no_duplicate_of_what_came_a_window_later(log: EventLog) -> None:
    assert await log.append([record(1)]) == [STORED]
    assert await log.append([journalled(1, 400)]) == [STORED]
    assert await log.append([record(1)]) == [DUPLICATE], "the later event's identity was forgotten"
    assert len(await events(log)) == 2


async def test_what_is_published_after_a_journalled_event_is_judged_by_when_that_was_persisted(log: EventLog) -> None:
    assert await log.append([journalled(1, 200), journalled(2, 400)]) == [STORED, STORED]
    assert await log.append([record(1), record(2)]) == [DUPLICATE, STORED]


async def test_events_of_two_journals_are_judged_by_when_they_were_persisted(log: EventLog) -> None:
    assert await log.append([journalled(1, 1000)]) == [STORED]
    assert await log.append([journalled(1, 900), journalled(1, 600)]) == [DUPLICATE, STORED]
    assert len(await events(log)) == 2


async def test_a_journalled_event_keeps_its_subjects_order_and_its_due_time(log: EventLog) -> None:
    due = int(time.time() * 1000) + 60_000
    later = msgspec.structs.replace(journalled(3, 10), due_ms=due)
    assert await log.append([journalled(1, 10, subject="s"), journalled(2, 10, subject="s"), later]) == [STORED] * 3
    assert [event.data["number"] for event in await events(log)] == [1, 2]
    assert (await log.stats()).scheduled == 1
    assert await log.append([later]) == [REPEATED]
