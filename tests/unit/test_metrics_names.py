from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from ag06.errors import InvalidMetric
from ag06.monitoring.instruments import REGISTRY
from ag06.monitoring.metrics import Registry
from ag06.monitoring.names import PREFIX

FIXED = {
    "events_processed": ("ag06_workflow_events_processed_total", "counter"),
    "errors": ("ag06_workflow_errors_total", "counter"),
    "processing_duration": ("ag06_workflow_processing_duration_seconds", "histogram"),
    "latency": ("ag06_workflow_latency_milliseconds", "histogram"),
    "active_connections": ("ag06_workflow_active_connections", "gauge"),
    "queue_size": ("ag06_workflow_queue_size", "gauge"),
    "memory_usage_mb": ("ag06_workflow_memory_usage_mb", "gauge"),
    "cpu_usage_percent": ("ag06_workflow_cpu_usage_percent", "gauge"),
}


@pytest.mark.parametrize("short", FIXED)
def test_the_fixed_metrics_are_there_from_the_start_under_short_and_full_name_and_without_labels(short: str) -> None:
    name, kind = FIXED[short]
    family = REGISTRY.find(short)
    assert family is not None
    assert (family.declaration.name, family.declaration.kind, family.declaration.labels) == (name, kind, ())
    assert REGISTRY.find(name) is family
    assert REGISTRY.find(name.removeprefix(PREFIX)) is family
    assert len(list(family.samples())) == 1


def test_every_metric_of_the_project_says_what_it_means_and_has_a_short_name_of_its_own() -> None:
    shorts: dict[str, str] = {}
    for family in REGISTRY.families():
        declaration = family.declaration
        assert len(declaration.help) > 20
        assert declaration.name.startswith(PREFIX)
        plain = declaration.name.removeprefix(PREFIX)
        short = plain.removesuffix("_total").removesuffix("_seconds").removesuffix("_milliseconds")
        assert shorts.setdefault(short, declaration.name) == declaration.name
        assert REGISTRY.find(short) is family


@pytest.mark.parametrize(
    ("kind", "name", "full"),
    [
        ("counter", "orders", "ag06_workflow_orders_total"),
        ("counter", "orders_total", "ag06_workflow_orders_total"),
        ("counter", "ag06_workflow_orders_total", "ag06_workflow_orders_total"),
        ("gauge", "orders", "ag06_workflow_orders"),
        ("histogram", "wait_seconds", "ag06_workflow_wait_seconds"),
        ("summary", "ag06_workflow_size", "ag06_workflow_size"),
    ],
)
def test_a_name_gains_the_prefix_and_a_counter_its_suffix(kind: str, name: str, full: str) -> None:
    registry = Registry()
    assert getattr(registry, kind)(name).declaration.name == full
    assert registry.find(name) is registry.find(full)


@pytest.mark.parametrize("name", ["", "_", "a b", "a-b", "a.b", "ä", "a\n", "x{}", "job:rate", "a" * 200])
@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram", "summary"])
def test_a_name_that_prometheus_would_not_take_is_refused_by_name(kind: str, name: str) -> None:
    registry = Registry()
    with pytest.raises(InvalidMetric, match="a name has letters") as caught:
        getattr(registry, kind)(name)
    assert name in caught.value.metric
    assert registry.find(name) is None


@pytest.mark.parametrize("suffix", ["_total", "_bucket", "_count", "_sum", "_created", "_info"])
@pytest.mark.parametrize("kind", ["gauge", "histogram", "summary"])
def test_a_name_that_looks_like_a_sample_of_another_kind_is_refused(kind: str, suffix: str) -> None:
    with pytest.raises(InvalidMetric, match=f"must not end in {suffix}"):
        getattr(Registry(), kind)(f"x{suffix}")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("a-b",), "label 'a-b'"),
        (("",), "label ''"),
        (("1a",), "label '1a'"),
        (("__name__",), "reserved"),
        (("a", "a"), "twice"),
        ((1,), "label 1"),
        (tuple("abcdefghijk"), "11 labels; at most 10"),
    ],
)
def test_labels_that_prometheus_would_not_take_are_refused(labels: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InvalidMetric, match=f"metric ag06_workflow_x_total: .*{words}"):
        Registry().counter("x", labels=labels)


def test_a_single_label_may_be_given_as_it_is() -> None:
    assert Registry().counter("c", labels="step").declaration.labels == ("step",)


def test_labels_that_a_kind_needs_for_itself_are_refused() -> None:
    registry = Registry()
    with pytest.raises(InvalidMetric, match="label 'le' is reserved"):
        registry.histogram("h", labels=("le",))
    with pytest.raises(InvalidMetric, match="label 'quantile' is reserved"):
        registry.summary("s", labels=("quantile",))
    assert registry.counter("c", labels=("le", "quantile")).labels("1", "2").labels == ("1", "2")


@pytest.mark.parametrize(
    "buckets", [(), (1, 1), (2, 1), (1, math.inf), (math.nan,), tuple(range(101)), ("x",), (None,), 5]
)
def test_buckets_that_do_not_rise_or_are_too_many_are_refused(buckets: Any) -> None:
    with pytest.raises(InvalidMetric, match=r"metric ag06_workflow_h: .*buckets"):
        Registry().histogram("h", buckets=buckets)


def test_a_metric_is_of_one_kind() -> None:
    registry = Registry()
    counter = registry.counter("x", "What it counts.")
    with pytest.raises(InvalidMetric, match="is a counter already and cannot be a gauge"):
        registry.gauge("x")
    with pytest.raises(InvalidMetric, match="exists with labels"):
        registry.counter("x", labels=("a",))
    assert registry.counter("x", "Other words.") is counter
    assert registry.find("x") is counter


def test_a_metric_cannot_take_the_short_name_of_another() -> None:
    with pytest.raises(InvalidMetric, match="latency is how ag06_workflow_latency_milliseconds is called"):
        REGISTRY.gauge("latency")


def test_a_gauge_says_how_it_is_merged_in_words_that_exist() -> None:
    with pytest.raises(InvalidMetric, match="'sum', 'max' or 'min'"):
        Registry().gauge("g", aggregate="average")  # type: ignore[arg-type]


def test_the_error_survives_a_process_border() -> None:
    error = pickle.loads(pickle.dumps(InvalidMetric("x", "is wrong")))
    assert (error.metric, error.problem, str(error)) == ("x", "is wrong", "metric x: is wrong")
