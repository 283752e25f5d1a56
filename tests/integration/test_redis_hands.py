"""Redis: how deliveries change hands when workers pause, die unseen or lose replies, and what is kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from ag06 import OutcomeUnknown, Priority
from ag06.persistence.log import Bury, LogOptions, Postpone, StepSpec
from ag06.persistence.redis import RedisLog
from ag06.persistence.redis.address import read_address
from ag06.persistence.redis.receiving import hand_back
from ag06.persistence.redis.wire import Wire
from faults import configure
from proxy import Proxy
from records import GROUP, TYPE, collect, done, eventually, failure, numbers, record, registered
from servers import ValkeyServer

_STREAM = f"{{hands}}:s:{TYPE}:1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    started = ValkeyServer(tmp_path, appendonly="yes").start()
    yield started
    started.stop()


@pytest.fixture
async def log(server: ValkeyServer) -> AsyncIterator[RedisLog]:
    opened = RedisLog(f"{server.url}?log=hands", LogOptions())
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def client(server: ValkeyServer) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(server.url) as connected:
        yield connected


async def _read_unseen(client: Any, worker: str) -> None:
    """Hand an event to a worker that never learns of it: the reply is lost, or lies in the socket of a blocked loop."""
    assert await client.xreadgroup(GROUP, worker, {_STREAM: ">"}, count=1)


async def test_a_takeover_keeps_the_order_of_a_subject(log: RedisLog, client: Any) -> None:
    first = await registered(log, worker="w1", visibility=0.4)
    second = log.subscribe(GROUP, "w2", 0.4)
    await log.append([record(1, subject="s")])
    (earlier,) = await collect(first, 1)
    await log.append([record(2, subject="s")])
    await _read_unseen(client, "w1")
    for _ in range(8):
        await asyncio.sleep(0.1)
        await asyncio.to_thread(first.renew)
        assert await second.fetch(1, 0.01) == []
    assert await first.commit([done(earlier)]) == [True]
    assert numbers(await collect(second, 1)) == [2]


async def test_an_event_that_a_dead_worker_got_after_its_release_is_taken_over(log: RedisLog, client: Any) -> None:
    subscription = await registered(log, visibility=0.3)
    await log.append([record(1)])
    await log.release_worker("ghost")
    await _read_unseen(client, "ghost")
    assert numbers(await collect(subscription, 1)) == [1]


async def test_what_a_worker_does_not_know_of_is_given_back_however_much_it_holds(log: RedisLog, client: Any) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(301)])
    held = await collect(subscription, 300)
    await _read_unseen(client, "w1")
    wire = Wire(read_address(f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0?log=hands"), 5)
    kept = [delivery.token for delivery in held]
    assert await hand_back(wire, GROUP, TYPE, "w1", kept=kept) == 1
    await wire.close()
    (again,) = await collect(log.subscribe(GROUP, "w2", 30), 1)
    assert (numbers([again]), again.suspect) == ([300], False)


async def test_a_retry_that_comes_before_its_commit_is_confirmed_keeps_its_lease(server: ValkeyServer) -> None:
    configure(server, appendfsync="always")
    log = RedisLog(f"{server.url}?log=hands", LogOptions(durability="fsync"))
    await log.open()
    subscription = await registered(log, visibility=1.0)
    other = log.subscribe(GROUP, "w2", 1.0)
    await log.append([record(0), record(1)])
    first, delivery = await collect(subscription, 2)
    assert await subscription.commit([done(first)]) == [True]
    configure(server, appendfsync="everysec")  # it takes its time from now on
    committing = asyncio.create_task(subscription.commit([Postpone(delivery, 0, 1, 1)]))
    (again,) = await collect(subscription, 1)
    assert await committing == [True]
    for _ in range(8):
        await asyncio.to_thread(subscription.renew)
        assert await other.fetch(1, 0.2) == []
    assert await subscription.commit([done(again)]) == [True]
    await log.close()


async def test_a_lost_reply_is_not_taken_for_durable(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, appendonly="yes", appendfsync="always").start()
    async with Proxy(server.port) as proxy:
        log = RedisLog(f"{proxy.url}?log=hands", LogOptions(durability="fsync", timeout=2.0))
        await log.open()
        configure(server, appendfsync="no")
        with pytest.raises(OutcomeUnknown):
            await log.append([record(1)])
        proxy.lose_reply_to = b"EVALSHA"
        with pytest.raises(OutcomeUnknown):
            await log.append([record(2)])
        await log.close()
    server.stop()


async def test_ten_thousand_deliveries_are_acknowledged_in_one_operation(log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(10_000)])
    assert await subscription.commit([done(*await collect(subscription, 10_000, 30.0))]) == [True]
    assert (await log.stats()).groups[0].backlog == 0


async def test_a_fetch_that_waited_takes_the_most_urgent_and_leaves_the_rest(log: RedisLog) -> None:
    subscription = await registered(log)
    other = log.subscribe(GROUP, "w2", 30)
    waiting = asyncio.create_task(subscription.fetch(1, 10.0))
    await asyncio.sleep(0.2)
    await log.append(
        [record(n, priority=level) for n, level in enumerate((Priority.LOW, Priority.NORMAL, Priority.CRITICAL))]
    )
    assert numbers(await waiting) == [2]
    assert numbers(await collect(other, 2)) == [1, 0]


async def test_dead_letters_of_a_workflow_whose_name_has_blanks_are_listed_and_retried(log: RedisLog) -> None:
    group = "my shop.bill it"
    subscription = await registered(log, group=group)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    assert await subscription.commit([Bury(delivery, failure())]) == [True]
    (letter,) = await log.dead_letters(group)
    assert await log.retry_dead_letters([(group, letter.event_id)]) == 1
    assert numbers(await collect(subscription, 1)) == [1]


async def test_what_a_step_that_began_at_a_time_leaves_behind_is_trimmed(server: ValkeyServer, client: Any) -> None:
    log = RedisLog(f"{server.url}?log=hands", LogOptions(retention=0.2))
    await log.open()
    await log.append([record(n, "a.first") for n in range(3)])
    await asyncio.sleep(0.01)
    seconds, micros = await client.time()
    await log.register("late", [StepSpec("late.one", "a.first", seconds * 1000 + micros // 1000)])
    await log.append([record(n, "b.second") for n in range(3)])

    async def is_empty() -> bool:
        await log.maintain()
        return (await log.stats()).events == 0

    await eventually(is_empty)
    await log.close()


async def test_subjects_are_forgotten_with_their_last_event(server: ValkeyServer, client: Any) -> None:
    log = RedisLog(f"{server.url}?log=hands", LogOptions(retention=0.2))
    await log.open()
    await log.append([record(n, subject=f"s{n}") for n in range(3_000)])

    async def is_empty() -> bool:
        await log.maintain()
        return not await client.hlen(f"{{hands}}:tails:{TYPE}") and (await log.stats()).events == 0

    await eventually(is_empty)
    await log.close()


async def test_killed_workers_leave_no_traces_for_good(log: RedisLog, client: Any) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    for n in range(5):
        gone = RedisLog(
            f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0?log=hands", LogOptions()
        )
        await gone.open()
        killed = gone.subscribe(GROUP, f"killed-{n}", 0.1)
        await killed.fetch(1, 0.01)
    assert await client.hlen(f"{{hands}}:leases:{GROUP}") == 5
    long_ago = int((await client.time())[0] - 7_200) * 1000
    for name in await client.hkeys(f"{{hands}}:leases:{GROUP}"):
        await client.hset(f"{{hands}}:leases:{GROUP}", name, f"100 {long_ago}")
    (delivery,) = await collect(subscription, 1)
    await client.delete("{hands}:trimming")
    await log.maintain()
    assert await client.hkeys(f"{{hands}}:leases:{GROUP}") == [b"w1"]
    assert [
        consumer["name"] for consumer in await client.xinfo_consumers(_STREAM, GROUP) if consumer["name"] != b"~"
    ] == [b"w1"]
    assert await subscription.commit([done(delivery)]) == [True]
