"""What every log promises when its clock was ahead and is set back: nothing lasts as long as the clock was ahead."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ag06.persistence.admission import Admission
from ag06.persistence.log import Appended, EventLog, LogOptions, Postpone, Record
from ag06.persistence.memory import MemoryLog
from ag06.persistence.redis import RedisLog
from ag06.persistence.redis.wire import Wire
from ag06.persistence.sqlite import SqliteLog
from ag06.persistence.stores import open_log
from conftest import ADAPTERS
from crash.preload import Clock as ServerClock
from records import GROUP, TYPE, collect, done, events, numbers, registered
from servers import ValkeyServer

DAY = 86_400.0
WINDOW = 300.0
_numbers = itertools.count()


class Clock:
    """The clock of a log and of its publishers; a server's clock is set along with it."""

    def __init__(self, server: tuple[ValkeyServer, ServerClock] | None = None) -> None:
        self._server = server
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def move(self, seconds: float) -> None:
        """Set it forward, or back."""
        self.ahead += seconds
        if self._server is not None:
            server, clock = self._server
            clock.set(self.ahead)
            while abs(_time_of(server) - self()) > 0.5:  # a server looks at the clock ten times a second
                time.sleep(0.005)


def _time_of(server: ValkeyServer) -> float:
    reply = server.command("EVAL", "local now = redis.call('TIME') return now[1] * 1000 + now[2] / 1000", "0")
    return int(reply.strip().lstrip(b":")) / 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ValkeyServer, ServerClock]]:
    path = tmp_path_factory.mktemp("clock")
    clock = ServerClock(path / "clock")
    server = ValkeyServer(path, environment=clock.environment).start()
    yield server, clock
    server.stop()


Opening = Callable[[], Awaitable[EventLog]]


@pytest.fixture(params=ADAPTERS)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Opening, Clock]]:
    """Opens the log of this test, with a clock that the test sets."""
    logs: list[EventLog] = []
    url, clock = "", Clock()
    if request.param == "redis":
        server = request.getfixturevalue("server")
        url, clock = f"{server[0].url}?log=clock-{next(_numbers)}", Clock(server)

    async def open_one() -> EventLog:
        log: EventLog
        if request.param == "memory":
            log = MemoryLog(str(tmp_path), LogOptions(), clock)
        elif request.param == "sqlite":
            log = SqliteLog(str(tmp_path / "events.db"), LogOptions(), clock)
        else:
            log = open_log(url, LogOptions())
        await log.open()
        logs.append(log)
        return log

    yield open_one, clock
    for log in reversed(logs):
        await log.close()
    clock.move(-clock.ahead)


def _said(clock: Clock, number: Any, **settings: Any) -> Record:
    return Admission(WINDOW, clock=clock).admit(TYPE, "test", {"number": number}, **settings)


async def test_an_identity_taken_by_a_clock_that_was_a_day_ahead_is_forgotten(opened: tuple[Opening, Clock]) -> None:
    open_one, clock = opened
    log = await open_one()
    clock.move(DAY)
    assert await log.append([_said(clock, 1), _said(clock, 2, subject="s")]) == [Appended.STORED] * 2
    clock.move(3600 - DAY)
    assert await log.append([_said(clock, 1), _said(clock, 2, subject="s")]) == [Appended.STORED] * 2
    assert await log.append([_said(clock, 1), _said(clock, 2, subject="s")]) == [Appended.DUPLICATE] * 2
    clock.move(WINDOW + 1)
    assert await log.append([_said(clock, 1), _said(clock, 2, subject="s")]) == [Appended.STORED] * 2


async def test_a_clock_set_back_a_little_lets_no_repetition_through_and_keeps_no_identity_for_longer(
    opened: tuple[Opening, Clock],
) -> None:
    open_one, clock = opened
    log = await open_one()
    clock.move(60)
    said = [_said(clock, 1), _said(clock, 2, delay=30.0)]
    assert await log.append(said) == [Appended.STORED] * 2
    clock.move(-60)
    assert await log.append([_said(clock, 1), _said(clock, 2)]) == [Appended.DUPLICATE] * 2
    assert await log.append(said) == [Appended.REPEATED] * 2
    clock.move(WINDOW + 1)
    assert await log.append([_said(clock, 1), _said(clock, 2)]) == [Appended.STORED] * 2


