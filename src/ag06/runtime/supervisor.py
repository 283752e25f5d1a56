"""Keeps worker processes alive: starts them, restarts those that die, hands out at once what a dead one held."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ag06.errors import ConfigurationError, StoreError
from ag06.monitoring.instruments import DIRECTORY_VARIABLE, WORKER_RECYCLES, WORKER_RESTARTS, WORKER_STALLS
from ag06.persistence.event_store import EventStore
from ag06.runtime.call_board import OpenCall
from ag06.runtime.recycling import EARLY_SECONDS, limits_of, take_mark
from ag06.runtime.stalls import DEFAULT_TIMEOUT, StallWatch
from ag06.tasks import start_task

_logger = logging.getLogger("ag06.runtime")
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_HEALTHY_SECONDS = 30.0
_SETTLE_SECONDS = 5.0
_DUMP_SECONDS = 2.0  # that a worker has to write its stack
_MOST_NAMED = 10

USER_MISTAKE = 2
"""Exit code of a worker that cannot work as it is configured; if it never could, it is not started again."""
RECYCLED = 3
"""Exit code of a worker that ended by itself because it had done its number of events, or has its size; it has left a
mark of that, for code of the user may end a process with the same number."""
STORE_VARIABLE = "AG06_RUN_STORE"
"""What `ag06 run` takes for `--store` where that is not given: a URL may hold a password, and every user of a machine
sees command lines."""
SUPERVISOR_VARIABLE = "AG06_SUPERVISOR"
"""The process id of the supervisor that started this process."""
FLEET_VARIABLE = "AG06_FLEET"
"""How many workers a supervisor runs; they share the constant rate of the retry budget."""


class WorkerProcess:
    """One worker process, through all its restarts.

    Attributes:
        deaths: how often it ended unasked.
        recycles: how often it ended by itself, gracefully, to be started afresh.
        taken_over: deliveries that its deaths left behind, handed out to others.
        name: what the process of now works under.
        since: when that was started.
        died: when the one before it ended, with `exit_code`.
        stalled: seconds for which its event loop has not turned.
        is_stalled: whether that is a visibility timeout or more.
        stall_limit: seconds after which it is replaced, or should be.
    """

    def __init__(self, index: int) -> None:
        """Number `index` of its supervisor."""
        self.index = index
        self.deaths = 0
        self.recycles = 0
        self.taken_over = 0
        self.process: asyncio.subprocess.Process | None = None
        self.name = ""
        self.since: datetime | None = None
        self.died: datetime | None = None
        self.exit_code = 0
        self.stalled = 0.0
        self.is_stalled = False
        self.stall_limit = DEFAULT_TIMEOUT

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.returncode is None

    def fresh_name(self) -> str:
        """Return a name that no worker had before: what the last one held must not look like the next one's."""
        restarts = self.deaths + self.recycles
        self.name = f"{socket.gethostname()}-{os.getpid()}-{self.index}-{restarts}-{os.urandom(3).hex()}"
        return self.name


