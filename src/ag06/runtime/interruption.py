"""What a call raised: a failure of its event, or the end of the worker that made the call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ag06.errors import StepFailed
from ag06.failure import is_cancellation, members
from ag06.stopping import asks_to_stop


def failure_of(error: BaseException, callers: Sequence[asyncio.Task[None]], *, stopping: bool) -> BaseException:
    """Return the failure of an event whose call, in one of the tasks `callers`, raised `error`.

    Nothing here reads an attribute of `error`, nor its `__class__`: they may do anything.

    Raises what ends the call without an attempt: a request to stop the process, the cancellation of a worker that is
    `stopping`, the end of a coroutine whose loop is gone.
    """
    task = _current_task()
    if issubclass(type(error), GeneratorExit) and task not in callers:
        raise error
    for member in members(error):
        if asks_to_stop(member):
            raise member
    is_cancelled = task is not None and task.cancelling() > 0
    if stopping and (is_cancelled or is_cancellation(error)):
        # Cut off at the end of the grace period: whatever the step made of that is no failure of the event.
        raise error if issubclass(type(error), asyncio.CancelledError) else asyncio.CancelledError from error
    if not is_cancellation(error):
        return error
    # Nobody but the step has cancelled it, or has raised it.
    while task is not None and task.cancelling():
        task.uncancel()
    failure = StepFailed("the call was cancelled from within")
    failure.__cause__ = error
    return failure


def _current_task() -> asyncio.Task[object] | None:
    """Return the running task; a coroutine that the garbage collector closes runs in none."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
