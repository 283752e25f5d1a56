"""The facade `ml_optimizer` as the documents show it, in a process where everything is as it is installed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from ag06 import Event, Workflow
from ag06.ml import ml_optimizer
from ag06.ml.windows import Metrics
from flows import SECONDS
from tuning_load import Load, state_of, workflow_named


@pytest.fixture(autouse=True)
async def manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AG06_TUNE", raising=False)


async def test_without_a_workflow_each_call_answers() -> None:
    await ml_optimizer.start()
    try:
        metrics = await ml_optimizer.metrics_collector.collect_metrics()
        found = await ml_optimizer.gradient_optimizer.optimize(metrics, {"throughput": 1000})
        result = await ml_optimizer.ab_testing.run_experiment(variant_a={}, variant_b={"concurrency": 4}, timeout=1.0)
        status = await ml_optimizer.get_optimization_status()
    finally:
        await ml_optimizer.stop()
    assert metrics.memory_mb > 1
    assert (found.changes, found.confidence) == ({}, 0.0)
    assert "no workflow" in found.reason
    assert result.winner is None
    assert "no workflow runs in this process" in result.reason
    assert status["state"] == "waiting for a workflow to run in this process"
    assert (await ml_optimizer.get_optimization_status())["state"] == "stopped"
    json.dumps(status, allow_nan=False)


async def test_the_facade_as_it_is_documented() -> None:
    app = workflow_named("memory://")
    size = app.knob("size", low=1, high=64, default=32, scale="log")

    @app.step("t", concurrency=8)
    async def work(event: Event) -> None:
        await asyncio.sleep(size.value / 1000)

    ml_optimizer.configure(app, window=0.1, settle=0.02, minimum_events=5, share=1.0)
    async with app.running(), Load(app):
        await ml_optimizer.start()
        await state_of(ml_optimizer, leads_here=True)
        current_metrics = await ml_optimizer.metrics_collector.collect_metrics()
        while current_metrics.events < 50:
            await asyncio.sleep(0.05)
            current_metrics = await ml_optimizer.metrics_collector.collect_metrics()
        optimization = await ml_optimizer.gradient_optimizer.optimize(
            current_metrics, {"throughput": 2 * current_metrics.throughput}
        )
        result = await ml_optimizer.ab_testing.run_experiment(
            variant_a={"size": 32}, variant_b={"size": 2}, timeout=SECONDS
        )
        status = await ml_optimizer.get_optimization_status()
        await ml_optimizer.stop()
        stopped = await ml_optimizer.get_optimization_status()
    assert isinstance(current_metrics, Metrics)
    assert current_metrics.throughput > 0
    assert current_metrics.latency_p50_ms is not None
    assert set(optimization.changes) <= {"size", "work.fetch_size", "work.prefetch", "commit_wait"}
    assert 0 <= optimization.confidence <= 1
    assert result.winner == "b"
    assert result.effect is not None
    json.dumps([status, stopped], allow_nan=False)
    assert (status["workflow"], status["leads_here"], stopped["state"]) == (app.name, True, "stopped")


async def test_it_waits_for_a_workflow_that_runs_later_and_shows_in_its_status() -> None:
    app = Workflow("later", store="memory://")

    @app.step("t")
    async def work(event: Event) -> None: ...

    await ml_optimizer.start(app, window=0.1)
    async with app.running():
        await state_of(ml_optimizer, leads_here=True, state="waiting for traffic")
        shown = (await app.status())["experiments"]["optimizer"]
        await ml_optimizer.stop(app)
    assert (shown["leads_here"], shown["mode"], shown["workflow"]) == (True, "on", "later")
    assert json.loads(json.dumps(shown, allow_nan=False))["knobs"]["commit_wait"] == 0.0
