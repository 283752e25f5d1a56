"""One journal in one SQLite file: records in order, each with a checksum, until the store has them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from ag06.errors import StoreUnavailable
from ag06.persistence.journal.claim import Claim
from ag06.persistence.journal.salvage import Damage, keep_copy, wal_damage
from ag06.persistence.log import Appended, Record
from ag06.persistence.sqlite.schema import connect
from ag06.persistence.sqlite.waiting import Waiters
from ag06.persistence.sqlite.writer import Writer

_logger = logging.getLogger("ag06.persistence.journal")

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
  n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, identity BLOB, expires INTEGER NOT NULL, content BLOB,
  synced INTEGER NOT NULL, record BLOB, checksum BLOB) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_identity ON entries (identity);
"""
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
        self._writer: Writer | None = None

    async def open(self) -> None:
        """Make the file or look through what is there; raise `StoreUnavailable` if the disk does not let us.

        What cannot be read is set aside and reported in the log; all else is there to be drained.
        """
        try:
            await asyncio.to_thread(self._prepare)
            self._writer = Writer(str(self.path), _TIMEOUT, True, Waiters())
            self._writer.start()
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"journal {self.path}: {error}; check the disk and its permissions") from error

    def _prepare(self) -> None:
        log = Path(f"{self.path}-wal")
        damage = wal_damage(log)
        if damage is None and self.path.exists() and not self.path.stat().st_size and not log.exists():
            damage = "it is empty"
        if damage:
            self._set_aside(damage)
        try:
            self._create()
            self._look()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) or not self.path.exists():
                raise
            self._set_aside(str(error))
            self._begin_anew()

    def _create(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        with contextlib.closing(connect(str(self.path), _TIMEOUT)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_TABLES)

    def _look(self) -> None:
        """Count what is there; note what cannot be read."""
        with contextlib.closing(connect(str(self.path), _TIMEOUT)) as connection:
            (self.events,) = connection.execute("SELECT count(*) FROM entries WHERE record IS NOT NULL").fetchone()
            for problem in connection.execute("PRAGMA quick_check(10)").fetchall():
                if problem != ("ok",):
                    raise sqlite3.DatabaseError(problem[0])
            row = connection.execute(
                "SELECT record, checksum FROM entries WHERE record IS NOT NULL ORDER BY n LIMIT 1"
            ).fetchone()
            if row is not None and _is_whole(*row):
                self.oldest_ms = _decode(row[0]).persisted_ms

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
        """Copy what a damaged file still gives into a new one under the same name."""
        rows, missing = Damage(self.path).rows()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self._create()
        with contextlib.closing(connect(str(self.path), _TIMEOUT)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        self._look()
        _logger.error("journal %s: %d records were saved%s", self.path, self.events, missing)

    async def append(self, records: Sequence[Record], *, synced: bool) -> list[Appended]:
        """Store records durably, each checked against those of this journal; raise `StoreUnavailable` if it cannot.

        `synced`: the store must sync them too when it gets them.
        """
        if self._writer is None:
            raise StoreUnavailable(f"journal {self.path}: is closed; nothing was stored")
        outcomes = await self._writer.submit(
            lambda connection: _append(connection, records, synced=synced), weight=len(records)
        )
        stored = sum(outcome is Appended.STORED for outcome in outcomes)
        if stored and not self.events:
            self.oldest_ms = records[0].persisted_ms
        self.events += stored
        return outcomes

    async def read(self, after: int, limit: int = _PAGE) -> list[Entry]:
        """Return the next records behind number `after` that the store does not have, in order."""
        if self._writer is None:
            return []
        entries, bad = await self._writer.submit(lambda connection: _read(connection, after, limit), durable=False)
        if bad:
            await self._drop(bad)
            if not entries:
                return await self.read(bad[-1], limit)
        if entries:
            self.oldest_ms = entries[0].record.persisted_ms
        return entries

    async def _drop(self, bad: list[int]) -> None:
        """Let go of records whose checksum is wrong: they stay in the copy of the file that is set aside."""
        if not self.damaged:
            self.damaged = True
            copies = await asyncio.to_thread(keep_copy, self.path)
            _logger.error(
                "journal %s is damaged: the records number %s do not have the content that was written; they are kept "
                "in %s, all others go to the store",
                self.path,
                bad,
                copies,
            )
        else:
            _logger.error("journal %s: the records number %s are damaged too", self.path, bad)
        await self.mark(bad)

    async def mark(self, numbers: Sequence[int]) -> None:
        """Note that the store has these records; their ids and identities stay known here."""
        if self._writer is not None and numbers:
            count = await self._writer.submit(lambda connection: _mark(connection, numbers), durable=False)
            self.events -= count
            if not self.events:
                self.oldest_ms = None

    async def close(self) -> None:
        """Close the file; it is deleted if the store has everything, else left for the next process."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
            await asyncio.to_thread(writer.join)
        await asyncio.to_thread(self.claim.let_go, delete=not self.events)

    def abandon(self) -> None:
        """Let go without waiting: the event loop has ended."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
        self.claim.let_go(delete=False)


def _checksum(record: bytes) -> bytes:
    """Return 16 bytes of BLAKE2b (RFC 7693)."""
    return blake2b(record, digest_size=16, person=b"ag06.journal").digest()


def _is_whole(record: bytes, checksum: bytes) -> bool:
    return _checksum(record) == checksum


def _append(connection: sqlite3.Connection, records: Iterable[Record], *, synced: bool) -> list[Appended]:
    return [_append_one(connection, record, synced=synced) for record in records]


def _append_one(connection: sqlite3.Connection, record: Record, *, synced: bool) -> Appended:
    known = connection.execute("SELECT content FROM entries WHERE id = ?", (record.id,)).fetchone()
    if known is not None:
        same = record.content is None or known[0] is None or known[0] == record.content
        return Appended.REPEATED if same else Appended.CLASH
    if record.identity is not None:
        other = connection.execute(
            "SELECT 1 FROM entries WHERE identity = ? AND expires > ?", (record.identity, record.persisted_ms)
        ).fetchone()
        if other is not None:
            return Appended.DUPLICATE
    encoded = _encode(record)
    connection.execute(
        "INSERT INTO entries (id, identity, expires, content, synced, record, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            record.id,
            record.identity,
            record.persisted_ms + record.window_ms,
            record.content,
            synced,
            encoded,
            _checksum(encoded),
        ),
    )
    return Appended.STORED


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
        if _is_whole(encoded, checksum):
            entries.append(Entry(number, _decode(encoded), bool(synced)))
        else:
            bad.append(number)
    rows.close()
    return entries, bad


def _mark(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
    return connection.executemany(
        "UPDATE entries SET record = NULL, checksum = NULL WHERE n = ? AND record IS NOT NULL",
        [(number,) for number in numbers],
    ).rowcount
