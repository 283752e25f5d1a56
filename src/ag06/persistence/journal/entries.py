"""The rows of a journal file: a record with its number and a checksum; once the store has it, its id and identity."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from ag06.persistence.log import Appended, Record

# No row is ever deleted, so numbers grow without AUTOINCREMENT, which writes one more page with each transaction.
TABLES = """
CREATE TABLE IF NOT EXISTS entries (
  n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, identity BLOB, expires INTEGER NOT NULL, content BLOB,
  synced INTEGER NOT NULL, record BLOB, checksum BLOB) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_identity ON entries (identity);
"""
_PAGE_BYTES = 1 << 20
_COPIED_ROWS = 2_000
_COPIED_BYTES = 8 << 20
_NEVER = (1 << 63) - 1
"""The largest integer of SQLite."""

_INSERT = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_NEW = """
INSERT OR IGNORE INTO entries SELECT NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7
WHERE ?2 IS NULL OR NOT EXISTS (SELECT 1 FROM entries WHERE identity = ?2 AND expires > ?8 AND expires <= ?9)
"""
_SHORTEN = "UPDATE entries SET expires = ?2 WHERE identity = ?1 AND expires > ?2"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode

Row = tuple[Any, ...]


class Entry(msgspec.Struct, frozen=True):
    """One record of a journal and its number there; `synced`: its publisher asked for more than the server's word."""

    number: int
    record: Record
    synced: bool


def sealed(record: Record) -> tuple[bytes, bytes]:
    """Return a record as it is written, and its checksum: 16 bytes of BLAKE2b (RFC 7693)."""
    encoded = _encode(record)
    return encoded, _checksum(encoded)


def restored(encoded: Any, written: Any) -> Record | None:
    """Return a record as it was written; `None` if that is not what is there. `written`: its checksum."""
    if not isinstance(encoded, bytes) or _checksum(encoded) != written:
        return None
    try:
        return _decode(encoded)
    except msgspec.MsgspecError:
        return None


def _checksum(encoded: bytes) -> bytes:
    return blake2b(encoded, digest_size=16, person=b"ag06.journal").digest()


def append(
    connection: sqlite3.Connection, records: Iterable[Record], *, synced: bool, newest_ms: int = 0
) -> list[Appended]:
    """Store records, each checked against those that are there; return the outcome of each.

    `newest_ms`: the latest time at which a record of this journal was persisted. Only while the clock is behind it, an
    identity with more than a window left is one of a clock that was ahead: its window begins now, or is over if it
    would begin later than it is long. Otherwise it has the longer window of another publisher.
    """
    outcomes = []
    for record in records:
        outcomes.append(_append_one(connection, record, synced=synced, is_behind=record.persisted_ms < newest_ms))
        newest_ms = max(newest_ms, record.persisted_ms)
    return outcomes


def _append_one(connection: sqlite3.Connection, record: Record, *, synced: bool, is_behind: bool) -> Appended:
    encoded, checksum = sealed(record)
    expires = record.persisted_ms + record.window_ms
    # One statement: between two of them the event loop's thread may hold the interpreter for 5 ms.
    stored = connection.execute(
        _INSERT_NEW,
        (
            record.id,
            record.identity,
            expires,
            record.content,
            synced,
            encoded,
            checksum,
            record.persisted_ms,
            expires + record.window_ms if is_behind else _NEVER,
        ),
    )
    if stored.rowcount == 1:
        return Appended.STORED
    known = connection.execute("SELECT content FROM entries WHERE id = ?", (record.id,)).fetchone()
    if known is None:
        if is_behind:
            connection.execute(_SHORTEN, (record.identity, expires))
        return Appended.DUPLICATE
    same = record.content is None or known[0] is None or known[0] == record.content
    return Appended.REPEATED if same else Appended.CLASH


def insert(connection: sqlite3.Connection, record: Record, *, synced: bool, number: int | None = None) -> None:
    """Store a record without a check, under a number where one is given."""
    encoded, checksum = sealed(record)
    expires = record.persisted_ms + record.window_ms
    connection.execute(
        _INSERT, (number, record.id, record.identity, expires, record.content, synced, encoded, checksum)
    )


def read(connection: sqlite3.Connection, after: int, limit: int) -> tuple[list[Entry], list[int]]:
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
        record = restored(encoded, checksum)
        if record is None:
            bad.append(number)
        else:
            entries.append(Entry(number, record, bool(synced)))
    rows.close()
    return entries, bad


def mark(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Note that the store has the records of these numbers."""
    connection.executemany(
        "UPDATE entries SET record = NULL, checksum = NULL WHERE n = ?", [(number,) for number in numbers]
    )


def copy_out(connection: sqlite3.Connection, after: int) -> list[Row]:
    """Return the next rows behind number `after` as they are, a few megabytes at most."""
    found: list[Row] = []
    size = 0
    rows = connection.execute("SELECT * FROM entries WHERE n > ? ORDER BY n LIMIT ?", (after, _COPIED_ROWS))
    for row in rows:
        found.append(row)
        size += len(row[6] or b"")
        if size >= _COPIED_BYTES:
            break
    rows.close()
    return found


def copy_in(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Store rows that `copy_out` returned."""
    connection.executemany(_INSERT, rows)
