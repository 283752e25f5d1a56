"""A health report as `application/health+json` (draft-inadarei-api-health-check-06)."""

from __future__ import annotations

from typing import Any

import msgspec

from ag06.monitoring.health import HealthReport
from ag06.monitoring.probe import Component

CONTENT_TYPE = "application/health+json"


def status_code(report: HealthReport) -> int:
    """Return the HTTP status that goes with a report: 503 for `fail`, else 200."""
    return 503 if report.status == "fail" else 200


def render(report: HealthReport, *, version: str | None = None, release_id: str | None = None) -> bytes:
    """Return the whole report; each check is keyed `component:measurement`."""
    body: dict[str, Any] = {"status": report.status}
    if version is not None:
        body["version"] = version
    if release_id is not None:
        body["releaseId"] = release_id
    if report.note is not None:
        body["output"] = report.note
    body["checks"] = {
        f"{name}:{component.measurement or 'responseTime'}": [_check(name, component)]
        for name, component in report.components.items()
    }
    return msgspec.json.encode(body)


def render_brief(report: HealthReport) -> bytes:
    """Return the status, and which components failed, without a word of what they say: for whoever asks."""
    failed = [name for name, component in report.components.items() if component.status == "fail"]
    output = report.note or (f"failed: {', '.join(failed)}" if failed else None)
    return msgspec.json.encode({"status": report.status} | ({} if output is None else {"output": output}))


def _check(name: str, component: Component) -> dict[str, Any]:
    observed = component.measurement is not None
    entry: dict[str, Any] = {
        "componentId": name,
        "status": component.status,
        "time": component.checked,
        "observedValue": component.observed if observed else round(component.latency_ms, 3),
    }
    unit = component.unit if observed else "ms"
    if unit is not None:
        entry["observedUnit"] = unit
    said = component.error or component.detail
    if said is not None:
        entry["output"] = said
    entry |= {
        "since": component.since,
        "critical": component.critical,
        "latencyMs": round(component.latency_ms, 3),
        "lastError": component.last_error,
    }
    return entry
