"""A circuit breaker: stops calling what fails, and tries again later.

States and rules follow resilience4j's CircuitBreaker (https://resilience4j.readme.io/docs/circuitbreaker); the pattern
is from Nygard, "Release It!".
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec

from ag06.errors import CircuitOpen, ConfigurationError

_logger = logging.getLogger("ag06.breaker")

BreakerState = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]
Transition = Callable[[str | None, BreakerState, BreakerState], None]
"""Called with the breaker's name, the state it left and the state it entered."""

Exceptions = tuple[type[BaseException], ...]
F = TypeVar("F", bound=Callable[..., Any])

_FAILED = 1
_SLOW = 2
_HALF_OPEN_FULL_SECONDS = 1.0  # what a caller is told while all trial calls are taken: ask again soon


class BreakerMetrics(msgspec.Struct, frozen=True):
    """What the window holds now; `refused` counts since the breaker was made or reset. Rates are 0 to 1."""

    calls: int
    failures: int
    slow_calls: int
    refused: int
    failure_rate: float
    slow_call_rate: float


class _CountWindow:
    """The last `size` calls, in constant time a call."""

    __slots__ = ("_at", "_ring", "calls", "failures", "size", "slow")

    def __init__(self, size: int) -> None:
        self.size = size
        self._ring = bytearray(size)
        self._at = self.calls = self.failures = self.slow = 0

    def add(self, outcome: int, now: float) -> None:
        """Count one call; `now` does not matter here."""
        at = self._at
        if self.calls == self.size:
            old = self._ring[at]
            self.failures -= old & _FAILED
            self.slow -= old >> 1
        else:
            self.calls += 1
        self._ring[at] = outcome
        self.failures += outcome & _FAILED
        self.slow += outcome >> 1
        self._at = at + 1 if at + 1 < self.size else 0

    def advance(self, now: float) -> None:
        """Nothing leaves a count window as time goes by."""


class _TimeWindow:
    """The calls of the last `seconds`, in one bucket a second."""

    __slots__ = ("_buckets", "_last", "calls", "failures", "slow")

    def __init__(self, seconds: float) -> None:
        self._buckets = [[0, 0, 0] for _ in range(max(1, math.ceil(seconds)))]
        self._last: int | None = None
        self.calls = self.failures = self.slow = 0

    def add(self, outcome: int, now: float) -> None:
        """Count one call that ended at `now` seconds."""
        self.advance(now)
        bucket = self._buckets[(self._last or 0) % len(self._buckets)]
        for index, count in enumerate((1, outcome & _FAILED, outcome >> 1)):
            bucket[index] += count
        self.calls += 1
        self.failures += outcome & _FAILED
        self.slow += outcome >> 1

    def advance(self, now: float) -> None:
        """Drop what is older than the window at `now` seconds."""
        second = math.floor(now)
        if self._last is None:
            self._last = second
        for passed in range(self._last + 1, min(second, self._last + len(self._buckets)) + 1):
            bucket = self._buckets[passed % len(self._buckets)]
            self.calls -= bucket[0]
            self.failures -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = [0, 0, 0]
        self._last = max(self._last, second)


_Permit = tuple[int, float]
"""Generation of the state the call began in, and when it began (0.0 where nobody asks how long calls take)."""
_Stack = tuple[_Permit, Any] | None


