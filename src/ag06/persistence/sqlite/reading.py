"""Reading without writing: pages of events, and how everything stands. Each function is one short read."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

import msgspec

from ag06.persistence.log import Failure, GroupInfo, LogStats, Query, Stored, StoredDeadLetter

PAGE = 1000
"""Events read at once: no snapshot is held between pages, so the write-ahead log can be folded back."""
PAGE_BYTES = 4 << 20
"""About the bytes of their bodies after which a page or a fetch ends."""
_CHUNK = 16
_last_column = itemgetter(-1)

_decode_failure = msgspec.json.Decoder(Failure).decode
_BY_POSITION = "SELECT seq, body FROM events WHERE seq > ? AND seq <= ? AND +stream >= 0 ORDER BY seq LIMIT ?"
_BY_STREAM = "SELECT seq, body FROM events WHERE stream = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
_NEWEST = "SELECT seq FROM events WHERE seq > ? AND seq <= ? AND +stream >= 0 ORDER BY seq DESC LIMIT 1 OFFSET ?"
_NEWEST_OF = "SELECT seq FROM events WHERE stream = ? AND seq > ? AND seq <= ? ORDER BY seq DESC LIMIT 1 OFFSET ?"


# Counting ten million rows takes a second; these two numbers are kept.
_EVENTS = """
SELECT (SELECT coalesce(sum(appended), 0) FROM types) - (SELECT value FROM counters WHERE name = 'trimmed')
"""
_R = TypeVar("_R")
_Row = tuple[int, bytes]


def snapshot(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], _R]) -> _R:
    """Run one short read so that all its statements see the same state of the log.

    Two counts taken a moment apart would miss an event that moves on from one step to the next.
    """
    connection.execute("BEGIN")
    try:
        return function(connection)
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


class Span(msgspec.Struct):
    """What a query still has to read: positions above `after` up to `last`, of some streams or all."""

    after: int
    last: int
    streams: list[int] | None
    merged: Iterator[_Row] | None = None
    connection: sqlite3.Connection | None = None
    """What the page is read with: between two pages it may be closed and opened again."""


def plan(connection: sqlite3.Connection, query: Query) -> Span:
    """Return what a query reads, bounded by the end of the log as it is now."""
    (last,) = connection.execute("SELECT max(seq) FROM events").fetchone()
    last = -1 if last is None else last
    if query.end_ms is not None:
        last = min(last, (min(query.end_ms, 1 << 42) << 20) - 1)
    if query.below is not None:
        last = min(last, query.below - 1)
    span = Span(max(query.after, (min(query.start_ms, 1 << 42) << 20) - 1), last, None)
    if query.types is not None or query.level is not None:
        levels = range(4) if query.level is None else (query.level,)
        span.streams = [type_id * 4 + level for type_id in _type_ids(connection, query.types) for level in levels]
    if query.newest is not None:
        span.after = max(span.after, _before_newest(connection, span, query.newest))
    return span


def _type_ids(connection: sqlite3.Connection, names: tuple[str, ...] | None) -> list[int]:
    if names is None:
        return [type_id for (type_id,) in connection.execute("SELECT id FROM types")]
    found = [connection.execute("SELECT id FROM types WHERE name = ?", (name,)).fetchone() for name in set(names)]
    return [row[0] for row in found if row is not None]


def _before_newest(connection: sqlite3.Connection, span: Span, count: int) -> int:
    """Return a position behind which lie `count` events or a few more."""
    if count <= 0:
        return span.last
    if span.streams is None:
        row = connection.execute(_NEWEST, (span.after, span.last, count)).fetchone()
        return -1 if row is None else int(row[0])
    starts: list[int] = []
    for stream in span.streams:
        row = connection.execute(_NEWEST_OF, (stream, span.after, span.last, count)).fetchone()
        starts.append(-1 if row is None else int(row[0]))
    return max(starts, default=-1)


def page(connection: sqlite3.Connection, span: Span) -> list[Stored]:
    """Return the next events of a span, and move it on."""
    if span.streams is None:
        rows, _ = some(connection.execute(_BY_POSITION, (span.after, span.last, PAGE)), PAGE_BYTES)
        if rows:
            span.after = rows[-1][0]
    else:
        span.connection = connection
        if span.merged is None:
            span.merged = heapq.merge(*(_stride(stream, span) for stream in span.streams))
        rows, size = [], 0
        for row in islice(span.merged, PAGE):
            rows.append(row)
            size += len(row[-1])
            if size >= PAGE_BYTES:
                break
    return [Stored(seq, seq >> 20, body) for seq, body in rows]


def _stride(stream: int, span: Span) -> Iterator[_Row]:
    """Yield the rows of one stream, read a stride at a time: a page over many streams keeps few rows of each."""
    after = span.after
    sharing = len(span.streams or (0,))
    length = max(16, PAGE // sharing)
    most = PAGE_BYTES // sharing
    while span.connection is not None:
        rows, is_cut = some(span.connection.execute(_BY_STREAM, (stream, after, span.last, length)), most)
        yield from rows
        if len(rows) < length and not is_cut:
            return
        after = rows[-1][0]


def some(cursor: sqlite3.Cursor, most_bytes: int) -> tuple[list[Any], bool]:
    """Return the first rows of a statement, up to some bytes of their last column and a few rows more.

    Return also whether it may have more, left out for their bytes.
    """
    rows: list[Any] = []
    size, count = 0, _CHUNK
    while chunk := cursor.fetchmany(count):
        rows += chunk
        size += sum(map(len, map(_last_column, chunk)))
        if len(chunk) < count or size >= most_bytes:
            break
        count = min(4 * count, 1 + (most_bytes - size) * len(rows) // max(1, size))
    cursor.close()
    return rows, size >= most_bytes


def groups(connection: sqlite3.Connection) -> list[GroupInfo]:
    """Return how each group stands."""
    return [
        GroupInfo(
            group=name,
            type=event_type,
            backlog=backlog,
            in_flight=_one(connection, "SELECT count(*) FROM deliveries WHERE grp = ?", number),
            dead_letters=_one(connection, "SELECT count(*) FROM dead_letters WHERE grp = ?", name),
            oldest_ms=_oldest_ms(connection, number, type_id, read) if backlog else None,
        )
        for number, name, type_id, event_type, backlog, *read in connection.execute(
            "SELECT g.id, g.name, g.type, t.name, t.appended - g.base - g.settled, read0, read1, read2, read3 "
            "FROM groups g JOIN types t ON t.id = g.type ORDER BY g.name"
        ).fetchall()
    ]


def _oldest_ms(connection: sqlite3.Connection, group: int, type_id: int, read: list[int]) -> int | None:
    found = [connection.execute("SELECT min(seq) FROM deliveries WHERE grp = ?", (group,)).fetchone()[0]]
    for level in range(4):
        row = connection.execute(
            "SELECT min(seq) FROM events WHERE stream = ? AND seq > ?", (type_id * 4 + level, read[level])
        ).fetchone()
        found.append(row[0])
    seen = [seq for seq in found if seq is not None]
    return min(seen) >> 20 if seen else None


def pending(connection: sqlite3.Connection, names: list[str]) -> int:
    """Return what these groups have not settled, and what is scheduled."""
    total = _one(connection, "SELECT count(*) FROM scheduled")
    for name in names:
        row = connection.execute(
            "SELECT t.appended - g.base - g.settled FROM groups g JOIN types t ON t.id = g.type WHERE g.name = ?",
            (name,),
        ).fetchone()
        total += 0 if row is None else row[0]
    return total


def stats(connection: sqlite3.Connection) -> LogStats:
    """Return how the log stands."""
    return LogStats(
        events=_one(connection, _EVENTS),
        duplicates=_one(connection, "SELECT value FROM counters WHERE name = 'duplicates'"),
        scheduled=_one(connection, "SELECT count(*) FROM scheduled"),
        dead_letters=_one(connection, "SELECT count(*) FROM dead_letters"),
        groups=tuple(groups(connection)),
    )


def dead_letters(
    connection: sqlite3.Connection, group: str | None, limit: int, after: str = ""
) -> list[StoredDeadLetter]:
    """Return dead letters behind the place `after`, oldest first."""
    rows = connection.execute(
        "SELECT grp, id, seq, body, failure, n FROM dead_letters WHERE n > ?3 AND (?1 IS NULL OR grp = ?1) "
        "ORDER BY n LIMIT ?2",
        (group, limit, int(after or 0)),
    ).fetchall()
    return [
        StoredDeadLetter(grp, id_, seq >> 20, body, _decode_failure(why), str(n))
        for grp, id_, seq, body, why, n in rows
    ]


def _one(connection: sqlite3.Connection, statement: str, *parameters: object) -> int:
    return int(connection.execute(statement, parameters).fetchone()[0])
