"""One journal in one SQLite file: records in order, each with a checksum, until the store has them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence.journal import entries as rows_of
from ag06.persistence.journal.claim import Claim, lock_path
from ag06.persistence.journal.entries import TABLES, Entry, restored
from ag06.persistence.journal.place import Place
from ag06.persistence.journal.salvage import is_of_the_disk, keep_copy, salvage, wal_damage
from ag06.persistence.log import Appended, Record
from ag06.persistence.own_error import own_error
from ag06.persistence.sqlite.forks import uninterrupted
from ag06.persistence.sqlite.schema import make_directory, opened
from ag06.persistence.sqlite.waiting import Waiters
from ag06.persistence.sqlite.writer import Writer

R = TypeVar("R")
_logger = logging.getLogger("ag06.persistence.journal")

_RARE_CHECKPOINTS = "PRAGMA wal_autocheckpoint = 4096"
"""Pages, 16 MiB: a checkpoint keeps everyone waiting, and most journals are gone before they need one."""
_PAGE = 500
_TIMEOUT = 10.0


class _Call(msgspec.Struct, gc=False, eq=False):
    """The records of one caller; `synced`: the store must sync them too; and where the outcomes go."""

    records: Sequence[Record]
    synced: bool
    outcomes: asyncio.Future[list[Appended]]


class JournalFile:
    """A journal that this process has claimed. Appends share transactions; each is on disk before it is confirmed."""

    def __init__(self, claim: Claim) -> None:
        """Take over the file of `claim`, new or left behind by a dead process; `open` comes first."""
        self.claim = claim
        self.path = claim.path
        self.events = 0
        """How many records the store does not have yet."""
        self.oldest_ms: int | None = None
        self.damaged = False
        """Whether a copy of it was set aside."""
        self.broken = False
        """Whether SQLite cannot read it any more: opened anew, it gives what can be saved."""
        self._newest_ms = 0  # the latest time at which a record was persisted; of the writer's thread
        self._drained = -1
        self._bad: set[int] = set()
        self._unmarked = False
        self._place: Place | None = None
        self._calls: deque[_Call] = deque()
        self._called = False
        self._writer: Writer | None = None
        self._ending: Writer | None = None

    async def open(self) -> None:
        """Make the file or look through what is there; raise `StoreUnavailable` if the disk does not let us.

        What cannot be read is set aside and reported in the log; all else is there to be drained.
        """
        try:
            await asyncio.to_thread(self._prepare)
            place = self._place = Place(self.path, lock_path(self.path))
            self._writer = await _start_writer(self.path, place)
        except (OSError, sqlite3.Error, StoreError) as error:
            raise StoreUnavailable(f"journal {self.path}: {error}; check the disk and its permissions") from error

    def _prepare(self) -> None:
        with uninterrupted():
            self._prepare_file()

    def _prepare_file(self) -> None:
        damage = wal_damage(Path(f"{self.path}-wal"))
        if self.path.exists() and not self.path.stat().st_size:
            damage = "it is empty"
        if damage:
            self._set_aside(damage)
        try:
            _create(self.path)
            self._look()
        except sqlite3.DatabaseError as error:
            if not self.path.exists() or is_of_the_disk(error, self.path):
                raise
            self._set_aside(str(error))
            self._begin_anew()

    def _look(self) -> None:
        """Count what is there; note what cannot be read."""
        with opened(str(self.path), _TIMEOUT) as connection:
            (self.events,) = connection.execute("SELECT count(*) FROM entries WHERE record IS NOT NULL").fetchone()
            for problem in connection.execute("PRAGMA quick_check(10)").fetchall():
                if problem != ("ok",):
                    raise sqlite3.DatabaseError(problem[0])
            row = connection.execute(
                "SELECT record, checksum FROM entries WHERE record IS NOT NULL ORDER BY n LIMIT 1"
            ).fetchone()
            if row is not None and (record := restored(*row)) is not None:
                self.oldest_ms = record.persisted_ms

    def _set_aside(self, problem: str) -> None:
        self.damaged = True
        copies = keep_copy(self.path)
        _logger.error(
            "journal %s is damaged (%s): what can be read of it goes to the store, the damaged file is kept as %s",
            self.path,
            problem,
            copies,
        )

    def _begin_anew(self) -> None:
        """Put what a damaged file still gives into a new one under the same name."""
        rows, lost = salvage(self.path)
        records = []
        for number, synced, encoded, checksum in rows:
            if (record := restored(encoded, checksum)) is None:
                lost.append(number)
            else:
                records.append((number, record, synced == 1))
        fresh = Path(f"{self.path}.new")
        fresh.unlink(missing_ok=True)
        _create(fresh)
        with opened(str(fresh), _TIMEOUT) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for number, record, synced in records:
                rows_of.insert(connection, record, synced=synced, number=number)
            connection.execute("COMMIT")
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        fresh.replace(self.path)
        self._look()
        numbered = f"; {len(lost)} numbers between {min(lost)} and {max(lost)} are in the copy alone" if lost else ""
        _logger.error("journal %s: %d records were saved%s", self.path, self.events, numbered)

    async def append(self, records: Sequence[Record], *, synced: bool) -> list[Appended]:
        """Store records durably, each checked against those of this journal.

        `synced`: the store must sync them too when it gets them. What a caller who gave up had written counts as well.
        Raises `JournalMoved` if the file is not where it was opened, `StoreUnavailable` if the disk does not take them.
        """
        if self._writer is None:
            raise self._is_closed()
        call = _Call(records, synced, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        if not self._called:  # one operation serves all who call before the writer comes to it
            self._called = True
            taken: list[_Call] = []
            try:
                written = self._writer.submit(partial(self._write, self._place, taken), weight=len(records))
            except BaseException:
                self._called = False
                if self._withdraw(call):
                    raise
                return await call.outcomes
            written.add_done_callback(partial(self._answer, taken))
        return await call.outcomes

    def _withdraw(self, call: _Call) -> bool:
        """Take a call back; return whether no operation has taken it yet."""
        try:
            self._calls.remove(call)
        except ValueError:
            return False
        return True

    def _write(self, place: Place | None, taken: list[_Call], connection: sqlite3.Connection) -> list[list[Appended]]:
        """Store what all callers have brought by now, in the file at `place`; in the writer's thread."""
        if place is not None:
            place.check()
        self._called = False  # before looking: who comes behind the last look asks for a turn of its own
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._calls.popleft())
        outcomes = []
        for call in taken:
            outcomes.append(rows_of.append(connection, call.records, synced=call.synced, newest_ms=self._newest_ms))
            newest_ms = max((record.persisted_ms for record in call.records), default=0)
            self._newest_ms = max(self._newest_ms, newest_ms)
        return outcomes

    def _answer(self, taken: list[_Call], written: asyncio.Future[list[list[Appended]]]) -> None:
        error = None if written.cancelled() else written.exception()
        if written.cancelled() or error is not None:
            self._called = False
            if not taken:  # it failed before it took them
                taken.extend(self._calls)
                self._calls.clear()
            for call in taken:
                if not call.outcomes.done():
                    call.outcomes.set_exception(own_error(error or self._is_closed()))
            return
        for call, outcomes in zip(taken, written.result(), strict=True):
            self._count(call.records, outcomes)
            if not call.outcomes.done():
                call.outcomes.set_result(outcomes)

    def _is_closed(self) -> StoreUnavailable:
        return StoreUnavailable(f"journal {self.path}: is closed; nothing was stored")

    def _count(self, records: Sequence[Record], outcomes: Sequence[Appended]) -> None:
        stored = outcomes.count(Appended.STORED)
        if stored and not self.events:
            self.oldest_ms = records[0].persisted_ms
        self.events += stored

    async def read(self, after: int = -1, limit: int = _PAGE) -> list[Entry]:
        """Return the next records behind number `after` that the store does not have, in order."""
        while self._writer is not None:
            start = max(after, self._drained)
            entries, bad = await self._asked(self._writer, partial(rows_of.read, after=start, limit=limit))
            await self._report([number for number in bad if number not in self._bad])
            if entries:
                if after <= self._drained:
                    self.oldest_ms = entries[0].record.persisted_ms
                return entries
            if not bad:
                break
            after = bad[-1]
        return []

    async def _asked(self, writer: Writer, question: Callable[[sqlite3.Connection], R]) -> R:
        """Return what a file says; note where SQLite cannot read it any more."""
        try:
            return await writer.submit(question, durable=False)
        except StoreUnavailable:
            raise
        except StoreError:
            self.broken = True
            raise

    async def _report(self, bad: list[int]) -> None:
        """Let go of records whose checksum is wrong: they stay in the copy of the file that is set aside."""
        if not bad:
            return
        numbers = ", ".join(map(str, bad))
        if not self.damaged:
            try:
                copy = await asyncio.to_thread(_keep_copy, self.path)
                self.damaged = True
                where = f"they are kept in {copy}"
            except OSError as error:
                where = f"the file stays where it is, for want of a copy ({error})"
        else:
            where = "they are in its copy too"
        _logger.error(
            "journal %s is damaged: the records number %s do not have the content that was written; %s, and all others "
            "go to the store",
            self.path,
            numbers,
            where,
        )
        self._bad.update(bad)
        self.events -= len(bad)

    async def mark(self, numbers: Sequence[int]) -> None:
        """Note that the store has the records up to the last of `numbers`; their ids and identities stay known here.

        A disk that does not take the note holds nothing up: who finds the file later hands on what the store knows.
        """
        if self._writer is None or not numbers:
            return
        self._drained = numbers[-1]
        self.events -= len(numbers)
        if not self.events:
            self.oldest_ms = None
        try:
            await self._writer.submit(partial(rows_of.mark, numbers=numbers), durable=False)
        except StoreError as error:
            if not self._unmarked:
                self._unmarked = True
                _logger.warning("what the store has cannot be noted in the journal: %s", error)

    async def check_place(self) -> None:
        """Raise `JournalMoved` if the file is not where it was opened."""
        place = self._place
        if self._writer is not None and place is not None:
            await self._writer.submit(lambda _: place.check(lock=True), durable=False)

    async def move(self, claim: Claim) -> None:
        """Go on in the new file of `claim` with all that can be read through the connection that is still open.

        To be called after `JournalMoved`: nothing is appended to the old file any more. Raises `StoreError` if that
        cannot be read or the new file cannot be written; then the old one stays open.
        """
        old = self._writer
        if old is None:
            raise StoreUnavailable(f"journal {self.path}: is closed")
        try:
            await asyncio.to_thread(_create, claim.path)
            after = -1
            while rows := await self._asked(old, partial(rows_of.copy_out, after=after)):
                await asyncio.to_thread(_copy_in, claim.path, rows)
                after = rows[-1][0]
            place = Place(claim.path, lock_path(claim.path))
            writer = await _start_writer(claim.path, place)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"journal {claim.path}: {error}; check the disk and its permissions") from error
        before, self.claim = self.claim, claim
        self._writer, self._place, self.path = writer, place, claim.path
        old.finish()
        await asyncio.to_thread(old.join)
        before.let_go(delete=not before.path.exists())  # a file that lies there now is perhaps somebody else's

    async def close(self) -> int:
        """Close the file, delete it if the store has everything, and return how many records it does not have."""
        writer, self._writer = self._writer, None
        left = self.events
        if writer is None:  # where an earlier call was cut off, nobody else lets go
            if self._ending is not None:
                await asyncio.to_thread(self._ending.join)
            self.claim.let_go(delete=False)
            return left
        self._ending = writer
        try:  # the file knows, not the count: what was written last may not have been told yet
            left = await writer.submit(self._left, durable=False)
        except StoreError as error:
            _logger.warning("journal %s stays where it is: %s", self.path, error)
            left = max(1, left)
        finally:
            writer.finish()
        await asyncio.to_thread(writer.join)
        await asyncio.to_thread(self.claim.let_go, delete=not left)
        return left

    def _left(self, connection: sqlite3.Connection) -> int:
        rows = connection.execute("SELECT n FROM entries WHERE record IS NOT NULL AND n > ?", (self._drained,))
        kept = self._bad if self.damaged else ()
        return sum(number not in kept for (number,) in rows)

    def abandon(self) -> None:
        """Let go without waiting: the event loop has ended."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
        self.claim.let_go(delete=False)


def _keep_copy(path: Path) -> str:
    with uninterrupted():
        return keep_copy(path)


def _create(path: Path) -> None:
    make_directory(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    with opened(str(path), _TIMEOUT) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(TABLES)


def _copy_in(path: Path, rows: Sequence[rows_of.Row]) -> None:
    """Put rows into a journal, durably."""
    with opened(str(path), _TIMEOUT) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        rows_of.copy_in(connection, rows)
        connection.execute("COMMIT")


async def _start_writer(path: Path, place: Place) -> Writer:
    writer = Writer(str(path), _TIMEOUT, True, Waiters(), _RARE_CHECKPOINTS, files=place)
    writer.start()
    try:
        await writer.submit(lambda _: None, durable=False)
    except BaseException:
        writer.finish()
        raise
    return writer
