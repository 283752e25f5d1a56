"""The time that a shutdown leaves to work in flight; cancellations cut it short."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from ag06.tasks import end, start_task

T = TypeVar("T")

_logger = logging.getLogger("ag06.runtime")
_SHORT = 1.0
"""Seconds that are left after the first cancellation; none after the second."""
_FAREWELL = 1.0
"""Seconds that a cancelled task may take to end."""


class Grace:
    """A deadline in the running loop. It may be hurried before it begins, too."""

    def __init__(self, seconds: float) -> None:
        """Leave `seconds` from `begin` on."""
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._deadline = float("inf")
        self._hurries = 0
        self._hurried: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        """Start the clock."""
        self._deadline = min(self._deadline, self._clock() + self._seconds)

    def hurry(self) -> None:
        """Leave one second at most, when called again none."""
        self._hurries += 1
        self._deadline = min(self._deadline, self._clock() + (_SHORT if self._hurries == 1 else 0.0))
        hurried, self._hurried = self._hurried, asyncio.get_running_loop().create_future()
        hurried.set_result(None)

    async def wait(self, tasks: Sequence[asyncio.Future[Any]], extra: float = 0.0) -> list[asyncio.Future[Any]]:
        """Wait for tasks until the deadline, and for `extra` seconds more; return those that have not ended.

        After the deadline it waits `extra` seconds. Of a long `extra` one second is left after the second cancellation.
        """
        if tasks:
            since = self._clock()
            ended = start_task(asyncio.wait(tasks))
            try:
                while not ended.done() and (left := self._left(since, extra)) > 0:
                    await asyncio.wait((ended, self._hurried), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
        return [task for task in tasks if not task.done()]

    def _left(self, since: float, extra: float) -> float:
        """Return the seconds that a wait has left which began at `since`, loop time."""
        extra = extra if self._hurries < 2 else min(extra, _FAREWELL)
        return max(self._deadline, since) + extra - self._clock()

    async def run(self, work: Coroutine[Any, Any, T], extra: float = 1.0) -> T:
        """Return the result of some work; raise `TimeoutError` if it lasts longer than `extra` after the deadline."""
        task = start_task(work)
        try:
            late = await self.wait([task], extra)
        except asyncio.CancelledError:
            await end(task)
            raise
        if late:
            await cancel([task])
            raise TimeoutError("it did not end in time")
        return task.result()


async def cancel(tasks: Sequence[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks and wait for their end; one that ignores that is cancelled again, and then left behind.

    Their exceptions stay in them.
    """
    live = {task for task in tasks if task is not None and not task.done()}
    for _ in range(2):
        for task in live:
            task.cancel()
        if live:
            _, live = await asyncio.wait(live, timeout=_FAREWELL)
    for task in live:
        _logger.warning("%s does not end although it was cancelled; it is left behind", task.get_name())
