"""`SqliteLog`: the log in one file, for one machine, with no server."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ag06.errors import ConfigurationError, OutcomeUnknown, StoreError, StoreUnavailable
from ag06.monitoring.instruments import ACTIVE_CONNECTIONS
from ag06.persistence.log import (
    Appended,
    Cut,
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
from ag06.persistence.measuring import APPEND, MAINTAIN, REPLAY, STATS, Measured, begin
from ag06.persistence.notes import check_note
from ag06.persistence.own_error import own_error
from ag06.persistence.sqlite import archives, keeping, notes, reading, trimming
from ag06.persistence.sqlite.appending import Call, append_calls, promote
from ag06.persistence.sqlite.deliveries import take_over_worker, vouch
from ag06.persistence.sqlite.forks import ForkSafeConnection
from ag06.persistence.sqlite.placement import Placement
from ag06.persistence.sqlite.reading import snapshot
from ag06.persistence.sqlite.schema import connect, explained_error, prepare
from ag06.persistence.sqlite.subscription import SqliteSubscription
from ag06.persistence.sqlite.turns import turns
from ag06.persistence.sqlite.waiting import Waiters, hold, let_go
from ag06.persistence.sqlite.writer import Operation, Writer

R = TypeVar("R")
_LARGEST_APPEND = 2000
_CONNECTIONS = 2  # one to write, one to read
_MOST_SLICES = 100  # of housekeeping in one call: others write in between
_BITE = 500  # events of a cut that one transaction deletes
_LONGEST_PAUSE = 0.1  # seconds between two of them
_REST = 1 / 3  # of the time that one took


class SqliteLog:
    """The port over SQLite in WAL mode, one writer thread with group commit; any number of processes share the file."""

    def __init__(self, path: str, options: LogOptions, clock: Callable[[], float] = time.time) -> None:
        """Take the file's path; `clock` gives seconds since the epoch."""
        if options.durability == "replicated":
            raise ConfigurationError(
                f"store {path}: SQLite keeps one copy and cannot give durability='replicated'; use redis://"
            )
        self._given = os.path.abspath(path)
        self.path = os.path.realpath(path)
        self._options = options
        self._clock = clock
        self._durable = options.durability in (None, "fsync")
        self._placement: Placement | None = None
        self._writer: Writer | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._database = ForkSafeConnection(self.path, lambda: connect(self.path, options.timeout))
        self.waiters = Waiters()
        self._calls: list[tuple[Call, asyncio.Future[list[Appended]]]] = []
        self._records = 0
        self._turns = turns()

    # Lifetime

    async def open(self) -> None:
        """Make the file if it is missing; start the threads."""
        await asyncio.to_thread(prepare, self.path, self._options.timeout)
        self.waiters = hold(self.path)
        self._placement = _placed(self.path, self._given)
        self._writer = Writer(self.path, self._options.timeout, self._durable, self.waiters, files=self._placement)
        self._reader = ThreadPoolExecutor(1, "ag06-sqlite-read")
        self._writer.start()
        ACTIVE_CONNECTIONS.inc(_CONNECTIONS)

    async def close(self) -> None:
        """Finish what was accepted and end the threads."""
        if self._writer is not None and not self._writer.inherited:
            self._flush()
        ending = self._end()
        if ending is not None:
            writer, reader = ending
            try:
                await asyncio.to_thread(writer.join)
            finally:
                # One after the other: the last one folds the write-ahead log into the file, two at once might both not.
                closing = reader.submit(self._database.close)
                reader.shutdown(wait=False)
                let_go(self.path)
                await asyncio.wait([asyncio.wrap_future(closing)])

    def abandon(self) -> None:
        """Let the threads end by themselves; see the port."""
        ending = self._end()
        if ending is not None:
            _, reader = ending
            reader.submit(self._database.close)
            reader.shutdown(wait=False)
            let_go(self.path)

    def _end(self) -> tuple[Writer, ThreadPoolExecutor] | None:
        """Take no more work; return what is still to be ended, if this process has opened it."""
        writer, reader = self._writer, self._reader
        if writer is None or reader is None or writer.inherited:
            return None
        self._writer = self._reader = None
        ACTIVE_CONNECTIONS.dec(_CONNECTIONS)
        writer.finish()
        return writer, reader

    @property
    def writer(self) -> Writer:
        """The writer thread; raises when the log is closed."""
        if self._writer is None:
            raise StoreError(f"store {self.path}: is not open")
        return self._writer

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return int(self._clock() * 1000)

    async def read_with(self, function: Callable[[sqlite3.Connection], R], kind: Measured | None = None) -> R:
        """Run one short read in the reader's thread; it counts as a `kind` of operation, if at all."""
        reader = self._reader
        if reader is None:
            raise StoreError(f"store {self.path}: is not open")
        try:
            self.writer.check_process()
            return await asyncio.get_running_loop().run_in_executor(reader, self._read, function, kind)
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"store {self.path}: cannot be read: {error}") from error
        except sqlite3.Error as error:
            raise explained_error(self.path, error) from error

    def _read(self, function: Callable[[sqlite3.Connection], R], kind: Measured | None) -> R:
        """Read in the reader's thread, from the file that still has the log's name."""
        began = begin()
        if self._placement is not None:
            self._placement.check()
        with self._database as connection:
            found = snapshot(connection, function)
        if kind is not None:
            kind.done(began)
        return found

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
            return await self._append_long(records, max_backlog)
        future: asyncio.Future[list[Appended]] = asyncio.get_running_loop().create_future()
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._flush)
        self._calls.append(((records, max_backlog), future))
        self._records += len(records)
        if self._records >= _LARGEST_APPEND:
            self._flush()
        return await future

    async def _append_long(self, records: Sequence[Record], max_backlog: int) -> list[Appended]:
        """Append a part at a time, so that nobody waits long for the one writer."""
        outcomes: list[Appended] = []
        for start in range(0, len(records), _LARGEST_APPEND):
            try:
                outcomes += await self.append(records[start : start + _LARGEST_APPEND], max_backlog=max_backlog)
            except StoreUnavailable as error:
                if not start:
                    raise
                raise OutcomeUnknown(f"{error}: the first {start} of {len(records)} events are stored") from error
        return outcomes

    def _flush(self) -> None:
        """Hand everything that callers of this turn of the loop brought to the writer, as one operation."""
        batch, self._calls = self._calls, []
        weight, self._records = self._records, 0
        if not batch:
            return
        calls = [call for call, _ in batch]
        futures = [future for _, future in batch]

        def done(result: tuple[list[list[Appended]], set[str]] | None, error: BaseException | None) -> None:
            if result is not None:
                self.waiters.wake(result[1])
            _answer(futures, None if result is None else result[0], error)

        def work(connection: sqlite3.Connection) -> tuple[list[list[Appended]], set[str]]:
            return append_calls(connection, calls, self.now_ms())

        try:
            self.writer.put(Operation(work, done, weight=weight, kind=APPEND, events=weight))
        except StoreError as error:
            _answer(futures, None, error)

    # Groups

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make steps known; see the port."""
        await self.writer.submit(lambda connection: keeping.register(connection, workflow, steps))
        self.waiters.wake()

    def subscribe(self, group: str, worker: str, visibility: float) -> SqliteSubscription:
        """Return a worker's end of a group; see the port."""
        return SqliteSubscription(self.writer, self.waiters, group, worker, visibility, self.now_ms)

    async def release_worker(self, worker: str) -> int:
        """Hand out again what a dead worker held; see the port."""
        count = await self.writer.submit(lambda connection: take_over_worker(connection, worker))
        self.waiters.wake()
        return count

    async def vouch(
        self,
        worker: str,
        visibility: float,
        running: Mapping[str, Collection[str]] | None = None,
        groups: Collection[str] | None = None,
    ) -> int:
        """Renew the leases of a worker that is known to live, in every group of its own; see the port."""
        count = await self.writer.submit(
            lambda connection: vouch(connection, worker, self.now_ms() + int(visibility * 1000), running), durable=False
        )
        if count:
            self.waiters.wake()
        return count

    async def groups(self) -> list[GroupInfo]:
        """Return every step; see the port."""
        return await self.read_with(reading.groups, STATS)

    async def remove_group(self, group: str) -> bool:
        """Forget a step; see the port."""
        return await self.writer.submit(lambda connection: keeping.remove(connection, group))

    # Read

    async def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        """Yield pages of events; see the port."""
        span = await self.read_with(lambda connection: reading.plan(connection, query))
        while found := await self.read_with(lambda connection: reading.page(connection, span), REPLAY):
            yield found

    async def pending(self, groups: Sequence[str]) -> int:
        """Return what these groups have not settled, and what is scheduled; see the port."""
        return await self.read_with(lambda connection: reading.pending(connection, list(groups)))

    async def stats(self) -> LogStats:
        """Return how the log stands; see the port."""
        return await self.read_with(reading.stats, STATS)

    async def dead_letters(
        self, group: str | None = None, limit: int = 1000, after: str = ""
    ) -> list[StoredDeadLetter]:
        """Return dead letters, oldest first; see the port."""
        return await self.read_with(lambda connection: reading.dead_letters(connection, group, limit, after))

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver dead letters again; see the port."""
        count = await self.writer.submit(lambda connection: keeping.retry(connection, letters))
        self.waiters.wake()
        return count

    async def discard_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete dead letters; see the port."""
        return await self.writer.submit(lambda connection: keeping.discard(connection, letters))

    # Keep

    async def settled(self, before_ms: int, types: Sequence[str] | None = None) -> list[Cut]:
        """Return what every step is done with; see the port."""
        return await self.read_with(lambda connection: trimming.settled(connection, before_ms, types))

    async def drop(self, cut: Cut) -> int:
        """Delete the events of a cut; other processes have the file a quarter of the time at least."""
        loop = asyncio.get_running_loop()
        total = 0
        while True:
            began = loop.time()
            count = await self.writer.submit(
                lambda connection: trimming.drop(connection, cut, _BITE, self.now_ms()), durable=False
            )
            total += count
            if count < _BITE:
                return total
            await asyncio.sleep(min((loop.time() - began) * _REST, _LONGEST_PAUSE))

    async def archives(self) -> list[str]:
        """Return the URLs of the log's archives; see the port."""
        return await self.read_with(archives.archives)

    async def add_archive(self, url: str) -> None:
        """Remember an archive; see the port."""
        await self.writer.submit(lambda connection: archives.add_archive(connection, url))

    async def remove_archive(self, url: str) -> None:
        """Forget an archive; see the port."""
        await self.writer.submit(lambda connection: archives.remove_archive(connection, url))

    async def write_note(self, name: str, body: bytes | None) -> None:
        """Replace or remove a note; see the port."""
        checked = check_note(name, body)
        await self.writer.submit(lambda connection: notes.write(connection, checked, body))

    async def read_note(self, name: str) -> bytes | None:
        """Return a note; see the port."""
        checked = check_note(name)
        return await self.read_with(lambda connection: notes.read(connection, checked))

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        """Take, renew or give up a leadership; see the port."""
        return await self.writer.submit(
            lambda connection: archives.lead(connection, role, holder, self.now_ms(), int(seconds * 1000)),
            durable=False,
        )

    async def maintain(self) -> None:
        """Append what is due, forget what may be forgotten, in short transactions; see the port."""
        began, now_ms = begin(), self.now_ms()
        while types := await self.writer.submit(lambda connection: promote(connection, now_ms), durable=False):
            self.waiters.wake(types)
        retention, by_type = self._options.retention or 0, self._options.retention_by_type
        if retention or any(by_type.values()):
            for _ in range(_MOST_SLICES):
                if not await self.writer.submit(
                    lambda connection: trimming.trim(connection, now_ms, retention, by_type), durable=False
                ):
                    break
        for turn in self._turns:
            await turn.go_on(self.writer, now_ms)
        MAINTAIN.done(began)

    async def durability_report(self) -> list[str]:
        """Say what a crash can lose."""
        if self._durable:
            return ["every event is on disk before its publisher is told (synchronous=FULL)"]
        return ["a power cut can lose the last events (durability='server': synchronous=NORMAL); a crash cannot"]


def _placed(path: str, name: str) -> Placement:
    try:
        return Placement(path, name)
    except OSError as error:
        raise StoreUnavailable(f"store {name}: cannot be opened ({error.strerror}); open it again") from error


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
            future.set_exception(own_error(error))