async def test_an_identity_from_a_journal_whose_clock_was_ahead_is_kept_for_its_window(
    opened: tuple[Opening, Clock],
) -> None:
    open_one, clock = opened
    log = await open_one()
    journalled = [
        msgspec.structs.replace(_said(clock, number), persisted_ms=int((clock() + ahead) * 1000))
        for number, ahead in ((1, DAY), (1, DAY + WINDOW + 1), (2, DAY))
    ]
    assert await log.append(journalled) == [Appended.STORED] * 3, "by when the journal took them, none is a repetition"
    assert await log.append([_said(clock, 1), _said(clock, 2)]) == [Appended.DUPLICATE] * 2
    clock.move(WINDOW + 1)
    assert await log.append([_said(clock, 1), _said(clock, 2)]) == [Appended.STORED] * 2


async def test_a_longer_window_of_another_publisher_is_kept(opened: tuple[Opening, Clock]) -> None:
    open_one, clock = opened
    log = await open_one()
    long = Admission(10 * WINDOW, clock=clock)
    assert await log.append([long.admit(TYPE, "test", {"number": 1})]) == [Appended.STORED]
    clock.move(1)
    assert await log.append([_said(clock, 1)]) == [Appended.DUPLICATE]
    clock.move(5 * WINDOW)
    assert await log.append([_said(clock, 1)]) == [Appended.DUPLICATE]


@pytest.mark.parametrize("ahead", [60.0, DAY])
async def test_a_retry_waits_no_longer_than_it_was_to_wait(opened: tuple[Opening, Clock], ahead: float) -> None:
    open_one, clock = opened
    log = await open_one()
    subscription = await registered(log)
    clock.move(ahead)
    await log.append([_said(clock, number, subject="s") for number in range(2)])
    (first,) = await collect(subscription, 1)
    assert await subscription.commit([Postpone(first, 20_000, 1, 1)]) == [True]
    clock.move(-ahead)
    assert await subscription.fetch(10, 0.0) == []
    clock.move(21)
    (again,) = await collect(subscription, 1)
    assert (numbers([again]), again.attempts) == ([0], 1)
    assert await subscription.commit([done(again)]) == [True]
    assert numbers(await collect(subscription, 1)) == [1]


@pytest.mark.parametrize("ahead", [60.0, DAY])
async def test_a_delayed_event_waits_no_longer_than_its_delay_but_a_given_time_stands(
    opened: tuple[Opening, Clock], ahead: float
) -> None:
    open_one, clock = opened
    log = await open_one()
    subscription = await registered(log)
    clock.move(ahead)
    at = dt.datetime.fromtimestamp(clock() + 3600, dt.UTC)
    await log.append([_said(clock, 1, delay=20.0), _said(clock, 2, at=at)])
    clock.move(-ahead)
    await log.maintain()
    assert await subscription.fetch(10, 0.0) == []
    clock.move(21)
    (delayed,) = await collect(subscription, 1)
    assert numbers([delayed]) == [1]
    assert await subscription.commit([done(delayed)]) == [True]
    clock.move(ahead)
    assert await subscription.fetch(10, 0.0) == []
    assert (await log.stats()).scheduled == 1
    clock.move(3600)
    assert 2 in numbers(await collect(subscription, 1))


async def test_a_delay_counts_from_the_stores_clock_where_a_publishers_is_ahead(opened: tuple[Opening, Clock]) -> None:
    open_one, clock = opened
    log = await open_one()
    subscription = await registered(log)
    wrong = Clock()
    wrong.move(DAY)
    await log.append([_said(wrong, 1, delay=20.0)])
    assert await subscription.fetch(10, 0.0) == []
    clock.move(21)
    assert numbers(await collect(subscription, 1)) == [1]


