from __future__ import annotations

import math
import random
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ag06.ml.interval import FINENESS, confidence_interval, estimate, evidence
from ag06.ml.sequential_test import Pair

PAIRS = 9
DRAW = random.Random(5)
SERIES = {
    "noise": [(DRAW.gauss(), DRAW.gauss()) for _ in range(PAIRS)],
    "a drift": [(2.0 * at, 2.0 * at + 1) for at in range(PAIRS)],
    "an outlier": [(DRAW.gauss(), DRAW.gauss() + 1e9 * (at == 4)) for at in range(PAIRS)],
    "growth": [(4.0**at, 2 * 4.0**at) for at in range(PAIRS)],
    "two values": [(0.0, float(at in {1, 2, 6})) for at in range(PAIRS)],
}
ORDERS = list(product((False, True), repeat=PAIRS))


def given_to_b(values: list[tuple[float, float]], order: tuple[bool, ...], effect: float) -> list[Pair]:
    """The pairs as they are measured under this order if b gives `effect` more."""
    return [
        Pair(*Pair(first, second, b_second).without(-effect), b_second)
        for (first, second), b_second in zip(values, order, strict=True)
    ]


def noisy(seed: int, count: int = 30, effect: float = 0.0, noise: float = 1.0) -> list[Pair]:
    draw = random.Random(seed)
    values = [(noise * draw.gauss(), noise * draw.gauss()) for _ in range(count)]
    return given_to_b(values, tuple(draw.random() < 0.5 for _ in range(count)), effect)


@pytest.mark.parametrize("name", SERIES)
def test_over_all_orders_of_one_series_the_truth_is_refuted_as_seldom_as_promised(name: str) -> None:
    # Ville's inequality, on every order there is: no sample, no margin.
    most = [evidence(given_to_b(SERIES[name], order, 0.0), 0.0) for order in ORDERS]
    for alpha in (0.5, 0.2, 0.05):
        assert sum(more >= 1 / alpha for more, _ in most) <= alpha * len(ORDERS)
        assert sum(less >= 1 / alpha for _, less in most) <= alpha * len(ORDERS)


@pytest.mark.parametrize("name", ["noise", "a drift", "an outlier"])
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_over_all_orders_of_one_series_the_interval_misses_the_truth_as_seldom_as_alpha_allows(
    name: str, effect: float
) -> None:
    missed = 0
    for order in ORDERS[::2]:
        pairs = given_to_b(SERIES[name], order, effect)
        found = confidence_interval(pairs, 0.2, (estimate(pairs),))
        missed += found is None or not found[0] - 1e-6 <= effect <= found[1] + 1e-6
    assert missed <= 0.2 * len(ORDERS[::2])


def test_the_evidence_is_the_capital_of_a_gambler_on_the_signs() -> None:
    # Each pair says 1: the windows around it foretell nothing. The fifth waits for its follower.
    pairs = [Pair(first, first + 1, True) for first in (0.0, 5.0, 1.0, 6.0, 2.0)]
    bets = [math.exp(stake) / math.cosh(stake) for stake in (0.1, 0.2, 0.4, 0.8, 1.6)]
    more, less = evidence(pairs, 0.0)
    assert more == pytest.approx(sum(bet**4 for bet in bets) / 5)
    assert less == 1.0
    mirrored = [Pair(pair.first, pair.second, not pair.b_second) for pair in pairs]
    assert evidence(mirrored, 0.0) == (1.0, pytest.approx(more))


def test_evidence_never_shrinks_as_pairs_come() -> None:
    pairs = noisy(1, 40, 0.5)
    for effect in (-1.0, 0.0, 0.5, 2.0):
        seen = [evidence(pairs[:count], effect) for count in range(1, 41)]
        for (more, less), (more_after, less_after) in pairwise(seen):
            assert more_after >= more >= 1
            assert less_after >= less >= 1


def test_thousands_of_pairs_overflow_nothing() -> None:
    pairs = [Pair(0.0, 1.0 + at % 2, True) for at in range(3000)]
    more, less = evidence(pairs, 0.0)
    assert more > 1e300
    assert less == 1.0
    assert evidence(pairs, 100.0)[1] > 1e300


