"""How big the effect is: the one at which nothing speaks for either variant, and those that are not refuted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ag06.ml.sequential_test import Pair, balance

STEPS = 60
"""Halvings of the bracket around the estimate: to the last bit of a float."""

DOUBLINGS = 40
FINENESS = 0.01
"""An end of the interval is exact to this share of its distance from the estimate."""


def estimate(pairs: Sequence[Pair]) -> float:
    """Return the effect without which the pairs would speak for neither variant (Hodges and Lehmann 1963)."""
    differences = [pair.second - pair.first if pair.b_second else pair.first - pair.second for pair in pairs]
    low, high = min(differences), max(differences)
    # Neighbours are taken off too, so the balance may turn outside the differences: widen until it does not.
    width = high - low
    while width > 0 and balance(pair.without(low) for pair in pairs) < 0:
        low, width = low - width, 2 * width
    while width > 0 and balance(pair.without(high) for pair in pairs) > 0:
        high, width = high + width, 2 * width
    for _ in range(STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if balance(pair.without(middle) for pair in pairs) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def typical_distance(pairs: Sequence[Pair], effect: float) -> float:
    """Return the median distance of the pairs' differences from `effect`."""
    distances = sorted(
        abs((pair.second - pair.first if pair.b_second else pair.first - pair.second) - effect) for pair in pairs
    )
    return distances[len(distances) // 2]


def unrefuted(centre: float, step: float, refuted: Callable[[float], bool]) -> tuple[float, float] | None:
    """Return the ends of the effects around `centre` that are not refuted (a test inverted); `None` if it is itself.

    An end is infinite where no effect is refuted, however far. `step` is where the search begins.
    """
    if refuted(centre):
        return None
    if step <= 0:
        return centre, centre
    low, high = (_end(centre, side * step, refuted) for side in (-1, 1))
    return low, high


def _end(centre: float, step: float, refuted: Callable[[float], bool]) -> float:
    inside = centre
    for _ in range(DOUBLINGS):
        outside = centre + step
        if refuted(outside):
            break
        inside = outside
        step *= 2
    else:
        return math.copysign(math.inf, step)
    while abs(outside - inside) > FINENESS * abs(outside - centre):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside
