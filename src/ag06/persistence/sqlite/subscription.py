"""`SqliteSubscription`: one step's end of a log in SQLite, in one worker."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence

from ag06.errors import ConfigurationError, StoreError
from ag06.persistence.log import Delivery, Settlement
from ag06.persistence.sqlite.appending import Appender
from ag06.persistence.sqlite.deliveries import (
    Claim,
    GroupRow,
    Settling,
    expire,
    has_work,
    load_group,
    next_due_ms,
    release,
    worker_row,
)
from ag06.persistence.sqlite.waiting import Waiters
from ag06.persistence.sqlite.writer import Operation, Writer

_Claimed = tuple[list[Delivery], int | None, str]
"""The deliveries, when something falls due by time (milliseconds since the epoch), and the group's type."""


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
        self._type: str | None = None

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        """Return deliveries; see the port."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            arrived = asyncio.Event()
            self._waiters.add(arrived, self._type)
            try:
                deliveries, due_ms, self._type = await self._writer.submit(
                    lambda connection: self._claim(connection, limit), durable=False, probe=self._idle
                )
                left = deadline - loop.time()
                if deliveries or left <= 0:
                    return deliveries
                if due_ms is not None:
                    left = min(left, max(0.001, (due_ms - self._now_ms()) / 1000))
                async with asyncio.timeout(left):
                    await arrived.wait()
            except TimeoutError:
                continue
            finally:
                self._waiters.remove(arrived)

    def _idle(self, connection: sqlite3.Connection) -> _Claimed | None:
        """Return what a claim that finds nothing would, or `None` if it might find something."""
        group = load_group(connection, self._name)
        if group is None or has_work(connection, group, self._now_ms()):
            return None
        return [], next_due_ms(connection, group.id), self._type_name(connection, group)

    def _type_name(self, connection: sqlite3.Connection, group: GroupRow) -> str:
        if self._type is None:
            (self._type,) = connection.execute("SELECT name FROM types WHERE id = ?", (group.type,)).fetchone()
        return self._type or ""

    def _claim(self, connection: sqlite3.Connection, limit: int) -> _Claimed:
        now_ms = self._now_ms()
        appender = Appender(connection, now_ms)
        appender.promote()
        types = appender.finish()
        group = self._group(connection)
        expire(connection, group.id, now_ms)
        worker = worker_row(connection, group.id, self._worker, now_ms + self._visibility_ms)
        claim = Claim(connection, group, worker, limit)
        deliveries = claim.run()
        while not deliveries and claim.moved:  # everything read was blocked: look further
            claim = Claim(connection, group, worker, limit)
            deliveries = claim.run()
        if types:
            self._waiters.wake(types)
        return deliveries, next_due_ms(connection, group.id), self._type_name(connection, group)

    def _group(self, connection: sqlite3.Connection) -> GroupRow:
        group = load_group(connection, self._name)
        if group is None:
            raise ConfigurationError(
                f"step {self._name!r} is not known to the store: it was removed while it ran; restart the worker"
            )
        return group

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; see the port."""
        if not settlements:
            return []

        def work(connection: sqlite3.Connection) -> tuple[list[bool], set[str], bool]:
            group = load_group(connection, self._name)
            if group is None:
                return [False] * len(settlements), set(), False
            settling = Settling(connection, group, self._name, self._number(connection, group.id), self._now_ms())
            kept, types = settling.run(settlements)
            return kept, types, settling.released

        kept, types, released = await self._writer.submit(work)
        if released:
            types = types | {self._type or ""}
        if types:
            self._waiters.wake(types)
        return kept

    def _number(self, connection: sqlite3.Connection, group_id: int) -> int:
        row = connection.execute(
            "SELECT id FROM workers WHERE grp = ? AND name = ?", (group_id, self._worker)
        ).fetchone()
        return 0 if row is None else int(row[0])

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        """Note that these run now; see the port."""

        def work(connection: sqlite3.Connection) -> None:
            group = self._group(connection)
            number = self._number(connection, group.id)
            connection.executemany(
                "UPDATE deliveries SET started = 1 WHERE grp = ? AND seq = ? AND state = 0 AND worker = ?",
                [(group.id, delivery.token[0], number) for delivery in deliveries],
            )

        await self._writer.submit(work)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back; see the port."""
        if deliveries:
            await self._give_back(deliveries)

    async def close(self) -> None:
        """Give everything back; see the port."""
        await self._give_back(None)

    async def _give_back(self, deliveries: Sequence[Delivery] | None) -> None:
        def work(connection: sqlite3.Connection) -> None:
            group = load_group(connection, self._name)
            if group is not None:
                number = self._number(connection, group.id)
                release(connection, group.id, number, deliveries)
                if deliveries is None:
                    connection.execute("DELETE FROM workers WHERE id = ?", (number,))

        await self._writer.submit(work, durable=False)
        self._waiters.wake(None if self._type is None else {self._type})

    def renew(self) -> None:
        """Extend the lease; see the port."""
        answered = threading.Event()
        failures: list[BaseException] = []

        def work(connection: sqlite3.Connection) -> None:
            # Only a lease that is still there: a worker that lost it must not get it back without a fetch.
            connection.execute(
                "UPDATE workers SET expires = ? WHERE name = ? AND grp = (SELECT id FROM groups WHERE name = ?)",
                (self._now_ms() + self._visibility_ms, self._worker, self._name),
            )

        def done(result: object, error: BaseException | None) -> None:
            if error is not None:
                failures.append(error)
            answered.set()

        self._writer.put(Operation(work, done, durable=False))
        if not answered.wait(self._visibility_ms / 1000):
            raise StoreError(f"step {self._name!r}: its lease was not renewed in time, the database is busy")
        if failures:
            raise failures[0]
