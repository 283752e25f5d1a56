"""Redis: what may be dropped where the server lost something, in how large bites, and how durable archives are."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import Cut, EventLog, LogOptions, StepSpec
from ag06.persistence.redis import RedisLog, upkeep
from records import GROUP, TYPE, collect, done, events, record, registered
from servers import ValkeyServer


@pytest.fixture
async def client(valkey: ValkeyServer) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(valkey.url) as connected:
        yield connected


@pytest.fixture
async def prefix(store_url: str) -> str:
    return "{" + store_url.rpartition("=")[2] + "}:"


pytestmark = pytest.mark.parametrize("adapter", ["redis"])


async def _settled(log: EventLog) -> list[Cut]:
    return await log.settled(int(time.time() * 1000) + 60_000, [TYPE])


async def test_nothing_is_settled_where_a_step_lost_its_place(log: EventLog, client: Any, prefix: str) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(10)])
    await subscription.commit([done(delivery) for delivery in await collect(subscription, 10)])
    (cut,) = await _settled(log)
    await client.xgroup_destroy(f"{prefix}s:{TYPE}:1", GROUP)
    assert await _settled(log) == []
    assert await log.drop(cut) == 0
    await log.register("shop", [StepSpec(GROUP, TYPE)])
    assert len(await events(log)) == 10
    assert len(await collect(subscription, 10)) == 10


async def test_a_cut_is_dropped_in_bites_that_each_are_one_call(
    log: EventLog, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_TRIM_ENTRIES", 500)
    await log.append([record(n, dedup=False) for n in range(10_000)])
    (cut,) = await _settled(log)
    before = (await client.info("commandstats"))["cmdstat_xtrim"]["calls"] if await _trimmed(client) else 0
    assert await log.drop(cut) == 10_000
    assert (await client.info("commandstats"))["cmdstat_xtrim"]["calls"] - before >= 20


async def _trimmed(client: Any) -> bool:
    return "cmdstat_xtrim" in await client.info("commandstats")


async def test_subjects_are_forgotten_with_what_was_dropped(log: EventLog, client: Any, prefix: str) -> None:
    await log.append([record(n, subject=f"s{n}") for n in range(3_000)])
    (cut,) = await _settled(log)
    await log.append([record("kept", subject="s7")])
    assert await log.drop(cut) == 3_000
    assert await client.hkeys(f"{prefix}tails:{TYPE}") == [b"s7"]


async def test_an_archive_is_known_when_the_replica_knows_it(store_url: str, tmp_path: Path) -> None:
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    primary = ValkeyServer(tmp_path / "primary").start()
    replica = ValkeyServer(tmp_path / "replica", replicaof=f"127.0.0.1 {primary.port}").start()
    try:
        log = RedisLog(primary.url, LogOptions(durability="replicated", timeout=2))
        await _opened(log)
        await log.add_archive("file:///a")
        copy = redis.asyncio.Redis.from_url(replica.url)
        try:
            assert await copy.lrange("{ag06}:archives", 0, -1) == [b"file:///a"]
        finally:
            await copy.aclose()
        _pause(replica)
        with pytest.raises(OutcomeUnknown):
            await log.add_archive("file:///b")
        other = RedisLog(primary.url, LogOptions(durability="replicated", timeout=2))
        await _opened(other)  # its connection wrote nothing yet, so there is nothing of its own to wait for
        with pytest.raises(StoreUnavailable):
            await other.add_archive("file:///b")
        with pytest.raises(StoreUnavailable):
            await other.remove_archive("file:///never")
        replica.kill()
        with pytest.raises(StoreUnavailable):
            await log.add_archive("file:///b")
        await other.close()
        await log.close()
    finally:
        replica.stop()
        primary.stop()


def _pause(server: ValkeyServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


async def _opened(log: RedisLog) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await log.open()
            except Exception as error:
                if "no replica" not in str(error):
                    raise
            await asyncio.sleep(0.1)
