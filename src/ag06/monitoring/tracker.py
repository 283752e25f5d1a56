"""How fast each step is now: throughput, error rate and quantiles of the last minute, for the optimizer and status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ag06.monitoring.sketch import Sketch

WINDOWS = 6
WINDOW_SECONDS = 10.0
MOST_SERIES = 1000
OTHER = "other"


class Performance(msgspec.Struct, frozen=True):
    """What happened over the last `seconds`.

    Attributes:
        count: calls or events that ended, failed ones included.
        errors: how many of them failed.
        throughput: `count` a second.
        error_rate: the share that failed, 0 to 1; 0 if there is none.
        latency_mean_ms, latency_p50_ms, latency_p95_ms, latency_p99_ms: of all of them, in milliseconds; quantiles
            within 1%. `None` if there is none.
        seconds: what the figures cover.
    """

    count: int
    errors: int
    throughput: float
    error_rate: float
    latency_mean_ms: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    seconds: float


class _Window:
    __slots__ = ("errors", "sketch", "total")

    def __init__(self) -> None:
        self.errors = 0
        self.total = 0.0
        self.sketch = Sketch()


class Series:
    """What one step did, in windows of which the oldest is dropped when a new one begins. For any thread."""

    def __init__(self, windows: int, seconds: float, clock: Callable[[], float]) -> None:
        """Made by `PerformanceTracker.series`; keep it and call `record`."""
        self._windows = windows
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._ring = {int(self._begun // seconds): _Window()}
        self._until = 0.0
        self._now = _Window()

    def record(self, seconds: float, failed: bool = False, count: int = 1) -> None:
        """Note that `count` calls or events ended after `seconds`; what is no duration counts as 0."""
        now = self._clock()
        with self._lock:
            if now >= self._until:
                self._turn(now)
            window = self._now
            if failed:
                window.errors += count
            try:
                window.sketch.add(seconds, count)
            except ValueError:  # a clock that was set back must not fail a step
                window.sketch.add(0.0, count)
            else:
                window.total += seconds * count

    def record_all(self, seconds: Sequence[float]) -> None:
        """Note that calls succeeded, one for each of `seconds`; cheaper than as many calls of `record`."""
        now = self._clock()
        with self._lock:
            if now >= self._until:
                self._turn(now)
            window = self._now
            window.sketch.add_all([max(value, 0.0) for value in seconds])
            window.total += sum(seconds)

    def gather(self) -> tuple[list[tuple[int, float, Sketch]], float]:
        """Return errors, seconds in all and sketch of each window, and how many seconds they cover."""
        now = self._clock()
        first = int(now // self._seconds) - self._windows + 1
        with self._lock:
            kept = [window for number, window in self._ring.items() if number >= first]
            found = [(window.errors, window.total, window.sketch.copy()) for window in kept]
        return found, now - max(self._begun, first * self._seconds)

    def _turn(self, now: float) -> None:
        number = int(now // self._seconds)
        self._ring = {old: window for old, window in self._ring.items() if old > number - self._windows}
        self._now = self._ring.setdefault(number, _Window())
        self._until = (number + 1) * self._seconds


class PerformanceTracker:
    """The series of one process, by key (the name of a step)."""

    def __init__(
        self,
        windows: int = WINDOWS,
        window_seconds: float = WINDOW_SECONDS,
        most_series: int = MOST_SERIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look back over `windows` of `window_seconds`, the present one, which is not full, included."""
        self._windows = windows
        self._seconds = window_seconds
        self._most = most_series
        self._clock = clock
        self._series: dict[str, Series] = {}
        self._lock = threading.Lock()

    def series(self, key: str) -> Series:
        """Return the series of a key; keep it, it is meant to be looked up once. Too many keys share `other`."""
        with self._lock:
            found = self._series.get(key)
            if found is None and len(self._series) >= self._most:
                key = OTHER
            return found or self._series.setdefault(key, Series(self._windows, self._seconds, self._clock))

    def observe(self, key: str, seconds: float, failed: bool = False, count: int = 1) -> None:
        """Record in the series of a key."""
        self.series(key).record(seconds, failed, count)

    def forget(self, key: str) -> None:
        """Drop the series of a step that is gone."""
        with self._lock:
            self._series.pop(key, None)

    def snapshot(self, key: str | None = None) -> Performance:
        """Return the figures of one key, or of all together."""
        with self._lock:
            chosen = list(self._series.values()) if key is None else [s for k, s in self._series.items() if k == key]
        return _summed(chosen)

    def snapshots(self) -> dict[str, Performance]:
        """Return the figures of each key."""
        with self._lock:
            known = list(self._series.items())
        return {key: _summed([series]) for key, series in known}


def _summed(chosen: Iterable[Series]) -> Performance:
    errors = 0
    total = covered = 0.0
    sketch = Sketch()
    for series in chosen:
        windows, seconds = series.gather()
        covered = max(covered, seconds)
        for window_errors, window_total, window_sketch in windows:
            errors += window_errors
            total += window_total
            sketch.merge(window_sketch)
    count = sketch.count
    p50, p95, p99 = (None if value is None else value * 1000 for value in sketch.quantiles((0.5, 0.95, 0.99)))
    return Performance(
        count=count,
        errors=errors,
        throughput=count / max(covered, 1.0),  # in its first second a series cannot tell a rate
        error_rate=errors / count if count else 0.0,
        latency_mean_ms=total / count * 1000 if count else None,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        seconds=covered,
    )


performance = PerformanceTracker()
"""The tracker of this process: `observability.performance`."""
