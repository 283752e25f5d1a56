"""Dead letters of the journal: events that the store refused for good, in one file beside the journals of that store.

Every process of a store puts its own there, and commands change it meanwhile: each call is one short transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ag06.errors import ConfigurationError, StoreUnavailable
from ag06.persistence.journal.entries import restored, sealed
from ag06.persistence.journal.salvage import is_of_the_disk
from ag06.persistence.log import Appended, Disconnected, EventLog, Record
from ag06.persistence.sqlite.schema import make_directory, opened

RefusalReason = Literal["refused", "clash", "disconnected"]

_logger = logging.getLogger("ag06.persistence.journal")
_NAME = "dead-letters.sqlite"
_TIMEOUT = 10.0
_BATCH = 100
_TABLES = """
CREATE TABLE IF NOT EXISTS letters (
  n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, synced INTEGER NOT NULL, record BLOB NOT NULL,
  checksum BLOB NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL, attempts INTEGER NOT NULL,
  first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL, UNIQUE (id, checksum)) STRICT;
"""
_KEEP = """
INSERT INTO letters (id, synced, record, checksum, reason, error, message, attempts, first_ms, last_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) ON CONFLICT (id, checksum) DO UPDATE SET
reason = ?5, error = ?6, message = ?7, attempts = attempts + ?8, last_ms = ?9
"""

_LIST = """
SELECT id, n, record, checksum, synced, reason, error, message, attempts, first_ms, last_ms FROM letters
WHERE n > ? ORDER BY n
"""


class Refusal(msgspec.Struct, frozen=True):
    """Why the store does not take an event.

    `reason`: `"refused"` (it answers with an error), `"clash"` (it has another event with this id) or `"disconnected"`
    (it closes the connection on this event alone). `error`: the class of the error. `attempts`: how often it was tried.
    """

    reason: RefusalReason
    error: str
    message: str
    attempts: int


CLASHED = Refusal("clash", "InvalidEvent", "the store has another event with this id", 1)


class Letter(msgspec.Struct, frozen=True):
    """One record that was refused; `number`: its place in the file, oldest first; times in ms since the epoch."""

    number: int
    record: Record
    synced: bool
    refusal: Refusal
    first_ms: int
    last_ms: int


class Retried(msgspec.Struct, frozen=True):
    """What became of dead letters that were sent again: how many the store has now, and how many it refused again."""

    stored: int
    refused: int


class Letters:
    """The dead letters in one directory of journals. Blocking; raises `StoreUnavailable` where the disk does."""

    def __init__(self, directory: Path) -> None:
        """Look in `directory`, which need not exist."""
        self.path = directory / _NAME

    def keep(self, record: Record, refusal: Refusal, now_ms: int, *, synced: bool) -> None:
        """Keep a record durably; one that is there already was tried again."""
        encoded, checksum = sealed(record)
        row = (record.id, synced, encoded, checksum, refusal.reason, refusal.error, refusal.message, refusal.attempts)
        with self._open(make=True) as connection:
            connection.execute(_KEEP, (*row, now_ms))

    def count(self) -> int:
        """Return how many there are."""
        if not self._is_there():
            return 0
        with self._open() as connection:
            (count,) = connection.execute("SELECT count(*) FROM letters").fetchone()
        return int(count)

    def list(self, limit: int, ids: Sequence[str] | None = None, after: int = 0) -> list[Letter]:
        """Return up to `limit` of them behind the number `after`, oldest first; `ids`: of these events alone.

        One that is damaged is left out, and the log says so.
        """
        if not self._is_there():
            return []
        found: list[Letter] = []
        wanted = None if ids is None else set(ids)
        with self._open() as connection:
            rows = connection.execute(_LIST, (after,))
            for event_id, number, encoded, checksum, synced, *refusal, first_ms, last_ms in rows:
                if wanted is not None and event_id not in wanted:
                    continue
                record = restored(encoded, checksum)
                if record is None:
                    _logger.error(
                        "%s: the record number %d does not have the content that was written", self.path, number
                    )
                    continue
                found.append(Letter(number, record, bool(synced), Refusal(*refusal), first_ms, last_ms))
                if len(found) == limit:
                    break
        return found

    def remove(self, numbers: Sequence[int]) -> int:
        """Delete letters durably; return how many were there."""
        if not numbers or not self._is_there():
            return 0
        with self._open() as connection:
            deleted = [connection.execute("DELETE FROM letters WHERE n = ?", (number,)) for number in numbers]
            return sum(cursor.rowcount for cursor in deleted)

    def _is_there(self) -> bool:
        """Return whether the file has anything: one that was only begun is empty."""
        try:
            return self.path.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StoreUnavailable(f"dead letters of the journal, {self.path}: {error}; check permissions") from error

    @contextlib.contextmanager
    def _open(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if make:
                make_directory(self.path.parent)
                with contextlib.suppress(FileExistsError):  # opening one that is there would drop this process's locks
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            with opened(str(self.path), _TIMEOUT) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("BEGIN IMMEDIATE" if make else "BEGIN")
                if make:
                    connection.execute(_TABLES)
                yield connection
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if make and not is_of_the_disk(error, self.path):
                kept = _set_aside(self.path)
                _logger.error("%s is damaged (%s): it is kept as %s, and a new one is begun", self.path, error, kept)  # noqa: TRY400
            raise StoreUnavailable(f"dead letters of the journal, {self.path}: {error}; check the file") from error
        except OSError as error:
            raise StoreUnavailable(f"dead letters of the journal, {self.path}: {error}; check the disk") from error


async def retry(log: EventLog, letters: Letters, numbers: Sequence[int] | None, now_ms: int) -> Retried:
    """Send dead letters to the store again, oldest first; all of them unless numbers are given.

    What the store takes, or has already, is a dead letter no more. Raises `StoreUnavailable` if it is away.
    """
    wanted = None if numbers is None else set(numbers)
    stored = refused = after = 0
    while page := await asyncio.to_thread(letters.list, _BATCH, None, after):
        after = page[-1].number
        for letter in page:
            if wanted is not None and letter.number not in wanted:
                continue
            refusal = await _retry_one(log, letter)
            if refusal is None:
                stored += 1
                await asyncio.to_thread(letters.remove, [letter.number])
            else:
                refused += 1
                await asyncio.to_thread(letters.keep, letter.record, refusal, now_ms, synced=letter.synced)
    return Retried(stored, refused)


async def _retry_one(log: EventLog, letter: Letter) -> Refusal | None:
    try:
        (outcome,) = await log.append([letter.record], durability="fsync" if letter.synced else None)
    except Disconnected as error:
        return Refusal("disconnected", type(error).__name__, str(error), 1)
    except (StoreUnavailable, ConfigurationError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is why this event is not in the store
        return Refusal("refused", type(error).__name__, str(error) or repr(error), 1)
    return CLASHED if outcome is Appended.CLASH else None


def _set_aside(path: Path) -> Path:
    number = 0
    while (kept := path.with_name(f"{path.name}.corrupt{number or ''}")).exists():
        number += 1
    path.rename(kept)
    return kept
