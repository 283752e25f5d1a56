"""Everything that is known of a running workflow, as one object for `/status`."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.breaker import CircuitBreaker, known_breakers
from ag06.knob import Knob
from ag06.monitoring import observability

if TYPE_CHECKING:
    from datetime import datetime

    from ag06.monitoring.health import HealthReport
    from ag06.runtime.monitor import Monitor
    from ag06.runtime.workflow import Workflow


def heading(workflow: Workflow, began: datetime, report: HealthReport) -> dict[str, Any]:
    """Return what every status begins with: which workflow, on what, since when, and how it is."""
    return {
        "workflow": workflow.name,
        "version": version("ag06"),
        "store": workflow.events.url,
        "since": began.isoformat(),
        "status": report.status,
        "components": msgspec.to_builtins(report.components),
    }


async def status_of(workflow: Workflow, monitor: Monitor, *, metrics: bool = True) -> dict[str, Any]:
    """Return what there is to know, JSON-able; `metrics` are those of all processes of the workflow."""
    report = await observability.health.check_health()
    sampler = monitor.sampler
    return {
        **heading(workflow, monitor.began, report),
        "worker": monitor.worker,
        "resources": None if sampler is None else msgspec.to_builtins(sampler.resources),
        "steps": _steps(workflow, monitor),
        "performance": {
            step: msgspec.to_builtins(seen) for step, seen in observability.performance.snapshots().items()
        },
        "knobs": _knobs(workflow),
        "breakers": {breaker.name: breaker_status(breaker) for breaker in known_breakers()},
        "experiments": monitor.told,
        "metrics": await observability.metrics.gather() if metrics else {},
    }


def _steps(workflow: Workflow, monitor: Monitor) -> dict[str, Any]:
    groups = {} if monitor.sampler is None else monitor.sampler.groups
    found: dict[str, Any] = {}
    for step in workflow.steps.values():
        info = groups.get(step.group)
        oldest = None if info is None or info.oldest_ms is None else round(time.time() - info.oldest_ms / 1000, 3)
        found[step.group] = {
            "type": step.type,
            "concurrency": step.concurrency,
            "backlog": None if info is None else info.backlog,
            "in_flight": None if info is None else info.in_flight,
            "dead_letters": None if info is None else info.dead_letters,
            "oldest_age_seconds": oldest,
        }
    return found


def _knobs(workflow: Workflow) -> dict[str, Any]:
    """Return the user's knobs, the runtime's, and what would be knobs of its had the user not given numbers."""
    found = {name: knob_status(knob) for name, knob in (workflow.knobs | workflow.runtime_knobs).items()}
    for name, value in workflow.fixed_knobs.items():
        found[name] = _stand(value, value, value, value, pinned=True)
    return found


def knob_status(knob: Knob) -> dict[str, Any]:
    """Return where a knob stands, and between what."""
    stand = _stand(knob.value, knob.default, knob.low, knob.high, knob.scale)
    return stand if knob.choices is None else stand | {"choices": list(knob.choices)}


def _stand(
    value: Any, default: Any, low: float, high: float, scale: str = "linear", *, pinned: bool = False
) -> dict[str, Any]:
    return {"value": value, "default": default, "low": low, "high": high, "scale": scale, "pinned": pinned}


def breaker_status(breaker: CircuitBreaker) -> dict[str, Any]:
    """Return the state of a breaker and what its window holds."""
    return {"state": breaker.state, **msgspec.structs.asdict(breaker.metrics)}
