"""The state of a log's file: its structure, its counters, and every event and dead letter read once."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator

import msgspec

from ag06.errors import StoreDamaged
from ag06.event import read_event
from ag06.persistence.sqlite import reading
from ag06.persistence.sqlite.forks import uninterrupted
from ag06.persistence.sqlite.schema import check_schema, connect

_MOST_PROBLEMS = 100
_WAIT = 10.0
_STRIDE = 1000


class Integrity(msgspec.Struct, frozen=True):
    """What an inspection found; the file is sound if there are no `problems`.

    Attributes:
        path: the file.
        events, dead_letters: how many could be read.
        problems: one line each, at most about a hundred.
    """

    path: str
    events: int
    dead_letters: int
    problems: tuple[str, ...]


def inspect(path: str, progress: Callable[[int], None] = lambda _: None) -> Integrity:
    """Read a log's file from end to end; nothing in it is changed. `progress` gets the number of events read.

    Blocks for as long as the file is large. Others may write meanwhile: all is read as of one moment, for which the
    write-ahead log grows. Raises `ConfigurationError` for what is no log, `sqlite3.OperationalError` for a file that
    cannot be opened.
    """
    problems: list[str] = []
    counted = [0, 0]
    with uninterrupted():
        try:
            with contextlib.closing(connect(path, _WAIT)) as connection:
                problems += _problems(connection, path, counted, progress)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            problems.append(str(error))
    return Integrity(path, counted[0], counted[1], tuple(problems))


def _problems(
    connection: sqlite3.Connection, path: str, counted: list[int], progress: Callable[[int], None]
) -> list[str]:
    connection.execute("PRAGMA query_only = ON")
    check_schema(connection, path)
    connection.execute("BEGIN")
    rows = connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})")
    problems = [line for (text,) in rows for line in str(text).splitlines() if line != "ok"]
    for table, problem in _unreadable(connection, counted, progress):
        if len(problems) < _MOST_PROBLEMS:
            problems.append(f"{table}: {problem}")
    return problems or _miscounted(connection, counted[0])


def _unreadable(
    connection: sqlite3.Connection, counted: list[int], progress: Callable[[int], None]
) -> Iterator[tuple[str, str]]:
    """Yield what cannot be read of events and dead letters; count in `counted` what can."""
    for index, table, columns in ((0, "events", "seq, seq, body"), (1, "dead_letters", "n, seq, body")):
        for number, seq, body in connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1"):  # noqa: S608 - ours
            try:
                read_event(body, max(seq, 0) >> 20)
            except StoreDamaged as error:
                yield table, f"row {number}: {error}"
            else:
                counted[index] += 1
                if not counted[0] % _STRIDE:
                    progress(counted[0])


def _miscounted(connection: sqlite3.Connection, events: int) -> list[str]:
    """Compare the kept count of events with the rows; restored ones are in no stream and not counted."""
    (restored,) = connection.execute("SELECT count(*) FROM events WHERE stream < 0").fetchone()
    kept = reading.stats(connection).events
    if kept == events - restored:
        return []
    return [f"events: {events - restored} rows, but {kept} by the counters"]
