"""Settles deliveries in the store, many at a time: whatever gathers while one commit runs goes into the next.

A commit may also wait for company, which costs latency and saves commits: group commit, as in DeWitt et al.,
"Implementation techniques for main memory database systems" (SIGMOD 1984).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ag06.errors import StoreError, Unstorable
from ag06.knob import Knob
from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Settlement, Subscription, deliveries_of
from ag06.persistence.outage import Outage
from ag06.runtime.verdict import bury

_logger = logging.getLogger("ag06.runtime")
_LARGEST = 500
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 5.0
_REPAIRED_MS = 60_000

T = TypeVar("T")
R = TypeVar("R")
Settled = Callable[[Sequence[Settlement], Sequence[bool]], None]
"""Told of each commit what was settled, and whether the store accepted it."""
GiveUp = Callable[[Acknowledge | Bury, Unstorable], list[Settlement]]


class Committer:
    """Commits the settlements of one step, in the order they came.

    It never gives up on a store that is away: a settlement may be repeated, because each is one atomic operation that
    the store accepts once. The queue is bounded by the deliveries a worker holds.
    """

    def __init__(
        self,
        step: str,
        subscription: Subscription,
        settled: Settled,
        *,
        wait: Knob,
        held: Callable[[], int],
        give_up: GiveUp | None = None,
    ) -> None:
        """Commit for `step` to `subscription`; call `settled` once it is known what became of a commit.

        A commit waits for company as long as `wait` says, in seconds; not if all deliveries that are `held` have come.
        `give_up` returns what to settle instead of what is unstorable; a postponement has no substitute.
        """
        self._subscription = subscription
        self._settled = settled
        self._wait = wait
        self._held = held
        self._give_up = give_up or instead_of
        self._joining: asyncio.Future[None] | None = None
        self._come = 0  # deliveries in the queue, while a commit waits for company
        self._hurried = False
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
        if self._joining is not None:
            self._come += len(deliveries_of(settlement))
            self._depart()

    async def drained(self) -> None:
        """Wait until everything queued is committed; from now on no commit waits for company."""
        self._hurried = True
        self._depart()
        await self._idle.wait()

    async def run(self) -> None:
        """Commit until cancelled."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            if self._queue:
                since = began  # nobody has waited longer
            else:
                await self._arrived.wait()
                since = clock()
            if self._wait.value:
                await self._company(since)
                began = clock()
            batch, self._queue = self._queue[:_LARGEST], self._queue[_LARGEST:]
            accepted, is_first = await self._commit(batch)
            if is_first and not all(accepted):
                await self._report_survival(batch, accepted)
            left = _left_of(batch, accepted)
            if left:
                await self._insist(self._subscription.release, left)
            self._settled(batch, accepted)
            if not self._queue:
                self._arrived.clear()
                self._idle.set()

    async def _commit(self, batch: list[Settlement]) -> tuple[list[bool], bool]:
        """Return the answers, and whether first calls brought them; what is unstorable is replaced in `batch`.

        A postponement that is refused too is an outage: nothing else is left to settle, so it is repeated.
        """
        accepted: list[bool] = []
        are_first = True
        wait = _FIRST_WAIT
        while len(accepted) < len(batch):
            try:
                answers, is_first = await self._insist(self._subscription.commit, batch[len(accepted) :])
                accepted += answers
                are_first = are_first and is_first
            except Unstorable as error:
                accepted += error.accepted
                at = len(accepted)
                refused = batch[at]
                if isinstance(refused, Postpone):
                    self._outage.failed(error)
                    are_first = False
                    wait = await _back_off(wait)
                else:
                    batch[at : at + 1] = self._give_up(refused, error)
        return accepted, are_first

    async def _company(self, since: float) -> None:
        """Wait for others to join what has waited since then (loop time)."""
        self._joining = asyncio.get_running_loop().create_future()
        self._come = sum(len(deliveries_of(settlement)) for settlement in self._queue)
        try:
            self._depart()
            async with asyncio.timeout_at(since + self._wait.value):
                await self._joining
        except TimeoutError:
            pass
        finally:
            self._joining = None

    def _depart(self) -> None:
        """End the wait for company if nobody can join, or nobody is to be waited for."""
        joining = self._joining
        if joining is None or joining.done():
            return
        if self._hurried or len(self._queue) >= _LARGEST or self._come >= self._held():
            joining.set_result(None)

    async def _report_survival(self, batch: Sequence[Settlement], accepted: Sequence[bool]) -> None:
        """Take back the deaths that were charged for this worker: it lost its leases, and lives."""
        refused = [settlement for settlement, kept in zip(batch, accepted, strict=True) if not kept]
        try:
            await self._subscription.survived([each for settlement in refused for each in deliveries_of(settlement)])
        except StoreError as error:
            _logger.debug("it is not known whether the store took back deaths of this worker: %s", error)

    async def _insist(self, call: Callable[[T], Awaitable[R]], what: T) -> tuple[R, bool]:
        """Call the store until it answers; return the answer, and whether the first call brought it."""
        wait = _FIRST_WAIT
        is_first = True
        while True:
            try:
                answer = await call(what)
            except Unstorable:
                raise
            except StoreError as error:
                self._outage.failed(error)
                is_first = False
            else:
                self._outage.over()
                return answer, is_first
            wait = await _back_off(wait)


async def _back_off(wait: float) -> float:
    """Sleep up to `wait` seconds; return how long to wait the next time."""
    await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
    return min(wait * 2, _LONGEST_WAIT)


def instead_of(settlement: Acknowledge | Bury, error: Unstorable) -> list[Settlement]:
    """Return what to settle in place of what the store refuses however often it is repeated: dead letters.

    If a dead letter is refused too, its delivery waits until somebody raises the store's limit or repairs a key.
    """
    if isinstance(settlement, Bury):
        delivery = settlement.delivery
        return [Postpone(delivery, _REPAIRED_MS, delivery.attempts, delivery.first_failed_ms)]
    return [bury(delivery, error, "failed", int(time.time() * 1000)) for delivery in deliveries_of(settlement)]


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
