from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from ag06.errors import InvalidMetric
from ag06.monitoring import observability
from ag06.monitoring.metrics import MOST_CHILDREN, Registry
from ag06.monitoring.realtime_observer import MetricsFacade

PREFIX = "ag06_workflow_"


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> MetricsFacade:
    monkeypatch.delenv("AG06_METRICS_STRICT", raising=False)
    return MetricsFacade(Registry())


def test_the_calls_of_the_contract_count(metrics: MetricsFacade) -> None:
    metrics.increment_counter("orders")
    metrics.increment_counter("orders", value=2)
    metrics.increment_counter("orders_by_shop", labels={"shop": "a"})
    metrics.observe_histogram("wait", 1.5)
    metrics.observe_histogram("wait", 2.5)
    metrics.observe_summary("batch", 64)
    metrics.set_gauge("depth", 41)
    metrics.set_gauge("depth", 42)
    shown = metrics.snapshot()
    assert shown[PREFIX + "orders_total"] == 3.0
    assert shown[PREFIX + 'orders_by_shop_total{shop="a"}'] == 1.0
    assert (shown[PREFIX + "wait"]["count"], shown[PREFIX + "wait"]["sum"]) == (2, 4.0)
    assert (shown[PREFIX + "batch"]["count"], shown[PREFIX + "batch"]["sum"]) == (1, 64.0)
    assert shown[PREFIX + "depth"] == 42.0
    lines = metrics.exposition().decode().splitlines()
    assert PREFIX + "orders_total 3.0" in lines
    assert PREFIX + 'wait_bucket{le="2.5"} 2.0' in lines


def test_the_facade_of_the_process_counts_under_the_fixed_names() -> None:
    metrics = observability.metrics
    before = metrics.snapshot()
    metrics.increment_counter("events_processed")
    metrics.increment_counter("ag06_workflow_events_processed_total")
    metrics.increment_counter("retries", labels={"step": "facade"})
    metrics.observe_histogram("latency", 1.5)
    metrics.set_gauge("queue_size", 42)
    after = metrics.snapshot()
    assert after[PREFIX + "events_processed_total"] == before[PREFIX + "events_processed_total"] + 2
    latency = PREFIX + "latency_milliseconds"
    assert after[latency]["count"] == before[latency]["count"] + 1
    assert after[latency]["sum"] == before[latency]["sum"] + 1.5
    assert after[PREFIX + "queue_size"] == 42.0
    assert after[PREFIX + 'retries_total{step="facade"}'] == 1.0


@pytest.mark.parametrize("labels", [None, {"a": "1"}])
def test_a_name_is_of_the_kind_of_its_first_use(metrics: MetricsFacade, labels: dict[str, str] | None) -> None:
    metrics.increment_counter("x", 1, labels)
    for call in (metrics.set_gauge, metrics.observe_histogram, metrics.observe_summary):
        with pytest.raises(InvalidMetric, match="metric ag06_workflow_x_total: is a counter and was used as a"):
            call("x", 1.0, labels)
    with pytest.raises(InvalidMetric, match="is a histogram and was used as a counter"):
        observability.metrics.increment_counter("processing_duration")
    assert [name for name in metrics.snapshot() if "_x" in name] == [PREFIX + "x_total" + ('{a="1"}' if labels else "")]


@pytest.mark.parametrize(
    ("name", "value", "labels"),
    [
        ("a b", 1, None),
        ("", 1, None),
        (5, 1, None),
        (None, 1, None),
        ("x", -1, None),
        ("x", math.nan, None),
        ("x", "1", None),
        ("x", 1, {"b": 1}),
        ("x", 1, {1: 1}),
        ("y", 1, {"a-b": 1}),
        ("y", 1, {1: 1, "a": 2}),
    ],
)
def test_a_mistake_raises_and_where_it_is_tolerated_it_is_counted(
    metrics: MetricsFacade, name: Any, value: Any, labels: Any
) -> None:
    metrics.increment_counter("x", 3)
    with pytest.raises(InvalidMetric, match=r"^metric ag06_workflow_"):
        metrics.increment_counter(name, value, labels)
    metrics.tolerate_mistakes()
    metrics.increment_counter(name, value, labels)
    metrics.increment_counter(name, value, labels)
    shown = metrics.snapshot()
    assert shown == {PREFIX + "x_total": 3.0, PREFIX + "metric_errors_total": 2.0}


