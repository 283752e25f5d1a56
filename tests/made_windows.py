"""Windows as tests need them, from the ages of their events."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ag06.ml.windows import Judging, StepTotals, Totals, Window, figures
from ag06.monitoring.exposition import finished
from ag06.monitoring.fine import BOUNDS


def counted(seconds: Sequence[float]) -> list[float]:
    """The sum, and the count of each fine bucket."""
    numbers = [sum(seconds), *[0.0] * (len(BOUNDS) + 1)]
    for bucket, count in Counter(bisect_left(BOUNDS, value) for value in seconds).items():
        numbers[1 + bucket] = float(count)
    return numbers


def window(ages_ms: Sequence[float] = (10.0,) * 1000, seconds: float = 10.0, failed: int = 0, **other: Any) -> Window:
    """A window in which events of these ages were settled; `other` replaces its figures."""
    step = StepTotals(ages=counted([age / 1000 for age in ages_ms]), failed=float(failed), began_ms=1.0)
    start = Totals(0.0, {"s": StepTotals(began_ms=1.0)})
    made = finished(figures(start, Totals(seconds, {"s": step}, memory_mb=100.0), Judging()))
    return type(made)(**{name: getattr(made, name) for name in made.__struct_fields__} | other)
