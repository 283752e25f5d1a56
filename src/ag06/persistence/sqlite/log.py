"""`SqliteLog`: the log in one file, for one machine, with no server."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ag06.errors import ConfigurationError, StoreError, StoreUnavailable
from ag06.persistence.log import (
    Appended,
    Durability,
    GroupInfo,
    LogOptions,
    LogStats,
    Query,
    Record,
    StepSpec,
    Stored,
    StoredDeadLetter,
)
from ag06.persistence.sqlite import keeping, reading
from ag06.persistence.sqlite.appending import Appender, Call, append_calls
from ag06.persistence.sqlite.deliveries import take_over_worker
from ag06.persistence.sqlite.schema import connect, prepare
from ag06.persistence.sqlite.subscription import SqliteSubscription
from ag06.persistence.sqlite.waiting import ChangeWatcher, Waiters, hold, let_go
from ag06.persistence.sqlite.writer import Operation, Writer

R = TypeVar("R")
_LARGEST_APPEND = 2000
_CHAIN_SLICE_START = (-1, "")


class SqliteLog:
    """The port over SQLite in WAL mode, one writer thread with group commit; any number of processes share the file."""

    def __init__(self, path: str, options: LogOptions, clock: Callable[[], float] = time.time) -> None:
        """Take the file's path; `clock` gives seconds since the epoch."""
        if options.durability == "replicated":
            raise ConfigurationError(
                f"store {path}: SQLite keeps one copy and cannot give durability='replicated'; use redis://"
            )
        self.path = os.path.realpath(path)
        self._options = options
        self._clock = clock
        self._durable = options.durability in (None, "fsync")
        self._writer: Writer | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._watcher: ChangeWatcher | None = None
        self.waiters = Waiters()
        self._calls: list[tuple[Call, asyncio.Future[list[Appended]]]] = []
        self._maintained = 0
        self._chains = _CHAIN_SLICE_START

    # Lifetime

    async def open(self) -> None:
        """Make the file if it is missing; start the threads."""
        await asyncio.to_thread(prepare, self.path, self._options.timeout)
        self._connection = await asyncio.to_thread(connect, self.path)
        self._reader = ThreadPoolExecutor(1, "ag06-sqlite-read")
        self._writer = Writer(self.path, self._options.timeout, self._durable)
        self._writer.start()
        self.waiters = hold(self.path)
        self._watcher = ChangeWatcher(self.path, self.waiters)
        self._watcher.start()

    async def close(self) -> None:
        """Finish what was accepted and end the threads."""
        writer, watcher, reader, connection = self._writer, self._watcher, self._reader, self._connection
        if writer is None or watcher is None or reader is None or connection is None:
            return
        self._flush()
        self._writer = self._watcher = self._reader = self._connection = None
        let_go(self.path)
        watcher.stop()
        writer.finish()
        await asyncio.to_thread(writer.join)
        await asyncio.to_thread(watcher.join)
        await asyncio.get_running_loop().run_in_executor(reader, connection.close)
        reader.shutdown(wait=False)

    @property
    def writer(self) -> Writer:
        """The writer thread; raises when the log is closed."""
        if self._writer is None:
            raise StoreError(f"store {self.path}: is not open")
        return self._writer

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return int(self._clock() * 1000)

    async def read_with(self, function: Callable[[sqlite3.Connection], R]) -> R:
        """Run one short read in the reader's thread."""
        reader, connection = self._reader, self._connection
        if reader is None or connection is None:
            raise StoreError(f"store {self.path}: is not open")
        try:
            return await asyncio.get_running_loop().run_in_executor(reader, function, connection)
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"store {self.path}: cannot be read: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path}: {error}") from error

    # Append

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        """Append records; callers of the same instant share one transaction. See the port."""
        if durability == "replicated":
            raise ConfigurationError(f"store {self.path}: SQLite cannot give durability='replicated'; use 'fsync'")
        if durability == "fsync" and not self._durable:
            raise ConfigurationError(f"store {self.path}: opened with durability='server'; open it with 'fsync'")
        if len(records) > _LARGEST_APPEND:
            outcomes: list[Appended] = []
            for start in range(0, len(records), _LARGEST_APPEND):
                part = records[start : start + _LARGEST_APPEND]
                outcomes += await self.append(part, durability=durability, max_backlog=max_backlog)
            return outcomes
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Appended]] = loop.create_future()
        if not self._calls:
            loop.call_soon(self._flush)
        self._calls.append(((records, max_backlog), future))
        if len(self._calls) >= _LARGEST_APPEND:
            self._flush()
        return await future

    def _flush(self) -> None:
        """Hand everything that callers of this turn of the loop brought to the writer, as one operation."""
        batch, self._calls = self._calls, []
        if not batch:
            return
        loop = asyncio.get_running_loop()
        calls = [call for call, _ in batch]
        futures = [future for _, future in batch]

        def done(result: tuple[list[list[Appended]], set[str]] | None, error: BaseException | None) -> None:
            if result is not None and result[1]:
                self.waiters.wake(result[1])
            try:
                loop.call_soon_threadsafe(_answer, futures, result[0] if result else None, error)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return

        try:
            self.writer.put(Operation(lambda connection: append_calls(connection, calls, self.now_ms()), done))
        except StoreError as error:
            _answer(futures, None, error)

    # Groups

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make steps known; see the port."""
        await self.writer.submit(lambda connection: keeping.register(connection, workflow, steps))

    def subscribe(self, group: str, worker: str, visibility: float) -> SqliteSubscription:
        """Return a worker's end of a group; see the port."""
        return SqliteSubscription(self.writer, self.waiters, group, worker, visibility, self.now_ms)

    async def release_worker(self, worker: str) -> int:
        """Hand out again what a dead worker held; see the port."""
        count = await self.writer.submit(lambda connection: take_over_worker(connection, worker))
        self.waiters.wake()
        return count

    async def groups(self) -> list[GroupInfo]:
        """Return every step; see the port."""
        return await self.read_with(reading.groups)

    async def remove_group(self, group: str) -> bool:
        """Forget a step; see the port."""
        return await self.writer.submit(lambda connection: keeping.remove(connection, group))

    # Read

    async def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        """Yield pages of events; see the port."""
        span = await self.read_with(lambda connection: reading.plan(connection, query))
        while found := await self.read_with(lambda connection: reading.page(connection, span)):
            yield found

    async def pending(self, groups: Sequence[str]) -> int:
        """Return what these groups have not settled, and what is scheduled; see the port."""
        return await self.read_with(lambda connection: reading.pending(connection, list(groups)))

    async def stats(self) -> LogStats:
        """Return how the log stands; see the port."""
        return await self.read_with(reading.stats)

    async def dead_letters(self, group: str | None = None, limit: int = 1000) -> list[StoredDeadLetter]:
        """Return dead letters, oldest first; see the port."""
        return await self.read_with(lambda connection: reading.dead_letters(connection, group, limit))

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver dead letters again; see the port."""
        count = await self.writer.submit(lambda connection: keeping.retry(connection, letters))
        self.waiters.wake()
        return count

    async def discard_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete dead letters; see the port."""
        return await self.writer.submit(lambda connection: keeping.discard(connection, letters))

    # Keep

    async def maintain(self) -> None:
        """Append what is due, forget what may be forgotten, a slice at a time; see the port."""
        now_ms = self.now_ms()
        prefix = self._maintained % 256
        self._maintained += 1
        types = await self.writer.submit(lambda connection: self._keep(connection, now_ms, prefix), durable=False)
        if types:
            self.waiters.wake(types)

    def _keep(self, connection: sqlite3.Connection, now_ms: int, prefix: int) -> set[str]:
        appender = Appender(connection, now_ms)
        appender.promote()
        keeping.forget_identities(connection, now_ms, prefix)
        if self._options.retention:
            keeping.trim(connection, now_ms - int(self._options.retention * 1000))
            self._chains = keeping.forget_subjects(connection, self._chains)
        return appender.finish()

    async def durability_report(self) -> list[str]:
        """Say what a crash can lose."""
        if self._durable:
            return ["every event is on disk before its publisher is told (synchronous=FULL)"]
        return ["a power cut can lose the last events (durability='server': synchronous=NORMAL); a crash cannot"]


def _answer(
    futures: list[asyncio.Future[list[Appended]]], results: list[list[Appended]] | None, error: BaseException | None
) -> None:
    """Answer the callers of one append operation."""
    for index, future in enumerate(futures):
        if future.done():
            continue
        if results is not None:
            future.set_result(results[index])
        elif error is not None:
            future.set_exception(error)
