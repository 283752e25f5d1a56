from __future__ import annotations

import math

import msgspec
import pytest

from ag06 import CircuitOpen, Reject, Retry
from ag06.persistence.log import Bury, Delivery, Postpone
from ag06.runtime.quarantine import must_run_alone
from ag06.runtime.verdict import bury_killer, judge, killed_workers

DELIVERY = Delivery(token=1, recorded_ms=0, level=1, body=b"")
THIRD = msgspec.structs.replace(DELIVERY, attempts=2, first_failed_ms=500)


def now() -> float:
    return 2.0


def raised(error: BaseException) -> BaseException:
    """The error as a step raises it: with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_first_failure_is_tried_again_within_the_bound_of_its_wait() -> None:
    verdict = judge(DELIVERY, ValueError(), Retry(attempts=3, initial=0.5), now)
    assert isinstance(verdict, Postpone)
    assert (verdict.attempts, verdict.first_failed_ms) == (1, 2000)
    assert 0 <= verdict.delay_ms <= 500


def test_a_later_failure_remembers_the_first() -> None:
    verdict = judge(THIRD, ValueError(), Retry(attempts=4), now)
    assert isinstance(verdict, Postpone)
    assert (verdict.attempts, verdict.first_failed_ms) == (3, 500)


def test_the_last_failure_is_kept_with_its_story() -> None:
    verdict = judge(THIRD, raised(KeyError("price")), Retry(attempts=3), now)
    assert isinstance(verdict, Bury)
    failure = verdict.failure
    assert (failure.reason, failure.error_type, failure.message) == ("failed", "KeyError", "'price'")
    assert (failure.attempts, failure.first_ms, failure.last_ms) == (3, 500, 2000)
    assert "raise error" in failure.traceback
    assert failure.traceback.endswith("KeyError: 'price'\n")


def test_a_rejection_and_an_error_not_named_end_at_once() -> None:
    rejected = judge(DELIVERY, Reject("no such order"), Retry(attempts=5), now)
    assert isinstance(rejected, Bury)
    assert (rejected.failure.reason, rejected.failure.message, rejected.failure.attempts) == (
        "rejected", "no such order", 1,
    )  # fmt: skip
    assert (rejected.failure.first_ms, rejected.failure.last_ms) == (2000, 2000)
    unnamed = judge(DELIVERY, ValueError(), Retry(attempts=5, on=ConnectionError), now)
    assert isinstance(unnamed, Bury)
    assert unnamed.failure.reason == "failed"


def test_an_open_circuit_waits_as_told_and_costs_no_attempt() -> None:
    verdict = judge(THIRD, CircuitOpen("crm", 2.5), Retry(attempts=3), now)
    assert verdict == Postpone(THIRD, 2501, 2, 500)
    assert judge(DELIVERY, CircuitOpen(None, 0.0), Retry(attempts=1), now) == Postpone(DELIVERY, 1, 0, 0)


@pytest.mark.parametrize(
    ("seconds", "delay_ms"), [(math.inf, 86_400_001), (1e300, 86_400_001), (math.nan, 1), (-5.0, 1), (7200, 7_200_001)]
)
def test_a_breaker_that_says_nonsense_ends_no_worker(seconds: float, delay_ms: int) -> None:
    assert judge(DELIVERY, CircuitOpen("crm", seconds), Retry(), now) == Postpone(DELIVERY, delay_ms, 0, 0)


@pytest.mark.parametrize(
    ("deaths", "suspect", "attempts", "killed"),
    [
        (0, False, 5, 0),
        (0, True, 5, 1),  # the first death was not noted, and counts
        (1, True, 5, 2),
        (4, True, 5, 5),
        (1, False, 5, 1),  # trusted again after a retry
        (0, True, 1, 0),  # with a single attempt every start is noted
        (1, True, 1, 1),
        (-1, True, 5, 0),  # the worker of the first came back
    ],
)
def test_deaths_are_counted_as_noted_and_the_first_as_well(
    deaths: int, suspect: bool, attempts: int, killed: int
) -> None:
    delivery = msgspec.structs.replace(DELIVERY, deaths=deaths, suspect=suspect)
    assert killed_workers(delivery, Retry(attempts=attempts)) == killed


@pytest.mark.parametrize(
    ("deaths", "attempts", "alone"),
    [
        (0, 5, False),  # others may be charged with it, and have attempts left
        (1, 5, True),
        (0, 2, True),  # one more death makes it a dead letter
        (0, 1, True),
        (4, 5, False),  # it does not run any more
    ],
)
def test_what_was_charged_with_a_death_or_has_one_left_runs_alone(deaths: int, attempts: int, alone: bool) -> None:
    delivery = msgspec.structs.replace(DELIVERY, deaths=deaths, suspect=True)
    assert must_run_alone(delivery, Retry(attempts=attempts)) is alone


def test_a_killer_is_buried_as_what_it_is() -> None:
    delivery = msgspec.structs.replace(DELIVERY, deaths=2, suspect=True)
    failure = bury_killer(delivery, Retry(attempts=3), 2000).failure
    assert (failure.reason, failure.attempts, failure.first_ms, failure.last_ms) == ("worker_died", 3, 2000, 2000)
    assert "3 workers died" in failure.message


def test_a_dead_letter_holds_no_endless_text_and_no_broken_unicode() -> None:
    verdict = judge(DELIVERY, raised(ValueError("x" * 100_000 + "\ud800")), Retry(attempts=1), now)
    assert isinstance(verdict, Bury)
    assert len(verdict.failure.message) == 2000
    assert len(verdict.failure.traceback) < 17_000
    assert "characters left out" in verdict.failure.traceback
    assert verdict.failure.traceback.startswith("Traceback")
    assert verdict.failure.traceback.endswith("\\ud800\n")
