"""Quantiles of a stream in little memory, within a relative error: DDSketch (Masson, Rim, Lee, VLDB 2019)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

SMALLEST = 1e-9
"""Values up to this count as zero: a nanosecond, if they are seconds."""

ACCURACY = 0.01
MOST_BUCKETS = 2048


class Sketch:
    """Counts values of 0 or more in buckets whose bounds grow by a constant factor.

    A quantile it returns differs from the true one by at most `accuracy` of it. It holds at most `most_buckets`
    buckets; beyond that the lowest are counted as one, so that only the lowest quantiles lose their bound: with the
    defaults this begins where the values span 17 powers of ten. Not for several threads at once.
    """

    __slots__ = ("_buckets", "_floor", "_gamma", "_most", "_per_log", "_zeros")

    def __init__(self, accuracy: float = ACCURACY, most_buckets: int = MOST_BUCKETS) -> None:
        """Start empty; `accuracy` is above 0 and below 1."""
        if not 0 < accuracy < 1 or most_buckets < 1:
            raise ValueError(
                f"a sketch of accuracy {accuracy!r} and {most_buckets!r} buckets: use 0 to 1, and 1 or more"
            )
        self._gamma = (1 + accuracy) / (1 - accuracy)
        self._per_log = 1 / math.log(self._gamma)
        self._most = most_buckets
        self._buckets: dict[int, int] = {}
        self._floor: int | None = None
        self._zeros = 0

    @property
    def count(self) -> int:
        """How many values were added."""
        return self._zeros + sum(self._buckets.values())

    @property
    def buckets(self) -> int:
        """How many buckets it holds."""
        return len(self._buckets)

    def add(self, value: float, weight: int = 1) -> None:
        """Count a value, `weight` times; raise `ValueError` for what is negative or not finite."""
        if SMALLEST < value < math.inf:
            index = math.ceil(math.log(value) * self._per_log)
            try:
                self._buckets[index] += weight
            except KeyError:
                self._add_new(index, weight)
        elif 0 <= value <= SMALLEST:
            self._zeros += weight
        else:
            raise ValueError(f"a sketch counts finite values of 0 or more, not {value!r}")

    def add_all(self, values: Sequence[float]) -> None:
        """Count many values, each of which must be finite and 0 or more."""
        per_log, log, ceil = self._per_log, math.log, math.ceil
        indexes = Counter([ceil(log(value) * per_log) for value in values if value > SMALLEST])
        self._zeros += len(values) - indexes.total()
        for index, weight in indexes.items():
            if index in self._buckets:
                self._buckets[index] += weight
            else:
                self._add_new(index, weight)

    def copy(self) -> Sketch:
        """Return a sketch that counted the same."""
        same = Sketch.__new__(Sketch)
        for name in Sketch.__slots__:
            setattr(same, name, getattr(self, name))
        same._buckets = self._buckets.copy()
        return same

    def merge(self, other: Sketch) -> None:
        """Count everything that `other` counted; both must have the same accuracy."""
        if other._gamma != self._gamma:
            raise ValueError("sketches of different accuracy cannot be merged")
        self._zeros += other._zeros
        for index, weight in other._buckets.items():
            if index in self._buckets:
                self._buckets[index] += weight
            else:
                self._add_new(index, weight)

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return the value below which each share (0 to 1) of the values lies; `None` if there is no value."""
        count = self.count
        if not count:
            return [None] * len(shares)
        ordered = sorted(self._buckets.items())
        return [self._at(share * (count - 1), ordered) for share in shares]

    def _at(self, rank: float, ordered: Sequence[tuple[int, int]]) -> float:
        seen = self._zeros
        if rank < seen:
            return 0.0
        index = 0
        for index, weight in ordered:  # noqa: B007 - the last one, if rounding left the rank at the count
            seen += weight
            if seen > rank:
                break
        # The middle of the bucket (gamma^(index-1), gamma^index], as far from one end as from the other in relation.
        return 2 * math.exp(index / self._per_log) / (self._gamma + 1)

    def _add_new(self, index: int, weight: int) -> None:
        if self._floor is not None and index < self._floor:
            index = self._floor
        self._buckets[index] = self._buckets.get(index, 0) + weight
        if len(self._buckets) > self._most:
            lowest, self._floor = sorted(self._buckets)[:2]
            self._buckets[self._floor] += self._buckets.pop(lowest)
