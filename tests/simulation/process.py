"""A simulated process: everything whose context says so. It can be killed, stopped and continued, as by a signal."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import VirtualLoop

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)


class Process:
    """A name, a clock of its own, and whether it runs."""

    def __init__(self, loop: VirtualLoop, name: str, on_death: Callable[[Process], None]) -> None:
        """Call `on_death` at the instant it dies."""
        self.name = name
        self.skew = 0.0
        """Seconds that its wall clock is ahead."""
        self.alive = True
        self.paused = False
        self.stop = asyncio.Event()
        """Set when it is asked to end, as by SIGTERM."""
        self.held: deque[Any] = deque()
        self._loop = loop
        self._on_death = on_death
        self._context = contextvars.copy_context()
        self._context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task in this process."""
        return self._loop.create_task(work, name=name, context=self._context.copy())

    def may_run(self, handle: Any) -> bool:
        """Whether a callback of this process may run now; one that may not is kept, or dropped for ever."""
        if not self.alive:
            return False
        if self.paused:
            self.held.append(handle)
            return False
        return True

    def kill(self) -> None:
        """Die at once."""
        if self.alive:
            self.alive = False
            self.held.clear()
            self._on_death(self)

    def exit(self) -> None:
        """End, having done everything: what it had of the system is free."""
        self.alive = False
        self.held.clear()

    async def killed(self) -> None:
        """Die at the caller's own await: nothing of it runs any more."""
        self.kill()
        await self._loop.create_future()

    def pause(self, seconds: float) -> None:
        """Stop for so many seconds."""
        if self.alive and not self.paused:
            self.paused = True
            self._loop.call_later(seconds, self._go_on, context=contextvars.Context())

    def _go_on(self) -> None:
        self.paused = False
        self._loop.take_back(self.held)
        self.held.clear()
