from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml import Experiment


def noisy(gain: float = 0.0, seed: int = 0, noise: float = 0.1) -> Callable[[str], float]:
    """What a window measures: 100 with noise, `gain` more under b."""
    draw = random.Random(f"{seed} series")

    def measure(variant: str) -> float:
        return 100 * math.exp(noise * draw.gauss()) * (1 + gain if variant == "b" else 1)

    return measure


def run(experiment: Experiment, measure: Callable[[str], float | None]) -> list[str]:
    """Run it to its end; return what ran."""
    ran = []
    while experiment.running:
        variant = experiment.next_variant()
        experiment.record(variant, measure(variant))
        ran.append(variant)
    return ran


def order(seed: int | str, windows: int = 20, **settings: Any) -> list[str]:
    return run(Experiment(max_windows=windows, seed=seed, **settings), lambda _: 1.0)


# The design


def test_windows_come_in_pairs_of_one_of_each_variant() -> None:
    for seed in range(50):
        ran = order(seed)
        assert len(ran) == 20
        assert all({first, second} == {"a", "b"} for first, second in zip(ran[::2], ran[1::2], strict=True))


def test_each_order_of_a_pair_is_as_likely_whatever_the_order_before() -> None:
    firsts = [order(seed)[::2] for seed in range(200)]
    b_first = sum(first == "b" for pairs in firsts for first in pairs)
    same = sum(one == other for pairs in firsts for one, other in pairwise(pairs))
    assert abs(b_first - 1000) < 4 * math.sqrt(2000 / 4)
    assert abs(same - 900) < 4 * math.sqrt(1800 / 4)


def test_the_same_seed_gives_the_same_order_and_another_one_another() -> None:
    assert order(7) == order(7)
    assert order("checkout 3") == order("checkout 3")
    assert len({tuple(order(seed)) for seed in range(20)}) > 15


