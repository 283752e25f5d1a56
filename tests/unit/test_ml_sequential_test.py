from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ag06.ml.sequential_test import (
    FREE_PAIRS,
    MOST_SIZES,
    NEIGHBOURS,
    SPENT,
    Contrasts,
    Direction,
    Pair,
    SequentialTest,
    coins,
    spent,
)

WHOLE = st.integers(-1000, 1000).map(float)
TWO = st.tuples(WHOLE, WHOLE)

PAIRS = 9
DRAW = random.Random(3)
SERIES = {
    "noise": [(DRAW.gauss(), DRAW.gauss()) for _ in range(PAIRS)],
    "a drift": [(2.0 * at, 2.0 * at + 1) for at in range(PAIRS)],
    "an outlier": [(DRAW.gauss(), DRAW.gauss() + 1e9 * (at == 4)) for at in range(PAIRS)],
    "growth": [(4.0**at, 2 * 4.0**at) for at in range(PAIRS)],
    "two values": [(0.0, float(at in {1, 2, 6})) for at in range(PAIRS)],
}


def judged(
    pairs: list[tuple[float, float]], order: tuple[bool, ...], seed: str, alpha: float = 0.2, orders: int = 399
) -> Direction | None:
    test = SequentialTest(alpha=alpha, most_pairs=len(pairs), orders=orders, toss=coins(seed))
    for (first, second), b_second in zip(pairs, order, strict=True):
        test.add(first, second, b_second=b_second)
    return test.decision


@pytest.mark.parametrize("name", SERIES)
def test_over_all_orders_of_one_series_it_decides_as_seldom_as_alpha_allows(name: str) -> None:
    # The series stays, only the order is left to chance: each of the 512 orders is drawn once.
    every = list(product((False, True), repeat=PAIRS))
    decisions = [judged(SERIES[name], order, f"{name} {number}") for number, order in enumerate(every)]
    for direction in ("up", "down"):
        assert decisions.count(direction) <= 0.1 * len(every)
    if name in {"noise", "growth"}:  # and it uses what it is allowed, where orders differ from each other
        assert decisions.count("up") + decisions.count("down") >= 0.08 * len(every)


def test_a_clear_difference_is_decided_in_its_direction() -> None:
    draw = random.Random(1)
    for sign, direction in ((1, "up"), (-1, "down")):
        order = tuple(draw.random() < 0.5 for _ in range(20))
        pairs = [(draw.gauss() + 5 * sign * (not b_second), draw.gauss() + 5 * sign * b_second) for b_second in order]
        assert judged(pairs, order, "seed", alpha=0.05, orders=3999) == direction


def test_a_decision_stands_whatever_comes_after() -> None:
    test = SequentialTest(alpha=0.5, most_pairs=40, orders=99, toss=coins("1"))
    pairs = 0
    while test.decision is None:
        test.add(0.0, 1.0 + pairs % 3, b_second=True)
        pairs += 1
    assert [test.add(1e6, 0.0, b_second=True) for _ in range(5)] == ["up"] * 5


