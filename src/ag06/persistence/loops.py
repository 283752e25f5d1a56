"""One open log for each event loop of a process: opened once however many ask, closed by its loop, never forked."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial

from ag06.errors import StoreError
from ag06.persistence.log import EventLog
from ag06.tasks import finished, start_task

_inherited: list[object] = []
"""Logs of the parent process: closing them here would close its files and locks."""
_of_parent: set[asyncio.AbstractEventLoop] = set()
_used: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
"""The loops of this process that have used a store."""


class LogsByLoop:
    """The logs that were opened with one set of settings.

    A task of its own opens a log, so that a caller who gives up takes nothing away from others who wait for the same.
    """

    def __init__(self, make: Callable[[], EventLog]) -> None:
        """`make` returns a log to be opened."""
        self._make = make
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self.opened: dict[asyncio.AbstractEventLoop, EventLog] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[EventLog]] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Begin with nothing: what a child process has of its parent's logs is not for use."""
        _inherited.append(self.opened)
        self._begin()  # a lock of its own too: the parent's may be held by a thread that is not here

    async def open(self) -> EventLog:
        """Return the log of the running loop, opened if it is not.

        Raises `StoreError` in a loop of the parent process, where two processes would take each other's wake-ups.
        """
        loop = asyncio.get_running_loop()
        _used.add(loop)
        if loop in _of_parent:
            raise StoreError(
                "this event loop was used before the process was forked, and shares its selector with the parent; "
                "use a new one here, as asyncio.run(...) does"
            )
        while True:
            with self._lock:
                task = self._opening.get(loop)
                if task is None:
                    task = self._opening[loop] = start_task(self._open(loop), "ag06 open store")
                    task.add_done_callback(_note)
            try:
                log = await asyncio.shield(task)
            except asyncio.CancelledError:
                caller = asyncio.current_task()
                if task.cancelled() and caller is not None and not caller.cancelling():
                    continue  # it was closed while it was opened, and this caller still wants it
                raise
            if self.opened.get(loop) is log:
                return log  # otherwise it was closed at the very moment it was opened

    async def _open(self, loop: asyncio.AbstractEventLoop) -> EventLog:
        log: EventLog | None = None
        try:
            log = self._make()
            await log.open()
        except BaseException:
            with self._lock:
                if self._opening.get(loop) is asyncio.current_task():
                    del self._opening[loop]
            if log is not None:
                await log.close()
            raise
        with self._lock:
            if self._opening.get(loop) is asyncio.current_task():
                self.opened[loop] = log
        # Only now: a log in memory lives as long as somebody holds it.
        self._abandon_ended()
        return log

    def _abandon_ended(self) -> None:
        """Let go of the logs of loops that have ended: nobody can close them there any more."""
        with self._lock:
            ended = [loop for loop in self._opening if loop.is_closed()]
            left = [self._opening.pop(loop) for loop in ended]
            for loop in ended:
                self.opened.pop(loop, None)
        for task in left:
            _abandon(task)

    async def close(self) -> None:
        """Close the log of the running loop, also one that is being opened; other loops keep theirs."""
        loop = asyncio.get_running_loop()
        with self._lock:
            task = self._opening.pop(loop, None)
            self.opened.pop(loop, None)
        self._abandon_ended()
        if task is not None:
            await finished(partial(_close_one, task))

    @property
    def is_empty(self) -> bool:
        """Whether no loop has a log."""
        return not self._opening


async def _close_one(task: asyncio.Task[EventLog]) -> None:
    if not task.done():
        task.cancel()  # a store that does not answer is not waited for
        await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await task.result().close()


def _abandon(task: asyncio.Task[EventLog]) -> None:
    if task.done() and not task.cancelled() and task.exception() is None:
        task.result().abandon()


def _note(task: asyncio.Task[EventLog]) -> None:
    """Look at the error, if any: whoever still waits for the log gets it, and nobody has to."""
    if not task.cancelled():
        task.exception()


_all: weakref.WeakSet[LogsByLoop] = weakref.WeakSet()


def _forget_parent() -> None:
    _of_parent.update(_used)
    for logs in list(_all):
        logs.forget()


os.register_at_fork(after_in_child=_forget_parent)
