from __future__ import annotations

import math
from typing import Any

import pytest

from ag06.errors import ConfigurationError
from ag06.ml.budget import Budget


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": -0.1},
        {"share": 1.1},
        {"share": math.nan},
        {"share": "half"},
        {"share": None},
        {"worst_loss": 2.0},
        {"worst_loss": None},
        {"horizon": 0.0},
        {"horizon": math.inf},
        {"horizon": "hour"},
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="budget: share="):
        Budget(**wrong)


def test_without_a_share_nothing_is_ever_tried_and_the_reason_says_so() -> None:
    budget = Budget(share=0.0)
    for _ in range(100):
        budget.spend(10.0, exploring=False)
        assert "may have 0%" in str(budget.refusal(10.0))


def test_a_trial_that_measured_nothing_takes_time_and_costs_nothing() -> None:
    budget = Budget(share=0.5)
    budget.spend(10.0, exploring=False)
    for score in (None, math.nan):
        budget.spend(10.0, exploring=True, score=score)
    assert budget.explored == pytest.approx(2 / 3, rel=0.01)
    assert budget.loss == 0.0
    assert budget.refusal(10.0) is not None


def test_what_runs_when_nothing_is_tried_costs_nothing_however_bad_it_is() -> None:
    budget = Budget()
    budget.spend(10.0, exploring=False, score=-5.0)
    assert (budget.explored, budget.loss) == (0.0, 0.0)


def test_a_trial_that_lost_everything_costs_its_whole_time() -> None:
    budget = Budget(share=1.0, worst_loss=0.2, horizon=1e9)
    budget.spend(90.0, exploring=False)
    budget.spend(10.0, exploring=True, score=-math.inf)
    assert budget.loss == pytest.approx(0.1)
    assert budget.refusal(10.0) is None
    budget.spend(20.0, exploring=True, score=-math.inf)
    assert "trials have cost 25.0% of the score, and may cost 20.0%" in str(budget.refusal(10.0))
