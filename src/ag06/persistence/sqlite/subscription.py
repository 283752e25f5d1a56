"""`SqliteSubscription`: one step's end of a log in SQLite, in one worker."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence

import msgspec

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence.log import Delivery, Settlement
from ag06.persistence.measuring import COMMIT, FETCH, RELEASE, RENEW, START, settled_by
from ag06.persistence.outage import Outage
from ag06.persistence.sqlite import deliveries as table
from ag06.persistence.sqlite.appending import promote
from ag06.persistence.sqlite.claiming import Claim
from ag06.persistence.sqlite.clocks import note_visibility
from ag06.persistence.sqlite.settling import Settling
from ag06.persistence.sqlite.waiting import Waiter, Waiters
from ag06.persistence.sqlite.writer import Operation, Writer

_logger = logging.getLogger("ag06.persistence")
_LONGEST_BACKOFF = 2.0


class Claimed(msgspec.Struct, gc=False):
    """What one look for deliveries found.

    Attributes:
        deliveries: now held by this worker.
        type: what the group listens to; empty if the store does not know the group.
        due_ms: when something falls due by time alone, in milliseconds since the epoch.
        more: nothing may run of what was looked at, and there is more to look at.
    """

    deliveries: list[Delivery]
    type: str = ""
    due_ms: int | None = None
    more: bool = False


class SqliteSubscription:
    """Claims and settles through the log's writer. The lease is one row for each worker and group."""

    def __init__(
        self,
        writer: Writer,
        waiters: Waiters,
        group: str,
        worker: str,
        visibility: float,
        now_ms: Callable[[], int],
    ) -> None:
        """Made by `SqliteLog.subscribe`."""
        self._writer = writer
        self._waiters = waiters
        self._name = group
        self._worker = worker
        self._visibility_ms = int(visibility * 1000)
        self._now_ms = now_ms
        self._type = ""
        self._number = 0
        self._closed = False
        self._outage = Outage(f"step {group}")

    # Fetch

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        """Return deliveries; see the port."""
        if limit < 1 or self._closed:
            return []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        backoff = 0.05
        waiter = Waiter(self._type, self._has_news)
        self._waiters.add(waiter)
        try:
            while True:
                waiter.event.clear()
                waiter.due_ms = math.inf
                try:
                    claimed = await self._ask(limit)
                except StoreUnavailable as error:
                    self._outage.failed(error)
                    pause = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
                    backoff = min(backoff * 2, _LONGEST_BACKOFF)
                    claimed = Claimed([], self._type, self._now_ms() + int(pause * 1000))
                else:
                    self._outage.over()
                if self._closed:
                    return []
                if not claimed.type and self._type:
                    _logger.warning(
                        "step %s was removed from the store: it receives nothing until registered again", self._name
                    )
                self._type = waiter.type = claimed.type
                left = deadline - loop.time()
                if claimed.deliveries or left <= 0:
                    return claimed.deliveries
                if not claimed.more:
                    await self._news(waiter, left, claimed.due_ms)
        finally:
            self._waiters.remove(waiter)

    async def _ask(self, limit: int) -> Claimed:
        """Claim in the writer's thread; what a caller does not wait for is given back."""
        claiming = self._writer.submit(
            lambda connection: self._claim(connection, limit), durable=False, probe=self._idle, kind=FETCH
        )
        try:
            claimed = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(self._hand_back)
            raise
        FETCH.carried(len(claimed.deliveries))
        return claimed

    def _hand_back(self, claiming: asyncio.Future[Claimed]) -> None:
        if claiming.cancelled() or claiming.exception() is not None:
            return
        deliveries = claiming.result().deliveries
        if not deliveries:
            return

        def done(result: object, error: BaseException | None) -> None:
            self._waiters.wake({self._type})

        try:
            self._writer.put(
                Operation(lambda connection: self._release(connection, deliveries), done, durable=False, kind=RELEASE)
            )
        except StoreError as error:
            _logger.warning(
                "step %s: %d deliveries wait for their lease to end: %s", self._name, len(deliveries), error
            )

    async def _news(self, waiter: Waiter, left: float, due_ms: int | None) -> None:
        """Wait until something happens, something falls due, or no time is left (seconds)."""
        if due_ms is not None:
            waiter.due_ms = due_ms
            left = min(left, max(0.001, (due_ms - self._now_ms()) / 1000))
        try:
            async with asyncio.timeout(left):
                await waiter.event.wait()
        except TimeoutError:
            return

    def _has_news(self, connection: sqlite3.Connection, before_ms: float) -> bool:
        """Return whether a fetch that looks again at `before_ms` must do so earlier; reads only."""
        idle = self._idle(connection)
        return idle is None or (idle.due_ms is not None and idle.due_ms < before_ms)

    def _idle(self, connection: sqlite3.Connection) -> Claimed | None:
        """Return the answer to a claim if there is nothing to claim; reads only."""
        group = table.load_group(connection, self._name)
        if group is None:
            return Claimed([])
        if table.has_work(connection, group, self._now_ms(), self._visibility_ms):
            return None
        return Claimed([], group.type_name, table.next_due_ms(connection, group.id))

    def _claim(self, connection: sqlite3.Connection, limit: int) -> Claimed:
        now_ms = self._now_ms()
        types = promote(connection, now_ms)
        if types:
            # Woken before the commit, they look behind it: their claims queue after this transaction.
            self._waiters.wake(types)
        group = table.load_group(connection, self._name)
        if group is None or self._closed:
            return Claimed([])
        until_ms = now_ms + self._visibility_ms
        # Who claims is alive: its own lease, unless another worker ended it, goes on. One that a former process of the
        # same name left behind ends in time.
        table.extend(connection, self._number, self._worker, until_ms)
        table.expire(connection, group.id, now_ms, self._visibility_ms)
        number = table.worker_row(connection, group.id, self._worker, until_ms)
        if number != self._number:
            note_visibility(connection, number, self._visibility_ms)
            self._number = number
        claim = Claim(connection, group, number, limit)
        deliveries = claim.run()
        return Claimed(deliveries, group.type_name, table.next_due_ms(connection, group.id), claim.more)

    # Settle

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; see the port."""
        if not settlements:
            return []

        def work(connection: sqlite3.Connection) -> tuple[list[bool], set[str], bool]:
            group = table.load_group(connection, self._name)
            if group is None:
                return [False] * len(settlements), set(), False
            number = table.worker_number(connection, group.id, self._worker)
            settling = Settling(connection, group, self._name, number, self._now_ms())
            kept, types = settling.run(settlements)
            return kept, types, settling.released

        kept, types, released = await self._writer.submit(
            work, weight=len(settlements), kind=COMMIT, events=settled_by(settlements)
        )
        if released:
            types = types | {self._type}
        if types:
            self._waiters.wake(types)
        return kept

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        """Note that these run now; see the port."""

        def work(connection: sqlite3.Connection) -> None:
            group = table.load_group(connection, self._name)
            if group is not None:
                number = table.worker_number(connection, group.id, self._worker)
                table.mark_started(connection, group.id, number, deliveries)

        # Not synced: it tells of the death of a process, and a power cut is not the event's fault.
        await self._writer.submit(work, durable=False, kind=START)

    async def survived(self, deliveries: Sequence[Delivery], attempts: int = 1) -> None:
        """Take back what was charged for this worker; see the port."""

        def work(connection: sqlite3.Connection) -> None:
            group = table.load_group(connection, self._name)
            if group is not None:
                table.absolve(connection, group.id, deliveries, attempts)

        await self._writer.submit(work, durable=False)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back; see the port."""
        if deliveries:
            await self._writer.submit(
                lambda connection: self._release(connection, deliveries), durable=False, kind=RELEASE
            )
            self._waiters.wake({self._type})

    def _release(self, connection: sqlite3.Connection, deliveries: Sequence[Delivery]) -> None:
        group = table.load_group(connection, self._name)
        if group is not None:
            table.release(connection, group.id, table.worker_number(connection, group.id, self._worker), deliveries)

    async def close(self) -> None:
        """Give everything back; see the port."""
        self._closed = True

        def work(connection: sqlite3.Connection) -> None:
            group = table.load_group(connection, self._name)
            if group is not None:
                table.leave(connection, group.id, table.worker_number(connection, group.id, self._worker))

        await self._writer.submit(work, durable=False)
        self._waiters.wake({self._type})

    def renew(self) -> None:
        """Extend the lease; see the port."""
        answered = threading.Event()
        failures: list[BaseException] = []

        def work(connection: sqlite3.Connection) -> None:
            # By its number: a lease that it lost, or one of another process of its name, is not its own to renew.
            table.extend(connection, self._number, self._worker, self._now_ms() + self._visibility_ms)

        def done(result: object, error: BaseException | None) -> None:
            if error is not None:
                failures.append(error)
            answered.set()

        self._writer.put(Operation(work, done, durable=False, threaded=True, kind=RENEW))
        if not answered.wait(self._visibility_ms / 1000):
            raise StoreError(f"step {self._name!r}: its lease was not renewed in time, the database is busy")
        if failures:
            raise failures[0]
