"""Whatever a step raises is a failure of its own event: it costs attempts, and no caller, slot or worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest

from ag06 import Context, Event, Outcome, Retry, Workflow
from flows import SECONDS, letters, until

Mode = Literal["async", "plain", "async batch", "plain batch", "returns a coroutine"]
FIRST = 200
MODES: tuple[Mode, ...] = ("async", "plain", "async batch", "plain batch", "returns a coroutine")


class NativePanic(BaseException):
    """As extensions in other languages raise it."""


class Hostile(Exception):  # noqa: N818 - it is no name of an error
    """Nothing of it can be looked at."""

    def __str__(self) -> str:
        raise NativePanic

    __repr__ = __str__

    def __getattribute__(self, name: str) -> Any:
        raise NativePanic(name)


class NoTruth(Exception):  # noqa: N818
    """An exception that collects others, and whose size cannot be told."""

    def __bool__(self) -> bool:
        raise NativePanic

    __len__ = __bool__


def caused_by_no_truth() -> BaseException:
    error = ValueError("x")
    error.__cause__ = NoTruth()
    return error


class ExitInWords(BaseException):
    def __str__(self) -> str:
        raise SystemExit(3)


class Overridden(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> tuple[Exception, ...]:  # type: ignore[override]
        raise NativePanic

    def derive(self, excs: Any) -> Any:
        raise NativePanic


class KindError(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise NativePanic

    def __subclasscheck__(cls, other: type) -> bool:
        raise NativePanic

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise NativePanic


class StrangeKind(Exception, metaclass=KindError):  # noqa: N818
    pass


def cyclic() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    return first


def chain(length: int) -> BaseException:
    error = ValueError("0")
    for n in range(1, length):
        following = ValueError(str(n))
        following.__cause__ = error
        error = following
    return error


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def doubled(depth: int) -> BaseException:
    error: Exception = ValueError("one object in 2 ** depth places")
    for _ in range(depth):
        error = ExceptionGroup("group", [error, error])
    return error


RAISED: dict[str, Callable[[], BaseException]] = {
    "a panic": lambda: NativePanic("index out of bounds"),
    "what has no truth value": NoTruth,
    "what is caused by such a one": caused_by_no_truth,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "a cancellation": asyncio.CancelledError,
    "a cancelled future": concurrent.futures.CancelledError,
    "a group of a panic": lambda: BaseExceptionGroup("group", [NativePanic(), ValueError()]),
    "a group of a cancellation": lambda: BaseExceptionGroup("group", [asyncio.CancelledError()]),
    "a group of exits": lambda: BaseExceptionGroup("group", [SystemExit(1), KeyboardInterrupt()]),
    "a group that hides its members": lambda: Overridden("group", [ValueError()]),
    "what cannot be looked at": Hostile,
    "what exits when it is printed": ExitInWords,
    "a class that cannot be compared": StrangeKind,
    "a cycle of causes": cyclic,
    "10,000 causes": lambda: chain(10_000),
    "10,000 groups": lambda: nested(10_000),
    "2 ** 200 members": lambda: doubled(200),
    "a huge message": lambda: ValueError("x" * 10_000_000 + "\ud800"),
    "no memory": MemoryError,
}


def declare(app: Workflow, mode: Mode, work: Callable[[Any], None], retry: Retry) -> None:
    async def one_async(event: Event) -> None:
        work(event.data)

    def one_plain(event: Event) -> None:
        work(event.data)

    def one_returning(event: Event) -> object:
        return one_async(event)

    async def many_async(events: list[Event]) -> None:
        for event in events:
            work(event.data)

    def many_plain(events: list[Event]) -> None:
        for event in events:
            work(event.data)

    match mode:
        case "async":
            app.step("t", name="work", retry=retry, concurrency=1)(one_async)
        case "plain":
            app.step("t", name="work", retry=retry, concurrency=1)(one_plain)
        case "returns a coroutine":
            app.step("t", name="work", retry=retry, concurrency=1)(one_returning)  # type: ignore[type-var]
        case "async batch":
            app.batch_step("t", name="work", retry=retry, max_size=3, max_wait=0.02)(many_async)
        case "plain batch":
            app.batch_step("t", name="work", retry=retry, max_size=3, max_wait=0.02)(many_plain)


@pytest.mark.parametrize("mode", MODES)
async def test_whatever_a_step_raises_ends_in_the_dead_letters_after_its_attempts(mode: Mode) -> None:
    app = Workflow("shop", store="memory://", grace=1.0)
    calls: dict[str, int] = {}
    heard: list[Outcome] = []
    app.on_outcome(heard.append)

    def work(data: str) -> None:
        calls[data] = calls.get(data, 0) + 1
        if data in RAISED:
            raise RAISED[data]()

    declare(app, mode, work, Retry(attempts=2, initial=0.001, maximum=0.001))
    async with app.running():
        # First attempts pay for the retries: those need not wait for their budget.
        await app.events.persist_events([{"event_type": "t", "source": "s", "data": f"good {n}"} for n in range(FIRST)])
        for name in RAISED:
            await app.publish("t", data=name)
            await app.publish("t", data=f"good, after {name}")
        await app.drain(SECONDS)
        found = {letter.event.data: letter for letter in await letters(app)}
    assert {name: letter.attempts for name, letter in found.items()} == dict.fromkeys(RAISED, 2)
    assert {letter.reason for letter in found.values()} == {"failed"}
    assert found["a panic"].error == "NativePanic"
    assert found["SystemExit"].error == "SystemExit"
    assert len(found["a huge message"].message) <= 2_000
    assert max(len(letter.traceback) for letter in found.values()) < 20_000
    assert all(calls[f"good, after {name}"] >= 1 for name in RAISED)
    dead = {outcome.event_id for outcome in heard if outcome.kind == "dead"}
    assert dead == {letter.event.id for letter in found.values()}
    assert sum(outcome.kind == "processed" for outcome in heard) == FIRST + len(RAISED)


class Refuses(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n == 0:
            raise NativePanic


@pytest.mark.parametrize("batch", [False, True])
async def test_data_that_cannot_be_decoded_for_whatever_reason_is_invalid(batch: bool) -> None:
    app = Workflow("shop", store="memory://")
    seen: list[int] = []
    if batch:

        @app.batch_step("t", max_size=3, max_wait=0.02)
        async def many(events: list[Event[Refuses]]) -> None:
            seen.extend(event.data.n for event in events)
    else:

        @app.step("t", concurrency=1)
        def one(event: Event[Refuses]) -> None:
            seen.append(event.data.n)

    async with app.running():
        for n in range(3):
            await app.publish("t", data={"n": n})
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert (letter.reason, letter.error, sorted(seen)) == ("invalid", "NativePanic", [1, 2])


@pytest.mark.parametrize(
    "raised", [NativePanic, KeyboardInterrupt, SystemExit, StopIteration, Hostile, NoTruth, caused_by_no_truth]
)
async def test_a_listener_harms_nobody_whatever_it_raises(raised: Callable[[], BaseException]) -> None:
    app = Workflow("shop", store="memory://")
    heard: list[str] = []

    @app.on_outcome
    def broken(outcome: Outcome) -> None:
        raise raised()

    app.on_outcome(lambda outcome: heard.append(outcome.kind))

    @app.step("t")
    async def step(event: Event) -> None: ...

    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
        await until(lambda: len(heard) == 3)


async def test_a_thread_that_cannot_be_started_is_a_failure_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's refusal cannot be had on demand: the one call that meets it is replaced."""
    app = Workflow("shop", store="memory://")
    start, refusals, done = threading.Thread.start, 0, list[int]()

    def refuse(thread: threading.Thread) -> None:
        nonlocal refusals
        if thread.name.startswith("ag06-work") and refusals < 2:
            refusals += 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    @app.step("t", concurrency=1, retry=Retry(attempts=3, initial=0.001))
    def work(event: Event, ctx: Context) -> None:
        done.append(ctx.attempt)

    async with app.running():
        await app.publish("t")
        await app.drain(SECONDS)
        assert await letters(app) == []
        await app.publish("t", data=2)
        await app.drain(SECONDS)
    assert done == [3, 1]


async def test_where_there_are_threads_one_that_cannot_be_started_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Workflow("shop", store="memory://")
    start, both, calls = threading.Thread.start, threading.Event(), list[int]()

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("ag06-work") and not thread.name.endswith("-1"):
            both.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    @app.step("t", concurrency=4, retry=Retry(attempts=1))
    def work(event: Event) -> None:
        assert both.wait(SECONDS)
        calls.append(event.data)

    async with app.running():
        for n in range(8):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
        assert await letters(app) == []
    assert sorted(calls) == list(range(8))


async def test_values_of_context_variables_that_cannot_be_compared_harm_nobody() -> None:
    from contextvars import ContextVar

    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise NativePanic

        __hash__ = None  # type: ignore[assignment]

    variable: ContextVar[object] = ContextVar("variable")
    variable.set(Incomparable())
    app = Workflow("shop", store="memory://")
    done: list[int] = []

    @app.step("t", concurrency=1)
    async def step(event: Event) -> None:
        variable.set(Incomparable())
        done.append(event.data)

    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
    assert done == [0, 1, 2]
