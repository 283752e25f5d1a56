from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import CircuitBreaker, CircuitOpen, ConfigurationError, Reject


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    try:
        with breaker:
            if error is not None:
                raise error
    except CircuitOpen:
        raise
    except BaseException as raised:
        if raised is not error:
            raise


def trip(breaker: CircuitBreaker, calls: int = 10) -> None:
    for _ in range(calls):
        call(breaker, ValueError())


def test_it_opens_at_the_failure_rate_and_not_before_the_minimum() -> None:
    breaker = CircuitBreaker(minimum_calls=4, failure_rate=0.5)
    for error in (ValueError(), None, None):
        call(breaker, error)
    assert breaker.state == "closed"
    call(breaker, ValueError())
    assert breaker.state == "open"


def test_an_open_breaker_refuses_and_says_when_to_come_back() -> None:
    clock = Clock()
    breaker = CircuitBreaker("crm", open_seconds=60, clock=clock)
    trip(breaker)
    clock.now += 20
    with pytest.raises(CircuitOpen, match="crm") as refused:
        call(breaker)
    assert refused.value.retry_after == pytest.approx(40)
    assert breaker.metrics.refused == 1


def test_it_stays_open_until_a_call_is_tried() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=60, half_open_calls=1, clock=clock)
    trip(breaker)
    clock.now += 61
    assert breaker.state == "open"
    call(breaker)
    assert breaker.state == "closed"


def test_bad_trials_open_it_again() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=60, half_open_calls=3, clock=clock)
    trip(breaker)
    clock.now += 61
    call(breaker, ValueError())
    assert breaker.state == "half_open"
    call(breaker, ValueError())
    call(breaker)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        call(breaker)


def test_half_open_lets_no_call_too_many_through() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=1, half_open_calls=3, clock=clock)
    trip(breaker)
    clock.now += 2
    admitted: list[int] = []
    barrier = threading.Barrier(16)

    def attempt(number: int) -> None:
        barrier.wait()
        try:
            breaker.__enter__()
            admitted.append(number)
        except CircuitOpen:
            return

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 3


@pytest.mark.parametrize("seed", range(5))
async def test_half_open_lets_no_call_too_many_through_whatever_becomes_of_thousands(seed: int) -> None:
    """Under way and counted together are never more than the permits, and what is given back is used again."""
    chance, clock, permits = random.Random(seed), Clock(), 7
    breaker = CircuitBreaker(
        minimum_calls=100, open_seconds=1, half_open_calls=permits, ignore=(KeyError,), clock=clock
    )
    trip(breaker, 100)
    clock.now += 2
    under_way = tried = refused = worst = 0

    async def attempt() -> None:
        nonlocal under_way, tried, refused, worst
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        try:
            async with breaker:
                if breaker.state != "half_open":
                    return
                tried += 1
                under_way += 1
                worst = max(worst, under_way + breaker.metrics.calls)
                try:
                    await asyncio.sleep(0)
                    match chance.randrange(100):
                        case lot if lot < 49:
                            raise KeyError
                        case lot if lot < 98:
                            asyncio.current_task().cancel()  # type: ignore[union-attr]
                            await asyncio.sleep(0)
                finally:
                    under_way -= 1
        except CircuitOpen:
            refused += 1
        except KeyError:
            return

    while breaker.state != "closed":
        await asyncio.gather(*(attempt() for _ in range(1000)), return_exceptions=True)
    assert worst == permits
    assert tried > 2 * permits
    assert refused > 1000


@pytest.mark.parametrize("window", [{"window": 20_000}, {"window_seconds": 60}])
def test_thousands_of_calls_from_threads_are_counted_exactly(window: dict[str, int]) -> None:
    breaker = CircuitBreaker(minimum_calls=20_000, clock=Clock(), **window)  # type: ignore[arg-type]

    @breaker
    def guarded(error: Exception | None) -> None:
        if error is not None:
            raise error

    def work() -> None:
        for number in range(500):
            with contextlib.suppress(ValueError):
                guarded(ValueError() if number % 5 == 0 else None)
            call(breaker, ValueError() if number % 2 else None)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet inside the breaker
    try:
        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    metrics = breaker.metrics
    assert (metrics.calls, metrics.failures) == (16_000, 16 * 350)


async def test_thousands_of_concurrent_tasks_are_counted_exactly() -> None:
    breaker = CircuitBreaker(window=5000, minimum_calls=5000, failure_rate=1.0)

    async def work(number: int) -> None:
        try:
            async with breaker:
                await asyncio.sleep(0)
                if number % 4 == 0:
                    raise ValueError
        except ValueError:
            return

    await asyncio.gather(*(work(number) for number in range(4000)))
    metrics = breaker.metrics
    assert (metrics.calls, metrics.failures, metrics.failure_rate) == (4000, 1000, 0.25)


async def test_a_cancelled_trial_gives_its_permit_back() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=1, half_open_calls=1, clock=clock)
    trip(breaker)
    clock.now += 2

    async def hang() -> None:
        async with breaker:
            await asyncio.sleep(3600)

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        call(breaker)
    task.cancel()
    await asyncio.wait([task])
    assert breaker.state == "half_open"
    call(breaker)
    assert breaker.state == "closed"


