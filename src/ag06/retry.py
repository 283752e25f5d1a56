"""When a failed event is tried again: full-jitter exponential backoff and a budget for the whole workflow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import msgspec

from ag06.errors import ConfigurationError


class Retry(msgspec.Struct, frozen=True):
    """How often and how soon a failed event is tried again.

    The wait before attempt n + 1 is uniform between 0 and `min(maximum, initial * 2 ** (n - 1))` seconds: "full
    jitter" (Brooker, "Exponential Backoff And Jitter", AWS 2015).

    Attributes:
        attempts: how often the step is run at most, the first time included.
        initial: upper bound of the first wait, in seconds.
        maximum: upper bound of any wait, in seconds.
        on: which exceptions are worth another attempt, and `RetryAfter`; any other ends in the dead letters at once.
            `Exception` stands for whatever a step can raise.
    """

    attempts: int = 5
    initial: float = 0.1
    maximum: float = 60.0
    on: tuple[type[BaseException], ...] | type[BaseException] = (Exception,)

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool) or self.attempts < 1:
            raise ConfigurationError(
                f"Retry(attempts={self.attempts!r}): a whole number; the first attempt counts, so at least 1"
            )
        numbers = all(isinstance(seconds, (int, float)) for seconds in (self.initial, self.maximum))
        if not numbers or not 0 <= self.initial <= self.maximum:
            raise ConfigurationError(
                f"Retry(initial={self.initial!r}, maximum={self.maximum!r}): seconds, 0 <= initial <= maximum"
            )
        try:
            isinstance(None, self.on)
        except TypeError:
            raise ConfigurationError(f"Retry(on={self.on!r}): an exception class, or a tuple of them") from None

    def delay(self, failures: int, rng: random.Random | None = None, at_least: float = 0.0) -> float:
        """Return the seconds to wait after `failures` failed attempts (1 or more), of which `at_least` were asked for.

        The jitter comes on top of those, and is a tenth of them or more: what waits for one server is many events.
        """
        ceiling = min(self.maximum, self.initial * 2.0 ** min(failures - 1, 60))
        return at_least + (rng or _RANDOM).uniform(0, max(ceiling, at_least * _SPREAD))


_SPREAD = 0.1
_RANDOM = random.Random()  # noqa: S311 - jitter, not a secret


RETRIES_PER_SECOND = 10.0
_BUDGET_SECONDS = 10
_HEAD_START = 1.5
_ONE = 1.0 - 1e-9  # shares of a token do not add up exactly


class RetryBudget:
    """Limits retries to a share of first attempts plus a constant rate, so that retries cannot become a storm.

    A token bucket as in Finagle's RetryBudget: each first attempt deposits `share` of a token, time deposits
    `per_second` tokens a second, a retry withdraws one; deposits of both kinds are forgotten after ten seconds. The
    tokens of the first second are there at once, and the next come half a second late: whoever counts retries from a
    little later on sees no more than T seconds' worth in T seconds.
    """

    def __init__(
        self, share: float = 0.2, per_second: float = RETRIES_PER_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`share` in tokens per first attempt, `per_second` in tokens; `clock` in seconds."""
        self._share = share
        self._per_second = per_second
        self._clock = clock
        self._constant = per_second
        self._earned = [0.0] * _BUDGET_SECONDS  # one entry a second, used in turn
        now = clock()
        self._at = now + _HEAD_START  # up to where time has deposited
        self._second = int(now)

    def deposit(self, first_attempts: int = 1) -> None:
        """Count `first_attempts` events that were tried for the first time."""
        second = int(self._clock())
        if second != self._second:
            self._turn_to(second)
        self._earned[second % _BUDGET_SECONDS] += self._share * first_attempts

    def withdraw(self) -> bool:
        """Take one retry out of the budget; `False` when there is none left now."""
        now = self._clock()
        if now > self._at:
            most = _BUDGET_SECONDS * self._per_second
            self._constant = min(self._constant + (now - self._at) * self._per_second, most)
            self._at = now
        if self._constant >= _ONE:
            self._constant -= 1.0
            return True
        self._turn_to(int(now))
        if sum(self._earned) < _ONE:
            return False
        left = 1.0
        for age in range(_BUDGET_SECONDS, 0, -1):  # the oldest first: it is forgotten first
            entry = (self._second - age + 1) % _BUDGET_SECONDS
            taken = min(left, self._earned[entry])
            self._earned[entry] -= taken
            left -= taken
        return True

    def _turn_to(self, second: int) -> None:
        """Forget what was deposited ten seconds before `second` or earlier."""
        for begun in range(max(self._second + 1, second - _BUDGET_SECONDS + 1), second + 1):
            self._earned[begun % _BUDGET_SECONDS] = 0.0
        self._second = second
