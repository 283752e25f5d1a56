"""Who waits for events of a database, in any event loop of this process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable


class Waiter:
    """One fetch that waits.

    `type` is empty until the fetch has learnt what its group listens to. `due_ms` is when it looks again by itself, in
    milliseconds since the epoch; infinite while it looks.
    """

    __slots__ = ("due_ms", "event", "has_news", "loop", "type")

    def __init__(self, event_type: str, has_news: Callable[[sqlite3.Connection, float], bool]) -> None:
        """Wait in the running loop.

        `has_news` says, in another thread, whether a fetch finds anything, or something falls due before the time it
        is given.
        """
        self.loop = asyncio.get_running_loop()
        self.event = asyncio.Event()
        self.type = event_type
        self.has_news = has_news
        self.due_ms = math.inf

    def wake(self) -> None:
        """Let it look again; safe from any thread."""
        with contextlib.suppress(RuntimeError):  # its loop has closed: nobody waits there any more
            self.loop.call_soon_threadsafe(self.event.set)


class Waiters:
    """The waiting fetches of this process on one database file; safe to use from any thread."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._lock = threading.Lock()
        self._waiting: dict[int, Waiter] = {}
        self.holders = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """Wake it once something happens, until `remove`."""
        with self._lock:
            self._waiting[id(waiter)] = waiter

    def remove(self, waiter: Waiter) -> None:
        """Wake it no more."""
        with self._lock:
            self._waiting.pop(id(waiter), None)

    def wake(self, types: Iterable[str] | None = None) -> None:
        """Wake those who wait for these types, or everyone."""
        if not self._waiting:
            return
        wanted = None if types is None else {"", *types}
        with self._lock:
            found = [waiter for waiter in self._waiting.values() if wanted is None or waiter.type in wanted]
        for waiter in found:
            waiter.wake()

    def look(self, connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Wake those of a loop for whom another process has left something.

        Looking for them is far cheaper than waking them in vain: a worker may wait for many types at once.
        """
        with self._lock:
            mine = [waiter for waiter in self._waiting.values() if waiter.loop is loop]
        for waiter in mine:
            if waiter.has_news(connection, waiter.due_ms):
                waiter.wake()


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


def _forget_parent() -> None:
    """A child process has none of its parent's loops, and must not inherit a lock that is held."""
    global _lock
    _lock = threading.Lock()
    _databases.clear()


os.register_at_fork(after_in_child=_forget_parent)
