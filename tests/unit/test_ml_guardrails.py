from __future__ import annotations

import json
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml.budget import Budget
from ag06.ml.guardrails import BAD_SLICES, Breach, Guardrails, above_chance
from ag06.ml.score import Score
from made_windows import window

ALL = Guardrails(p99_factor=2.0, error_rate=0.05, queue_age_seconds=5.0, memory_mb=500.0, worst_loss=0.3)


def rails(found: list[Breach]) -> list[str]:
    return [breach.rail for breach in found]


@given(st.lists(st.floats(1, 1000), min_size=30, max_size=300))
def test_the_baseline_itself_breaks_nothing(ages: list[float]) -> None:
    same = window(ages, queue_age_seconds=50.0, memory_mb=900.0, failed=200)
    assert ALL.check(same, same) == []
    assert ALL.watch(same).look(same) == []


def test_each_rail_tells_of_its_breach_in_words() -> None:
    bad = window([10.0] * 900 + [100.0] * 100, failed=200, queue_age_seconds=9.0, memory_mb=800.0, throughput=50.0)
    found = ALL.check(bad, window())
    assert rails(found) == ["p99", "error_rate", "queue_age", "memory", "score"]
    told = "\n".join(breach.explanation for breach in found)
    assert "100 of 1000 events were later than" in told
    assert "200 of 1200 attempts failed; the limit is 5.00%" in told
    assert "the oldest event waits for 9 s; the limit is 5 s" in told
    assert "800 MB of memory; the limit is 500 MB" in told
    assert "50% worse" in told
    assert all(breach.value > breach.limit for breach in found)


def test_a_rail_that_is_switched_off_is_not_looked_at() -> None:
    off = Guardrails(None, None, None, None, None)
    bad = window([9_000.0] * 100, failed=900, queue_age_seconds=900.0, memory_mb=9e5, throughput=0.1)
    assert off.check(bad, window()) == []
    assert off.watch(window()).look(bad) == []


def test_a_few_late_events_by_chance_are_no_breach() -> None:
    assert ALL.check(window([10.0] * 990 + [100.0] * 15), window()) == []
    assert rails(ALL.check(window([10.0] * 960 + [100.0] * 40), window())) == ["p99"]


def test_under_another_load_a_lower_throughput_is_no_loss() -> None:
    low = window(throughput=20.0)
    assert rails(ALL.check(low, window())) == ["score"]
    assert ALL.check(window(throughput=20.0, flags=("load_changed",)), window()) == []


def test_publishers_that_wait_for_their_answers_do_not_hide_a_loss() -> None:
    slow = window([40.0] * 1000, throughput=50.0, arrival_rate=50.0, flags=("load_changed",))
    only_loss = Guardrails(None, None, None, None, 0.3)
    assert rails(only_loss.check(slow, window(arrival_rate=100.0))) == ["score"]
    less_asked_for = window(throughput=50.0, arrival_rate=50.0, flags=("load_changed",))
    assert only_loss.check(less_asked_for, window(arrival_rate=100.0)) == []


def test_a_trial_that_settles_nothing_though_events_wait_is_a_breach() -> None:
    stalled = window([], queue_size=40, flags=("stalled", "too_few_events", "load_changed"))
    assert rails(ALL.check(stalled, window())) == ["score"]
    assert ALL.check(window([]), window()) == []


def test_the_loss_is_that_of_the_declared_score() -> None:
    own = Guardrails(p99_factor=None, worst_loss=0.3, score=Score.parse("minimize p99"))
    assert rails(own.check(window([30.0] * 100), window())) == ["score"]
    assert own.check(window([11.0] * 100, throughput=1.0), window()) == []


def test_a_single_pause_does_not_end_a_trial_but_lasting_lateness_does() -> None:
    paused, lasting = ALL.watch(window()), ALL.watch(window())
    ages = [500.0] * 100
    assert paused.look(window(ages)) == []
    for _ in range(10):
        ages = [*ages, *[10.0] * 100]
        assert paused.look(window(ages)) == []
    found = [rails(lasting.look(window([500.0] * 10 * number))) for number in range(1, BAD_SLICES + 1)]
    assert found == [[]] * (BAD_SLICES - 1) + [["p99"]]


def test_memory_and_what_waits_end_a_trial_at_the_first_look() -> None:
    assert rails(ALL.watch(window()).look(window([], memory_mb=501.0, queue_age_seconds=6.0))) == [
        "queue_age",
        "memory",
    ]


