"""The one thread that writes: whatever gathers during one transaction goes into the next (group commit)."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ag06.errors import AG06Error, OutcomeUnknown, StoreError, StoreUnavailable
from ag06.persistence.measuring import Measured, begin
from ag06.persistence.sqlite.forks import ForkSafeConnection
from ag06.persistence.sqlite.placement import OpenFiles
from ag06.persistence.sqlite.schema import connect, explained_error
from ag06.persistence.sqlite.waiting import Waiters

R = TypeVar("R")
_logger = logging.getLogger("ag06.persistence")
_HEAVIEST = 4000  # records and other operations in one transaction: about a tenth of a second for other processes
_FIRST_LOOK = 0.001
_LONGEST_LOOK = 0.02
_LARGEST_WAL = 64 << 20  # bytes
_WAL_PATIENCE = 0.1  # seconds that readers may keep the write-ahead log from being begun anew
_WAL_INTERVAL = 5.0
_CACHE_KIB = 16_384  # the indexes that every append touches


class Operation(Generic[R]):
    """One thing to do in a transaction, and who waits for it.

    `durable`: the transaction must reach the disk before the answer. `probe` reads, outside any transaction, and
    returns the answer if there is nothing to do. `weight`: how many records it carries. `done(result, error)` is called
    in the log's event loop, or in the writer's thread where `threaded`. `kind` and `events`: what the transaction is
    measured as, and how many events of that kind this brings to it.
    """

    __slots__ = ("done", "durable", "events", "kind", "probe", "since", "threaded", "weight", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], R],
        done: Callable[[R | None, BaseException | None], None],
        *,
        durable: bool = True,
        probe: Callable[[sqlite3.Connection], R | None] | None = None,
        weight: int = 1,
        threaded: bool = False,
        kind: Measured | None = None,
        events: int = 0,
    ) -> None:
        """Begin to wait."""
        self.work = work
        self.done = done
        self.durable = durable
        self.probe = probe
        self.weight = weight
        self.threaded = threaded
        self.kind = kind
        self.events = events
        self.since = time.monotonic()


Answer = tuple[Operation[Any], Any, BaseException | None]


class Writer(threading.Thread):
    """Runs operations in the order they come, in transactions shared by all that wait.

    The queue needs no bound of its own: whoever puts something into it waits for the answer.
    """

    def __init__(
        self,
        path: str,
        timeout: float,
        durable: bool,
        waiters: Waiters,
        setup: str = "",
        files: OpenFiles | None = None,
    ) -> None:
        """Write to `path` and answer in the running loop.

        Waits up to `timeout` seconds for other processes; `durable`: sync when an operation asks for it. `setup`: a
        statement for each new connection. `files`: those of `path`; they may refuse a connection, or an answer after
        a commit.
        """
        super().__init__(name="ag06-sqlite", daemon=True)
        self._path = path
        self._timeout = timeout
        self._durable = durable
        self._waiters = waiters
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Operation[Any] | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._gate = threading.Lock()
        self._closing = False
        self._synchronous = ""
        self._setup = setup
        self._files = files
        self._database = ForkSafeConnection(path, self._connect)
        self._version: int | None = None
        self._pause = _FIRST_LOOK
        self._shortened = time.monotonic()

    # In the threads of those who ask

    def submit(
        self,
        work: Callable[[sqlite3.Connection], R],
        *,
        durable: bool = True,
        probe: Callable[[sqlite3.Connection], R | None] | None = None,
        weight: int = 1,
        kind: Measured | None = None,
        events: int = 0,
    ) -> asyncio.Future[R]:
        """Run `work` in a transaction; the future has its result once that is committed.

        A caller that is cancelled does not take its work back: it may be committed all the same.
        """
        future: asyncio.Future[R] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.put(Operation(work, done, durable=durable, probe=probe, weight=weight, kind=kind, events=events))
        return future

    def put(self, operation: Operation[Any]) -> None:
        """Queue an operation."""
        self.check_process()
        with self._gate:
            if self._closing:
                raise StoreError(f"store {self._path}: is closed")
            self._queue.put(operation)

    def check_process(self) -> None:
        """Raise in a child process: SQLite's connections must not be used across a fork."""
        if self.inherited:
            raise StoreError(f"store {self._path}: was opened before a fork; open it again in this process")

    @property
    def inherited(self) -> bool:
        """Whether this process got the writer by a fork, without its thread."""
        return self._pid != os.getpid()

    def finish(self) -> None:
        """Take no more operations; the thread ends when those queued are done."""
        with self._gate:
            if not self._closing:
                self._closing = True
                self._queue.put(None)

    # In the writer's thread

    def run(self) -> None:
        """Write until told to finish."""
        try:
            more = True
            while more:
                more, batch = self._gather()
                self._transact(batch)
                if self._waiters:
                    self._look()
                if time.monotonic() - self._shortened > _WAL_INTERVAL:
                    self._shorten()
        finally:
            self._database.close()

    def _gather(self) -> tuple[bool, list[Operation[Any]]]:
        following = self._next()
        batch: list[Operation[Any]] = []
        weight = 0
        while following is not None:
            batch.append(following)
            weight += following.weight
            if weight >= _HEAVIEST:
                return True, batch
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                return True, batch
        return False, batch

    def _next(self) -> Operation[Any] | None:
        """Wait for an operation; while somebody waits for events, look for what other processes did."""
        while self._waiters:
            try:
                return self._queue.get(timeout=self._pause)
            except queue.Empty:
                self._look()
        return self._queue.get()

    def _look(self) -> None:
        """Wake those who wait for what another process committed: SQLite counts that in `data_version`.

        Our own commits do not change it on this connection. Looks every millisecond after a change, every 20 ms when
        nothing happens.
        """
        try:
            with self._database as connection:
                (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version == self._version:
                    self._pause = min(self._pause * 1.5, _LONGEST_LOOK)
                    return
                self._pause = _FIRST_LOOK
                self._waiters.look(connection, self._loop)
                self._version = version
        except (sqlite3.Error, StoreError):  # locked for an instant, or worse: look again, and those who ask are told
            self._pause = _LONGEST_LOOK

    def _connect(self) -> sqlite3.Connection:
        if self._files is not None:
            self._files.before_use()
        connection = connect(self._path, cache_kib=_CACHE_KIB)
        try:
            if self._setup:
                connection.execute(self._setup).fetchone()
            if self._files is not None:
                self._files.connected()
        except BaseException:
            connection.close()
            raise
        self._synchronous = ""
        self._version = None  # another connection counts from somewhere else
        return connection

    def _transact(self, batch: list[Operation[Any]]) -> None:
        """Run a batch in one transaction and answer everyone, whatever happens."""
        waiting = self._probed(batch)
        while waiting:
            committing, began = False, begin()
            try:
                with self._database as connection:
                    try:
                        if not self._begin(connection, waiting):
                            continue
                        answers = [self._one(connection, operation) for operation in waiting]
                        committing = True
                        connection.execute("COMMIT")
                        if self._files is not None:
                            self._files.committed()
                    except BaseException:
                        self._undo(connection)
                        raise
            except BaseException as error:  # noqa: BLE001 - the thread must answer every caller and live on
                refused = self._late(waiting) if _is_busy(error) else waiting
                self._answer([(operation, None, self._explain(error, committing)) for operation in refused])
                waiting = waiting[len(refused) :]
            else:
                _measure(waiting, began)
                self._answer(answers)
                return

    def _probed(self, batch: list[Operation[Any]]) -> list[Operation[Any]]:
        """Answer those that have nothing to do, unless a transaction is needed anyway; return the others."""
        if any(operation.probe is None for operation in batch):
            return batch
        busy: list[Operation[Any]] = []
        idle: list[Answer] = []
        began = begin()
        try:
            if self._files is not None:
                self._files.before_use()
            with self._database as connection:
                for operation in batch:
                    try:
                        found = operation.probe(connection) if operation.probe is not None else None
                    except sqlite3.Error:  # the transaction will tell
                        found = None
                    if found is None:
                        busy.append(operation)
                    else:
                        idle.append((operation, found, None))
        except (sqlite3.Error, StoreError):  # it cannot be opened: the transaction will tell
            return batch
        _measure([answer[0] for answer in idle], began)
        self._answer(idle)
        return busy

    def _begin(self, connection: sqlite3.Connection, waiting: list[Operation[Any]]) -> bool:
        """Begin a transaction as the only writer, waiting for other processes in short random steps.

        Returns `False` if a fork must go first, which closes the connection.
        """
        durable = self._durable and any(operation.durable for operation in waiting)
        wanted = "FULL" if durable else "NORMAL"
        if self._synchronous != wanted:
            connection.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted
        wait = 0.0002
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or self._late(waiting):
                    raise
            else:
                return True
            if self._database.gives_way:
                return False
            time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 1.5, 0.005)

    def _late(self, waiting: list[Operation[Any]]) -> list[Operation[Any]]:
        """Return those, the first ones, that have waited for longer than the timeout."""
        bound = time.monotonic() - self._timeout
        return [operation for operation in waiting if operation.since <= bound]

    def _one(self, connection: sqlite3.Connection, operation: Operation[Any]) -> Answer:
        """Run one operation so that its failure undoes it alone; re-raise if it took the transaction with it."""
        connection.execute("SAVEPOINT one")
        try:
            result = operation.work(connection)
        except Exception as error:  # whatever it is, it is the answer
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return operation, None, self._explain(error)
        connection.execute("RELEASE one")
        return operation, result, None

    def _shorten(self) -> None:
        """Begin a large write-ahead log anew: by itself SQLite does that only where it meets no reader at all."""
        self._shortened = time.monotonic()
        try:
            if os.stat(self._path + "-wal").st_size < _LARGEST_WAL:
                return
            with self._database as connection:
                connection.execute(f"PRAGMA busy_timeout = {int(_WAL_PATIENCE * 1000)}")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                connection.execute("PRAGMA busy_timeout = 0")
        except FileNotFoundError:  # there is none, or the file was removed, which the next commit reports
            return
        except (OSError, sqlite3.Error, StoreError) as error:
            _logger.warning("store %s: its write-ahead log stays large: %s", self._path, error)

    def _undo(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # beyond repair: the next transaction gets a new connection
            self._database.shut()

    def _answer(self, answers: list[Answer]) -> None:
        """Answer in the loop, all with one wake-up."""
        for operation, result, error in answers:
            if operation.threaded:
                operation.done(result, error)
        others = [answer for answer in answers if not answer[0].threaded]
        if not others:
            return
        try:
            self._loop.call_soon_threadsafe(_deliver, others)
        except RuntimeError:  # the loop has closed: nobody waits any more
            return

    def _explain(self, error: BaseException, committing: bool = False) -> BaseException:
        if isinstance(error, AG06Error):
            return error
        explained: BaseException
        if isinstance(error, sqlite3.OperationalError):
            explained = self._unavailable(error, committing)
        elif isinstance(error, sqlite3.Error):
            explained = explained_error(self._path, error)
        else:
            explained = StoreError(f"store {self._path}: {type(error).__name__}: {error}")
        explained.__cause__ = error
        return explained

    def _unavailable(self, error: sqlite3.OperationalError, committing: bool) -> StoreUnavailable:
        code = error.sqlite_errorcode & 0xFF
        if committing and code == sqlite3.SQLITE_IOERR:
            # What a failed sync left of the transaction may come back when the log is recovered after a crash.
            return OutcomeUnknown(f"store {self._path}: {error} while it committed; check the disk")
        advice = ""
        match code:
            case sqlite3.SQLITE_FULL:
                advice = "; make room on the disk and try again"
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                advice = f"; another process wrote for longer than {self._timeout} s"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR:
                advice = "; check the disk and the permissions"
        return StoreUnavailable(f"store {self._path}: {error}; nothing was stored{advice}")


def _measure(operations: list[Operation[Any]], began: float) -> None:
    """Count what was done together once for each kind that had a part in it."""
    kinds: dict[Measured, int] = {}
    for operation in operations:
        if operation.kind is not None:
            kinds[operation.kind] = kinds.get(operation.kind, 0) + operation.events
    for kind, events in kinds.items():
        kind.done(began, events)


def _deliver(answers: list[Answer]) -> None:
    for operation, result, error in answers:
        operation.done(result, error)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )
