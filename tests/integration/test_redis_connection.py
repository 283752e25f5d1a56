"""What the log on Redis promises when the network between it and the server breaks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import Appended, LogOptions
from ag06.persistence.redis import RedisLog, appending
from ag06.persistence.redis.scripts import script
from proxy import Proxy
from records import GROUP, collect, done, events, eventually, number, numbers, output, record, registered
from servers import ValkeyServer, free_port

_serial = itertools.count()


@pytest.fixture
async def proxy(valkey: ValkeyServer) -> AsyncIterator[Proxy]:
    async with Proxy(valkey.port) as network:
        yield network


@pytest.fixture
async def name() -> str:
    return f"connection-{next(_serial)}"


@pytest.fixture
async def log(proxy: Proxy, name: str) -> AsyncIterator[RedisLog]:
    opened = RedisLog(f"{proxy.url}?log={name}", LogOptions(timeout=2.0))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def direct(valkey: ValkeyServer, name: str) -> AsyncIterator[RedisLog]:
    """The same log, not through the proxy."""
    opened = RedisLog(f"{valkey.url}?log={name}", LogOptions())
    await opened.open()
    yield opened
    await opened.close()


async def test_an_append_whose_reply_is_lost_is_stored_once_and_confirmed(proxy: Proxy, log: RedisLog) -> None:
    await log.append([record(0)])
    proxy.lose_reply_to = script("append").sha
    outcomes = await asyncio.gather(*(log.append([record(n)]) for n in range(1, 20)))
    assert proxy.lost == 1
    assert outcomes == [[Appended.STORED]] * 19
    assert sorted(event.data["number"] for event in await events(log)) == list(range(20))


async def test_a_duplicate_whose_reply_is_lost_is_still_a_duplicate(proxy: Proxy, log: RedisLog) -> None:
    await log.append([record(1)])
    proxy.lose_reply_to = script("append").sha
    assert await log.append([record(1), record(2)]) == [Appended.DUPLICATE, Appended.STORED]
    assert (await log.stats()).duplicates == 1


async def test_an_append_without_any_answer_ends_with_an_unknown_outcome_in_time(proxy: Proxy, log: RedisLog) -> None:
    await log.append([record(0)])
    proxy.silent = True
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown, match="unknown"):
        await log.append([record(1)])
    assert time.monotonic() - started < 20
    proxy.silent = False
    proxy.cut()


async def test_an_unknown_outcome_can_be_repeated_by_id_after_the_dedup_window(
    proxy: Proxy, log: RedisLog, direct: RedisLog
) -> None:
    await log.append([record(0)])
    proxy.silent = True
    lost = record({"once": True}, id="chosen-after-the-loss")
    unknown = type(lost)(**{**{f: getattr(lost, f) for f in lost.__struct_fields__}, "content": None, "window_ms": 50})
    with pytest.raises(OutcomeUnknown):
        await log.append([unknown])
    proxy.silent = False
    proxy.cut()
    await asyncio.sleep(0.1)  # its identity is forgotten now
    await log.append([record(2)])
    assert await direct.append([lost]) == [Appended.REPEATED]
    assert len(await events(direct)) == 3


async def test_what_nobody_foresaw_is_told_to_the_publishers_it_met_and_others_are_served(
    log: RedisLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, rounds = appending.cut_chunks, itertools.count()

    def break_once(calls: Any) -> Any:
        if next(rounds) == 1:  # the first is in the task of the caller, the next ones are in those of the lanes
            raise RuntimeError("nobody foresaw this")
        return real(calls)

    monkeypatch.setattr(appending, "cut_chunks", break_once)
    appends = [asyncio.create_task(log.append([record(n)])) for n in range(20)]
    outcomes = await asyncio.wait_for(asyncio.gather(*appends, return_exceptions=True), 10)
    failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, OutcomeUnknown)]
    assert failed
    assert "nobody foresaw this" in str(outcomes[failed[0]])
    assert "Traceback" in caplog.text
    assert sorted(event.data["number"] for event in await events(log)) == sorted(set(range(20)) - set(failed))
    assert await asyncio.wait_for(log.append([record(99)]), 10) == [Appended.STORED]
    await asyncio.wait_for(log.close(), 10)


async def test_a_call_is_stored_in_order_by_a_server_that_lost_some_of_its_scripts(
    log: RedisLog, valkey: ValkeyServer
) -> None:
    assert valkey.command("SCRIPT", "FLUSH") == b"+OK\r\n"
    await log.append([record(0)])  # loads the script for plain events, and no other
    await log.append([record(n, subject="s" if n == 600 else None) for n in range(1, 1700)])
    assert [event.data["number"] for event in await events(log)] == list(range(1700))


async def test_a_server_that_refuses_connections_has_stored_nothing(proxy: Proxy, log: RedisLog) -> None:
    await log.append([record(0)])
    await proxy.down()
    await asyncio.sleep(0.05)
    for attempt in range(3):
        with pytest.raises(StoreUnavailable, match="is the server up") as refused:
            await log.append([record(attempt + 1)])
        assert not isinstance(refused.value, OutcomeUnknown)
    await proxy.up()
    assert await log.append([record(9)]) == [Appended.STORED]


async def test_a_url_with_a_password_never_shows_it(name: str) -> None:
    log = RedisLog(f"redis://user:s3cr3t@127.0.0.1:{free_port()}/0?log={name}", LogOptions(timeout=1.0))
    with pytest.raises(StoreUnavailable) as refused:
        await log.open()
    assert "s3cr3t" not in str(refused.value)
    assert "***@127.0.0.1" in str(refused.value)
    await log.close()


async def test_a_commit_whose_reply_is_lost_is_done_once_and_confirmed(proxy: Proxy, log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    await subscription.mark_started([delivery])
    proxy.lose_reply_to = script("commit").sha
    accepted = await subscription.commit([done(delivery, outputs=[output("out", "billed", delivery)])])
    assert proxy.lost == 1
    assert accepted == [True]
    assert len(await events(log, types=("billed",))) == 1
    assert await log.pending([GROUP]) == 0


async def test_a_commit_of_unknown_fate_that_is_repeated_is_confirmed(proxy: Proxy, log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(0), record(1)])
    first, delivery = await collect(subscription, 2)
    assert await subscription.commit([done(first)]) == [True]  # the server knows the script, so it does what follows
    work = [done(delivery, outputs=[output("out", "billed", delivery)])]
    proxy.silent = True
    with pytest.raises(OutcomeUnknown):
        await subscription.commit(work)
    proxy.silent = False
    proxy.cut()
    await log.append([record(2)])
    await collect(subscription, 1)  # a worker holds more by the time it tries again
    assert await subscription.commit(work) == [True]
    assert await subscription.commit(work) == [False]  # it is no repetition once its fate is known
    assert len(await events(log, types=("billed",))) == 1
    assert await log.pending([GROUP]) == 1


async def test_deliveries_whose_reply_is_lost_are_handed_out_again_long_before_their_lease_ends(
    proxy: Proxy, log: RedisLog
) -> None:
    subscription = await registered(log, visibility=600.0)
    await log.append([record(n) for n in range(5)])
    proxy.lose_reply_to = script("fetch").sha
    deliveries = await collect(subscription, 5, seconds=5.0)
    assert proxy.lost == 1
    assert sorted(numbers(deliveries)) == list(range(5))
    assert not any(delivery.suspect for delivery in deliveries)


async def test_an_event_that_ends_a_wait_whose_connection_breaks_is_not_lost(
    proxy: Proxy, log: RedisLog, direct: RedisLog
) -> None:
    subscription = await registered(log, visibility=600.0)
    proxy.lose_reply_to = b"XREADGROUP"
    waiting = asyncio.create_task(subscription.fetch(1, 5.0))
    await eventually(lambda: _is(proxy.lost == 1))
    await direct.append([record(7)])
    deliveries = await waiting or await collect(subscription, 1, seconds=5.0)
    assert numbers(deliveries) == [7]


async def test_a_worker_whose_server_goes_away_waits_and_goes_on(
    proxy: Proxy, log: RedisLog, direct: RedisLog, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (first,) = await collect(subscription, 1)
    await proxy.down()
    with caplog.at_level(logging.WARNING, "ag06.persistence.redis"):
        assert await subscription.fetch(1, 0.3) == []
    assert "waits for the store" in caplog.text
    with pytest.raises(StoreUnavailable):
        await subscription.commit([done(first)])
    await direct.append([record(2)])
    await proxy.up()
    (second,) = await collect(subscription, 1)
    assert number(second) == 2
    assert await subscription.commit([done(first), done(second)]) == [True, True]


async def test_leases_are_not_renewed_silently_when_the_server_is_away(proxy: Proxy, log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    await collect(subscription, 1)
    await asyncio.to_thread(subscription.renew)
    await proxy.down()
    with pytest.raises(StoreUnavailable):
        await asyncio.to_thread(subscription.renew)
    await proxy.up()
    await asyncio.to_thread(subscription.renew)


async def test_a_fetch_given_up_by_its_caller_loses_no_event(log: RedisLog, direct: RedisLog) -> None:
    subscription = await registered(log, visibility=600.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscription.fetch(1, 10.0), 0.2)
    await direct.append([record(3)])
    assert numbers(await collect(subscription, 1, seconds=5.0)) == [3]


async def test_closing_a_worker_that_waits_takes_no_longer_than_its_farewell(log: RedisLog, direct: RedisLog) -> None:
    subscription = await registered(log)
    waiting = asyncio.create_task(subscription.fetch(1, 60.0))
    await asyncio.sleep(0.2)
    await asyncio.wait_for(subscription.close(), 5.0)
    assert await waiting == []
    await direct.append([record(4)])
    heir = direct.subscribe(GROUP, "heir", 600.0)
    assert numbers(await collect(heir, 1, seconds=5.0)) == [4]


async def _is(value: bool) -> bool:
    return value
