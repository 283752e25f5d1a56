from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from ag06.ml import Knob, Tuner
from ag06.ml.gaussian_search import CAUTION, LEAP, LOSS

KNOBS = [
    Knob("concurrency", low=1, high=256, default=16, scale="log", integer=True),
    Knob("batch_size", low=1, high=512, default=20, scale="log", integer=True),
    Knob("wait_ms", low=0.0, high=100.0, default=50.0),
]
DEFAULTS = {knob.name: knob.default for knob in KNOBS}
Config = dict[str, Any]
Worth = Callable[[Config], float]


def hill(concurrency: float, batch_size: float, wait_ms: float) -> Worth:
    def worth(config: Config) -> float:
        return 100 * math.exp(
            -0.3 * math.log(config["concurrency"] / concurrency) ** 2
            - 0.1 * math.log(config["batch_size"] / batch_size) ** 2
            - 0.5 * ((config["wait_ms"] - wait_ms) / 50) ** 2
        )

    return worth


AWAY = hill(60, 90, 20)
"""The defaults have 46% of what it can give."""
AT_THE_DEFAULT = hill(**DEFAULTS)


class System:
    """Noise of 15%, correlated, and a load that swings by 30%."""

    def __init__(self, worth: Worth, seed: int) -> None:
        self.worth = worth
        self.values: list[float] = []
        self._random = random.Random(f"{seed} noise")
        self._noise = 0.0

    def run(self, tuner: Tuner, windows: int) -> None:
        for _ in range(windows):
            config = tuner.ask()
            value = self.worth(config)
            self.values.append(value)
            self._noise = 0.5 * self._noise + math.sqrt(0.75) * self._random.gauss()
            load = 1 + 0.3 * math.sin(len(self.values) / 4)
            tuner.tell(config, value * load * math.exp(0.15 * self._noise))


def test_most_of_the_gain_is_found_in_sixty_windows_and_few_of_them_are_lost() -> None:
    shares, lost = [], []
    for seed in range(6):
        tuner, system = Tuner(KNOBS, seed), System(AWAY, seed)
        system.run(tuner, 60)
        shares.append((AWAY(tuner.best) - AWAY(DEFAULTS)) / (100 - AWAY(DEFAULTS)))
        lost.append(sum(value < 0.9 * AWAY(DEFAULTS) for value in system.values) / 60)
    assert sorted(shares)[2] > 0.8
    assert min(shares) > 0.4
    assert sum(lost) / len(lost) < 0.15


def test_what_is_likely_to_cost_a_tenth_is_never_asked_for() -> None:
    for seed in range(2):
        tuner, system = Tuner(KNOBS, seed), System(AT_THE_DEFAULT, seed)
        for _ in range(30):
            expected = tuner.predict(tuner.ask())
            if expected is not None:
                assert expected.effect - CAUTION * expected.deviation >= LOSS - 1e-9
            system.run(tuner, 1)


def test_where_the_default_is_the_optimum_it_is_kept_or_what_is_as_good() -> None:
    finals = []
    for seed in range(8):
        tuner = Tuner(KNOBS, seed)
        System(AT_THE_DEFAULT, seed).run(tuner, 60)
        finals.append(AT_THE_DEFAULT(tuner.best))
    assert sum(final < 98 for final in finals) <= 1


def test_before_anything_beat_the_default_it_is_the_best() -> None:
    tuner, system = Tuner(KNOBS, 3), System(AT_THE_DEFAULT, 3)
    for _ in range(6):
        assert tuner.best == DEFAULTS
        system.run(tuner, 1)


def test_the_default_runs_again_now_and_then_as_a_control() -> None:
    tuner = Tuner(KNOBS, 4)
    asked = []
    for _ in range(48):
        asked.append(tuner.ask())
        tuner.tell(asked[-1], AWAY(asked[-1]))
    for first in range(0, 48, 8):
        assert DEFAULTS in asked[first : first + 8]


def test_the_default_still_runs_as_a_control_when_more_windows_were_told_than_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ag06.ml.tuner.REMEMBERED", 20)
    tuner = Tuner(KNOBS, 4)
    asked = []
    for _ in range(60):
        asked.append(tuner.ask())
        tuner.tell(asked[-1], AWAY(asked[-1]))
    for first in range(20, 60, 10):
        assert DEFAULTS in asked[first : first + 10]


@pytest.mark.parametrize("seed", range(2))
def test_a_change_of_regime_is_noticed_and_what_is_best_is_found_anew(seed: int) -> None:
    other = hill(4, 5, 80)
    tuner, system = Tuner(KNOBS, seed), System(AWAY, seed)
    system.run(tuner, 60)
    before = tuner.best
    assert tuner.regimes == 1
    assert other(before) < other(DEFAULTS)
    system.worth = other
    system.run(tuner, 70)
    assert tuner.regimes > 1
    assert len(tuner.state()["windows"]) < 130  # what the old regime taught is gone
    assert other(tuner.best) > other(DEFAULTS)
    restored = Tuner.restore(json.loads(json.dumps(tuner.state())))
    assert (restored.regimes, restored.best, restored.ask()) == (tuner.regimes, tuner.best, tuner.ask())


def test_a_load_that_doubles_is_no_change_of_regime() -> None:
    tuner, system = Tuner(KNOBS, 6), System(AWAY, 6)
    system.run(tuner, 40)
    system.worth = lambda config: 2 * AWAY(config)
    system.run(tuner, 40)
    assert tuner.regimes == 1
    assert AWAY(tuner.best) > AWAY(DEFAULTS)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_asked_for_beyond_a_place_that_was_bad_and_no_knob_leaps(seed: int) -> None:
    tuner = Tuner([Knob("calls", low=1, high=256, default=16, scale="log", integer=True)], seed, scale="difference")
    good, bad = [16], []
    for _ in range(40):
        calls = tuner.ask()["calls"]
        if calls not in bad:
            assert not any(calls < low for low in bad), f"{calls} beyond {bad}"
        assert min(abs(math.log(calls / other)) for other in good) <= LEAP * math.log(256) + 0.5
        tuner.tell({"calls": calls}, -1.6 if calls < 8 else 0.0)
        (bad if calls < 8 else good).append(calls)
    assert good
