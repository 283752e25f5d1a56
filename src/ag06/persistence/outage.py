"""Says in the log that a store is away: once, now and then while it lasts, and once when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_logger = logging.getLogger("ag06.persistence")
_INTERVAL = 10.0


class Outage:
    """What one who waits for a store says about it. Tries may follow each other fast; lines in the log do not."""

    def __init__(self, who: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Speak for `who`; `clock` in seconds."""
        self._who = who
        self._clock = clock
        self._since: float | None = None
        self._said = 0.0

    def failed(self, error: BaseException) -> None:
        """Note a try that failed."""
        now = self._clock()
        if self._since is None:
            self._since = self._said = now
            _logger.warning("%s waits for the store: %s", self._who, error)
        elif now - self._said >= _INTERVAL:
            self._said = now
            _logger.warning("%s still waits for the store, for %.0f s now: %s", self._who, now - self._since, error)

    def over(self) -> None:
        """Note a try that went well."""
        if self._since is not None:
            _logger.warning("%s: the store is back after %.1f s", self._who, self._clock() - self._since)
            self._since = None