@given(st.lists(st.floats(0, 1e200) | st.none(), min_size=20, max_size=20), st.integers(0, 5), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_the_order_is_drawn_without_a_look_at_the_values(
    values: list[float | None], seed: int, carry_over: int
) -> None:
    # The draws go by the number of pairs begun, so with nothing lost any values give the same order.
    experiment = Experiment(max_windows=20, carry_over=carry_over, seed=seed)
    planned = order(seed, carry_over=carry_over)
    for variant, value in zip(planned, values, strict=False):
        assert experiment.next_variant() == variant
        experiment.record(variant, 1.0 if value is None or value < 1e-150 or value > 1e150 else value)
        if not experiment.running:
            break


def test_it_asks_for_the_same_variant_until_that_is_recorded() -> None:
    experiment = Experiment()
    assert len({experiment.next_variant() for _ in range(5)}) == 1


@pytest.mark.parametrize("carry_over", [1, 2, 5])
def test_windows_are_discarded_before_each_counted_one_whether_the_variant_changes_or_not(carry_over: int) -> None:
    ran = order(3, carry_over=carry_over)
    assert len(ran) == 20 * (1 + carry_over)
    blocks = [ran[start : start + 1 + carry_over] for start in range(0, len(ran), 1 + carry_over)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert [block[0] for block in blocks] == order(3)
    assert any(one[0] == other[0] for one, other in pairwise(blocks))  # no change, and discarded all the same


@pytest.mark.parametrize("rubbish", [None, math.nan, 0.0, 1e140, 1e-140])
def test_what_a_discarded_window_measured_plays_no_part(rubbish: float | None) -> None:
    plain, discarding = Experiment(seed=5), Experiment(seed=5, carry_over=2)
    run(plain, noisy(0.2))
    measure, windows = noisy(0.2), iter(range(10_000))
    run(discarding, lambda variant: measure(variant) if next(windows) % 3 == 2 else rubbish)
    assert discarding.result == plain.result


def test_the_limit_counts_counted_windows_and_an_odd_one_is_not_used() -> None:
    experiment = Experiment(max_windows=21, carry_over=1)
    assert len(run(experiment, lambda _: 1.0)) == 40
    assert experiment.result.windows == 20


# How it ends


def test_a_big_gain_is_found_soon_and_told() -> None:
    for seed in range(10):
        experiment = Experiment(seed=seed)
        run(experiment, noisy(0.5, seed))
        found = experiment.result
        assert found.winner == "b"
        assert found.windows <= 30
        assert found.effect is not None
        assert found.interval is not None
        assert 0.3 < found.effect < 0.7
        assert 0 <= found.interval[0] <= found.effect <= found.interval[1]
        assert found.reason.startswith("b is better by ")
        assert found.reason.endswith(f" after {found.windows} windows")
        assert "95% interval +" in found.reason


def test_harm_ends_it_early_and_is_told() -> None:
    for seed in range(10):
        experiment = Experiment(seed=seed, minimum_effect=0.05 * (seed % 2))
        run(experiment, noisy(-0.4, seed))
        found = experiment.result
        assert found.winner == "a"
        assert found.windows <= 30
        assert found.interval is not None
        assert found.interval[1] <= 0
        assert found.reason.startswith("b is worse by ")


def test_a_gain_without_any_noise_is_found_at_its_size() -> None:
    experiment = Experiment()
    run(experiment, lambda variant: 110.0 if variant == "b" else 100.0)
    assert experiment.result.winner == "b"
    assert experiment.result.effect == pytest.approx(0.1)


def test_the_difference_scale_takes_any_sign_and_tells_units() -> None:
    draw = random.Random(1)
    experiment = Experiment(scale="difference")
    run(experiment, lambda variant: draw.gauss() + (4.0 if variant == "b" else 0.0) - 2.0)
    found = experiment.result
    assert found.winner == "b"
    assert found.effect == pytest.approx(4.0, abs=1.5)
    assert "%" not in found.reason.split("(")[0]


def test_constant_values_are_inconclusive_and_said_to_be_constant() -> None:
    experiment = Experiment(max_windows=40)
    run(experiment, lambda _: 3.0)
    found = experiment.result
    assert found.winner is None
    assert found.effect == 0.0
    assert found.windows == 40
    assert found.reason == "inconclusive: all 40 windows have the same value: no difference can be seen"


def test_where_there_is_no_difference_none_is_named_and_the_interval_holds_0() -> None:
    experiment = Experiment(max_windows=60, seed=1)
    run(experiment, noisy(0.0, 1))
    found = experiment.result
    assert found.winner is None
    assert found.interval is not None
    assert found.interval[0] <= 0 <= found.interval[1]
    assert found.reason.startswith("inconclusive: no difference was shown in 60 windows; b gives ")


def test_a_gain_below_the_minimum_does_not_win_and_ends_before_the_windows_are_used_up() -> None:
    for seed in range(5):
        experiment = Experiment(seed=seed, minimum_effect=0.2)
        run(experiment, noisy(0.05, seed, noise=0.05))
        found = experiment.result
        assert found.winner is None
        assert found.windows < 100
        assert found.interval is not None
        assert found.interval[1] <= 0.2 + 1e-9
        assert found.reason.startswith("b is not better by the 20% asked for: b gives +")


def test_a_gain_above_the_minimum_wins_and_the_interval_is_above_it() -> None:
    for seed in range(5):
        experiment = Experiment(seed=seed, minimum_effect=0.1)
        run(experiment, noisy(0.4, seed))
        found = experiment.result
        assert found.winner == "b"
        assert found.interval is not None
        assert found.interval[0] >= 0.1 - 1e-9
        assert "and by more than 10%" in found.reason


def test_constant_values_refute_a_minimum_effect() -> None:
    experiment = Experiment(minimum_effect=0.02)
    run(experiment, lambda _: 3.0)
    assert experiment.result.winner is None
    assert "not better by the 2% asked for" in experiment.result.reason
    assert experiment.result.windows < 200


def test_its_result_can_be_read_before_and_after_every_window_and_changes_nothing() -> None:
    looked, blind = Experiment(seed=2), Experiment(seed=2)
    first = looked.result
    assert (first.winner, first.effect, first.interval, first.windows) == (None, None, None, 0)
    assert first.reason == "still running: there is no window of each variant yet"
    measure = noisy(0.2)
    while looked.running:
        looked.record(looked.next_variant(), measure(looked.next_variant()))
        found = looked.result
        assert found is looked.result
        assert (found.winner is None) or not looked.running
        if looked.running and found.windows > 1:
            assert found.reason.startswith("still running: b gives ")
    run(blind, noisy(0.2))
    assert blind.result == looked.result


@pytest.mark.parametrize(("seed", "gain"), [(7, 0.08), (11, 0.05), (13, 0.08), (16, 0.05)])
def test_the_interval_holds_0_as_long_as_no_variant_has_won_even_where_bets_would_refute_it(
    seed: int, gain: float
) -> None:
    experiment, measure = Experiment(alpha=0.2, seed=seed), noisy(gain, seed)
    while experiment.running:
        experiment.record(experiment.next_variant(), measure(experiment.next_variant()))
        interval = experiment.result.interval
        if experiment.running and interval is not None:
            assert interval[0] <= 0 <= interval[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_effect_told_lies_in_the_interval_even_where_wild_windows_pull_the_estimate_out_of_it(seed: int) -> None:
    draw, windows = random.Random(seed), iter(range(1000))
    experiment = Experiment(max_windows=120, scale="difference", seed=seed)
    run(experiment, lambda _: draw.gauss(0, 1000 if next(windows) < 16 else 0.01))
    found = experiment.result
    assert found.effect is not None
    assert found.interval is not None
    assert found.interval[0] <= found.effect <= found.interval[1]


def test_it_can_be_used_up_before_anything_could_be_told() -> None:
    experiment = Experiment(max_windows=2)
    run(experiment, noisy())
    found = experiment.result
    assert found.winner is None
    assert found.interval == (-1.0, math.inf)
    assert "no upper bound" in found.reason


# Windows that cannot be used


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 0, 0.0, 10**400, -(10**400), 1e-300, 1e300])
def test_a_window_without_a_usable_value_has_its_pair_run_once_more(value: float | None) -> None:
    experiment = Experiment(max_windows=4)
    first = experiment.next_variant()
    experiment.record(first, 1.0)
    assert experiment.result.windows == 1
    experiment.record(experiment.next_variant(), value)
    assert experiment.result.windows == 0
    assert len(run(experiment, lambda _: 1.0)) == 4
    assert experiment.result.windows == 4


def test_zero_and_negative_values_are_usable_on_the_difference_scale() -> None:
    experiment = Experiment(max_windows=4, scale="difference")
    run(experiment, lambda variant: 0 if variant == "a" else -5)
    assert experiment.result.windows == 4
    assert experiment.result.effect == -5


def test_a_variant_that_measures_nothing_is_inconclusive_and_named() -> None:
    experiment = Experiment(max_windows=40)
    run(experiment, lambda variant: 1.0 if variant == "a" else None)
    found = experiment.result
    assert found.winner is None
    assert found.windows == 0
    assert found.reason == (
        "inconclusive: too many windows have no usable value (0 of a, 5 of b); 0 windows were counted"
    )


def test_some_windows_without_a_value_do_not_hide_a_gain() -> None:
    measure, windows = noisy(0.5), iter(range(1000))
    experiment = Experiment()
    run(experiment, lambda variant: None if next(windows) % 7 == 3 else measure(variant))
    assert experiment.result.winner == "b"


@pytest.mark.parametrize("value", ["12", True, 1j, [1.0], np.bool_(True), np.array([1.0, 2.0])])
def test_what_is_no_number_is_an_error_and_takes_nothing(value: Any) -> None:
    experiment = Experiment()
    with pytest.raises(ConfigurationError, match="record a number, or None"):
        experiment.record(experiment.next_variant(), value)
    assert experiment.state()["records"] == []


def test_a_negative_value_on_the_ratio_scale_is_an_error_that_names_the_other() -> None:
    experiment = Experiment()
    with pytest.raises(ConfigurationError, match=r"scale='difference'"):
        experiment.record(experiment.next_variant(), -0.1)
    assert experiment.state()["records"] == []


@pytest.mark.parametrize("make", [int, np.float32, np.float64, np.int64, Fraction])
def test_any_kind_of_real_number_is_taken(make: Callable[[float], Any]) -> None:
    experiment = Experiment(max_windows=4)
    run(experiment, lambda variant: make(2 if variant == "b" else 1))
    assert experiment.result.effect == pytest.approx(1.0)
    json.dumps(experiment.state())


# What is asked out of turn


@pytest.mark.parametrize("wrong", ["c", "", None, "A", 0])
def test_a_variant_that_was_not_asked_for_is_an_error_and_takes_nothing(wrong: Any) -> None:
    experiment = Experiment()
    with pytest.raises(ConfigurationError, match=f"was recorded, but '{experiment.next_variant()}' was to run"):
        experiment.record(wrong, 1.0)
    assert experiment.state()["records"] == []


def test_a_window_of_the_other_variant_is_an_error_in_either_place() -> None:
    experiment = Experiment()
    for _ in range(2):
        other = "b" if experiment.next_variant() == "a" else "a"
        with pytest.raises(ConfigurationError, match="ask next_variant"):
            experiment.record(other, 1.0)
        experiment.record(experiment.next_variant(), 1.0)
    assert experiment.result.windows == 2


def test_once_it_is_over_it_takes_no_window_and_its_result_stands() -> None:
    experiment = Experiment(max_windows=2)
    run(experiment, noisy())
    found = experiment.result
    with pytest.raises(ConfigurationError, match="the experiment is over"):
        experiment.next_variant()
    with pytest.raises(ConfigurationError, match="the experiment is over"):
        experiment.record("a", 1.0)
    assert experiment.result == found
    assert not experiment.running


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("alpha", [0, 1, 0.0009, 0.51, -0.05, math.nan, "0.05", None, True]),
        ("max_windows", [1, 0, -2, 2.0, math.inf, "10", None, True, 10**400]),
        ("carry_over", [-1, 1.0, "1", None, True, 10**400]),
        ("seed", [1.5, None, True, (1,)]),
        ("scale", ["log", "", None, 1]),
        ("minimum_effect", [-0.1, math.nan, math.inf, "0.1", None, True]),
    ],
)
def test_settings_that_make_no_sense_are_errors_that_name_them(setting: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=f"{setting}="):
            Experiment(**{setting: value})


