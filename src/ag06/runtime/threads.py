"""Threads for plain `def` steps, which cannot keep their process from ending."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

R = TypeVar("R")
_Work = tuple["Future[Any]", Callable[[], Any]]


class CallThreads(Executor):
    """Up to a limit of threads, started as they are needed; `submit` is called from one thread.

    They are daemons, unlike those of a `ThreadPoolExecutor`, which Python waits for at its exit: a call that never
    returns would keep a worker alive that was asked to end, long after what it held was given back.
    """

    def __init__(self, limit: int, name: str) -> None:
        """Start nothing yet; the threads are called `name` and a number."""
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._alive = 0
        self._busy = 0  # calls that run or wait for a thread
        self._numbers = itertools.count(1)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()

    def resize(self, limit: int) -> None:
        """Have up to `limit` threads; those that are too many end, each after its present call."""
        with self._lock:
            self._limit = limit
            surplus = max(0, self._alive - max(limit, self._busy))
            self._alive -= surplus
        for _ in range(surplus):
            self._work.put(None)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Call `fn` in the first thread that is free."""
        future: Future[R] = Future()
        with self._lock:
            self._busy += 1
            grows = self._alive < min(self._busy, self._limit)
            self._alive += grows
        if grows:
            self._start()
        self._work.put((future, partial(fn, *args, **kwargs)))
        return future

    def _start(self) -> None:
        """Start one more thread; where the system refuses that, be content with those there are."""
        try:
            threading.Thread(target=self._run, name=f"{self._name}-{next(self._numbers)}", daemon=True).start()
        except BaseException:
            with self._lock:
                self._alive -= 1
                is_alone = not self._alive
                self._busy -= is_alone
            if is_alone:
                raise

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Let every thread end after its call; waits for none."""
        with self._lock:
            alive = self._alive
        for _ in range(alive):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            done: Callable[[], None] = _nothing
            if future.set_running_or_notify_cancel():
                try:
                    done = partial(future.set_result, call())
                except BaseException as error:  # noqa: BLE001 - whatever a step raises is its failure
                    done = partial(future.set_exception, error)
            ends = self._is_done()
            done()
            if ends:
                return
            del work, future, call, done  # while it waits it keeps nothing of the last call alive

    def _is_done(self) -> bool:
        """Count a call that ended, before anybody is told of it; return whether its thread is one too many."""
        with self._lock:
            self._busy -= 1
            ends = self._alive > max(self._limit, self._busy)
            self._alive -= ends
            return ends


def outcome_of(call: Callable[[], R]) -> tuple[R | None, BaseException | None]:
    """Return what `call` returns, and what it raises: a future refuses to carry some exceptions to an event loop."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - whatever is raised in a thread is an outcome
        return None, error


def _nothing() -> None:
    pass
