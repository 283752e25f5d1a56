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

    All holders of a role lead for as long. A lead that ends later was taken by a clock that was ahead: it begins now.
    """
    expires = now_ms + duration_ms
    if duration_ms:
        connection.execute("UPDATE leaders SET expires = ?2 WHERE role = ?1 AND expires > ?2", (role, expires))
    cursor = connection.execute(
        "INSERT INTO leaders VALUES (?1, ?2, ?3) ON CONFLICT (role) DO UPDATE SET holder = ?2, expires = ?3 "
        "WHERE holder = ?2 OR expires <= ?4",
        (role, holder, expires, now_ms),
    )
    if not duration_ms:
        # Not left to expire now: that would be later, for a clock that goes back.
        connection.execute("DELETE FROM leaders WHERE role = ? AND holder = ?", (role, holder))
    return cursor.rowcount > 0
