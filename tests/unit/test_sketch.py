from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.monitoring.sketch import ACCURACY, Sketch

SHARES = (0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
VALUES = st.floats(min_value=1e-8, max_value=1e7)


def sketch_of(values: Sequence[float], **settings: float) -> Sketch:
    sketch = Sketch(**settings)  # type: ignore[arg-type]
    for value in values:
        sketch.add(value)
    return sketch


def true_quantile(values: Sequence[float], share: float) -> float:
    """The lower one of the two values that the rank lies between."""
    return sorted(values)[math.floor(share * (len(values) - 1))]


def assert_within(sketch: Sketch, values: Sequence[float], accuracy: float = ACCURACY) -> None:
    for share, found in zip(SHARES, sketch.quantiles(SHARES), strict=True):
        true = true_quantile(values, share)
        assert found is not None
        assert abs(found - true) <= accuracy * true * (1 + 1e-9)


@given(st.lists(VALUES, min_size=1, max_size=200))
def test_every_quantile_is_within_one_percent(values: list[float]) -> None:
    assert_within(sketch_of(values), values)


@pytest.mark.parametrize("accuracy", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("shape", ["lognormal", "pareto", "uniform", "two humps"])
def test_the_accuracy_that_is_asked_for_holds_for_many_values(accuracy: float, shape: str) -> None:
    chance = random.Random(7)
    draw = {
        "lognormal": lambda: chance.lognormvariate(-5, 2),
        "pareto": lambda: chance.paretovariate(1.0),
        "uniform": lambda: chance.uniform(0.001, 1000),
        "two humps": lambda: chance.choice((0.002, 30.0)) * chance.uniform(0.9, 1.1),
    }[shape]
    values = [draw() for _ in range(20_000)]
    assert_within(sketch_of(values, accuracy=accuracy, most_buckets=20_000), values, accuracy)


@given(st.lists(VALUES, max_size=100), st.lists(VALUES, max_size=100))
def test_merged_sketches_say_what_one_that_saw_everything_says(left: list[float], right: list[float]) -> None:
    merged, untouched = sketch_of(left), sketch_of(right)
    merged.merge(untouched)
    whole = sketch_of(left + right)
    assert merged.count == whole.count == len(left) + len(right)
    assert merged.quantiles(SHARES) == whole.quantiles(SHARES)
    assert untouched.quantiles(SHARES) == sketch_of(right).quantiles(SHARES)


@given(st.lists(st.floats(min_value=1e-8, max_value=1e300), min_size=1, max_size=300), st.integers(1, 40))
def test_its_buckets_are_bounded_and_only_low_quantiles_pay_for_it(values: list[float], most: int) -> None:
    sketch = sketch_of(values, most_buckets=most)
    assert sketch.buckets <= most
    assert sketch.count == len(values)
    (highest,) = sketch.quantiles([1.0])
    assert highest == pytest.approx(max(values), rel=0.0101)


def test_with_too_few_buckets_the_highest_stay_exact() -> None:
    values = [1.5**number for number in range(1000)]
    sketch = sketch_of(values, most_buckets=100)
    for share in (0.95, 0.99, 1.0):
        (found,) = sketch.quantiles([share])
        assert found == pytest.approx(true_quantile(values, share), rel=ACCURACY * 1.001)


def test_what_comes_low_after_the_buckets_are_full_is_counted_in_the_lowest() -> None:
    sketch = sketch_of([float(2**number) for number in range(20)], most_buckets=10)
    for _ in range(1000):
        sketch.add(1e-6)
    assert (sketch.buckets, sketch.count) == (10, 1020)
    (low,) = sketch.quantiles([0.5])
    assert low == pytest.approx(1024.0, rel=0.0101)


def test_zero_and_what_is_too_small_to_matter_is_zero() -> None:
    sketch = sketch_of([0.0, 1e-12, 0.0, 1.0])
    assert sketch.quantiles([0.0, 0.5]) == [0.0, 0.0]
    assert sketch.quantiles([1.0]) == [pytest.approx(1.0, rel=ACCURACY)]


def test_weights_count_as_so_many_values() -> None:
    sketch = Sketch()
    sketch.add(1.0, 99)
    sketch.add(50.0)
    assert sketch.count == 100
    assert sketch.quantiles([0.5, 0.98, 1.0]) == pytest.approx([1.0, 1.0, 50.0], rel=ACCURACY)


@pytest.mark.parametrize("value", [-1.0, -1e-12, math.nan, math.inf, -math.inf])
def test_what_is_no_duration_is_refused_and_counts_as_nothing(value: float) -> None:
    sketch = sketch_of([1.0])
    with pytest.raises(ValueError, match="finite values of 0 or more"):
        sketch.add(value)
    assert sketch.count == 1


def test_an_empty_sketch_has_no_quantile() -> None:
    assert Sketch().quantiles([0.5, 0.99]) == [None, None]


def test_a_copy_goes_its_own_way() -> None:
    sketch = sketch_of([1.0, 0.0])
    copy = sketch.copy()
    sketch.add(2.0)
    assert (copy.count, sketch.count) == (2, 3)


def test_sketches_of_different_accuracy_are_not_merged() -> None:
    with pytest.raises(ValueError, match="different accuracy"):
        Sketch(0.01).merge(Sketch(0.02))


@pytest.mark.parametrize(("accuracy", "most"), [(0, 10), (1, 10), (0.01, 0)])
def test_a_sketch_that_cannot_be_is_refused(accuracy: float, most: int) -> None:
    with pytest.raises(ValueError, match="a sketch of accuracy"):
        Sketch(accuracy, most)