class CircuitBreaker:
    """Lets calls through while they succeed; refuses them with `CircuitOpen` while too many fail.

    Use it as `with breaker:`, `async with breaker:` or `@breaker`; one object may guard any number of concurrent calls,
    from tasks and threads. A call that is cancelled, or fails with an exception of `ignore`, counts as nothing.

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
        ignore: exceptions that count as nothing.
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
        _check(name, "window", window, window >= 1)
        _check(name, "window_seconds", window_seconds, window_seconds is None or 0 < window_seconds <= 86_400)
        _check(name, "minimum_calls", minimum_calls, minimum_calls >= 1)
        _check(name, "failure_rate", failure_rate, 0 < failure_rate <= 1)
        _check(name, "slow_call_seconds", slow_call_seconds, slow_call_seconds is None or slow_call_seconds > 0)
        _check(name, "slow_call_rate", slow_call_rate, 0 < slow_call_rate <= 1)
        _check(name, "open_seconds", open_seconds, 0 <= open_seconds < math.inf)
        _check(name, "half_open_calls", half_open_calls, half_open_calls >= 1)
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
        self._window: _CountWindow | _TimeWindow = self._new_window()
        self._permits = 0
        self._open_until = 0.0
        self._refused = 0
        self._hooks: list[Transition] = []
        self._entered: ContextVar[_Stack] = ContextVar("ag06_breaker", default=None)

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
            self._window = _CountWindow(self._half_open_calls)
        elif state == "open":
            self._open_until = self._clock() + self._open_seconds
        else:
            self._window = self._new_window()
        return left

    def _new_window(self) -> _CountWindow | _TimeWindow:
        return _CountWindow(self._window_size) if self._window_seconds is None else _TimeWindow(self._window_seconds)

    def _tell(self, left: BreakerState, entered: BreakerState) -> None:
        if left == entered:
            return
        for hook in self._hooks:
            try:
                hook(self.name, left, entered)
            except Exception:
                _logger.exception("a hook of circuit breaker %s failed on %s -> %s", self.name, left, entered)

    # Calls

    def _acquire(self) -> _Permit:
        """Let a call begin, or raise `CircuitOpen`."""
        generation = self._generation  # read before the state: if it changes in between, the call counts nowhere
        if self._state == "closed":
            return (generation, self._clock() if self._timed else 0.0)
        left: BreakerState | None = None
        with self._lock:
            now = self._clock()
            if self._state == "open" and now >= self._open_until:
                left = self._enter("half_open")
            permit = (self._generation, now)
            wait = self._refusal(now)
            if wait is not None:
                self._refused += 1
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
        if error is not None and (not isinstance(error, Exception) or isinstance(error, self._ignore)):
            counts, outcome = isinstance(error, self._record) and not isinstance(error, self._ignore), _FAILED
        else:
            counts, outcome = True, _FAILED if error is not None and isinstance(error, self._record) else 0
        now = 0.0
        if self._timed:
            now = self._clock()
            if self._slow_seconds is not None and now - permit[1] >= self._slow_seconds:
                outcome |= _SLOW
        left: BreakerState | None = None
        with self._lock:
            if permit[0] != self._generation:
                return
            state = self._state
            if not counts:
                self._permits += state == "half_open"
                return
            if state == "disabled":
                return
            self._window.add(outcome, now)
            verdict = self._verdict(state)
            if verdict is not None:
                left = self._enter(verdict)
        if left is not None and verdict is not None:
            self._tell(left, verdict)

    def _verdict(self, state: BreakerState) -> BreakerState | None:
        """Return the state that follows from the window, if another does; lock held."""
        window = self._window
        if state == "closed":
            if not (window.failures or window.slow) or window.calls < self._minimum:
                return None
            return "open" if self._exceeds(window) else None
        if state == "half_open" and window.calls >= self._half_open_minimum:
            return "open" if self._exceeds(window) else "closed"
        return None

    def _exceeds(self, window: _CountWindow | _TimeWindow) -> bool:
        if window.failures >= self._failure_rate * window.calls:
            return True
        return self._slow_seconds is not None and window.slow >= self._slow_rate * window.calls

    # Ways to use it

    def __enter__(self) -> CircuitBreaker:
        self._entered.set((self._acquire(), self._entered.get()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entered = self._entered.get()
        if entered is None:  # left in another context than it was entered in, as a generator can
            return
        permit, outer = entered
        self._entered.set(outer)
        self._finish(permit, error)

    async def __aenter__(self) -> CircuitBreaker:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: F) -> F:
        """Guard every call of a function, plain or async."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return guarded_async  # type: ignore[return-value]

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return guarded  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"CircuitBreaker(name={self.name!r}, state={self._state!r})"


def _check(name: str | None, setting: str, value: object, holds: bool) -> None:
    accepted = {
        "window": "1 call or more",
        "window_seconds": "above 0 and up to 86400 s, or None",
        "minimum_calls": "1 call or more",
        "failure_rate": "above 0 and up to 1",
        "slow_call_seconds": "above 0 s, or None",
        "slow_call_rate": "above 0 and up to 1",
        "open_seconds": "0 s or more",
        "half_open_calls": "1 call or more",
    }
    if not holds:
        raise ConfigurationError(f"circuit breaker {name or '(unnamed)'}: {setting}={value}; {accepted[setting]}")
