"""How big an effect is: the one at which the pairs speak for neither variant, and those that are not refuted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ag06.ml.sequential_test import Contrasts, Pair

STAKES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""What is bet on a pair, in median contrasts: from small effects in much noise to big ones in little. Each is twice the
one before."""

HALVINGS = 30
DOUBLINGS = 60

CLOSE = 1e-4
"""An estimate is exact to this share of the median distance of the pairs from their middle."""

FINENESS = 0.01
"""An end of the interval is exact to this share of its distance from the estimate."""

FINEST = 1e-12
"""Nothing smaller is told apart, as a share of the biggest value: rounding is not far from it."""


def estimate(pairs: Sequence[Pair]) -> float:
    """Return the effect without which the pairs would speak for neither variant (Hodges and Lehmann 1963)."""
    differences = sorted(pair.difference for pair in pairs)
    low, high = differences[0], differences[-1]
    # Neighbours are taken off too, so the balance may turn outside the differences: widen until it does not.
    width = high - low
    while width > 0 and _balance(pairs, low) < 0:
        low, width = low - width, 2 * width
    while width > 0 and _balance(pairs, high) > 0:
        high, width = high + width, 2 * width
    close = CLOSE * _spread(pairs, differences[len(differences) // 2])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high or high - low < close:
            break
        if _balance(pairs, middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _spread(pairs: Sequence[Pair], centre: float) -> float:
    distances = sorted(abs(pair.difference - centre) for pair in pairs)
    return distances[len(distances) // 2]


def _balance(pairs: Sequence[Pair], effect: float) -> float:
    """How much the pairs speak for b once it is given `effect` less: above 0 for b, below 0 for a."""
    contrasts, total, sign = Contrasts(), 0.0, 1
    for pair in pairs:
        total += sign * contrasts.add(*pair.without(effect))
        sign = 1 if pair.b_second else -1
    return total + sign * contrasts.latest()


def evidence(pairs: Sequence[Pair], effect: float) -> tuple[float, float]:
    """Return the most evidence there ever was that b gives more than `effect`, and that it gives less: e-values.

    If it gives exactly that, the sign of each contrast is a fair coin whatever its size, so a bet of `s` on it,
    `exp(s) / cosh(s)`, multiplies a gambler's capital by 1 on average, and the probability that the capital is ever 20
    times what it was is at most 1 in 20 (Ville 1939; Howard, Ramdas, McAuliffe, Sekhon 2021). The capital is spread
    over `STAKES`. The last pair waits for its follower.
    """
    contrasts = Contrasts()
    more, less = [1.0] * len(STAKES), [1.0] * len(STAKES)
    most_more = most_less = 1.0
    before: Pair | None = None
    for pair in pairs:
        settled = contrasts.add(*pair.without(effect))
        if before is not None and settled:
            signed = (settled if before.b_second else -settled) / contrasts.size
            power = math.exp(-2 * STAKES[0] * signed)
            for index in range(len(STAKES)):
                gain = 2 / (1 + power)
                more[index] *= gain
                less[index] *= 2 - gain
                power *= power  # the next stake is twice as high
            most_more = max(most_more, sum(more) / len(STAKES))
            most_less = max(most_less, sum(less) / len(STAKES))
        before = pair
    return most_more, most_less


def confidence_interval(pairs: Sequence[Pair], alpha: float, candidates: Sequence[float]) -> tuple[float, float] | None:
    """Return the ends of the effects that are not refuted; half of `alpha` goes to each side.

    It is looked for around those of the `candidates` that are not refuted, the estimate among them. Taken after every
    pair, all intervals hold the effect at once with a probability of 1 - alpha (a confidence sequence). An end is
    infinite where no effect is refuted, however far; `None` if each effect is refuted that was looked at.
    """
    limit = 2 / alpha
    fitting = [effect for effect in candidates if max(evidence(pairs, effect)) < limit]
    if not fitting:
        effect = _least_refuted(pairs)
        if max(evidence(pairs, effect)) >= limit:
            return None
        fitting = [effect]
    finest = FINEST * (max(max(abs(pair.first), abs(pair.second)) for pair in pairs) or 1)
    step = max(_spread(pairs, fitting[0]), finest)
    low = _end(pairs, limit, min(fitting), -step, finest)
    return low, _end(pairs, limit, max(fitting), step, finest)


def _least_refuted(pairs: Sequence[Pair]) -> float:
    """Return the effect against which there is as much evidence from either side.

    It is far from the estimate where a few pairs are much noisier than the rest: they weigh less in a bet.
    """
    differences = [pair.difference for pair in pairs]
    low, high = min(differences), max(differences)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        more, less = evidence(pairs, middle)
        if more > less:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _end(pairs: Sequence[Pair], limit: float, centre: float, step: float, finest: float) -> float:
    # Below the centre those effects are refuted that b gives more than, above it those that it gives less than.
    side = 0 if step < 0 else 1

    def refuted(effect: float) -> bool:
        return evidence(pairs, effect)[side] >= limit

    inside, outside = centre, centre + step
    for _ in range(DOUBLINGS):
        if refuted(outside):
            break
        step *= 2
        inside, outside = outside, centre + step
    else:
        return math.copysign(math.inf, side - 0.5)
    while abs(outside - inside) > max(finest, FINENESS * abs(outside - centre)):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside
