"""The alert rules and the queries of the documentation are ones that Prometheus takes, about metrics that are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ag06 import Event, Workflow
from ag06.monitoring import observability
from ag06.monitoring.instruments import REGISTRY
from prometheus import PATIENCE, binary

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
PAGES = [ROOT / "docs" / "reference" / "metrics.md", ROOT / "docs" / "observability.md"]
_NAME = re.compile(r"\bag06_workflow_\w+")
_QUERY = re.compile(r"`([^`\n]*ag06_workflow_[^`\n]*)`")


def samples() -> set[str]:
    """The names of all series that a scrape can have."""
    names = set()
    for family in REGISTRY.families():
        declaration = family.declaration
        suffixes = ("_bucket", "_count", "_sum") if declaration.kind == "histogram" else ("",)
        names |= {declaration.name + suffix for suffix in suffixes}
    return names


def promtool(*arguments: str, directory: Path) -> str:
    done = subprocess.run(
        [binary("promtool"), *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration_and_the_alert_rules() -> None:
    assert "SUCCESS: 8 rules found" in promtool("check", "config", "prometheus.yml", directory=DEPLOY)


def test_every_metric_of_an_alert_rule_is_one_that_the_project_has() -> None:
    named = set(_NAME.findall((DEPLOY / "alerts.yml").read_text()))
    assert named
    assert named - samples() == set()


def test_every_query_of_the_documentation_is_one_that_prometheus_takes(tmp_path: Path) -> None:
    found = {query for page in PAGES for query in _QUERY.findall(page.read_text())}
    queries = sorted(query for query in found if not query.isidentifier())
    assert len(queries) > 25
    rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", "queries.yml", directory=tmp_path)
    assert {name for query in queries for name in _NAME.findall(query)} - samples() == set()


DEAD = 'ag06_workflow_dead_letters_total{step="shop.bill",reason="failed"}'
STORE = 'ag06_workflow_store_operation_seconds_bucket{operation="append",le="%s"}'
LAG = 'ag06_workflow_loop_lag_seconds_bucket{le="%s"}'
WELL = {
    'up{job="ag06",instance="one"}': "1x120",
    "ag06_workflow_errors_total": "0+1x120",
    "ag06_workflow_processing_duration_seconds_count": "0+100x120",
    DEAD: "3x120",
    'ag06_workflow_group_oldest_age_seconds{step="shop.bill"}': "0 5x119",
    'ag06_workflow_breaker_state{breaker="crm"}': "0x120",
    "ag06_workflow_journal_oldest_age_seconds": "0x120",
    STORE % "0.1": "0+100x120",
    STORE % "10": "0+100x120",
    STORE % "+Inf": "0+100x120",
    LAG % "0.1": "0+100x120",
    LAG % "2.5": "0+100x120",
    LAG % "+Inf": "0+100x120",
}
"""Half an hour of a workflow that is well, in steps of 15 seconds."""

TROUBLE = {
    "AG06Down": {'up{job="ag06",instance="one"}': "1x20 0x100"},
    "AG06DeadLetters": {DEAD: "3x112 4x8"},
    "AG06StepBehind": {'ag06_workflow_group_oldest_age_seconds{step="shop.bill"}': "0+15x120"},
    "AG06AttemptsFail": {"ag06_workflow_errors_total": "0+20x120"},
    "AG06BreakerOpen": {'ag06_workflow_breaker_state{breaker="crm"}': "0x20 2x100"},
    "AG06JournalHoldsEvents": {"ag06_workflow_journal_oldest_age_seconds": "0x80 0+15x40"},
    "AG06StoreSlow": {STORE % "0.1": "0+50x120"},
    "AG06EventLoopHeldUp": {LAG % "0.1": "0+50x120"},
}
"""What is different when something is wrong, by the alert that says so."""


def firing(directory: Path, series: dict[str, str], expected: list[str]) -> None:
    """Assert which alerts fire at the end of the half hour."""
    shutil.copy(DEPLOY / "alerts.yml", directory)
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in expected]
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "29m", "exp_samples": samples}],
    }
    test = {"rule_files": ["alerts.yml"], "evaluation_interval": "15s", "tests": [case]}
    (directory / "test.yml").write_text(json.dumps(test))  # which is YAML
    promtool("test", "rules", "test.yml", directory=directory)


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    firing(tmp_path, WELL, [])


@pytest.mark.parametrize("alert", TROUBLE)
def test_an_alert_fires_on_its_trouble_and_no_other_with_it(alert: str, tmp_path: Path) -> None:
    firing(tmp_path, WELL | TROUBLE[alert], [alert])


def test_every_alert_is_seen_to_fire() -> None:
    assert set(re.findall(r"alert: (\w+)", (DEPLOY / "alerts.yml").read_text())) == TROUBLE.keys()


async def test_dead_letters_are_counted_from_0_on_so_that_the_first_one_is_a_rise() -> None:
    app = Workflow("unharmed", store="memory://")

    @app.step("order")
    async def bill(event: Event) -> None: ...

    async with app.running():
        counted = observability.metrics.snapshot()
    series = 'ag06_workflow_dead_letters_total{step="unharmed.bill",reason="%s"}'
    assert [counted[series % reason] for reason in ("failed", "rejected", "invalid", "worker_died")] == [0, 0, 0, 0]