@given(st.integers(0, 50), st.integers(2, 30), st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_an_estimate_moves_with_the_effect_and_turns_with_the_variants(seed: int, count: int, effect: float) -> None:
    plain = estimate(noisy(seed, count))
    assert estimate(noisy(seed, count, effect)) == pytest.approx(plain + effect, abs=1e-3)
    swapped = [Pair(pair.first, pair.second, not pair.b_second) for pair in noisy(seed, count)]
    assert estimate(swapped) == pytest.approx(-plain, abs=1e-3)


def test_an_estimate_is_near_the_truth() -> None:
    errors = [estimate(noisy(seed, 100, 3.0)) - 3.0 for seed in range(40)]
    assert abs(sum(errors)) / 40 < 0.1
    assert max(map(abs, errors)) < 0.6


@pytest.mark.parametrize("pairs", [[Pair(1.0, 3.0, True)], [Pair(1.0, 3.0, True), Pair(5.0, 3.0, False)]])
def test_of_pairs_that_agree_the_estimate_is_what_they_say(pairs: list[Pair]) -> None:
    assert estimate(pairs) == 2.0


def test_the_last_pair_counts_for_the_estimate_before_it_has_a_follower() -> None:
    assert estimate([Pair(0.0, 0.0, True), Pair(0.0, 4.0, True)]) == pytest.approx(2.0, abs=1e-3)


def test_a_stalled_window_does_not_move_the_estimate_far() -> None:
    pairs = noisy(2, 200, 1.0)
    stalled = [*pairs[:20], Pair(pairs[20].first, -1e9, True), *pairs[21:]]
    assert abs(estimate(stalled) - estimate(pairs)) < 0.2


@given(st.integers(0, 100), st.integers(12, 40), st.sampled_from([0.5, 0.2, 0.05]))
@settings(max_examples=40, deadline=None)
def test_an_end_parts_what_is_refuted_from_what_is_not(seed: int, count: int, alpha: float) -> None:
    pairs = noisy(seed, count)
    centre = estimate(pairs)
    found = confidence_interval(pairs, alpha, (centre,))
    if found is None or max(evidence(pairs, centre)) >= 2 / alpha:
        return
    for end, side in zip(found, (0, 1), strict=True):
        if math.isfinite(end):
            assert evidence(pairs, end)[side] >= 2 / alpha
            inside = centre + (end - centre) * (1 - 2 * FINENESS)
            assert evidence(pairs, inside)[side] < 2 / alpha


def test_before_anything_can_be_refuted_the_interval_has_no_bounds() -> None:
    assert confidence_interval([Pair(1.0, 2.0, True)], 0.05, (1.0,)) == (-math.inf, math.inf)


def test_the_interval_narrows_as_pairs_come() -> None:
    widths = []
    for count in (20, 80, 320):
        pairs = noisy(4, count)
        found = confidence_interval(pairs, 0.05, (estimate(pairs),))
        assert found is not None
        widths.append(found[1] - found[0])
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] < 1.0


def test_where_the_effect_changes_midway_no_interval_is_told() -> None:
    pairs = [*noisy(1, 60, 5.0, noise=0.1), *noisy(2, 60, -5.0, noise=0.1)]
    assert confidence_interval(pairs, 0.05, (estimate(pairs),)) is None


def test_where_noise_calms_down_and_refutes_the_estimate_the_interval_is_around_what_fits() -> None:
    # A few wild pairs decide the estimate; the many calm ones know better.
    wild, calm = noisy(3, 8, 1.0, noise=1000.0), noisy(4, 60, 1.0, noise=0.01)
    centre = estimate([*wild, *calm])
    assert max(evidence([*wild, *calm], centre)) >= 40
    found = confidence_interval([*wild, *calm], 0.05, (centre,))
    assert found is not None
    assert found[0] <= 1.0 <= found[1]


@pytest.mark.parametrize("size", [1e-140, 1.0, 1e140])
def test_where_most_windows_are_equal_the_ends_are_found_at_any_size(size: float) -> None:
    pairs = [Pair(0.0, size * (at % 5 == 0), at % 2 == 0) for at in range(50)]
    found = confidence_interval(pairs, 0.05, (estimate(pairs), 0.0))
    assert found is not None
    assert -size <= found[0] <= 0 <= found[1] <= size
