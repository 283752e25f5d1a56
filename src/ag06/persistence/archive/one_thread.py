"""Blocking work of an archive, off the event loop and in its order: one thread for one run or one replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

R = TypeVar("R")


class OneThread:
    """A thread that does one thing after the other. A call that is cancelled is waited for: it may hold a file."""

    def __init__(self, name: str) -> None:
        """The thread starts with the first call."""
        self._pool = ThreadPoolExecutor(1, name)

    def begin(self, function: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """Start a call; whoever began it awaits it."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Return what `function` returns, or raise what it raises."""
        future = self.begin(function, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def pages(self, make: Callable[[], Iterator[R]]) -> AsyncIterator[R]:
        """Yield what an iterator yields, the next one prepared while this one is used."""
        iterator = await self.call(make)
        end = object()
        ahead: asyncio.Future[R | object] = self.begin(next, iterator, end)
        try:
            while True:
                page = await asyncio.shield(ahead)
                if page is end:
                    return
                ahead = self.begin(next, iterator, end)
                yield page  # type: ignore[misc]
        finally:
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()  # nobody else looks at it

    def close(self) -> None:
        """Let the thread end after the call it may be in."""
        self._pool.shutdown(wait=False)
