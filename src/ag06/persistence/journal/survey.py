"""Which journals there are in a directory: what `ag06 doctor` tells of them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec

from ag06.errors import StoreUnavailable
from ag06.persistence.journal.claim import is_claimed
from ag06.persistence.journal.dead_letter_file import Letters
from ag06.persistence.sqlite.forks import uninterrupted


class FoundJournal(msgspec.Struct, frozen=True):
    """One journal file: of which store, how many events wait in it, and whether its process lives.

    `events` is `None` where the file cannot be read, and `problem` says why.
    """

    path: str
    store: str
    events: int | None
    alive: bool
    problem: str | None = None


def survey(directory: str) -> list[FoundJournal]:
    """Return the journals under `directory`, damaged ones that were kept included; claims nothing."""
    root = Path(directory)
    found = []
    for path in sorted(root.glob("*/*.db")):
        events, problem = _count(path)
        found.append(FoundJournal(str(path), _store(path), events, is_claimed(path), problem))
    kept = [path for path in sorted(root.glob("*/*.corrupt*")) if not path.name.endswith(("-wal", "-shm"))]
    damaged = [
        FoundJournal(str(path), _store(path), None, alive=False, problem="was damaged, is kept") for path in kept
    ]
    return found + damaged


def dead_letters(directory: str) -> list[FoundJournal]:
    """Return the files of dead letters under `directory`, with how many there are in each."""
    found = []
    for folder in sorted(path for path in Path(directory).glob("*") if path.is_dir()):
        letters = Letters(folder)
        try:
            count: int | None = letters.count()
            problem = None
        except StoreUnavailable as error:
            count, problem = None, str(error)
        if count != 0:
            found.append(FoundJournal(str(letters.path), _store(letters.path), count, alive=False, problem=problem))
    return found


def _store(path: Path) -> str:
    with contextlib.suppress(OSError):
        return (path.parent / "store").read_text().strip()
    return "an unknown store"


def _count(path: Path) -> tuple[int | None, str | None]:
    try:
        with (
            uninterrupted(),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as connection,
        ):
            (count,) = connection.execute("SELECT count(*) FROM entries WHERE record IS NOT NULL").fetchone()
    except sqlite3.Error as error:
        return None, str(error)
    return int(count), None
