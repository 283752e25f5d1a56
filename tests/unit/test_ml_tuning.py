from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from ag06.errors import ConfigurationError
from ag06.ml import Guardrails, Pace, Score
from ag06.ml.tuning import Tuning


def test_what_is_shipped_makes_sense_and_says_what_it_is_for() -> None:
    tuning = Tuning()
    assert str(tuning.goal) == "maximize throughput, minimize 0.5 * p99"
    assert (tuning.timing.window, tuning.timing.settle) == (5.0, 0.5)
    assert tuning.share <= 0.5


def test_a_score_may_be_words_or_a_score() -> None:
    assert str(Tuning(score="minimize p99").goal) == "minimize p99"
    assert str(Tuning(score=Score(minimize={"p99": 1})).goal) == "minimize p99"


def test_names_may_come_as_any_collection() -> None:
    assert Tuning(knobs=["a"], pinned={"b"}).knobs == ["a"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"window": 0}, "window=0; use seconds, 0.05 or more"),
        ({"window": math.nan}, "window=nan"),
        ({"window": True}, "window=True"),
        ({"window": "5"}, "window='5'"),
        ({"settle": -1}, "settle=-1; use seconds, 0 or more"),
        ({"settle": math.inf}, "settle=inf"),
        ({"minimum_events": 0}, "minimum_events=0; use a whole number, 1 or more"),
        ({"seed": 1.5}, "seed=1.5; use a whole number$"),
        ({"knobs": "block"}, "knobs='block'; give several names"),
        ({"knobs": 5}, "knobs=5; give several names"),
        ({"pinned": None}, "pinned=None; give several names"),
        ({"score": "faster"}, "cannot read 'faster'"),
        ({"score": None}, "score=None; use a text"),
        ({"guardrails": None}, r"guardrails=None; use Guardrails\(...\)"),
        ({"pace": {"explore": 5}}, r"pace=.*; use Pace\(...\)"),
        ({"share": 1.5}, "share=1.5"),
        ({"share": math.nan}, "share=nan"),
        ({"worst_loss": "much"}, "worst_loss='much'"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_declared_and_when_it_is_changed(
    wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Tuning(**wrong)
    with pytest.raises(ConfigurationError, match=words):
        msgspec.structs.replace(Tuning(), **wrong)


def test_guardrails_and_pace_are_taken_as_they_are() -> None:
    tuning = Tuning(guardrails=Guardrails(p99_factor=None), pace=Pace(explore=5))
    assert tuning.guardrails.p99_factor is None
    assert tuning.pace.explore == 5
