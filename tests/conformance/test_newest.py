from __future__ import annotations

import pytest

from ag06.persistence.log import EventLog
from records import events, record


@pytest.mark.parametrize(("newest", "least"), [(0, 0), (1, 1), (3, 3), (100, 10)])
async def test_the_newest_events_are_read_and_none_when_none_are_asked_for(
    log: EventLog, newest: int, least: int
) -> None:
    await log.append([record(number, f"type-{number % 2}") for number in range(10)])
    found = [event.data["number"] for event in await events(log, newest=newest)]
    assert found[len(found) - least :] == list(range(10 - least, 10))
    assert (newest == 0) == (found == [])
