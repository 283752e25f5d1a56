"""What each subject of a split counts for, and when."""

from __future__ import annotations

import datetime as dt
import math
import random

import pytest

from ag06 import CircuitOpen, Event, Workflow
from ag06.ml.split_experiment import shares_are_lost
from ag06.ml.split_subjects import MOST_CALLS, SECONDS, Measure, Subject, Subjects
from ag06.runtime.step import Step


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps() -> dict[str, Step]:
    app = Workflow("shop", store="memory://")

    @app.step("order")
    async def bill(event: Event) -> None: ...

    @app.step("order")
    async def ship(event: Event) -> None: ...

    return app.steps


STEPS = steps()
BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Calls:
    """Subjects under a clock that a test moves."""

    def __init__(self, measure: Measure = "duration", most: int = 1000) -> None:
        self.clock = Clock()
        self.subjects = Subjects("bill", measure, most, self.clock)

    def begin(self, unit: str, variant: str = "a", *, alone: bool = False, step: str = "bill") -> Subject | None:
        event = Event(id="1", type="order", source="test", data=None, time=BEGAN, subject=None if alone else unit)
        return self.subjects.begun(STEPS[step], event, unit, variant)

    def call(self, unit: str, seconds: float, failure: Exception | None = None, variant: str = "a") -> None:
        call = self.begin(unit, variant)
        assert call is not None
        self.subjects.ended(call, seconds, failure)

    def values(self, measure: Measure = "duration") -> list[float | None]:
        return [subject.value(measure) for subject in self.subjects.done()]


def test_a_subject_counts_once_by_the_mean_of_its_first_calls() -> None:
    calls = Calls()
    for number in range(MOST_CALLS):
        calls.call("ann", 1.0 + number)
    assert calls.begin("ann") is None, "one with many events weighs no more"
    assert calls.values() == [pytest.approx(math.log(3.0))]
    assert calls.begin("ann") is None
    calls.clock.now += 100 * SECONDS
    assert calls.begin("ann") is None
    assert calls.subjects.seen == {"a": 1, "b": 0}
    assert calls.subjects.counted == {"a": 1, "b": 0}


def test_one_with_few_calls_counts_after_some_seconds() -> None:
    calls = Calls()
    calls.call("ann", 2.0)
    assert calls.values() == []
    calls.clock.now += SECONDS
    assert calls.begin("ann") is None
    assert calls.values() == [pytest.approx(math.log(2.0))]


def test_an_event_without_a_subject_counts_as_soon_as_it_worked() -> None:
    calls = Calls()
    for failure in (ConnectionError(), None):
        assert calls.values() == []
        call = calls.begin("event 7", alone=True)
        assert call is not None
        calls.subjects.ended(call, 1.0, failure)
    assert calls.values() == [pytest.approx(math.log(2.0))], "the seconds of the attempt that failed are its too"


def test_the_slow_are_not_overtaken_by_the_quick() -> None:
    calls = Calls()
    slow = calls.begin("slow")
    assert slow is not None
    for _ in range(MOST_CALLS):
        calls.call("quick", 1.0, variant="b")
    calls.clock.now += 10 * SECONDS
    assert calls.values() == []
    assert calls.subjects.calls_under_way == {"a": 1, "b": 0}
    calls.subjects.ended(slow, 50.0, None)
    assert calls.values() == [pytest.approx(math.log(50.0)), pytest.approx(0.0)]


def test_failing_fast_is_not_fast() -> None:
    calls = Calls()
    calls.call("ann", 0.001, ConnectionError())
    calls.call("ann", 1.0)
    calls.call("bob", 0.001, ConnectionError(), variant="b")
    calls.clock.now += SECONDS
    assert calls.values() == [pytest.approx(math.log(1.001)), None]
    assert calls.subjects.counted == {"a": 1, "b": 0}, "one for whom nothing worked is lost, and the shares show it"
    assert calls.subjects.failing == {"a": 1, "b": 1}


def test_of_errors_a_subject_has_the_share_of_its_calls() -> None:
    calls = Calls("errors")
    for number in range(MOST_CALLS):
        calls.call("ann", 1.0, ConnectionError() if number < 2 else None)
    calls.call("bob", 1.0, ConnectionError())
    calls.clock.now += SECONDS
    assert calls.values("errors") == [0.4, 1.0]
    assert calls.subjects.failing == {"a": 2, "b": 0}


def test_what_a_breaker_refused_was_no_call() -> None:
    calls = Calls("errors")
    calls.call("ann", 0.0, CircuitOpen("crm", 1.0))
    calls.clock.now += SECONDS
    assert calls.values("errors") == [None]
    assert calls.subjects.failing == {"a": 0, "b": 0}


def test_a_call_that_is_broken_off_counts_for_nothing() -> None:
    calls = Calls()
    call = calls.begin("ann")
    assert call is not None
    calls.subjects.dropped(call)
    calls.call("ann", 2.0)
    calls.clock.now += SECONDS
    assert calls.values() == [pytest.approx(math.log(2.0))]


def test_that_one_variant_loses_subjects_is_seen_after_a_few_and_seldom_where_it_is_not_so() -> None:
    assert shares_are_lost({"a": 0, "b": 14})
    assert shares_are_lost({"a": 30, "b": 3})
    blamed = 0
    for seed in range(200):
        draw = random.Random(seed)
        lost = {"a": 0, "b": 0}
        for _ in range(200):
            lost[draw.choice("ab")] += 1
            if shares_are_lost(lost):
                blamed += 1
                break
    assert blamed <= 2  # 0.2 on average at most


def test_other_steps_are_not_measured() -> None:
    calls = Calls()
    assert calls.begin("ann", step="ship") is None
    assert calls.subjects.seen == {"a": 0, "b": 0}


def test_no_more_subjects_are_taken_than_there_may_be() -> None:
    calls = Calls(most=2)
    calls.call("ann", 1.0)
    calls.call("bob", 1.0, variant="b")
    assert calls.begin("carl") is None
    assert not calls.subjects.are_used_up
    calls.call("ann", 1.0)
    calls.clock.now += SECONDS
    assert len(calls.values()) == 2
    assert calls.subjects.are_used_up
