from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ag06.monitoring.checks import (
    StuckSteps,
    consumer_lag,
    disk_space,
    event_loop,
    journal_backlog,
    register_built_in,
    store_configuration,
)
from ag06.monitoring.health import HealthRegistry
from ag06.monitoring.loop_watch import LoopWatch, Stall
from ag06.persistence import EventStore
from ag06.persistence.journal.state import JournalState
from ag06.persistence.log import GroupInfo, LogStats
from journals import diverted, straight
from records import eventually
from servers import ValkeyServer

CALM = JournalState(False, 0, None, 0, 0, 0, None, None)
NOW = 1_000_000.0


def ago(seconds: float) -> int:
    return int((NOW - seconds) * 1000)


def journal_of(state: JournalState | None) -> Any:
    async def ask() -> JournalState | None:
        return state

    return ask


class Steps:
    """What a log says of its steps; a test changes it."""

    def __init__(self, *groups: GroupInfo) -> None:
        self.groups = groups

    async def __call__(self) -> LogStats:
        return LogStats(0, 0, 0, 0, self.groups)


def group(name: str, backlog: int = 0, age: float | None = None, in_flight: int = 0) -> GroupInfo:
    return GroupInfo(name, "order.placed", backlog, in_flight, 0, None if age is None else ago(age))


@pytest.mark.parametrize(("warn_mib", "fail_mib", "status"), [(0, 0, "pass"), (1e12, 0, "warn"), (1e12, 1e12, "fail")])
def test_a_disk_that_runs_full_is_a_warning_and_then_a_fail(
    tmp_path: Path, warn_mib: float, fail_mib: float, status: str
) -> None:
    later = tmp_path / "not" / "there" / "yet.db"
    found = disk_space([later], warn_mib=warn_mib, fail_mib=fail_mib)()
    assert found.status == status
    assert found.observed > 0
    assert (found.detail is None) == (status == "pass")
    assert found.detail is None or str(later) in found.detail


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, None),
        (CALM, None),
        (msgspec.structs.replace(CALM, events=5, oldest_ms=ago(1)), None),  # it drains
        (msgspec.structs.replace(CALM, late_duplicates=9), None),
        (msgspec.structs.replace(CALM, active=True, problem="refused"), "the store is away, events go to the journal"),
        (msgspec.structs.replace(CALM, active=True, events=3, oldest_ms=ago(7)), "3 events wait, the oldest for 7 s"),
        (msgspec.structs.replace(CALM, events=1000, oldest_ms=ago(1)), "1000 events wait"),
        (msgspec.structs.replace(CALM, events=1, oldest_ms=ago(61)), "1 events wait, the oldest for 61 s"),
        (msgspec.structs.replace(CALM, in_memory=2, events=2, oldest_ms=ago(1)), "2 events are on no disk yet"),
        (msgspec.structs.replace(CALM, dead_letters=4), "refused 4 events for good; see: ag06 journal list"),
    ],
)
async def test_a_journal_that_fills_or_grows_old_is_a_warning(state: JournalState | None, words: str | None) -> None:
    found = await journal_backlog(journal_of(state), now=lambda: NOW)()
    assert found.status == ("pass" if words is None else "warn")
    assert words is None or words in found.detail


async def test_a_step_that_is_behind_is_a_warning_that_names_it() -> None:
    steps = Steps(group("shop.fine", 9999, 299), group("shop.idle"), group("shop.many", 10_000, 1))
    check = consumer_lag(steps, now=lambda: NOW)
    found = await check()
    assert (found.status, found.observed) == ("warn", 10_000)
    assert found.detail == "shop.many: 10000 events behind, the oldest for 1 s"
    steps.groups = (group("shop.old", 1, 300),)
    assert (await check()).detail == "shop.old: 1 events behind, the oldest for 300 s"
    steps.groups = (group("shop.fine", 9999, 299),)
    assert (await check()).status == "pass"


async def test_many_steps_that_are_behind_make_a_short_sentence() -> None:
    found = await consumer_lag(Steps(*[group(f"shop.{n}", 50_000, 1) for n in range(40)]), now=lambda: NOW)()
    assert "shop.4" in found.detail
    assert "shop.5" not in found.detail
    assert found.detail.endswith("; and 35 more")


