"""Archiving: what leaves the live log is whole in the archive, and is replayed from there as if it had stayed."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sqlite3
import time
from pathlib import Path

import duckdb
import msgspec
import pytest

from ag06 import Event, Workflow
from ag06.event import Priority
from archives import TYPE, everything, fill, later, live, manifests, numbers, opened, segments


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


async def test_archived_events_are_replayed_as_they_were(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 300)
        await fill(events, 50, 300, "order.billed", time=dt.datetime(1999, 12, 31, 23, 59, 59, 999_999, dt.UTC))
        before = await everything(events)
        done = await events.archive_before(later(), f"file://{archive}")
        assert await live(events) == 0
        assert await everything(events) == before
        assert {type(event.priority) for event in await everything(events)} == {Priority}
        assert done.events == 350
        assert done.start == before[0].recorded
        assert done.end is not None
        assert done.end - dt.timedelta(milliseconds=1) == before[-1].recorded
        assert [Path(url.removeprefix("file://")) for url in done.files] == segments(archive)
        assert Path(done.url.removeprefix("file://")).is_relative_to(archive)


async def test_archive_and_live_log_are_one_stream_whatever_is_asked_of_it(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        for part in range(4):
            await fill(events, 60, part * 60, TYPE if part % 2 else "order.billed")
            if part < 3:
                await events.archive_before(later(), f"file://{archive}")
        found = await everything(events)
        assert numbers(found) == list(range(240))
        moment = found[100].recorded
        assert moment is not None
        asked = {
            "start": {"start": moment},
            "end": {"end": moment},
            "types": {"types": [TYPE]},
            "sources": {"sources": ["source-1", "nobody"]},
            "correlation": {"correlation_id": "correlation-7"},
            "limit": {"limit": 130},
            "all": {
                "start": moment,
                "types": TYPE,
                "sources": "source-2",
                "correlation_id": "correlation-1",
                "limit": 3,
            },
        }
        expected = {
            "start": [event for event in found if event.recorded >= moment],
            "end": [event for event in found if event.recorded < moment],
            "types": [event for event in found if event.type == TYPE],
            "sources": [event for event in found if event.source == "source-1"],
            "correlation": [event for event in found if event.correlation_id == "correlation-7"],
            "limit": found[:130],
            "all": [
                event
                for event in found
                if event.recorded >= moment
                and (event.type, event.source, event.correlation_id) == (TYPE, "source-2", "correlation-1")
            ][:3],
        }
        for name, selection in asked.items():
            assert await everything(events, **selection) == expected[name], name
            assert expected[name], name
        assert await events.replay_from(moment) == expected["start"]


async def test_only_what_was_recorded_before_the_moment_is_archived(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 20)
        time.sleep(0.005)
        moment = dt.datetime.now(dt.UTC)
        time.sleep(0.005)
        await fill(events, 20, 20)
        done = await events.archive_before(moment, f"file://{archive}")
        assert done.events == 20
        assert await live(events) == 20
        assert numbers(await everything(events)) == list(range(40))


async def test_only_the_types_asked_for_are_archived(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 20)
        await fill(events, 20, 20, "order.billed")
        assert (await events.archive_before(later(), f"file://{archive}", types=TYPE)).events == 20
        assert await live(events) == 20
        assert numbers(await everything(events)) == list(range(40))


async def test_what_a_step_has_not_acknowledged_stays_and_is_processed(store_url: str, archive: Path) -> None:
    app = Workflow("shop", store=store_url)
    seen: list[int] = []

    @app.step(TYPE)
    async def bill(event: Event) -> None:
        seen.append(event.data["number"])

    async with app.running():
        await fill(app.events, 10)
        await app.drain(timeout=20)
        assert (await app.events.archive_before(later(), f"file://{archive}")).events == 10
    await app.publish(TYPE, data={"number": 10})
    # Nobody runs the step now.
    assert (await app.events.archive_before(later(), f"file://{archive}")).events == 0
    async with app.running():
        await app.drain(timeout=20)
        assert sorted(seen) == list(range(11))
        if not store_url.startswith("memory"):
            assert sorted(numbers(await everything(app.events))) == list(range(11))


async def test_nothing_to_archive_is_no_error(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        done = await events.archive_before(later(), f"file://{archive}")
        assert (done.events, done.files, done.start, done.end) == (0, (), None, None)
        await fill(events, 5)
        assert (await events.archive_before(1.0, f"file://{archive}")).events == 0
        assert numbers(await everything(events)) == list(range(5))


async def test_a_second_run_archives_nothing_twice(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 30)
        assert (await events.archive_before(later(), f"file://{archive}")).events == 30
        assert (await events.archive_before(later(), f"file://{archive}")).events == 0
        await fill(events, 3, 30)
        assert (await events.archive_before(later(), f"file://{archive}")).events == 3
        rows = duckdb.sql(f"SELECT count(*), count(DISTINCT id) FROM read_parquet('{archive}/**/*.parquet')").fetchall()
        assert rows == [(33, 33)]


async def test_another_process_finds_the_archive(tmp_path: Path, archive: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    async with opened(url) as events:
        await fill(events, 30)
        await events.archive_before(later(), f"file://{archive}")
    async with opened(url) as events:
        assert numbers(await everything(events)) == list(range(30))


async def test_two_logs_share_an_archive_without_mixing(tmp_path: Path, archive: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as one, opened(f"sqlite:///{tmp_path}/b.db") as other:
        await fill(one, 10)
        await fill(other, 10, 10)
        await one.archive_before(later(), f"file://{archive}")
        await other.archive_before(later(), f"file://{archive}/")
        assert numbers(await everything(one)) == list(range(10))
        assert numbers(await everything(other)) == list(range(10, 20))


async def test_one_log_may_have_several_archives(store_url: str, tmp_path: Path) -> None:
    async with opened(store_url) as events:
        for part in range(4):
            await fill(events, 10, part * 10)
            await events.archive_before(later(), f"file://{tmp_path}/archive-{part % 2}")
        assert numbers(await everything(events)) == list(range(40))


async def test_duckdb_reads_the_segments_as_they_are(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 40)
        await fill(events, 7, 40, "order.billed")
        before = await everything(events)
        done = await events.archive_before(later(), f"file://{archive}")
    rows = duckdb.sql(
        f"SELECT type, count(*) FROM read_parquet({list(done.files)}) GROUP BY type ORDER BY type"
    ).fetchall()
    assert rows == [("order.billed", 7), (TYPE, 40)]
    found = duckdb.sql(
        "SELECT id, source, subject, data, epoch_us(time), priority, epoch_ms(recorded), data->>'number' "
        f"FROM read_parquet({list(done.files)}) ORDER BY position"
    ).fetchall()
    assert [(row[0], row[1], row[2], row[5]) for row in found] == [
        (event.id, event.source, event.subject, event.priority) for event in before
    ]
    assert [json.loads(row[3]) for row in found] == [event.data for event in before]
    assert [dt.datetime.fromtimestamp(row[6] / 1000, dt.UTC) for row in found] == [event.recorded for event in before]
    assert [int(row[7]) for row in found] == list(range(47))


async def test_memory_is_fsspecs_own_filesystem(store_url: str) -> None:
    async with opened(store_url) as events:
        await fill(events, 25)
        done = await events.archive_before(later(), f"memory://{store_url.rpartition('/')[2].partition('?')[2] or 'x'}")
        assert done.events == 25
        assert all(url.startswith("memory://") for url in done.files)
        assert numbers(await everything(events)) == list(range(25))


async def test_what_arrives_while_a_run_is_under_way_stays_in_the_live_log(store_url: str, archive: Path) -> None:
    """A moment in the future names events that are not there yet."""
    async with opened(store_url) as events:
        await fill(events, 50)
        arrived = False

        async def more() -> None:
            await fill(events, 10, 50)

        tasks = []

        def watch(progress: object) -> None:
            nonlocal arrived
            if not arrived and progress.stage == "writing":  # type: ignore[attr-defined]
                arrived = True
                tasks.append(asyncio.get_running_loop().create_task(more()))

        await events.archive_before(later(), f"file://{archive}", progress=watch)
        for task in tasks:
            await task
        assert arrived
        assert numbers(await everything(events)) == list(range(60))


async def test_segments_are_cut_by_utc_day_and_say_what_they_hold(tmp_path: Path, archive: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    async with opened(url) as events:
        await fill(events, 30)
    # Ten events a day, as if they had been recorded around two midnights.
    day = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    with sqlite3.connect(tmp_path / "events.db") as connection:
        rows = [row[0] for row in connection.execute("SELECT seq FROM events ORDER BY seq")]
        for number, seq in enumerate(rows):
            moment = day + dt.timedelta(days=number // 10, hours=12, milliseconds=number)
            moved = int(moment.timestamp() * 1000) << 20
            connection.execute("UPDATE events SET seq = ? WHERE seq = ?", (moved, seq))
    connection.close()
    async with opened(url) as events:
        await events.archive_before(later(), f"file://{archive}")
        found = segments(archive)
        assert [path.parent.name for path in found] == ["2026-03-01", "2026-03-02", "2026-03-03"]
        (manifest,) = manifests(archive)
        said = msgspec.json.decode(manifest.read_bytes())["manifest"]["segments"]
        assert [part["events"] for part in said] == [10, 10, 10]
        assert [part["bytes"] for part in said] == [path.stat().st_size for path in found]
        assert numbers(
            await everything(events, start=day + dt.timedelta(days=1), end=day + dt.timedelta(days=2))
        ) == list(range(10, 20))


async def test_the_archive_is_for_its_owner_alone(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 5)
        await events.archive_before(later(), f"file://{archive}")
    assert archive.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in archive.rglob("*")} == {0}


async def test_positions_go_on_when_the_whole_log_was_archived_and_the_clock_went_back(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position that is given twice would hide one of two events from a replay."""
    url = f"sqlite:///{tmp_path}/events.db"
    async with opened(url) as events:
        await fill(events, 10)
        await events.archive_before(later(), f"file://{archive}")
        assert await live(events) == 0
    async with opened(url) as events:
        log = await events.log()
        monkeypatch.setattr(log, "now_ms", lambda: 1_000)
        await fill(events, 10, 10)
        assert numbers(await everything(events)) == list(range(20))
        await events.archive_before(later(), f"file://{archive}")
        assert numbers(await everything(events)) == list(range(20))


async def test_two_runs_at_once_archive_everything_once(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 100)
        both = [events.archive_before(later(), f"file://{archive}") for _ in range(2)]
        done = await asyncio.gather(*both)
        assert sorted(one.events for one in done) == [0, 100]
        assert numbers(await everything(events)) == list(range(100))
