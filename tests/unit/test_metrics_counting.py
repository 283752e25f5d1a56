from __future__ import annotations

import dis
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from types import FunctionType
from typing import Any

import pytest

from ag06.errors import InvalidMetric
from ag06.monitoring.children import Child, Counter, Gauge, Histogram, Summary
from ag06.monitoring.exposition import snapshot
from ag06.monitoring.metrics import MOST_CHILDREN, MOST_FAMILIES, Memory, Registry


@pytest.fixture
def eager_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_each_kind_counts_what_it_is_told() -> None:
    registry = Registry()
    registry.counter("c").labels().inc()
    registry.counter("c").labels().inc(2.5)
    gauge = registry.gauge("g").labels()
    gauge.set(4)
    gauge.inc(3)
    gauge.dec()
    for value in (0.5, 1.0, 1.5, 99):
        registry.histogram("h", buckets=(1, 2)).labels().observe(value)
    registry.summary("s").labels().observe(64)
    registry.summary("s").labels().observe(-1)
    shown = snapshot(registry.read())
    assert shown["ag06_workflow_c_total"] == 3.5
    assert shown["ag06_workflow_g"] == 6.0
    assert shown["ag06_workflow_h"] == {
        "count": 4,
        "sum": 102.0,
        "mean": 25.5,
        "buckets": {"1.0": 2, "2.0": 3, "+Inf": 4},
    }
    assert shown["ag06_workflow_s"] == {"count": 2, "sum": 63.0, "mean": 31.5}


def test_threads_lose_no_count_even_while_the_numbers_move_elsewhere(eager_switching: None) -> None:
    registry = Registry()
    counter = registry.counter("c").labels()
    gauge = registry.gauge("g").labels()
    histogram = registry.histogram("h", buckets=(1, 2)).labels()
    summary = registry.summary("s").labels()
    rounds, done = 20_000, threading.Event()

    def count() -> None:
        for _ in range(rounds):
            counter.inc()
            gauge.inc()
            histogram.observe(1.5)
            summary.observe(2)

    def move() -> None:
        while not done.is_set():
            registry.move(Memory(), keep=True)

    mover = threading.Thread(target=move)
    mover.start()
    in_threads(4, count)
    done.set()
    mover.join()
    total = 4.0 * rounds
    assert list(counter.sample().numbers) == [total]
    assert list(gauge.sample().numbers) == [total]
    assert list(histogram.sample().numbers) == [1.5 * total, 0.0, total, 0.0]
    assert list(summary.sample().numbers) == [total, 2 * total]


@pytest.mark.parametrize(
    ("method", "additions"),
    [(Counter.inc, 1), (Gauge.inc, 1), (Gauge.set, 1), (Histogram.observe, 2), (Summary.observe, 2)],
)
def test_no_thread_can_come_in_between_the_reading_and_the_writing_of_a_cell(
    method: FunctionType, additions: int
) -> None:
    switching = ("CALL", "PRECALL", "JUMP_BACKWARD", "RESUME", "SEND", "YIELD")
    found = 0
    since_cells: list[str] = []
    for instruction in dis.get_instructions(method):
        if instruction.opname == "LOAD_ATTR" and instruction.argval == "_cells":
            since_cells = []
        elif instruction.opname == "STORE_SUBSCR":
            found += 1
            assert not [name for name in since_cells if name.startswith(switching)]
        since_cells.append(instruction.opname)
    assert found == additions


def test_a_signal_handler_that_counts_meets_no_lock() -> None:
    registry = Registry()
    counter, histogram = registry.counter("c").labels(), registry.histogram("h", buckets=(1,)).labels()
    handled: list[None] = []

    def handle(*_: object) -> None:
        handled.append(None)
        counter.inc()
        histogram.observe(0.5)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    own = 0
    try:
        while len(handled) < 20:
            own += 1
            counter.inc()
            histogram.observe(0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert counter.sample().numbers[0] == own + len(handled)
    assert histogram.sample().numbers[1] == own + len(handled)


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf, "3", None, Decimal(1), [1], 10**400])
def test_a_counter_refuses_what_is_not_a_finite_number_from_0_on(value: Any) -> None:
    counter = Registry().counter("c").labels()
    with pytest.raises(InvalidMetric, match="metric ag06_workflow_c_total: value"):
        counter.inc(value)
    assert list(counter.sample().numbers) == [0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "3", None, Decimal(1)])
