"""Settles deliveries in the store, many at a time: whatever gathers while one commit runs goes into the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ag06.errors import StoreError
from ag06.persistence.log import Acknowledge, Delivery, Settlement, Subscription
from ag06.persistence.outage import Outage

_LARGEST = 500
_LONGEST_WAIT = 5.0

T = TypeVar("T")
R = TypeVar("R")
Settled = Callable[[Sequence[Settlement], Sequence[bool]], None]
"""Told of each commit what was settled, and whether the store accepted it."""


class Committer:
    """Commits the settlements of one step, in the order they came.

    It never gives up on a store that is away: a settlement may be repeated, because each is one atomic operation that
    the store accepts once. The queue is bounded by the deliveries a worker holds.
    """

    def __init__(self, step: str, subscription: Subscription, settled: Settled) -> None:
        """Commit for `step` to `subscription`; call `settled` once it is known what became of a commit."""
        self._subscription = subscription
        self._settled = settled
        self._outage = Outage(f"commit of step {step}")
        self._queue: list[Settlement] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, settlement: Settlement) -> None:
        """Queue a settlement for the next commit."""
        self._queue.append(settlement)
        self._idle.clear()
        self._arrived.set()

    async def drained(self) -> None:
        """Wait until everything queued is committed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            await self._arrived.wait()
            batch, self._queue = self._queue[:_LARGEST], self._queue[_LARGEST:]
            accepted = await self._insist(self._subscription.commit, batch)
            left = _left_of(batch, accepted)
            if left:
                await self._insist(self._subscription.release, left)
            self._settled(batch, accepted)
            if not self._queue:
                self._arrived.clear()
                self._idle.set()

    async def _insist(self, call: Callable[[T], Awaitable[R]], what: T) -> R:
        """Call the store until it answers."""
        wait = 0.05
        while True:
            try:
                answer = await call(what)
            except StoreError as error:
                self._outage.failed(error)
            else:
                self._outage.over()
                return answer
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 2, _LONGEST_WAIT)


def _left_of(batch: list[Settlement], accepted: list[bool]) -> list[Delivery]:
    """Return what this worker may still hold of refused settlements.

    One delivery that was taken over is enough to refuse a settlement of many; the leases of the others would be renewed
    for as long as the worker lives.
    """
    left: list[Delivery] = []
    for settlement, kept in zip(batch, accepted, strict=True):
        if not kept and isinstance(settlement, Acknowledge) and len(settlement.deliveries) > 1:
            left += settlement.deliveries
    return left
