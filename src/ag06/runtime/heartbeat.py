"""Heartbeat of an event loop: the time of its last turn, for threads and other processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_PER_TIMEOUT = 12
_SHORTEST, _LONGEST = 0.02, 0.25


class Heartbeat:
    """A timer in the running loop, due twelve times in a visibility timeout and at least four times a second.

    Attributes:
        missed: gaps between two beats that were as long as the visibility timeout, so that leases lapsed.
    """

    def __init__(
        self,
        visibility: float,
        *,
        on_beat: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Beat for leases of `visibility` seconds; `on_beat` is called in the loop with the time of each beat."""
        self._visibility = visibility
        self._every = min(_LONGEST, max(_SHORTEST, visibility / _PER_TIMEOUT))
        self._on_beat = on_beat
        self._clock = clock
        self._last = clock()
        self._timer: asyncio.TimerHandle | None = None
        self.missed = 0

    def start(self) -> None:
        """Beat in the running loop until stopped."""
        self._last = self._clock()
        self._beat(asyncio.get_running_loop())

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def age(self) -> float:
        """Seconds since the last beat; from any thread."""
        return self._clock() - self._last

    @property
    def is_late(self) -> bool:
        """Whether the loop has not turned for a visibility timeout, so that leases were not renewed."""
        return self._clock() - self._last >= self._visibility

    @property
    def is_due(self) -> bool:
        """Whether the loop should have its turn."""
        return self._clock() - self._last >= self._every

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock()
        self.missed += now - self._last >= self._visibility
        self._last = now
        self._timer = loop.call_later(self._every, self._beat, loop)
        if self._on_beat is not None:
            self._on_beat(now)
