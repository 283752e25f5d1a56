"""A store that is away when a program begins, for longer than a window, or with other durability than was asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06 import Context, Event, StoreUnavailable, Workflow
from ag06.persistence import EventStore
from ag06.persistence.journal import log as journal_log
from faults import running_server
from flows import until
from journals import TYPE, gone, journaled, journals, replayed, state, straight
from proxy import Proxy
from servers import ValkeyServer, free_port
from workers import ag06_run, write_flow

_FLOW = """
    app = Workflow("shop")

    @app.step("order")
    async def bill(event: Event) -> None:
        note("billed", event.data)
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "server") as started:
        yield started


@pytest.fixture
async def proxy(server: ValkeyServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as between:
        yield between


@pytest.fixture
async def store(proxy: Proxy, tmp_path: Path) -> AsyncIterator[EventStore]:
    opened = EventStore(proxy.url, journal=str(tmp_path / "journal"), dedup_window=0.6)
    yield opened
    await opened.close()


async def test_a_workflow_whose_store_is_away_publishes_and_processes_all_of_it_later(
    proxy: Proxy, tmp_path: Path
) -> None:
    await proxy.down()
    app = Workflow("shop", store=proxy.url, journal=str(tmp_path / "journal"))
    seen: list[Any] = []

    @app.step(TYPE, start="end")  # it is known before the journal is drained, so it gets what was in it
    async def bill(event: Event[Any], ctx: Context) -> None:
        seen.append(event.data)

    assert None not in [await app.publish(TYPE, source="s", data=n, subject="s") for n in range(40)]
    assert (await state(app.events)).events == 40
    await proxy.up()
    await straight(app.events)
    async with app.running():
        await app.drain(30)
    assert seen == list(range(40))
    await gone(tmp_path / "journal")


async def test_draining_a_workflow_waits_for_what_is_in_the_journal(proxy: Proxy, tmp_path: Path) -> None:
    app = Workflow("shop", store=proxy.url, journal=str(tmp_path / "journal"))
    seen: list[Any] = []

    @app.step(TYPE)
    async def bill(event: Event[Any], ctx: Context) -> None:
        seen.append(event.data)

    async with app.running():
        await app.publish(TYPE, source="s", data=0)
        await app.drain()
        log = await journaled(app.events)
        await proxy.down()
        for n in range(1, 30):
            assert await app.publish(TYPE, source="s", data=n)
        log.breaker.force_open()
        await proxy.up()
        draining = asyncio.create_task(app.drain(30))
        with pytest.raises(TimeoutError, match="29 events are pending"):
            await app.drain(0.2)
        assert not draining.done()
        log.breaker.reset()
        await draining
        assert sorted(seen) == list(range(30))


async def test_workers_wait_for_their_store_and_then_process_what_was_journalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AG06_JOURNAL", str(tmp_path / "journal"))
    write_flow(tmp_path, _FLOW)
    server = ValkeyServer(tmp_path, port=free_port())
    app = Workflow("shop", store=server.url)
    assert await app.publish("order", data=1)
    try:
        async with ag06_run(tmp_path, server.url) as worker:
            await until(lambda: "waits for the store" in worker.said)
            await asyncio.to_thread(server.start)
            await worker.noted("billed 1")
            assert await worker.terminate() == 0
    finally:
        await app.close()
        server.stop()


async def test_a_repetition_within_its_window_is_dropped_however_late_and_counted(
    store: EventStore, proxy: Proxy
) -> None:
    assert await store.persist_event(TYPE, "s", "same")
    assert await store.persist_event(TYPE, "s", "other", idempotency_key="key")
    assert await store.persist_event(TYPE, "s", "often", dedup=False)
    await proxy.down()
    assert await store.persist_event(TYPE, "s", "same"), "nobody can know yet"
    assert await store.persist_event(TYPE, "s", "same") is None, "the journal knows"
    assert await store.persist_event(TYPE, "s", "not the other", idempotency_key="key")
    assert await store.persist_event(TYPE, "s", "often", dedup=False)
    await asyncio.sleep(0.9)  # the store forgets them
    await proxy.up()
    await straight(store)
    assert [event.data for event in await replayed(store)] == ["same", "other", "often", "often"]
    assert (await state(store)).late_duplicates == 2
    assert (await store.stats()).duplicates == 2


async def test_a_late_duplicate_that_the_store_refuses_is_counted_once(proxy: Proxy, tmp_path: Path) -> None:
    store = EventStore(proxy.url, journal=str(tmp_path / "journal"))
    assert await store.persist_event(TYPE, "s", "same")
    await proxy.down()
    assert await store.persist_event(TYPE, "s", "same")
    await proxy.up()
    await straight(store)
    assert len(await replayed(store)) == 1
    assert (await state(store)).late_duplicates == 1
    assert (await store.stats()).duplicates == 1
    await store.close()


async def test_events_more_than_a_window_apart_are_both_kept_however_late_they_are_drained(
    store: EventStore, proxy: Proxy
) -> None:
    first = await store.persist_event(TYPE, "s", "same")
    await proxy.down()
    await store.persist_event(TYPE, "s", "something else")
    await asyncio.sleep(0.8)
    second = await store.persist_event(TYPE, "s", "same")
    await asyncio.sleep(0.8)
    third = await store.persist_event(TYPE, "s", "same")
    await asyncio.sleep(0.8)
    await proxy.up()
    await straight(store)
    assert [event.id for event in await replayed(store) if event.data == "same"] == [first, second, third]
    assert (await store.stats()).duplicates == 0


async def test_an_id_that_is_taken_by_other_content_is_set_aside_and_logged(
    store: EventStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    await store.persist_event(TYPE, "s", "first", id="mine")
    await proxy.down()
    assert await store.persist_event(TYPE, "s", "second", id="mine") == "mine"
    with caplog.at_level(logging.ERROR, "ag06"):
        await proxy.up()
        await straight(store)
    assert [event.data for event in await replayed(store)] == ["first"]
    assert (await state(store)).refused == 1
    assert "the store has another event with this id" in caplog.text
    assert [letter.event.data for letter in await store.journal_dead_letters.list()] == ["second"]


async def test_what_a_call_wants_synced_is_drained_to_a_server_that_syncs(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path / "hard", appendonly="yes", appendfsync="always") as server,
        Proxy(server.port) as proxy,
    ):
        store = EventStore(proxy.url, journal=str(tmp_path / "journal"))
        await store.persist_event(TYPE, "s", 1)
        await proxy.down()
        assert await store.persist_event(TYPE, "s", 2, durability="fsync")
        with pytest.raises(StoreUnavailable):
            await store.persist_event(TYPE, "s", 3, durability="replicated")
        assert (await state(store)).events == 1
        await proxy.up()
        await straight(store)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert [event.data for event in await replayed(store)] == [1, 2]
        await store.close()


async def test_a_server_that_cannot_sync_gets_what_was_to_be_synced_and_an_error_says_so(
    store: EventStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    await store.persist_event(TYPE, "s", 1)
    await proxy.down()
    assert await store.persist_event(TYPE, "s", 2, durability="fsync")
    with caplog.at_level(logging.ERROR, "ag06"):
        await proxy.up()
        await straight(store)
    assert [event.data for event in await replayed(store)] == [1, 2]
    assert "less durable in the store than was asked for" in caplog.text


async def test_a_store_that_is_closed_while_away_goes_on_with_its_journal_when_it_is_used_again(
    store: EventStore, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await store.log()
    await proxy.down()
    for n in range(10):
        await store.persist_event(TYPE, "s", n, subject="s")
    (path,) = journals(tmp_path / "journal")
    with caplog.at_level(logging.WARNING, "ag06"):
        await store.close()
    assert f"10 events stay in the journal {path}" in caplog.text
    for n in range(10, 20):
        await store.persist_event(TYPE, "s", n, subject="s")
    assert (await state(store)).events == 20
    await proxy.up()
    await straight(store)
    assert [event.data for event in await replayed(store)] == list(range(20))
    await gone(tmp_path / "journal")


async def test_each_event_loop_has_a_journal_of_its_own(store: EventStore, proxy: Proxy, tmp_path: Path) -> None:
    await store.log()
    await proxy.down()
    loop = asyncio.get_running_loop()
    both_full, back = asyncio.Event(), asyncio.Event()

    def elsewhere() -> None:
        async def publish() -> None:
            for n in range(20):
                assert await store.persist_event(TYPE, "thread", n, subject="thread")
            loop.call_soon_threadsafe(both_full.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(back.wait(), loop))
            await straight(store)

        asyncio.run(publish())

    thread = asyncio.create_task(asyncio.to_thread(elsewhere))
    for n in range(20):
        assert await store.persist_event(TYPE, "main", n, subject="main")
    await both_full.wait()
    assert len(journals(tmp_path / "journal")) == 2
    await proxy.up()
    back.set()
    await straight(store)
    await asyncio.wait_for(thread, 30)
    found = await replayed(store)
    for source in ("main", "thread"):
        assert [event.data for event in found if event.source == source] == list(range(20))


async def test_the_journal_of_an_event_loop_that_ended_is_drained_by_the_next(
    store: EventStore, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_log, "_ORPHANS_SECONDS", 0.0)
    await proxy.down()

    def elsewhere() -> None:
        async def publish() -> None:
            for n in range(10):
                assert await store.persist_event(TYPE, "s", n)

        asyncio.run(publish())  # ends without a close

    await asyncio.to_thread(elsewhere)
    await asyncio.to_thread(elsewhere)  # the first one's log is let go when this one opens
    await proxy.up()
    await store.persist_event(TYPE, "s", 10)
    await (await journaled(store)).maintain()
    await straight(store)
    assert {event.data for event in await replayed(store)} == set(range(11))
    await until(lambda: not journals(tmp_path / "journal"))
