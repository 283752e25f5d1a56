"""Errors in the middle of a script: what a key holds that is not of the log, and rights that a user has lost.

A settlement is done as a whole or not at all, and a delivery is never lost between two lists.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06 import Context, Event, Retry, Workflow
from ag06.errors import StoreError, StoreUnavailable, Unstorable
from ag06.persistence.log import Bury, LogOptions, Postpone
from ag06.persistence.redis import RedisLog
from faults import running_server
from records import GROUP, TYPE, collect, done, events, failure, nothing, numbers, output, record, registered
from servers import ValkeyServer

P = "{ag06}:"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path) as started:
        yield started


@pytest.fixture
async def log(server: ValkeyServer) -> AsyncIterator[RedisLog]:
    opened = RedisLog(server.url, LogOptions(timeout=5.0))
    await opened.open()
    yield opened
    await opened.close()


def spoil(server: ValkeyServer, name: str) -> None:
    """Put a text where the log keeps something else; what was there is kept under another name."""
    server.command("RENAME", P + name, f"saved:{name}")
    assert server.command("SET", P + name, "junk") == b"+OK\r\n"


def repair(server: ValkeyServer, name: str) -> None:
    server.command("DEL", P + name)
    server.command("RENAME", f"saved:{name}", P + name)


def may(server: ValkeyServer, rule: str) -> None:
    assert server.command("ACL", "SETUSER", "default", rule) == b"+OK\r\n"


async def test_an_event_whose_output_has_no_place_is_a_dead_letter_and_holds_up_no_other(server: ValkeyServer) -> None:
    app = Workflow("shop", store=server.url, journal="off")
    for level in range(4):
        spoil(server, f"s:out:{level}")

    @app.step("in", retry=Retry(attempts=2), concurrency=4)
    async def work(event: Event, ctx: Context) -> None:
        ctx.publish("other", event.data)
        if event.data == 3:
            ctx.publish("out", event.data)

    async with app.running():
        for n in range(8):
            await app.publish("in", data=n)
        await app.drain(20)
        (letter,) = await app.dead_letters.list()
        assert letter.error == "Unstorable"
        assert f"the key {P}s:out:1 holds" in letter.message
        assert sorted([event.data async for event in app.events.replay(types=["other"])]) == [0, 1, 2, 4, 5, 6, 7]
        for level in range(4):
            repair(server, f"s:out:{level}")
        assert await app.dead_letters.retry() == 1
        await app.drain(20)
        assert [event.data async for event in app.events.replay(types=["out"])] == [3]
        assert sorted([event.data async for event in app.events.replay(types=["other"])]) == list(range(8))
        (group,) = [one for one in (await (await app.events.log()).stats()).groups if one.type == "in"]
        assert group.backlog == 0


@pytest.mark.parametrize("settings", [{}, {"subject": "s"}, {"delay": 60.0}], ids=["plain", "subject", "delayed"])
async def test_a_settlement_that_is_refused_is_refused_alone_and_as_a_whole(
    server: ValkeyServer, log: RedisLog, settings: dict[str, object]
) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    first, second, third = await collect(subscription, 3)
    spoil(server, "s:out:1")
    fitting, unfit = output("a", "other", second, **settings), output("b", "out", second)
    with pytest.raises(Unstorable, match=r"\{ag06\}:s:out:1") as refused:
        await subscription.commit([done(first), done(second, outputs=[fitting, unfit]), done(third)])
    assert refused.value.accepted == [True]
    assert await events(log, types=("other",)) == []
    assert (await log.stats()).scheduled == 0
    repair(server, "s:out:1")
    assert await subscription.commit([done(second, outputs=[fitting, unfit]), done(third)]) == [True, True]
    assert len(await events(log, types=("out",))) == 1
    assert len(await events(log, types=("other",))) + (await log.stats()).scheduled == 1
    assert (await log.stats()).groups[0].backlog == 0


@pytest.mark.parametrize("right", ["xack", "xadd"])
@pytest.mark.parametrize("settings", [{}, {"subject": "s"}, {"delay": 60.0}], ids=["plain", "subject", "delayed"])
async def test_a_right_that_is_lost_for_a_while_leaves_no_settlement_half_done(
    server: ValkeyServer, log: RedisLog, right: str, settings: dict[str, object]
) -> None:
    subscription = await registered(log)
    await registered(log, group="shop.ship", event_type="out")
    await log.append([record(n) for n in range(3)])
    deliveries = await collect(subscription, 3)
    outputs = [output(n, "out", deliveries[0], **settings) for n in range(3)]
    outputs.append(output(3, "out", deliveries[0]))
    work = [done(deliveries[0], outputs=outputs), Bury(deliveries[1], failure()), done(deliveries[2])]
    may(server, f"-{right}")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="refuses this user"):
            await subscription.commit(work)
        assert await events(log, types=("out",)) == []
        stats = await log.stats()
        assert (stats.scheduled, stats.groups[0].dead_letters, stats.groups[0].backlog) == (0, 0, 3)
    may(server, f"+{right}")
    assert await subscription.commit(work) == [True, True, True]
    stats = await log.stats()
    assert (stats.groups[0].dead_letters, stats.groups[0].backlog) == (1, 0)
    follower = log.subscribe("shop.ship", "w1", 30.0)
    found = 0
    for expected in [3] if "delay" in settings else [0, 1, 2, 3] if settings else [None] * 4:
        (delivery,) = await collect(follower, 1)
        assert expected in (None, *numbers([delivery])) or expected == 3 or numbers([delivery]) == [3]
        assert await follower.commit([done(delivery)]) == [True]
        found += 1
    assert found + (await log.stats()).scheduled == 4


async def test_a_dead_letter_that_has_no_place_is_refused_and_its_delivery_can_be_postponed(
    server: ValkeyServer, log: RedisLog
) -> None:
    subscription = await registered(log)
    await log.append([record(1)])
    (delivery,) = await collect(subscription, 1)
    spoil(server, f"dead:{GROUP}")
    with pytest.raises(Unstorable):
        await subscription.commit([Bury(delivery, failure())])
    assert await subscription.commit([Postpone(delivery, 0, 1, 1)]) == [True]
    repair(server, f"dead:{GROUP}")
    (again,) = await collect(subscription, 1)
    assert await subscription.commit([Bury(again, failure())]) == [True]
    assert len(await log.dead_letters(GROUP, 10)) == 1


@pytest.mark.parametrize("name", ["notes", "blocked", "ready", "later", "since", "wake"])
async def test_a_key_of_the_group_that_is_spoilt_is_an_outage(server: ValkeyServer, log: RedisLog, name: str) -> None:
    subscription = await registered(log)
    await log.append([record(1, subject="s"), record(2)])
    first, second = await collect(subscription, 2)
    await subscription.mark_started([first])
    work = [done(first, outputs=[output(1, "out", first)]), Postpone(second, 60_000, 1, 1)]
    spoil(server, f"{name}:{GROUP}")
    with pytest.raises(StoreError) as refused:
        await subscription.commit(work)
    assert not isinstance(refused.value, Unstorable)
    assert await events(log, types=("out",)) == []
    repair(server, f"{name}:{GROUP}")
    assert await subscription.commit(work) == [True, True]
    assert len(await events(log, types=("out",))) == 1


async def test_a_scheduled_event_that_has_no_place_holds_up_no_other_and_repeats_none(
    server: ValkeyServer, log: RedisLog
) -> None:
    subscription = await registered(log)
    await log.append([record(1, delay=0.05), record(2, "out", delay=0.06), record(3, delay=0.07)])
    spoil(server, "s:out:1")
    assert sorted(numbers(await collect(subscription, 2))) == [1, 3]
    assert await nothing(subscription)
    assert sorted(event.data["number"] for event in await events(log, types=(TYPE,))) == [1, 3]
    assert server.command("ZCARD", f"{P}scheduled") == b":1\r\n"
    repair(server, "s:out:1")
    server.command("ZADD", f"{P}scheduled", "1", "0000000000000002")  # it need not wait for its next try
    assert await nothing(subscription)
    assert [event.data["number"] for event in await events(log, types=("out",))] == [2]
    assert (await log.stats()).scheduled == 0


@pytest.mark.parametrize("right", ["zadd", "xclaim"])
async def test_a_right_that_is_lost_for_a_while_loses_no_delivery_between_two_lists(
    server: ValkeyServer, log: RedisLog, right: str
) -> None:
    subscription = await registered(log)
    await log.append([record(1, subject="s"), record(2, subject="s"), record(3)])
    found = await collect(subscription, 2)
    may(server, f"-{right}")
    for call in (subscription.release(found), subscription.commit([Postpone(found[0], 0, 1, 1)])):
        with pytest.raises(StoreError):
            await call
    may(server, f"+{right}")
    await subscription.release(found)
    other = log.subscribe(GROUP, "w2", 30.0)
    for expected in ([1, 3], [2]):
        handed = await collect(other, len(expected))
        assert sorted(numbers(handed)) == expected
        assert await other.commit([done(*handed)]) == [True]


@pytest.mark.parametrize("name", ["x", "again", "ready", "wake"])
async def test_a_dead_letter_that_cannot_be_tried_again_stays_and_is_delivered_once_later(
    server: ValkeyServer, log: RedisLog, name: str
) -> None:
    subscription = await registered(log)
    await log.append([record(1, subject="s"), record(2, subject="s")])
    for _ in range(2):
        await subscription.commit([Bury(one, failure()) for one in await collect(subscription, 1)])
    letters = [(GROUP, letter.event_id) for letter in await log.dead_letters(GROUP, 10)]
    spoil(server, f"{name}:{GROUP}")
    for _ in range(2):
        with pytest.raises(StoreError):
            await log.retry_dead_letters(letters)
    repair(server, f"{name}:{GROUP}")
    assert await log.retry_dead_letters(letters) == 2
    assert (await log.stats()).groups[0].backlog == 2
    for expected in (1, 2):
        (again,) = await collect(subscription, 1)
        assert numbers([again]) == [expected]
        assert await subscription.commit([done(again)]) == [True]
    stats = (await log.stats()).groups[0]
    assert (stats.dead_letters, stats.backlog) == (0, 0)
