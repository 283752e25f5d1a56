"""What several workers know, as one: the figures of each step added up, each breaker where it is worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ag06.monitoring.tracker import Performance
from ag06.runtime.supervisor import WorkerProcess
from ag06.runtime.worker_reports import WorkerReport

_WORST_FIRST = ("forced_open", "open", "half_open", "metrics_only", "disabled", "closed")

T = TypeVar("T")


def merged_status(reports: Sequence[WorkerReport]) -> dict[str, Any]:
    """Return `steps`, `performance`, `knobs`, `breakers`, `experiments` and `resources` over the reports of workers."""
    return {
        "resources": _resources(reports),
        "steps": _of_newest(reports, "steps"),
        "performance": _performance(reports),
        "knobs": _of_newest(reports, "knobs"),
        "breakers": _breakers(reports),
        "experiments": _experiments(reports),
    }


def merge_performance(found: Sequence[Performance]) -> Performance:
    """Return the figures of several processes as one.

    Their quantiles are the largest that any of them saw: those of all calls together lie at or below.
    """
    count, errors = sum(each.count for each in found), sum(each.errors for each in found)
    total = sum(each.latency_mean_ms * each.count for each in found if each.latency_mean_ms is not None)

    def largest(quantile: Callable[[Performance], float | None]) -> float | None:
        return max((value for each in found if (value := quantile(each)) is not None), default=None)

    return Performance(
        count=count,
        errors=errors,
        throughput=sum(each.throughput for each in found),
        error_rate=errors / count if count else 0.0,
        latency_mean_ms=total / count if count else None,
        latency_p50_ms=largest(lambda each: each.latency_p50_ms),
        latency_p95_ms=largest(lambda each: each.latency_p95_ms),
        latency_p99_ms=largest(lambda each: each.latency_p99_ms),
        seconds=max((each.seconds for each in found), default=0.0),
    )


def worker_status(worker: WorkerProcess, report: WorkerReport | None, now: Callable[[], float]) -> dict[str, Any]:
    """Return what a supervisor knows of one worker; `report_age` in seconds, `None` while it has said nothing."""
    return {
        "name": worker.name,
        "pid": None if worker.process is None else worker.process.pid,
        "alive": worker.alive,
        "restarts": worker.deaths,
        "taken_over": worker.taken_over,
        "since": None if worker.since is None else worker.since.isoformat(),
        "report_age": None if report is None else round(max(0.0, now() - report.time), 3),
    }


def _of_newest(reports: Sequence[WorkerReport], name: str) -> dict[str, Any]:
    """Return a part that is the same for all workers, such as what the store says, or that of the latest report."""
    return _part(max(reports, key=lambda report: report.time), name, dict[str, Any]) if reports else {}


def _experiments(reports: Sequence[WorkerReport]) -> dict[str, Any]:
    """Return what is said of each optimizer by the worker that leads it, else by that of the latest report."""
    found: dict[str, Any] = {}
    leads: set[str] = set()
    for report in sorted(reports, key=lambda report: report.time):
        for name, told in _part(report, "experiments", dict[str, Any]).items():
            here = isinstance(told, Mapping) and told.get("leads_here") is True
            if here or name not in leads:
                found[name] = told
            if here:
                leads.add(name)
    return found


def _performance(reports: Sequence[WorkerReport]) -> dict[str, Any]:
    found: dict[str, list[Performance]] = {}
    for report in reports:
        for step, seen in _part(report, "performance", dict[str, Performance]).items():
            found.setdefault(step, []).append(seen)
    return {step: msgspec.to_builtins(merge_performance(seen)) for step, seen in found.items()}


def _resources(reports: Sequence[WorkerReport]) -> dict[str, float]:
    total: dict[str, float] = {}
    for report in reports:
        for name, taken in _part(report, "resources", dict[str, float]).items():
            total[name] = total.get(name, 0.0) + taken
    return total


def _breakers(reports: Sequence[WorkerReport]) -> dict[str, Any]:
    """Return each breaker where it is worst, with how many workers have it in which state."""
    found: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for name, breaker in _part(report, "breakers", dict[str, dict[str, Any]]).items():
            found.setdefault(name, []).append({**breaker, "worker": report.worker})
    return {
        name: min(members, key=_rank) | {"states": Counter(str(member.get("state")) for member in members)}
        for name, members in found.items()
    }


def _rank(breaker: Mapping[str, Any]) -> int:
    state = breaker.get("state")
    return _WORST_FIRST.index(state) if state in _WORST_FIRST else len(_WORST_FIRST)


def _part(report: WorkerReport, name: str, kind: type[dict[str, T]]) -> dict[str, T]:
    """Return one part of a report; empty where the worker runs other code than this one, and says it in another way."""
    try:
        return msgspec.convert(report.content.get(name) or {}, kind)
    except msgspec.ValidationError:
        return {}
