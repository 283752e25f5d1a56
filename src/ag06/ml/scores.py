"""Scores on one footing: differences that mean the same whatever the unit of the score is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

Scale = Literal["auto", "ratio", "difference"]
SCALES = ("auto", "ratio", "difference")

_FLOOR = 0.01
"""A ratio to nothing is taken for one to this part of the middle score: a window without throughput is a bad window."""
_WORST = 1.5
"""A score further below the middle tells no more than one that is just so far: 22% of it."""
_SPREAD = 0.3
"""What the spread of scores of both signs is taken for: noise and effect of a usual runtime together, in log units."""


def levelled(scores: Sequence[float], scale: Scale) -> list[float]:
    """Return the scores so that 0.1 is about 10%: logarithms, or differences.

    `"ratio"`: logarithms; every score must be 0 or more. `"difference"`: as they are, for scores that are log ratios
    already. `"auto"`: logarithms of scores of one sign (a negative one is a cost), else differences over their spread.
    """
    if scale == "difference":
        found = list(scores)
    elif min(scores) >= 0:
        found = _logarithms(scores)
    elif max(scores) <= 0:
        found = [-cost for cost in _logarithms([-score for score in scores])]
    else:
        middle = statistics.median(scores)
        spread = statistics.median(abs(score - middle) for score in scores) or statistics.pstdev(scores)
        found = [_SPREAD * (score - middle) / spread if spread else 0.0 for score in scores]
    lowest = statistics.median(found) - _WORST
    return [max(score, lowest) for score in found]


def _logarithms(scores: Sequence[float]) -> list[float]:
    floor = _FLOOR * statistics.median(scores) or _FLOOR * max(scores)
    return [math.log(max(score, floor)) if floor > 0 else 0.0 for score in scores]
