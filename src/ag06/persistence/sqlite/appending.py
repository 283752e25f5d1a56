"""Appending inside a transaction: checks, positions, subject chains, the schedule."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from ag06.persistence.admission import says
from ag06.persistence.log import Appended, Record
from ag06.persistence.sqlite.clocks import begin_waits_anew, note_wait

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode

_LARGEST_PROMOTION = 1000

REACHED = """
INSERT INTO counters VALUES ('position', ?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)
"""
"""Note that positions up to this one are taken, though no event is there."""

_TAKE_IDENTITY = """
INSERT INTO identities VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET id = ?2, expires = ?3 WHERE expires <= ?4
"""
_STORE = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_CHAIN = """
INSERT INTO subjects VALUES (?, ?, ?, ?) ON CONFLICT (type, subject) DO UPDATE SET seq = excluded.seq,
level = excluded.level
"""

_Known = tuple[bytes | None, bytes, bytes | None]
"""What is stored under an id: its content if the publisher chose the id; its body, or its record if it is due later."""

_LAST = """
SELECT max(
  coalesce((SELECT max(seq) FROM events), 0), coalesce((SELECT value FROM counters WHERE name = 'position'), 0))
"""


class Appender:
    """Appends records within one transaction; `finish` writes down what was counted."""

    def __init__(self, connection: sqlite3.Connection, now_ms: int) -> None:
        """Begin at the end of the log as this transaction sees it."""
        self._connection = connection
        self._execute = connection.execute
        (last,) = self._execute(_LAST).fetchone()
        self._position = max(last + 1, now_ms << 20)
        self._now_ms = now_ms
        self._is_behind = last >> 20 > now_ms
        self._types: dict[str, int] = {}
        self._appended: dict[int, int] = {}
        self._room: dict[int, int | None] = {}
        self._duplicates = 0
        self.stored_types: set[str] = set()

    def append(self, record: Record, max_backlog: int = 0) -> Appended:
        """Check and store one record, now or when it is due."""
        if record.content is not None or record.persisted_ms:
            known = self._known(record.id)
            if known is not None and record.content is None:
                return Appended.REPEATED
            if known is not None:
                return Appended.REPEATED if _is_same(known, record) else Appended.CLASH
        type_id = self._type(record.type)
        # The identity is taken by the same statement that looks for it, so room is looked for first; a duplicate
        # is a duplicate all the same.
        full = max_backlog > 0 and self._full(type_id, max_backlog)
        if record.identity is not None:
            if full and not self._remembered(record):
                return Appended.FULL
            if not self._take_identity(record):
                return self._duplicate(record)
        elif full:
            return Appended.FULL
        if record.due_ms > self._now_ms:
            return self._schedule(record)
        return self.store(record, type_id)

    def store(self, record: Record, type_id: int | None = None) -> Appended:
        """Put a checked record at the end of the log."""
        if type_id is None:
            type_id = self._type(record.type)
        prev = prev_level = None
        if record.subject is not None:
            row = self._execute(
                "SELECT seq, level FROM subjects WHERE type = ? AND subject = ?", (type_id, record.subject)
            ).fetchone()
            if row is not None:
                prev, prev_level = row
        position = self._position
        try:
            self._execute(
                _STORE,
                (
                    position,
                    type_id * 4 + record.level,
                    record.id,
                    prev,
                    prev_level,
                    record.subject is not None,
                    record.content,
                    record.body,
                ),
            )
        except sqlite3.IntegrityError:
            return Appended.REPEATED  # the id is there: an output committed again, or a repeated publish
        self._position = position + 1
        if record.subject is not None:
            self._execute(_CHAIN, (type_id, record.subject, position, record.level))
        self._appended[type_id] = self._appended.get(type_id, 0) + 1
        self.stored_types.add(record.type)
        return Appended.STORED

    def finish(self) -> set[str]:
        """Write the counters; return the types that have new events, now or later."""
        for type_id, count in self._appended.items():
            self._execute("UPDATE types SET appended = appended + ? WHERE id = ?", (count, type_id))
        if self._duplicates:
            self._execute("UPDATE counters SET value = value + ? WHERE name = 'duplicates'", (self._duplicates,))
        return self.stored_types

    def _type(self, name: str) -> int:
        type_id = self._types.get(name)
        if type_id is None:
            type_id = self._types[name] = find_type(self._connection, name)
        return type_id

    def _known(self, event_id: str) -> _Known | None:
        found: _Known | None = self._execute(
            "SELECT content, body, NULL FROM events WHERE id = ?1 "
            "UNION ALL SELECT content, NULL, record FROM scheduled WHERE id = ?1 "
            "UNION ALL SELECT content, NULL, NULL FROM trimmed_ids WHERE id = ?1",
            (event_id,),
        ).fetchone()
        return found

    def _take_identity(self, record: Record) -> bool:
        """Note whose the identity is; return whether nobody has it at the time that counts for this record."""
        persisted_ms, window_ms = record.persisted_ms, record.window_ms
        if not persisted_ms:
            values = (record.identity, record.id, self._now_ms + window_ms, self._now_ms)
            return self._execute(_TAKE_IDENTITY, values).rowcount > 0 or (self._is_behind and self._reclaim(record))
        row = self._execute("SELECT expires FROM identities WHERE key = ?", (record.identity,)).fetchone()
        if row is not None and abs(row[0] - persisted_ms - window_ms) < window_ms:
            return False
        expires = min(persisted_ms, self._now_ms) + window_ms
        self._execute(_TAKE_IDENTITY, (record.identity, record.id, expires, expires))
        return True

    def _reclaim(self, record: Record) -> bool:
        """Take an identity whose window a clock that was ahead began: it begins now, or is over if all of it is ahead.

        Only while the clock is behind the newest event: else it is another publisher's longer window.
        """
        (expires,) = self._execute("SELECT expires FROM identities WHERE key = ?", (record.identity,)).fetchone()
        ends = self._now_ms + record.window_ms
        if expires <= ends:
            return False
        is_over = bool(expires - record.window_ms > ends)
        self._execute(
            "UPDATE identities SET expires = ?2, id = CASE WHEN ?3 THEN ?4 ELSE id END WHERE key = ?1",
            (record.identity, ends, is_over, record.id),
        )
        return is_over

    def _remembered(self, record: Record) -> bool:
        row = self._execute(
            "SELECT 1 FROM identities WHERE key = ? AND expires > ?", (record.identity, self._now_ms)
        ).fetchone()
        return row is not None

    def _duplicate(self, record: Record) -> Appended:
        (first,) = self._execute("SELECT id FROM identities WHERE key = ?", (record.identity,)).fetchone()
        if first == record.id:
            return Appended.REPEATED
        self._duplicates += 1
        return Appended.DUPLICATE

    def _full(self, type_id: int, max_backlog: int) -> bool:
        if type_id not in self._room:
            (slowest,) = self._execute("SELECT min(base + settled) FROM groups WHERE type = ?", (type_id,)).fetchone()
            (appended,) = self._execute("SELECT appended FROM types WHERE id = ?", (type_id,)).fetchone()
            self._room[type_id] = None if slowest is None else max_backlog - (appended - slowest)
        room = self._room[type_id]
        return room is not None and self._appended.get(type_id, 0) >= room

    def _schedule(self, record: Record) -> Appended:
        now_ms = self._now_ms
        cursor = self._execute(
            "INSERT OR IGNORE INTO scheduled (due, id, content, record, since) VALUES (?, ?, ?, ?, ?)",
            (record.due_by(now_ms), record.id, record.content, _encode(record), now_ms if record.delay_ms else None),
        )
        if not cursor.rowcount:
            return Appended.REPEATED
        if record.delay_ms:
            note_wait(self._connection, now_ms)
        self._execute(REACHED, (now_ms << 20,))  # what shows later that a clock was ahead
        self.stored_types.add(record.type)  # whoever waits for these must wait for less long now
        return Appended.STORED


def _is_same(known: _Known, record: Record) -> bool:
    content, body, scheduled = known
    if content is not None:
        return content == record.content
    return says(body if scheduled is None else _decode(scheduled).body, record.content)


def find_type(connection: sqlite3.Connection, name: str) -> int:
    """Return the number of an event type, making it known if it is not."""
    row = connection.execute("SELECT id FROM types WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row[0])
    cursor = connection.execute("INSERT INTO types (name) VALUES (?)", (name,))
    return int(cursor.lastrowid or 0)


Call = tuple[Sequence[Record], int]
"""The records of one caller, and its `max_backlog`."""


def append_calls(
    connection: sqlite3.Connection, calls: Iterable[Call], now_ms: int
) -> tuple[list[list[Appended]], set[str]]:
    """Append what many callers brought; return each one's outcomes, and the types that have new events."""
    appender = Appender(connection, now_ms)
    outcomes = [[appender.append(record, max_backlog) for record in records] for records, max_backlog in calls]
    return outcomes, appender.finish()


def promote(connection: sqlite3.Connection, now_ms: int) -> set[str]:
    """Append what was scheduled and is due; return the types that have new events.

    What a clock that was ahead put off begins to wait now.
    """
    begin_waits_anew(connection, now_ms)
    due = connection.execute(
        "SELECT n, record FROM scheduled WHERE due <= ? ORDER BY due, n LIMIT ?", (now_ms, _LARGEST_PROMOTION)
    ).fetchall()
    if not due:
        return set()
    appender = Appender(connection, now_ms)
    for number, record in due:
        connection.execute("DELETE FROM scheduled WHERE n = ?", (number,))
        appender.store(_decode(record))
    return appender.finish()
