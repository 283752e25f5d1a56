"""The disk of the journal fills up while the store is away: no id is given too early, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from disks import KINDS, Disk, LimitedFiles, disk
from faults import running_server
from journals import TYPE, gone, journals, replayed, state, straight, when
from proxy import Proxy


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with running_server(tmp_path / "server") as server, Proxy(server.port) as between:
        yield between


@pytest.fixture(params=[kind for kind in KINDS if kind != "pages"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with disk(request.param, tmp_path / "disk") as made:
        yield made


FIRST = 60


async def fill(small: Disk, store: EventStore) -> None:
    if isinstance(small, LimitedFiles):
        small.directory = journals(small.directory)[0].parent
    await small.fill(store)


async def waiting(store: EventStore, count: int) -> None:
    async def check() -> bool:
        return (await state(store)).in_memory >= count

    await when(check)


async def filled(store: EventStore, small: Disk, proxy: Proxy) -> list[asyncio.Task[str | None]]:
    """Fill the disk in the middle of an outage; return the calls that wait for it."""
    await store.log()
    await proxy.down()
    for n in range(FIRST):
        assert await store.persist_event(TYPE, "s", n, subject="s")
    await fill(small, store)
    calls = []
    while (await state(store)).in_memory < 20:  # a little may fit yet
        calls.append(asyncio.create_task(store.persist_event(TYPE, "s", FIRST + len(calls), subject="s")))
        await asyncio.sleep(0.005)
    return calls


async def test_room_on_the_disk_lets_publishers_go_while_the_store_is_away(small: Disk, proxy: Proxy) -> None:
    store = EventStore(proxy.url, journal=str(small.directory))
    calls = await filled(store, small, proxy)
    during = await state(store)
    assert during.events >= FIRST
    assert during.in_memory == sum(not call.done() for call in calls)
    await small.make_room(store)
    assert None not in await asyncio.wait_for(asyncio.gather(*calls), 20)
    assert (await state(store)).in_memory == 0
    assert (await state(store)).events == FIRST + len(calls)
    await proxy.up()
    await straight(store)
    assert [event.data for event in await replayed(store)] == list(range(FIRST + len(calls)))
    await store.close()


async def test_the_store_takes_everything_though_the_disk_stays_full(small: Disk, proxy: Proxy) -> None:
    directory = small.directory
    store = EventStore(proxy.url, journal=str(directory))
    calls = await filled(store, small, proxy)
    await proxy.up()
    assert None not in await asyncio.wait_for(asyncio.gather(*calls), 20)
    await straight(store)
    assert [event.data for event in await replayed(store)] == list(range(FIRST + len(calls)))
    assert await store.persist_event(TYPE, "s", "afterwards")
    await gone(directory)
    await store.close()


async def test_what_waits_in_memory_is_stored_though_its_callers_gave_up(small: Disk, proxy: Proxy) -> None:
    store = EventStore(proxy.url, journal=str(small.directory))
    calls = await filled(store, small, proxy)
    for call in calls[::2]:
        call.cancel()
    await small.make_room(store)
    kept = await asyncio.wait_for(asyncio.gather(*calls[1::2]), 20)
    assert None not in kept
    await proxy.up()
    await straight(store)
    found = await replayed(store)
    assert [event.data for event in found] == sorted({event.data for event in found})
    assert set(kept) <= {event.id for event in found}
    await store.close()
