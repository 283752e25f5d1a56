"""Whether a journal's files are still where they were opened: what is written elsewhere, nobody finds again."""

from __future__ import annotations

from pathlib import Path

from ag06.errors import StoreError
from ag06.persistence.sqlite.placement import OpenFiles, identity


class JournalMoved(StoreError):  # noqa: N818 - reads as what happened
    """A journal's file was deleted, moved, replaced or cut off while it was open; nothing was stored."""


class Place(OpenFiles):
    """The files of an open journal, with its lock. Once one of them has moved, nothing is written there any more."""

    def __init__(self, path: Path, lock: Path) -> None:
        """Remember which files these are now; raise `OSError` if one is missing."""
        super().__init__(str(path), alone=True)
        self._lock = str(lock)
        self._lock_file = identity(self._lock)
        self._problem: str | None = None

    def check(self, *, lock: bool = False) -> None:
        """Raise `JournalMoved` if one of them is another file now, or shorter; then it does so from then on.

        To be called in a transaction, before each write. `lock`: look at the lock too, without which another process
        could take the journal for one that nobody uses.
        """
        if self._problem is None:
            self._problem = self.change() or self.change_beside() or (self._change_of_lock() if lock else None)
        if self._problem is not None:
            raise JournalMoved(f"journal {self._path}: {self._problem} while in use")

    def _change_of_lock(self) -> str | None:
        try:
            found = identity(self._lock)
        except OSError:
            return "lost its lock, which was removed"
        return None if found == self._lock_file else "lost its lock, which was replaced"
