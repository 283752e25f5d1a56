"""What a line says of where it was said: over await, tasks, threads, steps and traces."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ag06.event import Event
from ag06.monitoring import logs, observability
from said import Said, listening


@pytest.fixture
def said() -> Iterator[Said]:
    with listening() as heard:
        yield heard


def an_event(**more: Any) -> Event[Any]:
    return Event(id="e1", type="t", source="s", data=None, time=dt.datetime.now(dt.UTC), **more)


def user_fields(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in {"time", "level", "logger", "event"}}


def test_the_facade_is_what_the_contract_says(said: Said) -> None:
    logger = observability.create_context_logger(user_id="123")
    with observability.context(workflow_id="123"):
        logger.bind(order=1).info("Operation complete", duration_ms=15)
    logger.info("outside")
    first, second = said.lines()
    assert user_fields(first) == {"workflow_id": "123", "user_id": "123", "order": 1, "duration_ms": 15}
    assert user_fields(second) == {"user_id": "123"}
    assert first["logger"] == __name__


def test_context_nests_and_the_nearest_word_counts(said: Said) -> None:
    logger = logs.create_context_logger("x", a="bound")
    with logs.context(a="outer", b="outer", c="outer"):
        with logs.context(b="inner"):
            logger.info("x", c="call")
            logger.info("x")
        logger.info("x")
    logger.info("x")
    assert [user_fields(line) for line in said.lines()] == [
        {"a": "bound", "b": "inner", "c": "call"},
        {"a": "bound", "b": "inner", "c": "outer"},
        {"a": "bound", "b": "outer", "c": "outer"},
        {"a": "bound"},
    ]


async def test_context_follows_await_tasks_and_to_thread_and_never_a_neighbour(said: Said) -> None:
    logger = logs.create_context_logger("x")
    meet = asyncio.Barrier(20)

    async def deep() -> None:
        await asyncio.sleep(0)
        logger.info("deep")

    async def one(number: int) -> None:
        with logs.context(number=number):
            await meet.wait()  # all twenty are inside at once
            await deep()
            await asyncio.create_task(deep())
            await asyncio.to_thread(logger.info, "thread")
            with ThreadPoolExecutor(1) as pool:
                copied = contextvars.copy_context().run
                await asyncio.get_running_loop().run_in_executor(pool, copied, logger.info, "copied")
        logger.info("after", was=number)

    await asyncio.gather(*(one(number) for number in range(20)))
    lines = said.lines()
    assert len(lines) == 100
    for number in range(20):
        mine = [line["event"] for line in lines if line.get("number") == number]
        assert mine == ["deep", "deep", "thread", "copied"]
    assert sorted(line["was"] for line in lines if "number" not in line) == list(range(20))


async def test_a_task_keeps_the_context_that_it_began_in(said: Said) -> None:
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        logs.create_context_logger("x").info("later")

    with logs.context(request="r1"):
        task = asyncio.create_task(later())
    with logs.context(request="r2"):
        go.set()
        await task
    assert said.last()["request"] == "r1"


async def test_a_generator_that_is_abandoned_inside_a_context_harms_nobody(said: Said) -> None:
    async def numbers() -> AsyncIterator[int]:
        with logs.context(inside=True):
            yield 1

    async def abandon() -> None:
        generator = numbers()
        await anext(generator)
        # Closed in another task, so in another context than it began in.
        await asyncio.create_task(generator.aclose())

    await abandon()
    logs.create_context_logger("x").info("x")
    assert said.rows()


def test_a_plain_thread_begins_with_no_context(said: Said) -> None:
    with logs.context(a=1):
        thread = threading.Thread(target=logs.create_context_logger("x").info, args=("x",))
        thread.start()
        thread.join(10)
    assert user_fields(said.last()) == {}


def test_a_line_in_a_step_says_which_event_step_and_trace_it_belongs_to(said: Said) -> None:
    logger = logs.create_context_logger("x", user_id=7)
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    event = an_event(correlation_id="c1", traceparent=f"00-{trace}-{span}-01")
    token = logs.bind_event(event, "shop", "charge", 3)
    logger.info("inside")
    logs.unbind_event(token)
    logger.info("outside")
    inside, outside = said.lines()
    assert list(user_fields(inside).items()) == [
        ("correlation_id", "c1"), ("trace_id", trace), ("span_id", span), ("workflow", "shop"), ("step", "charge"),
        ("event_id", "e1"), ("attempt", 3), ("user_id", 7),
    ]  # fmt: skip
    assert user_fields(outside) == {"user_id": 7}


@pytest.mark.parametrize("traceparent", [None, "", "00", "00-abc-def-01", "x" * 10_000, "00-\n-\n-01"])
def test_a_trace_that_is_none_is_left_out(said: Said, traceparent: str | None) -> None:
    token = logs.bind_event(an_event(traceparent=traceparent), "w", "s")
    logs.create_context_logger("x").info("x")
    logs.unbind_event(token)
    assert "trace_id" not in said.last()
    assert said.last()["correlation_id"] == "e1"


def test_a_batch_has_a_step_and_no_event(said: Said) -> None:
    token = logs.bind_event(None, "w", "s")
    logs.create_context_logger("x").info("x")
    logs.unbind_event(token)
    assert user_fields(said.last()) == {"workflow": "w", "step": "s", "attempt": 1}


def test_what_the_user_calls_like_a_field_of_the_step_is_kept_beside_it(said: Said) -> None:
    logger = logs.create_context_logger("x", step="mine", correlation_id="c1")
    logger.info("outside")
    token = logs.bind_event(an_event(correlation_id="c1"), "w", "s")
    logger.info("inside")
    logs.unbind_event(token)
    outside, inside = said.lines()
    assert user_fields(outside) == {"step": "mine", "correlation_id": "c1"}
    assert (inside["step"], inside["step_"], inside["correlation_id"]) == ("s", "mine", "c1")
    assert "correlation_id_" not in inside


def test_the_source_of_a_trace_is_asked_for_each_line_and_may_fail(said: Said) -> None:
    found: list[tuple[str, str] | None] = [("t1", "s1"), ("t1", "s2"), None]
    logger = logs.create_context_logger("x")
    logs.use_trace_source(lambda: found.pop(0))
    try:
        for _ in range(4):  # the fourth finds an empty list
            logger.info("x")
    finally:
        logs.use_trace_source(None)
    assert [line.get("span_id") for line in said.lines()] == ["s1", "s2", None, None]
    assert said.last()["trace_id"] == "<unknown: IndexError>"


async def test_steps_that_run_at_once_do_not_mix_their_events(said: Said) -> None:
    logger = logs.create_context_logger("x")
    meet = asyncio.Barrier(10)

    async def call(number: int) -> None:
        token = logs.bind_event(an_event(correlation_id=str(number)), "w", f"s{number}")
        try:
            await meet.wait()
            logger.info("x", number=number)
            await asyncio.to_thread(logger.info, "x", number=number)
        finally:
            logs.unbind_event(token)

    await asyncio.gather(*(call(number) for number in range(10)))
    assert len(said.lines()) == 20
    assert all(line["correlation_id"] == str(line["number"]) for line in said.lines())
    assert all(line["step"] == f"s{line['number']}" for line in said.lines())
