"""An event loop in virtual time: it never waits, and a seed decides the order that asyncio leaves open."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from .process import PROCESS


class SimulationStuck(Exception):  # noqa: N818 - reads as what happened
    """Nothing can ever happen again, or there is no end of what happens."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks one after the other; when none is ready, time jumps to the next timer.

    Callbacks that are ready at the same moment run in the order they came in, or, with `shuffle`, in any: each belongs
    to another task or future, and no order among those is promised. What a paused process has to do waits until it goes
    on; what a dead one has to do never happens: no cleanup runs, as after a SIGKILL.
    """

    def __init__(self, rng: random.Random, *, shuffle: bool, most_callbacks: int) -> None:
        """Draw from `rng`; give up after `most_callbacks`."""
        super().__init__()
        self._now = 0.0
        self._rng = rng
        self._shuffle = shuffle
        self._left = most_callbacks
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def _new_task(self, loop: asyncio.AbstractEventLoop, work: Any, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
        self.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call `func` in this thread, a moment later: there are no others."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._rng.uniform(0.0, 0.005), run)
        return future

    def forget(self) -> None:
        """Let go of every task that did not end, without a word: their processes died, or the simulation is over."""
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            if not task.done():
                task._log_destroy_pending = False
                try:
                    task.get_coro().close()
                except (RuntimeError, ValueError):  # it awaits in its cleanup
                    continue

    def _write_to_self(self) -> None:
        """Nobody is to be woken: there is one thread."""

    def _process_events(self, event_list: Any) -> None:
        """There are no files to watch."""

    def _run_once(self) -> None:
        timers, ready = self._scheduled, self._ready
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready:
            if not timers:
                raise SimulationStuck("nothing is ready and no timer is set: everybody waits for somebody")
            self._now = max(self._now, timers[0]._when)
        while timers and timers[0]._when <= self._now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        batch = list(ready)
        ready.clear()
        self._left -= len(batch)
        if self._left < 0:
            raise SimulationStuck(f"no rest after {self._now:.0f} s of virtual time: somebody goes round in circles")
        if self._shuffle and len(batch) > 1:
            self._rng.shuffle(batch)
        for handle in batch:
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is None or process.may_run(handle):
                handle._run()

    def take_back(self, handles: deque[Any]) -> None:
        """Make ready what waited for a paused process."""
        self._ready.extend(handle for handle in handles if not handle._cancelled)
