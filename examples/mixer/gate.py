"""A gate that lets as many threads work at once as a knob says, while the knob moves."""

from __future__ import annotations

import threading

from ag06.knob import Knob


class Gate:
    """`with gate:` waits until fewer than `limit.value` others are inside.

    A limit that rises counts when the next thread leaves; one that falls sends nobody out.
    """

    def __init__(self, limit: Knob) -> None:
        """Stand open for `limit.value` threads, which must be 1 or more."""
        self._limit = limit
        self._inside = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._inside < self._limit.value)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()  # there may be room for several: the limit may have risen
