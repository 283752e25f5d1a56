"""Under load the flip back happens, and neither a long outage nor a store that comes and goes upsets an order."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from faults import running_server
from journals import TYPE, Publishers, check_log, diverted, gone, state, straight
from proxy import Proxy
from servers import ValkeyServer

TASKS, PER_SECOND = 5, 1_000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "server") as started:
        yield started


@pytest.fixture
async def proxy(server: ValkeyServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as between:
        yield between


class Load:
    """Tasks that together publish so many events a second, each on a subject of its own and one after the other."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._stop = asyncio.Event()
        self.ids: list[str] = []
        self.by_subject: dict[str, list[str]] = defaultdict(list)
        self.seconds: list[float] = []
        self.since = 0.0
        """What began before is not measured."""

    async def run(self, subject: str) -> None:
        interval = TASKS / PER_SECOND
        due = time.monotonic()
        number = 0
        while not self._stop.is_set():
            began = time.perf_counter()
            event_id = await self._store.persist_event(TYPE, subject, number, subject=subject)
            if began >= self.since:
                self.seconds.append(time.perf_counter() - began)
            assert event_id is not None
            self.ids.append(event_id)
            self.by_subject[subject].append(event_id)
            number += 1
            due += interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self.run(f"task {n}")) for n in range(TASKS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 30)


async def test_events_go_straight_again_under_a_load_that_never_ends(proxy: Proxy, tmp_path: Path) -> None:
    store = EventStore(proxy.url, journal=str(tmp_path / "journal"))
    async with Load(store) as load:
        await asyncio.sleep(0.2)
        await proxy.down()
        await diverted(store)
        load.since = time.perf_counter()
        load.seconds.clear()
        await asyncio.sleep(2)  # how long the store is away
        away = sorted(load.seconds)
        during = await state(store)
        assert during.events > 1_000
        await proxy.up()
        await straight(store)
        await asyncio.sleep(0.2)
        assert not (await state(store)).active
    print(
        f"\npersist_event while the store is away: p50 {away[len(away) // 2] * 1000:.2f} ms, p99 "
        f"{away[len(away) * 99 // 100] * 1000:.2f} ms, longest {away[-1] * 1000:.1f} ms of {len(away)}"
    )
    await check_log(store, load.ids, load.by_subject)
    await gone(tmp_path / "journal")
    await store.close()


@pytest.mark.parametrize("seed", [1])
async def test_a_store_that_comes_and_goes_loses_doubles_and_reorders_nothing(
    proxy: Proxy, tmp_path: Path, seed: int
) -> None:
    chosen = random.Random(seed)
    store = EventStore(proxy.url, journal=str(tmp_path / "journal"))
    async with Publishers(store) as publishers:
        await publishers.more(50)
        for _ in range(10):
            how = chosen.choice(["down", "cut", "silent"])
            match how:
                case "down":
                    await proxy.down()
                case "cut":
                    proxy.cut()
                case _:
                    proxy.silent = True
            await asyncio.sleep(chosen.uniform(0.1, 0.3))
            if how == "down":
                await proxy.up()
            if proxy.silent:
                proxy.silent = False
                proxy.cut()
            await asyncio.sleep(chosen.uniform(0.1, 0.3))
        await straight(store)
    await publishers.account()
    await gone(tmp_path / "journal")
    await store.close()


async def test_a_server_that_is_killed_again_and_again_keeps_every_id(tmp_path: Path) -> None:
    chosen = random.Random(3)
    async with running_server(tmp_path / "hard", appendonly="yes", appendfsync="always") as server:
        store = EventStore(server.url, journal=str(tmp_path / "journal"))
        async with Publishers(store) as publishers:
            for _ in range(5):
                await publishers.more(50)
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(chosen.uniform(0.0, 0.3))
                await asyncio.to_thread(server.start)
                await asyncio.sleep(chosen.uniform(0.0, 0.8))
            await straight(store)
        await publishers.account()
        await store.close()
