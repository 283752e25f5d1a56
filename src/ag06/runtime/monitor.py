"""What watches a workflow while it runs in this process: its loop, its health, its gauges, and the server for them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import ChainMap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ag06.monitoring import instruments, observability
from ag06.monitoring.checks import register_built_in
from ag06.monitoring.loop_watch import LoopWatch
from ag06.monitoring.server import HttpServer
from ag06.monitoring.tracing import TRACING
from ag06.runtime.companions import Companions, Running
from ag06.runtime.sampling import Sampler
from ag06.runtime.serving import open_workflow_server, written_paths
from ag06.runtime.status import status_of

if TYPE_CHECKING:
    from ag06.persistence.log import EventLog
    from ag06.runtime.worker import Worker
    from ag06.runtime.workflow import Listen, Workflow

_logger = logging.getLogger("ag06.runtime")
_watched: list[Monitor] = []


class Monitor:
    """Watches one workflow, from before its store is there until after its worker has stopped.

    Attributes:
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
        self.sampler: Sampler | None = None
        self.worker: str | None = None
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
        """Begin; the workflow is `opening` until `watch`. Raises `ConfigurationError` for a port that cannot be had."""
        observability.metrics.tolerate_mistakes()
        if instruments.DIRECTORY_VARIABLE in os.environ:
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

    async def watch(self, worker: Worker, log: EventLog) -> None:
        """Look at a worker that runs on `log`, and at that log, from now on."""
        self.worker = worker.name
        workflow, events = self._workflow, self._workflow.events
        # Components of a second workflow in the same process have names of their own.
        others = any(other is not self and other._checks for other in _watched)
        self._checks = register_built_in(
            observability.health,
            watch=self._watch,
            paths=written_paths(events),
            stats=log.stats,
            report=log.durability_report,
            journal=events.journal_state if events.has_journal else None,
            leases=worker.renewals.check,
            suffix=f" of {workflow.name}" if others else "",
        )
        self.sampler = Sampler(log, worker.runners, ChainMap(workflow.knobs, workflow.runtime_knobs).values())
        self._sampling = asyncio.get_running_loop().create_task(self.sampler.run(), name="sampling")
        self._sampling.add_done_callback(_look_at)
        observability.health.set_phase(workflow.name, "running")
        self._companions = Companions(Running(workflow, log, worker.name))
        await self._companions.begun()

    def stopping(self) -> None:
        """Say that the workflow shuts down: it takes no more work."""
        observability.health.set_phase(self._workflow.name, "stopping")
        if self._companions is not None:
            self._companions.stop()

    async def close(self) -> None:
        """End; the server answers until now.

        A cancellation meanwhile is passed on once all of it has ended; companions are not waited for any more then.
        """
        try:
            if self._companions is not None:
                self._companions.stop()
                await self._companions.ended()
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
