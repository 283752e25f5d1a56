"""Connections that break in the middle of a command, and primaries that change, under a workflow at work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06 import StoreUnavailable
from ag06.persistence.log import LogOptions
from ag06.persistence.redis import RedisLog
from chain import Chain
from faults import replicate, running_server, says
from proxy import Proxy
from records import collect, eventually, record, registered
from servers import ValkeyServer

COUNT = 30


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "first") as started:
        yield started


@pytest.fixture
async def replica(tmp_path: Path, server: ValkeyServer) -> AsyncIterator[ValkeyServer]:
    """A second server that follows the first one."""
    async with running_server(tmp_path / "second") as started:
        replicate(started, "127.0.0.1", str(server.port))
        await says(started, "INFO", "replication", reply=b"master_link_status:up")
        yield started


async def test_connections_that_break_in_the_middle_of_commands_lose_nothing(server: ValkeyServer) -> None:
    chance = random.Random(7)
    async with Proxy(server.port) as proxy:
        chain = Chain(proxy.url, visibility_timeout=600.0)  # no lease ends in time to help
        chain.gate.set()
        async with chain.app.running():
            publishing = asyncio.create_task(_publish_steadily(chain))
            lost = 0
            while not publishing.done():
                if chance.random() < 0.3:
                    proxy.cut()
                else:
                    proxy.lose_reply_to = chance.choice([b"EVALSHA", b"XREADGROUP"])
                await asyncio.sleep(0.01)
                lost = proxy.lost
            proxy.lose_reply_to = None
            await publishing
            await chain.account(range(150))
        assert lost > 5


async def _publish_steadily(chain: Chain) -> None:
    for first in range(0, 150, 3):
        await chain.publish_all(range(first, first + 3))
        await asyncio.sleep(0.01)


async def test_a_network_that_is_down_for_a_while_costs_nothing_but_time(server: ValkeyServer) -> None:
    async with Proxy(server.port) as proxy:
        chain = Chain(proxy.url, visibility_timeout=600.0)
        async with chain.app.running():
            await chain.publish_all(range(COUNT))
            await chain.entered.wait()
            await proxy.down()
            chain.gate.set()
            publishing = asyncio.create_task(chain.publish_all(range(COUNT, 2 * COUNT)))
            await chain.was_refused()
            await proxy.up()
            await publishing
            await chain.account(range(2 * COUNT))


async def test_a_primary_that_is_demoted_and_promoted_again_loses_nothing(
    server: ValkeyServer, replica: ValkeyServer
) -> None:
    chain = Chain(server.url)
    async with chain.app.running():
        await chain.publish_all(range(COUNT))
        await chain.entered.wait()
        await says(server, "WAIT", "1", "1000", reply=b":1")
        replicate(replica, "NO", "ONE")
        replicate(server, "127.0.0.1", str(replica.port))
        chain.gate.set()
        publishing = asyncio.create_task(chain.publish_all(range(COUNT, 2 * COUNT)))
        await chain.was_refused()
        await says(server, "INFO", "replication", reply=b"master_link_status:up")
        replicate(server, "NO", "ONE")
        await publishing
        await chain.account(range(2 * COUNT))


async def test_workers_follow_a_name_to_the_new_primary_although_the_old_one_keeps_their_connections(
    server: ValkeyServer, replica: ValkeyServer
) -> None:
    async with Proxy(server.port) as name:
        chain = Chain(name.url)
        async with chain.app.running():
            await chain.publish_all(range(COUNT))
            await chain.entered.wait()
            await says(server, "WAIT", "1", "1000", reply=b":1")
            replicate(replica, "NO", "ONE")
            replicate(server, "127.0.0.1", str(replica.port))
            name.target = replica.port
            chain.gate.set()
            await chain.publish_all(range(COUNT, 2 * COUNT))
            await chain.account(range(2 * COUNT))


async def test_leases_are_renewed_at_the_new_primary(server: ValkeyServer, replica: ValkeyServer) -> None:
    async with Proxy(server.port) as name:
        log = RedisLog(name.url, LogOptions())
        subscription = await registered(log)
        await log.append([record(1)])
        await collect(subscription, 1)
        await asyncio.to_thread(subscription.renew)
        await says(server, "WAIT", "1", "1000", reply=b":1")
        replicate(replica, "NO", "ONE")
        replicate(server, "127.0.0.1", str(replica.port))
        name.target = replica.port
        with pytest.raises(StoreUnavailable, match="is a read-only replica"):
            await asyncio.to_thread(subscription.renew)
        await asyncio.to_thread(subscription.renew)
        await log.close()


async def test_a_replica_that_takes_over_has_every_event_that_was_confirmed_as_replicated(
    server: ValkeyServer, replica: ValkeyServer, tmp_path: Path
) -> None:
    async with Proxy(server.port) as proxy:
        chain = Chain(proxy.url, durability="replicated")
        async with chain.app.running():
            await chain.publish_all(range(COUNT))
            await chain.entered.wait()
            publishing = asyncio.create_task(chain.publish_all(range(COUNT, 2 * COUNT)))
            await eventually(lambda: _has_more_than(chain, COUNT))
            await asyncio.to_thread(server.kill)
            replicate(replica, "NO", "ONE")
            # Without a second server nothing could be replicated any more.
            async with running_server(tmp_path / "third") as follower:
                replicate(follower, "127.0.0.1", str(replica.port))
                proxy.target = replica.port
                proxy.cut()
                chain.gate.set()
                await asyncio.wait_for(publishing, 60)
                await chain.account(range(2 * COUNT))


async def _has_more_than(chain: Chain, count: int) -> bool:
    return len(await chain.app.events.replay_from(0)) > count
