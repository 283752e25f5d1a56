"""A run that is killed loses nothing and doubles nothing, and the next one finishes what it left."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from ag06.persistence import EventStore
from archives import everything, fill, later, live, manifests, opened, segments

_CHILD = """
import asyncio, os, sys, time
from ag06.persistence import EventStore
from ag06.persistence.archive import batch, leading, run, segments
from ag06.persistence.redis import reading as redis_reading
from ag06.persistence.sqlite import reading as sqlite_reading

url, archive, stage, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
segments._GROUP_ROWS, run._PIECE_EVENTS, batch._SEGMENT_BYTES, batch._BATCH_BYTES = 40, 40, 15_000, 40_000
redis_reading._PAGE = 20
sqlite_reading.PAGE = 50
leading._SECONDS = 0.5  # the lead of the dead ends soon
seen = 0

def watch(progress):
    global seen
    print(progress.stage, flush=True)
    seen += progress.stage == stage
    if seen == count:
        os._exit(9)

async def main():
    events = EventStore(url)
    done = await events.archive_before(time.time() + 60, archive, progress=watch)
    await events.close()
    print("done", done.events)

asyncio.run(main())
"""
COUNT = 800


def child(url: str, archive: Path, stage: str, count: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, url, f"file://{archive}", stage, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def check_healed(events: EventStore, archive: Path, before: list[Any]) -> None:
    """The next run leaves an archive that holds everything once, and nothing that no manifest names."""
    assert await everything(events) == before
    await events.archive_before(later(), f"file://{archive}")
    assert await everything(events) == before
    assert await live(events) == 0
    rows = duckdb.sql(f"SELECT count(*), count(DISTINCT id) FROM read_parquet('{archive}/**/*.parquet')").fetchall()
    assert rows == [(len(before), len(before))]
    named = [
        path.parents[1] / part["path"]
        for path in manifests(archive)
        for part in msgspec.json.decode(path.read_bytes())["manifest"]["segments"]
    ]
    assert sorted(named) == segments(archive)
    assert [path for path in archive.rglob("*") if path.suffix in {".partial", ".corrupt", ".deleted"}] == []


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stage", ["writing", "written", "verified", "registered", "dropped"])
async def test_a_run_killed_at_any_stage_is_finished_by_the_next(
    stage: str, count: int, store_url: str, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    async with opened(store_url) as events:
        await fill(events, COUNT)
        before = await everything(events)
        process = child(store_url, archive, stage, count)
        out, error = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 9, out + error
        await check_healed(events, archive, before)


async def test_a_run_killed_at_a_random_moment_loses_nothing(store_url: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    archive = tmp_path / "archive"
    killed = 0
    async with opened(store_url) as events:
        for cycle in range(8):
            await fill(events, COUNT, cycle * COUNT)
            before = await everything(events)
            process = child(store_url, archive, "never")
            assert process.stdout is not None
            for _ in range(moments.randint(1, 20)):
                await asyncio.to_thread(process.stdout.readline)
            await asyncio.sleep(moments.uniform(0, 0.005))
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.communicate, timeout=60)
            killed += process.returncode == -signal.SIGKILL
            assert await everything(events) == before, f"cycle {cycle}, seed {seed}"
            assert killed
        await check_healed(events, archive, before)
