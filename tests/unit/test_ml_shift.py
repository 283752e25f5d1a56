from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.ml.shift import SPAN, Shift


def shifts(scores: Iterable[float]) -> list[int]:
    """Return after how many scores there was a shift."""
    shift = Shift()
    return [number for number, score in enumerate(scores, 1) if shift.add(score)]


def noise(count: int, level: float = 0.0, seed: int = 0, size: float = 0.1) -> list[float]:
    draw = random.Random(seed)
    return [level + draw.gauss(0, size) for _ in range(count)]


@pytest.mark.parametrize("step", [-0.7, 0.7])
def test_a_step_that_lasts_is_a_shift_and_only_once(step: float) -> None:
    found = shifts(noise(40) + noise(200, step, seed=1))
    assert len(found) == 1
    assert 40 + SPAN < found[0] <= 40 + 3 * SPAN


def test_a_step_that_goes_away_soon_is_none() -> None:
    assert shifts(noise(40) + noise(SPAN, -0.7, seed=1) + noise(100, seed=2)) == []


def test_noise_that_depends_on_itself_is_hardly_ever_taken_for_one() -> None:
    wrong = 0
    for seed in range(200):
        draw, state, scores = random.Random(seed), 0.0, []
        for _ in range(200):
            state = 0.5 * state + math.sqrt(0.75) * draw.gauss(0, 0.15)
            scores.append(state)
        wrong += bool(shifts(scores))
    assert wrong <= 4


def test_a_load_that_swings_slowly_is_none() -> None:
    for period in (40, 60, 120):
        swinging = [math.log(1 + 0.3 * math.sin(2 * math.pi * number / period)) for number in range(600)]
        assert shifts(swinging) == []


def test_a_level_that_was_seen_before_is_no_news() -> None:
    # A load that switches between two levels: each is news at most once.
    scores = [level for turn in range(10) for level in noise(40, 0.6 * (turn % 2), seed=turn)]
    assert len(shifts(scores)) <= 1


def test_a_small_step_is_none() -> None:
    assert shifts(noise(100, size=0.01) + noise(100, 0.15, size=0.01)) == []


@given(st.lists(st.floats(-300, 300), max_size=100), st.integers(0, 100))
def test_it_goes_on_the_same_after_a_restart(scores: list[float], at: int) -> None:
    plain, other = Shift(), Shift()
    for number, score in enumerate(scores):
        if number == at:
            other = msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(other))), Shift)
        assert plain.add(score) == other.add(score)
    assert plain == other
