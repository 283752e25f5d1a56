"""Where events wait that no disk takes, and what becomes of all that waits when the log is closed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from ag06.errors import Backpressure, StoreUnavailable
from ag06.persistence.journal import log as journal_log
from ag06.persistence.journal.waiting import WaitingRoom
from ag06.persistence.log import Appended, LogOptions
from faulty import AWAY, Both, kept
from journals import when
from records import record

STORED = Appended.STORED


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(journal_log, "_DISK_SECONDS", 0.02)


async def test_closing_leaves_the_file_says_where_and_the_next_one_drains_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = Both(tmp_path / "journal", LogOptions())
    await both.log.open()
    await kept(both, 1, 2, 3)
    path = both.state.path
    with caplog.at_level(logging.WARNING, "ag06"):
        await both.log.close()
    assert f"3 events stay in the journal {path}" in caplog.text
    with pytest.raises(StoreUnavailable, match=r"closed|away"):
        await both.log.append([record(4)])
    again = Both(tmp_path / "journal", LogOptions())
    await again.log.open()
    assert await again.log.append([record(4)]) == [STORED]
    await again.straight()
    assert await again.numbers() == [1, 2, 3, 4]
    await again.log.close()


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_journal_is_free_for_the_next_one_although_its_closing_was_cancelled(
    tmp_path: Path, turns: int
) -> None:
    both = Both(tmp_path / "journal", LogOptions())
    await both.log.open()
    await kept(both, 1, 2, 3)
    closing = asyncio.create_task(both.log.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    again = Both(tmp_path / "journal", LogOptions())
    await again.log.open()
    await again.straight()
    assert await again.numbers() == [1, 2, 3]
    await again.log.close()


async def test_what_is_adopted_while_the_log_is_closed_is_left_to_the_next_one(tmp_path: Path) -> None:
    dead = Both(tmp_path / "journal", LogOptions())
    await dead.log.open()
    await kept(dead, 1, 2)
    both = Both(tmp_path / "journal", LogOptions())
    await both.log.open()
    await dead.log.close()
    both.log._looked = float("-inf")
    looking = asyncio.create_task(both.log.maintain())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not looking.done()
    await both.log.close()
    await looking
    again = Both(tmp_path / "journal", LogOptions())
    await again.log.open()
    assert again.state.events == 2
    await again.log.close()


async def test_closing_while_publishers_write_leaves_nobody_waiting_and_no_id_behind(tmp_path: Path) -> None:
    both = Both(tmp_path / "journal", LogOptions())
    await both.log.open()
    both.fail(AWAY)
    calls = [asyncio.create_task(both.log.append([record(n)])) for n in range(200)]
    for _ in range(3):
        await asyncio.sleep(0)
    await both.log.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    told = [n for n, outcome in enumerate(outcomes) if outcome == [STORED]]
    assert all(outcome == [STORED] or isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    again = Both(tmp_path / "journal", LogOptions())
    await again.log.open()
    await again.straight()
    assert await again.numbers() == told
    await again.log.close()


async def test_closing_in_the_middle_of_a_drain_loses_and_doubles_nothing(tmp_path: Path) -> None:
    both = Both(tmp_path / "journal", LogOptions(timeout=0.05))
    await both.log.open()
    await kept(both, *range(1200))
    both.inner.may_go_on.clear()
    both.fail(None)
    await both.tried(1)
    await both.log.close()
    again = Both(tmp_path / "journal", LogOptions())
    await again.log.open()
    await again.straight()
    assert await again.numbers() == list(range(1200))
    await again.log.close()


async def _waiting(both: Both, count: int) -> None:
    async def check() -> bool:
        return bool(both.state.in_memory == count)

    await when(check)


async def test_without_a_disk_a_publisher_waits_until_its_event_is_in_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    both = Both(tmp_path / "file" / "journal", LogOptions())
    await both.log.open()
    both.fail(AWAY)
    calls = [asyncio.create_task(both.log.append([record(n, subject="s")])) for n in range(50)]
    await _waiting(both, 50)
    calls[7].cancel()  # its event is stored all the same: it waits for nobody
    assert both.state.events == 50
    assert both.state.path is None
    assert both.state.oldest_ms is not None
    assert not any(call.done() for call in calls if call is not calls[7])
    both.fail(None)
    assert await asyncio.gather(*calls[:7], *calls[8:]) == [[STORED]] * 49
    assert await both.numbers() == list(range(50))
    await both.log.close()


async def test_a_disk_that_gets_room_again_lets_publishers_go_while_the_store_is_away(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.touch()
    both = Both(place / "journal", LogOptions())
    await both.log.open()
    both.fail(AWAY)
    calls = [asyncio.create_task(both.log.append([record(n)])) for n in range(50)]
    await _waiting(both, 50)
    place.unlink()
    assert await asyncio.wait_for(asyncio.gather(*calls), 10) == [[STORED]] * 50
    assert both.state.in_memory == 0
    assert both.state.events == 50
    assert await both.log.append([record(50)]) == [STORED]
    both.fail(None)
    await both.straight()
    assert await both.numbers() == list(range(51))
    await both.log.close()


async def test_a_full_room_refuses_at_once_and_those_in_it_are_told_at_the_close(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    both = Both(tmp_path / "file" / "journal", LogOptions())
    both.log._room = WaitingRoom(most_events=10)
    await both.log.open()
    both.fail(AWAY)
    calls = [asyncio.create_task(both.log.append([record(n)])) for n in range(10)]
    await _waiting(both, 10)
    with pytest.raises(Backpressure, match="10 events wait in memory"):
        await both.log.append([record(10)])
    await both.log.close()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable)
        assert "not durable" in str(outcome)
