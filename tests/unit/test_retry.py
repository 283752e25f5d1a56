from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import ConfigurationError, Retry
from ag06.retry import RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def withdrawn(budget: RetryBudget) -> int:
    """How many retries the budget gives now."""
    count = 0
    while budget.withdraw():
        count += 1
    return count


@given(failures=st.integers(1, 5000), seed=st.integers())
def test_a_wait_lies_between_zero_and_the_doubled_bound(failures: int, seed: int) -> None:
    retry = Retry(attempts=10_000, initial=0.1, maximum=60.0)
    assert 0 <= retry.delay(failures, random.Random(seed)) <= min(60.0, 0.1 * 2 ** min(failures - 1, 60))


def test_the_jitter_is_full() -> None:
    """Waits fill the whole range: neither clustered at the bound nor kept away from zero."""
    rng = random.Random(6)
    waits = [Retry(initial=1.0).delay(4, rng) for _ in range(1000)]
    assert min(waits) < 0.2
    assert max(waits) > 7.8
    assert 3.5 < sum(waits) / len(waits) < 4.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"initial": -0.1}, "initial=-0.1"),
        ({"initial": 2.0, "maximum": 1.0}, "initial <= maximum"),
        ({"maximum": float("nan")}, "maximum=nan"),
        ({"attempts": "x"}, "attempts='x'"),
        ({"attempts": 2.5}, "attempts=2.5"),
        ({"initial": "x"}, "initial='x'"),
        ({"on": [ValueError]}, "an exception class, or a tuple"),
    ],
)
def test_a_retry_that_makes_no_sense_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Retry(**settings)


def test_a_budget_is_a_share_of_first_attempts_and_a_constant_rate() -> None:
    clock = Clock()
    budget = RetryBudget(share=0.2, per_second=10.0, clock=clock)
    assert withdrawn(budget) == 10
    for _ in range(100):
        budget.deposit()
    assert withdrawn(budget) == 20
    clock.now += 1.5  # this second's ten were there at once
    assert withdrawn(budget) == 0
    clock.now += 0.5
    assert withdrawn(budget) == 5


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50)), max_size=60))
def test_retries_are_never_more_than_a_fifth_of_first_attempts_and_ten_a_second(
    turns: list[tuple[float, int]],
) -> None:
    """However first attempts and time go by, with somebody asking for every retry there is."""
    clock = Clock()
    budget = RetryBudget(share=0.2, per_second=10.0, clock=clock)
    first = retries = 0
    for pause, events in turns:
        clock.now += pause
        for _ in range(events):
            budget.deposit()
        first += events
        retries += withdrawn(budget)
        assert retries <= 0.2 * first + 10 * max(1.0, clock.now - 1000.0) + 0.001


def test_a_quiet_time_saves_ten_seconds_of_budget_and_no_more() -> None:
    clock = Clock()
    budget = RetryBudget(share=0.2, per_second=10.0, clock=clock)
    clock.now += 3600
    assert withdrawn(budget) == 100


def test_what_first_attempts_earned_is_forgotten_after_ten_seconds() -> None:
    """Hours without a failure must not pay for a storm."""
    clock = Clock()
    budget = RetryBudget(share=0.2, per_second=0.0, clock=clock)
    for _ in range(60):
        clock.now += 1.0
        budget.deposit(100)
    assert 180 <= withdrawn(budget) <= 200
    budget.deposit(50)
    clock.now += 5.0
    assert withdrawn(budget) == 10
    budget.deposit(50)
    clock.now += 11.0
    assert withdrawn(budget) == 0
