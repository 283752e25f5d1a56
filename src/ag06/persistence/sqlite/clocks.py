"""Waits and leases that a clock which was ahead has noted: they begin anew when another clock finds them.

Each kind of deadline is kept with what its length follows from. One that began later than now cannot be right.
"""

from __future__ import annotations

import sqlite3

_LONGEST_LEASE = 10
"""How many of its own visibility timeouts a worker allows for the lease of a worker of an older release, which does not
say how long its own lasts."""

# No index by `since`: every event would pay for it. The counter `waits` tells when the last wait was noted.
_NOTE = """
INSERT INTO counters VALUES ('waits', ?) ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)
"""
_IS_NOTED_LATER = "SELECT 1 FROM counters WHERE name = 'waits' AND value > ?"
_RETRIES = "UPDATE deliveries SET due = ?1 + due - since, since = ?1 WHERE state = 2 AND state > 0 AND since > ?1"
_DELAYS = "UPDATE scheduled SET due = ?1 + due - since, since = ?1 WHERE since > ?1"
_LEASES = """
UPDATE workers SET expires = ?1 + coalesce((SELECT visibility FROM leases WHERE worker = workers.id), ?2)
WHERE grp = ?4 AND expires > ?1 + coalesce((SELECT visibility FROM leases WHERE worker = workers.id), ?3)
"""
_ANY = """
SELECT 1 FROM counters WHERE name = 'waits' AND value > ?1
UNION ALL SELECT 1 FROM workers WHERE grp = ?3
  AND expires > ?1 + coalesce((SELECT visibility FROM leases WHERE worker = workers.id), ?2) LIMIT 1
"""


def is_ahead(connection: sqlite3.Connection, group_id: int, now_ms: int, visibility_ms: int) -> bool:
    """Return whether something that the group waits for was noted by a clock that was ahead; reads only."""
    bound = _LONGEST_LEASE * visibility_ms
    return connection.execute(_ANY, (now_ms, bound, group_id)).fetchone() is not None


def note_wait(connection: sqlite3.Connection, now_ms: int) -> None:
    """Note that something begins to wait now, in the transaction that puts it off."""
    connection.execute(_NOTE, (now_ms,))


def begin_waits_anew(connection: sqlite3.Connection, now_ms: int) -> None:
    """Let retries and delayed events of all groups that wait since later than now wait from now on."""
    if connection.execute(_IS_NOTED_LATER, (now_ms,)).fetchone() is None:
        return
    connection.execute(_RETRIES, (now_ms,))
    connection.execute(_DELAYS, (now_ms,))
    connection.execute("UPDATE counters SET value = ? WHERE name = 'waits'", (now_ms,))


def begin_leases_anew(connection: sqlite3.Connection, group_id: int, now_ms: int, visibility_ms: int) -> None:
    """Let leases that end later than they may begin now; a worker that lives renews its own."""
    connection.execute(_LEASES, (now_ms, visibility_ms, _LONGEST_LEASE * visibility_ms, group_id))


def note_visibility(connection: sqlite3.Connection, worker: int, visibility_ms: int) -> None:
    """Note how long the lease of the worker with this number lasts; forget those that are gone."""
    connection.execute("DELETE FROM leases WHERE worker NOT IN (SELECT id FROM workers)")
    connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (worker, visibility_ms))
