"""Steps, breakers, health checks and setters treat every kind of callable alike."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from ag06 import CircuitBreaker, CircuitOpen, ConfigurationError, Event, Knob, Retry, Workflow
from ag06.callables import is_async, is_generator
from ag06.monitoring.health import HealthRegistry
from flows import SECONDS, letters


class Broken(Exception):  # noqa: N818
    pass


async def fails(*_: object) -> None:
    await asyncio.sleep(0)
    raise Broken


def fails_at_once(*_: object) -> None:
    raise Broken


class Object:
    async def __call__(self, *args: object) -> None:
        await fails()

    async def method(self, *args: object) -> None:
        await fails()

    async def _with(self, first: int, *args: object) -> None:
        await fails()

    bound = functools.partialmethod(_with, 1)

    @classmethod
    async def of_class(cls, *args: object) -> None:
        await fails()

    @staticmethod
    async def static(*args: object) -> None:
        await fails()


class Later:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Any:
        return fails().__await__()


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


ASYNC: dict[str, Callable[..., Any]] = {
    "coroutine function": fails,
    "object": Object(),
    "method": Object().method,
    "partialmethod": Object().bound,
    "classmethod": Object.of_class,
    "staticmethod": Object.static,
    "partial": functools.partial(fails, 1),
    "partial of a partial of an object": functools.partial(functools.partial(Object(), 1), 2),
    "mock": AsyncMock(side_effect=Broken),
}
if sys.version_info >= (3, 12):
    ASYNC["marked"] = inspect.markcoroutinefunction(lambda *_: fails())
RETURNS_AWAITABLE: dict[str, Callable[..., Any]] = {
    "lambda": lambda *_: fails(),
    "wrapper": wrapped(fails),
    "wrapper of an object": wrapped(Object()),
    "awaitable object": lambda *_: Later(),
}
PLAIN: dict[str, Callable[..., Any]] = {
    "function": fails_at_once,
    "partial of a function": functools.partial(fails_at_once, 1),
    "plain lambda": lambda *_: fails_at_once(),
    "plain wrapper": wrapped(fails_at_once),
}
ALL = {**ASYNC, **RETURNS_AWAITABLE, **PLAIN}


@pytest.fixture(params=ALL)
def function(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return ALL[request.param]


def test_how_a_callable_is_called_follows_from_its_outermost_definition() -> None:
    assert {name for name, function in ALL.items() if is_async(function)} == set(ASYNC)


def test_a_generator_is_seen_in_every_wrapping() -> None:
    def generator() -> Any:
        yield 1

    async def async_generator() -> Any:
        yield 1

    class Generator:
        def __call__(self) -> Any:
            yield 1

    found = [generator, async_generator, functools.partial(generator), Generator(), Generator().__call__]
    assert all(map(is_generator, found))
    assert not any(map(is_generator, ALL.values()))


async def test_a_step_is_done_when_what_it_returns_is_done(function: Callable[..., Any]) -> None:
    app = Workflow("shop", store="memory://")

    if is_async(function):

        async def step(event: Event) -> None:
            await function(event)
    else:

        def step(event: Event) -> Any:  # type: ignore[misc]
            return function(event)

    app.step("t", name="step", retry=Retry(attempts=1), timeout=SECONDS)(step)
    async with app.running():
        await app.publish("t")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert letter.error == "Broken"


async def test_a_breaker_counts_a_call_when_what_it_returns_is_done(function: Callable[..., Any]) -> None:
    breaker = CircuitBreaker("crm", minimum_calls=1)
    guarded = breaker(function)

    async def call() -> None:
        before = breaker.metrics.calls
        found = guarded()
        if inspect.isawaitable(found):
            assert breaker.metrics.calls == before
            await found

    with pytest.raises(Broken):
        await call()
    assert (breaker.metrics.failures, breaker.state) == (1, "open")
    with pytest.raises(CircuitOpen):
        await call()


async def test_a_health_check_is_awaited_where_that_is_needed(function: Callable[..., Any]) -> None:
    health = HealthRegistry()
    health.register("part", function)
    part = (await health.check_health()).components["part"]
    assert (part.status, part.error) == ("fail", "Broken")


@pytest.mark.parametrize("name", ASYNC)
def test_a_setter_is_refused_if_it_is_async(name: str) -> None:
    with pytest.raises(ConfigurationError, match="coroutine function"):
        Knob("n", low=0, high=1, default=0, setter=ASYNC[name])


@pytest.mark.parametrize("name", [*RETURNS_AWAITABLE, *PLAIN])
def test_a_setter_that_fails_or_returns_what_nobody_awaits_moves_nothing(name: str) -> None:
    knob = Knob("n", low=0, high=1, default=0, setter=ALL[name])
    with pytest.raises(ConfigurationError, match="it stays at 0"):
        knob.set(1)
    assert knob.value == 0


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_whatever_a_setter_raises_is_its_failure(raised: type[BaseException]) -> None:
    def setter(value: object) -> None:
        raise raised

    with pytest.raises(ConfigurationError, match=f"its setter failed on 1: {raised.__name__}"):
        Knob("n", low=0, high=1, default=0, setter=setter).set(1)


def test_a_callable_that_needs_other_arguments_is_refused_where_it_is_handed_in() -> None:
    with pytest.raises(ConfigurationError, match="needs arguments; a check gets none"):
        HealthRegistry().register("part", lambda part: None)
    with pytest.raises(ConfigurationError, match="cannot be called with one value"):
        Knob("n", low=0, high=1, default=0, setter=lambda: None)
    Knob("n", low=0, high=1, default=0, setter=max)  # a built-in that does not tell its parameters


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
async def test_whatever_a_check_raises_is_its_own_fail(raised: type[BaseException], asynchronous: bool) -> None:
    async def check() -> None:
        raise raised

    def plain() -> None:
        raise raised

    health = HealthRegistry()
    health.register("part", check if asynchronous else plain, timeout=SECONDS)
    part = (await health.check_health()).components["part"]
    assert part.status == "fail"
    assert part.error is not None
    assert raised.__name__ in part.error or "sys.exit" in part.error


def test_a_breaker_keeps_what_a_method_is() -> None:
    breaker = CircuitBreaker("crm")

    class Client:
        @breaker
        @staticmethod
        def static(value: int) -> int:
            return value

        @breaker
        @classmethod
        def of_class(cls, value: int) -> tuple[type, int]:
            return cls, value

    assert Client().static(3) == 3
    assert Client().of_class(3) == (Client, 3)
    assert breaker.metrics.calls == 2


async def test_a_task_that_a_guarded_function_returns_stays_a_task_and_counts_at_its_end() -> None:
    breaker = CircuitBreaker("crm", minimum_calls=1)

    @breaker
    def start() -> asyncio.Task[None]:
        return asyncio.create_task(fails())

    task = start()
    assert isinstance(task, asyncio.Task)
    with pytest.raises(Broken):
        await task
    await asyncio.sleep(0)
    assert breaker.metrics.failures == 1


async def test_a_coroutine_that_nobody_awaits_holds_no_permit() -> None:
    breaker = CircuitBreaker("crm", minimum_calls=1, open_seconds=0.0, half_open_calls=1)
    breaker(lambda: None)()
    with pytest.raises(Broken):
        breaker(fails_at_once)()

    async def works() -> None: ...

    guarded = breaker(wrapped(works))
    forgotten = guarded()
    assert breaker.state == "half_open"
    with pytest.raises(CircuitOpen):
        guarded()
    forgotten.close()
    del forgotten
    gc.collect()
    await guarded()
    assert breaker.state == "closed"
