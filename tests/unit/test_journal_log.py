"""The log with a journal in front of an inner one that fails as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ag06.errors import AG06Error, ConfigurationError, OutcomeUnknown, StoreUnavailable
from ag06.persistence.journal import log as journal_log
from ag06.persistence.log import Appended, LogOptions, Record, StepSpec
from faulty import AWAY, Both, kept
from journals import when
from records import TYPE, record

STORED = Appended.STORED


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(journal_log, "_DISK_SECONDS", 0.02)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    opened = Both(tmp_path / "journal", LogOptions())
    await opened.log.open()
    yield opened
    opened.inner.may_go_on.set()
    await opened.log.close()


async def test_the_breaker_opens_at_the_first_refusal_and_closes_when_the_journal_is_drained(both: Both) -> None:
    seen: list[tuple[str, str]] = []
    both.log.breaker.on_transition(lambda name, left, entered: seen.append((left, entered)))
    assert both.log.breaker.state == "closed"
    assert not both.state.active
    await kept(both, 1)
    assert seen[0] == ("closed", "open")
    assert both.state.active
    assert both.state.events == 1
    assert both.state.problem == "the store is away"
    assert both.state.oldest_ms is not None
    assert both.state.path is not None

    async def tried_in_vain() -> bool:
        return ("open", "half_open") in seen and ("half_open", "open") in seen

    await when(tried_in_vain)
    both.fail(None)
    await both.straight()
    assert seen[-1] == ("half_open", "closed")
    assert both.log.breaker.state == "closed"
    state = both.state
    assert (state.active, state.events, state.oldest_ms, state.path, state.problem) == (False, 0, None, None, None)


@pytest.mark.parametrize(
    "error", [ConfigurationError("this user may not"), RuntimeError("a mistake"), AG06Error("no")], ids=repr
)
async def test_an_error_that_is_no_outage_does_not_end_the_draining(
    both: Both, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await kept(both, 1, 2)
    both.fail(error)

    async def said() -> bool:
        return both.state.problem == str(error)

    with caplog.at_level(logging.WARNING, "ag06"):
        await when(said)
        before = len(both.inner.tried)
        started = asyncio.get_running_loop().time()
        await both.tried(4)
        tries = len(both.inner.tried) - before
        assert tries <= 6 + 3 * (asyncio.get_running_loop().time() - started) / 0.02, "it spins"
    assert both.state.active
    assert both.state.events == 2
    assert caplog.text.count(f"draining the journal failed, it is tried again: {error}") == 1
    assert await both.log.append([record(3)]) == [STORED], "events are journalled all the same"
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1, 2, 3]


async def test_nobody_waits_for_a_store_that_does_not_answer(both: Both) -> None:
    await kept(both, 1)
    both.inner.may_go_on.clear()
    both.fail(None)
    await both.tried(1)
    hanging = len(both.inner.tried)
    for number in range(2, 30):
        assert await asyncio.wait_for(both.log.append([record(number)]), 10) == [STORED]
    assert len(both.inner.tried) == hanging, "it waited until the recovery had given up"
    assert both.state.events == 29
    both.inner.may_go_on.set()
    await both.straight()
    assert await both.numbers() == list(range(1, 30))


async def test_an_event_whose_call_failed_during_the_switch_is_behind_nothing_of_its_publisher(both: Both) -> None:
    both.inner.may_go_on.clear()
    slow = asyncio.create_task(both.log.append([record(1, subject="s")]))
    await both.tried(1)
    both.fail(OutcomeUnknown("lost"))
    both.inner.may_go_on.set()
    assert await slow == [STORED]
    both.fail(None)
    assert await both.log.append([record(2, subject="s")]) == [STORED]
    await both.straight()
    assert await both.numbers() == [1, 2]


async def test_a_cancelled_caller_does_not_hold_up_or_lose_what_others_say(both: Both) -> None:
    both.fail(AWAY)
    for round_ in range(5):
        given_up = [asyncio.create_task(both.log.append([record(f"{round_}-{n}")])) for n in range(20)]
        for _ticks in range(round_):
            await asyncio.sleep(0)
        for task in given_up:
            task.cancel()
        assert await both.log.append([record(round_)]) == [STORED]
    both.fail(None)
    await both.straight()
    found = await both.numbers()
    assert [n for n in found if isinstance(n, int)] == [0, 1, 2, 3, 4]
    assert len(found) == len(set(found))


async def test_replicated_raises_and_nothing_of_it_is_journalled(both: Both) -> None:
    both.fail(AWAY)
    with pytest.raises(StoreUnavailable, match="the store is away"):
        await both.log.append([record(1)], durability="replicated")
    await kept(both, 2)
    with pytest.raises(StoreUnavailable, match="cannot give durability='replicated'; nothing was stored"):
        await both.log.append([record(3)], durability="replicated")
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [2]
    assert await both.log.append([record(3)], durability="replicated") == [STORED]


async def test_what_was_to_be_synced_is_drained_with_a_sync_and_other_pages_are_not(both: Both) -> None:
    both.fail(AWAY)
    await both.log.append([record(1)])
    assert set(both.inner.tried) == {("open", None), ("append", None)}
    await both.log.append([record(2)], durability="fsync")
    both.inner.tried.clear()
    both.fail(None)
    await both.straight()
    assert ("append", "fsync") in both.inner.tried


async def test_a_store_that_cannot_sync_gets_the_events_and_an_error_says_so(
    both: Both, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner_append = both.inner.append

    async def append(records: Sequence[Record], **settings: Any) -> list[Appended]:
        if settings.get("durability") == "fsync" and both.inner.error is None:
            raise ConfigurationError("it keeps no file")
        return await inner_append(records, **settings)

    monkeypatch.setattr(both.inner, "append", append)
    both.fail(AWAY)
    await both.log.append([record(1)], durability="fsync")
    with caplog.at_level(logging.ERROR, "ag06"):
        both.fail(None)
        await both.straight()
    assert await both.numbers() == [1]
    assert "less durable in the store than was asked for: it keeps no file" in caplog.text


async def test_a_step_that_the_store_refuses_holds_no_journal_up(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    await both.log.register("shop", [StepSpec("shop.bill", TYPE)])
    await kept(both, 1, 2)
    wrong = [StepSpec("shop.bill", "another.type")]
    with pytest.raises(StoreUnavailable):
        await both.log.register("shop", wrong)
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1, 2]
    assert "shop.bill' listens to 'another.type'" in caplog.text
    with pytest.raises(ConfigurationError, match=r"shop.bill' listens to 'another.type'"):
        await both.log.register("shop", wrong)


async def test_steps_that_register_while_the_store_is_away_are_known_before_the_drain(both: Both) -> None:
    both.fail(AWAY)
    for said in ("the store is away", *["the store is away: the store is away"] * 3):
        with pytest.raises(StoreUnavailable, match=f"^{said}$"):
            await both.log.register("shop", [StepSpec("shop.bill", TYPE)])
    await kept(both, 1)
    both.inner.tried.clear()
    both.fail(None)
    await both.straight()
    assert both.inner.tried.index(("register", "shop")) < both.inner.tried.index(("append", None))
    assert await both.log.pending(["shop.bill"]) == 1
    assert len(await both.log.subscribe("shop.bill", "w", 30.0).fetch(10, 1.0)) == 1


async def test_a_log_whose_store_is_away_when_it_is_opened_takes_events(tmp_path: Path) -> None:
    both = Both(tmp_path / "journal", LogOptions())
    both.fail(AWAY)
    await both.log.open()
    assert both.state.active
    assert both.state.problem == "the store is away"
    await kept(both, 1)
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1]
    await both.log.close()


async def test_a_mistake_of_a_store_that_was_never_reached_is_raised_and_the_journal_keeps_its_events(
    tmp_path: Path,
) -> None:
    steps = [StepSpec("shop.bill", TYPE)]
    both = Both(tmp_path / "journal", LogOptions())
    both.fail(AWAY)
    await both.log.open()
    await kept(both, 1)
    with pytest.raises(StoreUnavailable):
        await both.log.register("shop", steps)
    both.fail(ConfigurationError("refuses this user"))
    await both.tried(2)
    with pytest.raises(ConfigurationError, match="refuses this user"):
        await both.log.register("shop", steps)
    assert await both.log.append([record(2)]) == [STORED]
    both.fail(None)
    await both.straight()
    await both.log.register("shop", steps)
    assert await both.numbers() == [1, 2]
    await both.log.close()


async def test_a_journal_that_breaks_while_it_is_used_gives_what_can_be_saved_and_holds_nobody_up(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    await kept(both, *range(200))
    path = Path(both.state.path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = path.read_bytes()
        page = data.index(b'"number":100}') // 4096 * 4096
        with path.open("r+b") as file:
            file.seek(page)
            file.write(bytes(100))
        other.execute("UPDATE entries SET synced = synced WHERE n = 1")  # what the log has in its cache counts no more
        other.commit()
    with caplog.at_level(logging.ERROR, "ag06"):
        both.fail(None)

        async def went_on() -> bool:
            return not both.state.active

        await when(went_on)
    found = await both.numbers()
    assert len(found) > 150
    assert found == sorted(set(found))
    assert f"kept as {path}.corrupt" in caplog.text
    assert await both.log.append([record(200)]) == [STORED]