async def test_a_step_whose_oldest_event_does_not_move_is_stuck() -> None:
    now = [0.0]
    steps = Steps()
    check = StuckSteps(steps, clock=lambda: now[0])

    async def after(seconds: float, *groups: GroupInfo) -> tuple[str, str]:
        now[0] += seconds
        steps.groups = groups
        found = await check()
        return found.status, found.detail or ""

    old, still = group("shop.bill", 5, 1000), group("shop.bill", 900, 1000)
    assert (await after(0, old))[0] == "pass"  # old, but perhaps it is being worked off
    assert (await after(299, old))[0] == "pass"
    status, detail = await after(1, still, group("shop.mail", 3, 5))
    assert (status, "shop.bill" in detail, "shop.mail" in detail) == ("warn", True, False)
    assert "ag06 steps remove shop.bill" in detail
    assert "hang, or wait for a retry" in (await after(1, group("shop.bill", 5, 1000, in_flight=1)))[1]
    assert (await after(1, group("shop.bill", 5, 999)))[0] == "pass"  # it moved
    assert (await after(299, group("shop.bill", 5, 999)))[0] == "pass"
    assert (await after(1, group("shop.bill", 0)))[0] == "pass"
    assert (await after(1, group("shop.bill", 5, 999)))[0] == "pass"  # and begins anew


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], "pass"),
        (["every write is on disk before its reply"], "pass"),
        (["every write is on disk", "no replica: if the machine is lost, so is the log"], "warn"),
    ],
)
async def test_a_store_that_can_lose_events_is_a_warning_in_its_words(lines: Sequence[str], status: str) -> None:
    async def report() -> Sequence[str]:
        return lines

    found = await store_configuration(report)()
    assert found.status == status
    assert found.detail == ("; ".join(lines) or None if status == "pass" else lines[-1])


@pytest.mark.parametrize(
    ("seconds", "over", "ended", "status"),
    [
        (2.0, False, 0, "warn"),
        (10.0, False, 0, "fail"),
        (30.0, True, 59, "warn"),
        (30.0, True, 61, "pass"),
    ],
)
async def test_a_stall_of_the_loop_fails_while_it_lasts_and_is_remembered_for_a_while(
    seconds: float, over: bool, ended: float, status: str
) -> None:
    watch = LoopWatch()
    check = event_loop(watch)
    assert (await check()).status == "pass"
    began = datetime.now(UTC) - timedelta(seconds=seconds + ended)
    watch.last_stall = Stall(began, seconds, "level (mixer.py:7)", over)
    found = await check()
    assert found.status == status
    assert status == "pass" or "level (mixer.py:7)" in found.detail


@pytest.fixture
async def health() -> AsyncIterator[HealthRegistry]:
    registry = HealthRegistry(ttl=0)
    yield registry
    await registry.close()


async def test_the_built_in_checks_pass_on_a_fresh_store(health: HealthRegistry, tmp_path: Path) -> None:
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    watch = LoopWatch()
    watch.start()
    log = await store.log()
    register_built_in(health, watch=watch, paths=[tmp_path], stats=store.stats, report=log.durability_report)
    report = await health.check_health()
    assert set(report.components) == {
        "event_loop",
        "disk",
        "store",
        "consumer_lag",
        "stuck_steps",
        "store_configuration",
    }
    assert report.status == "pass", report
    assert report.components["store"].critical
    assert report.components["store"].detail == "0 events"
    watch.stop()
    await store.close()


async def test_a_store_that_is_away_is_a_warning_while_the_journal_takes_its_events(
    health: HealthRegistry, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    server = ValkeyServer(tmp_path / "server", appendonly="yes").start()
    store = EventStore(server.url, journal=str(tmp_path / "journal"))
    assert await store.persist_event("order.placed", "test", {"number": 1})
    register_built_in(health, stats=store.stats, journal=store.journal_state)
    assert (await health.check_health()).status == "pass"
    server.kill()
    assert await store.persist_event("order.placed", "test", {"number": 2})
    await diverted(store)
    report = await health.check_health()
    assert report.status == "warn"
    assert {name: part.status for name, part in report.components.items() if name in {"store", "journal"}} == {
        "store": "fail",
        "journal": "warn",
    }
    assert "1 events wait" in str(report.components["journal"].error)
    server.start()
    await straight(store)

    async def recovered() -> bool:
        found = (await health.check_health()).components
        return (found["store"].status, found["journal"].status) == ("pass", "pass")

    await eventually(recovered)
    assert report.components["store"].error
    await store.close()
    server.kill()
