"""Quarantine: the concurrency of deliveries that were taken over from a worker that died or lost its lease."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ag06.persistence.log import Delivery
from ag06.retry import Retry
from ag06.runtime.verdict import killed_workers

PATIENCE = 2.0
"""Seconds for which a delivery that must run alone keeps others of its kind from starting."""


class Quarantine:
    """The turn of deliveries that must run alone, over all steps of one process.

    A delivery that hangs gives up its turn after `patience` seconds: it still runs, and the next one starts beside it.
    """

    def __init__(self, patience: float | None = None) -> None:
        """Let the first one start; `patience` in seconds is `PATIENCE` unless given."""
        self._patience = PATIENCE if patience is None else patience
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait for the turn; give it up on leaving or after `patience` seconds, whichever is first."""
        await self._lock.acquire()
        held = True

        def give_up() -> None:
            nonlocal held
            if held:
                held = False
                self._lock.release()

        timer = asyncio.get_running_loop().call_later(self._patience, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()


def must_run_alone(delivery: Delivery, retry: Retry) -> bool:
    """Return whether a death of this worker must be charged to this delivery and to no other.

    That is so once a noted death was charged to it, and if one more would make it a dead letter. The others run
    together: if one of them kills the worker, all that were started are charged and run alone from then on.
    """
    killed = killed_workers(delivery, retry)
    return killed < retry.attempts and (delivery.deaths > 0 or killed + 1 >= retry.attempts)
