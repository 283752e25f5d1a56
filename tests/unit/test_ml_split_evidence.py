"""What subjects show of two variants: seldom a difference where there is none, and soon one where there is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ag06 import ConfigurationError
from ag06.ml.split_evidence import ABOVE, BELOW, SplitEvidence
from ag06.ml.verdict import Variant

Draw = Callable[[random.Random, int], float]


def heavy(draw: random.Random, number: int) -> float:
    """Subjects of which a few are a hundred times slower, under a load that swings and grows."""
    effect = draw.gauss(0, 0.5) / math.sqrt(draw.gammavariate(1.5, 2) / 3)
    return effect + 0.3 * math.sin(number / 80) + number / 2000


def rare(draw: random.Random, number: int) -> float:
    """Shares of calls that fail: 0 nearly always."""
    return float(draw.random() < 0.02)


def subjects(draw: random.Random, values: Draw, count: int, difference: float = 0.0) -> Iterator[tuple[Variant, float]]:
    for number in range(count):
        variant: Variant = "b" if draw.random() < 0.5 else "a"
        yield variant, values(draw, number) + (difference if variant == "b" else 0.0)


def told(evidence: SplitEvidence, given: Iterator[tuple[Variant, float]]) -> tuple[int, int]:
    """What is shown at first if one looks after every subject, and after how many."""
    count = 0
    for variant, value in given:
        evidence.add(variant, value)
        count += 1
        found = evidence.refuted(0.0)
        if found:
            return found, count
    return 0, count


@pytest.mark.parametrize("values", [heavy, rare])
def test_where_variants_are_the_same_looking_all_the_time_seldom_shows_a_difference(values: Draw) -> None:
    wrong = sum(told(SplitEvidence(0.05), subjects(random.Random(seed), values, 400))[0] != 0 for seed in range(200))
    assert wrong <= 10  # 5%; a test that is meant for one look has more than 40


@pytest.mark.parametrize(("difference", "shown"), [(-0.4, BELOW), (0.4, ABOVE)])
def test_a_difference_is_shown_in_its_direction(difference: float, shown: int) -> None:
    for seed in range(10):
        found, count = told(SplitEvidence(), subjects(random.Random(seed), heavy, 4000, difference))
        assert found == shown
        assert count < 4000


def test_more_failures_are_shown_where_they_are_rare() -> None:
    for seed in range(10):
        draw = random.Random(seed)
        evidence = SplitEvidence()
        for _ in range(4000):
            variant: Variant = "b" if draw.random() < 0.5 else "a"
            evidence.add(variant, float(draw.random() < (0.06 if variant == "b" else 0.01)))
        assert evidence.refuted(0.0) == ABOVE
        assert evidence.estimate == pytest.approx(0.05, abs=0.02)


def test_the_interval_holds_the_difference_at_every_look_and_shrinks_around_it() -> None:
    missed, widths = 0, []
    for seed in range(100):
        evidence = SplitEvidence(0.05)
        always = True
        for number, (variant, value) in enumerate(subjects(random.Random(seed), heavy, 1000, 0.2), 1):
            evidence.add(variant, value)
            if number % 50 == 0:
                interval = evidence.interval
                assert interval is not None
                always &= interval[0] <= 0.2 <= interval[1]
        missed += not always
        assert evidence.estimate is not None
        assert interval is not None
        assert interval[0] < evidence.estimate < interval[1]
        widths.append(interval[1] - interval[0])
    assert missed <= 5
    assert max(widths) < 1.0


def test_what_is_shown_agrees_with_the_interval() -> None:
    evidence = SplitEvidence()
    for variant, value in subjects(random.Random(5), heavy, 3000, 0.3):
        evidence.add(variant, value)
    assert evidence.interval is not None
    low, high = evidence.interval
    width = high - low
    assert evidence.refuted(low - 0.01 * width) == ABOVE
    assert evidence.refuted(low + 0.01 * width) == 0
    assert evidence.refuted(high - 0.01 * width) == 0
    assert evidence.refuted(high + 0.01 * width) == BELOW


def test_neither_scale_nor_level_of_the_values_matters() -> None:
    def count(scale: float, level: float) -> tuple[int, int]:
        given = subjects(random.Random(3), heavy, 4000, 0.4)
        return told(SplitEvidence(), ((variant, level + scale * value) for variant, value in given))

    assert count(1.0, 0.0) == count(1e-3, 0.0) == count(1e3, 0.0) == count(1.0, 10.0)


def test_values_that_are_all_the_same_show_nothing() -> None:
    evidence = SplitEvidence()
    assert told(evidence, subjects(random.Random(1), lambda draw, number: 0.1, 1000)) == (0, 1000)
    assert (evidence.estimate, evidence.interval) == (None, None)


def test_a_variant_that_always_fails_is_shown_at_once() -> None:
    found, count = told(SplitEvidence(), subjects(random.Random(1), lambda draw, number: 0.0, 1000, 1.0))
    assert found == ABOVE
    assert count < 60


def test_before_the_first_subjects_nothing_is_told() -> None:
    evidence = SplitEvidence()
    assert (evidence.refuted(0.0), evidence.estimate, evidence.interval) == (0, None, None)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, math.nan, True, "small", None])
def test_an_alpha_that_makes_no_sense_is_refused(alpha: Any) -> None:
    with pytest.raises(ConfigurationError, match="alpha="):
        SplitEvidence(alpha)
