"""A server that forgets groups, scripts or everything: `NOGROUP` stops no consumer, and what is stored is processed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.errors import StoreUnavailable
from ag06.persistence.log import LogOptions, StepSpec
from ag06.persistence.redis import RedisLog
from chain import Chain
from faults import running_server
from records import TYPE, collect, eventually, record
from servers import ValkeyServer

COUNT = 30
EVERYWHERE = [
    (f"{{ag06}}:{key}", group)
    for event_type, group in (("in", "chain.first"), ("out", "chain.second"))
    for key in (*(f"s:{event_type}:{level}" for level in range(4)), f"wake:{group}", f"x:{group}")
]
"""Every key of the log that has a group, and which."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path) as started:
        yield started


async def destroy(server: ValkeyServer, places: list[tuple[str, str]]) -> None:
    for key, group in places:
        assert await asyncio.to_thread(server.command, "XGROUP", "DESTROY", key, group) == b":1\r\n", key


async def has_groups(server: ValkeyServer) -> bool:
    replies = [await asyncio.to_thread(server.command, "XINFO", "GROUPS", key) for key, _ in EVERYWHERE]
    return all(group.encode() in reply for (_, group), reply in zip(EVERYWHERE, replies, strict=True))


@pytest.mark.parametrize(
    "places",
    [EVERYWHERE, *([place] for place in EVERYWHERE if place[0].endswith((":in:1", ":out:1", "wake:chain.first")))],
    ids=["all", "in", "wake", "out"],
)
async def test_groups_that_are_destroyed_are_made_again_and_every_event_is_processed_once(
    server: ValkeyServer, places: list[tuple[str, str]]
) -> None:
    chain = Chain(server.url)
    chain.gate.set()
    async with chain.app.running():
        await chain.publish_all(range(COUNT))
        await chain.account(range(COUNT))
        await destroy(server, places)  # while everybody waits
        await chain.publish_all(range(COUNT, 2 * COUNT))
        await chain.account(range(2 * COUNT))
        chain.gate.clear()
        chain.entered.clear()
        await chain.publish_all(range(2 * COUNT, 3 * COUNT))
        await chain.entered.wait()
        await destroy(server, places)  # while events are in the hands of a step
        chain.gate.set()
        await chain.publish_all(range(3 * COUNT, 4 * COUNT))
        await chain.account(range(4 * COUNT))
        await eventually(lambda: has_groups(server))


async def test_groups_destroyed_again_and_again_lose_nothing(server: ValkeyServer) -> None:
    chain = Chain(server.url)
    chain.gate.set()
    async with chain.app.running():
        publishing = asyncio.create_task(_publish_slowly(chain))
        for key, group in itertools.islice(itertools.cycle(EVERYWHERE), 60):
            await asyncio.to_thread(server.command, "XGROUP", "DESTROY", key, group)
            await asyncio.sleep(0.005)
        await publishing
        await chain.account(range(100))


async def _publish_slowly(chain: Chain) -> None:
    for number in range(100):
        await chain.publish(number)
        await asyncio.sleep(0.003)


@pytest.mark.parametrize("command", [("FLUSHALL",), ("FLUSHDB", "ASYNC"), ("SWAPDB", "0", "7")], ids=" ".join)
async def test_a_server_that_is_emptied_takes_new_events_and_they_are_processed(
    server: ValkeyServer, command: tuple[str, ...]
) -> None:
    chain = Chain(server.url)
    chain.gate.set()
    async with chain.app.running():
        await chain.publish_all(range(COUNT))
        await chain.account(range(COUNT))
        assert await asyncio.to_thread(server.command, *command) == b"+OK\r\n"
        chain.seen.clear()
        await chain.publish_all(range(10, 10 + COUNT))  # what was known to the old log is news to the new one
        await chain.account(range(10, 10 + COUNT))
        # Emptied once more, while events are in the hands of a step: their results have no place any more.
        chain.gate.clear()
        chain.entered.clear()
        await chain.publish_all(range(100, 105))
        await chain.entered.wait()
        await asyncio.to_thread(server.command, "FLUSHALL")
        chain.gate.set()
        chain.seen.clear()
        await chain.publish_all(range(200, 210))
        await chain.account(range(200, 210))


async def test_a_server_that_comes_back_empty_takes_new_events_and_they_are_processed(server: ValkeyServer) -> None:
    chain = Chain(server.url)
    chain.gate.set()
    async with chain.app.running():
        for first in (0, 100, 200):
            chain.seen.clear()
            await chain.publish_all(range(first, first + COUNT))
            await chain.account(range(first, first + COUNT))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)


async def test_a_publisher_alone_goes_on_where_a_server_came_back_empty(server: ValkeyServer) -> None:
    """Its workers come later: they begin at the beginning of what is there."""
    chain = Chain(server.url)
    await chain.publish_all(range(COUNT))
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    await chain.publish_all(range(COUNT, 2 * COUNT))
    await chain.app.close()
    chain.gate.set()
    async with chain.app.running():
        await chain.account(range(COUNT, 2 * COUNT))


async def test_scripts_that_the_server_forgot_are_loaded_again(server: ValkeyServer) -> None:
    chain = Chain(server.url)
    chain.gate.set()
    async with chain.app.running():
        for first in range(0, 90, COUNT):
            await chain.publish_all(range(first, first + COUNT))
            await chain.account(range(first + COUNT))
            assert await asyncio.to_thread(server.command, "SCRIPT", "FLUSH") == b"+OK\r\n"


@pytest.mark.parametrize("lost", ["shop.bill", "shop.ship"])
async def test_a_lost_group_does_not_stop_the_renewal_of_leases_in_the_others(server: ValkeyServer, lost: str) -> None:
    log = RedisLog(server.url, LogOptions())
    await log.open()
    groups = ["shop.bill", "shop.ship"]
    await log.register("shop", [StepSpec(group, TYPE) for group in groups])
    await log.append([record(1)])
    (kept,) = set(groups) - {lost}
    await collect(log.subscribe(kept, "held up", 3600), 1)
    await destroy(server, [(f"{{ag06}}:s:{TYPE}:{level}", lost) for level in range(4)])
    with pytest.raises(StoreUnavailable, match="does not know the group"):
        await log.vouch("held up", 3600, {}, groups=groups)
    assert len(await collect(log.subscribe(kept, "other", 3600), 1)) == 1
    await log.close()
