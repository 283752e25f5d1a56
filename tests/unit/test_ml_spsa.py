from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.knob import Knob
from ag06.ml.ascent import Ascent, climb
from ag06.ml.search import Window
from ag06.ml.space import Position, Space
from ag06.ml.spsa import LEAST_CONTROLS, SpsaSearch

KNOBS = [
    Knob("x", low=0.0, high=1.0, default=0.2),
    Knob("y", low=0.0, high=1.0, default=0.7),
]
TOP = (0.7, 0.4)


def hill(at: Position) -> float:
    return -sum((one - top) ** 2 for one, top in zip(at, TOP, strict=True))


def drive(search: SpsaSearch, windows: int, noise: float, seed: int, first: int = 0) -> list[Window]:
    draw = random.Random(seed)
    told: list[Window] = []
    for number in range(first, first + windows):
        at = search.ask(told, draw)
        load = 0.3 * math.sin(number / 8)
        told.append(Window(number, at, hill(at) + load + noise * draw.gauss(), True))
        search.learn(told[-150:])
    return told


@pytest.mark.parametrize("seed", range(5))
def test_it_climbs_although_the_load_swings_more_than_a_step_gains(seed: int) -> None:
    search = SpsaSearch(Space(KNOBS))
    drive(search, 300, 0.02, seed)
    assert hill(search.best) > hill(search._space.default) / 4


def test_the_best_is_the_default_until_controls_say_otherwise() -> None:
    space = Space(KNOBS)
    search = SpsaSearch(space)
    told: list[Window] = []
    draw = random.Random(1)
    controls = 0
    while controls < LEAST_CONTROLS:
        assert search.best == space.default
        under_control = search._control and search._first is not None
        at = search.ask(told, draw)
        told.append(Window(len(told), at, hill(at), True))
        search.learn(told)
        controls += under_control
    assert hill(search.best) > hill(space.default)


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_helps_it_stays_at_the_default(seed: int) -> None:
    search = SpsaSearch(Space(KNOBS))
    draw = random.Random(seed)
    told: list[Window] = []
    for number in range(200):
        at = search.ask(told, draw)
        told.append(Window(number, at, 0.0, True))
        search.learn(told)
    assert search.best == search._space.default


def test_a_window_that_it_did_not_ask_for_moves_nothing() -> None:
    search = SpsaSearch(Space(KNOBS))
    told = drive(search, 9, 0.1, 3)
    before = search.state()
    search.learn([*told, Window(9, (0.9, 0.9), 50.0, False)])
    assert search.state() == before


def test_a_skipped_window_begins_its_pair_again() -> None:
    search = SpsaSearch(Space(KNOBS))
    draw = random.Random(2)
    first = search.ask([], draw)
    told = [Window(0, first, 1.0, True)]
    search.learn(told)
    before = search._at
    search.skip()
    again = search.ask(told, draw)
    told.append(Window(1, again, 5.0, True))
    search.learn(told)
    assert search._at == before
    told.append(Window(2, search.ask(told, draw), 5.0, True))
    search.learn(told)
    assert search._at == before  # the two of the new pair scored the same


def test_what_no_longer_beats_the_default_is_given_up() -> None:
    search = SpsaSearch(Space(KNOBS))
    told = drive(search, 200, 0.02, 4)
    assert search.best != search._space.default
    draw = random.Random(5)
    for number in range(200, 280):
        at = search.ask(told, draw)
        score = -10 * sum((one - default) ** 2 for one, default in zip(at, search._space.default, strict=True))
        told.append(Window(number, at, score, True))
        search.learn(told[-150:])
    assert math.dist(search.best, search._space.default) < 0.15
    assert search._pairs < 60  # of about 90: it began again


@given(st.integers(0, 10**6), st.integers(0, 30))
def test_its_state_is_plain_json_and_complete(seed: int, windows: int) -> None:
    space = Space(KNOBS)
    search = SpsaSearch(space)
    told = drive(search, windows, 0.1, seed)
    restored = SpsaSearch(space)
    restored.restore(json.loads(json.dumps(search.state())), told)
    assert restored.state() == search.state()
    assert drive(restored, 12, 0.1, seed, windows) == drive(search, 12, 0.1, seed, windows)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(0, 1000))
def test_an_ascent_stays_in_the_unit_cube(start: list[float], seed: int) -> None:
    draw = random.Random(seed)
    for place in climb(start, lambda at: [draw.uniform(-5, 5) for _ in at], 15):
        assert all(0 <= one <= 1 for one in place)


def test_an_ascent_reaches_the_top_of_a_hill_from_a_corner() -> None:
    slope = lambda at: [top - one for one, top in zip(at, TOP, strict=True)]  # noqa: E731
    places = climb((0.0, 1.0), slope, 60)
    assert places[0] == (0.0, 1.0)
    assert math.dist(places[-1], TOP) < 0.03


def test_an_ascent_quickens_along_a_slope_and_slows_where_it_turns() -> None:
    ascent = Ascent((0.1,), momentum=0.0)
    places = [ascent.position[0], *(ascent.move([1.0])[0] for _ in range(3))]
    strides = [after - before for before, after in pairwise(places)]
    assert strides == sorted(strides)
    quick = ascent.steps[0]
    ascent.move([-1.0])
    assert ascent.steps[0] == quick / 2


def test_on_level_ground_an_ascent_stands_still() -> None:
    assert Ascent((0.4, 0.6)).move([0.0, 0.0]) == (0.4, 0.6)
