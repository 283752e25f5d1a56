"""A real Prometheus scrapes a workflow that runs in two workers, and its query API says what happened to the events."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from ag06.monitoring.instruments import REGISTRY
from prometheus import PATIENCE, Prometheus, binary, start, until
from servers import ValkeyServer

GOOD, FLAKY, BAD = 40, 5, 3

FLOW = """
    from ag06 import CircuitBreaker, Context, Event, Retry, Workflow

    app = Workflow("shop")
    size = app.knob("size", low=1, high=64, default=8, integer=True)

    @app.step("order", retry=Retry(attempts=2, initial=0.01), breaker=CircuitBreaker("crm", minimum_calls=1000))
    async def bill(event: Event, ctx: Context) -> None:
        if event.data == "bad" or (event.data == "flaky" and ctx.attempt == 1):
            raise ValueError(event.data)
        await app.publish("audit", idempotency_key="once")
        await ctx.publish("billed", data=event.data)

    @app.batch_step("billed", max_size=10)
    async def note(events: list[Event]) -> None: ...
"""

PUBLISH = f"""
    import asyncio
    from flow import app

    async def main():
        for kind, count in (("good", {GOOD}), ("flaky", {FLAKY}), ("bad", {BAD})):
            for number in range(count):
                assert await app.publish("order", data=kind, idempotency_key=f"{{kind}}{{number}}")
        assert await app.publish("order", data="good", idempotency_key="good0") is None
        await app.drain(30)
        await app.close()

    asyncio.run(main())
"""

QUIET = {
    "ag06_workflow_takeovers": "a worker must die",
    "ag06_workflow_experiment_state": "an experiment must run",
    "ag06_workflow_optimizer_decisions": "the optimizer must decide something",
    "ag06_workflow_optimizer_score_ratio": "the optimizer must have measured a window",
    "ag06_workflow_label_overflow": "a metric must have a thousand label sets",
    "ag06_workflow_breaker_refused": "a breaker must open",
    "ag06_workflow_worker_restarts": "a worker must die",
}
"""Metrics without a series in this test, and what they wait for."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped the workflow after all its events were worked off."""
    directory = tmp_path_factory.mktemp("workflow")
    server = ValkeyServer(tmp_path_factory.mktemp("valkey-seen")).start()
    (directory / "flow.py").write_text(dedent(FLOW))
    variables = {"AG06_STORE": server.url, "AG06_HTTP_PORT": "0", "AG06_JOURNAL": str(directory / "journal")}
    workers = start([sys.executable, "-m", "ag06", "run", "flow:app", "--workers", "2"], directory, **variables)
    processes = [workers]
    try:
        port = _port(workers, directory / "log")
        subprocess.run(
            [sys.executable, "-c", dedent(PUBLISH)],
            cwd=directory, env=os.environ | variables, check=True, timeout=PATIENCE,
        )  # fmt: skip
        found = Prometheus(directory, port)
        processes.append(found.process)
        until(
            lambda: found.values("ag06_workflow_events_processed_total + ag06_workflow_queue_size * 0 > 0")
            and found.values("time() - timestamp(ag06_workflow_queue_size) < 3")
            and found.values('ag06_workflow_group_backlog{step="shop.note"} == 0')
            and found.values("ag06_workflow_events_processed_total") == {"ag06_workflow_events_processed_total": 90.0},
            "all counted", found.log,
        )  # fmt: skip
        yield found
    finally:
        for process in reversed(processes):
            process.terminate()
            process.communicate(timeout=PATIENCE)
        server.stop()


