"""Components and figures of several workers as one."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from ag06.monitoring.health import Component
from ag06.monitoring.tracker import PerformanceTracker
from ag06.runtime.fleet_health import FleetHealth, merge_components
from ag06.runtime.fleet_status import merged_status
from ag06.runtime.supervisor import WorkerProcess
from ag06.runtime.worker_reports import WorkerReport

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def component(status: Any = "pass", error: str | None = None, *, critical: bool = True) -> Component:
    return Component(status, 2.5, error, NOW, critical, error, error, NOW)


def report(worker: str, at: float, **components: Component) -> WorkerReport:
    content = {"worker": worker, "components": msgspec.to_builtins(components)}
    return WorkerReport(worker, 1, at, content)


@pytest.mark.parametrize(
    ("statuses", "critical", "merged"),
    [
        (("pass", "pass"), True, "pass"),
        (("pass", "warn"), True, "warn"),
        (("pass", "fail"), True, "warn"),
        (("warn", "fail"), True, "warn"),
        (("fail", "fail"), True, "fail"),
        (("fail",), True, "fail"),
        (("pass", "fail"), False, "fail"),  # not critical: the whole is a warning then
    ],
)
def test_a_component_is_as_bad_as_at_its_worst_but_what_others_still_do_is_no_failure(
    statuses: tuple[str, ...], critical: bool, merged: str
) -> None:
    workers = {
        f"w{number}": {"mixer": component(status, None if status == "pass" else "no sound", critical=critical)}
        for number, status in enumerate(statuses)
    }
    found = merge_components(workers)["mixer"]
    assert (found.result.status, found.critical) == (merged, critical)


def test_the_error_says_which_workers_have_it() -> None:
    workers = {
        "w1": {"mixer": component("fail", "no sound")},
        "w2": {"mixer": component("pass")},
        "w3": {"mixer": component("fail", "no sound")},
        "w4": {"mixer": component("fail", "too loud")},
        "w5": {"mixer": component("warn", "a bit loud")},
    }
    assert merge_components(workers)["mixer"].result.detail == "w1, w3: no sound; w4: too loud"


def test_the_supervisors_own_view_decides_only_where_no_worker_has_one() -> None:
    own = {"the supervisor": {"store": component("fail", "refused")}}
    assert merge_components({"w1": {"store": component()}}, own)["store"].result.status == "warn"
    assert merge_components({"w1": {"store": component("fail", "x")}}, {"own": {"store": component()}})[
        "store"
    ].result.status == ("fail")
    alone = merge_components({}, own)["store"].result
    assert (alone.status, alone.detail) == ("fail", "the supervisor: refused")


@pytest.fixture
async def workers() -> AsyncIterator[list[WorkerProcess]]:
    """Two workers whose processes do nothing."""
    found = [WorkerProcess(0), WorkerProcess(1)]
    for worker in found:
        worker.name = f"w{worker.index}"
        worker.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE
        )
        worker.since = datetime.now(UTC)
    yield found
    for worker in found:
        await end(worker)


async def end(worker: WorkerProcess) -> None:
    if worker.process is not None and worker.process.returncode is None:
        worker.process.kill()
    if worker.process is not None:
        await worker.process.wait()


async def test_a_worker_that_says_nothing_is_named_and_what_it_last_said_is_passed_over(
    workers: list[WorkerProcess],
) -> None:
    now = time.time()
    health = FleetHealth(clock=lambda: now)
    said = {
        "w0": report("w0", now, mixer=component()),
        "w1": report("w1", now - 9, mixer=component("fail", "no sound")),
    }
    await health.update(workers, said)
    found = (await health.registry.check_health()).components
    assert (found["workers"].status, found["mixer"].status) == ("pass", "warn")
    now += 1.0
    await health.update(workers, said)
    found = (await health.registry.check_health()).components
    assert found["workers"].status == "warn"
    assert "no report for 10 s or more from w1;" in (found["workers"].error or "")
    assert found["mixer"].status == "pass"
    await health.close()


async def test_a_worker_that_never_said_anything_is_named_after_its_time(workers: list[WorkerProcess]) -> None:
    now = time.time()
    health = FleetHealth(clock=lambda: now)
    await health.update(workers, {"w0": report("w0", now + 11)})
    assert (await health.registry.check_health()).components["workers"].status == "pass"
    now += 11.0
    found = (await health.registry.check_health()).components["workers"]
    assert "from w1;" in (found.error or "")
    await health.close()


async def test_dead_workers_are_told_until_none_is_left(workers: list[WorkerProcess]) -> None:
    now = time.time()
    health = FleetHealth(clock=lambda: now)
    await health.update(workers, {})
    await end(workers[0])
    found = (await health.registry.check_health()).components["workers"]
    assert (found.status, found.observed, found.error) == ("warn", 1, "not alive: w0; 1 of 2 alive, 0 restarts")
    workers[0].deaths, workers[0].died, workers[0].exit_code = 1, datetime.fromtimestamp(now, UTC), -9
    assert "worker 0 ended with -9 at " in ((await health.registry.check_health()).components["workers"].error or "")
    await end(workers[1])
    report = await health.registry.check_health()
    assert (report.status, report.components["workers"].error) == ("fail", "0 of 2 alive, 1 restarts")
    await health.close()


async def test_a_restart_is_forgiven_after_a_while(workers: list[WorkerProcess]) -> None:
    now = time.time()
    health = FleetHealth(clock=lambda: now)
    workers[0].deaths, workers[0].died = 1, datetime.fromtimestamp(now, UTC)
    said = {worker.name: report(worker.name, now + 60) for worker in workers}
    await health.update(workers, said)
    assert (await health.registry.check_health()).status == "warn"
    now += 61.0
    found = await health.registry.check_health()
    assert (found.status, found.components["workers"].detail) == ("pass", "2 of 2 alive, 1 restarts")
    await health.close()


async def test_components_come_and_go_and_keep_since_when_they_stand_as_they_do(workers: list[WorkerProcess]) -> None:
    health = FleetHealth()
    now = time.time()
    await health.update(workers, {"w0": report("w0", now, mixer=component("fail", "no sound"))})
    first = (await health.registry.check_health()).components["mixer"]
    await health.update(workers, {"w0": report("w0", now, mixer=component("fail", "no sound", critical=True))})
    assert (await health.registry.check_health()).components["mixer"].since == first.since
    await health.update(workers, {"w0": report("w0", now, mixer=component("fail", "no sound", critical=False))})
    changed = await health.registry.check_health()
    assert (changed.components["mixer"].critical, changed.status) == (False, "warn")
    await health.update(workers, {"w0": report("w0", now)})
    assert set((await health.registry.check_health()).components) == {"workers", "event loops"}
    await health.close()


async def test_the_checks_of_this_process_are_told_beside_those_of_the_workers() -> None:
    health = FleetHealth()
    health.own.register("disk", lambda: ("warn", "a bit full"))
    await health.update([], {})
    found = (await health.registry.check_health()).components
    assert found["disk"].error == "the supervisor: a bit full"
    await health.close()


async def test_a_report_in_other_words_hurts_nobody(workers: list[WorkerProcess]) -> None:
    odd = {"worker": "w0", "components": {"mixer": {"state": "fine"}}, "performance": [1], "breakers": {"b": {}}}
    health = FleetHealth()
    await health.update(workers, {"w0": WorkerReport("w0", 1, time.time(), odd)})
    assert set((await health.registry.check_health()).components) == {"workers", "event loops"}
    await health.close()
    found = merged_status([WorkerReport("w0", 1, time.time(), odd)])
    assert found["performance"] == {}
    assert found["breakers"] == {"b": {"worker": "w0", "states": {"None": 1}}}


def test_figures_are_added_and_quantiles_are_bounded_from_above() -> None:
    now = 0.0
    trackers = [PerformanceTracker(clock=lambda: now) for _ in range(3)]
    alone = [(0.010, 90), (0.030, 10)], [(0.020, 100)]
    for seen, *tracked in zip(alone, trackers[:2], strict=True):
        for tracker in (*tracked, trackers[2]):
            for seconds, count in seen:
                tracker.observe("s", seconds, False, count)
            tracker.observe("s", 0.010, True)
    now = 10.0
    one, other, together = (tracker.snapshot("s") for tracker in trackers)
    contents = [{"performance": {"s": msgspec.to_builtins(each)}} for each in (one, other)]
    found = merged_status([WorkerReport(str(n), n, 0.0, content) for n, content in enumerate(contents)])
    merged = found["performance"]["s"]
    assert (merged["count"], merged["errors"], merged["error_rate"]) == (202, 2, 2 / 202)
    assert merged["throughput"] == pytest.approx(together.throughput)
    assert merged["latency_mean_ms"] == pytest.approx(together.latency_mean_ms)
    for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms"):
        assert getattr(together, name) <= merged[name] == max(getattr(one, name), getattr(other, name))


def test_a_breaker_is_shown_where_it_is_worst() -> None:
    states = {"w0": "closed", "w1": "open", "w2": "half_open", "w3": "closed"}
    reports = [
        WorkerReport(name, 1, 0.0, {"breakers": {"bank": {"state": state, "refused": len(state)}}})
        for name, state in states.items()
    ]
    bank = merged_status(reports)["breakers"]["bank"]
    assert bank == {
        "state": "open", "refused": 4, "worker": "w1", "states": {"closed": 2, "open": 1, "half_open": 1},
    }  # fmt: skip


def test_what_the_store_says_comes_from_the_latest_report_and_resources_are_added() -> None:
    reports = [
        WorkerReport("w0", 1, 5.0, {"steps": {"s": {"backlog": 1}}, "resources": {"memory_mb": 10.0}}),
        WorkerReport("w1", 2, 7.0, {"steps": {"s": {"backlog": 2}}, "resources": {"memory_mb": 5.5}}),
        WorkerReport("w2", 3, 6.0, {"steps": {"s": {"backlog": 3}}, "resources": None}),
    ]
    found = merged_status(reports)
    assert (found["steps"], found["resources"]) == ({"s": {"backlog": 2}}, {"memory_mb": 15.5})
    assert merged_status([])["steps"] == {}


@pytest.mark.parametrize(
    ("stalled", "status"),
    [((0.0, 0.0), "pass"), ((40.0, 0.0), "warn"), ((40.0, 35.0), "fail"), ((71.0, 0.0), "fail")],
)
async def test_liveness_fails_where_no_loop_turns_or_a_worker_that_stalls_was_not_replaced(
    workers: list[WorkerProcess], stalled: tuple[float, float], status: str
) -> None:
    health = FleetHealth()
    for worker, seconds in zip(workers, stalled, strict=True):
        worker.stalled, worker.is_stalled, worker.stall_limit = seconds, seconds >= 30.0, 60.0
    await health.update(workers, {})
    found = (await health.registry.liveness()).components["event loops"]
    assert found.status == status
    assert ("worker 0" in (found.error or "")) == (status != "pass")
    await health.close()