def test_a_set_variable_decides_whether_mistakes_raise(metrics: MetricsFacade, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AG06_METRICS_STRICT", "1")
    metrics.tolerate_mistakes()
    with pytest.raises(InvalidMetric):
        metrics.increment_counter("x", -1)


def test_names_made_up_for_each_call_stay_bounded(metrics: MetricsFacade, caplog: pytest.LogCaptureFixture) -> None:
    metrics.tolerate_mistakes()
    for number in range(3_000):
        metrics.increment_counter(f"user_{number}")
        metrics.increment_counter("by_user", labels={"user": number})
    shown = metrics.snapshot()
    assert len(shown) < 1_000 + MOST_CHILDREN + 10
    assert shown[PREFIX + 'by_user_total{user="other"}'] == 3_000 - MOST_CHILDREN
    users = sum(value for name, value in shown.items() if name.startswith(PREFIX + "user_"))
    assert users + shown[PREFIX + "metric_errors_total"] == 3_000
    assert len(caplog.records) <= 101


async def test_the_streamed_exposition_is_the_whole_one() -> None:
    facade = MetricsFacade(Registry())
    for number in range(300):
        facade.observe_histogram("wait", number, {"a": number})
    for accept in ("", "application/openmetrics-text"):
        content_type, parts = facade.stream(accept)
        streamed = b"".join([part async for part in parts])
        own = facade.exposition(accept).partition(b"# HELP python_")[0]  # what follows is the user's, and moves
        assert own.count(b"\n") > 300 * 17
        assert streamed.startswith(own)
        assert facade.exposition(accept).endswith(b"# EOF\n") == content_type.startswith("application/openmetrics")


def test_counting_needs_no_optional_package_and_no_import_of_one() -> None:
    program = (
        "import sys\n"
        "for name in ('prometheus_client', 'structlog', 'psutil', 'opentelemetry'): sys.modules[name] = None\n"
        "from ag06.monitoring import observability\n"
        "observability.metrics.increment_counter('events_processed', 3)\n"
        "assert observability.metrics.snapshot()['ag06_workflow_events_processed_total'] == 3\n"
        "assert b'ag06_workflow_events_processed_total 3.0' in observability.metrics.exposition()\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AG06_METRICS")}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environ, timeout=60)


def test_each_part_of_the_facade_is_imported_when_it_is_first_asked_for() -> None:
    program = (
        "import sys\n"
        "from ag06.monitoring import observability\n"
        "loaded = lambda: {name.rpartition('.')[2] for name in sys.modules if name.startswith('ag06.monitoring.')}\n"
        "for part, module in (('health', 'health'), ('context', 'logs')):\n"
        "    assert module not in loaded(), module\n"
        "    assert getattr(observability, part) is getattr(observability, part)\n"
        "    assert module in loaded()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_the_parts_of_the_facade_are_those_of_the_contract() -> None:
    program = (
        "import asyncio\n"
        "from ag06.monitoring import observability\n"
        "observability.health.register('mixer', lambda: None, critical=True, timeout=2.0)\n"
        "report = asyncio.run(observability.health.check_health())\n"
        "assert report.components['mixer'].status == 'pass'\n"
        "with observability.context(workflow_id='123'):\n"
        "    observability.create_context_logger(user_id='7').info('Operation complete', duration_ms=15)\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    said = subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE).stdout
    line = msgspec.json.decode(said)
    expected = {"event": "Operation complete", "workflow_id": "123", "user_id": "7", "duration_ms": 15}
    assert {name: line[name] for name in expected} == expected
