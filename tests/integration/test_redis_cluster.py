"""A log on a cluster whose URL names a node that does not have it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from ag06 import StoreUnavailable
from ag06.persistence.log import LogOptions
from ag06.persistence.redis import RedisLog
from ag06.persistence.redis.address import read_address
from ag06.persistence.redis.blocking import BlockingWire
from ag06.persistence.redis.wire import Wire
from chain import Chain
from faults import says
from records import GROUP, collect, done, events, output, record, registered
from servers import ValkeyServer, free_port

_serial = itertools.count()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ValkeyServer]]:
    """Two nodes of one cluster. The second has every log of these tests."""
    started = []
    try:
        for _ in range(2):
            port = str(free_port())
            config = {"cluster-enabled": "yes", "cluster-port": port, "cluster-require-full-coverage": "no"}
            started.append(ValkeyServer(tmp_path_factory.mktemp("node"), **config).start())
        first, second = started
        assert second.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == b"+OK\r\n"
        assert (
            first.command("CLUSTER", "MEET", "127.0.0.1", str(second.port), second.config["cluster-port"]) == b"+OK\r\n"
        )
        yield started
    finally:
        for node in started:
            node.kill()


@pytest.fixture
async def url(nodes: list[ValkeyServer]) -> str:
    """A log, named by the node that does not have it."""
    first, second = nodes
    await says(first, "GET", "{ag06}:x", reply=b"-MOVED")
    await says(second, "GET", "{ag06}:x", reply=b"$-1")
    return f"{first.url}?log=cluster-{next(_serial)}"


async def test_a_log_on_another_node_of_a_cluster_is_found_at_the_first_call(url: str) -> None:
    log = RedisLog(url, LogOptions())
    await log.open()
    await log.append([record(n) for n in range(3)])
    subscription = await registered(log)
    deliveries = await collect(subscription, 3)
    await asyncio.to_thread(subscription.renew)
    outputs = [output("out", "billed", deliveries[0])]
    assert await subscription.commit([done(deliveries[0], outputs=outputs), *map(done, deliveries[1:])]) == [True] * 3
    assert len(await events(log)) == 4
    assert await log.pending([GROUP]) == 0
    await log.close()


async def test_the_durability_is_that_of_the_node_that_has_the_log(nodes: list[ValkeyServer], url: str) -> None:
    first, second = nodes
    for node, setting in ((first, "no"), (second, "yes")):
        assert node.command("CONFIG", "SET", "appendonly", setting, "appendfsync", "always") == b"+OK\r\n"
    log = RedisLog(url, LogOptions(durability="fsync", timeout=20.0))
    await log.open()
    await log.append([record(1)])
    await log.close()
    assert second.command("CONFIG", "SET", "appendonly", "no") == b"+OK\r\n"


async def test_a_workflow_runs_on_a_log_on_another_node(url: str) -> None:
    chain = Chain(url)
    chain.gate.set()
    async with chain.app.running():
        await chain.publish_all(range(20))
        await chain.account(range(20))


async def test_a_connection_that_was_sent_to_a_node_that_is_gone_asks_the_node_of_the_url_again(
    nodes: list[ValkeyServer], url: str
) -> None:
    first, second = nodes
    address = read_address(url)
    wire, blocking = Wire(address, 2.0), BlockingWire(address, 2.0)
    assert await wire.run("tails", "t", 0) == await asyncio.to_thread(blocking.run, "tails", "t", 0) == b"0"
    second.kill()
    try:
        with pytest.raises(StoreUnavailable):
            await wire.run("tails", "t", 0)
        with pytest.raises(StoreUnavailable):
            await asyncio.to_thread(blocking.run, "tails", "t", 0)
        identity = first.command("CLUSTER", "MYID").split()[1].decode()
        slot = key_slot(address.prefix.encode())
        assert first.command("CLUSTER", "SETSLOT", str(slot), "NODE", identity) == b"+OK\r\n"
        assert await wire.run("tails", "t", 0) == await asyncio.to_thread(blocking.run, "tails", "t", 0) == b"0"
    finally:
        await asyncio.to_thread(second.start)
        await wire.close()
        blocking.close()
