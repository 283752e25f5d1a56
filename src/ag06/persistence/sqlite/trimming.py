"""What leaves the log inside a transaction: the first events of a stream, as far as every group settled them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from ag06.persistence.log import Cut
from ag06.persistence.sqlite.appending import REACHED
from ag06.persistence.sqlite.deliveries import LEVELS

_SLICE = 2000


def trim(connection: sqlite3.Connection, now_ms: int, retention: float, by_type: Mapping[str, float]) -> bool:
    """Delete a slice of the events that every group settled and that are older than the seconds they stay.

    `by_type` beats `retention`; 0: for ever. The newest event always stays. Returns whether there may be more.
    """
    newest = _newest(connection)
    left = _SLICE
    for type_id, name in connection.execute("SELECT id, name FROM types").fetchall():
        seconds = by_type.get(name, retention)
        before = (now_ms - int(seconds * 1000)) << 20
        for level in LEVELS if seconds else ():
            limit = min(before, newest, _first_needed(connection, type_id, level))
            left -= _trim_stream(connection, type_id * 4 + level, limit, left, now_ms)
            if not left:
                return True
    return False


def settled(connection: sqlite3.Connection, before_ms: int, types: Sequence[str] | None) -> list[Cut]:
    """Return up to where every group settled each stream, where it has events before that; see the port."""
    newest = _newest(connection)
    cuts: list[Cut] = []
    for type_id, name in connection.execute("SELECT id, name FROM types ORDER BY name").fetchall():
        for level in LEVELS if types is None or name in types else ():
            limit = min(before_ms << 20, newest + 1, _first_needed(connection, type_id, level))
            found = connection.execute(
                "SELECT 1 FROM events WHERE stream = ? AND seq < ? LIMIT 1", (type_id * 4 + level, limit)
            )
            if found.fetchone() is not None:
                cuts.append(Cut(name, level, limit))
    return cuts


def drop(connection: sqlite3.Connection, cut: Cut, most: int, now_ms: int) -> int:
    """Delete the first events of a cut, at most `most`, that every group settled; return how many."""
    row = connection.execute("SELECT id FROM types WHERE name = ?", (cut.type,)).fetchone()
    if row is None:
        return 0
    newest = _newest(connection)
    limit = min(cut.below, newest + 1, _first_needed(connection, row[0], cut.level))
    if limit > newest:
        connection.execute(REACHED, (newest,))
    return _trim_stream(connection, row[0] * 4 + cut.level, limit, most, now_ms)


def _newest(connection: sqlite3.Connection) -> int:
    """Return the position of the newest event; positions go on from it, so whoever deletes it notes the position."""
    (newest,) = connection.execute("SELECT max(seq) FROM events").fetchone()
    return newest or 0


def _trim_stream(connection: sqlite3.Connection, stream: int, limit: int, most: int, now_ms: int) -> int:
    count, chosen, last = connection.execute(
        "SELECT count(*), count(content), max(seq) FROM "
        "(SELECT seq, content FROM events WHERE stream = ? AND seq < ? ORDER BY seq LIMIT ?)",
        (stream, limit, most),
    ).fetchone()
    if not count:
        return 0
    if chosen:
        connection.execute(
            "INSERT OR IGNORE INTO trimmed_ids SELECT id, content, ? FROM events "
            "WHERE stream = ? AND seq <= ? AND content IS NOT NULL",
            (now_ms, stream, last),
        )
    connection.execute("DELETE FROM events WHERE stream = ? AND seq <= ?", (stream, last))
    connection.execute("UPDATE counters SET value = value + ? WHERE name = 'trimmed'", (count,))
    return int(count)


def _first_needed(connection: sqlite3.Connection, type_id: int, level: int) -> int:
    """Return the position from which some group has unread or pending events of a stream."""
    first = 1 << 62
    for number, *read in connection.execute(
        "SELECT id, read0, read1, read2, read3 FROM groups WHERE type = ?", (type_id,)
    ).fetchall():
        first = min(first, read[level] + 1)
        (pending,) = connection.execute("SELECT min(seq) FROM deliveries WHERE grp = ?", (number,)).fetchone()
        first = first if pending is None else min(first, pending)
    return first


def trimmed(connection: sqlite3.Connection) -> int:
    """Return how many events have left the log since it was made."""
    (count,) = connection.execute("SELECT value FROM counters WHERE name = 'trimmed'").fetchone()
    return int(count)
