"""The one line that a shutdown ends with: finished, given back, cut off, journalled."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
from pathlib import Path

import pytest

from ag06 import Event, Workflow
from ag06.runtime.shutdown_report import ShutdownCounts, log_shutdown
from conftest import OpenLog
from flows import SECONDS, until
from proxy import Proxy
from records import eventually
from servers import ValkeyServer, free_port
from workers import ag06_run, write_flow


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the runtime logs, as it comes."""
    caplog.set_level("INFO", "ag06.runtime")
    return caplog


def last(lines: pytest.LogCaptureFixture) -> logging.LogRecord:
    (line,) = [record for record in lines.records if "stopped:" in record.msg]
    return line


async def test_calls_that_end_and_events_that_wait_are_told_apart(
    store_url: str, open_store: OpenLog, lines: pytest.LogCaptureFixture
) -> None:
    log = await open_store()
    app = Workflow("shop", store=store_url)
    started: list[str] = []
    leave = asyncio.Event()

    @app.step("order", concurrency=2)
    async def bill(event: Event) -> None:
        started.append(event.id)
        await leave.wait()

    async with app.running():
        for _ in range(2):
            await app.publish("order", dedup=False)
        await until(lambda: len(started) == 2)
        worker = app._worker
        assert worker is not None
        (runner,) = worker.runners
        runner._prefetch.floor = 5
        for _ in range(3):
            await app.publish("order", dedup=False)
        runner._room.set()
        await eventually(lambda: _held(log, 5))
        await until(lambda: runner.in_flight == 5)
        asyncio.get_running_loop().call_later(0.05, leave.set)
    line = last(lines)
    assert line.getMessage().startswith("workflow shop stopped: 2 finished, 3 given back, 0 cut off, 0 journalled, in ")
    assert line.levelno == logging.INFO
    assert await log.pending(["shop.bill"]) == 3


async def _held(log: object, count: int) -> bool:
    return [group.in_flight for group in await log.groups()] == [count]  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["awaits", "swallows every cancellation", "is in a thread"])
async def test_calls_that_are_cut_off_are_named(
    store_url: str, open_store: OpenLog, lines: pytest.LogCaptureFixture, how: str
) -> None:
    log = await open_store()
    app = Workflow("shop", store=store_url, grace=0.0)
    started = threading.Event()
    leave = threading.Event()

    async def awaits(event: Event) -> None:
        started.set()
        await asyncio.sleep(SECONDS)

    async def swallows(event: Event) -> None:
        started.set()
        while not leave.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    def in_thread(event: Event) -> None:
        started.set()
        leave.wait(SECONDS)

    steps = {"awaits": awaits, "swallows every cancellation": swallows, "is in a thread": in_thread}
    app.step("order", name="bill")(steps[how])
    async with app.running():
        event_id = await app.publish("order")
        await until(started.is_set)
    line = last(lines)
    leave.set()
    expected = f"workflow shop stopped: 0 finished, 0 given back, 1 cut off ({event_id}), 0 journalled, in "
    assert line.getMessage().startswith(expected)
    assert line.levelno == logging.WARNING
    assert await log.pending(["shop.bill"]) == 1


async def test_a_batch_that_is_cut_off_names_all_its_events(lines: pytest.LogCaptureFixture) -> None:
    app = Workflow("shop", store="memory://", grace=0.0)
    called: list[list[str]] = []

    @app.batch_step("order", max_size=3, max_wait=SECONDS)
    async def bill(events: list[Event]) -> None:
        called.append([event.id for event in events])
        await asyncio.sleep(SECONDS)

    async with app.running():
        for _ in range(3):
            await app.publish("order", dedup=False)
        await until(lambda: called)
    assert f"0 given back, 3 cut off ({', '.join(called[0])})" in last(lines).getMessage()


async def test_events_that_a_store_cannot_take_back_are_left_to_their_leases(
    valkey: ValkeyServer, lines: pytest.LogCaptureFixture
) -> None:
    async with Proxy(valkey.port) as proxy:
        app = Workflow("gone", store=f"{proxy.url}?log=left-to-its-lease", grace=0.0, timeout=0.5)
        started = asyncio.Event()

        @app.step("order")
        async def bill(event: Event) -> None:
            started.set()
            await asyncio.sleep(SECONDS)

        async with app.running():
            event_id = await app.publish("order")
            await asyncio.wait_for(started.wait(), SECONDS)
            await proxy.down()
    line = last(lines)
    assert f"0 given back, 1 cut off ({event_id}), 0 journalled, 1 left to their leases" in line.getMessage()


async def test_events_that_stay_in_the_journal_are_counted(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    app = Workflow("shop", store=f"redis://127.0.0.1:{free_port()}/0", journal=str(tmp_path / "journal"))
    app.step("order", name="bill")(lambda event: None)
    async with app.running():
        for _ in range(2):
            await app.publish("order", dedup=False)
    assert "0 cut off, 2 journalled, in " in last(lines).getMessage()


def test_the_line_names_ten_events_and_counts_the_rest(lines: pytest.LogCaptureFixture) -> None:
    log_shutdown("shop", ShutdownCounts(cut_off=[f"e{n}" for n in range(12)]), 0, 0.0)
    assert "12 cut off (e0, e1, e2, e3, e4, e5, e6, e7, e8, e9 and 2 more)" in last(lines).getMessage()


@pytest.mark.parametrize("adapter", ["sqlite"])
async def test_a_worker_process_ends_its_log_with_the_line_and_its_fields(store_url: str, tmp_path: Path) -> None:
    write_flow(
        tmp_path,
        """
app = Workflow("shop", grace=0.1)

@app.step("order")
async def bill(event: Event):
    note("start")
    await asyncio.sleep(3600)
""",
    )
    app = Workflow("shop", store=store_url)
    event_id = await app.publish("order")
    async with ag06_run(tmp_path, store_url) as worker:
        await worker.noted("start")
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0, worker.said
    line = json.loads(worker.said.strip().splitlines()[-1])
    fields = {name: line[name] for name in ("finished", "given_back", "cut_off", "cut_off_ids", "journalled", "left")}
    assert fields == {
        "finished": 0,
        "given_back": 0,
        "cut_off": 1,
        "cut_off_ids": [event_id],
        "journalled": 0,
        "left": 0,
    }
    assert line["level"] == "warning"
    await app.close()
