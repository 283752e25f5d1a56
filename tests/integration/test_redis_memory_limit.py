"""A server over its memory limit refuses new events alone: whatever drains it, keeps it or looks at it goes through."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ag06 import Context, Event, Priority, StoreUnavailable, Workflow
from ag06.persistence import EventStore
from ag06.persistence.log import Acknowledge, Bury, LogOptions, Postpone, Record, StepSpec
from ag06.persistence.redis import RedisLog
from chain import Chain
from commands import ag06
from faults import configure, running_server
from records import (
    ADMISSION,
    GROUP,
    TYPE,
    collect,
    done,
    events,
    eventually,
    failure,
    numbers,
    output,
    record,
    registered,
)
from servers import ValkeyServer

_AMOUNTS = r"it uses [\d,]+ bytes \(\d+\.\d MB\) of 1 bytes \(0\.0 MB\) \(maxmemory\)"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "server", **{"maxmemory-policy": "noeviction"}) as started:
        yield started


@pytest.fixture
async def log(server: ValkeyServer) -> AsyncIterator[RedisLog]:
    opened = RedisLog(server.url, LogOptions(retention=0.05))
    await opened.open()
    yield opened
    await opened.close()


def _exceed(server: ValkeyServer) -> None:
    """Put the limit below what the server uses: it stays over it whatever is freed."""
    configure(server, maxmemory="1")


@pytest.mark.parametrize(
    "records",
    [
        [record(1)],
        [record(1, subject="s")],
        [record(1, id="chosen")],
        [record(1, idempotency_key="key")],
        [record(1, delay=60.0)],
        [ADMISSION.admit("new.type", "test", 1, priority=Priority.HIGH)],
        [record(n) for n in range(1200)],
    ],
    ids=["plain", "subject", "id", "key", "delay", "new type", "many"],
)
async def test_publishing_is_refused_with_limit_and_use(
    server: ValkeyServer, log: RedisLog, records: list[Record]
) -> None:
    _exceed(server)
    with pytest.raises(StoreUnavailable, match=f"is over its memory limit and takes no new events: {_AMOUNTS}"):
        await log.append(records)
    configure(server, maxmemory="0")
    assert await events(log) == []
    await log.append(records)
    assert (await log.stats()).events + (await log.stats()).scheduled == len(records)


async def test_a_repetition_lets_no_other_event_of_its_call_through(server: ValkeyServer, log: RedisLog) -> None:
    known = record(1, id="chosen")
    await log.append([known])
    _exceed(server)
    with pytest.raises(StoreUnavailable, match="memory limit"):
        await log.append([known, record(2, id="other")])
    configure(server, maxmemory="0")
    assert [event.id for event in await events(log)] == ["chosen"]


async def test_a_worker_that_starts_then_settles_in_every_way(server: ValkeyServer, log: RedisLog) -> None:
    await log.append([record(n) for n in range(6)] + [record(n, subject="s") for n in (6, 7)])
    await log.append([record(8, delay=0.2)])
    _exceed(server)
    subscription = await registered(log, visibility=0.4)
    held = await collect(subscription, 7)
    assert numbers(held) == [0, 1, 2, 3, 4, 5, 6]
    await subscription.mark_started(held)
    await asyncio.to_thread(subscription.renew)
    assert (
        await subscription.commit(
            [
                done(held[0]),
                done(held[1], outputs=[output(1, "billed", held[1])]),
                Postpone(held[2], 0, 1, 1),
                Postpone(held[3], 10, 1, 1),
                Bury(held[4], failure()),
                done(held[6]),
            ]
        )
        == [True] * 6
    )
    await subscription.release([held[5]])
    again = await collect(subscription, 5)  # one of them was not due when the limit was reached
    assert sorted(numbers(again)) == [2, 3, 5, 7, 8]
    heir = log.subscribe(GROUP, "heir", 0.4)
    taken = await collect(heir, 5)  # leases end
    assert all(delivery.suspect for delivery in taken)
    assert await heir.commit([done(*taken)]) == [True]
    (letter,) = await log.dead_letters()
    assert await log.retry_dead_letters([(GROUP, letter.event_id)]) == 1
    (last,) = await collect(heir, 1)
    assert await heir.commit([Bury(last, failure())]) == [True]
    assert await log.discard_dead_letters([(GROUP, letter.event_id)]) == 1
    await subscription.close()
    assert await log.pending([GROUP]) == 0
    assert [event.data["number"] for event in await events(log, types=("billed",))] == [1]


async def test_keeping_and_leading_go_on(server: ValkeyServer, log: RedisLog) -> None:
    subscription = await registered(log)
    await log.register("retired", [StepSpec("retired.step", TYPE)])
    await log.append([record(n) for n in range(3)])
    await log.append([record(3, delay=0.05)])
    assert await log.remove_group("retired.step")
    assert await subscription.commit([Acknowledge(tuple(await collect(subscription, 3)))]) == [True]
    _exceed(server)
    await log.write_note("knobs", b"x" * 1000)
    assert await log.read_note("knobs") == b"x" * 1000
    assert await log.lead("optimizer", "me", 30)
    assert not await log.lead("optimizer", "you", 30)
    await log.add_archive("file:///archive")
    assert await log.archives() == ["file:///archive"]
    await log.remove_archive("file:///archive")
    assert await log.release_worker("ghost") == 0
    (late,) = await collect(subscription, 1)
    assert await subscription.commit([done(late)]) == [True]
    for cut in await log.settled(1 << 41):
        assert await log.drop(cut) > 0
    await log.maintain()
    stats = await log.stats()
    assert (stats.events, stats.scheduled, stats.groups[0].backlog) == (0, 0, 0)


async def test_what_is_due_is_appended_by_housekeeping_too(server: ValkeyServer, log: RedisLog) -> None:
    await log.append([record(n, delay=0.05) for n in range(3)])
    _exceed(server)

    async def all_appended() -> bool:
        await log.maintain()
        return (await log.stats()).scheduled == 0

    await eventually(all_appended)
    assert len(await events(log)) == 3


async def test_a_chain_of_steps_is_drained_by_workers_old_and_new(server: ValkeyServer) -> None:
    """The outputs of a step enter the log with its acknowledgement: refused, they would hold their events for ever."""
    chain = Chain(server.url)
    async with chain.app.running():
        await chain.publish_all(range(50))
        await chain.entered.wait()
        _exceed(server)
        other = Chain(server.url)
        other.gate.set()
        other.seen = chain.seen
        async with other.app.running():
            chain.gate.set()
            await chain.account(range(50))
            with pytest.raises(StoreUnavailable, match=_AMOUNTS):
                await chain.app.publish("in", data=50)
            with pytest.raises(StoreUnavailable, match=_AMOUNTS):
                await other.app.publish("in", data=50)


async def test_a_log_that_waits_for_the_disk_is_drained_too(server: ValkeyServer) -> None:
    configure(server, appendonly="yes", appendfsync="always")
    log = RedisLog(server.url, LogOptions(durability="fsync"))
    await log.open()
    await log.append([record(1)])
    _exceed(server)
    subscription = await registered(log)
    (delivery,) = await collect(subscription, 1)
    assert await subscription.commit([done(delivery, outputs=[output(1, "billed", delivery)])]) == [True]
    await log.write_note("knobs", b"x")
    with pytest.raises(StoreUnavailable, match=_AMOUNTS):
        await log.append([record(2)])
    await log.close()


async def test_a_publish_inside_a_step_fails_that_step_and_its_retry_goes_through(server: ValkeyServer) -> None:
    app = Workflow("shop", store=server.url)
    tried = 0

    @app.step("in")
    async def step(event: Event[int], ctx: Context) -> None:
        nonlocal tried
        tried += 1
        if tried == 2:
            configure(server, maxmemory="0")
        await app.publish("at.once", data=event.data)

    async with app.running():
        await app.publish("in", data=1)
        _exceed(server)
        await app.drain(timeout=30)
    assert tried == 2


async def test_a_server_that_is_drained_takes_new_events_again(server: ValkeyServer) -> None:
    app, gate = Workflow("shop", store=server.url, retention=0.05), asyncio.Event()

    @app.step("in")
    async def step(event: Event[Any]) -> None:
        await gate.wait()

    async with app.running():
        await asyncio.gather(*(app.publish("in", data=f"{n:020000}") for n in range(500)))
        used = re.search(rb"used_memory:(\d+)", server.command("INFO", "memory"))
        assert used is not None
        configure(server, maxmemory=str(int(used[1]) - 1_000_000))
        with pytest.raises(StoreUnavailable, match="memory limit"):
            await app.publish("in", data=1)
        gate.set()

        async def is_taken() -> bool:
            try:
                return await app.publish("in", data=1) is not None
            except StoreUnavailable:
                return False

        await eventually(is_taken, 30)


async def test_a_journal_takes_what_is_refused_and_hands_it_on_once(server: ValkeyServer, tmp_path: Path) -> None:
    chain = Chain(server.url, journal=str(tmp_path / "journal"))
    chain.gate.set()
    async with chain.app.running():
        await chain.publish_all(range(10))
        _exceed(server)
        await chain.publish_all(range(10, 30))
        assert chain.refused == []
        await eventually(lambda: _seen(chain, 10))
        configure(server, maxmemory="0")
        await chain.account(range(30))


async def test_steps_are_made_known_while_events_wait_in_the_journal(server: ValkeyServer, tmp_path: Path) -> None:
    directory = str(tmp_path / "journal")
    store = EventStore(server.url, journal=directory)
    await store.persist_event(TYPE, "s", 1)
    _exceed(server)
    await store.persist_event(TYPE, "s", 2)
    for opened in (store, EventStore(server.url, journal=directory)):  # the second finds what the first leaves behind
        log = await opened.log()
        await eventually(partial(_is_refused, opened))
        subscription = await registered(log, group=f"shop.{id(opened)}", start="beginning")
        (delivery,) = await collect(subscription, 1)
        assert await subscription.commit([done(delivery)]) == [True]
        await subscription.close()
        await opened.close()


async def _is_refused(store: EventStore) -> bool:
    state = await store.journal_state()
    return state is not None and "memory limit" in (state.problem or "")


async def _seen(chain: Chain, count: int) -> bool:
    return chain.seen >= set(range(count))


async def test_the_command_line_works_and_doctor_names_limit_and_use(server: ValkeyServer, tmp_path: Path) -> None:
    store = EventStore(server.url)
    log = await store.log()
    subscription = await registered(log)
    await store.persist_events([{"event_type": TYPE, "source": "s", "data": n} for n in range(3)])
    held = await collect(subscription, 3)
    assert await subscription.commit([Bury(one, failure()) for one in held]) == [True] * 3
    await store.close()
    _exceed(server)
    env = {"AG06_STORE": server.url, "AG06_JOURNAL": "off"}
    retried = ag06("dead-letters", "retry", "--all", cwd=tmp_path, env=env)
    assert retried.code == 0, retried
    doctor = ag06("doctor", "--json", cwd=tmp_path, env=env)
    assert doctor.code == 0, doctor
    (warned,) = [finding for finding in doctor.json if "memory limit" in finding["what"]]
    assert warned["status"] == "warn"
    assert re.search(_AMOUNTS, warned["what"])
