"""What asks the process to stop ends a workflow in `running()`, and costs the event in hand no attempt."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ag06 import Context, Event, Outcome, Retry, Workflow
from flows import SECONDS, letters


@contextlib.contextmanager
def handled(number: int, handler: signal._HANDLER) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


async def interrupted_once() -> None:
    """Ctrl-C: `asyncio.run` cancels the main task, and the call is cut off at the end of the grace period."""
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(SECONDS)


async def interrupted_once_and_hidden() -> None:
    signal.raise_signal(signal.SIGINT)
    try:
        await asyncio.sleep(SECONDS)
    except asyncio.CancelledError:
        raise RuntimeError("the connection was closed") from None


async def interrupted_twice() -> None:
    """The second Ctrl-C is raised where the program stands: in the call."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


async def interrupted_twice_in_a_group() -> None:
    try:
        await interrupted_twice()
    except KeyboardInterrupt as error:
        raise BaseExceptionGroup("closing", [ValueError("also"), error]) from None


async def terminated() -> None:
    signal.raise_signal(signal.SIGTERM)


WAYS = [interrupted_once, interrupted_once_and_hidden, interrupted_twice, interrupted_twice_in_a_group, terminated]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_request_to_stop_ends_the_workflow_and_costs_no_attempt(tmp_path: Path, way: object) -> None:
    attempts: list[int] = []

    def workflow(*, stops: bool) -> Workflow:
        app = Workflow("shop", store=f"sqlite:///{tmp_path}/events.db", grace=0.05)

        @app.step("t", retry=Retry(attempts=1))
        async def step(event: Event, ctx: Context) -> None:
            attempts.append(ctx.attempt)
            if stops:
                await way()  # type: ignore[operator]

        return app

    async def first() -> None:
        async with (app := workflow(stops=True)).running():
            await app.publish("t")
            await asyncio.sleep(SECONDS)

    async def second() -> None:
        async with (app := workflow(stops=False)).running():
            await app.drain(SECONDS)
            assert await letters(app) == []

    def exits(*_: object) -> None:
        sys.exit(5)

    with handled(signal.SIGINT, signal.default_int_handler), handled(signal.SIGTERM, exits):
        with pytest.raises(SystemExit if way is terminated else KeyboardInterrupt):
            asyncio.run(first())
    asyncio.run(second())
    assert attempts == [1, 1]


async def child_that_exits() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())


async def child_that_interrupts() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave(KeyboardInterrupt))


async def leave(kind: type[BaseException] = SystemExit) -> None:
    await asyncio.sleep(0)
    raise kind


async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    raise ValueError("after that")


async def closes_the_loop() -> None:
    asyncio.get_running_loop().close()


async def stops_the_loop_later() -> None:
    asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)
    await asyncio.sleep(0.01)
    raise ValueError("after that")


ENDS = [child_that_exits, child_that_interrupts, stops_the_loop, stops_the_loop_later, closes_the_loop]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_step_cannot_end_the_loop_of_a_worker(tmp_path: Path, end: object) -> None:
    app = Workflow("shop", store=f"sqlite:///{tmp_path}/events.db", grace=1.0)
    calls: list[str] = []

    @app.step("t", retry=Retry(attempts=2, initial=0.001), concurrency=1)
    async def step(event: Event) -> None:
        calls.append(event.data)
        if event.data == "bad":
            await end()  # type: ignore[operator]

    @app.on_outcome
    def stop(outcome: Outcome) -> None:
        if outcome.kind == "dead":
            signal.raise_signal(signal.SIGTERM)

    async def publish() -> None:
        await app.publish("t", data="good")
        await app.publish("t", data="bad")
        await app.close()

    async def found() -> list[tuple[str, int]]:
        dead = [(letter.event.data, letter.attempts) for letter in await letters(app)]
        await app.close()
        return dead

    asyncio.run(publish())
    app.run()
    assert asyncio.run(found()) == [("bad", 2)]
    assert sorted(calls) == ["bad", "bad", "good"]
