"""The one thread that writes: whatever gathers during one transaction goes into the next (group commit)."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ag06.errors import AG06Error, StoreError, StoreUnavailable
from ag06.persistence.sqlite.schema import connect

R = TypeVar("R")
_LARGEST = 64  # operations in one transaction; one append operation carries many callers


class Operation(Generic[R]):
    """One thing to do in a transaction, and the future that waits for it.

    `durable`: the transaction must reach the disk before the answer. `probe` looks, outside any transaction, and
    returns the answer if there is nothing to do, else `None`.
    """

    __slots__ = ("done", "durable", "probe", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], R],
        done: Callable[[R | None, BaseException | None], None],
        *,
        durable: bool = True,
        probe: Callable[[sqlite3.Connection], R | None] | None = None,
    ) -> None:
        """`done(result, error)` is called in the writer's thread, after the transaction."""
        self.work = work
        self.done = done
        self.durable = durable
        self.probe = probe


class Writer(threading.Thread):
    """Runs operations in the order they come, in transactions shared by all that wait."""

    def __init__(self, path: str, timeout: float, durable: bool) -> None:
        """Write to `path`; wait up to `timeout` seconds for other processes; `durable`: sync when asked to."""
        super().__init__(name="ag06-sqlite", daemon=True)
        self._path = path
        self._timeout = timeout
        self._durable = durable
        self._queue: queue.SimpleQueue[Operation[Any] | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._synchronous = ""
        self._closing = False

    async def submit(
        self,
        work: Callable[[sqlite3.Connection], R],
        *,
        durable: bool = True,
        probe: Callable[[sqlite3.Connection], R | None] | None = None,
    ) -> R:
        """Run `work` in a transaction; return its result once that is committed.

        A caller that is cancelled does not take its work back: it may be committed all the same.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return

        self.put(Operation(work, done, durable=durable, probe=probe))
        result: R = await future
        return result

    def put(self, operation: Operation[Any]) -> None:
        """Queue an operation."""
        if self._pid != os.getpid():
            raise StoreError(f"store {self._path}: was opened before a fork; open it again in this process")
        if self._closing:
            raise StoreError(f"store {self._path}: is closed")
        self._queue.put(operation)

    def finish(self) -> None:
        """Take no more operations; the thread ends when those queued are done."""
        if not self._closing and self._pid == os.getpid():
            self._closing = True
            self._queue.put(None)

    def run(self) -> None:
        """Write until told to finish."""
        connection = connect(self._path)
        try:
            more = True
            while more:
                more, batch = self._gather()
                if batch:
                    self._transact(connection, batch)
        finally:
            connection.close()

    def _gather(self) -> tuple[bool, list[Operation[Any]]]:
        first = self._queue.get()
        batch: list[Operation[Any]] = []
        if first is None:
            return False, batch
        batch.append(first)
        while len(batch) < _LARGEST:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return False, batch
            batch.append(following)
        return True, batch

    def _transact(self, connection: sqlite3.Connection, batch: list[Operation[Any]]) -> None:
        """Run a batch in one transaction and answer everyone, whatever happens."""
        answers: list[tuple[Operation[Any], Any, BaseException | None]] = []
        try:
            if all(operation.probe is not None for operation in batch):
                batch = self._probed(connection, batch, answers)
            if batch:
                self._begin(connection, any(operation.durable for operation in batch))
                results = [(operation, *self._one(connection, operation)) for operation in batch]
                connection.execute("COMMIT")
                answers += results
        except BaseException as error:  # noqa: BLE001 - the thread must answer every caller and live on
            explained = self._explain(error)
            answered = {id(operation) for operation, _, _ in answers}
            answers += [(operation, None, explained) for operation in batch if id(operation) not in answered]
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        for operation, result, failure in answers:
            operation.done(result, failure)

    def _probed(
        self,
        connection: sqlite3.Connection,
        batch: list[Operation[Any]],
        answers: list[tuple[Operation[Any], Any, BaseException | None]],
    ) -> list[Operation[Any]]:
        """Return those that have something to do; the others need no transaction."""
        busy = []
        for operation in batch:
            idle = None if operation.probe is None else operation.probe(connection)
            if idle is None:
                busy.append(operation)
            else:
                answers.append((operation, idle, None))
        return busy

    def _one(self, connection: sqlite3.Connection, operation: Operation[Any]) -> tuple[Any, BaseException | None]:
        """Run one operation so that its failure undoes it alone; re-raise if it took the transaction with it."""
        connection.execute("SAVEPOINT one")
        try:
            result = operation.work(connection)
        except (AG06Error, sqlite3.Error, ValueError, TypeError) as error:
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return None, self._explain(error)
        connection.execute("RELEASE one")
        return result, None

    def _begin(self, connection: sqlite3.Connection, durable: bool) -> None:
        """Begin a transaction as the only writer, waiting for other processes in short random steps."""
        wanted = "FULL" if durable and self._durable else "NORMAL"
        if self._synchronous != wanted:
            connection.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted
        deadline = time.monotonic() + self._timeout
        wait = 0.0002
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                if time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 1.5, 0.005)

    def _explain(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.OperationalError):
            what = f"store {self._path}: {error}; nothing was stored"
            match error.sqlite_errorcode & 0xFF:
                case sqlite3.SQLITE_FULL:
                    what += "; make room on the disk and try again"
                case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                    what += f"; another process wrote for longer than {self._timeout} s"
            explained: BaseException = StoreUnavailable(what)
        elif isinstance(error, sqlite3.Error):
            explained = StoreError(f"store {self._path}: {error}")
        elif isinstance(error, AG06Error):
            return error
        else:
            explained = StoreError(f"store {self._path}: {type(error).__name__}: {error}")
        explained.__cause__ = error
        return explained


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
