"""Which of two variants has the higher values where each subject got one by chance: looked at whenever one likes."""

from __future__ import annotations

import math

from ag06.errors import ConfigurationError
from ag06.ml.verdict import Variant

FIRST = 20
"""So many subjects, and more while all their values are the same, only tell what values look like."""

MEMORY = 0.02
"""A subject's weight in the level that the next one is compared with: a load that drifts is followed."""

AIMS = (64, 512, 4096, 32768)
"""Subjects after which an effect may be found: a big one after few, a small one after many."""

TUNED = 8.0
"""At an aim, the values' sum of squares is so many times the mixture's own: there the bound is tightest for 5%."""

BELOW, ABOVE = -1, 1
DOUBLINGS = 80
HALVINGS = 60


class SplitEvidence:
    """What the values of subjects say of `effect`: b's mean minus a's.

    If b's values are those of a with `effect` added, then what is left of a value without it, less the level of those
    before, is the same whoever the coin had given it to: its sign is a fair coin (Fisher 1935). So for every stake the
    product of the bets `exp(stake * signed - stake**2 * square / 2)` is 1 on average at most, whatever the values'
    distribution (de la Pena 1999), and the probability that a mixture of such products ever reaches 1/alpha is at most
    alpha (Ville 1939). Mixed over normal stakes it has a closed form of two sums (Robbins 1970), so that a look costs
    the same after any number of subjects. Where effects differ from subject to subject it is the confidence sequence of
    their mean, for many subjects (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2021).

    The coins must be fair and independent of the values. The order of the subjects must not depend on their variants.
    """

    __slots__ = (
        "_b_level",
        "_b_square",
        "_cross",
        "_level",
        "_limit",
        "_own",
        "_seen",
        "_signed_b",
        "_signed_value",
        "_spread",
        "_value_square",
    )

    def __init__(self, alpha: float = 0.05) -> None:
        """Start with no subject; raise `ConfigurationError` for an `alpha` that is not between 0 and 1."""
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1:
            raise ConfigurationError(f"alpha={alpha!r}: use a number between 0 and 1, such as 0.05")
        self._limit = -math.log(alpha)
        self._seen = 0
        self._level = 0.0
        self._b_level = 0.0
        self._spread = 0.0
        self._own: tuple[float, ...] = ()
        self._signed_value = 0.0
        self._signed_b = 0.0
        self._value_square = 0.0
        self._cross = 0.0
        self._b_square = 0.0

    def add(self, variant: Variant, value: float) -> None:
        """Take the value of the next subject. It must be finite."""
        is_b = 1.0 if variant == "b" else 0.0
        if self._own:
            sign = 2 * is_b - 1
            off, b_off = value - self._level, is_b - self._b_level
            self._signed_value += sign * off
            self._signed_b += sign * b_off
            self._value_square += off * off
            self._cross += off * b_off
            self._b_square += b_off * b_off
        self._seen += 1
        weight = max(1 / self._seen, MEMORY)
        if not self._own:
            self._look_over(value, weight)
        self._level += weight * (value - self._level)
        self._b_level += weight * (is_b - self._b_level)

    def _look_over(self, value: float, weight: float) -> None:
        """Learn how far the values of the first subjects are from each other."""
        off = value - self._level
        self._spread = (1 - weight) * (self._spread + weight * off * off)
        if self._seen >= FIRST and self._spread > 1e-12 * self._level * self._level:
            self._own = tuple(self._spread * aim / TUNED for aim in AIMS)

    @property
    def estimate(self) -> float | None:
        """The effect for and against which there is no evidence; `None` before there is any."""
        return self._signed_value / self._signed_b if self._signed_b > 0 else None

    def against(self, effect: float) -> float:
        """Return the logarithm of the evidence against an effect: 0 or less is none, -log(alpha) enough."""
        if not self._own:
            return 0.0
        signed = self._signed_value - effect * self._signed_b
        square = self._value_square - 2 * effect * self._cross + effect * effect * self._b_square
        parts = [(signed * signed / (square + own) - math.log1p(square / own)) / 2 for own in self._own]
        most = max(parts)
        return most + math.log(sum(math.exp(part - most) for part in parts) / len(parts))

    def refuted(self, effect: float) -> int:
        """Return `BELOW` where b gives less than `effect`, `ABOVE` where it gives more, 0 where neither is shown."""
        estimate = self.estimate
        if estimate is None or self.against(effect) < self._limit:
            return 0
        return ABOVE if estimate > effect else BELOW

    @property
    def interval(self) -> tuple[float, float] | None:
        """The effects around the estimate that are not refuted; an end is infinite where none is, `None` before any.

        Taken at every look, all intervals hold the effect at once with a probability of 1 - alpha.
        """
        estimate = self.estimate
        if estimate is None:
            return None
        step = math.sqrt(self._value_square / self._b_square / max(self._seen, 1)) or 1e-12
        return self._end(estimate, -step), self._end(estimate, step)

    def _end(self, inside: float, step: float) -> float:
        centre = inside
        for _ in range(DOUBLINGS):
            outside = centre + step
            if self.against(outside) >= self._limit:
                break
            inside, step = outside, 2 * step
        else:
            return math.copysign(math.inf, step)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if middle in (inside, outside):
                break
            if self.against(middle) >= self._limit:
                outside = middle
            else:
                inside = middle
        return outside
