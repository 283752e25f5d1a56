from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml.collector import MetricsCollector
from ag06.ml.windows import Judging, Queue, StepTotals, Totals, Window, figures
from ag06.monitoring.exposition import finished
from ag06.monitoring.fine import BOUNDS, quantile
from made_windows import counted, window

DURATIONS = st.floats(min_value=1e-6, max_value=9_999.0)


def between(start: Totals, end: Totals, before: float | None = None) -> Window:
    return finished(figures(start, end, Judging(minimum_events=30, load_factor=2.0), before))


def totals(at: float, ages: Sequence[float], backlog: float | None = None, **counts: float) -> Totals:
    queues = {} if backlog is None else {"s": Queue(backlog, 0.5)}
    return Totals(at, {"s": StepTotals(ages=counted(ages), **counts)}, queues)


@given(st.lists(DURATIONS, min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_within_5_percent_of_a_value_with_that_rank(values: list[float], share: float) -> None:
    found = quantile(counted(values)[1:], share)
    assert found is not None
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert true / 1.06 <= found <= true * 1.06


def test_a_quantile_of_nothing_is_none_and_one_beyond_all_bounds_is_the_last_bound() -> None:
    assert quantile([0.0] * (len(BOUNDS) + 1), 0.5) is None
    assert quantile(counted([1e9])[1:], 0.5) == BOUNDS[-1]


@given(st.lists(st.lists(DURATIONS, max_size=20), min_size=1, max_size=6))
def test_windows_one_after_the_other_add_up_to_the_whole(parts: list[list[float]]) -> None:
    readings, so_far = [totals(0.0, [])], list[float]()
    for number, part in enumerate(parts, 1):
        so_far = so_far + part
        readings.append(totals(float(number), so_far))
    windows = [between(*pair) for pair in pairwise(readings)]
    assert [each.events for each in windows] == [len(part) for part in parts]
    assert sum(each.events for each in windows) == between(readings[0], readings[-1]).events
    assert not any("restarted" in each.flags for each in windows)


@given(st.lists(st.floats(0.01, 1_000_000), min_size=1, max_size=100), st.floats(0.01, 1_000_000))
def test_events_that_are_counted_as_later_are_later(ages_ms: list[float], limit: float) -> None:
    made = window(ages_ms)
    assert made.later_than(limit) <= sum(age > limit for age in ages_ms)
    assert made.later_than(limit) >= sum(age > limit * 1.06 for age in ages_ms)


def test_dead_events_are_settled_but_not_processed_and_failed_attempts_are_a_share_of_attempts() -> None:
    seen = between(totals(0, [0.01]), totals(2, [0.01] * 41, failed=10.0, dead=4.0))
    assert (seen.events, seen.processed, seen.dead, seen.failed) == (40, 36, 4, 10)
    assert (seen.throughput, seen.error_rate) == (18.0, 10 / 46)


def test_what_comes_in_is_what_was_settled_and_what_the_queue_grew_by() -> None:
    assert between(totals(0, [], 5), totals(10, [0.01] * 40, 25)).arrival_rate == 6.0
    assert between(totals(0, [], 25), totals(10, [0.01] * 40, 5)).arrival_rate == 2.0
    assert between(totals(0, [], 90), totals(10, [0.01] * 40, 5)).arrival_rate == 0.0


@pytest.mark.parametrize(("before", "changed"), [(None, False), (40, False), (70, False), (200, True), (10, True)])
def test_a_load_that_moved_by_more_than_the_factor_is_flagged(before: float | None, changed: bool) -> None:
    seen = between(totals(0, []), totals(10, [0.01] * 400), before)
    assert ("load_changed" in seen.flags) is changed


def test_a_handful_of_events_after_none_is_no_change_of_load() -> None:
    assert "load_changed" not in between(totals(0, []), totals(10, [0.01] * 5), 0.0).flags


def test_counters_that_went_back_are_flagged_and_what_is_new_counts() -> None:
    seen = between(totals(0, [0.01] * 500), totals(10, [0.01] * 40))
    assert "restarted" in seen.flags
    assert seen.events == 40


def test_workers_that_began_or_ended_meanwhile_are_flagged() -> None:
    assert "restarted" in between(totals(0, [], began_ms=5.0), totals(1, [0.1], began_ms=9.0)).flags
    assert "restarted" in between(totals(0, [0.1], began_ms=5.0), Totals(1.0)).flags
    assert "restarted" not in between(totals(0, [], began_ms=5.0), totals(1, [0.1], began_ms=5.0)).flags


def test_a_window_is_idle_where_nothing_waits_and_stalled_where_something_does() -> None:
    assert between(totals(0, []), totals(1, [])).flags == ("idle", "too_few_events")
    assert between(totals(0, []), totals(1, [], 3)).flags == ("stalled", "too_few_events")


def test_a_window_without_length_has_no_rates() -> None:
    seen = between(totals(5, []), totals(5, [0.1] * 50))
    assert (seen.throughput, seen.cpu_percent, seen.arrival_rate, seen.events) == (0.0, 0.0, 0.0, 50)


def test_a_window_can_be_written_as_json_and_read_back() -> None:
    made = window([5.0, 7.0, 900.0], failed=2)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Window) == made


@pytest.mark.parametrize("wrong", [{"minimum_events": 0}, {"load_factor": 1.0}, {"load_factor": math.nan}])
def test_a_collector_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        MetricsCollector(**wrong)
