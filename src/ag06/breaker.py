"""A circuit breaker: stops calling what fails, and tries again later.

States and rules follow resilience4j's CircuitBreaker (https://resilience4j.readme.io/docs/circuitbreaker); the pattern
is from Nygard, "Release It!".
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from inspect import isawaitable
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec

from ag06 import callables
from ag06.call_window import FAILED, SLOW, CountWindow, TimeWindow
from ag06.error_text import log_error
from ag06.errors import CircuitOpen, ConfigurationError
from ag06.failure import counts
from ag06.monitoring import instruments
from ag06.stopping import asks_to_stop

_logger = logging.getLogger("ag06.breaker")

BreakerState = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]
Transition = Callable[[str | None, BreakerState, BreakerState], None]
"""Called with the breaker's name, the state it left and the state it entered."""

Exceptions = tuple[type[BaseException], ...] | type[BaseException]
F = TypeVar("F", bound=Callable[..., Any])

_CODES: dict[BreakerState, int] = {
    "closed": 0, "half_open": 1, "open": 2, "forced_open": 3, "disabled": 4, "metrics_only": 5
}  # fmt: skip
_NOTHING = -1  # the outcome of a call that does not count
_OVER = -1
_LONGEST_WINDOW = 86_400.0  # one bucket a second
_HALF_OPEN_FULL_SECONDS = 1.0  # what a caller is told while all trial calls are taken: ask again soon


class BreakerMetrics(msgspec.Struct, frozen=True):
    """What the window holds now; `refused` counts since the breaker was made or reset. Rates are 0 to 1."""

    calls: int
    failures: int
    slow_calls: int
    refused: int
    failure_rate: float
    slow_call_rate: float


_Permit = list[Any]
"""Generation of the state the call began in, when it began (0.0 where nobody asks how long calls take), and the permit
of the call around it.

Once the call has ended the generation is `_OVER`: a permit counts once, in however many contexts it is copied."""


