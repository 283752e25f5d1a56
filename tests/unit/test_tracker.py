from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import msgspec
import pytest

from ag06.monitoring.tracker import Performance, PerformanceTracker


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> PerformanceTracker:
    return PerformanceTracker(clock=clock)


def test_a_snapshot_gives_rate_errors_and_quantiles(tracker: PerformanceTracker, clock: Clock) -> None:
    series = tracker.series("level")
    for number in range(1, 101):
        series.record(number / 1000, failed=number % 10 == 0)
        clock.seconds += 0.2
    found = tracker.snapshot("level")
    assert (found.count, found.errors, found.error_rate) == (100, 10, 0.1)
    assert found.seconds == pytest.approx(20.0)
    assert found.throughput == pytest.approx(5.0)
    assert found.latency_mean_ms == pytest.approx(50.5)
    quantiles = (found.latency_p50_ms, found.latency_p95_ms, found.latency_p99_ms)
    assert quantiles == pytest.approx((50.0, 95.0, 99.0), rel=0.0101)


def test_what_is_older_than_the_windows_is_forgotten(tracker: PerformanceTracker, clock: Clock) -> None:
    series = tracker.series("level")
    counts = []
    for number in range(12):
        series.record(float(number + 1), failed=number < 3)
        counts.append(tracker.snapshot("level").count)
        clock.seconds += 10
    assert counts == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6]
    clock.seconds -= 5
    found = tracker.snapshot("level")
    assert (found.count, found.errors, found.seconds) == (6, 0, 55.0)
    assert found.latency_p50_ms == pytest.approx(9000, rel=0.0101)
    clock.seconds += 60
    assert tracker.snapshot("level").count == 0


def test_what_a_series_holds_is_bounded_however_long_it_runs(tracker: PerformanceTracker, clock: Clock) -> None:
    series = tracker.series("level")
    for _ in range(1000):
        series.record(0.001)
        clock.seconds += 10
    assert len(series._ring) <= 6


def test_a_pause_is_covered_by_the_rate(tracker: PerformanceTracker, clock: Clock) -> None:
    series = tracker.series("level")
    for _ in range(120):
        series.record(0.001)
    clock.seconds += 40
    assert tracker.snapshot("level").throughput == pytest.approx(3.0)


def test_the_first_moment_makes_no_wild_rate(tracker: PerformanceTracker, clock: Clock) -> None:
    tracker.observe("level", 0.001)
    clock.seconds += 1e-6
    assert tracker.snapshot("level").throughput == 1.0


def test_all_steps_together_are_one_sum(tracker: PerformanceTracker, clock: Clock) -> None:
    tracker.observe("level", 0.010, count=3)
    tracker.observe("store", 0.100, failed=True, count=5)
    clock.seconds += 4
    found = tracker.snapshot()
    assert (found.count, found.errors, found.error_rate, found.throughput) == (8, 5, 0.625, 2.0)
    assert found.latency_p50_ms == pytest.approx(100.0, rel=0.0101)
    assert {key: each.count for key, each in tracker.snapshots().items()} == {"level": 3, "store": 5}


def test_without_anything_there_is_no_latency_and_it_is_json(tracker: PerformanceTracker) -> None:
    found = tracker.snapshot()
    assert found == Performance(0, 0, 0.0, 0.0, None, None, None, None, 0.0)
    assert msgspec.json.decode(msgspec.json.encode(found))["latency_p99_ms"] is None
    assert tracker.snapshot("never heard of").count == 0


@pytest.mark.parametrize("seconds", [-0.5, float("nan"), float("inf")])
def test_what_is_no_duration_counts_as_zero_and_fails_no_step(tracker: PerformanceTracker, seconds: float) -> None:
    tracker.observe("level", seconds)
    found = tracker.snapshot("level")
    assert (found.count, found.latency_mean_ms, found.latency_p99_ms) == (1, 0.0, 0.0)


def test_too_many_keys_share_one_series(clock: Clock) -> None:
    tracker = PerformanceTracker(most_series=3, clock=clock)
    for number in range(10):
        tracker.observe(f"step{number}", 0.001)
    assert {key: found.count for key, found in tracker.snapshots().items()} == {
        "step0": 1,
        "step1": 1,
        "step2": 1,
        "other": 7,
    }
    tracker.forget("step0")
    assert tracker.snapshot().count == 9


@pytest.fixture
def busy_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_switching")
def test_threads_that_record_at_once_lose_nothing(tracker: PerformanceTracker) -> None:
    series, start = tracker.series("level"), threading.Barrier(4)

    def work() -> None:
        start.wait()
        for number in range(20_000):
            series.record(number / 1e6, failed=number % 2 == 0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tracker.snapshot()
    found = tracker.snapshot("level")
    assert (found.count, found.errors) == (80_000, 40_000)
    assert found.latency_mean_ms == pytest.approx(sum(range(20_000)) / 20_000 / 1000)
