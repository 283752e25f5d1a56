from __future__ import annotations

import math
import random

import pytest

from ag06.ml import Knob, Tuner
from ag06.ml.candidate import is_clear, simplest

CALLS = Knob("calls", low=1, high=256, default=10, scale="log", integer=True)
IDLE = Knob("idle", low=0.001, high=1.0, default=0.1, scale="log")
CODEC = Knob("codec", choices=("none", "zstd"), default="none")
KNOBS = [CALLS, IDLE, CODEC]
DEFAULTS = {knob.name: knob.default for knob in KNOBS}


def taught(seed: int, slope: float, *, surrogate: bool | None = None) -> Tuner:
    """A tuner that has seen that calls alone matter."""
    tuner = Tuner(KNOBS, seed, scale="difference", surrogate=surrogate)
    noise = random.Random(seed)
    for _ in range(40):
        config = tuner.ask()
        tuner.tell(config, slope * math.log(config["calls"] / 10) + noise.gauss(0, 0.05))
    return tuner


@pytest.mark.parametrize("seed", range(3))
def test_what_does_nothing_is_not_changed_and_numbers_are_round(seed: int) -> None:
    tuner = taught(seed, 0.4)
    candidate = {"calls": 64, "idle": 0.0123456, "codec": "none"}
    found = simplest(candidate, DEFAULTS, tuner, KNOBS)
    assert found["calls"] == 64
    assert found["idle"] in (0.1, 0.012)
    expected, simpler = (tuner.predict(config, beside=DEFAULTS) for config in (candidate, found))
    assert expected is not None
    assert simpler is not None
    assert simpler.effect >= 0.85 * expected.effect


def test_over_some_seeds_most_of_what_does_nothing_is_left_alone() -> None:
    candidate = {"calls": 64, "idle": 0.05, "codec": "none"}
    kept = [simplest(candidate, DEFAULTS, taught(seed, 0.4), KNOBS)["idle"] == 0.1 for seed in range(4)]
    assert sum(kept) >= 3


def test_without_a_surrogate_the_candidate_stays_as_it_is() -> None:
    candidate = {"calls": 64, "idle": 0.0123456, "codec": "zstd"}
    assert simplest(candidate, DEFAULTS, taught(1, 0.4, surrogate=False), KNOBS) == candidate


def test_a_large_gain_is_clear_and_none_is_not() -> None:
    candidate = {"calls": 64, "idle": 0.1, "codec": "none"}
    assert is_clear(candidate, DEFAULTS, taught(1, 0.4))
    assert not is_clear(candidate, DEFAULTS, taught(1, 0.0))
