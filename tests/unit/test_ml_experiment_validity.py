"""Many experiments on made series; the seeds are fixed, so a count is the same each time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from ag06.ml import Experiment
from ag06.ml.verdict import Verdict

Series = Callable[[random.Random], Iterator[float]]

ALPHA = 0.2
RUNS = 300


def autocorrelated(draw: random.Random, noise: float = 0.15, correlation: float = 0.5) -> Iterator[float]:
    """A load that swings and drifts, with AR(1) noise: what the same variant would measure, window by window."""
    period, phase, drift = draw.uniform(8, 100), draw.random(), draw.uniform(-1, 1)
    now = draw.gauss()
    for window in count():
        level = (1 + 0.3 * math.sin(2 * math.pi * (window / period + phase))) * math.exp(drift * window / 100)
        yield 100 * level * max(0.05, 1 + noise * now)
        now = correlation * now + math.sqrt(1 - correlation**2) * draw.gauss()


def wandering(draw: random.Random) -> Iterator[float]:
    level = 0.0
    while True:
        level += draw.gauss(0, 0.3)
        yield math.exp(level)


def stalling(draw: random.Random) -> Iterator[float]:
    """The tails are so heavy that there is no mean."""
    while True:
        yield draw.paretovariate(0.4)


def alternating(draw: random.Random) -> Iterator[float]:
    """Each second window is better, in step with the pairs."""
    for window in count(draw.randrange(2)):
        yield 100 + 20 * (window % 2) + draw.gauss()


def few_values(draw: random.Random) -> Iterator[float]:
    while True:
        yield draw.choice([1.0, 1.0, 1.0, 1.0, 2.0])


def growing(draw: random.Random) -> Iterator[float]:
    for window in count():
        yield draw.uniform(0.9, 1.1) * 2.0 ** (window / 2)


def switching(series: Series, hit: float, lasts: int) -> Callable[[random.Random], Callable[[str], float]]:
    """Windows of a system whose variants are the same but for the change itself, felt in as many windows."""

    def start(draw: random.Random) -> Callable[[str], float]:
        values = series(draw)
        recent: list[str] = []

        def measure(variant: str) -> float:
            recent.append(variant)
            changed = len(set(recent[-1 - lasts :])) > 1
            return next(values) * (hit if changed else 1)

        return measure

    return start


def judged(
    seed: int, measure: Callable[[str], float], *, unusable: Callable[[int], bool] = lambda _: False, **settings: object
) -> Verdict:
    experiment = Experiment(seed=seed, **settings)  # type: ignore[arg-type]
    for window in count():
        if not experiment.running:
            break
        variant = experiment.next_variant()
        value = measure(variant)
        experiment.record(variant, None if unusable(window) else value)
    return experiment.result


def wrong_winners(
    start: Callable[[random.Random], Callable[[str], float]], **settings: object
) -> tuple[Counter[str | None], int]:
    """Who won, and how often the interval did not hold 0."""
    winners: Counter[str | None] = Counter()
    missed = 0
    for seed in range(RUNS):
        found = judged(seed, start(random.Random(f"{seed} series")), alpha=ALPHA, max_windows=40, **settings)  # type: ignore[arg-type]
        winners[found.winner] += 1
        missed += found.interval is None or not found.interval[0] <= 0 <= found.interval[1]
    return winners, missed


def same(series: Series) -> Callable[[random.Random], Callable[[str], float]]:
    return switching(series, 1.0, 0)


# 15% are let win, so 45 of 300, give or take 6; alpha is 60, and 25 for one side is where a lopsided test would show.
@pytest.mark.parametrize(
    ("series", "scale"),
    [
        (autocorrelated, "ratio"),
        (autocorrelated, "difference"),
        (wandering, "ratio"),
        (stalling, "ratio"),
        (stalling, "difference"),
        (alternating, "ratio"),
        (few_values, "ratio"),
        (growing, "difference"),
    ],
)
def test_of_identical_variants_one_is_seldom_named_however_the_values_behave(series: Series, scale: str) -> None:
    winners, missed = wrong_winners(same(series), scale=scale)
    assert winners["a"] + winners["b"] <= ALPHA * RUNS
    assert max(winners["a"], winners["b"]) <= ALPHA / 2 * RUNS + 10
    assert missed <= ALPHA * RUNS


@pytest.mark.parametrize("lasts", [1, 2])
def test_what_a_change_costs_names_nobody_within_the_discard(lasts: int) -> None:
    winners, _ = wrong_winners(switching(autocorrelated, 0.6, lasts), carry_over=lasts)
    assert winners["a"] + winners["b"] <= ALPHA * RUNS


def test_windows_without_a_value_name_nobody() -> None:
    winners, _ = wrong_winners(same(autocorrelated), unusable=lambda window: window % 11 in {2, 3})
    assert winners["a"] + winners["b"] <= ALPHA * RUNS


def test_identical_variants_seldom_beat_a_minimum_effect() -> None:
    winners, _ = wrong_winners(same(autocorrelated), minimum_effect=0.02)
    assert winners["b"] <= ALPHA / 2 * RUNS
    assert winners["a"] <= ALPHA / 2 * RUNS + 10


def test_most_gains_of_10_percent_are_found_within_100_windows_under_load_that_drifts() -> None:
    found = []
    for seed in range(100):
        values = autocorrelated(random.Random(f"{seed} gain"))
        found.append(judged(seed, lambda v, values=values: next(values) * (1.1 if v == "b" else 1), max_windows=100))  # type: ignore[misc]
    assert sum(each.winner == "b" for each in found) >= 90
    assert sum(each.windows for each in found) / len(found) <= 52
    assert sum(each.interval is not None and each.interval[0] <= 0.1 <= each.interval[1] for each in found) >= 95