class Supervisor:
    """Runs `workers` processes of `ag06 run TARGET` until stopped."""

    def __init__(
        self,
        target: str,
        workers: int,
        events: EventStore,
        *,
        store: str | None = None,
        grace: float = 20.0,
        visibility: float = 30.0,
        stall_timeout: float | None = DEFAULT_TIMEOUT,
        environment: Mapping[str, str] | None = None,
        on_death: Callable[[WorkerProcess, int], None] | None = None,
    ) -> None:
        """`target` is `MODULE:APP`, `events` the store it runs on, `store` what workers take for their `--store`.

        `grace` and `visibility` in seconds are the workers' own; `environment` is added to what they are started with.

        With a directory for metrics in it, workers whose event loop does not turn are seen: their leases are renewed,
        and after `stall_timeout` seconds they are replaced; `None`: never.

        `on_death(worker, exit_code)` is told of each worker that ended unasked, after its deliveries were handed out.
        """
        if not 1 <= workers <= 256:
            raise ConfigurationError(f"--workers {workers}: 1 to 256")
        self._target = target
        self._store_url = store
        self._events = events
        self._grace = grace
        self._environment = dict(environment or {})
        self._on_death = on_death
        shared = self._environment.get(DIRECTORY_VARIABLE)
        self._directory = None if shared is None else Path(shared)
        self._recycles = bool(limits_of(self._environment))
        self._stalls = (
            None if self._directory is None else StallWatch(self._directory, events, visibility, stall_timeout)
        )
        self._stopping = asyncio.Event()
        self._began = 0.0
        self.workers = [WorkerProcess(index) for index in range(workers)]

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    async def stop_asked(self) -> None:
        """Wait until `stop` is called."""
        await self._stopping.wait()

    def stop(self) -> None:
        """Ask every worker to shut down gracefully; `run` returns when they have."""
        if self._stopping.is_set():
            return  # asking twice does not make it faster, and a process that just ended must not be signalled
        self._stopping.set()
        for worker in self.workers:
            self._signal(worker, signal.SIGTERM)

    async def run(self) -> int:
        """Run until `stop`; return 0, or the exit code of a worker that cannot work."""
        self._began = asyncio.get_running_loop().time()
        watch = None
        if self._stalls is not None:
            watch = start_task(self._stalls.run(self.workers, self._replace), "stalls")
            watch.add_done_callback(_report_end)
        keepers = [start_task(self._keep(worker), f"worker {worker.index}") for worker in self.workers]
        try:
            codes = await asyncio.gather(*keepers)
        finally:
            self.stop()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await asyncio.gather(*(self._end(worker) for worker in self.workers))
            if watch is not None:
                watch.cancel()
                await asyncio.wait([watch])
            await self._events.close()
        return max(codes)

    async def _keep(self, worker: WorkerProcess) -> int:
        """Start a worker again whenever it dies, later each time; return its last exit code."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            started = loop.time()
            await self._start(worker)
            if self._stopping.is_set():  # too late for `stop` to have seen it
                self._signal(worker, signal.SIGTERM)
            code = await self._wait(worker)
            if self._stopping.is_set():
                break
            lived = loop.time() - started
            count = await self._hand_out(worker)
            if await self._was_recycled(worker) and code == RECYCLED:
                WORKER_RECYCLES.inc()
                worker.recycles += 1
                if lived >= EARLY_SECONDS:
                    pause = _FIRST_PAUSE
                    continue
                pause = min(pause * 2, _LONGEST_PAUSE)
                _logger.warning(
                    "worker %d (%s) reached its limit after %.1f s, the next one starts in %.1f s; raise --max-events "
                    "or --max-memory",
                    worker.index,
                    worker.name,
                    lived,
                    pause,
                )
            else:
                self._note_death(worker, code, lived, count)
                if code == USER_MISTAKE and self._never_worked():
                    self.stop()
                    return code
                pause = _FIRST_PAUSE if lived > _HEALTHY_SECONDS else min(pause * 2, _LONGEST_PAUSE)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue
        return 0

    def _never_worked(self) -> bool:
        """Whether a mistake is one of the configuration; after a while of work it may be a changed password."""
        lasted = asyncio.get_running_loop().time() - self._began
        return lasted < _HEALTHY_SECONDS or (self._stalls is not None and not self._stalls.saw_work)

    async def _was_recycled(self, worker: WorkerProcess) -> bool:
        """Whether a worker that has ended was to be recycled, and had noted that."""
        if self._directory is None or not self._recycles:
            return False
        return await asyncio.to_thread(take_mark, self._directory, worker.name)

    def _note_death(self, worker: WorkerProcess, code: int, lived: float, count: int) -> None:
        worker.deaths += 1
        worker.died, worker.exit_code = datetime.now(UTC), code
        WORKER_RESTARTS.inc()
        _logger.warning(
            "worker %d (%s) ended with %d after %.1f s; %d deliveries handed out again",
            worker.index,
            worker.name,
            code,
            lived,
            count,
        )
        if self._on_death is not None:
            self._on_death(worker, code)

    async def _start(self, worker: WorkerProcess) -> None:
        command = [sys.executable, "-m", "ag06", "run", self._target]
        environment = (
            os.environ
            | self._environment
            | {
                "AG06_WORKER": worker.fresh_name(),
                SUPERVISOR_VARIABLE: str(os.getpid()),
                FLEET_VARIABLE: str(len(self.workers)),
            }
        )
        if self._store_url is not None:
            environment[STORE_VARIABLE] = self._store_url
        worker.process = await asyncio.create_subprocess_exec(*command, env=environment)
        worker.since = datetime.now(UTC)

    async def _wait(self, worker: WorkerProcess) -> int:
        """Wait until a worker ends, by force where it outlasts its grace time after `stop`; return its exit code."""
        process = worker.process
        if process is None:
            return 0
        ended, stopping = start_task(process.wait()), start_task(self._stopping.wait())
        try:
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(worker)
            return await ended
        finally:
            ended.cancel()
            stopping.cancel()

    async def _replace(self, worker: WorkerProcess, calls: Sequence[OpenCall], seconds: float) -> None:
        """End a worker whose event loop does not turn; `_keep` starts another one in its place."""
        if self.stopping:
            return  # it has its grace time
        WORKER_STALLS.inc()
        running = ", ".join(f"{call.event_id} in step {call.group}" for call in calls[:_MOST_NAMED])
        more = f" and {len(calls) - _MOST_NAMED} more" if len(calls) > _MOST_NAMED else ""
        _logger.error(
            "worker %d (%s): its event loop has not turned for %.1f s (stall_timeout), while it ran %s; it writes its "
            "stack to its standard error and is replaced",
            worker.index,
            worker.name,
            seconds,
            f"{running}{more}" if calls else "no event",
        )
        process = worker.process
        if process is not None:
            _forbid_core_file(process.pid)
            # faulthandler writes the stack, also while C code holds the interpreter.
            self._signal(worker, signal.SIGABRT)
            try:
                await asyncio.wait_for(process.wait(), _DUMP_SECONDS)
            except TimeoutError:
                self._signal(worker, signal.SIGKILL)
                await process.wait()

    async def _hand_out(self, worker: WorkerProcess) -> int:
        """Hand out at once what a dead worker held, instead of after the visibility timeout."""
        try:
            log = await self._events.log()
            count = await log.release_worker(worker.name)
        except StoreError as error:
            _logger.warning("worker %s: its deliveries are taken over later, by timeout: %s", worker.name, error)
            return 0
        worker.taken_over += count
        return count

    async def _end(self, worker: WorkerProcess) -> None:
        """See that a worker is gone, by force if it outlasts its grace time."""
        process = worker.process
        if process is None or process.returncode is not None:
            return
        try:
            await asyncio.wait_for(process.wait(), self._grace + _SETTLE_SECONDS)
        except TimeoutError:
            _logger.warning("worker %s outlasted its grace time and is killed", worker.name)
            self._signal(worker, signal.SIGKILL)
            await process.wait()
            await self._hand_out(worker)

    def _signal(self, worker: WorkerProcess, number: signal.Signals) -> None:
        process = worker.process
        if process is not None and process.returncode is None:
            try:
                process.send_signal(number)
            except ProcessLookupError:
                _logger.debug("worker %s had ended already", worker.name)


def _forbid_core_file(pid: int) -> None:
    """Have no core file written of a process that is about to be aborted, where the system allows that (Linux)."""
    limit = getattr(resource, "prlimit", None)
    if limit is not None:
        with contextlib.suppress(OSError):
            limit(pid, resource.RLIMIT_CORE, (0, 0))


def _report_end(watch: asyncio.Task[None]) -> None:
    if not watch.cancelled() and (error := watch.exception()) is not None:
        _logger.error("workers that are held up are not seen any more", exc_info=error)
