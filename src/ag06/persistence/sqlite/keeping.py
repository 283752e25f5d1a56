"""What happens to groups and dead letters inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ag06.errors import ConfigurationError
from ag06.event import id_and_subject
from ag06.persistence.log import StepSpec, dispatch_key
from ag06.persistence.sqlite.appending import find_type
from ag06.persistence.sqlite.deliveries import BLOCKED, READY, GroupRow, load_group, open_before
from ag06.persistence.sqlite.schema import RESTORED


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
    first = -1
    if start != "beginning":
        (last,) = connection.execute("SELECT max(seq) FROM events").fetchone()
        # Not behind the end, for a time that is still to come: what is skipped until then would count as never done.
        first = min((start << 20) - 1, last or 0) if isinstance(start, int) else last or 0
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
    # The event may have left the log since: the dead letter kept it.
    execute(
        "INSERT OR IGNORE INTO events VALUES (?, ?, ?, NULL, NULL, 1, NULL, ?)",
        (seq, stream - RESTORED, event_id, body),
    )
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
