"""Who waits for events of a database: woken at once from this process, and soon after a change by another one."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterable

from ag06.persistence.sqlite.schema import connect

_FIRST_POLL = 0.001
_LONGEST_POLL = 0.02

_Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Event, str | None]


class Waiters:
    """The waiting fetches of this process on one database file; safe to use from any thread."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, _Waiter] = {}
        self.someone = threading.Event()
        self.holders = 0

    def add(self, event: asyncio.Event, event_type: str | None) -> None:
        """Set `event` in the running loop once something happens to events of a type, or of any type."""
        with self._lock:
            self._waiting[event] = (asyncio.get_running_loop(), event, event_type)
            self.someone.set()

    def remove(self, event: asyncio.Event) -> None:
        """Wake it no more."""
        with self._lock:
            self._waiting.pop(event, None)
            if not self._waiting:
                self.someone.clear()

    def wake(self, types: Iterable[str] | None = None) -> None:
        """Wake those who wait for these types, or everyone."""
        wanted = None if types is None else set(types)
        with self._lock:
            found = [
                waiter
                for waiter in self._waiting.values()
                if wanted is None or waiter[2] is None or waiter[2] in wanted
            ]
        for loop, event, _ in found:
            with contextlib.suppress(RuntimeError):  # its loop has closed: nobody waits there any more
                loop.call_soon_threadsafe(event.set)


class ChangeWatcher(threading.Thread):
    """Notices commits of other processes: SQLite counts them in `PRAGMA data_version`.

    It looks every millisecond after a change and every 20 ms when nothing happens, and only while somebody waits.
    """

    def __init__(self, path: str, waiters: Waiters) -> None:
        """Watch the database at `path` for `waiters`."""
        super().__init__(name="ag06-sqlite-watch", daemon=True)
        self._path = path
        self._waiters = waiters
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End soon."""
        self._stopped.set()
        self._waiters.someone.set()

    def run(self) -> None:
        """Watch until stopped."""
        connection = connect(self._path)
        pause = _FIRST_POLL
        seen = None
        try:
            while not self._stopped.wait(pause):
                self._waiters.someone.wait(1.0)
                try:
                    (version,) = connection.execute("PRAGMA data_version").fetchone()
                except sqlite3.OperationalError:  # locked or out of space for an instant: look again
                    version = None
                if version == seen:
                    pause = min(pause * 1.5, _LONGEST_POLL)
                else:
                    seen, pause = version, _FIRST_POLL
                    self._waiters.wake()
        finally:
            connection.close()


_databases: dict[str, Waiters] = {}
_lock = threading.Lock()


def hold(path: str) -> Waiters:
    """Return the waiters of a database; `let_go` when done."""
    with _lock:
        waiters = _databases.setdefault(path, Waiters())
        waiters.holders += 1
        return waiters


def let_go(path: str) -> None:
    """Forget the waiters of a database once nobody holds them."""
    with _lock:
        waiters = _databases[path]
        waiters.holders -= 1
        if not waiters.holders:
            del _databases[path]
