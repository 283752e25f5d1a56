"""A commit that was done, but not confirmed in time as durable, is repeated: it is this worker's all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06 import Event, Outcome, OutcomeUnknown, Workflow
from ag06.persistence.log import LogOptions
from ag06.persistence.redis import RedisLog
from ag06.persistence.redis.subscription import RedisSubscription
from faults import replicate, running_server, says
from flows import SECONDS, said, until
from records import GROUP, collect, done, events, output, record, registered
from servers import ValkeyServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "first") as started:
        yield started


@pytest.fixture
async def replica(tmp_path: Path, server: ValkeyServer) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "second") as started:
        await _follow(started, server)
        yield started


async def _follow(replica: ValkeyServer, server: ValkeyServer) -> None:
    replicate(replica, "127.0.0.1", str(server.port))
    await says(replica, "INFO", "replication", reply=b"master_link_status:up")


def _part(replica: ValkeyServer) -> None:
    replicate(replica, "NO", "ONE")


@pytest.mark.parametrize("pieces_before", [0, 1])
async def test_a_commit_whose_wait_was_short_is_accepted_when_it_is_repeated(
    server: ValkeyServer, replica: ValkeyServer, pieces_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece of it that was confirmed before is accepted too, although the server knows nothing of it any more."""
    log = RedisLog(server.url, LogOptions(durability="replicated", timeout=2.0))
    await log.open()
    subscription = await registered(log)
    assert isinstance(subscription, RedisSubscription)
    await log.append([record(n) for n in range(1200)])
    deliveries = await collect(subscription, 1200)
    work = [done(deliveries[0], outputs=[output("out", "billed", deliveries[0])]), *map(done, deliveries[1:])]
    send, sent = subscription._receipts.send, 0

    async def send_and_part(*arguments: Any) -> list[Any]:
        nonlocal sent
        if sent == pieces_before:
            _part(replica)
        sent += 1
        return await send(*arguments)

    monkeypatch.setattr(subscription._receipts, "send", send_and_part)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await subscription.commit(work)
    assert sent == pieces_before + 2
    await _follow(replica, server)
    assert await subscription.commit(work) == [True] * 1200
    assert await subscription.commit(work) == [False] * 1200  # it is no repetition once its fate is known
    assert await log.pending([GROUP]) == 0
    assert len(await events(log, types=("billed",))) == 1
    await log.close()


@pytest.mark.parametrize("earlier", [0, 1], ids=["its first commit", "a later one"])
async def test_a_worker_outlives_its_replica_and_listeners_are_told_that_it_processed(
    server: ValkeyServer, replica: ValkeyServer, earlier: int, caplog: pytest.LogCaptureFixture
) -> None:
    """No commit is told as fenced that the server did, and one that finds no replica waits for it."""
    app = Workflow("shop", store=server.url, durability="replicated", timeout=2.0)
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)
    called: list[Any] = []
    gate = asyncio.Event()

    @app.step("order", concurrency=20)
    async def bill(event: Event, ctx: Any) -> None:
        called.append(event.data)
        await gate.wait()
        await ctx.publish("billed", event.data)

    async with app.running():
        for n in range(earlier):
            gate.set()
            await app.publish("order", data=-n)
            await until(lambda: len(outcomes) == 1)
            gate.clear()
        for n in range(earlier, 10):
            await app.publish("order", data=n)
        await until(lambda: len(called) == 10)
        _part(replica)
        gate.set()
        await until(lambda: "commit of step shop.bill waits for the store" in caplog.text)
        assert len(outcomes) == earlier
        await _follow(replica, server)
        await app.drain(SECONDS)
        await until(lambda: len(outcomes) == 10)
        assert sorted(await said(app, "billed")) == list(range(10))
    assert [outcome.kind for outcome in outcomes] == ["processed"] * 10
    assert sorted(called) == list(range(10))
