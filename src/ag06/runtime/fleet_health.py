"""How several workers stand, as one: components by name, each as bad as it is where it is worst."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from ag06.monitoring.health import MOST_COMPONENTS, Component, HealthRegistry, HealthResult, Status
from ag06.runtime.supervisor import WorkerProcess
from ag06.runtime.worker_reports import WorkerReport

SILENT_SECONDS = 10.0
"""A worker that has said nothing for so long is warned of, and what it last said of itself is passed over."""
_OWN = ("workers", "event loops")
_REPLACE_SECONDS = 10.0  # that the replacement of a worker may take
REMEMBERED_SECONDS = 60.0
"""How long the death of a worker that was started again is a warning."""

_RANK: Mapping[Status, int] = {"pass": 0, "warn": 1, "fail": 2}


class Merged(msgspec.Struct, frozen=True):
    """One component over all who have it; `critical` as in `HealthRegistry.register`."""

    result: HealthResult
    critical: bool


class FleetHealth:
    """The health of all workers, and of the process that supervises them.

    Attributes:
        registry: what is told: `workers`, and the merged components of the workers and of `own`.
        own: the checks of this process. What the user's module registers elsewhere is checked in the workers alone.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Of no worker yet; `clock` is since the epoch."""
        self.registry = HealthRegistry(ttl=0)
        self.own = HealthRegistry()
        self._clock = clock
        self._workers: Sequence[WorkerProcess] = ()
        self._reports: Mapping[str, WorkerReport] = {}
        self._merged: Mapping[str, Merged] = {}
        self.registry.register("workers", self._check_workers)
        self.registry.register("event loops", self._check_loops, live=True)

    async def update(self, workers: Sequence[WorkerProcess], reports: Mapping[str, WorkerReport]) -> None:
        """Take what the `workers` said last, by name, and look at the components of this process."""
        self._workers, self._reports = workers, reports
        heard = {name: components_of(report) for name, report in reports.items() if not self._is_silent(report.time)}
        own = (await self.own.check_health()).components
        before, merged = self._merged, merge_components(heard, {"the supervisor": own})
        self._merged = {name: merged[name] for name in list(merged)[: MOST_COMPONENTS - len(_OWN)] if name not in _OWN}
        for name, component in self._merged.items():
            if name not in before or before[name].critical != component.critical:
                self.registry.register(name, partial(self._result, name), component.critical)
        for name in before.keys() - self._merged.keys():
            self.registry.unregister(name)
        await self.registry.check_health()  # whoever asks seldom is still told since when

    async def _check_loops(self) -> HealthResult:
        """Fail where the supervisor cannot help: no loop turns, or one that should have been replaced."""
        living = [worker for worker in self._workers if worker.alive]
        stalled = [worker for worker in living if worker.is_stalled]
        if not stalled:
            return HealthResult("pass", None, 0, "stalled", "workers")
        said = listed([f"worker {worker.index} has not turned for {worker.stalled:.0f} s" for worker in stalled])
        lasting = any(worker.stalled >= worker.stall_limit + _REPLACE_SECONDS for worker in stalled)
        status: Status = "fail" if lasting or len(stalled) == len(living) else "warn"
        return HealthResult(status, f"event loop of {said}", len(stalled), "stalled", "workers")

    async def close(self) -> None:
        """End the checks that run."""
        await self.own.close()
        await self.registry.close()

    async def _result(self, name: str) -> HealthResult:
        return self._merged[name].result

    async def _check_workers(self) -> HealthResult:
        started = [worker for worker in self._workers if worker.process is not None]
        if not started:
            return HealthResult("pass", "no worker was started yet", 0, "alive", "workers")
        dead = [worker.name for worker in started if not worker.alive]
        alive = len(started) - len(dead)
        said = f"{alive} of {len(self._workers)} alive, {sum(worker.deaths for worker in self._workers)} restarts"
        if not alive:
            return HealthResult("fail", said, 0, "alive", "workers")
        silent = [worker.name for worker in started if worker.alive and self._is_silent(self._last_sign(worker))]
        fell = [
            f"worker {worker.index} ended with {worker.exit_code} at {worker.died:%H:%M:%S} UTC"
            for worker in started
            if worker.died is not None and self._clock() - worker.died.timestamp() < REMEMBERED_SECONDS
        ]
        wrong = [f"not alive: {listed(dead)}"] if dead else []
        wrong += [f"no report for {SILENT_SECONDS:.0f} s or more from {listed(silent)}"] if silent else []
        wrong += [listed(fell)] if fell else []
        return HealthResult("warn" if wrong else "pass", "; ".join([*wrong, said]), alive, "alive", "workers")

    def _last_sign(self, worker: WorkerProcess) -> float:
        report = self._reports.get(worker.name)
        if report is not None:
            return report.time
        return self._clock() if worker.since is None else worker.since.timestamp()

    def _is_silent(self, since: float) -> bool:
        return self._clock() - since >= SILENT_SECONDS


def components_of(report: WorkerReport) -> dict[str, Component]:
    """Return the components of a worker's report; none if it has none that can be read."""
    try:
        return msgspec.convert(report.content.get("components") or {}, dict[str, Component])
    except msgspec.ValidationError:
        return {}


def merge_components(
    workers: Mapping[str, Mapping[str, Component]], beside: Mapping[str, Mapping[str, Component]] | None = None
) -> dict[str, Merged]:
    """Return each component as bad as it is anywhere, and where that is.

    Args:
        workers: components by worker. A critical one that fails in some of several workers is a `warn`, for the others
            do the work; what fails in all of them is a `fail`.
        beside: components of processes that are no worker; they decide alone only where no worker has the component.
    """
    by_name: dict[str, dict[str, Component]] = {}
    for who, components in [*workers.items(), *(beside or {}).items()]:
        for name, component in components.items():
            by_name.setdefault(name, {})[who] = component
    return {name: _merge(found, workers.keys() & found.keys()) for name, found in by_name.items()}


def _merge(found: Mapping[str, Component], workers: set[str]) -> Merged:
    judges = workers or found.keys()
    worst = max(found.values(), key=lambda component: _RANK[component.status])
    critical = any(component.critical for component in found.values())
    status = worst.status
    if critical and status == "fail" and not all(found[who].status == "fail" for who in judges):
        status = "warn"
    measured = worst.measurement is not None
    return Merged(
        HealthResult(
            status,
            _said(found, worst.status) or worst.detail,
            worst.observed if measured else round(worst.latency_ms, 3),
            worst.measurement if measured else "responseTime",
            worst.unit if measured else "ms",
        ),
        critical,
    )


def _said(found: Mapping[str, Component], status: Status) -> str | None:
    """Return who stands as `status` and what they say; those who say the same are named together."""
    if status == "pass":
        return None
    by_text: dict[str, list[str]] = {}
    for who, component in found.items():
        if component.status == status:
            by_text.setdefault(component.error or "", []).append(who)
    return listed([f"{listed(names)}: {text}" for text, names in by_text.items()], "; ")


def listed(words: Sequence[str], between: str = ", ", most: int = 5) -> str:
    """Return the first `most` of the words, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more