def test_an_ignored_error_counts_as_nothing_and_gives_its_permit_back() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=1, half_open_calls=1, ignore=(KeyError,), clock=clock)
    for _ in range(50):
        call(breaker, KeyError())
    assert breaker.metrics.calls == 0
    trip(breaker)
    clock.now += 2
    call(breaker, KeyError())
    assert breaker.state == "half_open"
    call(breaker)
    assert breaker.state == "closed"


def test_a_permit_that_a_copied_context_gave_back_is_not_given_back_twice() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=1, half_open_calls=1, ignore=(KeyError,), clock=clock)
    trip(breaker)
    clock.now += 2
    breaker.__enter__()
    contextvars.copy_context().run(breaker.__exit__, KeyError, KeyError(), None)
    breaker.__exit__(KeyError, KeyError(), None)
    with breaker, pytest.raises(CircuitOpen):
        call(breaker)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_a_cancellation_counts_as_nothing_whatever_is_recorded(error: BaseException) -> None:
    breaker = CircuitBreaker(record=BaseException)
    call(breaker, error)
    assert breaker.metrics.calls == 0
    call(breaker, KeyboardInterrupt())
    assert breaker.metrics.failures == 1


def test_an_error_that_is_not_recorded_is_a_success() -> None:
    breaker = CircuitBreaker(record=(OSError,))
    trip(breaker, 20)
    assert (breaker.state, breaker.metrics.calls, breaker.metrics.failures) == ("closed", 20, 0)


def test_a_call_that_began_before_a_change_of_state_counts_no_more() -> None:
    breaker = CircuitBreaker()
    breaker.__enter__()
    breaker.reset()
    breaker.__exit__(ValueError, ValueError(), None)
    assert breaker.metrics.calls == 0


def test_slow_calls_open_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(minimum_calls=2, slow_call_seconds=1.0, slow_call_rate=0.5, clock=clock)
    with breaker:
        clock.now += 0.9
    with breaker:
        clock.now += 1.0
    assert (breaker.state, breaker.metrics.failures) == ("open", 0)


def test_a_slow_call_that_fails_counts_as_both() -> None:
    clock = Clock()
    breaker = CircuitBreaker(slow_call_seconds=1.0, clock=clock)

    @breaker
    def crawl() -> None:
        clock.now += 1
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - its own
        crawl()
    assert (breaker.metrics.failures, breaker.metrics.slow_calls) == (1, 1)


def test_slow_trials_open_it_again_and_quick_ones_close_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(slow_call_seconds=1.0, open_seconds=5, half_open_calls=2, clock=clock)
    trip(breaker)
    for pause, state in ((1.0, "open"), (0.5, "closed")):
        clock.now += 6
        for _ in range(2):
            with breaker:
                clock.now += pause
        assert breaker.state == state


def test_an_open_breaker_shows_what_opened_it_and_half_open_begins_anew() -> None:
    clock = Clock()
    breaker = CircuitBreaker(open_seconds=1, half_open_calls=4, clock=clock)
    trip(breaker)
    assert (breaker.state, breaker.metrics.calls, breaker.metrics.failure_rate) == ("open", 10, 1.0)
    clock.now += 2
    call(breaker)
    assert (breaker.state, breaker.metrics.calls, breaker.metrics.failure_rate) == ("half_open", 1, 0.0)


def test_a_time_window_forgets_what_is_older() -> None:
    clock = Clock()
    breaker = CircuitBreaker(window_seconds=10, minimum_calls=4, clock=clock)
    for _ in range(3):
        call(breaker, ValueError())
    clock.now += 11
    call(breaker, ValueError())
    assert (breaker.state, breaker.metrics.calls) == ("closed", 1)
    for _ in range(3):
        call(breaker, ValueError())
    assert breaker.state == "open"


def test_forced_states_hold_until_they_are_reset() -> None:
    breaker = CircuitBreaker()
    breaker.force_open()
    with pytest.raises(CircuitOpen):
        call(breaker)
    breaker.disable()
    trip(breaker, 100)
    assert (breaker.state, breaker.metrics.calls) == ("disabled", 0)
    breaker.metrics_only()
    trip(breaker, 20)
    assert (breaker.state, breaker.metrics.failures) == ("metrics_only", 20)
    breaker.reset()
    assert (breaker.state, breaker.metrics.calls, breaker.metrics.refused) == ("closed", 0, 0)


def test_transitions_are_told_and_a_broken_hook_harms_nobody() -> None:
    clock = Clock()
    breaker = CircuitBreaker("crm", open_seconds=1, half_open_calls=1, clock=clock)
    told: list[tuple[str | None, str, str]] = []
    breaker.on_transition(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    breaker.on_transition(lambda *change: told.append(change))
    trip(breaker)
    clock.now += 2
    call(breaker)
    assert told == [("crm", "closed", "open"), ("crm", "open", "half_open"), ("crm", "half_open", "closed")]


def test_a_change_of_state_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ag06.breaker")
    breaker = CircuitBreaker("crm")
    trip(breaker)
    breaker.reset()
    breaker.reset()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "circuit breaker crm: closed -> open"),
        ("INFO", "circuit breaker crm: open -> closed"),
    ]


