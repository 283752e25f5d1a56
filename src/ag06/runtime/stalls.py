"""Stalls: workers whose process lives and whose event loop does not turn, as their supervisor sees them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ag06.errors import StoreError
from ag06.persistence.event_store import EventStore
from ag06.runtime.call_board import OpenCall, board_path, read_beat, read_calls, remove_board

if TYPE_CHECKING:
    from ag06.runtime.supervisor import WorkerProcess

_logger = logging.getLogger("ag06.runtime")
DEFAULT_TIMEOUT = 60.0
"""Seconds without a turn of its loop after which a worker is replaced, unless set; leases are renewed no longer."""

Replace = Callable[["WorkerProcess", Sequence[OpenCall], float], Awaitable[None]]


class _Seen(msgspec.Struct):
    """The last beat of a worker, and since when (own clock) it has been the last."""

    beat: float
    since: float


class StallWatch:
    """Renews leases on behalf of workers that are held up, and has them replaced when it takes too long.

    A lease is the sign that a worker lives. Of a worker that is held up, its supervisor knows that. For a visibility
    timeout it renews all leases; from then on those of the deliveries that the worker runs, and the others are given
    back; after the stall timeout none.
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
        self._seen: dict[str, _Seen] = {}
        self._looked = clock()

    async def run(self, workers: Sequence[WorkerProcess], replace: Replace) -> None:
        """Watch until cancelled; `replace(worker, its open calls, seconds)` is called for each that stalls too long."""
        while True:
            await asyncio.sleep(self._every)
            await self.look(workers, replace)

    async def look(self, workers: Sequence[WorkerProcess], replace: Replace) -> None:
        """Look at all workers once."""
        living = [worker for worker in workers if worker.alive]
        paths = [board_path(self._directory, worker.name) for worker in living]
        beats = await asyncio.to_thread(lambda: [read_beat(path) for path in paths])
        now = self._clock()
        stood_still, self._looked = now - self._looked > 2.0 + 4 * self._every, now
        for name in self._seen.keys() - {worker.name for worker in living}:
            del self._seen[name]
            remove_board(self._directory, name)
        helped = []
        for worker, beat in zip(living, beats, strict=True):
            seen = self._seen.get(worker.name)
            if seen is None or seen.beat != beat or stood_still:  # where this process stood still, the others did too
                self._seen[worker.name] = _Seen(beat, now)
                worker.stalled, worker.is_stalled, worker.stall_limit = 0.0, False, self.limit
                continue
            worker.stalled = now - seen.since if beat else 0.0
            worker.is_stalled = worker.stalled >= self._visibility
            if worker.stalled > min(self._visibility / 4, self.limit):
                helped.append(self._help(worker, replace))
        await asyncio.gather(*helped)

    async def _help(self, worker: WorkerProcess, replace: Replace) -> None:
        seconds = worker.stalled
        calls: list[OpenCall] = []
        if seconds >= min(self._visibility, self.limit):
            calls = await asyncio.to_thread(read_calls, board_path(self._directory, worker.name))
        if seconds < self.limit:
            await self._vouch(worker.name, None if seconds < self._visibility else _by_group(calls))
        elif self._replaces:
            await replace(worker, calls, seconds)

    async def _vouch(self, name: str, running: Mapping[str, Collection[str]] | None) -> None:
        try:
            async with asyncio.timeout(max(1.0, self._visibility / 3)):
                log = await self._events.log()
                count = await log.vouch(name, self._visibility, running)
        except (StoreError, TimeoutError) as error:
            _logger.debug("worker %s is held up, and its leases could not be renewed: %r", name, error)
        else:
            if count:
                _logger.warning(
                    "worker %s: its event loop has not turned for %.1f s; %d deliveries that it had not begun were "
                    "given back",
                    name,
                    self._visibility,
                    count,
                )


def _by_group(calls: Sequence[OpenCall]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for call in calls:
        found.setdefault(call.group, set()).add(call.name)
    return found