def test_looking_often_seldom_takes_chance_for_a_breach() -> None:
    """1% of the events are later than the limit, as a p99 has it: 200 trials of 40 looks each."""
    chance, alarms = random.Random(1), 0
    rails_of_p99 = Guardrails(p99_factor=1.01, error_rate=None, queue_age_seconds=None, worst_loss=None)
    baseline = window([10.0] * 989 + [50.0] * 11)
    limit = rails_of_p99.late_limit_ms(baseline)
    assert limit is not None
    for _ in range(200):
        watch, late, count = rails_of_p99.watch(baseline), 0, 0
        for _ in range(40):
            late += sum(chance.random() < 0.01 for _ in range(50))
            count += 50
            so_far = window([], events=count, ages={400: late, 100: count - late})
            assert so_far.later_than(limit) == late
            if watch.look(so_far):
                alarms += 1
                break
    assert alarms <= 4


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.001, 0.9))
def test_the_tail_is_that_of_the_binomial_distribution(hits: int, count: int, share: float) -> None:
    hits = min(hits, count)
    exact = sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1))
    for chance in (1e-4, 0.01):
        if abs(exact - chance) > 1e-9:
            assert above_chance(hits, count, share, chance) is (exact < chance)


@pytest.mark.parametrize(("count", "share"), [(30, 0.01), (100, 0.05), (1_000, 0.01), (1_000, 0.4)])
def test_the_tail_turns_at_the_very_count_where_the_exact_one_does(count: int, share: float) -> None:
    exact = Fraction(share)
    each = [math.comb(count, k) * exact**k * (1 - exact) ** (count - k) for k in range(count + 1)]
    tail, first = Fraction(0), count + 1
    while tail + each[first - 1] < Fraction(1, 10_000):
        first -= 1
        tail += each[first]
    assert [above_chance(first + by, count, share) for by in (-1, 0, 1)] == [False, True, True]


def test_the_tail_holds_at_its_ends() -> None:
    assert above_chance(1, 10, 0.0)
    assert not above_chance(0, 10, 0.0)
    assert not above_chance(10, 10, 1.0)
    assert not above_chance(0, 0, 0.5)
    assert above_chance(2_000_000, 100_000_000, 0.01)
    assert not above_chance(1_000_100, 100_000_000, 0.01)


@pytest.mark.parametrize(
    "wrong",
    [{"p99_factor": 1.0}, {"p99_factor": math.nan}, {"error_rate": 1.0}, {"error_rate": -0.1}, {"memory_mb": 0},
     {"queue_age_seconds": math.inf}, {"worst_loss": 1.0}, {"worst_loss": 0}, {"p99_factor": "2"}],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Guardrails(**wrong)


def test_trials_have_their_share_of_the_time_and_no_more() -> None:
    budget = Budget(share=0.25, horizon=1e9)
    assert budget.refusal(10.0) is not None
    explored = total = 0
    for _ in range(1_000):
        trying = budget.refusal(10.0) is None
        budget.spend(10.0, exploring=trying, score=0.1)
        explored, total = explored + trying, total + 1
        assert explored <= 0.25 * total
    assert explored >= 0.24 * total
    assert budget.explored == pytest.approx(explored / total, abs=1e-3)


def test_trials_that_cost_too_much_have_to_wait_until_it_fades() -> None:
    budget = Budget(share=1.0, worst_loss=0.01, horizon=600.0)
    budget.spend(100.0, exploring=False)
    budget.spend(10.0, exploring=True, score=math.log(0.5))
    assert budget.loss == pytest.approx(5 / 110, rel=0.05)
    assert "cost" in str(budget.refusal(10.0))
    budget.spend(10.0, exploring=True, score=5.0)
    assert budget.refusal(10.0) is not None
    for _ in range(200):
        budget.spend(10.0, exploring=False)
    assert budget.refusal(10.0) is None


def test_a_budget_survives_a_restart_and_takes_nothing_else() -> None:
    budget, again = Budget(), Budget()
    for number in range(20):
        budget.spend(7.0, exploring=number % 3 == 0, score=-0.2)
    again.restore(json.loads(json.dumps(budget.state())))
    assert (again.explored, again.loss) == (budget.explored, budget.loss)
    for wrong in ({}, {"total": 1, "explored": 2, "lost": 0}, {"total": math.nan, "explored": 0, "lost": 0}, None):
        with pytest.raises(ConfigurationError, match="no state"):
            again.restore(wrong)  # type: ignore[arg-type]
    assert again.state() == budget.state()


@given(st.lists(st.tuples(st.floats(), st.booleans(), st.none() | st.floats(allow_nan=True))))
def test_whatever_is_spent_shares_stay_shares(spent: list[tuple[float, bool, float | None]]) -> None:
    budget = Budget()
    for seconds, exploring, score in spent:
        budget.spend(seconds, exploring=exploring, score=score)
        assert 0 <= budget.loss <= budget.explored <= 1 + 1e-9
