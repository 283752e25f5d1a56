from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import ConfigurationError, Knob, Workflow


def test_a_knob_starts_at_its_default_and_is_moved_by_whoever_sets_it() -> None:
    knob = Knob("block_size", low=64, high=16384, default=256, scale="log", integer=True)
    assert (knob.value, knob.default) == (256, 256)
    assert knob.set(512.4) == 512
    assert knob.value == 512
    assert type(knob.value) is int
    assert knob.default == 256


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_knob_stays_within_its_bounds(value: float) -> None:
    knob = Knob("share", low=0.25, high=0.75, default=0.5)
    assert 0.25 <= knob.set(value) <= 0.75
    assert knob.value == min(max(value, 0.25), 0.75)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_knob_refuses_what_is_no_number_and_keeps_its_value(value: float) -> None:
    knob = Knob("share", low=0, high=1, default=0.5)
    with pytest.raises(ConfigurationError, match="knob share"):
        knob.set(value)
    assert knob.value == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"low": 1, "high": 1, "default": 1}, "must be below high"),
        ({"low": 0, "high": math.inf, "default": 1}, "finite"),
        ({"low": 0, "high": 1, "default": 2}, r"default=2 is outside \[0, 1\]"),
        ({"low": 0, "high": 1, "default": 1, "scale": "log"}, "above 0 on a log scale"),
        ({"low": 0, "high": 1, "default": 1, "scale": "cubic"}, "'linear' or 'log'"),
        ({"low": 0.5, "high": 10, "default": 1, "integer": True}, "whole numbers"),
        ({"low": 1, "high": 10, "default": 2.5, "integer": True}, "whole numbers"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Knob("size", **settings)  # type: ignore[arg-type]


def test_a_workflow_knows_its_knobs_by_name() -> None:
    app = Workflow("mixer", store="memory://")
    knob = app.knob("gain", low=0, high=2, default=1)
    assert app.knobs == {"gain": knob}
    with pytest.raises(ConfigurationError, match="knob 'gain' already"):
        app.knob("gain", low=0, high=1, default=1)
    assert app.knobs == {"gain": knob}
