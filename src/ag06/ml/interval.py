"""How big an effect is: the one at which the pairs speak for neither variant, and those that are not refuted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ag06.ml.sequential_test import Contrasts, Pair

STAKES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""What is bet on a pair, in median contrasts: from small effects in much noise to big ones in little."""

HALVINGS = 30
DOUBLINGS = 40
FINENESS = 0.01
"""An end of the interval is exact to this share of its distance from the estimate."""


def estimate(pairs: Sequence[Pair]) -> float:
    """Return the effect without which the pairs would speak for neither variant (Hodges and Lehmann 1963)."""
    differences = [pair.difference for pair in pairs]
    low, high = min(differences), max(differences)
    # Neighbours are taken off too, so the balance may turn outside the differences: widen until it does not.
    width = high - low
    while width > 0 and _balance(pairs, low) < 0:
        low, width = low - width, 2 * width
    while width > 0 and _balance(pairs, high) > 0:
        high, width = high + width, 2 * width
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if _balance(pairs, middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _balance(pairs: Sequence[Pair], effect: float) -> float:
    """How much the pairs speak for b once it is given `effect` less: above 0 for b, below 0 for a."""
    contrasts, total, latest, sign = Contrasts(), 0.0, 0.0, 1
    for pair in pairs:
        settled, latest = contrasts.add(*pair.without(effect))
        total += sign * settled
        sign = 1 if pair.b_second else -1
    return total + sign * latest


def evidence(pairs: Sequence[Pair], effect: float) -> tuple[float, float]:
    """Return the most evidence there ever was that b gives more than `effect`, and that it gives less: e-values.

    If it gives exactly that, the sign of each contrast is a fair coin whatever its size, so a bet of `s` on it,
    `exp(s) / cosh(s)`, multiplies a gambler's capital by 1 on average, and the probability that the capital is ever 20
    times what it was is at most 1 in 20 (Ville 1939; Howard, Ramdas, McAuliffe, Sekhon 2021). The capital is spread
    over `STAKES`. The last pair waits for its follower.
    """
    contrasts, size = Contrasts(), 0.0
    more, less = [0.0] * len(STAKES), [0.0] * len(STAKES)
    most_more = most_less = 1.0
    before: Pair | None = None
    for pair in pairs:
        settled, _ = contrasts.add(*pair.without(effect))
        if before is not None and settled:
            size = contrasts.size
            signed = (settled if before.b_second else -settled) / size
            for index, stake in enumerate(STAKES):
                bet = stake * signed
                both = abs(bet) + math.log1p(math.exp(-2 * abs(bet))) - math.log(2)
                more[index] += bet - both
                less[index] -= bet + both
            most_more = max(most_more, _mean(more))
            most_less = max(most_less, _mean(less))
        before = pair
    return most_more, most_less


def _mean(logarithms: Sequence[float]) -> float:
    return sum(math.exp(min(logarithm, 700)) for logarithm in logarithms) / len(logarithms)


def confidence_interval(pairs: Sequence[Pair], alpha: float, centre: float) -> tuple[float, float] | None:
    """Return the ends of the effects around `centre` that are not refuted; half of `alpha` goes to each side.

    Taken after every pair, all of them hold the effect at once with a probability of 1 - alpha (a confidence sequence).
    An end is infinite where no effect is refuted, however far; `None` if `centre` itself is refuted.
    """
    distances = sorted(abs(pair.difference - centre) for pair in pairs)
    # Where most differences are equal, begin with the smallest step that the values can tell apart.
    step = distances[len(distances) // 2] or 1e-9 * (max(abs(pair.first) for pair in pairs) or 1)
    if max(evidence(pairs, centre)) >= 2 / alpha:
        return None
    return _end(pairs, alpha, centre, -step), _end(pairs, alpha, centre, step)


def _end(pairs: Sequence[Pair], alpha: float, centre: float, step: float) -> float:
    # Below the centre those effects are refuted that b gives more than, above it those that it gives less than.
    side = 0 if step < 0 else 1

    def refuted(effect: float) -> bool:
        return evidence(pairs, effect)[side] >= 2 / alpha

    inside, outside = centre, centre + step
    for _ in range(DOUBLINGS):
        if refuted(outside):
            break
        step *= 2
        inside, outside = outside, centre + step
    else:
        return math.copysign(math.inf, side - 0.5)
    while abs(outside - inside) > FINENESS * abs(outside - centre):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside
