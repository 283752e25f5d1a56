"""A replay and a run of the archive at the same time: no gap and no double, whatever moves while it is read."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from ag06 import Retention
from ag06.persistence.archive import tiers
from ag06.persistence.memory import log as memory_log
from ag06.persistence.redis import reading as redis_reading
from ag06.persistence.sqlite import reading as sqlite_reading
from archives import TYPE, everything, fill, later, live, manifests, numbers, opened, segments


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a few events, so that a replay of hundreds takes many."""
    monkeypatch.setattr(sqlite_reading, "PAGE", 20)
    monkeypatch.setattr(memory_log, "_PAGE", 20)
    monkeypatch.setattr(redis_reading, "_PAGE", 5)


@pytest.mark.parametrize("already", [0, 150])
@pytest.mark.parametrize("at", [0, 1, 70, 160, 399])
async def test_a_run_in_the_middle_of_a_replay_makes_no_gap_and_no_double(
    store_url: str, tmp_path: Path, already: int, at: int
) -> None:
    archive = f"file://{tmp_path}/archive"
    async with opened(store_url) as events:
        await fill(events, already)
        await events.archive_before(later(), archive)
        await fill(events, 400 - already, already)
        found = []
        async for event in events.replay():
            found.append(event)
            if len(found) == at + 1:
                await events.archive_before(later(), archive)
                assert await live(events) == 0
        assert numbers(found) == list(range(400))


async def test_runs_of_single_types_while_others_are_read_make_no_gap(store_url: str, tmp_path: Path) -> None:
    archive = f"file://{tmp_path}/archive"
    async with opened(store_url) as events:
        for part in range(40):
            await fill(events, 10, part * 10, f"type-{part % 4}")
        found = []
        async for event in events.replay():
            found.append(event)
            if len(found) % 100 == 50:
                await events.archive_before(later(), archive, types=f"type-{len(found) // 100}")
        assert numbers(found) == list(range(400))
        assert numbers(await everything(events)) == list(range(400))


async def test_what_comes_during_a_replay_and_is_archived_at_once_does_not_disturb_it(
    store_url: str, tmp_path: Path
) -> None:
    archive = f"file://{tmp_path}/archive"
    async with opened(store_url) as events:
        await fill(events, 200)
        found = []
        async for event in events.replay():
            found.append(event)
            if len(found) in (10, 90):
                await fill(events, 50, 1000 + len(found))
                await events.archive_before(later(), archive)
        assert numbers(found) == list(range(200))


async def test_replays_and_runs_at_random_never_disagree(store_url: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    archive = f"file://{tmp_path}/archive"
    async with opened(store_url) as events:
        stop = asyncio.Event()
        count = 0

        async def publish() -> None:
            nonlocal count
            for _ in range(12):
                await fill(events, 30, count, f"type-{count % 2}")
                count += 30
                await asyncio.sleep(chance.uniform(0, 0.01))
            stop.set()

        async def move() -> None:
            while not stop.is_set():
                await events.archive_before(later(), archive, types=chance.choice([None, "type-0", "type-1"]))
                await asyncio.sleep(chance.uniform(0, 0.02))

        async def read() -> int:
            replays = 0
            while not stop.is_set():
                known = count
                found = numbers(await everything(events))
                assert found == list(range(len(found))), f"seed {seed}"
                assert len(found) >= known, f"seed {seed}"
                replays += 1
            return replays

        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            group.create_task(move())
            reading = group.create_task(read())
        assert reading.result()
        assert numbers(await everything(events)) == list(range(360))


async def test_a_replay_without_archives_asks_for_them_seldom(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The price of the tiers for those who have one: a question for every few pages."""
    async with opened(store_url) as events:
        await fill(events, 400, event_type=TYPE)
        log = await events.log()
        asked = 0
        archives = type(log).archives

        async def counting(self: object) -> list[str]:
            nonlocal asked
            asked += 1
            return await archives(self)  # type: ignore[arg-type]

        monkeypatch.setattr(type(log), "archives", counting)
        assert len(await everything(events)) == 400
        assert 2 <= asked <= 400 // 5 // tiers._MOST_PAGES + 6


async def test_a_deletion_by_retention_during_a_replay_is_no_error(store_url: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with opened(store_url, retention=Retention(delete_after=0.001, archive=f"file://{archive}")) as events:
        for part in range(4):
            await fill(events, 50, part * 50)
            await events.archive_before(later(), f"file://{archive}")
        assert len(manifests(archive)) == 4
        keeper = events.keeper
        assert keeper is not None
        found = []
        async for event in events.replay():
            found.append(event)
            if len(found) == 20:
                await asyncio.sleep(0.01)
                await keeper.keep(await events.log(), "me")
                assert segments(archive) == []
        assert numbers(found)[:50] == list(range(50))
        assert numbers(found) == sorted(numbers(found))
