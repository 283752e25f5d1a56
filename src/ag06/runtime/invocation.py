"""One call of a step's function: in a task or a thread, within its timeout, behind its breaker."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import Executor
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any

from ag06.runtime.context import Context
from ag06.runtime.isolation import Isolation
from ag06.runtime.step import Step
from ag06.runtime.threads import outcome_of


class StepTimeout(TimeoutError):  # noqa: N818 - reads as what happened
    """A step took longer than its `timeout`."""


async def invoke(step: Step, argument: Any, context: Context, executor: Executor | None, isolation: Isolation) -> None:
    """Call the step's function with an event, or a list of them; raise what it raises.

    A call that outlasts its timeout raises `StepTimeout` once it has really ended: a thread cannot be stopped, and a
    second attempt beside it would run the step twice at once.
    """
    if step.breaker is None:
        await _timed(step, argument, context, executor, isolation)
    else:
        async with step.breaker:
            await _timed(step, argument, context, executor, isolation)


async def _timed(step: Step, argument: Any, context: Context, executor: Executor | None, isolation: Isolation) -> None:
    if not step.is_async:
        await _in_thread(step, argument, context, executor, isolation)
        return
    call = step.function(argument, context) if step.takes_context else step.function(argument)
    if step.timeout is None:
        result = await isolation.run(call)
        if result is not None:
            await _awaited(result, isolation)
    else:
        await _within(step, _awaited(call, isolation), step.timeout)


async def _awaited(result: object, isolation: Isolation) -> None:
    """Await what a call returns until it can be awaited no more: a wrapper may have forgotten to."""
    while isawaitable(result):
        result = await isolation.run(result)


async def _within(step: Step, call: Coroutine[Any, Any, None], seconds: float) -> None:
    """Await `call`, cancel it after so many seconds."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await call
    except TimeoutError:
        if limit.expired():
            raise _expired(step) from None
        raise
    if limit.expired():  # it swallowed the cancellation; its work came too late all the same
        raise _expired(step)


def _expired(step: Step) -> StepTimeout:
    return StepTimeout(f"step {step.name!r} took longer than its timeout of {step.timeout} s")


async def _in_thread(
    step: Step, argument: Any, context: Context, executor: Executor | None, isolation: Isolation
) -> None:
    """Call a plain function in a thread; await here what it returns, if that can be awaited."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    arguments = (argument, context) if step.takes_context else (argument,)
    call = partial(contextvars.copy_context().run, step.function, *arguments)
    running = loop.run_in_executor(executor, outcome_of, call)
    done, _ = await asyncio.wait([running], timeout=step.timeout)
    if not done:
        context.close()
        await asyncio.wait([running])
        _drop(running)
        raise _expired(step)
    result, error = running.result()
    if error is not None:
        if issubclass(type(error), StopIteration):  # which no coroutine can raise: PEP 479
            raise RuntimeError("the step raised StopIteration") from error
        raise error
    if isawaitable(result):
        work = _awaited(result, isolation)
        await (work if step.timeout is None else _within(step, work, max(0.0, began + step.timeout - loop.time())))


def _drop(running: asyncio.Future[tuple[Any, BaseException | None]]) -> None:
    """Leave unread what a call brought that came too late."""
    if running.cancelled() or running.exception() is not None:
        return
    result, _ = running.result()
    if iscoroutine(result):
        result.close()
