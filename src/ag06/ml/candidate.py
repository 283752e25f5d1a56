"""What is put to the proof, and when: the best without what it does not need, sooner where it is clear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ag06.knob import Knob
from ag06.ml.space import Config
from ag06.ml.tuner import Tuner

SPARED = 0.1
"""The share of the expected effect that a simpler configuration may cost."""
CLEAR_EFFECT = math.log(1.2)
CLEAR_CONFIDENCE = 0.995
_DIGITS = 2


def is_clear(candidate: Mapping[str, Any], incumbent: Mapping[str, Any], tuner: Tuner) -> bool:
    """Whether a candidate is expected to be 20% better and nearly sure to be better at all: then it need not wait."""
    found = tuner.predict(candidate, beside=incumbent)
    return found is not None and found.effect >= CLEAR_EFFECT and found.confidence >= CLEAR_CONFIDENCE


def simplest(candidate: Mapping[str, Any], incumbent: Mapping[str, Any], tuner: Tuner, knobs: Sequence[Knob]) -> Config:
    """Return the candidate with as few changes as are expected to give about the same, in round numbers.

    Knobs that do nothing drift while others are found; whoever reads the result would wonder what they are for. Changes
    are taken back one after the other, that which costs least first (backward elimination). The experiment then tells
    whether what is left is better: it may never have run.
    """
    left = dict(candidate)
    whole = tuner.predict(candidate, beside=incumbent)
    if whole is None or whole.effect <= 0:
        return left
    least = (1 - SPARED) * whole.effect
    while True:
        fewer = [
            {**left, name: incumbent[name]} for name, value in left.items() if value != incumbent[name]
        ]  # each with one change less
        expected = [(tuner.predict(config, beside=incumbent), config) for config in fewer if config != incumbent]
        worth = [(found.effect, config) for found, config in expected if found is not None and found.effect >= least]
        if not worth:
            return {knob.name: _round(knob, left[knob.name], incumbent[knob.name]) for knob in knobs}
        left = max(worth, key=lambda each: each[0])[1]


def _round(knob: Knob, value: Any, before: Any) -> Any:
    if knob.choices is not None or knob.integer or value in (before, 0):
        return value
    rounded = float(f"{value:.{_DIGITS}g}")
    return rounded if knob.low <= rounded <= knob.high else value
