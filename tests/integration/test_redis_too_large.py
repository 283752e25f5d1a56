"""What the log on Redis promises where the server limits the size of an argument: nothing is repeated for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06 import Context, Event, Retry, Workflow
from ag06.errors import TooLarge
from ag06.persistence.admission import Admission
from ag06.persistence.log import Appended, LogOptions, Record
from ag06.persistence.redis import RedisLog
from ag06.runtime.outcome import Outcome
from faults import running_server
from records import TYPE, collect, done, events, output, record, registered
from servers import ValkeyServer

_LIMIT = 1 << 20
_LARGE = "x" * 300_000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path, **{"proto-max-bulk-len": str(_LIMIT)}) as started:
        yield started


@pytest.fixture
async def log(server: ValkeyServer) -> AsyncIterator[RedisLog]:
    opened = RedisLog(server.url, LogOptions(timeout=5.0))
    await opened.open()
    yield opened
    await opened.close()


def too_large() -> Record:
    return Admission(max_event_bytes=4 << 20).admit(TYPE, "test", {"number": "x" * 2_000_000})


async def test_outputs_that_are_too_large_for_one_argument_are_stored(log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(1), record(2)])
    first, second = await collect(subscription, 2)
    outputs = [output([n, _LARGE], "out", first) for n in range(12)]
    assert await subscription.commit([done(first, outputs=outputs), done(second)]) == [True, True]
    stored = await events(log, types=("out",))
    assert [event.data["number"][0] for event in stored] == list(range(12))


async def test_large_outputs_of_many_settlements_are_stored(log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(8)])
    deliveries = await collect(subscription, 8)
    settlements = [done(one, outputs=[output([n, _LARGE], "out", one)]) for n, one in enumerate(deliveries)]
    assert await subscription.commit(settlements) == [True] * 8
    assert len(await events(log, types=("out",))) == 8


async def test_an_event_that_is_too_large_is_refused_with_its_size_and_the_setting(log: RedisLog) -> None:
    appends = [log.append([one]) for one in (record(1), too_large(), record(2), record(3, subject="s"))]
    first, refused, *others = await asyncio.gather(*appends, return_exceptions=True)
    assert [first, *others] == [[Appended.STORED]] * 3
    assert isinstance(refused, TooLarge)
    assert "1048576 bytes at once (proto-max-bulk-len), not 2000" in str(refused)


async def test_a_commit_that_is_too_large_names_what_was_accepted_before(log: RedisLog) -> None:
    subscription = await registered(log)
    await log.append([record(n) for n in range(3)])
    first, second, third = await collect(subscription, 3)
    with pytest.raises(TooLarge) as error:
        await subscription.commit([done(first), done(second, outputs=[too_large()]), done(third)])
    assert error.value.accepted == [True]
    assert await subscription.commit([done(second), done(third)]) == [True, True]


async def test_an_event_whose_outputs_are_too_large_is_a_dead_letter_and_holds_up_no_other(
    server: ValkeyServer,
) -> None:
    app = Workflow("shop", store=server.url, journal="off", max_event_bytes=4 << 20)
    outcomes: list[Outcome] = []
    app.on_outcome(outcomes.append)

    @app.step("in", retry=Retry(attempts=2), concurrency=4)
    async def work(event: Event, ctx: Context) -> None:
        ctx.publish("out", "x" * (2_000_000 if event.data == 3 else 10))

    async with app.running():
        for n in range(8):
            await app.publish("in", data=n)
        await app.drain(20)
        (letter,) = await app.dead_letters.list()
    assert letter.event.data == 3
    assert letter.error.startswith("TooLarge")
    assert sorted(outcome.kind for outcome in outcomes) == ["dead", *["processed"] * 7]
