"""One worker: every step of a workflow, running in one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from ag06.error_text import log_error
from ag06.errors import StoreError
from ag06.knob import Knob
from ag06.monitoring.instruments import DIRECTORY_VARIABLE
from ag06.persistence.admission import Admission
from ag06.persistence.archive.retention import RetentionKeeper
from ag06.persistence.log import EventLog
from ag06.persistence.outage import Outage
from ag06.retry import RETRIES_PER_SECOND, RetryBudget
from ag06.runtime import knobs
from ag06.runtime.call_board import board_of_this_worker
from ag06.runtime.context import MAX_OUTPUT_BYTES
from ag06.runtime.grace import Grace, cancel
from ag06.runtime.heartbeat import Heartbeat
from ag06.runtime.leases import LeaseKeeper
from ag06.runtime.outcome import Listener
from ag06.runtime.quarantine import Quarantine
from ag06.runtime.renewals import Renewals
from ag06.runtime.shutdown_report import ShutdownCounts, total
from ag06.runtime.step import Step
from ag06.runtime.step_runner import Shared, StepRunner
from ag06.settings import variable
from ag06.tasks import start_task

_logger = logging.getLogger("ag06.runtime")
_MAINTENANCE_SECONDS = 1.0
_live: Counter[str] = Counter()  # names of the workers in this process: several workflows may share one


def worker_name() -> str:
    """Return the name this process works under: `$AG06_WORKER`, or a fresh one that names host and process."""
    return variable("AG06_WORKER") or f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"


async def claim_name(log: EventLog) -> str:
    """Return `worker_name()`; what a dead worker of that name held is handed out first, not kept alive by this one.

    A name that `$AG06_WORKER` fixes must be unique among the workers that live: the later of two would take the
    deliveries of the earlier one.
    """
    name = worker_name()
    if variable("AG06_WORKER") and not _live[name]:
        count = await log.release_worker(name)
        if count:
            _logger.warning("an earlier worker %s left %d deliveries behind; they are handed out again", name, count)
    return name


def retry_budget() -> RetryBudget:
    """Return this process's part of the workflow's budget: its own first attempts, its share of the constant rate."""
    fleet = os.environ.get("AG06_FLEET", "")
    return RetryBudget(per_second=RETRIES_PER_SECOND / (int(fleet) if fleet.isdecimal() and int(fleet) else 1))


class Worker:
    """Runs steps until stopped. Every task it starts is watched: one that fails ends `failure`."""

    def __init__(
        self,
        workflow: str,
        steps: Sequence[Step],
        log: EventLog,
        *,
        admission: Admission,
        visibility: float,
        listeners: list[Listener],
        commit_wait: Knob | None = None,
        keeper: RetentionKeeper | None = None,
        name: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> None:
        """Run `steps` on `log`; leases last `visibility` seconds. `keeper` archives and deletes what is due.

        Commits wait for company as long as `commit_wait` says. `max_output_bytes` limits the outputs of one call.
        """
        self.name = name or worker_name()
        self._log = log
        groups = [step.group for step in steps]
        directory = os.environ.get(DIRECTORY_VARIABLE) if os.environ.get("AG06_SUPERVISOR") else None
        self._board = board_of_this_worker(directory, self.name, groups)
        self._heartbeat = Heartbeat(visibility, on_beat=None if self._board is None else self._board.beat)
        shared = Shared(
            workflow,
            admission,
            retry_budget(),
            Quarantine(),
            listeners,
            commit_wait or knobs.commit_wait(),
            max_output_bytes,
            visibility,
            self._heartbeat,
            self._board,
        )
        self._runners = [StepRunner(step, log.subscribe(step.group, self.name, visibility), shared) for step in steps]
        self._keeper = LeaseKeeper([runner.subscription for runner in self._runners], visibility, self._heartbeat)
        self._retention = keeper
        self._housekeepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._lives = False
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def runners(self) -> Sequence[StepRunner]:
        """What runs its steps."""
        return self._runners

    @property
    def settled_count(self) -> int:
        """Deliveries settled since it started."""
        return sum(runner.settled_count for runner in self._runners)

    @property
    def renewals(self) -> Renewals:
        """Whether its leases are renewed."""
        return self._keeper.renewals

    def start(self) -> None:
        """Start fetching and calling."""
        _live[self.name] += 1
        self._lives = True
        self._heartbeat.start()
        self._housekeepers.append(self._spawn(self._repeat("housekeeping", self._log.maintain), "housekeeping"))
        if self._retention is not None:
            # It may take minutes, for which the other housekeeping does not wait.
            self._housekeepers.append(self._spawn(self._retain(self._retention), "retention"))
        for runner in self._runners:
            runner.start(self._spawn)
        self._keeper.start()

    def refuse(self) -> None:
        """Begin no more calls, from this moment on; `stop` follows."""
        self._stopping = True
        for runner in self._runners:
            runner.refuse()

    async def stop(self, grace: Grace) -> ShutdownCounts:
        """Stop fetching, finish or give back what is in flight within `grace`, leave the groups.

        After a cancellation it may be called again: it goes on.
        """
        self._stopping = True
        if self._lives:
            self._lives = False
            _live[self.name] -= 1
        for housekeeper in self._housekeepers:
            housekeeper.cancel()
        try:
            counts, _ = await asyncio.gather(self._stop_steps(grace), self._housekept(grace))
        finally:
            self._keeper.stop()
            self._heartbeat.stop()
            if self._board is not None:
                self._board.beat(0.0)
        await asyncio.to_thread(self._keeper.join, 1.0)
        if not self.failure.done():
            self.failure.cancel()
        return counts

    async def _stop_steps(self, grace: Grace) -> ShutdownCounts:
        ends = await asyncio.gather(*(runner.stop(grace) for runner in self._runners), return_exceptions=True)
        for outcome in ends:
            if isinstance(outcome, BaseException):
                raise outcome
        return total(outcome for outcome in ends if isinstance(outcome, ShutdownCounts))

    async def _housekept(self, grace: Grace) -> None:
        """Wait for the end of the housekeeping, but not for an archive that hangs."""
        if await grace.wait(self._housekeepers):
            await cancel(self._housekeepers)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = start_task(work, name)
        task.add_done_callback(self._watch)
        return task

    def _abort(self) -> None:
        """Let every task end: somebody cancelled one of them from outside, as the end of an event loop does."""
        self._stopping = True
        self._keeper.stop()
        self._heartbeat.stop()
        for runner in self._runners:
            runner.abort()
        for housekeeper in self._housekeepers:
            housekeeper.cancel()

    def _watch(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if not self._stopping:
                self._abort()
            return
        error = task.exception()
        if error is not None:
            log_error(_logger, error, "%s stopped", task.get_name(), level=logging.CRITICAL)
            if not self.failure.done():
                self.failure.set_exception(error)
                self.failure.exception()  # whoever awaits it gets it; nobody has to

    async def _retain(self, keeper: RetentionKeeper) -> None:
        """Keep the policies; whoever comes after this worker need not wait until its lead has run out."""
        try:
            await self._repeat("retention", partial(keeper.keep, self._log, self.name))
        finally:
            await keeper.release(self._log, self.name)

    async def _repeat(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do some housekeeping about once a second; workers that started together drift apart."""
        outage = Outage(what)
        while True:
            await asyncio.sleep(_MAINTENANCE_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
            try:
                await work()
            except StoreError as error:
                outage.failed(error)
            else:
                outage.over()
