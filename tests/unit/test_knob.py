from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "fast", None, 10**400])
def test_a_knob_refuses_what_is_no_number_and_keeps_its_value(value: Any) -> None:
    knob = Knob("share", low=0, high=1, default=0.5)
    with pytest.raises(ConfigurationError, match="knob share"):
        knob.set(value)
    assert knob.value == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"low": 1, "high": 1, "default": 1}, "must be below high"),
        ({"low": 0, "high": math.inf, "default": 1}, "finite"),
        ({"low": "1", "high": 2, "default": 1}, "size: low='1'; a number"),
        ({"low": 1, "high": [], "default": 1}, r"size: high=\[\]; a number"),
        ({"low": 0, "high": 1, "default": None}, "size: default=None; a number"),
        ({"low": False, "high": True, "default": True}, "size: low=False; a number, or give choices="),
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


@pytest.mark.parametrize("name", ["", "  ", None, 5])
def test_a_knob_has_a_name(name: Any) -> None:
    for declare in (Knob, Workflow("w", store="memory://").knob):
        with pytest.raises(ConfigurationError, match="a name is text, and not empty"):
            declare(name, low=0, high=1, default=1)


def test_a_setter_is_told_what_the_knob_is_about_to_become() -> None:
    told: list[tuple[int, int]] = []
    knob = Knob("pool", low=1, high=8, default=2, integer=True, setter=lambda size: told.append((size, knob.value)))
    assert told == []
    knob.set(99)
    knob.set(2.6)
    assert told == [(8, 2), (3, 8)]
    assert knob.value == 3


def test_a_setter_that_raises_keeps_the_knob_where_it_was() -> None:
    def resize(size: int) -> None:
        if size > 4:
            raise OSError("no more connections")

    knob = Knob("pool", low=1, high=8, default=2, integer=True, setter=resize)
    moves: list[int] = []
    knob.watch(lambda: moves.append(knob.value))
    with pytest.raises(
        ConfigurationError, match=r"pool.*stays at 2.*failed on 7: OSError: no more connections"
    ) as caught:
        knob.set(7)
    assert isinstance(caught.value.__cause__, OSError)
    assert (knob.value, moves) == (2, [])
    knob.set(3)
    assert (knob.value, moves) == (3, [3])


async def test_a_setter_that_nobody_would_await_is_refused() -> None:
    async def resize(size: int) -> None: ...

    def call(function: Callable[[int], object], size: int) -> object:
        return function(size)

    class Pool:
        async def __call__(self, size: int) -> None: ...

    for setter in (resize, Pool(), functools.partial(resize)):
        with pytest.raises(ConfigurationError, match="pool: its setter is a coroutine function"):
            Knob("pool", low=1, high=8, default=2, setter=setter)
    with pytest.raises(ConfigurationError, match="pool: setter='resize'"):
        Knob("pool", low=1, high=8, default=2, setter="resize")  # type: ignore[arg-type]
    knob = Knob("pool", low=1, high=8, default=2, setter=functools.partial(call, resize))
    with pytest.raises(ConfigurationError, match=r"pool: it stays at 2.*returned a coroutine"):
        knob.set(3)
    assert knob.value == 2


def test_who_watches_is_told_of_every_move_and_of_nothing_else() -> None:
    knob = Knob("mode", choices=("none", "zstd", "lz4"), default="none")
    seen: list[str] = []

    def look() -> None:
        seen.append(knob.value)

    knob.watch(look)
    knob.set("none")
    knob.set("zstd")
    knob.set("zstd")
    with pytest.raises(ConfigurationError):
        knob.set("gzip")
    knob.set("lz4")
    knob.unwatch(look)
    knob.unwatch(look)
    knob.set("none")
    assert seen == ["zstd", "lz4"]


def test_what_the_setter_was_told_last_is_the_value_whoever_sets() -> None:
    told: list[int] = []
    knob = Knob("pool", low=0, high=1_000_000, default=0, integer=True, setter=told.append)

    def move(start: int) -> None:
        for value in range(start, start + 2_000):
            knob.set(value)

    movers = [threading.Thread(target=move, args=(start,)) for start in (1, 10_000, 20_000, 30_000)]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    assert len(told) == 8_000
    assert knob.value == told[-1]


def test_a_workflow_knows_its_knobs_by_name() -> None:
    app = Workflow("mixer", store="memory://")
    knob = app.knob("gain", low=0, high=2, default=1)
    told: list[str] = []
    mode = app.knob("mode", choices=("fast", "exact"), default="fast", setter=told.append)
    mode.set("exact")
    assert (app.knobs.pop("mode"), mode.value, told) == (mode, "exact", ["exact"])
    assert app.knobs == {"gain": knob}
    with pytest.raises(ConfigurationError, match="knob 'gain' already"):
        app.knob("gain", low=0, high=1, default=1)
    assert app.knobs == {"gain": knob}
