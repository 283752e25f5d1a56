"""Owned tasks: started lazily whatever the task factory, and awaited to their end whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_task(
    work: Coroutine[Any, Any, T], name: str | None = None, loop: asyncio.AbstractEventLoop | None = None
) -> asyncio.Task[T]:
    """Return a task for `work` that takes its first step in a later turn of the loop; the running one unless given.

    A task factory of the user's is not asked: with `asyncio.eager_task_factory` (Python 3.12) work would begin inside
    `create_task`, before its owner holds the task, and under locks that the owner holds.
    """
    return asyncio.Task(work, loop=loop or asyncio.get_running_loop(), name=name)


async def completed(work: Awaitable[T]) -> T:
    """Return the result of some work; a cancellation is passed on once the work is over. It must end by itself."""
    task = start_task(work) if inspect.iscoroutine(work) else asyncio.ensure_future(work)
    await _wait(task)
    return task.result()


async def finished(work: Callable[[], Coroutine[Any, Any, T]], hurry: Callable[[], None] | None = None) -> T:
    """Return the result of some work, begun again if its own task is cancelled: an event loop that ends cancels all.

    The work must end by itself, and go on where it was. A cancellation of the caller is passed on once it is over; with
    `hurry` it calls that instead.
    """
    cancelled: asyncio.CancelledError | None = None
    for _ in range(2):
        task = start_task(work())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
                if hurry is not None:
                    hurry()
        if not task.cancelled():
            break
    if cancelled is not None and hurry is None:
        raise cancelled
    return task.result()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when they have ended; their exceptions stay in them."""
    for task in tasks:
        task.cancel()
    await _wait(*tasks)


async def _wait(*tasks: asyncio.Future[Any]) -> None:
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        for task in tasks:
            if not task.cancelled():
                task.exception()  # no caller is left to take it
        raise cancelled
