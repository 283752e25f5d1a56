"""What runs beside a workflow for as long as its worker runs in this process: packages add it by entry point."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Coroutine
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from ag06.runtime.grace import Grace, cancel
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06.persistence.log import EventLog
    from ag06.runtime.workflow import Workflow

_logger = logging.getLogger("ag06.runtime")
GROUP = "ag06.companions"
"""An entry point of this group names a function that takes a `Running` and returns a coroutine, which is cancelled
when the workflow shuts down. It calls `running.attached.set()` once it is there: the workflow waits for that."""
_FAREWELL = 6.0
"""Seconds that a companion may take to end: it may have to put knobs back while the store is slow."""
_PATIENCE = 2.0
"""Seconds that a workflow waits for it at most."""


class Running(msgspec.Struct, frozen=True, eq=False):
    """A workflow that runs in this process.

    Attributes:
        log: its open log.
        worker: the name its worker has in the store.
        told: what companions say of experiments, by name: `/status` shows it.
        attached: set by a companion that is there.
    """

    workflow: Workflow
    log: EventLog
    worker: str
    told: dict[str, Any] = {}
    attached: asyncio.Event = msgspec.field(default_factory=asyncio.Event)


Companion: TypeAlias = Callable[[Running], Coroutine[Any, Any, None]]


class Companions:
    """The companions of one running workflow."""

    def __init__(self, running: Running) -> None:
        """Start them; one that cannot be loaded is an error in the log, and the workflow runs without it."""
        self.running = running
        self._is_stopping = False
        self._tasks = [start_task(_guarded(companion, running)) for companion in _installed()]

    async def begun(self) -> None:
        """Wait until they are there, so that whoever runs the workflow finds them."""
        if self._tasks:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self.running.attached.wait()

    def stop(self) -> None:
        """Ask them to end, once: a second cancellation would break off how they do."""
        if not self._is_stopping:
            self._is_stopping = True
            for task in self._tasks:
                task.cancel()

    async def ended(self, grace: Grace) -> None:
        """Wait until they have ended; cancel those again that outlast the grace time by more than their farewell."""
        if await grace.wait(self._tasks, extra=_FAREWELL):
            await cancel(self._tasks)


@cache
def _installed() -> tuple[Companion, ...]:
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            found.append(entry.load())
        except Exception:
            _logger.exception(
                "%s cannot be loaded, it does not run beside workflows; mend or uninstall it", entry.value
            )
    return tuple(found)


async def _guarded(companion: Companion, running: Running) -> None:
    try:
        await companion(running)
    except Exception:
        _logger.exception("what ran beside the workflow %s has ended; the workflow goes on", running.workflow.name)
    finally:
        running.attached.set()