def test_a_generator_cannot_be_decorated_for_its_call_ends_before_it_runs() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def patient() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, patient):
        with pytest.raises(ConfigurationError, match="use `with breaker:` inside it"):
            CircuitBreaker()(function)


async def test_it_decorates_plain_and_async_functions() -> None:
    breaker = CircuitBreaker(minimum_calls=2)

    @breaker
    def plain(fail: bool) -> int:
        if fail:
            raise ValueError("asked to")
        return 1

    @breaker
    async def patient(fail: bool) -> int:
        await asyncio.sleep(0)
        return plain.__wrapped__(fail)  # type: ignore[attr-defined, no-any-return]

    assert plain(False) == 1
    with pytest.raises(ValueError, match="asked to"):
        await patient(True)
    with pytest.raises(CircuitOpen):
        await patient(False)


async def test_one_breaker_guards_nested_and_interleaved_calls() -> None:
    clock = Clock()
    breaker = CircuitBreaker(minimum_calls=100, slow_call_seconds=1.0, clock=clock)

    async def outer() -> None:
        async with breaker:
            clock.now += 2
            async with breaker:
                await asyncio.sleep(0)

    await asyncio.gather(outer())
    assert (breaker.metrics.calls, breaker.metrics.slow_calls) == (2, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"minimum_calls": 0},
        {"failure_rate": 0},
        {"failure_rate": 1.1},
        {"slow_call_rate": 0},
        {"slow_call_seconds": 0},
        {"open_seconds": -1},
        {"half_open_calls": 0},
        {"window_seconds": 0},
        {"window_seconds": 1e6},
        {"window": 2.5},
        {"window": True},
        {"failure_rate": "half"},
        {"open_seconds": float("nan")},
        {"slow_call_seconds": "1"},
        {"record": [ValueError]},
        {"ignore": (ValueError(),)},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        CircuitBreaker(**wrong)


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 20))
def test_the_count_window_is_the_last_calls(outcomes: list[bool], size: int) -> None:
    breaker = CircuitBreaker(window=size)
    breaker.metrics_only()
    last: deque[bool] = deque(maxlen=size)
    for failed in outcomes:
        call(breaker, ValueError() if failed else None)
        last.append(failed)
    assert (breaker.metrics.calls, breaker.metrics.failures) == (len(last), sum(last))


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=100), st.integers(1, 10))
def test_the_time_window_is_the_last_seconds(calls: list[tuple[int, bool]], seconds: int) -> None:
    clock = Clock()
    breaker = CircuitBreaker(window_seconds=seconds, clock=clock)
    breaker.metrics_only()
    seen: list[tuple[float, bool]] = []
    for pause, failed in calls:
        clock.now += pause
        call(breaker, ValueError() if failed else None)
        seen.append((clock.now, failed))
    inside = [failed for at, failed in seen if at > clock.now - seconds]
    assert (breaker.metrics.calls, breaker.metrics.failures) == (len(inside), sum(inside))


def test_exceptions_are_recorded_and_ignored_inside_groups() -> None:
    breaker = CircuitBreaker("crm", record=ConnectionError, ignore=(KeyError,))
    call(breaker, ExceptionGroup("group", [KeyError()]))
    assert breaker.metrics.calls == 0
    call(breaker, ExceptionGroup("group", [KeyError(), ValueError()]))
    assert (breaker.metrics.calls, breaker.metrics.failures) == (1, 0)
    call(breaker, ExceptionGroup("group", [ValueError(), ExceptionGroup("inner", [ConnectionResetError()])]))
    assert (breaker.metrics.calls, breaker.metrics.failures) == (2, 1)


@pytest.mark.parametrize("rejection", [Reject("no"), ExceptionGroup("group", [Reject("no")])], ids=["alone", "grouped"])
def test_a_rejection_says_nothing_of_the_other_side(rejection: Exception) -> None:
    clock = Clock()
    breaker = CircuitBreaker("crm", minimum_calls=1, half_open_calls=1, open_seconds=1.0, clock=clock)
    for _ in range(10):
        call(breaker, rejection)
    assert (breaker.state, breaker.metrics.calls) == ("closed", 0)
    call(breaker, ValueError())
    clock.now += 1.0
    for _ in range(10):  # each gives its permit back
        call(breaker, rejection)
    assert (breaker.state, breaker.metrics.refused) == ("half_open", 0)
    call(breaker)
    assert breaker.state == "closed"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
def test_whatever_a_hook_raises_harms_no_call(raised: type[BaseException]) -> None:
    breaker = CircuitBreaker("crm", minimum_calls=1, open_seconds=0.0, half_open_calls=1)

    def hook(*_: object) -> None:
        raise raised

    breaker.on_transition(hook)
    call(breaker, ValueError())
    call(breaker)
    assert breaker.state == "closed"
