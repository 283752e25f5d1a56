from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml import Knob, Tuner
from ag06.ml.scores import levelled

POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=20)
KNOBS = [
    Knob("concurrency", low=1, high=256, default=10, scale="log", integer=True),
    Knob("wait_ms", low=0.0, high=50.0, default=10.0),
]


@given(POSITIVE, st.floats(1e-6, 1e6))
def test_the_unit_of_a_positive_score_makes_no_difference(scores: list[float], unit: float) -> None:
    plain = levelled(scores, "auto")
    other = levelled([unit * score for score in scores], "auto")
    shift = other[0] - plain[0]
    assert [one - shift for one in other] == pytest.approx(plain, abs=1e-6)


@given(st.lists(st.floats(1, 2), min_size=2, max_size=20))
def test_a_negative_score_is_a_cost_and_half_of_it_is_as_good_as_twice_the_throughput(scores: list[float]) -> None:
    costs, rates = levelled([-1 / score for score in scores], "auto"), levelled(scores, "auto")
    assert costs == pytest.approx(rates)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.sampled_from(["auto", "difference"]))
def test_a_higher_score_is_never_worth_less(scores: list[float], scale: Any) -> None:
    found = levelled(scores, scale)
    assert all(map(math.isfinite, found))
    ordered = [worth for _, worth in sorted(zip(scores, found, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("score", [0.0, 1e-300, 5.0, -5.0, 1e149, -1e149])
def test_where_every_window_scores_the_same_the_best_stays_the_default(score: float) -> None:
    for surrogate in (True, False):
        tuner = Tuner(KNOBS, surrogate=surrogate)
        for _ in range(45):
            tuner.tell(tuner.ask(), score)
        assert tuner.best == {"concurrency": 10, "wait_ms": 10.0}


def drive(transform: Any, scale: Any = "auto", windows: int = 60) -> dict[str, Any]:
    """The best of a system whose concurrency is worth a factor of three, when scores are told in another unit."""
    draw = random.Random(17)
    tuner = Tuner(KNOBS, seed=5, scale=scale)
    for number in range(windows):
        config = tuner.ask()
        value = 100 * math.exp(-0.5 * (math.log(config["concurrency"] / 90) / 1.5) ** 2)
        tuner.tell(config, transform(value * (1 + 0.3 * math.sin(number / 7)) * math.exp(0.15 * draw.gauss())))
    return tuner.best


UNITS = {
    "rate": lambda value: value,
    "bytes": lambda value: 1e9 * value,
    "cost": lambda value: -1000 / value,
    "log": math.log,
    "negative log": lambda value: math.log(value) - 9,
    "log ratio": lambda value: math.log(value / 40),
    "gain": lambda value: value / 40 - 1,
}


@pytest.mark.parametrize("unit", UNITS)
def test_it_finds_the_gain_whatever_the_unit_and_sign_of_the_score(unit: str) -> None:
    assert 30 <= drive(UNITS[unit])["concurrency"] <= 256


def test_log_ratios_may_be_declared_and_then_mean_what_they_say() -> None:
    assert drive(math.log, "difference") == drive(lambda value: math.log(value) - 9, "difference")
    assert drive(math.log, "difference") == drive(lambda value: value, "ratio")


def test_a_ratio_below_zero_is_refused_with_what_to_do() -> None:
    tuner = Tuner(KNOBS, scale="ratio")
    with pytest.raises(ConfigurationError, match="scale='difference'"):
        tuner.tell(tuner.ask(), -1.0)
    tuner.tell(tuner.ask(), 0.0)


def test_windows_without_any_throughput_are_bad_ones_and_not_the_end() -> None:
    tuner = Tuner(KNOBS, seed=1)
    asked = []
    for _ in range(50):
        config = tuner.ask()
        asked.append(config["concurrency"])
        tuner.tell(config, 100.0 if config["concurrency"] <= 20 else 0.0)
    assert tuner.best["concurrency"] <= 20
    assert sum(concurrency > 20 for concurrency in asked[25:]) <= 4
