"""What became of the last calls, as a circuit breaker counts them: the last so many, or those of the last seconds."""

from __future__ import annotations

import math

FAILED = 1
SLOW = 2
"""An outcome is the sum of those that hold: 0 to 3."""


class CountWindow:
    """The last `size` calls, in constant time a call."""

    __slots__ = ("_at", "_ring", "calls", "failures", "size", "slow")

    def __init__(self, size: int) -> None:
        """Hold up to `size` calls, none yet."""
        self.size = size
        self._ring = bytearray(size)
        self._at = self.calls = self.failures = self.slow = 0

    def add(self, outcome: int, now: float) -> None:
        """Count one call; `now` does not matter here."""
        at = self._at
        if self.calls == self.size:
            old = self._ring[at]
            self.failures -= old & FAILED
            self.slow -= old >> 1
        else:
            self.calls += 1
        self._ring[at] = outcome
        self.failures += outcome & FAILED
        self.slow += outcome >> 1
        self._at = at + 1 if at + 1 < self.size else 0

    def advance(self, now: float) -> None:
        """Nothing leaves a count window as time goes by."""


class TimeWindow:
    """The calls of the last `seconds`, in one bucket a second."""

    __slots__ = ("_buckets", "_last", "calls", "failures", "slow")

    def __init__(self, seconds: float) -> None:
        """Hold the calls of so many seconds, rounded up to whole ones; none yet."""
        self._buckets = [[0, 0, 0] for _ in range(max(1, math.ceil(seconds)))]
        self._last: int | None = None
        self.calls = self.failures = self.slow = 0

    def add(self, outcome: int, now: float) -> None:
        """Count one call that ended at `now` seconds."""
        self.advance(now)
        bucket = self._buckets[(self._last or 0) % len(self._buckets)]
        for index, count in enumerate((1, outcome & FAILED, outcome >> 1)):
            bucket[index] += count
        self.calls += 1
        self.failures += outcome & FAILED
        self.slow += outcome >> 1

    def advance(self, now: float) -> None:
        """Drop what is older than the window at `now` seconds."""
        second = math.floor(now)
        if self._last is None:
            self._last = second
        for passed in range(self._last + 1, min(second, self._last + len(self._buckets)) + 1):
            bucket = self._buckets[passed % len(self._buckets)]
            self.calls -= bucket[0]
            self.failures -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = [0, 0, 0]
        self._last = max(self._last, second)
