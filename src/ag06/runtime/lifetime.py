"""The life of a running workflow: monitor, store and worker, opened and closed by a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ag06.errors import StoreUnavailable
from ag06.persistence.outage import Outage
from ag06.persistence.stores import journal_state
from ag06.runtime.grace import Grace
from ag06.runtime.monitor import Monitor
from ag06.runtime.shutdown_report import ShutdownCounts, log_shutdown
from ag06.runtime.worker import claim_name
from ag06.tasks import completed, end, finished, start_task

if TYPE_CHECKING:
    from ag06.persistence.log import EventLog
    from ag06.runtime.worker import Worker
    from ag06.runtime.workflow import Listen, Workflow

_logger = logging.getLogger("ag06.runtime")
_ENTER_SECONDS = 3.0
"""How long entering waits for the store; after that it is opened in the background."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
"""Between attempts to open a store that is away, in seconds."""


class Lifetime:
    """One run of a workflow in this process, as an asynchronous context manager.

    A task of its own does the work, so that a caller who is cancelled leaves nothing half done: a cancellation of the
    caller (or of this task, at the end of an event loop) shortens the grace time, the end is awaited, and then the
    cancellation goes on its way.

    Attributes:
        worker: the worker; `None` while the store is away.
        failure: ends with the error of the worker, or of a store that refuses this workflow after it was away.
    """

    def __init__(
        self,
        workflow: Workflow,
        listen: Listen | None,
        *,
        registered_log: Callable[[], Awaitable[EventLog]],
        make_worker: Callable[[EventLog, str], Worker],
        ended: Callable[[Lifetime], None],
    ) -> None:
        """Open nothing yet; serve HTTP only if `listen` says where.

        `registered_log` returns the open log once it knows the steps; `ended` is called once nothing is left.
        """
        self._workflow = workflow
        self._registered_log = registered_log
        self._make_worker = make_worker
        self._ended = ended
        self._grace = Grace(workflow.grace)
        self._loop = asyncio.get_running_loop()
        self._entered: asyncio.Future[None] = self._loop.create_future()
        self._asked: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._counts = ShutdownCounts()
        self._error: BaseException | None = None
        self.monitor = Monitor(workflow, listen)
        self.worker: Worker | None = None
        self.failure: asyncio.Future[None] = self._loop.create_future()

    @property
    def problem(self) -> str | None:
        """Why the steps do not run yet; `None` when they do."""
        return self.monitor.problem if self.worker is None else None

    async def __aenter__(self) -> Lifetime:
        """Return when the steps run, or when the store proves to be away: then they start as soon as it is there."""
        self._task = start_task(self._live(), f"ag06 workflow {self._workflow.name}")
        try:
            await asyncio.wait([self._entered, self._task], timeout=_ENTER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._error is None:
                self._enter()  # an error of the start that comes later ends `failure`
            else:
                await asyncio.wait([self._task])  # the start has failed, and the task closes what it opened
        except asyncio.CancelledError:
            await self._leave(hurried=True)
            raise
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down; after a cancellation calls have one second, after another none."""
        await self._leave(hurried=isinstance(error, asyncio.CancelledError))

    async def _leave(self, *, hurried: bool) -> None:
        """Wait for the end, whatever is cancelled meanwhile; a cancellation is passed on after it."""
        cancelled: asyncio.CancelledError | None = None
        if hurried:
            self._grace.hurry()
        if not self._asked.done():
            self._asked.set_result(None)
            if self.worker is not None:
                self.worker.refuse()
        while self._task is not None and not self._task.done():
            try:
                await asyncio.wait([self._task])
            except asyncio.CancelledError as error:
                cancelled = error
                self._grace.hurry()
        self._ended(self)
        problem = None if self._task is None or self._task.cancelled() else self._task.exception()
        if cancelled is not None or hurried:
            if problem is not None:
                _logger.error("workflow %s did not end cleanly", self._workflow.name, exc_info=problem)
            if cancelled is not None:
                raise cancelled
        elif problem is not None:
            raise problem

    # In the task

    async def _live(self) -> None:
        beginning = self._beginning = start_task(self._begin(), f"ag06 start of workflow {self._workflow.name}")
        try:
            await asyncio.wait([beginning, self._asked], return_when=asyncio.FIRST_COMPLETED)
            if self._has_begun(beginning):
                await asyncio.wait([self._asked])
        except asyncio.CancelledError:
            self._grace.hurry()
        await self._end()

    def _has_begun(self, beginning: asyncio.Task[None]) -> bool:
        """Return whether to wait for the end; an error at the start is that of the caller who still waits for it."""
        if not beginning.done() or beginning.cancelled():
            return False
        error = beginning.exception()
        if error is None:
            self._enter()
            return True
        if not self._entered.done():
            self._error = error
            return False
        self.monitor.problem = str(error)
        _logger.critical("workflow %s cannot run: %s", self._workflow.name, error)
        self._fail(error)
        return True

    def _enter(self) -> None:
        if not self._entered.done():
            self._entered.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)
            self.failure.exception()  # looked at: nobody has to wait for it

    async def _begin(self) -> None:
        await completed(self.monitor.open())  # a cancellation in the middle would lose its socket
        log, name = await self._reach()
        worker = self.worker = self._make_worker(log, name)
        worker.failure.add_done_callback(self._worker_failed)
        worker.start()
        await self.monitor.watch(worker, log)

    def _worker_failed(self, failure: asyncio.Future[None]) -> None:
        if not failure.cancelled() and (error := failure.exception()) is not None:
            self._fail(error)

    async def _reach(self) -> tuple[EventLog, str]:
        """Return the open log that knows the steps, and a name to work under; wait for a store that is away."""
        outage = Outage(f"workflow {self._workflow.name}")
        pause = _FIRST_PAUSE
        while True:
            try:
                self.monitor.log = await self._workflow.events.log()
                log = await self._registered_log()
                name = await claim_name(log)
            except StoreUnavailable as error:
                outage.failed(error)
                self.monitor.problem = str(error)
                self._enter()
            else:
                outage.over()
                self.monitor.problem = None
                return log, name
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    # The end

    async def _end(self) -> None:
        began = self._loop.time()
        self._grace.begin()
        await self._do(self._end_beginning)
        self.monitor.stopping()
        if self.worker is not None:
            await self._do(partial(self._stop_worker, self.worker))
        await self._do(partial(self.monitor.close, self._grace))
        await self._do(self._workflow.events.close)
        if self._entered.done():
            log = self.monitor.log
            state = None if log is None else journal_state(log)
            journalled = 0 if state is None else state.events
            log_shutdown(self._workflow.name, self._counts, journalled, self._loop.time() - began)
        self._ended(self)
        if self._error is not None:
            raise self._error

    async def _do(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do a part of the end; the others follow whatever it raises."""
        try:
            await finished(part, self._grace.hurry)
        except BaseException as error:  # noqa: BLE001 - raised when nothing of the workflow is left
            if self._error is None:
                self._error = error

    async def _end_beginning(self) -> None:
        if self._beginning is not None:
            await end(self._beginning)

    async def _stop_worker(self, worker: Worker) -> None:
        self._counts = await worker.stop(self._grace)
