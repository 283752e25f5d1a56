"""One journal in one SQLite file: records in order, each with a checksum, until the store has them."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from ag06.errors import StoreError, StoreUnavailable
from ag06.persistence.journal.claim import Claim
from ag06.persistence.journal.salvage import is_of_the_disk, keep_copy, salvage, wal_damage
from ag06.persistence.log import Appended, Record
from ag06.persistence.sqlite.forks import uninterrupted
from ag06.persistence.sqlite.schema import make_directory, opened
from ag06.persistence.sqlite.waiting import Waiters
from ag06.persistence.sqlite.writer import Writer

_logger = logging.getLogger("ag06.persistence.journal")

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
  n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, identity BLOB, expires INTEGER NOT NULL, content BLOB,
  synced INTEGER NOT NULL, record BLOB, checksum BLOB) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_identity ON entries (identity);
"""
_RARE_CHECKPOINTS = "PRAGMA wal_autocheckpoint = 4096"
"""Pages, 16 MiB: a checkpoint keeps everyone waiting, and most journals are gone before they need one."""
_PAGE = 500
_PAGE_BYTES = 1 << 20
_TIMEOUT = 10.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Entry(msgspec.Struct, frozen=True):
    """One record of a journal and its number there; `synced`: its publisher asked for more than the server's word."""

    number: int
    record: Record
    synced: bool


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
        self._drained = -1
        self._bad: set[int] = set()
        self._unmarked = False
        self._writer: Writer | None = None
        self._ending: Writer | None = None

    async def open(self) -> None:
        """Make the file or look through what is there; raise `StoreUnavailable` if the disk does not let us.

        What cannot be read is set aside and reported in the log; all else is there to be drained.
        """
        try:
            await asyncio.to_thread(self._prepare)
            writer = Writer(str(self.path), _TIMEOUT, True, Waiters(), _RARE_CHECKPOINTS)
        except (OSError, sqlite3.Error, StoreError) as error:
            raise StoreUnavailable(f"journal {self.path}: {error}; check the disk and its permissions") from error
        writer.start()
        self._writer = writer

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
            if row is not None and (record := _restored(*row)) is not None:
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
            if (record := _restored(encoded, checksum)) is None:
                lost.append(number)
            else:
                records.append((number, record, synced == 1))
        fresh = Path(f"{self.path}.new")
        fresh.unlink(missing_ok=True)
        _create(fresh)
        with opened(str(fresh), _TIMEOUT) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for number, record, synced in records:
                _insert(connection, record, synced=synced, number=number)
            connection.execute("COMMIT")
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        fresh.replace(self.path)
        self._look()
        numbered = f"; {len(lost)} numbers between {min(lost)} and {max(lost)} are in the copy alone" if lost else ""
        _logger.error("journal %s: %d records were saved%s", self.path, self.events, numbered)

    async def append(self, records: Sequence[Record], *, synced: bool) -> list[Appended]:
        """Store records durably, each checked against those of this journal; raise `StoreUnavailable` if it cannot.

        `synced`: the store must sync them too when it gets them. What a caller who gave up had written counts as well.
        """
        if self._writer is None:
            raise StoreUnavailable(f"journal {self.path}: is closed; nothing was stored")
        written = self._writer.submit(
            lambda connection: _append(connection, records, synced=synced), weight=len(records)
        )
        written.add_done_callback(lambda done: self._count(done, records[0].persisted_ms))
        return await asyncio.shield(written)

    def _count(self, written: asyncio.Future[list[Appended]], persisted_ms: int) -> None:
        if written.cancelled() or written.exception() is not None:
            return
        stored = sum(outcome is Appended.STORED for outcome in written.result())
        if stored and not self.events:
            self.oldest_ms = persisted_ms
        self.events += stored

    async def read(self, after: int = -1, limit: int = _PAGE) -> list[Entry]:
        """Return the next records behind number `after` that the store does not have, in order."""
        while self._writer is not None:
            start = max(after, self._drained)
            try:
                entries, bad = await self._writer.submit(partial(_read, after=start, limit=limit), durable=False)
            except StoreUnavailable:
                raise
            except StoreError:
                self.broken = True
                raise
            await self._report([number for number in bad if number not in self._bad])
            if entries:
                if after <= self._drained:
                    self.oldest_ms = entries[0].record.persisted_ms
                return entries
            if not bad:
                break
            after = bad[-1]
        return []

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
            await self._writer.submit(lambda connection: _mark(connection, numbers), durable=False)
        except StoreError as error:
            if not self._unmarked:
                self._unmarked = True
                _logger.warning("what the store has cannot be noted in the journal: %s", error)

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
        connection.executescript(_TABLES)


def _checksum(record: bytes) -> bytes:
    """Return 16 bytes of BLAKE2b (RFC 7693)."""
    return blake2b(record, digest_size=16, person=b"ag06.journal").digest()


def _restored(encoded: Any, checksum: Any) -> Record | None:
    """Return a record as it was written; `None` if that is not what is there."""
    if not isinstance(encoded, bytes) or _checksum(encoded) != checksum:
        return None
    try:
        return _decode(encoded)
    except msgspec.MsgspecError:
        return None


def _append(connection: sqlite3.Connection, records: Iterable[Record], *, synced: bool) -> list[Appended]:
    return [_append_one(connection, record, synced=synced) for record in records]


def _append_one(connection: sqlite3.Connection, record: Record, *, synced: bool) -> Appended:
    known = connection.execute("SELECT content FROM entries WHERE id = ?", (record.id,)).fetchone()
    if known is not None:
        same = record.content is None or known[0] is None or known[0] == record.content
        return Appended.REPEATED if same else Appended.CLASH
    if record.identity is not None:
        # An identity whose window would begin later than it is long was noted by a clock that was ahead.
        now_ms, window_ms = record.persisted_ms, record.window_ms
        other = connection.execute(
            "SELECT n, expires FROM entries WHERE identity = ? AND expires > ? AND expires <= ?",
            (record.identity, now_ms, now_ms + 2 * window_ms),
        ).fetchone()
        if other is not None:
            if other[1] > now_ms + window_ms:
                connection.execute("UPDATE entries SET expires = ? WHERE n = ?", (now_ms + window_ms, other[0]))
            return Appended.DUPLICATE
    _insert(connection, record, synced=synced)
    return Appended.STORED


def _insert(connection: sqlite3.Connection, record: Record, *, synced: bool, number: int | None = None) -> None:
    encoded = _encode(record)
    expires = record.persisted_ms + record.window_ms
    connection.execute(
        "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (number, record.id, record.identity, expires, record.content, synced, encoded, _checksum(encoded)),
    )


def _read(connection: sqlite3.Connection, after: int, limit: int) -> tuple[list[Entry], list[int]]:
    """Return the next whole records, and the numbers of damaged ones among them."""
    entries: list[Entry] = []
    bad: list[int] = []
    size = 0
    rows = connection.execute(
        "SELECT n, synced, record, checksum FROM entries WHERE n > ? AND record IS NOT NULL ORDER BY n LIMIT ?",
        (after, limit),
    )
    for number, synced, encoded, checksum in rows:
        if size >= _PAGE_BYTES:
            break
        size += len(encoded)
        record = _restored(encoded, checksum)
        if record is None:
            bad.append(number)
        else:
            entries.append(Entry(number, record, bool(synced)))
    rows.close()
    return entries, bad


def _mark(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    connection.executemany(
        "UPDATE entries SET record = NULL, checksum = NULL WHERE n = ?", [(number,) for number in numbers]
    )