@pytest.mark.parametrize("ahead", [20.0, DAY])
async def test_what_a_dead_worker_held_is_taken_over_within_its_lease(
    opened: tuple[Opening, Clock], ahead: float
) -> None:
    open_one, clock = opened
    log = await open_one()
    dead = await registered(log, worker="dead", visibility=5.0)
    other = log.subscribe("shop.bill", "other", 60.0)  # one that thinks longer leases possible
    clock.move(ahead)
    await log.append([_said(clock, 1)])
    assert numbers(await collect(dead, 1)) == [1]
    clock.move(-ahead)
    await other.fetch(10, 0.3)
    clock.move(6)
    assert numbers(await collect(other, 1)) == [1]


@pytest.mark.parametrize("ahead", [45.0, DAY])
async def test_a_lead_of_who_is_gone_ends(opened: tuple[Opening, Clock], ahead: float) -> None:
    open_one, clock = opened
    log = await open_one()
    clock.move(ahead)
    assert await log.lead("archive", "gone", 30)
    clock.move(-ahead)
    assert not await log.lead("archive", "next", 30), "it may live, and renews it then"
    clock.move(31)
    assert await log.lead("archive", "next", 30)


async def test_a_lead_is_not_cut_short_by_one_who_asks_for_a_shorter_one(opened: tuple[Opening, Clock]) -> None:
    open_one, clock = opened
    log = await open_one()
    assert await log.lead("tuning", "worker", 30)
    assert not await log.lead("tuning", "command", 1)
    clock.move(10)
    assert not await log.lead("tuning", "command", 1)
    assert not await log.lead("tuning", "command", 0), "nobody gives up what another one has"
    assert not await log.lead("tuning", "command", 1)
    clock.move(21)
    assert await log.lead("tuning", "command", 1)


async def test_positions_grow_and_events_flow_on(opened: tuple[Opening, Clock]) -> None:
    open_one, clock = opened
    log = await open_one()
    subscription = await registered(log)
    for move in (DAY, -DAY, 3.0, -7.0, 2 * DAY, -2 * DAY):
        clock.move(move)
        await log.append([_said(clock, (move, number), subject="s") for number in range(2)])
        for number in range(2):
            (delivery,) = await collect(subscription, 1)
            assert numbers([delivery]) == [[move, number]]
            assert await subscription.commit([done(delivery)]) == [True]
    assert len(await events(log)) == 12


async def test_a_clock_that_was_behind_and_is_set_right_loses_nothing(opened: tuple[Opening, Clock]) -> None:
    open_one, clock = opened
    log = await open_one()
    subscription = await registered(log)
    clock.move(-DAY)
    await log.append([_said(clock, 1), _said(clock, 2, delay=20.0)])
    (first,) = await collect(subscription, 1)
    assert await subscription.commit([Postpone(first, 20_000, 1, 1)]) == [True]
    clock.move(DAY)
    assert sorted(numbers(await collect(subscription, 2))) == [1, 2]


async def test_what_the_server_could_not_send_is_put_aside_for_no_longer_than_a_minute(
    server: tuple[ValkeyServer, ServerClock],
) -> None:
    clock = Clock(server)
    log = RedisLog(f"{server[0].url}?log=clock-{next(_numbers)}", LogOptions())
    await log.open()
    subscription = await registered(log)
    clock.move(DAY)
    await log.append([_said(clock, 1)])
    await collect(subscription, 1)
    wire = Wire(log._address, 5.0)
    (withheld,) = await wire.run("withhold", GROUP, TYPE, "w1", msgspec.msgpack.encode([]), 60_000, 0)
    assert withheld[0] == b"1"
    clock.move(-DAY)
    assert await subscription.fetch(10, 0.0) == []
    clock.move(61)
    assert numbers(await collect(subscription, 1)) == [1]
    await wire.close()
    await log.close()
    clock.move(-clock.ahead)
