"""Whether what runs scores otherwise than it ever did: another regime, seen from one configuration alone."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import msgspec

SPAN = 8
"""Scores whose mean is looked at; two spans in a row must lie outside of what was seen."""
LEAST = 0.25
"""By how much, at least: a logarithm, so about 28%."""
SURE = 4.0
"""And by so many standard errors of the difference between two spans."""


class Shift(msgspec.Struct):
    """Scores in spans, and the range that the means of spans had so far.

    A load that swings widens the range as it goes, and is no shift any more when it swings again; a step to where no
    span was before, and that lasts, is one.

    Attributes:
        low, high: the range of the means; `None` before the first span.
        outside: how far the last span was outside, with its sign; 0 where it was not.
        scores: those of the span that is not full yet.
    """

    low: float | None = None
    high: float | None = None
    outside: float = 0.0
    scores: list[float] = []

    def add(self, score: float) -> bool:
        """Take a score, a finite logarithm; return whether there is a shift. The new level is in the range then."""
        self.scores.append(score)
        if len(self.scores) < SPAN:
            return False
        mean, error = fmean(self.scores), stdev(self.scores) * math.sqrt(2 / SPAN)
        self.scores = []
        if self.low is None or self.high is None:
            self.low = self.high = mean
            return False
        before, away = self.outside, max(mean - self.high, 0.0) + min(mean - self.low, 0.0)
        far = abs(away) > max(LEAST, SURE * error)
        if far and not before:
            self.outside = away  # it is no part of the range before another says the same
            return False
        self.outside = 0.0
        self.low, self.high = min(self.low, mean), max(self.high, mean)
        return far and (before > 0) == (away > 0)
