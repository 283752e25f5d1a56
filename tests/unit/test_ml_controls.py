from __future__ import annotations

import logging
from typing import Any

import pytest

from ag06 import Event, Workflow
from ag06.errors import ConfigurationError
from ag06.ml import Knob
from ag06.ml.controls import Controls


class Pool:
    """What a setter resizes; it refuses what it is told to refuse."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.refused: set[int] = set()
        self.told: list[int] = []

    def resize(self, size: int) -> None:
        self.told.append(size)
        if size in self.refused:
            raise OSError(f"no pool of {size}")
        self.size = size


def three() -> tuple[Controls, Pool, Pool]:
    """Return three knobs, of which the first and the last have setters."""
    first, last = Pool(10), Pool(5)
    knobs = [
        Knob("first", low=1, high=100, default=10, integer=True, setter=first.resize),
        Knob("codec", choices=("none", "zstd"), default="none"),
        Knob("last", low=1, high=100, default=5, integer=True, setter=last.resize),
    ]
    return Controls({knob.name: knob for knob in knobs}), first, last


WANTED = {"first": 20, "codec": "zstd", "last": 7}
BEFORE = {"first": 10, "codec": "none", "last": 5}


def test_a_configuration_moves_all_its_knobs_and_only_those_that_differ() -> None:
    controls, first, last = three()
    controls.apply(WANTED)
    assert controls.now == WANTED
    assert (first.size, last.size) == (20, 7)
    controls.apply({"last": 8})
    assert controls.now == WANTED | {"last": 8}
    assert first.told == [20]


def test_where_a_setter_raises_no_knob_has_moved_and_what_was_set_before_is_set_back() -> None:
    controls, first, last = three()
    last.refused = {7}
    with pytest.raises(ConfigurationError, match="knob last: it stays at 5, its setter failed on 7: OSError"):
        controls.apply(WANTED)
    assert controls.now == BEFORE
    assert (first.size, last.size) == (10, 5)
    assert first.told == [20, 10]
    assert last.told == [7, 5]  # it may have failed half way


def test_a_setter_that_cannot_go_back_either_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    controls, first, last = three()
    last.refused, first.refused = {7}, {10}
    with caplog.at_level(logging.ERROR, "ag06.ml"), pytest.raises(ConfigurationError, match="knob last"):
        controls.apply(WANTED)
    assert controls.now == BEFORE | {"first": 20}
    (record,) = caplog.records
    assert "knob first" in record.getMessage()
    assert "it may stand wrong now" in record.getMessage()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"first": 20, "depth": 1}, "no knob 'depth' may be moved; there are first, codec, last"),
        ({"first": 20, "last": 101}, "knob last: 101 is not between 1 and 100"),
        ({"first": 20, "last": 1.5}, "knob last: 1.5 is not a whole number"),
        ({"first": 20, "last": float("nan")}, "knob last: nan"),
        ({"first": 20, "last": None}, "knob last: None"),
        ({"first": 20, "codec": "gzip"}, "knob codec: 'gzip' is none of"),
        (None, "give the values of the knobs by name"),
        ("first", "give the values of the knobs by name"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_setter_is_called(config: Any, words: str) -> None:
    controls, first, _ = three()
    for use in (controls.check, controls.apply):
        with pytest.raises(ConfigurationError, match=words):
            use(config)
    assert controls.now == BEFORE
    assert first.told == []


def test_a_check_completes_the_changes_with_what_stands_and_moves_nothing() -> None:
    controls, first, _ = three()
    assert controls.check({"first": 20.0}) == BEFORE | {"first": 20}
    assert list(controls.check({})) == list(BEFORE)
    assert (controls.now, first.told) == (BEFORE, [])


def test_without_a_knob_nothing_is_moved_and_any_name_is_unknown() -> None:
    controls = Controls({})
    assert (controls.now, controls.check({})) == ({}, {})
    controls.apply({})
    with pytest.raises(ConfigurationError, match="no knob 'first' may be moved; it has none"):
        controls.apply({"first": 1})


def test_a_worker_with_other_code_follows_what_fits_its_knobs() -> None:
    controls, _, _ = three()
    controls.follow({"first": 30, "gone": 1, "codec": "lz4", "last": 1_000})
    assert controls.now == BEFORE | {"first": 30}


def workflow() -> Workflow:
    app = Workflow("mixer", store="memory://")
    app.knob("block", low=64, high=1024, default=256, scale="log", integer=True)

    @app.step("audio", concurrency=4)
    async def level(event: Event[Any]) -> None: ...

    @app.batch_step("levelled")
    async def keep(events: list[Event[Any]]) -> None: ...

    return app


def test_all_knobs_may_move_but_those_that_the_user_gave_a_number() -> None:
    found = Controls.of(workflow()).knobs
    assert {"block", "level.fetch_size", "keep.concurrency", "keep.max_size", "commit_wait"} <= found.keys()
    assert "level.concurrency" not in found


def test_only_those_named_may_move_and_none_that_is_pinned() -> None:
    app = workflow()
    assert list(Controls.of(app, ["keep.max_size", "block"]).knobs) == ["block", "keep.max_size"]
    assert list(Controls.of(app, ["keep.max_size", "block"], ["block"]).knobs) == ["keep.max_size"]
    assert Controls.of(app, []).knobs == {}
    assert "commit_wait" not in Controls.of(app, fixed=["commit_wait"]).knobs


def test_whoever_asks_for_a_knob_that_stands_still_is_told_why() -> None:
    written = "because concurrency=4 was written; write a Knob there to give bounds"
    with pytest.raises(ConfigurationError, match=f"workflow 'mixer': 'level.concurrency' may not be moved, {written}"):
        Controls.of(workflow(), ["level.concurrency"])
    controls = Controls.of(workflow(), ["block", "keep.max_size"], ["keep.max_size", "level.concurrency"])
    assert list(controls.knobs) == ["block"]
    for name, why in (
        ("level.concurrency", written),
        ("keep.max_size", "because it is pinned"),
        ("commit_wait", "because knobs= leaves it out"),
    ):
        with pytest.raises(ConfigurationError, match=f"no knob '{name}' may be moved, {why}; there are block"):
            controls.check({name: 1})


@pytest.mark.parametrize("how", [{"names": ["depth"]}, {"fixed": ["depth"]}])
def test_a_knob_that_there_is_not_is_refused_by_name(how: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"workflow 'mixer' has no knob '.*'; there are block"):
        Controls.of(workflow(), **how)
