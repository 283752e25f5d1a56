"""A server that did what it was asked and could not say so: the journal holds the event too, the log holds it once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06.persistence import EventStore
from faults import running_server
from journals import TYPE, Publishers, child, diverted, gone, replayed, state, straight, when
from proxy import Proxy
from servers import ValkeyServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "server") as started:
        yield started


@pytest.fixture
async def proxy(server: ValkeyServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as between:
        yield between


def events_in(server: ValkeyServer) -> int:
    return int(server.command("XLEN", "{ag06}:s:order.placed:1").strip(b":\r\n"))


@pytest.mark.parametrize("window", [300.0, 0.3], ids=["within its window", "after its window"])
async def test_what_was_stored_without_a_reply_is_stored_once(proxy: Proxy, tmp_path: Path, window: float) -> None:
    store = EventStore(proxy.url, journal=str(tmp_path / "journal"), dedup_window=window)
    async with Publishers(store) as publishers:
        await publishers.more(50)
        proxy.silent = True
        await diverted(store)
        await publishers.more(100)
        await asyncio.sleep(2 * min(window, 0.3))  # the window is a setting: this is what a short one means
        proxy.silent = False
        proxy.cut()
        await straight(store)
    await publishers.account()
    await gone(tmp_path / "journal")
    await store.close()


@pytest.mark.parametrize("window", [300.0, 0.3], ids=["within its window", "after its window"])
async def test_a_server_that_goes_on_after_a_pause_stores_nothing_twice(
    server: ValkeyServer, tmp_path: Path, window: float
) -> None:
    assert server.process is not None
    store = EventStore(server.url, journal=str(tmp_path / "journal"), dedup_window=window)
    async with Publishers(store) as publishers:
        await publishers.more(50)
        server.process.send_signal(signal.SIGSTOP)
        await diverted(store)
        await publishers.more(100)
        await asyncio.sleep(2 * min(window, 0.3))
        server.process.send_signal(signal.SIGCONT)
        await straight(store)
    await publishers.account()
    await store.close()


WAYS: list[dict[str, Any]] = [
    {},
    {"subject": "s"},
    {"id": "mine"},
    {"id": "mine", "subject": "s"},
    {"idempotency_key": "k"},
    {"dedup": False},
    {"dedup": False, "subject": "s"},
]


async def test_each_kind_of_event_survives_a_cut_after_the_server_did_it(server: ValkeyServer, tmp_path: Path) -> None:
    await asyncio.gather(*[_cut(server, tmp_path / "journal", name, way) for name, way in enumerate(WAYS)])


async def _cut(server: ValkeyServer, directory: Path, name: int, way: dict[str, Any]) -> None:
    async with Proxy(server.port) as proxy:
        store = EventStore(f"{proxy.url}?log=way-{name}", journal=str(directory), dedup_window=0.2)
        await store.persist_event(TYPE, "s", "first")
        proxy.lose_reply_to = b"needle"
        publishing = asyncio.create_task(store.persist_event(TYPE, "s", "needle", **way))

        async def lost() -> bool:
            return proxy.lost == 1

        await when(lost)
        await proxy.down()  # the server has it; nobody can ask
        event_id = await publishing
        assert event_id is not None, way
        assert (await state(store)).events == 1
        await asyncio.sleep(0.4)  # its window is over
        await proxy.up()
        await straight(store)
        found = [event.id for event in await replayed(store)]
        assert found.count(event_id) == 1, way
        assert len(found) == 2, way
        await store.close()


@pytest.mark.parametrize("window", [300.0, 0.3], ids=["within its window", "after its window"])
async def test_a_process_killed_with_events_in_doubt_leaves_them_to_the_next_and_none_is_doubled(
    server: ValkeyServer, proxy: Proxy, tmp_path: Path, window: float
) -> None:
    directory = tmp_path / "journal"
    async with child(proxy.url, directory, window=window) as publisher:
        await publisher.more(50)
        proxy.silent = True
        await publisher.more(100)
        await publisher.kill()
        proxy.silent = False
    await asyncio.sleep(2 * min(window, 0.3))
    stored = events_in(server)
    store = EventStore(proxy.url, journal=str(directory), dedup_window=window)
    await store.log()
    await straight(store)
    assert events_in(server) > stored, "there was nothing to drain"
    found = [event.id for event in await replayed(store)]
    # The one that was under way when it was killed may be there too: nobody was told of it.
    assert len(found) == len(set(found))
    assert len(found) <= len(publisher.ids) + 2
    known = set(publisher.ids)
    assert [event_id for event_id in found if event_id in known and event_id in set(publisher.ordered)] == (
        publisher.ordered
    )
    assert known <= set(found)
    await store.close()
