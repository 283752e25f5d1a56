"""What several processes, and several logs of one process, may expect of one SQLite file."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence.log import Appended, LogOptions, Postpone
from ag06.persistence.sqlite import SqliteLog
from records import GROUP, collect, done, numbers, record, registered

_COUNT = """
import asyncio, sys
from ag06.persistence.log import LogOptions
from ag06.persistence.sqlite import SqliteLog

async def count():
    log = SqliteLog(sys.argv[1], LogOptions())
    await log.open()
    print((await log.stats()).events)
    await log.close()

asyncio.run(count())
"""

_PUBLISH = """
import asyncio, sys
from ag06.persistence.log import Appended, LogOptions
from ag06.persistence.sqlite import SqliteLog
from records import record

async def publish():
    log = SqliteLog(sys.argv[1], LogOptions())
    await log.open()

    async def one(caller):
        for n in range(100_000):
            said = record(f"{sys.argv[2]}-{caller}-{n}")
            (outcome,) = await log.append([said])
            assert outcome == Appended.STORED
            print(said.id, flush=True)

    await asyncio.gather(*(one(caller) for caller in range(20)))

asyncio.run(publish())
"""


def _seen_by_another_process(path: Path) -> int:
    ended = subprocess.run([sys.executable, "-c", _COUNT, str(path)], capture_output=True, text=True, check=True)
    return int(ended.stdout)


async def test_a_second_log_in_a_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    first, second = SqliteLog(str(path), LogOptions()), SqliteLog(str(path), LogOptions())
    await first.open()
    await first.append([record(1)])
    await second.open()
    assert _seen_by_another_process(path) == 1
    assert path.with_name("events.db-wal").exists(), "another process took the write-ahead log away when it left"
    assert await first.append([record(2)]) == [Appended.STORED]
    assert _seen_by_another_process(path) == 2
    await second.close()
    await first.close()


async def test_a_waiting_fetch_wakes_for_an_event_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    log = SqliteLog(str(path), LogOptions())
    await log.open()
    subscription = await registered(log)
    waiting = asyncio.create_task(subscription.fetch(1, 30.0))
    await asyncio.sleep(0.2)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    publisher = subprocess.Popen(
        [sys.executable, "-c", _PUBLISH, str(path), "0"], stdout=subprocess.DEVNULL, env=environment
    )
    try:
        assert len(await asyncio.wait_for(waiting, 20)) == 1
    finally:
        publisher.kill()
        publisher.wait()
    await log.close()


async def test_every_id_that_a_killed_publisher_was_told_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    told: list[str] = []
    for round_ in range(3):
        output = tmp_path / f"told-{round_}"
        with output.open("wb") as sink:
            publisher = subprocess.Popen(
                [sys.executable, "-c", _PUBLISH, str(path), str(round_)], stdout=sink, env=environment
            )
            deadline = time.monotonic() + 20
            while output.stat().st_size < 4_000 and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.017 * round_)
            publisher.send_signal(signal.SIGKILL)
            publisher.wait()
        told += output.read_text().split()
    assert len(told) > 100
    log = SqliteLog(str(path), LogOptions())
    await log.open()
    await log.close()
    connection = sqlite3.connect(path)
    stored = {event_id for (event_id,) in connection.execute("SELECT id FROM events")}
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    # The last line may be cut in the middle by the kill.
    assert {event_id for event_id in told if len(event_id) == 36} <= stored


def _use_in_child(log: SqliteLog, answers: Connection) -> None:
    async def use() -> None:
        for call in (log.append([record(2)]), log.stats()):
            try:
                await asyncio.wait_for(call, 5)
                answers.send("accepted")
            except StoreError as error:
                answers.send(str(error))
        await asyncio.wait_for(log.close(), 5)
        answers.send("closed")

    asyncio.run(use())
    answers.close()
    os._exit(0)


async def test_a_log_used_after_a_fork_says_so_and_the_parent_goes_on(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "events.db"), LogOptions())
    await log.open()
    await log.append([record(1)])
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_use_in_child, args=(log, there))
    child.start()
    there.close()
    appended, counted, closed = [await asyncio.to_thread(here.recv) for _ in range(3)]
    await asyncio.to_thread(child.join)
    assert "before a fork" in appended
    assert "before a fork" in counted
    assert closed == "closed"
    assert await log.append([record(3)]) == [Appended.STORED]
    assert (await log.stats()).events == 2
    await log.close()


async def test_every_call_ends_within_the_timeout_while_another_process_writes(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "events.db"), LogOptions(timeout=0.3))
    await log.open()
    subscription = await registered(log)
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls = [log.append([record(n)]) for n in range(10)]
    refused = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
    assert all(isinstance(error, StoreUnavailable) and "another process" in str(error) for error in refused)
    assert len({id(error) for error in refused}) == 10, "the facade notes in an error which event it is about"
    other.execute("ROLLBACK")
    other.close()
    assert await log.append([record(1)]) == [Appended.STORED], "a refused event was remembered"
    assert numbers(await collect(subscription, 1)) == [1]
    await log.close()


async def test_a_fetch_rides_out_a_store_that_is_away(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "events.db"), LogOptions(timeout=0.1))
    await log.open()
    subscription = await registered(log)
    await log.append([record(1)])
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await subscription.fetch(1, 0.4) == []
    waiting = asyncio.create_task(subscription.fetch(1, 20.0))
    await asyncio.sleep(0.3)
    other.execute("ROLLBACK")
    other.close()
    assert numbers(await waiting) == [1]
    await log.close()


async def test_a_fetch_that_nobody_waits_for_holds_nothing(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "events.db"), LogOptions())
    await log.open()
    subscription = await registered(log)
    await log.append([record(1)])
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(subscription.fetch(1, 20.0))
    await asyncio.sleep(0.1)  # its claim is under way, and waits for the other transaction
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    other.execute("ROLLBACK")
    other.close()
    again = await collect(log.subscribe(GROUP, "w2", 30), 1)
    assert (again[0].suspect, numbers(again)) == (False, [1])
    await log.close()


async def test_a_retry_is_handed_out_when_it_is_due_to_whoever_waits(tmp_path: Path) -> None:
    log, other = (SqliteLog(str(tmp_path / "events.db"), LogOptions()) for _ in range(2))
    await log.open()
    await other.open()
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    waiting = asyncio.create_task(other.subscribe(GROUP, "w2", 30).fetch(1, 60.0))
    await asyncio.sleep(0.05)
    await subscription.commit([Postpone(delivery, 100, 1, 1)])
    assert numbers(await asyncio.wait_for(waiting, 20)) == [1]
    await other.close()
    await log.close()


async def test_one_failing_operation_spoils_no_other_of_its_transaction(tmp_path: Path) -> None:
    log = SqliteLog(str(tmp_path / "events.db"), LogOptions())
    await log.open()
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # so that all three end in one transaction

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM events")
        raise LookupError("broken")

    failing = log.writer.submit(fail)
    commit = asyncio.create_task(subscription.commit([done(delivery)]))
    append = asyncio.create_task(log.append([record(2)]))
    await asyncio.sleep(0.05)
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(StoreError, match="broken"):
        await failing
    assert await commit == [True]
    assert await append == [Appended.STORED]
    assert (await log.stats()).events == 2
    await log.close()
