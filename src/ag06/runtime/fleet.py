"""Several worker processes as one target: they count in one directory, and one server tells how all of them are."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ag06.monitoring import observability
from ag06.monitoring.checks import register_built_in
from ag06.monitoring.fine import fine_directory
from ag06.monitoring.instruments import DIRECTORY_VARIABLE
from ag06.monitoring.server import HttpServer
from ag06.runtime.fleet_health import FleetHealth
from ag06.runtime.fleet_status import merged_status, worker_status
from ag06.runtime.serving import open_workflow_server, written_paths
from ag06.runtime.status import heading
from ag06.runtime.supervisor import Supervisor, WorkerProcess
from ag06.runtime.worker_reports import WorkerReport, read_reports, remove_reports
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06.runtime.workflow import Workflow

_logger = logging.getLogger("ag06.runtime")
LOOK_SECONDS = 1.0
"""Between two looks at what the workers report."""


class Fleet:
    """What is seen of a supervisor's workers from outside, from before the first starts until after the last ended.

    Use it as an async context manager, start workers with `environment`, and let it `watch` their supervisor.

    Attributes:
        environment: what workers are started with, so that they count and report where this reads.
        health: of all of them.
    """

    def __init__(self, workflow: Workflow, *, http_port: str | None = None) -> None:
        """Of workers that run `workflow`; `http_port` is as the setting takes it, `None`: what the settings say."""
        self.environment: Mapping[str, str] = {}
        self.health = FleetHealth()
        self._workflow = workflow
        self._http_port = http_port
        self._directory: Path | None = None
        self._server: HttpServer | None = None
        self._supervisor: Supervisor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reports: Mapping[str, WorkerReport] = {}
        self._began = datetime.now(UTC)

    @property
    def url(self) -> str | None:
        """Where the server listens; `None` where there is none."""
        return None if self._server is None else self._server.url

    async def __aenter__(self) -> Fleet:
        """Make the directory and open the server; raise `ConfigurationError` for a port that cannot be had."""
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    def watch(self, supervisor: Supervisor) -> None:
        """Tell of the workers of `supervisor` from now on."""
        self._supervisor = supervisor
        self.health.registry.set_phase(self._workflow.name, "opening")
        self._spawn(self._note_stop(supervisor), "noting a stop")

    async def _open(self) -> None:
        directory = self._directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ag06-workers-"))
        self.environment = {DIRECTORY_VARIABLE: str(directory)}
        observability.metrics.tolerate_mistakes()
        await asyncio.to_thread(observability.metrics.share, directory)
        await asyncio.to_thread(observability.fine.share, fine_directory(directory))
        events = self._workflow.events
        register_built_in(
            self.health.own,
            paths=written_paths(events),
            stats=events.stats,
            journal=events.journal_state if events.has_journal else None,
        )
        self.health.registry.set_phase(self._workflow.name, "opening")
        self._server = await open_workflow_server(
            self._workflow, self.health.registry, self.status, port=self._http_port
        )
        self._spawn(self._look(directory), "looking after workers")

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.close(grace=1.0)
            self._server = None
        await self.health.close()
        await self._workflow.events.close()  # a check may have opened it again after the supervisor was done with it
        if self._directory is not None:
            observability.metrics.unshare()
            observability.fine.unshare()
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _look(self, directory: Path) -> None:
        """Take in what the workers report, until cancelled."""
        while True:
            workers = self._workers()
            living = frozenset(worker.name for worker in workers if worker.alive)
            found = await asyncio.to_thread(_reports, directory, living)
            self._reports = {report.worker: report for report in found if report.worker in living}
            await self.health.update(workers, self._reports)
            stopping = self._supervisor is not None and self._supervisor.stopping
            if not stopping and any(_works(report) for report in self._reports.values()):
                self.health.registry.set_phase(self._workflow.name, "running")
            await asyncio.sleep(LOOK_SECONDS)

    async def _note_stop(self, supervisor: Supervisor) -> None:
        await supervisor.stop_asked()
        self.health.registry.set_phase(self._workflow.name, "stopping")

    async def status(self) -> dict[str, Any]:
        """Return what there is to know of all workers, as `/status` of a single process has it, and of each."""
        report = await self.health.registry.check_health()
        reports = [report for report in self._reports.values() if _works(report)]
        return {
            **heading(self._workflow, self._began, report),
            **merged_status(reports),
            "workers": [
                worker_status(worker, self._reports.get(worker.name) if worker.alive else None, time.time)
                for worker in self._workers()
            ],
            "metrics": await observability.metrics.gather(),
        }

    def _workers(self) -> list[WorkerProcess]:
        return [] if self._supervisor is None else self._supervisor.workers

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = start_task(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("%s ended: health and status stand still from now on", task.get_name(), exc_info=error)


def _reports(directory: Path, living: frozenset[str]) -> list[WorkerReport]:
    remove_reports(directory, living)
    return read_reports(directory, time.time())


def _works(report: WorkerReport) -> bool:
    """Whether a worker had reached its store when it said so."""
    return report.content.get("worker") is not None
