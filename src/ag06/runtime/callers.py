"""The tasks that call a step: as many as it may have calls at once, while that number moves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Callers:
    """Up to `limit` calls at once: each is made inside `async with callers`, by tasks of their own or by others.

    A limit that rises has more tasks at once. One that falls ends no call: while too many run no other begins, and
    tasks end as they ask for their next event.
    """

    def __init__(self, limit: int) -> None:
        """Allow `limit` calls, 1 or more; no task runs yet."""
        self.limit = limit
        self.tasks: list[asyncio.Task[None]] = []
        self._alive = 0
        self._inside = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._start: Callable[[], asyncio.Task[None]] | None = None

    def start(self, spawn: Spawn, call: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run `limit` tasks of `call()`, and from now on as many as the limit is."""
        self._start = lambda: spawn(call(), f"{name} {self._alive}")
        self._grow()

    def resize(self, limit: int) -> None:
        """Allow `limit` calls from now on."""
        self.limit = limit
        self._admit()
        self._grow()

    def freeze(self) -> None:
        """Start no more tasks."""
        self._start = None

    def dismiss(self) -> bool:
        """Return whether the task that asks is one too many, and is to end."""
        if self._alive <= self.limit:
            return False
        self._alive -= 1
        return True

    def _grow(self) -> None:
        if self._start is None or self._alive >= self.limit:
            return
        self.tasks = [task for task in self.tasks if not task.done()]
        while self._alive < self.limit:
            self.tasks.append(self._start())
            self._alive += 1

    async def __aenter__(self) -> None:
        """Wait until fewer than `limit` are inside."""
        if self._inside < self.limit:
            self._inside += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._leave()  # its turn had come
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        self._admit()

    def _admit(self) -> None:
        """Let in who waits, first come first served, as long as there is room."""
        while self._waiters and self._inside < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._inside += 1
                waiter.set_result(None)
