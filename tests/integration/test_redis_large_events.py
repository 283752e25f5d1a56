"""What the log on Redis promises where events are large and the server limits what may wait for a client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06.errors import StoreUnavailable
from ag06.event import Priority
from ag06.persistence.log import Bury, Delivery, LogOptions, Query, Subscription
from ag06.persistence.redis import RedisLog
from faults import configure, running_server
from records import TYPE, done, events, eventually, failure, numbers, record, registered
from servers import ValkeyServer

_COUNT = 24
_BODY = "x" * 200_000
_LIMIT = 1 << 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path) as started:
        yield started


@pytest.fixture
async def log(server: ValkeyServer) -> AsyncIterator[RedisLog]:
    opened = RedisLog(server.url, LogOptions(timeout=5.0))
    await opened.open()
    yield opened
    await opened.close()


def limit(server: ValkeyServer, size: int = _LIMIT) -> None:
    configure(server, client_output_buffer_limit=f"normal {size} 0 0")


def large(n: int, **settings: Any) -> Any:
    return record([n, _BODY], **settings)


async def fetched(subscription: Subscription, count: int) -> list[Delivery]:
    """Fetch until there are `count` deliveries, asking for many at once."""
    found: list[Delivery] = []

    async def enough() -> bool:
        found.extend(await subscription.fetch(1000, 0.1))
        return len(found) >= count

    await eventually(enough, 30)
    return found


async def test_large_events_come_although_the_server_limits_what_waits_for_a_client(
    server: ValkeyServer, log: RedisLog
) -> None:
    subscription = await registered(log)
    limit(server)
    await log.append([large(n) for n in range(_COUNT)])
    deliveries = await fetched(subscription, _COUNT)
    assert [n for n, _ in numbers(deliveries)] == list(range(_COUNT))
    assert await subscription.commit([done(*deliveries)]) == [True]


async def test_large_events_of_all_priorities_that_are_handed_out_again_come(
    server: ValkeyServer, log: RedisLog
) -> None:
    subscription = await registered(log)
    await log.append([large(n, priority=Priority(n % 4)) for n in range(_COUNT)])
    deliveries = await fetched(subscription, _COUNT)
    await subscription.release(deliveries)
    limit(server)
    again = await fetched(subscription, _COUNT)
    assert sorted(n for n, _ in numbers(again)) == list(range(_COUNT))


async def test_large_events_are_read_although_the_server_limits_what_waits_for_a_client(
    server: ValkeyServer, log: RedisLog
) -> None:
    await log.append([large(n, event_type=f"{TYPE}.{n % 3}") for n in range(_COUNT)])
    limit(server)
    assert [event.data["number"][0] for event in await events(log)] == list(range(_COUNT))
    assert [event.data["number"][0] for event in await events(log, newest=5)] == list(range(_COUNT - 5, _COUNT))


async def test_large_dead_letters_are_listed(server: ValkeyServer, log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([large(n) for n in range(_COUNT)])
    deliveries = await fetched(subscription, _COUNT)
    await subscription.commit([Bury(delivery, failure()) for delivery in deliveries])
    limit(server, 6 << 20)
    assert len(await log.dead_letters()) == _COUNT


async def test_a_reply_ends_after_some_bytes_however_many_events_are_asked_for(log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record([n, "x" * 1_000_000]) for n in range(12)])
    fetch = await subscription.fetch(1000, 1.0)
    assert 1 < len(fetch) < 6
    pages = [page async for page in log.read(Query())]
    assert max(sum(len(stored.body) for stored in page) for page in pages) < 9 << 20


async def test_an_event_that_the_server_cannot_send_is_named_and_the_others_come(
    server: ValkeyServer, log: RedisLog, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = await registered(log)
    await log.append([record([0, "x" * 1_000_000]), *[record([n, ""]) for n in range(1, 6)]])
    limit(server, 500_000)
    with caplog.at_level(logging.ERROR, "ag06.persistence.redis"):
        deliveries = await fetched(subscription, 5)
    assert sorted(n for n, _ in numbers(deliveries)) == [1, 2, 3, 4, 5]
    assert "instead of sending an event of 10002" in caplog.text
    assert "client-output-buffer-limit normal 500000 0 0" in caplog.text
    with pytest.raises(StoreUnavailable, match=r"an event of 10002\d\d bytes .* client-output-buffer-limit normal"):
        await events(log)


async def test_a_small_event_is_handed_out_again_at_once_however_many_replies_broke_off(log: RedisLog) -> None:
    """Connections that break for another reason are no fault of the event: only a large one is put aside."""
    subscription = await registered(log)
    await log.append([record(1)])
    assert numbers(await fetched(subscription, 1)) == [1]
    receiver = subscription._receiver  # type: ignore[attr-defined]
    receiver._held.clear()  # the reply never came
    receiver._doubtful = True
    while not receiver._portion.is_hopeless:
        receiver._portion.failed()
    assert numbers(await fetched(subscription, 1)) == [1]
