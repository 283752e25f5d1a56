"""Simultaneous perturbation: a gradient from two windows, whatever the number of knobs; no dependency.

Spall 1992; the gain sequences follow Spall 1998.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from random import Random
from typing import Any

from ag06.ml.search import Window
from ag06.ml.space import Position, Space

REACH, REACH_DECAY = 0.12, 0.101
STEP, STEP_DECAY, STABILITY = 0.1, 0.602, 3.0
MOST_DECAY = 40
"""After so many pairs reach and step shrink no more: what is being climbed may move."""
LARGEST_MOVE = 0.15
PAIRS_BETWEEN_CONTROLS = 2
"""After so many pairs of perturbations comes a pair of what they led to and the default."""
CONTROLS = 8
"""So many of the last controls count."""
LEAST_CONTROLS = 3
CONFIDENCE = 2.0
"""Standard errors by which the best must lie above the default."""
LEAST_ERROR = 0.05
"""A few controls may agree by chance: the error of one is taken for no less."""


class SpsaSearch:
    """A `Search` that steps along gradients of pairs of windows; neighbours in time share the load, so it cancels."""

    def __init__(self, space: Space) -> None:
        """Begin at the default."""
        self._space = space
        self.best: Position = space.default
        self._begin()

    def _begin(self) -> None:
        self._at = self._space.default
        self._pairs = 0
        self._signs: list[int] = []
        self._first: int | None = None
        self._control = False
        self._controls: list[float] = []

    def learn(self, windows: Sequence[Window]) -> int:
        """See `Search.learn`; a change of regime shows as controls that no longer hold: it is dealt with here."""
        window = windows[-1]
        if not window.asked:
            return 0
        if self._first is None:
            self._first = window.number
            return 0
        first = next((one for one in windows if one.number == self._first), window)
        self._first = None
        difference = first.score - window.score
        if self._control:
            self._compare(difference)
        else:
            self._step(difference)
        self._control = not self._control and self._pairs % PAIRS_BETWEEN_CONTROLS == 0
        return 0

    def _compare(self, difference: float) -> None:
        """Take what the place is better than the default by, in one control."""
        self._controls = [*self._controls, difference][-CONTROLS:]
        if len(self._controls) < LEAST_CONTROLS:
            return
        mean, error = self._measured()
        if mean > CONFIDENCE * error:
            self.best = self._space.snap(self._at)
        elif mean < -error:
            self.reset(())
        elif mean <= 0:
            self.best = self._space.default

    def _measured(self) -> tuple[float, float]:
        error = max(statistics.stdev(self._controls), LEAST_ERROR) / len(self._controls) ** 0.5
        return statistics.fmean(self._controls), error

    def _step(self, difference: float) -> None:
        slope = difference / (2 * self._reach())
        gain = STEP / (min(self._pairs, MOST_DECAY) + STABILITY) ** STEP_DECAY
        move = min(max(gain * slope, -LARGEST_MOVE), LARGEST_MOVE)
        self._at = tuple(min(max(at + move * sign, 0.0), 1.0) for at, sign in zip(self._at, self._signs, strict=True))
        self._pairs += 1

    def _reach(self) -> float:
        return float(REACH / (min(self._pairs, MOST_DECAY) + 1) ** REACH_DECAY)

    def reset(self, windows: Sequence[Window]) -> None:
        """See `Search.reset`."""
        self.best = self._space.default
        self._begin()

    def ask(self, windows: Sequence[Window], random: Random) -> Position:
        """See `Search.ask`."""
        first = self._first is None
        if self._control:
            return self._space.snap(self._at) if first else self._space.default
        if first:
            self._signs = [random.choice((-1, 1)) for _ in self._at]
        side = self._reach() if first else -self._reach()
        return self._space.snap([at + side * sign for at, sign in zip(self._at, self._signs, strict=True)])

    def skip(self) -> None:
        """See `Search.skip`: the pair begins again, perturbed another way."""
        self._first = None

    def predict(self, position: Position, beside: Position) -> tuple[float, float] | None:
        """See `Search.predict`: only of the best beside the default something is known, by the controls."""
        known = {self.best: 1, self._space.default: -1}
        if len(self._controls) < LEAST_CONTROLS or known.keys() != {position, beside}:
            return None
        mean, error = self._measured()
        return known[position] * mean, error

    def move_to(self, space: Space) -> None:
        """See `Search.move_to`."""
        self._space = space
        self.best, self._at = space.snap(self.best), space.snap(self._at)

    def state(self) -> dict[str, Any]:
        """See `Search.state`."""
        return {
            "best": list(self.best),
            "at": list(self._at),
            "pairs": self._pairs,
            "signs": list(self._signs),
            "first": self._first,
            "control": self._control,
            "controls": list(self._controls),
        }

    def restore(self, state: dict[str, Any], windows: Sequence[Window]) -> None:
        """See `Search.restore`."""
        self.best, self._at = tuple(state["best"]), tuple(state["at"])
        self._pairs, self._signs, self._first = state["pairs"], list(state["signs"]), state["first"]
        self._control, self._controls = state["control"], list(state["controls"])
