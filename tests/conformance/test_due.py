"""What every log promises to a fetch that waits: it returns what falls due, though nothing else wakes it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from ag06.persistence.log import Delivery, EventLog, Postpone, Subscription
from conftest import OpenLog
from records import collect, done, numbers, output, record, registered

LONG = 120.0
"""Seconds that a fetch would wait by itself: far longer than a test has."""
_PUBLISH = """
import asyncio, sys
from ag06.persistence.admission import Admission
from ag06.persistence.log import LogOptions
from ag06.persistence.stores import open_log

async def main():
    log = open_log(sys.argv[1], LogOptions())
    await log.open()
    await log.append([Admission().admit("order.placed", "test", {"number": 1}, delay=0.3)])
    await log.close()

asyncio.run(main())
"""
_POSTPONE = """
import asyncio, sys
from ag06.persistence.log import LogOptions, Postpone
from ag06.persistence.stores import open_log

async def main():
    log = open_log(sys.argv[1], LogOptions())
    await log.open()
    subscription = log.subscribe("shop.bill", "another", 600.0)
    (held,) = await subscription.fetch(1, 10.0)
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await subscription.commit([Postpone(held, 300, 1, 1)])
    await log.close()

asyncio.run(main())
"""


async def _wait(subscription: Subscription) -> asyncio.Task[list[Delivery]]:
    """Begin a fetch that has looked, found nothing and waits."""
    waiting = asyncio.create_task(subscription.fetch(10, LONG))
    await asyncio.sleep(0.1)
    return waiting


async def _within_the_test(waiting: asyncio.Task[list[Delivery]]) -> list[Delivery]:
    return await asyncio.wait_for(waiting, LONG / 4)


async def test_a_waiting_fetch_returns_a_delayed_event_when_it_is_due(open_store: OpenLog) -> None:
    publisher, log = await open_store(), await open_store()
    waiting = await _wait(await registered(log))
    await publisher.append([record(1, delay=0.3)])
    assert numbers(await _within_the_test(waiting)) == [1]


async def test_a_waiting_fetch_returns_the_one_that_is_due_first(log: EventLog) -> None:
    subscription = await registered(log)
    await log.append([record(1, delay=600.0)])
    waiting = await _wait(subscription)
    await log.append([record(2, delay=0.3), record(3, delay=60.0)])
    assert numbers(await _within_the_test(waiting)) == [2]


async def test_a_waiting_fetch_returns_a_delayed_output_when_it_is_due(log: EventLog) -> None:
    parents = await registered(log)
    waiting = await _wait(await registered(log, group="shop.ship", event_type="order.billed"))
    await log.append([record(1)])
    (parent,) = await collect(parents, 1)
    await parents.commit([done(parent, outputs=[output(2, "order.billed", parent, delay=0.3)])])
    assert numbers(await _within_the_test(waiting)) == [2]


async def test_a_waiting_fetch_returns_a_retry_of_another_worker_when_it_is_due(open_store: OpenLog) -> None:
    log, other = await open_store(), await open_store()
    subscription = await registered(log)
    await log.append([record(1)])
    busy = other.subscribe("shop.bill", "busy", 600.0)
    (held,) = await collect(busy, 1)
    waiting = await _wait(subscription)
    assert await busy.commit([Postpone(held, 300, 1, 1)]) == [True]
    assert numbers(await _within_the_test(waiting)) == [1]


@pytest.mark.parametrize("adapter", ["sqlite", "redis"], indirect=True)
async def test_a_waiting_fetch_returns_what_another_process_delayed(log: EventLog, store_url: str) -> None:
    waiting = await _wait(await registered(log))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _PUBLISH, store_url)
    assert await process.wait() == 0
    assert numbers(await _within_the_test(waiting)) == [1]


@pytest.mark.parametrize("adapter", ["sqlite", "redis"], indirect=True)
async def test_a_waiting_fetch_returns_what_a_worker_of_another_process_postponed(
    log: EventLog, store_url: str
) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _POSTPONE, store_url, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    waiting = await _wait(subscription)
    process.stdin.write(b"\n")
    assert numbers(await _within_the_test(waiting)) == [1]
    assert await process.wait() == 0