@given(st.lists(TWO, min_size=6, max_size=20), st.integers(0, 2**20), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_a_unit_of_the_values_makes_no_difference_and_values_upside_down_turn_the_decision(
    pairs: list[tuple[float, float]], bits: int, seed: int
) -> None:
    order = tuple(bool(bits >> at & 1) for at in range(len(pairs)))
    found = judged(pairs, order, str(seed), alpha=0.5)
    assert judged([(8 * first, 8 * second) for first, second in pairs], order, str(seed), alpha=0.5) == found
    turned = judged([(-first, -second) for first, second in pairs], order, str(seed), alpha=0.5)
    assert turned == {"up": "down", "down": "up", None: None}[found]


def test_values_that_are_all_the_same_decide_nothing() -> None:
    assert judged([(1.0, 1.0)] * 30, (True,) * 30, "seed", alpha=0.5) is None


def test_orders_that_are_equally_extreme_leave_together_or_stay() -> None:
    # Only one pair differs, so half of all orders are as extreme as the best: more than alpha lets go.
    pairs = [(0.0, 0.0)] * 5 + [(0.0, 1.0)] + [(0.0, 0.0)] * 14
    assert judged(pairs, (True,) * 20, "seed", alpha=0.5) is None


def test_after_few_pairs_it_never_decides() -> None:
    test = SequentialTest(alpha=0.5, most_pairs=100, orders=999, toss=coins("1"))
    for _ in range(FREE_PAIRS):
        assert test.add(0.0, 100.0, b_second=True) is None


def test_the_orders_it_compares_are_fair_coins() -> None:
    toss = coins("a seed")
    heads = [sum(toss(1000)) for _ in range(20)]
    assert abs(sum(heads) - 10_000) < 4 * math.sqrt(20_000 / 4)
    assert len(set(heads)) > 5
    assert len(list(toss(7))) == 7
    assert list(toss(0)) == []
    assert list(coins("a seed")(50)) == list(coins("a seed")(50))


@given(st.integers(1, 500), st.integers(1, 500))
def test_alpha_is_spent_little_by_little_and_never_beyond_its_share(pairs: int, most: int) -> None:
    assert 0 <= spent(pairs, most) <= spent(pairs + 1, most) <= SPENT <= 1
    assert spent(most, most) == SPENT
    if pairs <= FREE_PAIRS and pairs < most:
        assert spent(pairs, most) == 0


@given(WHOLE, WHOLE, st.booleans(), WHOLE)
def test_without_an_effect_b_gives_that_much_less(first: float, second: float, b_second: bool, effect: float) -> None:
    pair = Pair(first, second, b_second)
    less = Pair(*pair.without(effect), b_second=b_second)
    assert less.difference == pair.difference - effect
    assert (less.first, less.second)[not b_second] == (first, second)[not b_second]  # a stays as it was


def said(pairs: list[tuple[float, float]]) -> list[float]:
    """What each pair says; the last without a follower."""
    contrasts = Contrasts()
    settled = [contrasts.add(first, second) for first, second in pairs]
    return [*settled[1:], contrasts.latest()]


def test_a_pair_says_by_how_much_its_second_window_is_more_less_what_those_around_it_foretell() -> None:
    assert said([(0.0, 1.0), (5.0, 8.0), (9.0, 13.0)]) == [1.0, 3.0 - NEIGHBOURS * (9.0 - 1.0), 3.0]
    assert Contrasts().latest() == 0.0


@pytest.mark.parametrize("stall", [1e12, -1e12])
def test_a_pair_counts_as_at_most_some_median_ones(stall: float) -> None:
    even = [(0.0, 1.0), (5.0, 6.0), (1.0, 2.0), (6.0, 7.0), (2.0, 3.0)]  # the windows around foretell nothing
    assert said(even) == [1.0] * 5
    assert said([*even[:4], (2.0, stall)]) == [*[1.0] * 4, math.copysign(MOST_SIZES, stall)]


@given(st.lists(TWO, min_size=1, max_size=20))
def test_a_look_at_the_latest_pair_changes_nothing(pairs: list[tuple[float, float]]) -> None:
    looked, blind = Contrasts(), Contrasts()
    for first, second in pairs:
        looked.latest()
        assert looked.add(first, second) == blind.add(first, second)
        assert looked.latest() == looked.latest()
    assert looked.latest() == blind.latest()


def others(drawn: tuple[bool, ...]) -> Callable[[int], Iterator[bool]]:
    """Toss so that the orders compared are all but the drawn one; none may leave before the last look."""
    rest = [order for order in product((False, True), repeat=len(drawn)) if order != drawn]
    places = iter(range(len(drawn)))

    def toss(count: int) -> Iterator[bool]:
        assert count == len(rest)
        place = next(places)
        return (order[place] for order in rest)

    return toss


def test_with_all_orders_compared_it_decides_for_the_most_extreme_of_them_alone() -> None:
    pairs = [(0.0, size) for size in (2.0, 4.0, 1.0, 8.0, 2.5)]
    decided: dict[tuple[bool, ...], Direction | None] = {}
    totals: dict[tuple[bool, ...], float] = {}
    for order in product((False, True), repeat=len(pairs)):
        test = SequentialTest(alpha=0.25, most_pairs=len(pairs), orders=2 ** len(pairs) - 1, toss=others(order))
        for (first, second), b_second in zip(pairs, order, strict=True):
            decided[order] = test.add(first, second, b_second=b_second)
        totals[order] = sum(each if b_second else -each for each, b_second in zip(said(pairs), order, strict=True))
    ranked = sorted(totals, key=totals.__getitem__)
    leave = int(0.25 / 2 * len(ranked) * SPENT)
    assert leave == 3
    assert {order for order in decided if decided[order] == "down"} == set(ranked[:leave])
    assert {order for order in decided if decided[order] == "up"} == set(ranked[-leave:])
