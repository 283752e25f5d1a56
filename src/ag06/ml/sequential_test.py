"""Which of two variants is better, looked at after every pair of windows: an exact sequential randomisation test.

If the variants are the same, the values would have been what they are under every other order of the pairs. So the
order that was drawn is compared with orders that were not (Fisher 1935; a sample of orders: Dwass 1957), and a part of
alpha is spent at each look (Lan and DeMets 1983): the most extreme orders leave, as many as that part allows, and the
variants differ when the order that was drawn leaves with them. It is as likely to leave as any other, so the error over
all looks is at most alpha: for every series, drifting, autocorrelated or full of outliers, and any number of orders.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Literal

import msgspec

Direction = Literal["up", "down"]

NEIGHBOURS = 0.3
"""The share of what the two windows around a pair differ by that is taken off: a third takes off a straight drift, 0.29
is best where neighbours correlate by 0.5. It decides how soon a gain is found, never how often one is made up."""

MOST_SIZES = 3.0
"""A pair counts as at most so many median differences: a few stalled windows must not hide a gain."""

SPENT = 0.75
"""The share of alpha that is spent by the last look: a rate measured in a simulation then stays below alpha too."""

FREE_PAIRS = 5
"""After so few pairs nothing is spent: there are too few orders of them to tell anything apart."""


class Pair(msgspec.Struct, frozen=True):
    """Two windows that follow each other, one of each variant, on a scale on which effects add up."""

    first: float
    second: float
    b_second: bool

    @property
    def difference(self) -> float:
        """What b gave beyond a."""
        return self.second - self.first if self.b_second else self.first - self.second

    def without(self, effect: float) -> tuple[float, float]:
        """Return the values as they would be if variant b gave `effect` less."""
        return (self.first, self.second - effect) if self.b_second else (self.first - effect, self.second)


class Contrasts:
    """What each pair says: its second window less its first, less what the windows around foretell.

    The variants play no part in it, so it is the same whatever the order.
    """

    __slots__ = ("_before", "_latest", "_sizes")

    def __init__(self) -> None:
        """Start without a pair."""
        self._before: float | None = None
        self._latest: tuple[float, float] | None = None
        self._sizes: list[float] = []

    def add(self, first: float, second: float) -> float:
        """Return what the pair before says, now that its follower is known (0 for the first)."""
        settled = 0.0
        if self._latest is not None:
            settled = self._latest[1] - self._latest[0]
            if self._before is not None:
                settled -= NEIGHBOURS * (first - self._before)
            settled = self._clipped(settled)
            self._before = self._latest[1]
        self._latest = (first, second)
        return settled

    def latest(self) -> float:
        """Return what the last pair says so far, without a follower."""
        if self._latest is None:
            return 0.0
        contrast = self._latest[1] - self._latest[0]
        provisional = self._clipped(contrast)
        if contrast != 0:
            self._sizes.remove(abs(contrast))
        return provisional

    @property
    def size(self) -> float:
        """The median size of what is settled, at least one of which is not 0."""
        return self._sizes[len(self._sizes) // 2]

    def _clipped(self, contrast: float) -> float:
        # Zeros are left out of the median: it would be 0 where most windows are equal, and clip the rest away.
        if contrast == 0:
            return contrast
        bisect.insort(self._sizes, abs(contrast))
        limit = MOST_SIZES * self.size
        return max(-limit, min(limit, contrast))


def spent(pairs: int, most_pairs: int) -> float:
    """The share of alpha that may be spent after so many pairs: in step with the logarithm of their number.

    So a big gain that shows after 10 pairs has as much of it as a small one that takes 100.
    """
    if pairs >= most_pairs:
        return SPENT
    if pairs <= FREE_PAIRS:
        return 0.0
    return SPENT * math.log(pairs / FREE_PAIRS) / math.log(most_pairs / FREE_PAIRS)


def coins(seed: str) -> Callable[[int], Iterator[bool]]:
    """Return a source of fair coins: a function from how many to that many."""
    draw = random.Random(seed)  # noqa: S311 - a simulation, no secret

    def toss(count: int) -> Iterator[bool]:
        return map("1".__eq__, format(draw.getrandbits(count), f"0{count}b")) if count else iter(())

    return toss


class SequentialTest:
    """Looks after every pair whether b gives more (`"up"`) or less (`"down"`) than a; each has half of `alpha`.

    `most_pairs` is when the last look will be, `orders` how many other orders are compared, `toss` draws them: it must
    know nothing of the order of the pairs. An order costs some 0.2 microseconds a look.
    """

    __slots__ = ("_contrasts", "_left", "_most", "_most_pairs", "_orders", "_pairs", "_sums", "_toss", "decision")

    def __init__(self, *, alpha: float, most_pairs: int, orders: int, toss: Callable[[int], Iterator[bool]]) -> None:
        """Start with no pair; the order that is drawn is the first of all orders."""
        self.decision: Direction | None = None
        self._most = alpha / 2 * (orders + 1)
        self._most_pairs = most_pairs
        self._toss = toss
        self._contrasts = Contrasts()
        self._sums = [0.0] * (orders + 1)
        self._orders: list[bool] = [True] * (orders + 1)
        self._left: dict[Direction, int] = {"up": 0, "down": 0}
        self._pairs = 0

    def add(self, first: float, second: float, *, b_second: bool) -> Direction | None:
        """Look once more, with one more pair; return the decision, which stands once it is made."""
        if self.decision is not None:
            return self.decision
        settled = self._contrasts.add(first, second)
        self._sums = _moved(self._sums, settled, self._orders)  # by the orders of the pair before
        self._orders = [b_second, *self._toss(len(self._sums) - 1)]
        self._pairs += 1
        may_leave = int(self._most * spent(self._pairs, self._most_pairs) + 1e-9)
        if may_leave > self._left["up"]:
            self._part("up", may_leave - self._left["up"])
        if may_leave > self._left["down"] and self.decision is None:
            self._part("down", may_leave - self._left["down"])
        return self.decision

    def _part(self, direction: Direction, count: int) -> None:
        """Let up to `count` orders go that are most extreme now; equal ones go together or not at all."""
        totals = _moved(self._sums, self._contrasts.latest(), self._orders)
        if direction == "up":
            bound = heapq.nlargest(count + 1, totals)[-1] if count < len(totals) else -math.inf
            stay = [total <= bound for total in totals]
        else:
            bound = heapq.nsmallest(count + 1, totals)[-1] if count < len(totals) else math.inf
            stay = [total >= bound for total in totals]
        if not stay[0]:
            self.decision = direction
        self._left[direction] += len(stay) - sum(stay)
        self._sums = list(compress(self._sums, stay))
        self._orders = list(compress(self._orders, stay))


def _moved(sums: list[float], contrast: float, orders: list[bool]) -> list[float]:
    return [total + contrast if b_second else total - contrast for total, b_second in zip(sums, orders, strict=True)]
