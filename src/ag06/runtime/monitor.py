"""What watches a workflow while it runs in this process: its loop, its health, its gauges, and the server for them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import ChainMap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ag06.errors import StoreUnavailable
from ag06.monitoring import instruments, observability
from ag06.monitoring.checks import register_built_in
from ag06.monitoring.loop_watch import LoopWatch
from ag06.monitoring.probe import HealthResult
from ag06.monitoring.server import HttpServer
from ag06.monitoring.tracing import TRACING
from ag06.persistence.stores import journal_state
from ag06.runtime.companions import Companions, Running
from ag06.runtime.renewals import Renewals
from ag06.runtime.sampling import Sampler
from ag06.runtime.serving import open_workflow_server, written_paths
from ag06.runtime.status import status_of
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06.persistence.journal.state import JournalState
    from ag06.persistence.log import EventLog, LogStats
    from ag06.runtime.grace import Grace
    from ag06.runtime.worker import Worker
    from ag06.runtime.workflow import Listen, Workflow

_logger = logging.getLogger("ag06.runtime")
_watched: list[Monitor] = []


class Monitor:
    """Watches one workflow, from before its store is there until after its worker has stopped.

    Attributes:
        log: the open log; `None` before it was opened.
        problem: why the workflow does not run yet, or cannot run at all.
        sampler: reads its gauges; `None` before its worker runs.
        began: when it began, aware UTC.
    """

    def __init__(self, workflow: Workflow, listen: Listen | None) -> None:
        """Watch `workflow`; open a server only if `listen` says where."""
        self._workflow = workflow
        self._listen = listen
        self._watch = LoopWatch(instruments.LOOP_LAG.observe)
        self._server: HttpServer | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._checks: tuple[str, ...] = ()
        self._companions: Companions | None = None
        self.log: EventLog | None = None
        self.problem: str | None = None
        self.sampler: Sampler | None = None
        self.worker: str | None = None
        self._renewals: Renewals | None = None
        self.began = datetime.now(UTC)

    @property
    def told(self) -> dict[str, Any]:
        """What companions say of experiments."""
        return {} if self._companions is None else dict(self._companions.running.told)

    @property
    def url(self) -> str | None:
        """Where its server listens; `None` where there is none."""
        return None if self._server is None else self._server.url

    async def open(self) -> None:
        """Begin; the workflow is `opening` until `watch`. Raises `ConfigurationError` for a port that cannot be had.

        Health knows the store from now on: it may be away, and then it says so.
        """
        observability.metrics.tolerate_mistakes()
        if instruments.shared_directory() is not None:
            await asyncio.to_thread(observability.share_fine)
        TRACING.start(self._workflow.name)
        _watched.append(self)
        self._watch.start()
        observability.health.set_phase(self._workflow.name, "opening")
        if self._listen is not None:
            host, port = self._listen
            self._server = await open_workflow_server(
                self._workflow, observability.health, self._status, host=host, port=port
            )
        self._register_checks()

    def _register_checks(self) -> None:
        workflow, events = self._workflow, self._workflow.events
        # Components of a second workflow in the same process have names of their own.
        others = any(other is not self and other._checks for other in _watched)
        self._checks = register_built_in(
            observability.health,
            watch=self._watch,
            paths=written_paths(events),
            stats=self._stats,
            report=self._durability_report,
            journal=self._journal_state if events.has_journal else None,
            leases=self._lease_renewal,
            suffix=f" of {workflow.name}" if others else "",
        )

    def _opened(self) -> EventLog:
        if self.log is None or self.problem is not None:
            raise StoreUnavailable(self.problem or "the store is not open yet")
        return self.log

    async def _stats(self) -> LogStats:
        return await self._opened().stats()

    async def _durability_report(self) -> list[str]:
        return await self._opened().durability_report()

    async def _journal_state(self) -> JournalState | None:
        return None if self.log is None else journal_state(self.log)

    def _lease_renewal(self) -> HealthResult:
        return HealthResult("pass") if self._renewals is None else self._renewals.check()

    async def watch(self, worker: Worker, log: EventLog) -> None:
        """Look at a worker that runs on `log` from now on."""
        self.worker = worker.name
        self._renewals = worker.renewals
        workflow = self._workflow
        self.sampler = Sampler(log, worker.runners, ChainMap(workflow.knobs, workflow.runtime_knobs).values())
        self._sampling = start_task(self.sampler.run(), "sampling")
        self._sampling.add_done_callback(_look_at)
        observability.health.set_phase(workflow.name, "running")
        self._companions = Companions(Running(workflow, log, worker.name))
        await self._companions.begun()

    def stopping(self) -> None:
        """Say that the workflow shuts down: it takes no more work."""
        observability.health.set_phase(self._workflow.name, "stopping")
        if self._companions is not None:
            self._companions.stop()

    async def close(self, grace: Grace) -> None:
        """End; the server answers until now. After a cancellation it may be called again: it goes on."""
        try:
            if self._companions is not None:
                self._companions.stop()
                await self._companions.ended(grace)
        finally:
            try:
                if self._server is not None:
                    await self._server.close(grace=1.0)
            finally:
                self._forget()
                await self._settle()

    def _forget(self) -> None:
        """End what needs no wait: nothing tells of this workflow any more."""
        self._server = None
        self._watch.stop()
        for name in self._checks:
            observability.health.unregister(name)
        observability.health.set_phase(self._workflow.name, None)
        if self in _watched:
            _watched.remove(self)
        if self._sampling is not None:
            self._sampling.cancel()

    def forked(self) -> None:
        """Leave to the parent process what it watches."""
        for name in self._checks:
            observability.health.unregister(name)
        if self._server is not None:
            self._server.forked()

    async def _settle(self) -> None:
        if self._sampling is not None:
            await asyncio.wait([self._sampling])
        if not _watched:
            await observability.health.close()
        if TRACING.sends:
            await asyncio.to_thread(TRACING.flush)

    async def _status(self) -> dict[str, Any]:
        return await status_of(self._workflow, self)


def _look_at(sampling: asyncio.Task[None]) -> None:
    if not sampling.cancelled() and (error := sampling.exception()) is not None:
        _logger.error("sampling ended: gauges stand still from now on", exc_info=error)


def _forget_parent() -> None:
    for monitor in _watched:
        monitor.forked()
    _watched.clear()


os.register_at_fork(after_in_child=_forget_parent)
