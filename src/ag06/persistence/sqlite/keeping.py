"""What happens to groups, dead letters and old data inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from ag06.errors import ConfigurationError
from ag06.event import id_and_subject
from ag06.persistence.log import Cut, StepSpec, dispatch_key
from ag06.persistence.sqlite.appending import find_type
from ag06.persistence.sqlite.deliveries import BLOCKED, LEVELS, READY, GroupRow, load_group, open_before

_SLICE = 2000


def register(connection: sqlite3.Connection, workflow: str, steps: Sequence[StepSpec]) -> None:
    """Make steps known that are not; see the port."""
    known = dict(connection.execute("SELECT g.name, t.name FROM groups g JOIN types t ON t.id = g.type").fetchall())
    for spec in steps:
        listens = known.get(spec.group, spec.type)
        if listens != spec.type:
            raise ConfigurationError(
                f"step {spec.group!r} listens to {spec.type!r}, but the store knows it as a step of {listens!r}; "
                f"give it another name, or run: ag06 steps remove {spec.group}"
            )
    row = connection.execute("SELECT 1 FROM groups WHERE workflow = ? LIMIT 1", (workflow,)).fetchone()
    new = row is None
    for spec in steps:
        if spec.group not in known:
            start = ("beginning" if new else "end") if spec.start is None else spec.start
            _place(connection, workflow, spec, start)


def _place(connection: sqlite3.Connection, workflow: str, spec: StepSpec, start: str | int) -> None:
    type_id = find_type(connection, spec.type)
    (appended,) = connection.execute("SELECT appended FROM types WHERE id = ?", (type_id,)).fetchone()
    if start == "end":
        (last,) = connection.execute("SELECT max(seq) FROM events").fetchone()
        first = last or 0
    else:
        first = (start << 20) - 1 if isinstance(start, int) else -1
    (ahead,) = connection.execute(
        "SELECT count(*) FROM events WHERE stream BETWEEN ? AND ? AND seq > ?", (type_id * 4, type_id * 4 + 3, first)
    ).fetchone()
    connection.execute(
        "INSERT INTO groups (name, workflow, type, read0, read1, read2, read3, base) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (spec.group, workflow, type_id, first, first, first, first, appended - ahead),
    )


def remove(connection: sqlite3.Connection, name: str) -> bool:
    """Forget a group; its dead letters stay."""
    row = connection.execute("DELETE FROM groups WHERE name = ? RETURNING id", (name,)).fetchone()
    if row is None:
        return False
    connection.execute("DELETE FROM deliveries WHERE grp = ?", row)
    connection.execute("DELETE FROM workers WHERE grp = ?", row)
    return True


def retry(connection: sqlite3.Connection, letters: Sequence[tuple[str, str]]) -> int:
    """Deliver dead letters again, each to its group alone; return how many were found."""
    return sum(_retry(connection, group, event_id) for group, event_id in letters)


def _retry(connection: sqlite3.Connection, name: str, event_id: str) -> bool:
    execute = connection.execute
    group = load_group(connection, name)
    letter = execute(
        "SELECT n, seq, stream, body FROM dead_letters WHERE grp = ? AND id = ?", (name, event_id)
    ).fetchone()
    if group is None or letter is None:
        return False
    number, seq, stream, body = letter
    if stream >> 2 != group.type:
        return False  # the step of this name listens to something else now
    execute("DELETE FROM dead_letters WHERE n = ?", (number,))
    if seq > group.read[stream & 3]:
        return True  # the step was removed and came back: it has the event still before it
    # The retention may have taken the event since: the dead letter kept it.
    restored = execute(
        "INSERT OR IGNORE INTO events VALUES (?, ?, ?, NULL, NULL, 1, NULL, ?)", (seq, stream, event_id, body)
    ).rowcount
    execute("UPDATE counters SET value = value - ? WHERE name = 'trimmed'", (restored,))
    if execute("SELECT 1 FROM deliveries WHERE grp = ? AND seq = ?", (group.id, seq)).fetchone() is None:
        _queue(connection, group, seq, stream & 3, id_and_subject(body)[1])
    return True


def _queue(connection: sqlite3.Connection, group: GroupRow, seq: int, level: int, subject: str | None) -> None:
    """Deliver the event at `seq` at the end of its subject: behind what is open now, before what comes later."""
    execute = connection.execute
    before = tail = None
    if subject is not None:
        tail, tail_level = _tail(connection, group.type, subject, seq, level)
        before = open_before(connection, group, tail, tail_level)
        execute("UPDATE deliveries SET behind = 0 WHERE grp = ? AND behind = ? AND behind > 0", (group.id, tail))
    rank = dispatch_key(seq >> 20, level)
    state, due = (READY, rank) if before is None else (BLOCKED, before)
    execute(
        "INSERT INTO deliveries (grp, seq, state, rank, due, behind) VALUES (?, ?, ?, ?, ?, ?)",
        (group.id, seq, state, rank, due, tail),
    )
    execute("UPDATE groups SET settled = settled - 1 WHERE id = ?", (group.id,))


def _tail(connection: sqlite3.Connection, type_id: int, subject: str, seq: int, level: int) -> tuple[int, int]:
    """Return the last event of a subject in the log and its level; that at `seq` if the retention took all others."""
    row: tuple[int, int] | None = connection.execute(
        "SELECT seq, level FROM subjects s WHERE type = ? AND subject = ? "
        "AND EXISTS (SELECT 1 FROM events e WHERE e.seq = s.seq)",
        (type_id, subject),
    ).fetchone()
    if row is not None:
        return row
    connection.execute("INSERT OR REPLACE INTO subjects VALUES (?, ?, ?, ?)", (type_id, subject, seq, level))
    return seq, level


def discard(connection: sqlite3.Connection, letters: Sequence[tuple[str, str]]) -> int:
    """Delete dead letters; return how many were found."""
    return connection.executemany("DELETE FROM dead_letters WHERE grp = ? AND id = ?", list(letters)).rowcount


def forget_identities(connection: sqlite3.Connection, now_ms: int, after: bytes) -> bytes:
    """Drop those of the next identities behind `after` whose window ended; return the last one looked at.

    `b""` at the end. One slice of the table a transaction, in the order of its keys: an index over `expires` would cost
    every append.
    """
    (last,) = connection.execute(
        "SELECT max(key) FROM (SELECT key FROM identities WHERE key > ? ORDER BY key LIMIT ?)", (after, _SLICE)
    ).fetchone()
    if last is None:
        return b""
    connection.execute("DELETE FROM identities WHERE key > ? AND key <= ? AND expires <= ?", (after, last, now_ms))
    return bytes(last)


def trim(connection: sqlite3.Connection, now_ms: int, retention: float, by_type: Mapping[str, float]) -> bool:
    """Delete a slice of each stream's events that every group settled and that are older than the seconds they stay.

    `by_type` beats `retention`; 0: for ever. Returns whether there may be more.
    """
    newest = _newest(connection)
    full = False
    for type_id, name in connection.execute("SELECT id, name FROM types").fetchall():
        seconds = by_type.get(name, retention)
        before = (now_ms - int(seconds * 1000)) << 20
        for level in LEVELS if seconds else ():
            limit = min(before, newest, _first_needed(connection, type_id, level))
            full |= _trim_stream(connection, type_id * 4 + level, limit, _SLICE) == _SLICE
    return full


def settled(connection: sqlite3.Connection, before_ms: int, types: Sequence[str] | None) -> list[Cut]:
    """Return up to where every group settled each stream, where it has events before that; see the port."""
    newest = _newest(connection)
    cuts: list[Cut] = []
    for type_id, name in connection.execute("SELECT id, name FROM types ORDER BY name").fetchall():
        for level in LEVELS if types is None or name in types else ():
            limit = min(before_ms << 20, newest, _first_needed(connection, type_id, level))
            found = connection.execute(
                "SELECT 1 FROM events WHERE stream = ? AND seq < ? LIMIT 1", (type_id * 4 + level, limit)
            )
            if found.fetchone() is not None:
                cuts.append(Cut(name, level, limit))
    return cuts


def drop(connection: sqlite3.Connection, cut: Cut, most: int) -> int:
    """Delete the first events of a cut, at most `most`, that every group settled; return how many."""
    row = connection.execute("SELECT id FROM types WHERE name = ?", (cut.type,)).fetchone()
    if row is None:
        return 0
    limit = min(cut.below, _newest(connection), _first_needed(connection, row[0], cut.level))
    return _trim_stream(connection, row[0] * 4 + cut.level, limit, most)


def _newest(connection: sqlite3.Connection) -> int:
    """Return the position of the newest event, which always stays: positions go on from it."""
    (newest,) = connection.execute("SELECT max(seq) FROM events").fetchone()
    return newest or 0


def _trim_stream(connection: sqlite3.Connection, stream: int, limit: int, most: int) -> int:
    rows = connection.execute(
        "SELECT seq, id, content FROM events WHERE stream = ? AND seq < ? ORDER BY seq LIMIT ?", (stream, limit, most)
    ).fetchall()
    if not rows:
        return 0
    connection.executemany(
        "INSERT OR IGNORE INTO trimmed_ids VALUES (?, ?)",
        [(event_id, content) for _, event_id, content in rows if content is not None],
    )
    connection.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq, _, _ in rows])
    connection.execute("UPDATE counters SET value = value + ? WHERE name = 'trimmed'", (len(rows),))
    return len(rows)


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


def forget_subjects(connection: sqlite3.Connection, after: tuple[int, str]) -> tuple[int, str]:
    """Drop the chain's end of subjects whose last event was trimmed, in one slice behind `after`; return its end.

    While the event is in the log the chain must stay: a step that is added later may begin with it.
    """
    rows = connection.execute(
        "SELECT type, subject, seq FROM subjects WHERE (type, subject) > (?, ?) ORDER BY type, subject LIMIT ?",
        (*after, _SLICE),
    ).fetchall()
    connection.executemany(
        "DELETE FROM subjects WHERE type = ?1 AND subject = ?2 AND NOT EXISTS (SELECT 1 FROM events WHERE seq = ?3)",
        rows,
    )
    return (rows[-1][0], rows[-1][1]) if rows else (-1, "")
