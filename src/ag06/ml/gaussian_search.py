"""Search with a surrogate: the most promising configuration that is not likely to cost much.

An upper confidence bound (Srinivas et al. 2010) within a set that is safe by a lower one (Sui et al. 2015) and within a
trust region that moves with the best (Eriksson et al. 2019), refined by gradient ascent on the surrogate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from ag06.ml.ascent import climb
from ag06.ml.search import Window
from ag06.ml.space import Position, Space
from ag06.ml.surrogate import Array, Surrogate

CURIOSITY = 2.0
"""Deviations above the mean at which a configuration is valued: more explores more."""
CAUTION = 0.3
"""Deviations below the mean at which a configuration must still be safe."""
LOSS = math.log(0.9)
"""What is not proposed: more than 10% below the default."""
BAD = math.log(0.7)
"""What is so far below the default is bad: nothing is asked for that is nearer to it than to what is not."""
LEAP = 0.36
"""How far any knob may be from where it was not bad, of its range; one choice is 0.354 from another."""
CONFIDENCE = 2.0
"""Deviations by which the best must lie above the default."""
DOUBT = 0.5
"""Deviations below the mean at which those that do are compared."""
RADIUS = 0.4
"""Half a side of the trust region; single draws reach from a third of it to twice as far."""
REACHES = (0.3, 1.0, 2.0)
CANDIDATES = 200
DEFAULT_EVERY, BEST_EVERY = 8, 6
"""Every so many windows the default runs again, as a control, or what is best as far as is known, to know it better."""
ASCENT_STEPS, ASCENT_STEP, SLOPE_WIDTH = 8, 0.03, 0.01
BREAKS = (8, 16)
"""How many of the last windows are looked at for a change of regime."""
BREAK_EVIDENCE = 8.0
"""Log Bayes factor at which a change is believed: 3,000 to 1."""
LEAST_BEFORE_BREAK = 12


class GaussianSearch:
    """A `Search` with a Gaussian process."""

    def __init__(self, space: Space) -> None:
        """Begin at the default."""
        self._space = space
        self.best: Position = space.default
        self._centre: Position = space.default
        self._surrogate = Surrogate(len(space.features(space.default)))
        self._seen: Array = np.zeros((0, 0))
        self._bad = np.zeros(0, dtype=bool)

    def learn(self, windows: Sequence[Window]) -> int:
        """See `Search.learn`."""
        self._fit(windows, climb=True)
        self._judge(windows)
        return self._changed(windows)

    def reset(self, windows: Sequence[Window]) -> None:
        """See `Search.reset`: what is known of lengths and deviations stays, what is known of the surface goes."""
        self.best = self._centre = self._space.default
        if windows:
            self._fit(windows, climb=False)

    def ask(self, windows: Sequence[Window], random: Random) -> Position:
        """See `Search.ask`."""
        if len(windows) < 2:
            return self._space.default
        told = windows[-1].number + 1  # more than the windows that are remembered
        if told % DEFAULT_EVERY == 0:
            return self._space.default
        curiosity = -DOUBT if told % BEST_EVERY == 0 else CURIOSITY
        return self._promising(windows, random, curiosity)

    def skip(self) -> None:
        """See `Search.skip`."""

    def predict(self, position: Position, beside: Position) -> tuple[float, float] | None:
        """See `Search.predict`; nothing is known before the first window."""
        if not self._surrogate.fitted:
            return None
        features = [np.array(self._space.features(at)) for at in (position, beside)]
        mean, deviation = self._surrogate.contrast(features[0][None], features[1])
        return float(mean[0]), float(deviation[0])

    def move_to(self, space: Space) -> None:
        """See `Search.move_to`."""
        self._space = space
        self.best, self._centre = space.snap(self.best), space.snap(self._centre)

    def state(self) -> dict[str, Any]:
        """See `Search.state`."""
        return {"best": list(self.best), "centre": list(self._centre), "logs": list(self._surrogate.logs)}

    def restore(self, state: dict[str, Any], windows: Sequence[Window]) -> None:
        """See `Search.restore`."""
        self.best, self._centre = tuple(state["best"]), tuple(state["centre"])
        self._surrogate = Surrogate(len(self._space.features(self.best)), state["logs"])
        if windows:
            self._fit(windows, climb=False)

    def _fit(self, windows: Sequence[Window], *, climb: bool) -> None:
        self._surrogate.fit(*self._arrays(windows), climb=climb)

    def _arrays(self, windows: Sequence[Window]) -> tuple[Array, Array, Array]:
        features = np.array([self._space.features(window.position) for window in windows])
        times = np.array([float(window.number) for window in windows])
        return features, times, np.array([window.score for window in windows])

    def _judge(self, windows: Sequence[Window]) -> None:
        """Make the best what has the highest lower bound over the default, of what has run; else the default.

        The search centres on the highest lower bound, which need not be sure to beat the default.
        """
        seen = self._runnable(windows)
        mean, deviation = self._over_default(seen)
        worth = mean - DOUBT * deviation
        self._centre = seen[int(np.argmax(worth))]
        worth[mean <= CONFIDENCE * deviation] = -np.inf
        top = int(np.argmax(worth))
        self.best = seen[top] if np.isfinite(worth[top]) else self._space.default

    def _runnable(self, windows: Sequence[Window]) -> list[Position]:
        """Return the positions that ran and that the pins allow, each once."""
        seen = dict.fromkeys(window.position for window in windows)
        return [self._space.default, *(at for at in seen if self._space.allows(at))]

    def _changed(self, windows: Sequence[Window]) -> int:
        for last in BREAKS:
            if len(windows) < last + LEAST_BEFORE_BREAK:
                continue
            if self._surrogate.break_before(*self._arrays(windows), last) > BREAK_EVIDENCE:
                return last
        return 0

    def _promising(self, windows: Sequence[Window], random: Random, curiosity: float) -> Position:
        seen = self._runnable(windows)
        self._note_bad(seen)
        drawn = dict.fromkeys(seen)
        for _ in range(CANDIDATES):
            reach = RADIUS * random.choice(REACHES)
            moved = [at + reach * random.uniform(-1, 1) if random.random() < 0.7 else at for at in self._centre]
            drawn[self._space.snap(moved)] = None
        candidates = list(drawn)
        start = candidates[int(np.argmax(self._worth(candidates, curiosity)))]
        places = climb(start, lambda at: self._slope(at, curiosity), ASCENT_STEPS, ASCENT_STEP)
        path = [self._space.snap(at) for at in places]
        return path[int(np.argmax(self._worth(path, curiosity)))]

    def _slope(self, at: Position, curiosity: float) -> list[float]:
        """Return the central differences of the worth."""
        steps = np.eye(len(at)) * SLOPE_WIDTH
        places = [tuple(at + side * step) for step in steps for side in (1, -1)]
        worth = self._worth(places, curiosity)
        return [float(slope) for slope in worth[::2] - worth[1::2]]

    def _worth(self, positions: Sequence[Position], curiosity: float) -> Array:
        """Return what lies `curiosity` deviations above the mean; what is not safe is worth less than all that is."""
        mean, deviation = self._over_default(positions)
        missing = np.minimum(mean - CAUTION * deviation - LOSS, 0.0) - self._off_limits(positions)
        return np.where(missing < 0, 10 * missing - 10, mean + curiosity * deviation)

    def _note_bad(self, seen: Sequence[Position]) -> None:
        self._seen = np.array([self._space.features(at) for at in seen])
        self._bad = self._over_default(seen)[0] < BAD

    def _off_limits(self, positions: Sequence[Position]) -> Array:
        """Return 1 for each position that is a leap away from all that was not bad, or nearer to what was, else 0.

        The surrogate alone may hope for better beyond a place that it knows to be bad.
        """
        features = np.array([self._space.features(at) for at in positions])
        apart = np.abs(features[:, None, :] - self._seen[None, :, :])
        distances = (apart**2).sum(axis=2)
        good = ~self._bad
        to_good = distances[:, good].min(axis=1)
        off: Array = (apart[:, good].max(axis=2).min(axis=1) > LEAP).astype(float)
        if self._bad.any():
            off = np.maximum(off, distances[:, self._bad].min(axis=1) < to_good)
        return off

    def _over_default(self, positions: Sequence[Position]) -> tuple[Array, Array]:
        features = np.array([self._space.features(at) for at in positions])
        return self._surrogate.contrast(features, np.array(self._space.features(self._space.default)))