def test_settings_may_be_numbers_of_numpy() -> None:
    experiment = Experiment(np.float32(0.1), np.int64(20), np.int32(1), np.int64(7))  # type: ignore[arg-type]
    assert run(experiment, lambda _: 1.0) == order(7, carry_over=1)
    json.dumps(experiment.state())


# It survives a restart

VALUES = st.floats(0, 1e3) | st.none() | st.just(math.nan)


def fed(values: Iterable[float | None], **settings: Any) -> Experiment:
    experiment = Experiment(**settings)
    for value in values:
        if not experiment.running:
            break
        experiment.record(experiment.next_variant(), value)
    return experiment


@given(st.lists(VALUES, max_size=40), st.integers(0, 2), st.sampled_from([0.0, 0.1]), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_restored_from_json_it_goes_on_where_it_stood(
    values: list[float | None], carry_over: int, minimum_effect: float, seed: int
) -> None:
    before = fed(
        values, alpha=0.2, max_windows=30, carry_over=carry_over, minimum_effect=minimum_effect, seed=f"seed {seed}"
    )
    after = Experiment.restore(json.loads(json.dumps(before.state(), allow_nan=False)))
    assert after.state() == before.state()
    assert after.result == before.result
    assert after.running == before.running
    assert run(after, noisy(0.1)) == run(before, noisy(0.1))
    assert after.result == before.result


def test_a_state_is_not_changed_by_what_is_recorded_after_it() -> None:
    experiment = fed([1.0, 2.0, 3.0])
    state = experiment.state()
    experiment.record(experiment.next_variant(), 4.0)
    assert len(state["records"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"records": None},
        {"records": [["a", 1.0], ["a", 1.0], ["a", 1.0]]},
        {"records": [["a"]]},
        {"records": [3]},
        {"records": [["a", "fast"], ["b", "fast"]]},
        {"alpha": 7},
        {"colour": "red"},
    ],
)
def test_a_damaged_state_is_an_error(change: dict[str, Any]) -> None:
    state = fed([1.0, 2.0]).state() | change
    with pytest.raises(ConfigurationError):
        Experiment.restore(state)


@pytest.mark.parametrize("state", [{}, [], None, "state"])
def test_what_is_no_state_is_an_error_that_says_so(state: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"not what Experiment\.state"):
        Experiment.restore(state)
