"""One open log for each event loop of a process: opened once however many ask, closed from wherever, never forked."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial

from ag06.errors import StoreUnavailable
from ag06.persistence.log import EventLog
from ag06.tasks import finished, start_task

_inherited: list[object] = []  # logs of the parent process: closing them here would close its files and locks


class LogsByLoop:
    """The logs that were opened with one set of settings.

    A task of its own opens a log, so that a caller who gives up takes nothing away from others who wait for the same.
    """

    def __init__(self, make: Callable[[], EventLog], patience: float) -> None:
        """`make` returns a log to be opened; `close` gives other threads' loops `patience` seconds."""
        self._make = make
        self._patience = patience
        self.opened: dict[asyncio.AbstractEventLoop, EventLog] = {}
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Begin with nothing: what a child process has of its parent's logs is not for use."""
        _inherited.extend(self.opened.values())
        self.opened.clear()
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[EventLog]] = {}
        self._lock = threading.Lock()  # the parent's may be held by a thread that is not here

    async def open(self) -> EventLog:
        """Return the log of the running loop, opened if it is not."""
        loop = asyncio.get_running_loop()
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
            ended = [other for other in self._opening if other.is_closed()]
            left = [self._opening.pop(other) for other in ended]
            for other in ended:
                self.opened.pop(other, None)
        # Only now: a log in memory lives as long as somebody holds it.
        for task in left:
            _abandon(task)
        return log

    async def close(self) -> None:
        """Close the logs of all loops, each in its own loop; what is being opened is closed as well."""
        with self._lock:
            opening, self._opening = self._opening, {}
            self.opened.clear()
        closing = [self._close(loop, task) for loop, task in opening.items()]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _close(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[EventLog]) -> None:
        if loop is asyncio.get_running_loop():
            await finished(partial(_close_one, task))
        elif loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(_close_one(task), loop)
            try:
                await asyncio.wait_for(asyncio.wrap_future(closing), self._patience)
            except TimeoutError:
                raise StoreUnavailable(
                    f"the event loop of another thread did not close the store within {self._patience:g} s"
                ) from None
        else:
            _abandon(task)


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
    for logs in list(_all):
        logs.forget()


os.register_at_fork(after_in_child=_forget_parent)
