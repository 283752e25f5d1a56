"""A real Prometheus scrapes real processes, and its query API says what was counted.

It needs `prometheus` and `promtool` (`apt-get install --no-install-recommends prometheus`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest

from ag06.monitoring.instruments import BATCH_SIZE, REGISTRY
from prometheus import PATIENCE, Prometheus, binary, start, until
from servers import free_port

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

COUNT_ALL = """
    from ag06.monitoring import observability
    from ag06.monitoring.instruments import PROCESSING_DURATION, REGISTRY

    COUNT = {"counter": "inc", "gauge": "set", "histogram": "observe", "summary": "observe"}

    def count_all():  # each metric gets a value that no other has: half its number
        for number, family in enumerate(REGISTRY.families(), 1):
            child = family.labels(*("x" for _ in family.declaration.labels))
            getattr(child, COUNT[family.declaration.kind])(number / 2)

    count_all()
"""

KILLED = (
    COUNT_ALL
    + """
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""
)

SERVER = (
    COUNT_ALL
    + f"""
    import sys
    from http.server import BaseHTTPRequestHandler, HTTPServer
    import prometheus_client
    prometheus_client.Counter("shop_orders", "Orders.").inc(3)
    PROCESSING_DURATION.observe_traced(0.3, "{TRACE}", "{SPAN}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            accept = self.headers.get("accept", "")
            body = observability.metrics.exposition(accept)
            self.send_response(200)
            self.send_header("content-type", observability.metrics.stream(accept)[0])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): pass

    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()
"""
)

LISTED_COMPLAINTS = [
    'ag06_workflow_latency_milliseconds use base unit "seconds" instead of "milliseconds"',
    "ag06_workflow_memory_usage_mb metric names should not contain abbreviated units",
]
"""Names that dashboards rely on, and that are not named as Prometheus would have it."""


def program(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", dedent(source), *arguments]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A server that scrapes two processes: one that lives and answers, and one that was killed before."""
    directory, port = tmp_path_factory.mktemp("prometheus"), free_port()
    variables = {"AG06_METRICS_DIR": str(directory / "metrics")}
    killed = start(program(KILLED), directory, **variables)
    killed.communicate(timeout=PATIENCE)
    served = start(program(SERVER, str(port)), directory, **variables)
    processes = [served]
    try:
        assert served.stdout is not None
        assert served.stdout.readline() == b"ready\n", (directory / "log").read_text()
        server = Prometheus(directory, port)
        processes.append(server.process)
        until(lambda: server.values("up") == {"up": 1.0}, "a scrape", server.log)
        yield server
    finally:
        for process in reversed(processes):
            process.terminate()
            process.communicate(timeout=PATIENCE)


def expected() -> dict[str, float]:
    """Each metric counted in two processes, of which one is dead."""
    result: dict[str, float] = {}
    for number, family in enumerate(REGISTRY.families(), 1):
        declaration, half = family.declaration, number / 2
        labels = ",".join(f"{label}=x" for label in sorted(declaration.labels))
        suffix = f"{{{labels}}}" if labels else ""
        match declaration.kind:
            case "counter":
                result[declaration.name + suffix] = number
            case "gauge":
                result[declaration.name + suffix] = half
            case _:
                result[f"{declaration.name}_count{suffix}"] = 2
                result[f"{declaration.name}_sum{suffix}"] = number
    result["ag06_workflow_processing_duration_seconds_count"] = 3
    result["ag06_workflow_processing_duration_seconds_sum"] += 0.3
    return result


def test_prometheus_knows_every_metric_of_the_project_with_the_sums_of_all_processes(prometheus: Prometheus) -> None:
    found = prometheus.values('{__name__=~"ag06_.*", __name__!~".*_bucket"}')
    assert found == pytest.approx(expected())
    assert prometheus.values("shop_orders_total") == {"shop_orders_total": 3.0}

    kinds = prometheus.ask("metadata")
    for family in REGISTRY.families():
        declaration = family.declaration
        [known] = kinds[declaration.family]  # scraped as OpenMetrics, where a counter's family has no suffix
        assert (known["type"], known["help"]) == (declaration.kind, declaration.help)

    number = [family.declaration.name for family in REGISTRY.families()].index("ag06_workflow_batch_size") + 1
    buckets = prometheus.values('ag06_workflow_batch_size_bucket{kind="x"}')
    assert buckets == {
        f"ag06_workflow_batch_size_bucket{{kind=x,le={bound}}}": 2.0 * (number / 2 <= float(bound))
        for bound in [*map(str, BATCH_SIZE.declaration.buckets), "+Inf"]
    }
    assert prometheus.values("histogram_quantile(0.5, ag06_workflow_step_duration_seconds_bucket)")


def test_prometheus_finds_the_trace_of_a_slow_call_as_an_exemplar(prometheus: Prometheus) -> None:
    def exemplars() -> Any:
        query = "ag06_workflow_processing_duration_seconds_bucket"
        return prometheus.ask("query_exemplars", query=query, start="0", end=str(time.time() + 60))

    [found] = until(exemplars, "an exemplar", prometheus.log)
    assert found["seriesLabels"]["le"] == "0.5"
    [exemplar] = found["exemplars"]
    assert exemplar["labels"] == {"trace_id": TRACE, "span_id": SPAN}
    assert float(exemplar["value"]) == 0.3


def test_promtool_complains_of_the_listed_names_alone() -> None:
    show = COUNT_ALL + "\n    import sys; sys.stdout.buffer.write(observability.metrics.exposition())"
    text = subprocess.run(program(show), capture_output=True, check=True, timeout=PATIENCE).stdout
    checked = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=text, capture_output=True, check=False, timeout=PATIENCE
    )
    said = (checked.stdout + checked.stderr).decode().splitlines()
    assert sorted(said) == LISTED_COMPLAINTS
    assert checked.returncode == 3  # linting found something, parsing did not
