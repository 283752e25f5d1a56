"""Stalls: workers whose process lives and whose event loop does not turn, as their supervisor sees them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.errors import StoreError
from ag06.persistence.event_store import EventStore
from ag06.runtime.call_board import OpenCall, board_path, read_beat, read_board, remove_board
from ag06.tasks import end, start_task

if TYPE_CHECKING:
    from ag06.runtime.supervisor import WorkerProcess

_logger = logging.getLogger("ag06.runtime")
DEFAULT_TIMEOUT = 60.0
"""Seconds without a turn of its loop after which a worker is replaced, unless set; leases are renewed no longer."""

_RENEWALS = 6  # in a visibility timeout

Replace = Callable[["WorkerProcess", Sequence[OpenCall], float], Awaitable[None]]


class _Watched(msgspec.Struct):
    """One worker process as it was seen last.

    Attributes:
        beat: its last beat.
        stalled: seconds for which that has been the last.
        vouched: after how many seconds of the stall its leases were last renewed; `None`: not yet.
        vouching: the renewal that runs, or ran last.
        replacing: its replacement, from its begin on.
    """

    beat: float
    stalled: float = 0.0
    vouched: float | None = None
    vouching: asyncio.Task[None] | None = None
    replacing: asyncio.Task[None] | None = None

    def turned(self, beat: float) -> None:
        """Note a beat."""
        self.beat, self.stalled, self.vouched = beat, 0.0, None

    @property
    def open_tasks(self) -> list[asyncio.Task[None]]:
        """What is being done for it."""
        return [task for task in (self.vouching, self.replacing) if task is not None and not task.done()]


class StallWatch:
    """Renews leases on behalf of workers that are held up, and has them replaced when it takes too long.

    A lease is the sign that a worker lives. Of a worker that is held up, its supervisor knows that. For a visibility
    timeout it renews all leases; from then on those of the deliveries that the worker runs, and the others are given
    back; after the stall timeout none.

    Renewals and replacements are tasks of its own: a look waits for no store.

    Attributes:
        saw_work: whether any worker has ever run its steps, which needs a store that accepts it.
    """

    def __init__(
        self,
        directory: Path,
        events: EventStore,
        visibility: float,
        timeout: float | None = DEFAULT_TIMEOUT,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read boards in `directory`; `visibility` and `timeout` are in seconds; `None`: no worker is replaced."""
        self._directory = directory
        self._events = events
        self._visibility = visibility
        self._replaces = timeout is not None
        self.limit = DEFAULT_TIMEOUT if timeout is None else timeout
        self._every = min(0.25, max(0.02, visibility / 12))
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self.saw_work = False
        self._looked = clock()

    async def run(self, workers: Sequence[WorkerProcess], replace: Replace) -> None:
        """Watch until cancelled; `replace(worker, its open calls, seconds)` is called for each that stalls too long."""
        try:
            while True:
                await asyncio.sleep(self._every)
                await self.look(workers, replace)
        finally:
            await end(*(task for watched in self._watched.values() for task in watched.open_tasks))

    async def look(self, workers: Sequence[WorkerProcess], replace: Replace) -> None:
        """Look at all workers once."""
        living = [worker for worker in workers if worker.alive]
        paths = [board_path(self._directory, worker.name) for worker in living]
        beats = await asyncio.to_thread(lambda: [read_beat(path) for path in paths])
        self.saw_work = self.saw_work or any(beats)
        now = self._clock()
        # Where this process stood still, the workers may have stood still with it: no stall is as long as that.
        passed = now - self._looked
        self._looked, passed = now, passed if passed <= 2.0 + 4 * self._every else self._every
        self._forget_all_but({worker.name for worker in living})
        for worker, beat in zip(living, beats, strict=True):
            watched = self._watched.get(worker.name)
            if watched is None:
                watched = self._watched[worker.name] = _Watched(beat)
            elif watched.beat != beat or not beat:
                watched.turned(beat)
            else:
                watched.stalled += passed
            worker.stalled, worker.stall_limit = watched.stalled, self.limit
            worker.is_stalled = watched.stalled >= self._visibility
            self._help(worker, watched, replace)

    def _forget_all_but(self, living: set[str]) -> None:
        for name in self._watched.keys() - living:
            if not self._watched[name].open_tasks:  # they are owned until they end
                del self._watched[name]
                remove_board(self._directory, name)

    def _help(self, worker: WorkerProcess, watched: _Watched, replace: Replace) -> None:
        """Begin what is due for a worker."""
        seconds = watched.stalled
        if watched.replacing is not None or seconds <= min(self._visibility / 4, self.limit):
            return
        if seconds >= self.limit:
            if watched.vouching is not None:
                watched.vouching.cancel()
            if self._replaces:
                watched.replacing = _start(self._replace(worker, replace, seconds), worker.name)
        elif self._is_due(watched) and not watched.open_tasks:
            watched.vouched = seconds
            watched.vouching = _start(self._vouch(worker.name, seconds), worker.name)

    def _is_due(self, watched: _Watched) -> bool:
        """Whether to renew leases: several times in each, and at once when what does not run is to be given back."""
        last, seconds = watched.vouched, watched.stalled
        return last is None or seconds - last >= self._visibility / _RENEWALS or last < self._visibility <= seconds

    async def _replace(self, worker: WorkerProcess, replace: Replace, seconds: float) -> None:
        board = await asyncio.to_thread(read_board, board_path(self._directory, worker.name))
        await replace(worker, board.calls, seconds)

    async def _vouch(self, name: str, seconds: float) -> None:
        board = await asyncio.to_thread(read_board, board_path(self._directory, name))
        running = None if seconds < self._visibility else _by_group(board.calls)
        try:
            async with asyncio.timeout(max(1.0, self._visibility / 3)):
                log = await self._events.log()
                count = await log.vouch(name, self._visibility, running, board.groups or None)
        except (StoreError, TimeoutError) as error:
            _logger.debug("worker %s is held up, and its leases could not be renewed: %r", name, error)
        else:
            if count:
                _logger.warning(
                    "worker %s: its event loop has not turned for %.1f s; %d deliveries that it had not begun were "
                    "given back",
                    name,
                    seconds,
                    count,
                )


def _start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    task = start_task(work, f"help for worker {name}")
    task.add_done_callback(_report_failure)
    return task


def _by_group(calls: Sequence[OpenCall]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for call in calls:
        found.setdefault(call.group, set()).add(call.name)
    return found


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("%s failed", task.get_name(), exc_info=error)
