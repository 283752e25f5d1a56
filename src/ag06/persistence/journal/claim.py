"""Who may use which journal: one directory for each store, one file for each process and loop, a lock beside each.

The lock is an advisory one of the system (`flock`): it ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from ag06.persistence.sqlite.forks import uninterrupted
from ag06.persistence.sqlite.schema import make_directory


class Claim:
    """A journal file that nobody else uses while this object holds its lock."""

    def __init__(self, path: Path, lock: int) -> None:
        """Made by `Claims`: `lock` is the descriptor of the locked file beside `path`."""
        self.path = path
        self._lock: int | None = lock
        _held.add(self)

    def let_go(self, *, delete: bool) -> None:
        """Give up the claim; `delete`: nobody needs the file any more."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if delete:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            lock_path(self.path).unlink(missing_ok=True)
        os.close(lock)

    def forget(self) -> None:
        """Close what a child process inherited: the lock stays with its parent, and ends with it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                os.close(lock)


class Claims:
    """The journals of one store in one directory."""

    def __init__(self, directory: str, store: str) -> None:
        """Keep journals for `store` (a URL without password) under `directory`."""
        name = blake2b(store.encode(), digest_size=8).hexdigest()
        self.directory = Path(directory).absolute() / name
        self._store = store

    def new(self) -> Claim:
        """Claim a journal that does not exist yet; raise `OSError` if the directory cannot be written."""
        make_directory(self.directory)
        label = self.directory / "store"
        if not label.exists():
            label.write_text(self._store + "\n")
        while True:
            path = self.directory / f"{os.getpid()}-{os.urandom(4).hex()}.db"
            claim = _claim(path)
            if claim is not None:
                return claim

    def problem(self) -> str | None:
        """Say why no journal can be made in the directory; `None`: one can."""
        try:
            self.new().let_go(delete=True)
        except OSError as error:
            return str(error)
        return None

    def orphans(self) -> list[Claim]:
        """Claim every journal whose process is gone, oldest first."""
        return list(self._orphans())

    def _orphans(self) -> Iterator[Claim]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(self.directory.glob("*.db"), key=_age):
                claim = _claim(path)
                if claim is None:
                    continue
                if path.exists():
                    yield claim
                else:  # drained by another process at this very moment
                    claim.let_go(delete=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def lock_path(path: Path) -> Path:
    """Return the file beside a journal whose lock says that a process uses it."""
    return path.with_suffix(".lock")


def _claim(path: Path) -> Claim | None:
    """Claim a journal; a fork meanwhile would leave the lock with a child that does not know of it."""
    with uninterrupted():
        lock = _lock(path)
        return None if lock is None else Claim(path, lock)


def _lock(path: Path) -> int | None:
    """Lock a journal; return the descriptor, or `None` if somebody else has it."""
    place = lock_path(path)
    lock = os.open(place, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(place).st_ino == os.fstat(lock).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def is_claimed(path: Path) -> bool:
    """Whether a process holds the lock of a journal; takes none."""
    with uninterrupted():
        return _is_locked(path)


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(lock_path(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


_held: weakref.WeakSet[Claim] = weakref.WeakSet()


def _forget_parent() -> None:
    for claim in list(_held):
        claim.forget()


os.register_at_fork(after_in_child=_forget_parent)
