"""What workers say of themselves, in files that their supervisor reads."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ag06.runtime.worker_reports import MOST_BYTES, WorkerReport, read_reports, remove_reports, write_reports
from flows import until


@asynccontextmanager
async def reporting(
    directory: Path, worker: str, report: Callable[[], Awaitable[Mapping[str, Any]]], **options: Any
) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(write_reports(directory, worker, report, every=0.01, **options))
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


def read(directory: Path) -> dict[str, WorkerReport]:
    return {report.worker: report for report in read_reports(directory, time.time())}


async def test_what_a_worker_says_is_read_with_its_age_until_it_says_something_else(tmp_path: Path) -> None:
    said = {"knobs": {"size": 1}}
    now = 1000.0

    async def report() -> Mapping[str, Any]:
        return said

    async with reporting(tmp_path, "host/one 1", report, clock=lambda: now):
        await until(lambda: read(tmp_path))
        (found,) = read_reports(tmp_path, 1007.5)
        assert (found.worker, found.pid, found.content, found.age) == ("host/one 1", os.getpid(), said, 7.5)
        said = {"knobs": {"size": 2}}
        now = 1010.0
        await until(lambda: read(tmp_path)["host/one 1"].content == {"knobs": {"size": 2}})
        (found,) = read_reports(tmp_path, 1007.5)  # a clock was set back meanwhile
        assert found.age == 0.0


async def test_a_reader_never_sees_half_a_report(tmp_path: Path) -> None:
    turn = 0

    async def report() -> Mapping[str, Any]:
        nonlocal turn
        turn += 1
        return {"turn": [turn] * 50_000}

    async with reporting(tmp_path, "one", report):
        await until(lambda: read(tmp_path))
        seen = set()
        while len(seen) < 20:
            turns = (await asyncio.to_thread(read, tmp_path))["one"].content["turn"]
            assert turns == [turns[0]] * 50_000
            seen.add(turns[0])


async def test_a_report_that_is_too_large_is_named_and_not_written(tmp_path: Path) -> None:
    async def report() -> Mapping[str, Any]:
        return {"text": "x" * MOST_BYTES}

    async with reporting(tmp_path, "one", report):
        await until(lambda: read(tmp_path))
        assert "was left out" in read(tmp_path)["one"].content["problem"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000


async def test_a_worker_that_cannot_report_warns_once_and_reports_again_when_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "reports"
    calls = 0

    async def report() -> Mapping[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise ValueError("a step's name is no text")
        return {"calls": calls}

    async with reporting(directory, "one", report):  # there is no directory yet
        await until(lambda: calls >= 30)
        directory.mkdir()
        await until(lambda: read(directory))
    assert len([line for line in caplog.messages if "cannot report" in line]) == 1


async def test_what_is_no_report_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "torn.report").write_bytes(b'{"worker": "torn", "pi')
    (tmp_path / "other.report").write_bytes(b"[1, 2]")
    (tmp_path / "directory.report").mkdir()
    (tmp_path / "1-abc.index").write_bytes(b"a metric")

    async def report() -> Mapping[str, Any]:
        return {}

    async with reporting(tmp_path, "one", report):
        await until((tmp_path / "one.report").exists)
        assert list(read(tmp_path)) == ["one"]
    assert read_reports(tmp_path / "nowhere", 0.0) == []


async def test_reports_of_the_dead_are_removed_and_nothing_else(tmp_path: Path) -> None:
    async def report() -> Mapping[str, Any]:
        return {}

    async with reporting(tmp_path, "a.b-1", report), reporting(tmp_path, "a.b-2", report):
        await until(lambda: len(read(tmp_path)) == 2)
    (tmp_path / "a.b-1.new").write_bytes(b"killed in the middle")
    (tmp_path / "1-abc.index").write_bytes(b"a metric")
    remove_reports(tmp_path, frozenset({"a.b-2"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-abc.index", "a.b-2.report"]


async def test_a_killed_process_leaves_its_last_report_whole(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from ag06.runtime.worker_reports import write_reports
turn = 0
async def report():
    global turn
    turn += 1
    return {"turn": [turn] * 5000}
asyncio.run(write_reports(Path(sys.argv[1]), "killed", report, every=0.0))
"""

    def reported(pid: int) -> bool:
        return any(report.pid == pid for report in read(tmp_path).values())

    for _ in range(5):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path))
        await until(partial(reported, process.pid))
        process.kill()
        await process.wait()
        turns = read(tmp_path)["killed"].content["turn"]
        assert turns == [turns[0]] * 5000
