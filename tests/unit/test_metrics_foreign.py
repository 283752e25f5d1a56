from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Iterator

import prometheus_client
import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from ag06.monitoring import foreign
from ag06.monitoring.foreign import Foreign
from ag06.monitoring.metrics import Registry
from ag06.monitoring.realtime_observer import MetricsFacade


@pytest.fixture
def facade() -> MetricsFacade:
    return MetricsFacade(Registry())


@pytest.fixture
def collectors() -> Iterator[list[prometheus_client.registry.Collector]]:
    """Whatever a test registers is gone after it."""
    registered: list[prometheus_client.registry.Collector] = []
    yield registered
    for collector in registered:
        prometheus_client.REGISTRY.unregister(collector)


async def streamed(facade: MetricsFacade, accept: str = "") -> str:
    return b"".join([part async for part in facade.stream(accept)[1]]).decode()


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
async def test_what_the_user_counts_with_prometheus_client_is_exposed_as_well(
    facade: MetricsFacade, collectors: list[prometheus_client.registry.Collector], accept: str
) -> None:
    counter = prometheus_client.Counter("shop_orders", "Orders.", ["shop"])
    collectors.append(counter)
    counter.labels("a\nb").inc(3)
    facade.increment_counter("orders", 2)
    for text in (await streamed(facade, accept), facade.exposition(accept).decode()):
        parse = parse_openmetrics if accept else parse_plain
        samples = {(s.name, s.labels.get("shop")): s.value for family in parse(text) for s in family.samples}
        assert samples["shop_orders_total", "a\nb"] == 3.0
        assert samples["ag06_workflow_orders_total", None] == 2.0
        assert text.count("# EOF") == bool(accept)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_metrics_of_many_label_sets_are_written_as_prometheus_client_writes_them(
    facade: MetricsFacade, collectors: list[prometheus_client.registry.Collector], accept: str
) -> None:
    counter = prometheus_client.Counter("shop_orders", "Orders.", ["shop"])
    histogram = prometheus_client.Histogram("shop_wait", "Wait.", ["shop"])
    empty = prometheus_client.Counter("shop_returns", "Returns.", ["shop"])
    collectors.extend([counter, histogram, empty])
    for number in range(foreign.SAMPLES * 3):
        counter.labels(str(number)).inc(number)
        histogram.labels(str(number)).observe(number)
    render = openmetrics if accept else prometheus_client
    theirs = render.generate_latest(prometheus_client.REGISTRY).decode()
    start = "# HELP shop_"
    assert theirs.count("# HELP shop_") == (3 if accept else 5)
    assert theirs[theirs.index(start) :] in facade.exposition(accept).decode()


async def test_a_name_that_is_taken_is_exposed_once_and_said(
    facade: MetricsFacade,
    collectors: list[prometheus_client.registry.Collector],
    caplog: pytest.LogCaptureFixture,
) -> None:
    facade.increment_counter("orders", 2)
    collectors.append(prometheus_client.Counter("ag06_workflow_orders", "Orders."))
    collectors.append(prometheus_client.Gauge("ag06_workflow_returns_total", "Returns."))
    facade.increment_counter("returns", 5)
    text = await streamed(facade)
    assert text.count("ag06_workflow_orders_total ") == 3  # HELP, TYPE and the sample
    assert "ag06_workflow_orders_total 2.0" in text
    await streamed(facade)
    assert [record.message for record in caplog.records] == [
        "metric ag06_workflow_orders of prometheus_client is not exposed: the name is taken",
        "metric ag06_workflow_returns_total of prometheus_client is not exposed: the name is taken",
    ]


async def test_a_collector_that_fails_costs_no_metric_of_the_project(
    facade: MetricsFacade,
    collectors: list[prometheus_client.registry.Collector],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(prometheus_client.registry.Collector):
        def collect(self) -> Iterable[prometheus_client.Metric]:
            yield GaugeMetricFamily("fine", "Fine.", 1)
            raise OSError("the device is gone")

        def describe(self) -> Iterable[prometheus_client.Metric]:
            return []

    collectors.append(Broken())
    prometheus_client.REGISTRY.register(collectors[0])
    facade.increment_counter("orders", 2)
    text = await streamed(facade)
    assert "ag06_workflow_orders_total 2.0" in text
    assert "fine 1.0" in text
    assert "the device is gone" in caplog.text


async def test_collectors_that_hang_hold_up_neither_the_loop_nor_the_project_and_stay_few(
    facade: MetricsFacade,
    collectors: list[prometheus_client.registry.Collector],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    going_on, hanging = threading.Event(), threading.Semaphore(0)

    class Hanging(prometheus_client.registry.Collector):
        def collect(self) -> Iterable[prometheus_client.Metric]:
            hanging.release()
            going_on.wait()
            return []

        def describe(self) -> Iterable[prometheus_client.Metric]:
            return []

    collectors.append(Hanging())
    prometheus_client.REGISTRY.register(collectors[0])
    monkeypatch.setattr(foreign, "TIMEOUT", 0.01)
    facade.increment_counter("orders", 2)
    try:
        texts = await asyncio.gather(*(streamed(facade) for _ in range(foreign.MOST_THREADS + 3)))
        assert all("ag06_workflow_orders_total 2.0" in text for text in texts)
        threads = [thread for thread in threading.enumerate() if thread.name == "ag06 foreign metrics"]
        assert len(threads) == foreign.MOST_THREADS
        assert {record.message.partition(";")[0] for record in caplog.records} == {
            "collectors of prometheus_client took longer than 0 s",
            "collectors of prometheus_client hang",
        }
    finally:
        going_on.set()
        for thread in threads:
            thread.join()
    monkeypatch.undo()
    assert "python_info" in await streamed(facade)


async def test_nothing_is_imported_where_the_user_never_did(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "prometheus_client":
            monkeypatch.delitem(sys.modules, name)
    assert await Foreign().collect("text/plain", ()) == b""
    assert Foreign().text("text/plain", ()) == b""
    assert "prometheus_client" not in sys.modules
