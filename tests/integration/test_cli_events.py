"""`ag06 events list` and `tail`: what the log holds, and what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from commands import ag06, started


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def events(store_url: str) -> AsyncIterator[EventStore]:
    store = EventStore(store_url)
    yield store
    await store.close()


async def _publish(events: EventStore, count: int, event_type: str = "counted", source: str = "test") -> None:
    await events.persist_events(
        [{"event_type": event_type, "source": source, "data": {"n": number}} for number in range(count)]
    )


async def test_the_newest_events_are_listed_oldest_first(events: EventStore, store_url: str, tmp_path: Path) -> None:
    await _publish(events, 30)
    ended = ag06("events", "list", "-n", 3, "--json", "--store", store_url, cwd=tmp_path)
    assert [event["data"]["n"] for event in ended.json] == [27, 28, 29]
    assert ended.code == 0


async def test_listed_events_are_selected_by_type_and_source(
    events: EventStore, store_url: str, tmp_path: Path
) -> None:
    await _publish(events, 2, source="rare")
    await _publish(events, 60)
    await _publish(events, 2, "other", "rare")
    # The rare ones lie further back than the newest few of all sources.
    rare = [("counted", 0), ("counted", 1), ("other", 0), ("other", 1)]
    for limit in (3, 5):
        ended = ag06("events", "list", "-n", limit, "--source", "rare", "--json", "--store", store_url, cwd=tmp_path)
        assert [(event["type"], event["data"]["n"]) for event in ended.json] == rare[-limit:]
    ended = ag06("events", "list", "--type", "other", "--type", "none", "--json", "--store", store_url, cwd=tmp_path)
    assert [event["type"] for event in ended.json] == ["other", "other"]


async def test_listed_events_are_selected_by_time(events: EventStore, store_url: str, tmp_path: Path) -> None:
    await _publish(events, 3)
    store = ["--store", store_url]
    assert ag06("events", "list", "--start", "9999-12-31", "--json", *store, cwd=tmp_path).json == []
    assert ag06("events", "list", "--end", "1h", "--json", *store, cwd=tmp_path).json == []
    found = ag06("events", "list", "--start", "1h", "--end", "9999-12-31T23:59:59Z", "--json", *store, cwd=tmp_path)
    assert len(found.json) == 3


async def test_tail_shows_an_event_published_after_it_started(
    events: EventStore, store_url: str, tmp_path: Path
) -> None:
    await _publish(events, 15)
    with started("events", "tail", "-n", 2, "--store", store_url, cwd=tmp_path) as tail:
        tail.until('{"n":13}', '{"n":14}')
        late = await events.persist_event("late", "test", {"n": 100})
        tail.until(f"late test - {late}", '{"n":100}')
        ended = tail.interrupt()
    assert '{"n":12}' not in ended.out
    assert ended.code == 0  # Ctrl-C is how it ends


async def test_tail_without_lines_shows_only_what_comes(events: EventStore, store_url: str, tmp_path: Path) -> None:
    await _publish(events, 5)
    with started("events", "tail", "-n", 0, "--json", "--store", store_url, cwd=tmp_path) as tail:
        for number in range(1000, 1200):  # until it is up, nobody knows which is the first that it sees
            await events.persist_event("late", "test", {"n": number}, dedup=False)
            if tail.seen(0.1):
                break
        ended = tail.terminate()
    assert ended.lines
    assert {event["type"] for event in ended.lines} == {"late"}


async def test_tail_from_the_start_shows_everything_once(events: EventStore, store_url: str, tmp_path: Path) -> None:
    await _publish(events, 40)
    with started("events", "tail", "--from-start", "--json", "--store", store_url, cwd=tmp_path) as tail:
        tail.until('"n":39}')
        await events.persist_event("counted", "test", {"n": 40})
        tail.until('"n":40}')
        ended = tail.interrupt()
    assert [event["data"]["n"] for event in ended.lines] == list(range(41))
