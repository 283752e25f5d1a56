"""Work that is not left half done: it is awaited to its end, though whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def completed(work: Awaitable[T]) -> T:
    """Return what comes of some work; a cancellation is passed on once the work is over. It must end by itself."""
    task = asyncio.ensure_future(work)
    await _wait(task)
    return task.result()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when they have ended; what they raised is left in them."""
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
                task.exception()  # nobody is left to hear of it
        raise cancelled
