"""What the processes of a log share besides events: bodies by name."""

from __future__ import annotations

import sqlite3


def write(connection: sqlite3.Connection, name: str, body: bytes | None) -> None:
    """Replace a note, or remove it."""
    if body is None:
        connection.execute("DELETE FROM notes WHERE name = ?", (name,))
    else:
        connection.execute("INSERT INTO notes VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?2", (name, body))


def read(connection: sqlite3.Connection, name: str) -> bytes | None:
    """Return a note, if it is there."""
    row: tuple[bytes] | None = connection.execute("SELECT body FROM notes WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]
