"""One call of a step's function: in a task or a thread, within its timeout, behind its breaker."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from concurrent.futures import Executor
from typing import Any

from ag06.errors import StepFailed
from ag06.runtime.context import Context
from ag06.runtime.isolation import Isolation
from ag06.runtime.step import Step


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
        await _in_thread(step, argument, context, executor)
        return
    if step.timeout is None:
        await isolation.run(step.function(argument, context) if step.takes_context else step.function(argument))
        return
    limit = asyncio.timeout(step.timeout)
    try:
        async with limit:
            await isolation.run(step.function(argument, context) if step.takes_context else step.function(argument))
    except TimeoutError:
        if limit.expired():
            raise _expired(step) from None
        raise
    if limit.expired():  # it swallowed the cancellation; its work came too late all the same
        raise _expired(step)


def _expired(step: Step) -> StepTimeout:
    return StepTimeout(f"step {step.name!r} took longer than its timeout of {step.timeout} s")


async def _in_thread(step: Step, argument: Any, context: Context, executor: Executor | None) -> None:
    loop = asyncio.get_running_loop()
    arguments = (argument, context) if step.takes_context else (argument,)
    running = loop.run_in_executor(executor, contextvars.copy_context().run, step.function, *arguments)
    done, _ = await asyncio.wait([running], timeout=step.timeout)
    if not done:
        context.close()
        await asyncio.wait([running])
        running.exception()
        raise _expired(step)
    _check_it_ran(step, running.result())


def _check_it_ran(step: Step, result: object) -> None:
    """Refuse the coroutine that a plain wrapper around an async function returns: nothing of the step has run."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise StepFailed(f"step {step.name!r} is no async function but returned a {type(result).__name__}: await it")
