from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.knob import Knob
from ag06.ml.space import Space, described

KNOBS = [
    Knob("concurrency", low=1, high=256, default=10, scale="log", integer=True),
    Knob("wait_ms", low=0.1, high=77.0, default=12.345678912, scale="log"),
    Knob("gain_db", low=-12.0, high=6.0, default=-1 / 3),
    Knob("retries", low=-2, high=3, default=0, integer=True),
    Knob("codec", choices=("none", "zstd", "lz4"), default="zstd"),
]
DEFAULTS = {knob.name: knob.default for knob in KNOBS}
UNIT = st.floats(0, 1)


def test_the_default_is_decoded_to_the_last_digit() -> None:
    space = Space(KNOBS)
    assert space.decode(space.default) == DEFAULTS


@given(st.lists(st.floats(-3, 4), min_size=5, max_size=5))
def test_every_position_is_a_configuration_within_bounds_and_of_the_right_type(position: list[float]) -> None:
    space = Space(KNOBS)
    config = space.decode(position)
    assert space.check(config) == config
    assert [type(value) for value in config.values()] == [int, float, float, int, str]
    assert json.loads(json.dumps(config)) == config


@given(st.lists(UNIT, min_size=5, max_size=5))
def test_what_was_proposed_is_proposed_again_from_its_own_coordinates(position: list[float]) -> None:
    space = Space(KNOBS)
    config = space.decode(position)
    assert space.decode(space.encode(config)) == config


@given(
    st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), UNIT, st.lists(UNIT, min_size=1, max_size=4), st.sampled_from(["", "+"])
)
def test_that_holds_for_all_bounds(low: float, width: float, part: float, ats: list[float], positive: str) -> None:
    if positive:
        low = abs(low) + 1e-3
    high = low + width
    default = min(max(low + part * width, low), high)
    space = Space([Knob("x", low=low, high=high, default=default, scale="log" if positive else "linear")])
    assert space.decode(space.default) == {"x": default}
    for at in ats:
        config = space.decode([at])
        assert low <= config["x"] <= high
        assert space.decode(space.encode(config)) == config


@given(st.integers(1, 256), st.integers(1, 256))
def test_equal_factors_are_equal_distances_on_a_log_scale(one: int, other: int) -> None:
    space = Space(KNOBS)
    first, second = (space.encode(DEFAULTS | {"concurrency": value})[0] for value in (one, other))
    assert second - first == pytest.approx(math.log(other / one) / math.log(256))


def test_choices_are_equally_far_from_each_other_and_have_equal_parts() -> None:
    space = Space(KNOBS)
    at = [space.features(space.encode(DEFAULTS | {"codec": codec})) for codec in ("none", "zstd", "lz4")]
    apart = {round(math.dist(at[i], at[j]), 9) for i, j in ((0, 1), (1, 2), (0, 2))}
    assert apart == {0.5}
    draws = [space.decode([0, 0, 0, 0, i / 300 + 1 / 600])["codec"] for i in range(300)]
    assert [draws.count(codec) for codec in ("none", "zstd", "lz4")] == [100, 100, 100]


@given(st.lists(UNIT, min_size=5, max_size=5))
def test_a_pinned_knob_does_not_move(position: list[float]) -> None:
    space = Space(KNOBS, {"codec": "lz4", "wait_ms": 5})
    config = space.decode(position)
    assert (config["codec"], config["wait_ms"]) == ("lz4", 5)
    assert space.allows(space.snap(position))
    assert space.free == [0, 2, 3]
    assert not space.allows(space.encode(config | {"codec": "none"}))


def test_knobs_that_are_pinned_by_name_alone_stay_at_their_default() -> None:
    space = Space(KNOBS, ["retries", "codec"])
    assert space.pinned == {"retries": 0, "codec": "zstd"}


def test_numbers_of_numpy_are_numbers_and_become_plain_ones() -> None:
    given_ = DEFAULTS | {"concurrency": np.int64(7), "wait_ms": np.float32(2.5), "retries": 2.0}
    checked = Space(KNOBS).check(given_)
    assert [type(value) for value in checked.values()] == [int, float, float, int, str]
    assert (checked["concurrency"], checked["wait_ms"], checked["retries"]) == (7, 2.5, 2)


def test_a_choice_is_returned_as_it_was_declared() -> None:
    space = Space([Knob("fsync", choices=(True, False), default=True)])
    assert space.check({"fsync": 0})["fsync"] is False


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DEFAULTS | {"depth": 1}, "unknown knob 'depth'; the knobs are concurrency, wait_ms"),
        ({name: value for name, value in DEFAULTS.items() if name != "codec"}, "without knob 'codec'"),
        (DEFAULTS | {"concurrency": 257}, "knob concurrency: 257 is not between 1 and 256"),
        (DEFAULTS | {"concurrency": 7.5}, "knob concurrency: 7.5 is not a whole number"),
        (DEFAULTS | {"gain_db": math.nan}, "knob gain_db: nan is not between"),
        (DEFAULTS | {"gain_db": math.inf}, "knob gain_db: inf is not between"),
        (DEFAULTS | {"gain_db": "0"}, "knob gain_db: '0' is not between"),
        (DEFAULTS | {"gain_db": None}, "knob gain_db: None is not between"),
        (DEFAULTS | {"retries": True}, "knob retries: True is not between"),
        (DEFAULTS | {"codec": "gzip"}, "knob codec: 'gzip' is none of 'none', 'zstd', 'lz4'"),
        (DEFAULTS | {"codec": ["zstd"]}, "is none of"),
        ({}, "without knob 'concurrency'"),
        (None, "give the values of the knobs by name"),
        ([1, 2, 3, 0, "zstd"], "give the values of the knobs by name"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(config: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Space(KNOBS).check(config)


@pytest.mark.parametrize(
    ("knobs", "pinned", "words"),
    [
        ([], (), "give one or more"),
        ([KNOBS[0], Knob("concurrency", low=0, high=1, default=0)], (), "each name once"),
        (["concurrency"], (), "'concurrency' is no Knob"),
        (KNOBS[0], (), "give a list of them"),
        ("concurrency", (), "give a list of them"),
        (None, (), "give a list of them"),
        (KNOBS, {"depth": 1}, "unknown knob 'depth'"),
        (KNOBS, ["depth"], "unknown knob 'depth'"),
        (KNOBS, "codec", "collection of names"),
        (KNOBS, {"concurrency": 0}, "0 is not between 1 and 256"),
        (KNOBS, {"codec": "gzip"}, "'gzip' is none of"),
    ],
)
def test_knobs_and_pins_that_make_no_sense_are_refused(knobs: Any, pinned: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Space(knobs, pinned)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_knob_is_declared_again_by_its_description_which_is_json(knob: Knob) -> None:
    again = Knob(**json.loads(json.dumps(described(knob))))
    assert (described(again), again.value) == (described(knob), knob.default)
    assert Space([again]).default == Space([knob]).default
