"""Which archives hold events of the log, and who leads in what is done by one process at a time."""

from __future__ import annotations

import sqlite3


def archives(connection: sqlite3.Connection) -> list[str]:
    """Return the URLs of the archives, in the order they were added."""
    return [url for (url,) in connection.execute("SELECT url FROM archives ORDER BY n")]


def add_archive(connection: sqlite3.Connection, url: str) -> None:
    """Remember an archive."""
    connection.execute("INSERT INTO archives (url) VALUES (?) ON CONFLICT DO NOTHING", (url,))


def remove_archive(connection: sqlite3.Connection, url: str) -> None:
    """Forget an archive."""
    connection.execute("DELETE FROM archives WHERE url = ?", (url,))


def lead(connection: sqlite3.Connection, role: str, holder: str, now_ms: int, duration_ms: int) -> bool:
    """Let `holder` have a role until `duration_ms` from now, 0: give it up; return whether it was free or its own.

    A lead that ends later than its own length from now was taken by a clock that was ahead: it begins now. Workers of
    an older release note no length; `expires` shows whose length it is.
    """
    found = connection.execute(
        "SELECT l.expires, k.length FROM leaders l JOIN leads k ON k.role = l.role AND k.expires = l.expires "
        "WHERE l.role = ?",
        (role,),
    ).fetchone()
    if found is not None and found[0] > now_ms + found[1]:
        begun = now_ms + found[1]
        connection.execute("UPDATE leaders SET expires = ? WHERE role = ?", (begun, role))
        connection.execute("UPDATE leads SET expires = ? WHERE role = ?", (begun, role))
    if not duration_ms:
        # Not left to expire now: that would be later, for a clock that goes back.
        connection.execute(
            "DELETE FROM leaders WHERE role = ? AND (holder = ? OR expires <= ?)", (role, holder, now_ms)
        )
        return connection.execute("SELECT 1 FROM leaders WHERE role = ?", (role,)).fetchone() is None
    expires = now_ms + duration_ms
    cursor = connection.execute(
        "INSERT INTO leaders VALUES (?1, ?2, ?3) ON CONFLICT (role) DO UPDATE SET holder = ?2, expires = ?3 "
        "WHERE holder = ?2 OR expires <= ?4",
        (role, holder, expires, now_ms),
    )
    if cursor.rowcount <= 0:
        return False
    connection.execute("INSERT OR REPLACE INTO leads VALUES (?, ?, ?)", (role, expires, duration_ms))
    return True
