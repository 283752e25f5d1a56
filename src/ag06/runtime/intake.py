"""Deliveries between the store and the calls: ordered by dispatch key, handed to whoever is free."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable

from ag06.persistence.log import Delivery


class Intake:
    """A priority queue of deliveries in one event loop; bounded by who fills it (`Prefetch`)."""

    def __init__(self) -> None:
        """Start empty and open."""
        self._heap: list[tuple[int, int, Delivery]] = []
        self._count = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.closed = False

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Add deliveries and wake as many waiters."""
        for delivery in deliveries:
            self._count += 1
            heapq.heappush(self._heap, (delivery.key, self._count, delivery))
            self._wake()

    def take(self) -> Delivery | None:
        """Return the delivery that is to be dispatched first, if there is one."""
        return heapq.heappop(self._heap)[2] if self._heap else None

    async def get(self) -> Delivery | None:
        """Return the first delivery, waiting for one; `None` once closed."""
        while not self.closed:
            delivery = self.take()
            if delivery is not None:
                return delivery
            await self.wait()
        return None

    async def wait(self) -> None:
        """Wait until there may be a delivery, or until closed or told to look again."""
        if self._heap or self.closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and self._heap:
                self._wake()  # pass the wake-up on: the delivery is still there
            raise

    def close(self) -> list[Delivery]:
        """Hand out nothing any more; return what was waiting."""
        self.closed = True
        left = self.clear()
        self.wake_all()
        return left

    def clear(self) -> list[Delivery]:
        """Remove and return what is waiting."""
        left = [entry[2] for entry in self._heap]
        self._heap.clear()
        return left

    def wake_all(self) -> None:
        """End every wait: what it depends on beside the deliveries has changed."""
        while self._waiters:
            self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Prefetch:
    """How many deliveries a worker holds at once: enough for some time of work, within bounds.

    Too few and a fast step waits for the store; too many and a slow step keeps work from other workers.

    Attributes:
        floor: what runs at once, which it holds at least.
        seconds: of work at the present rate, which it holds besides.
    """

    def __init__(self, floor: int, ceiling: int, seconds: float = 0.1) -> None:
        """Hold at least `floor` and, unless that is more, at most `ceiling` deliveries."""
        self.floor = floor
        self.seconds = seconds
        self._ceiling = ceiling
        self._rate = 0.0
        self._settled = 0
        self._since: float | None = None

    @property
    def target(self) -> int:
        """How many deliveries to hold now."""
        return min(max(self._ceiling, self.floor), self.floor + int(self._rate * self.seconds))

    def settled(self, count: int, now: float) -> None:
        """Count `count` settled deliveries at `now` (seconds, monotonic)."""
        if self._since is None:
            self._since = now
        self._settled += count
        elapsed = now - self._since
        if elapsed >= 0.02:
            self._rate += 0.5 * (self._settled / elapsed - self._rate)
            self._settled, self._since = 0, now