class CircuitBreaker:
    """Lets calls through while they succeed; refuses them with `CircuitOpen` while too many fail.

    Use it as `with breaker:`, `async with breaker:` or `@breaker`; one object may guard any number of concurrent calls,
    from tasks and threads. A call that is cancelled, or fails with an exception of `ignore`, counts as nothing; so does
    one that fails with `Reject`, by which a step says that its event is wrong. In an exception group each exception is
    looked at: one that is recorded makes the call a failure.

    Args:
        name: for messages and metrics.
        window: how many of the last calls are looked at.
        window_seconds: look at the calls of so many seconds instead, in steps of one second.
        minimum_calls: calls in the window before a rate means anything.
        failure_rate: opens at this share of failed calls, above 0 and up to 1.
        slow_call_seconds: a call that takes this long or longer is slow; `None`: none is.
        slow_call_rate: opens at this share of slow calls, above 0 and up to 1.
        open_seconds: how long calls are refused before some are tried.
        half_open_calls: how many are tried then.
        record: exceptions that count as failures; others count as successes.
        ignore: exceptions that count as nothing, whatever `record` says. A cancellation and `Reject` never count.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str | None = None,
        window: int = 100,
        window_seconds: float | None = None,
        minimum_calls: int = 10,
        failure_rate: float = 0.5,
        slow_call_seconds: float | None = None,
        slow_call_rate: float = 1.0,
        open_seconds: float = 60.0,
        half_open_calls: int = 10,
        record: Exceptions = (Exception,),
        ignore: Exceptions = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a closed breaker; the class says what the arguments mean."""
        whole, share, seconds = "a whole number, 1 or more", "above 0 and up to 1", "seconds above 0, or None"
        for setting, value in (
            ("window", window),
            ("minimum_calls", minimum_calls),
            ("half_open_calls", half_open_calls),
        ):
            _check(name, setting, value, isinstance(value, int) and value >= 1, whole)
        for setting, rate in (("failure_rate", failure_rate), ("slow_call_rate", slow_call_rate)):
            _check(name, setting, rate, _is_number(rate) and 0 < rate <= 1, share)
        for setting, limit in (("slow_call_seconds", slow_call_seconds), ("window_seconds", window_seconds)):
            _check(name, setting, limit, limit is None or (_is_number(limit) and limit > 0), seconds)
        _check(name, "window_seconds", window_seconds, (window_seconds or 0) <= _LONGEST_WINDOW, "86400 s or less")
        _check(
            name, "open_seconds", open_seconds, _is_number(open_seconds) and 0 <= open_seconds < math.inf, "0 s or more"
        )
        for setting, kinds in (("record", record), ("ignore", ignore)):
            _check(name, setting, kinds, _are_exceptions(kinds), "an exception class, or a tuple of them")
        self.name = name
        self._window_size = window
        self._window_seconds = window_seconds
        # A count window never holds more calls than its size: a larger minimum would keep the breaker closed for ever.
        self._minimum = minimum_calls if window_seconds is not None else min(minimum_calls, window)
        self._half_open_minimum = min(minimum_calls, half_open_calls)
        self._failure_rate = failure_rate
        self._slow_seconds = slow_call_seconds
        self._slow_rate = slow_call_rate
        self._open_seconds = open_seconds
        self._half_open_calls = half_open_calls
        self._record = record
        self._ignore = ignore
        self._clock = clock
        self._timed = window_seconds is not None or slow_call_seconds is not None
        self._lock = threading.Lock()
        self._state: BreakerState = "closed"
        self._generation = 0
        self._window: CountWindow | TimeWindow = self._new_window()
        self._permits = 0
        self._open_until = 0.0
        self._refused = 0
        self._hooks: list[Transition] = []
        self._dropped: deque[_Permit] = deque(maxlen=half_open_calls)
        self._entered: ContextVar[_Permit | None] = ContextVar("ag06_breaker", default=None)
        with _known_lock:
            _known.add(self)
        self._show()

    def take_name(self, name: str) -> None:
        """Be called `name`, in messages and metrics, unless there is a name already."""
        if self.name is None:
            self.name = name
            self._show()

    # State

    @property
    def state(self) -> BreakerState:
        """The state; it stays `"open"` until a call is tried after `open_seconds`."""
        return self._state

    @property
    def metrics(self) -> BreakerMetrics:
        """What the window holds now."""
        with self._lock:
            window = self._window
            window.advance(self._clock() if self._window_seconds is not None else 0.0)
            calls = window.calls
            return BreakerMetrics(
                calls,
                window.failures,
                window.slow,
                self._refused,
                window.failures / calls if calls else 0.0,
                window.slow / calls if calls else 0.0,
            )

    def on_transition(self, hook: Transition) -> None:
        """Call `hook(name, left, entered)` after each change of state; what it raises is logged."""
        self._hooks.append(hook)

    def force_open(self) -> None:
        """Refuse every call until told otherwise."""
        self._force("forced_open")

    def disable(self) -> None:
        """Let every call through and look at none."""
        self._force("disabled")

    def metrics_only(self) -> None:
        """Let every call through and count it, whatever the rates."""
        self._force("metrics_only")

    def reset(self) -> None:
        """Close, and forget every call."""
        with self._lock:
            self._refused = 0
        self._force("closed")

    def _force(self, state: BreakerState) -> None:
        with self._lock:
            left = self._enter(state)
        self._tell(left, state)

    def _enter(self, state: BreakerState) -> BreakerState:
        """Change the state, lock held; calls that began before count no more. Return the state that was left."""
        left, self._state = self._state, state
        self._generation += 1
        if state == "half_open":
            self._permits = self._half_open_calls
            self._window = CountWindow(self._half_open_calls)
        elif state == "open":
            self._open_until = self._clock() + self._open_seconds
        else:
            self._window = self._new_window()
        self._show()
        return left

    def _show(self) -> None:
        if self.name is not None:
            instruments.BREAKER_STATE.labels(self.name).set(_CODES[self._state])

    def _new_window(self) -> CountWindow | TimeWindow:
        return CountWindow(self._window_size) if self._window_seconds is None else TimeWindow(self._window_seconds)

    def _tell(self, left: BreakerState, entered: BreakerState) -> None:
        if left == entered:
            return
        if "half_open" in (left, entered) and entered != "closed":
            level = logging.DEBUG  # that it is tried, and still open after that, is no news
        else:
            level = logging.WARNING if entered in ("open", "forced_open") else logging.INFO
        _logger.log(level, "circuit breaker %s: %s -> %s", self.name or "(unnamed)", left, entered)
        for hook in self._hooks:
            try:
                hook(self.name, left, entered)
            except BaseException as failure:
                if asks_to_stop(failure):
                    raise
                name = self.name or "(unnamed)"
                log_error(_logger, failure, "a hook of circuit breaker %s failed on %s -> %s", name, left, entered)

    # Calls

    def _acquire(self) -> _Permit:
        """Let a call begin, or raise `CircuitOpen`."""
        generation = self._generation  # read before the state: if it changes in between, the call counts nowhere
        if self._state == "closed":
            return [generation, self._clock() if self._timed else 0.0, None]
        left: BreakerState | None = None
        while self._dropped:
            self._finish(self._dropped.popleft(), asyncio.CancelledError())
        with self._lock:
            now = self._clock()
            if self._state == "open" and now >= self._open_until:
                left = self._enter("half_open")
            wait = self._refusal(now)
            if wait is not None:
                self._refused += 1
                if self.name is not None:
                    instruments.BREAKER_REFUSED.labels(self.name).inc()
            permit = [self._generation, now, None]
        if left is not None:
            self._tell(left, "half_open")
        if wait is not None:
            raise CircuitOpen(self.name, wait)
        return permit

    def _refusal(self, now: float) -> float | None:
        """Return after how many seconds to try again, or `None` if the call may begin; lock held."""
        if self._state == "open":
            return self._open_until - now
        if self._state == "forced_open":
            return self._open_seconds
        if self._state == "half_open":
            if self._permits == 0:
                return min(_HALF_OPEN_FULL_SECONDS, self._open_seconds)
            self._permits -= 1
        return None

    def _finish(self, permit: _Permit, error: BaseException | None) -> None:
        """Count a call that ended."""
        outcome = 0 if error is None else self._judge(error)
        now = 0.0
        if self._timed and outcome != _NOTHING:
            now = self._clock()
            if self._slow_seconds is not None and now - permit[1] >= self._slow_seconds:
                outcome |= SLOW
        verdict: BreakerState | None = None
        with self._lock:
            generation, permit[0] = permit[0], _OVER
            if generation != self._generation:
                return
            state = self._state
            if outcome == _NOTHING:
                self._permits += state == "half_open"
            elif state != "disabled":
                self._window.add(outcome, now)
                if self._window.failures or self._window.slow or state == "half_open":
                    verdict = self._verdict(state)
            if verdict is not None:
                self._enter(verdict)
        if verdict is not None:
            self._tell(state, verdict)

    def _judge(self, error: BaseException) -> int:
        """Return what a call counts as that ended with `error`."""
        failed = counts(error, self._record, self._ignore)
        return _NOTHING if failed is None else FAILED if failed else 0

    def _verdict(self, state: BreakerState) -> BreakerState | None:
        """Return the state that follows from the window, if another does; lock held."""
        window = self._window
        if state == "closed":
            return "open" if window.calls >= self._minimum and self._exceeds(window) else None
        if state == "half_open" and window.calls >= self._half_open_minimum:
            return "open" if self._exceeds(window) else "closed"
        return None

    def _exceeds(self, window: CountWindow | TimeWindow) -> bool:
        if window.failures >= self._failure_rate * window.calls:
            return True
        return self._slow_seconds is not None and window.slow >= self._slow_rate * window.calls

    # Ways to use it

    def __enter__(self) -> CircuitBreaker:
        permit = self._acquire()
        permit[2] = self._entered.get()
        self._entered.set(permit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        permit = self._entered.get()
        if permit is not None:  # else left in another context than it was entered in, as a generator can
            self._entered.set(permit[2])
            self._finish(permit, error)

    # The same once more, not by a call of the plain ones, which would cost as much as all that they do.

    async def __aenter__(self) -> CircuitBreaker:
        permit = self._acquire()
        permit[2] = self._entered.get()
        self._entered.set(permit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        permit = self._entered.get()
        if permit is not None:
            self._entered.set(permit[2])
            self._finish(permit, error)

    def __call__(self, function: F) -> F:
        """Guard every call of a function, plain or async; the call lasts until what it returns has been awaited."""
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self(function.__func__))
        if callables.is_generator(function):
            raise ConfigurationError(
                f"{self!r}: {function!r} is a generator, which runs after its call; use `with breaker:` inside it"
            )
        if callables.is_async(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                permit = self._acquire()
                try:
                    result = await function(*args, **kwargs)
                except BaseException as error:
                    self._finish(permit, error)
                    raise
                self._finish(permit, None)
                return result

            return guarded_async  # type: ignore[return-value]

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            permit = self._acquire()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self._finish(permit, error)
                raise
            if isawaitable(result):
                return self._guard_awaitable(permit, result)
            self._finish(permit, None)
            return result

        return guarded  # type: ignore[return-value]

    def _guard_awaitable(self, permit: _Permit, work: Any) -> Any:
        """Return what is to be awaited in place of `work`, the result of a plain function: its call ends with that."""
        if isinstance(work, asyncio.Future):  # it runs by itself, awaited or not
            work.add_done_callback(lambda done: self._finish(permit, _error_of(done)))
            return work

        async def guarded() -> Any:
            try:
                result = await work
            except BaseException as error:
                self._finish(permit, error)
                raise
            self._finish(permit, None)
            return result

        coroutine = guarded()
        weakref.finalize(coroutine, self._drop, permit).atexit = False
        return coroutine

    def _drop(self, permit: _Permit) -> None:
        """Note the permit of a call that was never awaited; the garbage collector may call this under the lock."""
        if permit[0] != _OVER:
            self._dropped.append(permit)

    def __repr__(self) -> str:
        return f"CircuitBreaker(name={self.name!r}, state={self._state!r})"


def _error_of(done: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if done.cancelled() else done.exception()


_known: weakref.WeakSet[CircuitBreaker] = weakref.WeakSet()
_known_lock = threading.Lock()


def known_breakers() -> list[CircuitBreaker]:
    """Return the breakers of this process that have a name, by name."""
    with _known_lock:
        named = [breaker for breaker in _known if breaker.name is not None]
    return sorted(named, key=lambda breaker: breaker.name or "")


def _check(name: str | None, setting: str, value: object, holds: bool, accepted: str) -> None:
    if not holds or isinstance(value, bool):
        raise ConfigurationError(f"circuit breaker {name or '(unnamed)'}: {setting}={value!r}; {accepted}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _are_exceptions(kinds: object) -> bool:
    members = kinds if isinstance(kinds, tuple) else (kinds,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in members)
