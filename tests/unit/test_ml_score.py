from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml.measures import MEASURES
from ag06.ml.score import MARGIN, STEEPNESS, Score
from made_windows import window

POSITIVE = st.floats(1e-3, 1e6)


def test_twice_the_throughput_is_worth_the_logarithm_of_two() -> None:
    found = Score.parse("maximize throughput").of(window(throughput=200.0), window(throughput=100.0))
    assert found.value == pytest.approx(math.log(2))
    assert found.terms["throughput"].contribution == found.value
    assert found.terms["throughput"].explanation == (
        "throughput 200/s, baseline 100/s: +100.0%, more is better: +0.693"
    )


@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.floats(0.1, 10))
def test_terms_add_up_whatever_the_unit(rate: float, rate0: float, p99: float, p990: float, weight: float) -> None:
    score = Score(maximize={"throughput": 1.0}, minimize={"p99": weight})
    now = window(throughput=rate, latency_p99_ms=p99)
    before = window(throughput=rate0, latency_p99_ms=p990)
    found, back = score.of(now, before), score.of(before, now)
    assert found.value is not None
    assert back.value == pytest.approx(-found.value, abs=1e-9)
    assert found.value == pytest.approx(math.log(rate / rate0) - weight * math.log(p99 / p990), abs=1e-9)
    assert found.value == pytest.approx(sum(term.contribution for term in found.terms.values()))
    assert score.of(now, now).value == 0.0


def test_a_broken_limit_is_told_and_costs() -> None:
    score = Score(maximize={"throughput": 1.0}, constraints={"p99": "<= 50ms", "error_rate": "<= 0.01"})
    found = score.of(window(latency_p99_ms=100.0, error_rate=0.0), window())
    assert found.broken == ("p99 100ms breaks p99 <= 50ms",)
    assert found.value == pytest.approx(-STEEPNESS * (math.log(2) + MARGIN / 2))
    assert score.of(window(latency_p99_ms=40.0, error_rate=0.0), window()).value == 0.0


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e4), st.sampled_from(sorted(MEASURES)), st.booleans())
def test_the_worse_a_value_the_higher_its_penalty(
    one: float, other: float, bound: float, name: str, at_most: bool
) -> None:
    score = Score(maximize={"throughput": 1.0}, constraints={name: f"{'<=' if at_most else '>='} {bound!r}"})
    limit = score._limits[0]
    low, high = sorted((limit.penalty(one), limit.penalty(other)))
    worse = max(one, other) if at_most else min(one, other)
    assert limit.penalty(worse) == high
    assert low >= 0
    if not limit.holds(worse):
        assert high >= STEEPNESS * MARGIN / 2 * (1 - 1e-9)


@given(st.floats(1e-3, 1e5))
def test_a_penalty_has_no_cliff(bound: float) -> None:
    limit = Score(maximize={"throughput": 1.0}, constraints={"p99": f"<= {bound!r}"})._limits[0]
    for at in (bound, bound * math.exp(-MARGIN)):
        assert abs(limit.penalty(at * (1 + 1e-6)) - limit.penalty(at * (1 - 1e-6))) < 1e-3


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1.0, 0.0])
def test_a_value_without_a_ratio_is_inconclusive_on_either_side(value: float | None) -> None:
    score = Score.parse("minimize p99")
    for found in (
        score.of(window(latency_p99_ms=value), window()),
        score.of(window(), window(latency_p99_ms=value)),
    ):
        assert found.value is None
        assert found.reason is not None
        assert "p99" in found.reason


def test_windows_without_traffic_or_with_little_are_inconclusive_and_say_so() -> None:
    score = Score.parse("maximize throughput, error_rate <= 1%")
    nothing = score.of(window([]), window())
    assert nothing.value is None
    assert "the window had no traffic" in str(nothing.reason)
    assert "the baseline had 3 events: too few to tell" in str(score.of(window(), window([1.0] * 3)).reason)


def test_a_share_of_errors_of_zero_is_as_good_as_its_floor() -> None:
    found = Score.parse("minimize error_rate").of(window(error_rate=0.0), window(error_rate=0.01))
    assert found.value == pytest.approx(math.log(10))


def test_weights_beyond_all_reason_are_inconclusive_not_infinite() -> None:
    score = Score(maximize={"throughput": 1e308})
    assert score.of(window(throughput=1e9), window(throughput=1.0)).value is None


@given(
    st.floats(allow_nan=True), st.floats(allow_nan=True), st.floats(allow_nan=True), st.sampled_from(sorted(MEASURES))
)
def test_no_window_makes_a_score_raise(one: float, other: float, third: float, name: str) -> None:
    field = MEASURES[name].field
    score = Score(minimize={name: 1.0}, constraints={name: "<= 1"})
    found = score.of(window(**{field: one}), window(**{field: other}))
    assert found.value is None or math.isfinite(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "maximize throughput",
        "minimize 2.0 * p99",
        "maximize throughput, minimize 0.5 * memory, p99 <= 50ms, p99 >= 1 ms, error_rate <= 1%, memory <= 2GB",
        "minimize queue_age, throughput >= 100/s",
    ],
)
def test_a_score_reads_what_it_says(text: str) -> None:
    assert str(Score.parse(text)) == text
    assert str(Score.parse(str(Score.parse(text)))) == text


def test_units_are_understood() -> None:
    score = Score.parse("minimize latency_p99_ms * 3, p99 <= 0.2 s, error_rate ≤ 2%, memory <= 1GB, queue_age <= 500ms")
    assert [limit.bound for limit in score._limits] == [200.0, 0.02, 1000.0, 0.5]
    assert score._goals[0].weight == 3.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "nothing to maximize"),
        ({"maximize": {"thruput": 1}}, "'thruput' is nothing.*throughput, p50"),
        ({"maximize": {"throughput": 0}}, "weight 0 of throughput"),
        ({"maximize": {"throughput": math.nan}}, "weight nan"),
        ({"maximize": {"throughput": True}}, "weight True"),
        ({"minimize": {"p99": "much"}}, "weight 'much'"),
        ({"maximize": {"p99": 1}, "minimize": {"latency_p99_ms": 1}}, "p99 is there twice"),
        ({"maximize": {"throughput": 1}, "constraints": {"p99": "under 5"}}, "'under 5' of p99"),
        ({"maximize": {"throughput": 1}, "constraints": {"p99": "<= 5 lightyears"}}, "p99: '5 lightyears'.*ms"),
        ({"maximize": {"throughput": 1}, "constraints": {"p99": "<= -5"}}, "p99: '-5'"),
        ({"maximize": {"throughput": 1}, "constraints": {"nothing": "<= 5"}}, "'nothing' is nothing"),
        ({"maximize": {"throughput": 1}, "constraints": {"p99": 5}}, "p99"),
        ({"maximize": "throughput"}, "weights by name"),
    ],
)
def test_a_wrong_declaration_is_refused_with_what_is_accepted(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Score(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "throughput", "maximize", "maximise p99", "maximize thruput", "maximize 2 * p99 * 2", "p99 <= 5",
             "maximize p99, maximize p99", "maximize throughput p99", "maximize e * p99", "minimize p99, p99 < 5"]
)  # fmt: skip
def test_text_that_is_no_score_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Score.parse(text)
