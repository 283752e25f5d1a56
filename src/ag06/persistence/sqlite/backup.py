"""A copy of a log's file while the log is in use, read back before it gets its name."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec

from ag06.errors import ConfigurationError, StoreDamaged, StoreUnavailable
from ag06.persistence.sqlite.forks import uninterrupted
from ag06.persistence.sqlite.integrity import inspect
from ag06.persistence.sqlite.schema import connect, explained_error

_WAIT = 10.0


class Backup(msgspec.Struct, frozen=True):
    """A finished backup: where it is, its size in bytes, what it holds."""

    path: str
    bytes: int
    events: int
    dead_letters: int


def back_up(path: str, target: str, progress: Callable[[str, int], None] = lambda *_: None) -> Backup:
    """Copy the log at `path`, as it is at one moment, into the new file `target`; return once that is synced.

    Others may write meanwhile: SQLite reads one snapshot (`VACUUM INTO`), for which the write-ahead log grows.
    `progress` gets the stage (`"copying"`, `"verifying"`) and how many events were read back. Blocks.

    Raises `ConfigurationError` if `target` exists or cannot be written, `StoreDamaged` if the log or the copy is
    damaged, `StoreUnavailable` if the disk is full or the log cannot be read. Then there is no `target`.
    """
    final = Path(target)
    if os.path.lexists(final):
        raise ConfigurationError(f"{target} exists; a backup is a new file, such as {final.stem}-2{final.suffix}")
    unfinished = final.with_name(f"{final.name}.{os.getpid()}.part")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileNotFoundError:
        raise ConfigurationError(f"{target}: the folder {final.parent} does not exist; make it first") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from None
    try:
        progress("copying", 0)
        _copy(path, str(unfinished))
        _sync(unfinished)
        found = inspect(str(unfinished), lambda events: progress("verifying", events))
        if found.problems:
            raise StoreDamaged(
                f"store {path}: its copy does not read back ({found.problems[0]}); see ag06 check; no backup was made"
            )
        _name(unfinished, final)
    except FileExistsError:
        raise ConfigurationError(f"{target} exists since a moment ago; name another file") from None
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{unfinished}{suffix}")
    _sync(final.parent)
    return Backup(target, final.stat().st_size, found.events, found.dead_letters)


def _copy(path: str, target: str) -> None:
    with uninterrupted():
        try:
            with contextlib.closing(connect(path, _WAIT)) as connection:
                connection.execute("VACUUM INTO ?", (target,))
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"store {path}: {error}; no backup was made") from error
        except sqlite3.DatabaseError as error:
            raise explained_error(path, error) from error


def _name(unfinished: Path, final: Path) -> None:
    """Give a verified copy its name, which never replaces a file; some filesystems have no links, but can rename."""
    try:
        os.link(unfinished, final)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(final):
            raise FileExistsError from None
        unfinished.rename(final)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
