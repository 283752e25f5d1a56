"""SQLite and `fork`: connections are closed before the process forks, and opened again at their next use.

SQLite keeps a table of file locks in the memory of the process. A child inherits that table, but none of the locks: the
system grants those to one process. A connection that a child opens then takes no real lock, and another process may
delete the write-ahead log in use. So no connection may be open at a fork.

Except where the file has lost its name: the open connection is then the only way to its content, and a child finds it
under no name. The parent keeps it, the child leaves it alone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType

from ag06.errors import StoreError

_PATIENCE = 5.0
"""Seconds that a fork waits for the end of what runs inside SQLite."""
_ADVICE = (
    "SQLite's locks do not hold in this process: fork before the store is used or while it is idle, or start the "
    "process by 'spawn'"
)
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")

_File = tuple[int, int]
"""Device and inode."""
_NO_FILE: _File = (-1, -1)


class _Gate:
    """The threads that are inside SQLite, and the connections that are open: a fork waits for the former."""

    def __init__(self) -> None:
        self._unusable: str | None = None
        self._inherited: set[_File] = set()
        self._kept: list[sqlite3.Connection] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition(threading.Lock())  # the parent's may be held by a thread that is not here
        self._forking = 0
        self._inside: Counter[int] = Counter()
        self.opened: weakref.WeakSet[ForkSafeConnection] = weakref.WeakSet()

    def enter(self) -> None:
        """Begin a piece of work that a fork must not interrupt; waits for a fork that is under way."""
        if self._pid != os.getpid():  # forked without Python's knowledge, by an embedding program
            self.forked()
        thread = threading.get_ident()
        with self._changed:
            if self._forking and thread not in self._inside:
                self._changed.wait_for(lambda: not self._forking, _PATIENCE)
            self._inside[thread] += 1

    def leave(self) -> None:
        """End a piece of work."""
        thread = threading.get_ident()
        with self._changed:
            self._inside[thread] -= 1
            if self._inside[thread] <= 0:
                del self._inside[thread]
            if self._forking:
                self._changed.notify_all()

    @property
    def is_forking(self) -> bool:
        """Whether a fork waits for those inside."""
        return self._forking > 0

    def before_fork(self) -> None:
        """Let no thread in, wait for those inside, close what is open. Whatever fails here, the child finds it."""
        others = {threading.get_ident()}
        with self._changed:
            self._forking += 1
            self._changed.wait_for(lambda: not self._inside.keys() - others, _PATIENCE)
            if not self._inside:
                for connection in list(self.opened):
                    if connection.has_its_name:
                        connection.shut()

    def after_fork(self) -> None:
        """Let threads in again: the parent goes on."""
        with self._changed:
            self._forking = max(0, self._forking - 1)
            self._changed.notify_all()

    def forked(self) -> None:
        """Begin anew in a child; note what makes SQLite unsafe here."""
        busy, inherited = bool(self._inside), list(self.opened)
        left = any(connection.has_its_name for connection in inherited)
        # Never closed: that could wait for a thread that is not here.
        self._kept += [kept for connection in inherited if (kept := connection.give_up()) is not None]
        self._begin()
        if busy:
            self._unusable = f"its parent was still inside SQLite {_PATIENCE:g} s after it began to fork; {_ADVICE}"
        elif left:
            self._unusable = f"its parent had SQLite files open when it forked, unknown to Python; {_ADVICE}"
        self._inherited = _open_files()

    def check(self, path: str) -> None:
        """Raise `StoreError` if SQLite's locks on a file would not be real in this process."""
        problem = self._unusable
        if problem is None and self._inherited and (file := _file(path)) in self._inherited:
            if file in _open_files():
                problem = (
                    "other code of the parent (such as an sqlite3 connection of its own) had the file open when it "
                    "forked, so that SQLite's locks do not hold in this process; close it before the fork"
                )
            else:
                self._inherited.discard(file)
        if problem is not None:
            raise StoreError(f"store {path}: {problem}")


def _file(path: str) -> _File:
    try:
        found = os.stat(path)
    except OSError:
        return _NO_FILE
    return (found.st_dev, found.st_ino)


def _open_files() -> set[_File]:
    """Return the regular files that this process has open; none where the system does not list them."""
    for directory in _DESCRIPTORS:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        found = set()
        for name in names:
            try:
                status = os.fstat(int(name))
            except OSError:  # the descriptor of the listing itself
                continue
            if stat.S_ISREG(status.st_mode):
                found.add((status.st_dev, status.st_ino))
        return found
    return set()


_gate = _Gate()
check = _gate.check


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a fork wait for this block, up to 5 s."""
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


class ForkSafeConnection:
    """A connection that is open except while the process forks; used by one thread at a time, as a context manager."""

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        """Call `connect`, which opens `path`, at the first use and at the first one after each fork."""
        self._path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._file = _NO_FILE

    def __enter__(self) -> sqlite3.Connection:
        """Return the connection, opened if it is not; a fork waits until the block ends."""
        _gate.enter()
        if self._connection is not None:
            return self._connection
        try:
            self._file = _file(self._path)
            self._connection = self._connect()
        except BaseException:
            _gate.leave()
            raise
        _gate.opened.add(self)
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let a fork go on."""
        _gate.leave()

    @property
    def has_its_name(self) -> bool:
        """Whether the path still names the file that is open."""
        return _file(self._path) == self._file

    @property
    def gives_way(self) -> bool:
        """Whether a fork waits: a block that only waits itself should end and begin again."""
        return _gate.is_forking

    def close(self) -> None:
        """Close it; the next use opens it again."""
        with uninterrupted():
            self.shut()

    def shut(self) -> None:
        """Close it without asking: for the fork itself, and inside a block."""
        connection = self.give_up()
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # a child of a fork finds that the file is still open
                connection.close()

    def give_up(self) -> sqlite3.Connection | None:
        """Return the connection that is open; the next use opens another one."""
        connection, self._connection = self._connection, None
        _gate.opened.discard(self)
        return connection


os.register_at_fork(before=_gate.before_fork, after_in_parent=_gate.after_fork, after_in_child=_gate.forked)
