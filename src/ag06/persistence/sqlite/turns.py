"""Turns over whole tables, to forget what may be forgotten: a slice in a transaction, so that nobody waits for them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from ag06.persistence.sqlite.schema import RESTORED
from ag06.persistence.sqlite.trimming import trimmed
from ag06.persistence.sqlite.writer import Writer

_SLICE = 2000
_TRIMMED_ID_MS = 7 * 86_400_000  # how long an id that its publisher chose is remembered behind its event
_OFTEN_MS = 30_000
_SELDOM_MS = 3_600_000


class Turn:
    """One table, gone through again and again, with long rests."""

    def __init__(
        self,
        forget: Callable[[sqlite3.Connection, int, Any], Any],
        *,
        slices: int,
        rest_ms: int,
        cause: Callable[[sqlite3.Connection], int] | None = None,
    ) -> None:
        """`forget` takes the time in ms and where the last slice ended, and returns where the next one does.

        That is `None` before the first and after the last one. Up to `slices` at a time; a turn begins `rest_ms` after
        the one before it did, and only if the number that `cause` returns is another one than it was then.
        """
        self._forget = forget
        self._slices = slices
        self._rest_ms = rest_ms
        self._cause = cause
        self._seen = 0
        self._at: Any = None
        self._next_ms = 0

    async def go_on(self, writer: Writer, now_ms: int) -> None:
        """Do the next slices of a turn, if it is time."""
        if self._at is None:
            if self._next_ms - self._rest_ms <= now_ms < self._next_ms:  # before that, the clock has gone back
                return
            self._next_ms = now_ms + self._rest_ms
            if self._cause is not None:
                number = await writer.submit(self._cause, durable=False, probe=self._cause)
                if number == self._seen:
                    return
                self._seen = number
        for _ in range(self._slices):
            self._at = await writer.submit(lambda connection: self._forget(connection, now_ms, self._at), durable=False)
            if self._at is None:
                return


def turns() -> list[Turn]:
    """Return what a log goes through."""
    return [
        Turn(forget_identities, slices=20, rest_ms=_OFTEN_MS),
        Turn(forget_subjects, slices=1, rest_ms=0, cause=trimmed),
        Turn(forget_restored, slices=1, rest_ms=_OFTEN_MS),
        Turn(forget_trimmed_ids, slices=5, rest_ms=_SELDOM_MS),
    ]


def forget_identities(connection: sqlite3.Connection, now_ms: int, after: bytes | None) -> bytes | None:
    """Drop those of the next identities behind `after` whose window ended; return the last one looked at.

    In the order of the keys: an index over `expires` would cost every append.
    """
    first = b"" if after is None else after
    last: bytes | None
    (last,) = connection.execute(
        "SELECT max(key) FROM (SELECT key FROM identities WHERE key > ? ORDER BY key LIMIT ?)", (first, _SLICE)
    ).fetchone()
    if last is not None:
        connection.execute("DELETE FROM identities WHERE key > ? AND key <= ? AND expires <= ?", (first, last, now_ms))
    return last


def forget_trimmed_ids(connection: sqlite3.Connection, now_ms: int, after: str | None) -> str | None:
    """Drop those of the next ids behind `after` whose event left the log long ago; return the last one looked at."""
    first = "" if after is None else after
    last: str | None
    (last,) = connection.execute(
        "SELECT max(id) FROM (SELECT id FROM trimmed_ids WHERE id > ? ORDER BY id LIMIT ?)", (first, _SLICE)
    ).fetchone()
    if last is not None:
        connection.execute(
            "UPDATE trimmed_ids SET trimmed = ?3 WHERE id > ?1 AND id <= ?2 AND trimmed > ?3", (first, last, now_ms)
        )
        connection.execute(
            "DELETE FROM trimmed_ids WHERE id > ? AND id <= ? AND trimmed <= ?", (first, last, now_ms - _TRIMMED_ID_MS)
        )
    return last


def forget_subjects(
    connection: sqlite3.Connection, now_ms: int, after: tuple[int, str] | None
) -> tuple[int, str] | None:
    """Drop the chain's end of subjects whose last event was trimmed, in one slice behind `after`; return its end.

    While the event is in the log the chain must stay: a step that is added later may begin with it.
    """
    rows = connection.execute(
        "SELECT type, subject, seq FROM subjects WHERE (type, subject) > (?, ?) ORDER BY type, subject LIMIT ?",
        (*(after or (-1, "")), _SLICE),
    ).fetchall()
    connection.executemany(
        "DELETE FROM subjects WHERE type = ?1 AND subject = ?2 AND NOT EXISTS (SELECT 1 FROM events WHERE seq = ?3)",
        rows,
    )
    return (rows[-1][0], rows[-1][1]) if len(rows) == _SLICE else None


def forget_restored(
    connection: sqlite3.Connection, now_ms: int, after: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Drop events that came back for a dead letter and are settled, in one slice behind `after`; return its end."""
    rows = connection.execute(
        "SELECT stream, seq FROM events WHERE stream < 0 AND (stream, seq) > (?, ?) ORDER BY stream, seq LIMIT ?",
        (*(after or (-2 * RESTORED, 0)), _SLICE),
    ).fetchall()
    connection.executemany(
        "DELETE FROM events WHERE seq = ?2 AND NOT EXISTS "
        "(SELECT 1 FROM groups g JOIN deliveries d ON d.grp = g.id AND d.seq = ?2 WHERE g.type = ?1)",
        [((stream + RESTORED) >> 2, seq) for stream, seq in rows],
    )
    return rows[-1] if len(rows) == _SLICE else None