def test_the_other_kinds_refuse_what_is_not_a_finite_number(value: Any) -> None:
    registry = Registry()
    calls: list[tuple[Callable[[Any], None], Child]] = []
    gauge, histogram, summary = (
        registry.gauge("g").labels(),
        registry.histogram("h").labels(),
        registry.summary("s").labels(),
    )
    calls = [(gauge.set, gauge), (gauge.inc, gauge), (histogram.observe, histogram), (summary.observe, summary)]
    for call, child in calls:
        with pytest.raises(InvalidMetric, match=r"metric ag06_workflow_.: value .*use a finite number"):
            call(value)
        assert not any(child.sample().numbers)


@pytest.mark.parametrize("value", [3, True, Fraction(1, 3), 2**60, 1e-300])
def test_any_kind_of_number_counts(value: Any) -> None:
    counter = Registry().counter("c").labels()
    counter.inc(value)
    counter.inc(value)
    [total] = counter.sample().numbers
    assert total == 2 * float(value)


def test_a_gauge_that_is_merged_by_its_maximum_is_set_never_added_to() -> None:
    gauge = Registry().gauge("g", aggregate="max").labels()
    with pytest.raises(InvalidMetric, match=r"set\(\) for a gauge merged by max"):
        gauge.inc()


@pytest.mark.parametrize("bad", [-1, math.nan, "3"])
def test_where_mistakes_are_tolerated_they_are_counted_with_one_warning_and_nothing_raises(
    bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(strict=False)
    counter = registry.counter("c").labels()
    for _ in range(3):
        counter.inc(bad)
    counter.inc(2)
    registry.counter("0").labels().inc()
    registry.gauge("c").labels().set(9)
    registry.counter("c", labels=("a",)).labels("1").inc()
    shown = snapshot(registry.read())
    assert shown["ag06_workflow_metric_errors_total"] == 5.0
    assert shown["ag06_workflow_c_total"] == 2.0
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "metric ag06_workflow_c_total",
        "metric ag06_workflow_c",
    ]
    assert "ag06_workflow_c" not in shown


def test_warnings_about_mistakes_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(strict=False)
    for number in range(300):
        registry.counter(f"wrong name {number}").labels().inc()
    assert len(caplog.records) == 100
    assert snapshot(registry.read())["ag06_workflow_metric_errors_total"] == 300.0


def test_a_label_set_too_many_is_counted_as_other_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    family = registry.counter("c", labels=("a", "b"))
    for number in range(MOST_CHILDREN + 50):
        family.labels(number, "x").inc()
        family.labels(number, "x").inc()
    shown = snapshot(registry.read())
    assert sum(name.startswith("ag06_workflow_c_total") for name in shown) == MOST_CHILDREN + 1
    assert shown['ag06_workflow_c_total{a="other",b="other"}'] == 100.0
    assert shown['ag06_workflow_c_total{a="7",b="x"}'] == 2.0
    assert shown['ag06_workflow_label_overflow_total{metric="ag06_workflow_c_total"}'] == 100.0
    assert len(caplog.records) == 1
    assert "1000 label sets" in caplog.records[0].message


def test_the_number_of_metrics_is_bounded() -> None:
    registry = Registry()
    for number in range(MOST_FAMILIES - len(registry.families())):
        registry.counter(f"user_{number}")
    with pytest.raises(InvalidMetric, match="use one metric with labels"):
        registry.counter("one_more")
    assert len(registry.families()) == MOST_FAMILIES


def test_a_child_is_made_once_whoever_asks_first(eager_switching: None) -> None:
    registry = Registry()
    start = threading.Barrier(4)

    def count() -> None:
        start.wait()
        for number in range(200):
            registry.counter(f"c{number}", labels=("a",)).labels("x").inc()

    in_threads(4, count)
    shown = snapshot(registry.read())
    assert [shown[f'ag06_workflow_c{number}_total{{a="x"}}'] for number in range(200)] == [4.0] * 200


def test_labels_are_found_by_order_by_name_and_whatever_type_their_value_has() -> None:
    family = Registry().counter("c", labels=("step", "reason"))
    child = family.labels("1", "True")
    assert family.labels(1, True) is child
    assert family.labels(reason="True", step=1) is child
    assert family.labels_of({"step": "1", "reason": True}) is child
    assert family.labels([1], {}).labels == ("[1]", "{}")


@pytest.mark.parametrize("values", [(), ("1",), ("1", "2", "3")])
def test_labels_of_the_wrong_number_are_refused(values: tuple[str, ...]) -> None:
    family = Registry().counter("c", labels=("step", "reason"))
    with pytest.raises(InvalidMetric, match=r"ag06_workflow_c_total: labels .*it has step, reason"):
        family.labels(*values)
    with pytest.raises(InvalidMetric, match=r"labels \['stop'\] were given; it has \['reason', 'step'\]"):
        family.labels(stop="x")
    assert list(family.samples()) == []
