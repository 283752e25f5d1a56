"""What the log on Redis promises over a link that is slow but works: time is given by the bytes that move."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest

from ag06.errors import StoreUnavailable
from ag06.persistence.log import Appended, LogOptions
from ag06.persistence.redis import RedisLog
from proxy import Proxy
from records import collect, events, numbers, record, registered
from servers import ValkeyServer

_serial = itertools.count()
_RATE = 1_000_000
_LARGE = "x" * 1_000_000
"""What takes twice as long as the log is patient."""


@pytest.fixture
async def link(valkey: ValkeyServer) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as network:
        yield network


@pytest.fixture
async def log(link: Proxy) -> AsyncIterator[RedisLog]:
    opened = RedisLog(f"{link.url}?log=slow-{next(_serial)}", LogOptions(timeout=0.4))
    await opened.open()
    yield opened
    await opened.close()


async def test_a_large_event_is_stored_over_a_slow_link(link: Proxy, log: RedisLog) -> None:
    link.rate = _RATE
    assert await log.append([record(_LARGE)]) == [Appended.STORED]


async def test_a_large_event_is_handed_out_and_read_over_a_slow_link(link: Proxy, log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(_LARGE)])
    link.rate = _RATE
    assert numbers(await collect(subscription, 1)) == [_LARGE]
    assert [event.data["number"] for event in await events(log)] == [_LARGE]


async def test_a_reply_that_stops_half_way_is_not_waited_for(link: Proxy, log: RedisLog) -> None:
    await log.append([record(_LARGE)])
    link.stop_after = link.passed + 100_000
    with pytest.raises(StoreUnavailable):
        await events(log)
