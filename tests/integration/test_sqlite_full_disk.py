"""A full disk: the caller gets an error, the log stays readable, and it goes on when there is room."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ag06 import Context, Event, OutcomeUnknown, StoreUnavailable, Workflow
from ag06.persistence import EventStore
from disks import KINDS, Disk, disk
from records import eventually

LARGE = "x" * 20_000


@pytest.fixture(params=KINDS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with disk(request.param, tmp_path / "disk") as opened:
        yield opened


@pytest.fixture
async def store(small: Disk) -> AsyncIterator[EventStore]:
    opened = EventStore(f"sqlite:///{small.directory}/events.db")
    yield opened
    await opened.close()


async def fill(small: Disk, store: EventStore) -> list[StoreUnavailable]:
    """Fill the disk, and with it the room that is left in the log itself, until nothing is taken any more."""
    await small.fill(store)
    errors: list[StoreUnavailable] = []
    for n in range(5000):
        try:
            await store.persist_event("filler", "s", [n, "x" * 200])
        except StoreUnavailable as error:
            errors.append(error)
            if len(errors) == 3:
                return errors
    raise AssertionError("the disk is not full")


async def data(store: EventStore, event_type: str) -> list[Any]:
    return [event.data async for event in store.replay(types=event_type)]


def healthy(directory: Path) -> bool:
    connection = sqlite3.connect(directory / "events.db")
    found = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    return found == [("ok",)]


async def test_a_publisher_is_told_and_the_log_stays_readable_and_goes_on_when_there_is_room(
    small: Disk, store: EventStore
) -> None:
    confirmed = {str(n): await store.persist_event("t", "s", str(n)) for n in range(20)}
    errors = await fill(small, store)
    for error in errors:
        assert "events.db" in str(error)
        assert "disk" in str(error)
    unknown: dict[str, OutcomeUnknown] = {}
    for n in range(5):
        with pytest.raises(StoreUnavailable, match=r"make room on the disk|check the disk") as refused:
            await store.persist_event("t", "s", f"{n} {LARGE}")
        if isinstance(refused.value, OutcomeUnknown):
            unknown[f"{n} {LARGE}"] = refused.value
            assert refused.value.event_id is not None
    assert [event.id async for event in store.replay(types="t")] == list(confirmed.values())
    assert (await store.stats()).events >= 20
    second = EventStore(f"sqlite:///{small.directory}/events.db", durability="server")
    assert await data(second, "t") == list(confirmed)
    await second.close()

    await small.make_room(store)
    for n in range(5):
        said = f"{n} {LARGE}"
        event_id = unknown[said].event_id if said in unknown else None
        assert await store.persist_event("t", "s", said, id=event_id) is not None, "what was refused was remembered"
    assert await data(store, "t") == [*confirmed, *(f"{n} {LARGE}" for n in range(5))]
    await store.close()
    assert healthy(small.directory)


async def test_of_many_publishers_at_once_each_is_told_the_truth(small: Disk, store: EventStore) -> None:
    await store.persist_event("t", "s", -1)
    await small.fill(store)
    said = {n: f"{n} " + "x" * 3000 for n in range(600)}
    outcomes = await asyncio.gather(
        *(store.persist_event("t", "s", text) for text in said.values()), return_exceptions=True
    )
    assert any(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert all(isinstance(outcome, (str, StoreUnavailable)) for outcome in outcomes)
    stored = {event.id async for event in store.replay(types="t") if event.data != -1}
    unknown = {outcome.event_id for outcome in outcomes if isinstance(outcome, OutcomeUnknown)}
    assert {outcome for outcome in outcomes if isinstance(outcome, str)} == stored - unknown

    await small.make_room(store)
    for (n, text), outcome in zip(said.items(), outcomes, strict=True):
        if n % 20 == 0 and isinstance(outcome, StoreUnavailable):
            event_id = outcome.event_id if isinstance(outcome, OutcomeUnknown) else None
            assert await store.persist_event("t", "s", text, id=event_id) is not None
    found = await data(store, "t")
    assert len(found) == len(set(found))


async def test_what_a_step_did_is_neither_lost_nor_a_dead_letter(small: Disk, caplog: pytest.LogCaptureFixture) -> None:
    app = Workflow("w", store=f"sqlite:///{small.directory}/events.db")
    gate, entered = asyncio.Event(), asyncio.Semaphore(0)
    calls: list[int] = []
    seen: list[int] = []

    @app.step("in")
    async def work(event: Event[int], ctx: Context) -> None:
        calls.append(event.data)
        entered.release()
        await gate.wait()
        await ctx.publish("out", [event.data, LARGE])

    @app.step("out")
    async def after(event: Event[Any]) -> None:
        seen.append(event.data[0])

    async with app.running():
        for n in range(10):
            await app.publish("in", data=n)
        for _ in range(10):
            await entered.acquire()
        await fill(small, app.events)
        with caplog.at_level(logging.WARNING, "ag06"):
            gate.set()  # what they did is settled now, and there is no room for it
            await eventually(lambda: _is("commit of " in caplog.text))
        assert seen == []
        stats = await app.events.stats()
        assert (stats.dead_letters, sum(info.backlog for info in stats.groups)) == (0, 10)
        assert await data(app.events, "out") == []

        await small.make_room(app.events)
        await app.drain(timeout=30)
        assert sorted(number for number, _ in await data(app.events, "out")) == list(range(10))
        assert sorted(seen) == list(range(10))
        assert sorted(calls) == list(range(10)), "a settlement is repeated, not the work"
        await app.publish("in", data=10)
        await app.drain(timeout=30)
        assert sorted(seen) == list(range(11))
        assert (await app.events.stats()).dead_letters == 0
    assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
    assert healthy(small.directory)


async def _is(value: object) -> bool:
    return bool(value)


async def test_a_disk_that_is_full_for_longer_than_a_lease_makes_no_dead_letters_and_no_second_output(
    small: Disk,
) -> None:
    app = Workflow("w", store=f"sqlite:///{small.directory}/events.db", visibility_timeout=0.3)
    gate, entered = asyncio.Event(), asyncio.Event()

    @app.step("in")
    async def work(event: Event[int], ctx: Context) -> None:
        entered.set()
        await gate.wait()
        await ctx.publish("out", [event.data, LARGE])

    async with app.running():
        for n in range(5):
            await app.publish("in", data=n)
        await entered.wait()
        await fill(small, app.events)
        gate.set()
        await asyncio.sleep(0.7)  # its leases end, and it cannot renew them
        await small.make_room(app.events)
        await app.drain(timeout=30)
        assert sorted(number for number, _ in await data(app.events, "out")) == list(range(5))
        assert (await app.events.stats()).dead_letters == 0


async def test_a_workflow_that_waits_goes_on_when_there_is_room(small: Disk, store: EventStore) -> None:
    """Nothing is in its hands when the disk fills: what it cannot do meanwhile is take something into them."""
    app = Workflow("w", store=store.url)
    seen: list[int] = []

    @app.step("in")
    async def work(event: Event[int]) -> None:
        seen.append(event.data)

    async with app.running():
        await app.publish("in", data=0)
        await app.drain(timeout=30)
        await fill(small, app.events)
        await asyncio.sleep(0.2)  # so that it fetches, and keeps house
        await small.make_room(app.events)
        for n in range(1, 20):
            assert await app.publish("in", data=n) is not None
        await app.drain(timeout=30)
        assert seen == list(range(20))


async def test_an_event_that_is_due_on_a_full_disk_comes_when_there_is_room(small: Disk, store: EventStore) -> None:
    await store.persist_event("later", "s", LARGE, delay=0.05)
    await fill(small, store)
    log = await store.log()
    await asyncio.sleep(0.1)
    try:
        await log.maintain()
    except StoreUnavailable:
        assert await data(store, "later") == []
    await small.make_room(store)
    await log.maintain()
    assert await data(store, "later") == [LARGE]
    assert (await store.stats()).scheduled == 0


async def test_a_store_that_finds_no_room_for_its_file_says_so_and_opens_when_there_is(small: Disk) -> None:
    other = EventStore(f"sqlite:///{small.directory}/other.db")
    url = f"sqlite:///{small.directory}/events.db"
    store = EventStore(url)
    if type(small).__name__ == "LimitedPages":  # it can only limit what is open
        await store.log()
        await fill(small, store)
    else:
        await small.fill(other)
        with pytest.raises(StoreUnavailable, match=r"events\.db: .*(disk|full)"):
            await store.initialize(url, timeout=1.0)
    await small.make_room(store)
    assert await store.persist_event("t", "s", 1) is not None
    assert await data(store, "t") == [1]
    await store.close()
    assert healthy(small.directory)


async def test_a_process_that_ends_on_a_full_disk_leaves_everything_it_confirmed(
    small: Disk, store: EventStore
) -> None:
    confirmed = [await store.persist_event("t", "s", [n, LARGE]) for n in range(10)]
    await fill(small, store)
    await store.close()
    if type(small).__name__ != "LimitedPages":  # that limit ends with the connection
        assert await _readable(store) == confirmed
        await small.make_room(store)
    assert [event.id async for event in store.replay(types="t")] == confirmed
    assert await store.persist_event("t", "s", "more") is not None
    await store.close()
    assert healthy(small.directory)
    assert os.access(small.directory / "events.db", os.W_OK)


async def _readable(store: EventStore) -> list[str]:
    return [event.id async for event in store.replay(types="t")]
