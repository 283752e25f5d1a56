"""The disk that the processes of a simulation share, and the journals on it.

What is real: the journal itself, the SQL that it speaks, and a database for each file. What stands for something else:
a writer without a thread, a lock that ends with its process, and a directory in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence.journal import file as journal_file

from .plan import Plan
from .process import PROCESS, Process
from .watch import PromiseBroken

_TABLES = journal_file.TABLES


class Claim:
    """A journal that belongs to one process, until it lets go or is gone."""

    def __init__(self, disk: Disk, path: Path, owner: Process) -> None:
        """Claim `path` for `owner`."""
        self.path = path
        self._disk = disk
        self._owner = owner
        disk.owners[path] = owner

    def let_go(self, *, delete: bool) -> None:
        """Give up the claim; `delete`: nobody needs the file any more."""
        if self._disk.owners.get(self.path) is self._owner:
            del self._disk.owners[self.path]
            if delete:
                self._disk.files.pop(self.path, None)


class Disk:
    """Files by path, in the order they were made, and who has claimed them."""

    def __init__(self, plan: Plan) -> None:
        """Begin empty."""
        self.rng = random.Random(f"disk {plan.seed}")
        self.sync = plan.sync
        self.full = False
        self.files: dict[Path, sqlite3.Connection] = {}
        self.owners: dict[Path, Process] = {}
        self.written = 0
        """Events that were written into journals."""
        self._count = 0

    def journals(self, owner: Process) -> Claims:
        """Return the directory of journals as a process sees it."""
        return Claims(self, owner)

    def events(self) -> list[str]:
        """Return the ids of all events that the store does not have yet, as far as the disk knows."""
        ids = "SELECT id FROM entries WHERE record IS NOT NULL ORDER BY n"
        return [event_id for file in self.files.values() for (event_id,) in file.execute(ids)]

    def create(self, path: Path) -> None:
        """Make the file of a journal, unless it is there."""
        if path not in self.files:
            if self.full:
                raise sqlite3.OperationalError("database or disk is full")
            connection = sqlite3.connect(":memory:", isolation_level=None)
            connection.executescript(_TABLES)
            self.files[path] = connection

    @contextlib.contextmanager
    def opened(self, path: str, timeout: float) -> Iterator[sqlite3.Connection]:
        """Let SQL run on a file."""
        yield self.files[Path(path)]

    def new_path(self, owner: Process) -> Path:
        """Return a path that nobody has used."""
        self._count += 1
        return Path(f"/simulated/{owner.name}-{self._count}.db")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the journals lie on this disk."""
        names = "Writer", "_create", "opened", "wal_damage", "Place"
        before = {name: getattr(journal_file, name) for name in names}
        stand_ins = (self.writer, self.create, self.opened, lambda _: None, Place)
        for name, stand_in in zip(names, stand_ins, strict=True):
            setattr(journal_file, name, stand_in)
        try:
            yield
        finally:
            for name, real in before.items():
                setattr(journal_file, name, real)

    def writer(self, path: str, timeout: float, durable: bool, waiters: object, setup: str, files: object) -> Writer:
        """Return what writes to a file."""
        return Writer(self, Path(path))


class Place:
    """Stands for the place of a journal: nobody moves files here."""

    def __init__(self, path: Path, lock: Path) -> None:
        """Remember nothing."""

    def check(self, *, lock: bool = False) -> None:
        """Find every file where it was."""


class Claims:
    """See `ag06.persistence.journal.claim.Claims`."""

    def __init__(self, disk: Disk, owner: Process) -> None:
        """Claim journals for `owner`."""
        self.directory = Path("/simulated")
        self._disk = disk
        self._owner = owner

    def new(self) -> Claim:
        """Claim a journal that does not exist yet."""
        if self._disk.full:
            raise OSError(28, "No space left on device")
        return Claim(self._disk, self._disk.new_path(self._owner), self._owner)

    def problem(self) -> None:
        """Say that journals can be made, though the disk may be full when one is."""

    def orphans(self) -> list[Claim]:
        """Claim every journal whose process is gone, oldest first."""
        owners = self._disk.owners
        gone = [path for path in self._disk.files if path not in owners or not owners[path].alive]
        return [Claim(self._disk, path, self._owner) for path in gone]


class Writer:
    """Stands for the thread that writes: operations in order, those that wait in one transaction, answers later."""

    def __init__(self, disk: Disk, path: Path) -> None:
        """Write to `path`."""
        self._disk = disk
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[Callable[[Any], Any], bool, asyncio.Future[Any]]] = []
        self._closing = False

    def start(self) -> None:
        """There is no thread to start."""

    def submit(self, work: Callable[[Any], Any], *, durable: bool = True, weight: int = 1) -> asyncio.Future[Any]:
        """Run `work` in a transaction; the future has its result once that is committed."""
        if self._closing:
            raise StoreError(f"store {self._path}: is closed")
        future = self._loop.create_future()
        self._queue.append((work, durable, future))
        if len(self._queue) == 1:
            self._loop.call_later(self._disk.rng.uniform(0.0, self._disk.sync), self._transact)
        return future

    def _transact(self) -> None:
        if not self._queue:
            return
        if self._disk.owners.get(self._path) is not PROCESS.get():
            raise PromiseBroken(f"{self._path} is written by a process that does not have its lock")
        batch, self._queue = self._queue, []
        connection = self._disk.files[self._path]
        answers: list[tuple[asyncio.Future[Any], Any]] = []
        connection.execute("BEGIN IMMEDIATE")
        for work, durable, future in batch:
            before = connection.total_changes
            answers.append((future, work(connection)))
            self._disk.written += durable and connection.total_changes - before
            if self._disk.full and connection.total_changes != before:
                connection.execute("ROLLBACK")
                full = StoreUnavailable(f"store {self._path}: database or disk is full")
                answers = [(future, full) for _, _, future in batch]
                break
        else:
            connection.execute("COMMIT")
        self._loop.call_later(self._disk.rng.uniform(0.0, 0.005), self._answer, answers)

    @staticmethod
    def _answer(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
        for future, answer in answers:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def finish(self) -> None:
        """Take no more operations."""
        self._closing = True

    def join(self, timeout: float | None = None) -> None:
        """Do what is queued still, as a thread does before it ends."""
        self._transact()
