"""Threads for plain `def` steps, which cannot keep their process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

R = TypeVar("R")
_Work = tuple["Future[Any]", Callable[[], Any]]


class CallThreads(Executor):
    """Up to `limit` threads, started as they are needed; `submit` is called from one thread.

    They are daemons, unlike those of a `ThreadPoolExecutor`, which Python waits for at its exit: a call that never
    returns would keep a worker alive that was asked to end, long after what it held was given back.
    """

    def __init__(self, limit: int, name: str) -> None:
        """Start nothing yet; the threads are called `name` and a number."""
        self._limit = limit
        self._name = name
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Call `fn` in the first thread that is free."""
        future: Future[R] = Future()
        self._work.put((future, partial(fn, *args, **kwargs)))
        if not self._idle.acquire(blocking=False) and self._started < self._limit:
            self._started += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Let every thread end after its call; waits for none."""
        for _ in range(self._started):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001 - whatever a step raises is its failure
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del work, future, call  # while it waits it keeps nothing of the last call alive
            self._idle.release()
