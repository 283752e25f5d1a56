"""The deliveries of a group: their states, what falls due by time, and how they change hands."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

import msgspec

from ag06.persistence.log import Delivery
from ag06.persistence.sqlite.clocks import begin_leases_anew, is_ahead

LEASED, READY, DELAYED, BLOCKED = range(4)
"""States of a delivery. `due` is the dispatch key of a ready one, the time of a delayed one, and the position of the
event before it of a blocked one. Of a leased one it is the serial of the lease; NULL, which is 0, the first time."""

LEVELS = range(4)

# "state > 0" looks idle beside "state = 2": it is what lets SQLite use the index over those that wait.
_FALL_DUE = """
UPDATE deliveries SET state = 1, due = rank WHERE grp = ? AND state = 2 AND state > 0 AND due <= ?
"""
_TAKE_OVER = """
UPDATE deliveries SET state = 1, due = rank, worker = NULL, suspect = ?, deaths = deaths + started, started = 0
WHERE grp = ? AND state = 0 AND worker = ?
"""
_DIED, LAPSED = 1, 2
"""Values of `suspect` for what was taken over: its worker is known to be dead, or its lease lapsed."""
_GIVE_BACK = """
UPDATE deliveries SET state = 1, due = rank, worker = NULL, started = 0 WHERE grp = ? AND state = 0 AND worker = ?
"""
_START = """
UPDATE deliveries SET started = 1 WHERE grp = ? AND seq = ? AND state = 0 AND worker = ? AND coalesce(due, 0) = ?
"""
_NEXT_SERIAL = """
INSERT INTO counters VALUES ('leases', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value
"""
_ANYTHING_DUE = """
SELECT 1 FROM deliveries WHERE grp = ?1 AND state = 1 AND state > 0
UNION ALL SELECT 1 FROM deliveries WHERE grp = ?1 AND state = 2 AND state > 0 AND due <= ?2
UNION ALL SELECT 1 FROM scheduled WHERE due <= ?2
UNION ALL SELECT 1 FROM workers WHERE grp = ?1 AND expires <= ?2 LIMIT 1
"""
_NEXT_DUE = """
SELECT min(at) FROM (
  SELECT min(due) AS at FROM deliveries WHERE grp = ?1 AND state = 2 AND state > 0
  UNION ALL SELECT min(due) FROM scheduled UNION ALL SELECT min(expires) FROM workers WHERE grp = ?1)
"""

Token = tuple[int, bool, int, int]
"""Position of the event, whether it has a subject, the number of the worker, and the serial of the lease.

A worker that lost its lease gets another number, and what is handed out again another serial: nothing that was held
before can be settled."""


class GroupRow(msgspec.Struct):
    """A group as the claim needs it: `read` are the last positions read of each level's stream."""

    id: int
    type: int
    type_name: str
    read: list[int]


def load_group(connection: sqlite3.Connection, name: str) -> GroupRow | None:
    """Return a group's row, or `None` if the store does not know it."""
    row = connection.execute(
        "SELECT g.id, g.type, t.name, read0, read1, read2, read3 FROM groups g JOIN types t ON t.id = g.type "
        "WHERE g.name = ?",
        (name,),
    ).fetchone()
    return None if row is None else GroupRow(row[0], row[1], row[2], list(row[3:]))


def has_work(connection: sqlite3.Connection, group: GroupRow, now_ms: int, visibility_ms: int) -> bool:
    """Say, reading only, whether a claim for the group would find anything."""
    if connection.execute(_ANYTHING_DUE, (group.id, now_ms)).fetchone() is not None:
        return True
    if is_ahead(connection, group.id, now_ms, visibility_ms):
        return True
    return any(
        connection.execute(
            "SELECT 1 FROM events WHERE stream = ? AND seq > ? LIMIT 1", (group.type * 4 + level, group.read[level])
        ).fetchone()
        is not None
        for level in LEVELS
    )


def open_before(connection: sqlite3.Connection, group: GroupRow, prev: int, level: int) -> int | None:
    """Return what the next event of a subject behind `prev`, of this level, must wait for, if the group has it open.

    That is the last dead letter that was retried there, else `prev` itself, unless it is one that moved elsewhere.
    """
    execute = connection.execute
    retried = execute("SELECT seq FROM deliveries WHERE grp = ? AND behind = ? AND behind > 0", (group.id, prev))
    if row := retried.fetchone():
        return int(row[0])
    if prev > group.read[level]:
        # Unread, unless the retention took it before this group came.
        found = execute("SELECT 1 FROM events WHERE seq = ? AND stream >= 0", (prev,))
    else:
        found = execute("SELECT 1 FROM deliveries WHERE grp = ? AND seq = ? AND behind IS NULL", (group.id, prev))
    return None if found.fetchone() is None else prev


def next_due_ms(connection: sqlite3.Connection, group_id: int) -> int | None:
    """Return when something falls due for the group by time alone, in milliseconds since the epoch."""
    (due,) = connection.execute(_NEXT_DUE, (group_id,)).fetchone()
    return None if due is None else int(due)


def worker_row(connection: sqlite3.Connection, group_id: int, worker: str, expires_ms: int) -> int:
    """Return the number of a worker in a group, its lease extended to `expires_ms`; a new one if it has none."""
    number = worker_number(connection, group_id, worker)
    if number:
        extend(connection, number, worker, expires_ms)
        return number
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'workers'")
    cursor = connection.execute(
        "INSERT INTO workers SELECT value, ?, ?, ? FROM counters WHERE name = 'workers'", (group_id, worker, expires_ms)
    )
    return int(cursor.lastrowid or 0)


def extend(connection: sqlite3.Connection, number: int, worker: str, expires_ms: int) -> None:
    """Extend the lease with this number, if it is still there."""
    connection.execute("UPDATE workers SET expires = ? WHERE id = ? AND name = ?", (expires_ms, number, worker))


def worker_number(connection: sqlite3.Connection, group_id: int, worker: str) -> int:
    """Return the number of a worker in a group; 0, which holds nothing, if it has none any more."""
    row = connection.execute("SELECT id FROM workers WHERE grp = ? AND name = ?", (group_id, worker)).fetchone()
    return 0 if row is None else int(row[0])


def next_serial(connection: sqlite3.Connection) -> int:
    """Return a serial that no lease has had."""
    (serial,) = connection.execute(_NEXT_SERIAL).fetchone()
    return int(serial)


def expire(connection: sqlite3.Connection, group_id: int, now_ms: int, visibility_ms: int) -> None:
    """Make ready what waited for its time, and what workers held whose leases ended."""
    begin_leases_anew(connection, group_id, now_ms, visibility_ms)
    connection.execute(_FALL_DUE, (group_id, now_ms))
    for (worker,) in connection.execute(
        "SELECT id FROM workers WHERE grp = ? AND expires <= ?", (group_id, now_ms)
    ).fetchall():
        connection.execute(_TAKE_OVER, (LAPSED, group_id, worker))
        connection.execute("DELETE FROM workers WHERE id = ?", (worker,))


def take_over_worker(connection: sqlite3.Connection, worker: str) -> int:
    """Hand out again what a dead worker held in any group; return how many deliveries."""
    count = 0
    for number, group_id in connection.execute("SELECT id, grp FROM workers WHERE name = ?", (worker,)).fetchall():
        count += connection.execute(_TAKE_OVER, (_DIED, group_id, number)).rowcount
        connection.execute("DELETE FROM workers WHERE id = ?", (number,))
    return count


def vouch(
    connection: sqlite3.Connection, worker: str, expires_ms: int, running: Mapping[str, Collection[str]] | None
) -> int:
    """Extend the leases of a worker to `expires_ms`; give back all but the `running`; return how many.

    Nothing is given back if `running` is `None`.
    """
    count = 0
    for number, group_id, group in connection.execute(
        "SELECT w.id, w.grp, g.name FROM workers w JOIN groups g ON g.id = w.grp WHERE w.name = ?", (worker,)
    ).fetchall():
        connection.execute("UPDATE workers SET expires = max(expires, ?) WHERE id = ?", (expires_ms, number))
        if running is not None:
            names = running.get(group, ())
            held = connection.execute(
                "SELECT seq FROM deliveries WHERE grp = ? AND state = 0 AND worker = ?", (group_id, number)
            ).fetchall()
            others = [(group_id, number, seq) for (seq,) in held if str(seq) not in names]
            connection.executemany(_GIVE_BACK + " AND seq = ?", others)
            count += len(others)
    return count


def mark_started(connection: sqlite3.Connection, group_id: int, worker: int, deliveries: Sequence[Delivery]) -> None:
    """Note that a worker runs these now."""
    connection.executemany(
        _START,
        [(group_id, seq, worker, serial) for seq, _, number, serial in _tokens(deliveries) if number == worker],
    )


def absolve(connection: sqlite3.Connection, group_id: int, deliveries: Sequence[Delivery], attempts: int) -> None:
    """Take back the deaths charged for a worker that lost these and lives; add failed attempts."""
    connection.executemany(
        "UPDATE deliveries SET deaths = max(-1, deaths - 1), attempts = attempts + ?4 "
        "WHERE grp = ?1 AND seq = ?2 AND suspect > 0 AND NOT (state = 0 AND worker = ?3)",
        [(group_id, delivery.token[0], delivery.token[2], attempts) for delivery in deliveries],
    )


def release(connection: sqlite3.Connection, group_id: int, worker: int, deliveries: Sequence[Delivery]) -> None:
    """Give back some of what a worker holds; no harm done."""
    connection.executemany(
        _GIVE_BACK + " AND seq = ? AND coalesce(due, 0) = ?",
        [(group_id, worker, seq, serial) for seq, _, number, serial in _tokens(deliveries) if number == worker],
    )


def _tokens(deliveries: Sequence[Delivery]) -> list[Token]:
    return [delivery.token for delivery in deliveries]


def leave(connection: sqlite3.Connection, group_id: int, worker: int) -> None:
    """Give back all that a worker holds, and forget it."""
    connection.execute(_GIVE_BACK, (group_id, worker))
    connection.execute("DELETE FROM workers WHERE id = ?", (worker,))
