"""What stands for the threads of a worker: of that which renews leases a timer of the loop, in its process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ag06.errors import AG06Error
from ag06.persistence.log import Subscription
from ag06.runtime.renewals import Renewals


class LeaseTimer:
    """Renews every subscription three times in a visibility timeout, as `LeaseKeeper` does."""

    def __init__(self, subscriptions: Sequence[Subscription], visibility: float, heartbeat: object = None) -> None:
        """See `LeaseKeeper`."""
        self._subscriptions = subscriptions
        self._interval = visibility / 3
        self.renewals = Renewals(visibility)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            for subscription in self._subscriptions:
                try:
                    subscription.renew()
                except AG06Error:
                    continue  # the thread says so in the log, and goes on

    def stop(self) -> None:
        """Renew no more."""
        if self._task is not None:
            self._task.cancel()

    def join(self, timeout: float) -> None:
        """There is no thread to wait for."""


class NoWatch:
    """Stands for `LoopWatch`: a loop of virtual time is never late."""

    def __init__(self, on_lag: object) -> None:
        """Watch nothing."""

    def start(self) -> None:
        """There is nothing to start."""

    def stop(self) -> None:
        """There is nothing to stop."""

    last_stall = None
    lag = 0.0
