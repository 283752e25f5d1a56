"""Journals of processes that are gone: the next one hands their events on, once and in order, and no other's."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from ag06.persistence.journal import log as journal_log
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.survey import survey
from faults import running_server
from journals import TYPE, Child, child, diverted, gone, journaled, journals, replayed, state, straight
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


async def away(proxy: Proxy, *publishers: Child) -> None:
    """Take the store away and let publishers go on for a while."""
    await proxy.down()
    await asyncio.gather(*[publisher.more(100) for publisher in publishers])


async def has_all_once(store: EventStore, *publishers: Child) -> None:
    """Hold the log against what processes were told before they were killed."""
    found = [event.id for event in await replayed(store)]
    assert len(found) == len(set(found))
    for publisher in publishers:
        ordered, known = set(publisher.ordered), set(publisher.ids)
        assert known <= set(found), f"{len(known - set(found))} ids are lost"
        assert [event_id for event_id in found if event_id in ordered] == publisher.ordered


async def test_events_of_a_killed_process_are_handed_on_before_those_of_the_next(proxy: Proxy, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    async with child(proxy.url, directory) as publisher:
        await publisher.more(50)
        await away(proxy, publisher)
        await publisher.kill()
    (found,) = survey(str(directory))
    assert not found.alive
    assert found.events
    assert found.store == proxy.url
    store = EventStore(proxy.url, journal=str(directory))
    later = [await store.persist_event(TYPE, "s", n, subject="child") for n in range(20)]
    assert (await state(store)).events == found.events + 20
    await proxy.up()
    await straight(store)
    await has_all_once(store, publisher)
    subject = [event.id for event in await replayed(store) if event.subject == "child"]
    assert subject[-20:] == later
    await gone(directory)
    await store.close()


async def test_two_processes_that_start_at_once_share_orphans_and_double_nothing(proxy: Proxy, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    async with child(proxy.url, directory, "one") as one, child(proxy.url, directory, "two") as two:
        await asyncio.gather(one.more(10), two.more(10))
        await away(proxy, one, two)
        await asyncio.gather(one.kill(), two.kill())
    await proxy.up()
    assert len(journals(directory)) == 2
    async with child(proxy.url, directory, "three") as first, child(proxy.url, directory, "four") as second:
        await asyncio.gather(first.more(50), second.more(50))
        await gone(directory)
    store = EventStore(proxy.url, journal=str(directory))
    await has_all_once(store, one, two, first, second)
    await store.close()


async def test_the_journal_of_a_process_that_lives_is_never_touched(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_log, "_ORPHANS_SECONDS", 0.0)
    directory = tmp_path / "journal"
    async with child(proxy.url, directory) as publisher:
        await publisher.more(10)
        await away(proxy, publisher)
        publisher.process.send_signal(signal.SIGSTOP)  # paused is not dead
        await proxy.up()
        (path,) = journals(directory)
        store = EventStore(proxy.url, journal=str(directory))
        log = await journaled(store)
        for _ in range(3):
            await log.maintain()
        assert not (await state(store)).active
        assert [found.alive for found in survey(str(directory))] == [True]
        assert journals(directory) == [path]
        await publisher.kill()
        await log.maintain()  # one that runs already finds what a sibling left
        await straight(store)
        await gone(directory)
        await has_all_once(store, publisher)
        await store.close()


async def test_the_journal_of_another_store_is_left_alone(proxy: Proxy, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    async with child(f"{proxy.url}?log=other", directory) as publisher:
        await publisher.more(10)
        await away(proxy, publisher)
        await publisher.kill()
    await proxy.up()
    store = EventStore(proxy.url, journal=str(directory))
    await store.persist_event(TYPE, "s", 1)
    await straight(store)
    assert len(await replayed(store)) == 1
    assert len(journals(directory)) == 1
    await store.close()


async def test_events_of_two_processes_that_say_the_same_are_stored_once(proxy: Proxy, tmp_path: Path) -> None:
    """Each journalled it and was told an id; one of the two is a late duplicate, which is counted."""
    directory = tmp_path / "journal"
    first = EventStore(proxy.url, journal=str(directory))
    second = EventStore(f"{proxy.url}?", journal=str(tmp_path / "other"))
    for store in (first, second):
        await store.log()
    await proxy.down()
    ids = [await store.persist_event(TYPE, "s", {"same": True}) for store in (first, second)]
    assert None not in ids
    await proxy.up()
    await asyncio.gather(straight(first), straight(second))
    (found,) = await replayed(first)
    assert found.id in ids
    late = [(await state(store)).late_duplicates for store in (first, second)]
    assert sorted(late) == [0, 1]
    assert (await first.stats()).duplicates == 1
    await first.close()
    await second.close()


def _wait_in_a_child(ready: int, end: int) -> None:
    os.write(ready, b"x")
    os.read(end, 1)


async def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path), "redis://somewhere/0")
    claim = claims.new()
    claim.path.touch()
    ready, told = os.pipe()
    end, ended = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_wait_in_a_child, args=(told, end))
    process.start()
    try:
        assert await asyncio.to_thread(os.read, ready, 1) == b"x"
        assert claims.orphans() == [], "the child let the parent's lock go"
        claim.let_go(delete=False)  # as the end of the parent does
        (orphan,) = claims.orphans()
        orphan.let_go(delete=True)
    finally:
        os.write(ended, b"x")
        await asyncio.to_thread(process.join, 10)
        for pipe in (ready, told, end, ended):
            os.close(pipe)
    assert process.exitcode == 0


async def test_a_forked_child_has_a_journal_of_its_own(proxy: Proxy, tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    store = EventStore(proxy.url, journal=str(directory))
    await store.log()
    await proxy.down()
    assert await store.persist_event(TYPE, "parent", 1)
    await diverted(store)
    process = multiprocessing.get_context("fork").Process(target=_publish, args=(store,))
    process.start()
    await asyncio.to_thread(process.join, 20)
    assert process.exitcode == 0
    assert len(journals(directory)) == 2
    await proxy.up()
    await straight(store)
    again = EventStore(proxy.url, journal=str(directory))
    await again.log()
    await straight(again)
    assert sorted(event.source for event in await replayed(again)) == ["child", "parent"]
    await store.close()
    await again.close()


def _publish(store: EventStore) -> None:
    async def publish() -> None:
        assert await store.persist_event(TYPE, "child", 2)

    asyncio.run(publish())
