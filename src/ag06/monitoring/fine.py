"""What the optimizer looks at, counted from the beginning: two readings give the figures of exactly the span between.

A registry of its own, which is not shown: its histograms have so many buckets that a quantile is within 5%, and few
enough label sets that all of it is read several times a second. Processes that run a workflow share it as they
share the others; whoever only publishes counts nothing here, and leaves no files that nobody reads.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from ag06.monitoring.instruments import STRICT_VARIABLE
from ag06.monitoring.metrics import Registry

DIRECTORY = "fine"
"""Where it lies in the directory of the metrics that are shown."""

BOUNDS = tuple(float(f"{10 ** (exponent / 48):.4g}") for exponent in range(-6 * 48, 4 * 48 + 1))
"""Upper bounds in seconds, from a microsecond to 10,000 s; each is 1.049 times the one before."""


def fine_directory(directory: str | Path) -> Path:
    """Return where processes that share `directory` share this."""
    return Path(directory) / DIRECTORY


REGISTRY = Registry(
    strict=os.environ.get(STRICT_VARIABLE) == "1",
    most_buckets=len(BOUNDS),
)

AGES = REGISTRY.histogram("age_seconds", "Age of each event when a step had settled it.", ("step",), BOUNDS)
CALLS = REGISTRY.histogram("call_seconds", "Time of each call of a step.", ("step",), BOUNDS)
FAILED = REGISTRY.counter("failed_attempts", "Settlements of failed attempts: to be tried again, or dead.", ("step",))
DEAD = REGISTRY.counter("dead", "Events put among the dead letters.", ("step",))
BACKLOG = REGISTRY.gauge("backlog", "Events that the step has not settled.", ("step",), aggregate="max")
OLDEST_AGE = REGISTRY.gauge("oldest_age_seconds", "Age of the oldest of them.", ("step",), aggregate="max")
BEGAN = REGISTRY.gauge(
    "began_ms",
    "When each living worker of the step began, since the epoch, added up: it changes whenever their set does.",
    ("step",),
)
CPU = REGISTRY.counter("cpu_seconds", "Processor time, of all processes together.").labels()
MEMORY = REGISTRY.gauge("memory_mb", "Resident memory, of all processes with a worker together.").labels()


def quantile(counts: Sequence[float], share: float) -> float | None:
    """Return the seconds below which `share` (0 to 1) of the counted values lie; `None` if there is none.

    `counts` has one number for each bucket of `BOUNDS` and one for what is beyond. Between two bounds it is taken for
    evenly spread on the logarithmic scale.
    """
    so_far = list(accumulate(counts))
    total = so_far[-1] if so_far else 0
    if total <= 0:
        return None
    rank = share * total
    bucket = bisect_left(so_far, rank)
    while counts[bucket] <= 0:  # `rank` is 0, and the first buckets are empty
        bucket += 1
    if bucket >= len(BOUNDS):
        return BOUNDS[-1]
    high = BOUNDS[bucket]
    low = BOUNDS[bucket - 1] if bucket else high / (BOUNDS[1] / BOUNDS[0])
    part = (rank - (so_far[bucket] - counts[bucket])) / counts[bucket]
    return float(low * (high / low) ** min(max(part, 0.0), 1.0))


def count_above(counts: Sequence[float], seconds: float) -> float:
    """Return how many of the counted values are surely above `seconds`: those of the buckets that begin there."""
    return sum(counts[bisect_left(BOUNDS, seconds) + 1 :])
