"""Whether a journal's files are still where they were opened: by device and inode.

A file that was deleted stays open: SQLite goes on writing to it, syncs it, and confirms what nobody will find again.
"""

from __future__ import annotations

import os
from pathlib import Path

from ag06.errors import StoreError

_SHORTENED_BYTES = 32 << 20
"""A write-ahead log of this size may be begun anew by the writer itself; a shorter one only grows."""


class JournalMoved(StoreError):  # noqa: N818 - reads as what happened
    """A journal's file was deleted, moved, replaced or cut off while it was open; nothing was stored."""


class Place:
    """The files that make up an open journal: the database, its write-ahead log, its lock."""

    def __init__(self, path: Path, lock: Path) -> None:
        """Remember which files these are now; raise `OSError` if one is missing."""
        self._path = path
        self._lock = lock
        self._file = _identity(path)
        self._lock_file = _identity(lock)
        self._size = 0
        self._log = f"{path}-wal"
        self._log_file: tuple[int, int] | None = None
        self._log_size = 0
        self._problem: str | None = None

    def reopened(self) -> None:
        """Forget the write-ahead log: it goes with the last connection, and each new one makes another."""
        self._log_file, self._log_size = None, 0

    def check(self, *, lock: bool = False) -> None:
        """Raise `JournalMoved` if one of them is another file now, or shorter; then it does so from then on.

        To be called before each write, by the one thread that writes. `lock`: look at the lock too, without which
        another process could take the journal for one that nobody uses.
        """
        if self._problem is None:
            self._problem = self._look() or (self._look_at_lock() if lock else None)
        if self._problem is not None:
            raise JournalMoved(self._problem)

    def _look(self) -> str | None:
        try:
            found = os.stat(self._path)
        except OSError as error:
            return f"journal {self._path}: was deleted or moved away while in use ({error.strerror})"
        if (found.st_dev, found.st_ino) != self._file:
            return f"journal {self._path}: was replaced by another file while in use"
        if found.st_size < self._size:
            return f"journal {self._path}: was cut off while in use, from {self._size} to {found.st_size} bytes"
        self._size = found.st_size
        return self._look_at_log()

    def _look_at_lock(self) -> str | None:
        try:
            found = _identity(self._lock)
        except OSError as error:
            return f"journal {self._path}: its lock was deleted while in use ({error.strerror})"
        return None if found == self._lock_file else f"journal {self._path}: its lock was replaced while in use"

    def _look_at_log(self) -> str | None:
        try:
            found = os.stat(self._log)
        except OSError as error:
            if self._log_file is None:  # SQLite makes it with the first transaction
                return None
            return f"journal {self._path}: its write-ahead log was deleted while in use ({error.strerror})"
        identity = found.st_dev, found.st_ino
        if self._log_file is None:
            self._log_file = identity
        elif self._log_file != identity:
            return f"journal {self._path}: its write-ahead log was replaced while in use"
        if found.st_size < self._log_size < _SHORTENED_BYTES:
            return f"journal {self._path}: its write-ahead log was cut off while in use"
        self._log_size = found.st_size
        return None


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
