"""How deep the journals of this process are, as metrics: one number over the logs of all its event loops."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from ag06.monitoring.instruments import JOURNAL_DEAD_LETTERS, JOURNAL_EVENTS, JOURNAL_OLDEST_AGE

_lock = threading.Lock()
_letters: dict[Path, int] = {}
_oldest: weakref.WeakKeyDictionary[Depth, int] = weakref.WeakKeyDictionary()


class Depth:
    """What the journals of one log add to the metrics."""

    def __init__(self) -> None:
        """Add nothing yet."""
        self._events = 0

    def show(self, events: int, oldest_ms: int | None, now_ms: float) -> None:
        """Say how many events wait, since when the oldest does, and what time it is: milliseconds since the epoch."""
        with _lock:
            JOURNAL_EVENTS.inc(events - self._events)
            self._events = events
            if oldest_ms is None:
                _oldest.pop(self, None)
            else:
                _oldest[self] = oldest_ms
            JOURNAL_OLDEST_AGE.set(max(0.0, now_ms - min(_oldest.values(), default=now_ms)) / 1000)


def show_letters(path: Path, count: int) -> None:
    """Say how many dead letters the file at `path` has; files of several stores add up."""
    with _lock:
        _letters[path] = count
        JOURNAL_DEAD_LETTERS.set(sum(_letters.values()))


def _forget_parent() -> None:
    global _lock
    _lock = threading.Lock()
    _oldest.clear()
    _letters.clear()


os.register_at_fork(after_in_child=_forget_parent)