def _port(workers: subprocess.Popen[bytes], log: Path) -> int:
    assert workers.stdout is not None
    for line in workers.stdout:
        if found := re.search(rb"listening on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError(log.read_text()[-2_000:])


def only(prometheus: Prometheus, query: str) -> float:
    [value] = prometheus.values(query).values()
    return value


def test_the_eight_metrics_of_the_contract_say_what_happened(prometheus: Prometheus) -> None:
    calls = GOOD + 2 * FLAKY + 2 * BAD
    processed = 2 * (GOOD + FLAKY)
    assert only(prometheus, "ag06_workflow_events_processed_total") == processed
    assert only(prometheus, "ag06_workflow_errors_total") == FLAKY + 2 * BAD
    batches = only(prometheus, 'ag06_workflow_step_duration_seconds_count{step="shop.note"}')
    assert only(prometheus, "ag06_workflow_processing_duration_seconds_count") == calls + batches
    assert only(prometheus, "ag06_workflow_latency_milliseconds_count") == processed + BAD
    assert only(prometheus, "ag06_workflow_active_connections") >= 2  # one a worker at least
    assert only(prometheus, "ag06_workflow_queue_size") == 0
    assert only(prometheus, "ag06_workflow_memory_usage_mb") > 10
    assert only(prometheus, "ag06_workflow_cpu_usage_percent") >= 0


def test_the_metrics_of_the_runtime_say_it_by_type_and_step(prometheus: Prometheus) -> None:
    ends = prometheus.values('ag06_workflow_events_total{outcome=~"processed|retried|dead"} > 0')
    assert ends == {
        "ag06_workflow_events_total{outcome=processed,type=order}": GOOD + FLAKY,
        "ag06_workflow_events_total{outcome=processed,type=billed}": GOOD + FLAKY,
        "ag06_workflow_events_total{outcome=retried,type=order}": FLAKY + BAD,
        "ag06_workflow_events_total{outcome=dead,type=order}": BAD,
    }
    assert only(prometheus, 'ag06_workflow_retries_total{step="shop.bill"}') == FLAKY + BAD
    assert only(prometheus, 'ag06_workflow_dead_letters_total{step="shop.bill",reason="failed"}') == BAD
    assert only(prometheus, 'ag06_workflow_event_age_seconds_count{step="shop.bill"}') == GOOD + FLAKY + BAD
    assert only(prometheus, 'ag06_workflow_batch_size_sum{kind="step"}') == GOOD + FLAKY
    assert only(prometheus, 'ag06_workflow_knob_value{knob="size"}') == 8
    assert only(prometheus, 'ag06_workflow_breaker_state{breaker="crm"}') == 0
    published = prometheus.values("ag06_workflow_published_total")
    assert published == {
        "ag06_workflow_published_total{outcome=stored,type=audit}": 1,
        "ag06_workflow_published_total{outcome=duplicate,type=audit}": GOOD + FLAKY - 1,
    }
    assert only(prometheus, "ag06_workflow_duplicates_total") == GOOD + FLAKY - 1
    for operation in ("append", "fetch", "commit"):
        query = f'ag06_workflow_store_operation_seconds_count{{operation="{operation}"}}'
        assert only(prometheus, query) > 0, operation
    assert only(prometheus, "ag06_workflow_loop_lag_seconds_count") > 0


def test_every_metric_of_the_project_is_there(prometheus: Prometheus) -> None:
    kinds = prometheus.ask("metadata")
    silent = set()
    for family in REGISTRY.families():
        declaration = family.declaration
        suffix = "_count" if declaration.kind in ("histogram", "summary") else ""
        if prometheus.values(declaration.name + suffix):
            [known] = kinds[declaration.family]
            assert (known["type"], known["help"]) == (declaration.kind, declaration.help)
        else:
            silent.add(declaration.family)
    assert silent <= QUIET.keys()


def test_promtool_complains_of_the_fixed_names_alone(prometheus: Prometheus, tmp_path: Path) -> None:
    targets: Any = prometheus.ask("targets")
    url = targets["activeTargets"][0]["scrapeUrl"]
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        text = answer.read()
    checked = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=text, capture_output=True, check=False, timeout=PATIENCE
    )
    assert sorted((checked.stdout + checked.stderr).decode().splitlines()) == [
        'ag06_workflow_latency_milliseconds use base unit "seconds" instead of "milliseconds"',
        "ag06_workflow_memory_usage_mb metric names should not contain abbreviated units",
    ]
