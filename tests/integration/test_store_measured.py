"""What stores tell of their own work: how long operations take, how many events go through, connections, journals."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ag06.monitoring.instruments import (
    ACTIVE_CONNECTIONS,
    BATCH_SIZE,
    JOURNAL_EVENTS,
    JOURNAL_OLDEST_AGE,
    STORE_OPERATION,
)
from ag06.persistence import EventStore
from ag06.persistence.journal.depth import Depth
from ag06.persistence.log import EventLog, Postpone, Query
from ag06.persistence.redis.address import read_address
from ag06.persistence.redis.wire import Wire
from conftest import OpenLog
from faults import running_server
from journals import diverted, state, straight, when
from records import TYPE, done, record, registered
from servers import ValkeyServer

OPERATIONS = {"append", "fetch", "commit", "start", "release", "renew", "stats", "replay", "maintain"}


def operations() -> dict[str, int]:
    """How many operations were counted, by name."""
    return {sample.labels[0]: int(sum(sample.numbers[1:])) for sample in STORE_OPERATION.samples()}


def events(kind: str) -> float:
    """How many events went through operations of a kind."""
    return next((sample.numbers[0] for sample in BATCH_SIZE.samples() if sample.labels == (kind,)), 0.0)


def batches(kind: str) -> int:
    return next((int(sum(sample.numbers[1:])) for sample in BATCH_SIZE.samples() if sample.labels == (kind,)), 0)


def connections() -> float:
    return ACTIVE_CONNECTIONS.sample().numbers[0]


def grown(before: dict[str, int]) -> dict[str, int]:
    """What was counted since, nothing that is 0."""
    return {name: more for name, count in operations().items() if (more := count - before.get(name, 0))}


async def test_every_store_counts_the_same_operations_under_the_same_names(log: EventLog) -> None:
    subscription = await registered(log)
    before = operations()
    await log.append([record(number) for number in range(5)])
    assert grown(before) == {"append": 1}
    deliveries = await subscription.fetch(5, 10.0)
    await subscription.mark_started(deliveries)
    await asyncio.to_thread(subscription.renew)
    await subscription.commit([done(*deliveries[:2]), done(deliveries[2])])
    await subscription.release(deliveries[3:])
    _ = [page async for page in log.read(Query())]
    await log.stats()
    await log.groups()
    await log.maintain()
    counts = grown(before)
    assert set(counts) == OPERATIONS
    assert counts["append"] == counts["start"] == counts["renew"] == counts["commit"] == counts["release"] == 1
    assert counts["stats"] == 2


async def test_the_events_of_an_operation_are_counted_with_it(log: EventLog) -> None:
    subscription = await registered(log)
    before = {kind: (events(kind), batches(kind)) for kind in ("append", "fetch", "commit")}

    def more(kind: str) -> tuple[float, int]:
        return events(kind) - before[kind][0], batches(kind) - before[kind][1]

    await log.append([record(number) for number in range(6)])
    assert more("append") == (6, 1)
    deliveries = await subscription.fetch(6, 10.0)
    assert len(deliveries) == 6
    assert more("fetch") == (6, 1)
    await subscription.commit([done(*deliveries[:4]), done(deliveries[4]), Postpone(deliveries[5], 60_000, 1, 1)])
    assert more("commit") == (6, 1)


async def test_appends_that_share_an_operation_are_one(open_store: OpenLog, adapter: str) -> None:
    log = await open_store()
    before, sizes = operations(), (events("append"), batches("append"))
    await asyncio.gather(*[log.append([record(number)]) for number in range(100)])
    assert events("append") - sizes[0] == 100
    shared = grown(before)["append"]
    assert batches("append") - sizes[1] == shared
    if adapter == "memory":
        assert shared == 100
    else:
        assert shared < 50


async def test_waiting_for_events_is_no_time_of_the_store(log: EventLog) -> None:
    subscription = await registered(log)
    before = sum(sample.numbers[0] for sample in STORE_OPERATION.samples() if sample.labels == ("fetch",))
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await subscription.fetch(1, 2.0) == []
    waited = loop.time() - began
    took = sum(sample.numbers[0] for sample in STORE_OPERATION.samples() if sample.labels == ("fetch",)) - before
    assert 0 < took < waited / 2


async def test_a_store_that_does_not_answer_is_no_operation(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        store = EventStore(server.url, journal="off", timeout=0.5)
        log = await store.log()
        await log.append([record(0)])
        await asyncio.to_thread(server.kill)
        before = operations()
        with pytest.raises(ConnectionError):
            await log.append([record(1)])
        with pytest.raises(ConnectionError):
            await log.stats()
        assert grown(before) == {}
        await store.close()


# Connections


async def test_connections_are_counted_while_they_are_open(open_store: OpenLog, adapter: str) -> None:
    gc.collect()
    before = connections()
    log = await open_store()
    subscription = await registered(log)
    await log.append([record(1)])
    deliveries = await subscription.fetch(1, 10.0)
    await subscription.commit([done(*deliveries)])
    assert connections() - before == {"memory": 0, "sqlite": 2, "redis": 5}[adapter]
    await subscription.close()
    assert connections() - before == {"memory": 0, "sqlite": 2, "redis": 2}[adapter]
    await log.close()
    assert connections() == before


async def test_a_connection_that_was_lost_is_counted_off_and_its_successor_on(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        store = EventStore(server.url, journal="off", timeout=5.0)
        before = connections()
        log = await store.log()
        await log.stats()
        opened = connections() - before
        assert opened > 0
        await asyncio.to_thread(server.kill)
        with pytest.raises(ConnectionError):
            await log.stats()
        with pytest.raises(ConnectionError):
            await log.append([record(1)])
        assert connections() == before
        await asyncio.to_thread(server.start)
        await log.stats()
        await log.append([record(1)])
        assert connections() - before == opened
        await store.close()
        assert connections() == before


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client's, of what is dropped with the loop
def test_connections_of_a_loop_that_ended_without_a_close_are_counted_off(store_url: str) -> None:
    gc.collect()
    before = connections()
    store = EventStore(store_url)
    asyncio.run(_publish(store, 1))
    asyncio.run(_closed(store))  # finds that loop closed, and lets its log go
    _until(lambda: connections() == before)


async def _publish(store: EventStore, number: int) -> None:
    await store.persist_event(TYPE, "test", number)


async def _closed(store: EventStore) -> None:
    await store.persist_event(TYPE, "test", 3)
    await store.close()


def _until(check: Callable[[], bool]) -> None:
    """Wait for what threads do by themselves; a hang ends in the timeout of the test."""
    waited = threading.Event()
    while not check():
        gc.collect()
        waited.wait(0.01)


def _in_a_child(store: EventStore, answers: Any) -> None:
    gc.collect()
    answers.put(("inherited", connections()))
    asyncio.run(_closed(store))
    gc.collect()
    answers.put(("closed", connections()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_child_process_counts_its_own_connections_alone(store_url: str, adapter: str) -> None:
    store = EventStore(store_url)
    await store.persist_event(TYPE, "test", 1)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_a_child, args=(store, answers))
    child.start()
    await asyncio.to_thread(child.join, 60)
    assert child.exitcode == 0
    assert answers.get(timeout=10) == ("inherited", 0.0)
    assert answers.get(timeout=10) == ("closed", 0.0)
    await store.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client's, of what the child drops
async def test_what_a_child_process_drops_of_its_parent_is_not_counted_off_there(valkey: ValkeyServer) -> None:
    wires = [Wire(read_address(valkey.url), 10.0)]
    await wires[0].open()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        wires.clear()
        gc.collect()
        os.write(write, str(connections()).encode())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(read, 100) == b"0.0"
    os.close(read)
    os.close(write)
    await wires[0].close()


# Journals


def waiting() -> float:
    return JOURNAL_EVENTS.sample().numbers[0]


def age() -> float:
    return JOURNAL_OLDEST_AGE.sample().numbers[0]


async def test_what_waits_in_a_journal_is_shown_until_the_store_has_it(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        store = EventStore(server.url, journal=str(tmp_path / "journal"))
        await store.log()
        assert (waiting(), age()) == (0, 0)
        await asyncio.to_thread(server.kill)
        before = operations()
        for number in range(7):
            await store.persist_event(TYPE, "test", number)
        await diverted(store)

        async def shown() -> bool:
            return waiting() == 7 and age() > 0

        await when(shown)
        assert grown(before).get("append", 0) == 0, "a journal is not the store"
        first = age()

        async def older() -> bool:
            return age() > first

        await when(older)
        await asyncio.to_thread(server.start)
        await straight(store)

        async def gone() -> bool:
            return (waiting(), age()) == (0, 0)

        await when(gone)
        await store.close()


async def test_a_closed_log_takes_what_it_left_in_its_journal_off_the_metrics(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        store = EventStore(server.url, journal=str(tmp_path / "journal"), timeout=0.5)
        await store.log()
        await asyncio.to_thread(server.kill)
        await store.persist_event(TYPE, "test", 1)

        async def shown() -> bool:
            return waiting() == 1

        await when(shown)
        assert (await state(store)).events == 1
        await store.close()
        assert (waiting(), age()) == (0, 0)


def test_journals_of_several_loops_are_one_number_and_the_oldest_of_them_one_age() -> None:
    one, two = Depth(), Depth()
    before = waiting()
    one.show(3, 1_000, 11_000)
    two.show(4, 6_000, 11_000)
    assert (waiting() - before, age()) == (7, 10)
    one.show(1, 8_000, 12_000)
    assert (waiting() - before, age()) == (5, 6)
    two.show(0, None, 12_000)
    one.show(0, None, 12_000)
    assert (waiting() - before, age()) == (0, 0)


def test_a_child_process_shows_no_journal_of_its_parent() -> None:
    depth = Depth()
    depth.show(3, 1_000, 11_000)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        Depth().show(1, 10_000, 11_000)
        os.write(write, f"{waiting()} {age()}".encode())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(read, 100) == b"1.0 1.0"
    os.close(read)
    os.close(write)
    depth.show(0, None, 11_000)
