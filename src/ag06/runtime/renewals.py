"""Whether the leases of a worker are renewed: what its log and its health say while they are not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from ag06.errors import AG06Error
from ag06.monitoring.probe import HealthResult
from ag06.persistence.log import Subscription

_logger = logging.getLogger("ag06.runtime")


class _Failing(msgspec.Struct):
    """Renewals of one subscription that fail one after the other."""

    since: float
    count: int
    error: str


class Renewals:
    """Renews leases and remembers which cannot be renewed, and for how long."""

    def __init__(self, visibility: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Leases last `visibility` seconds; `clock` in seconds."""
        self._visibility = visibility
        self._clock = clock
        self._failing: dict[Subscription, _Failing] = {}

    def renew(self, subscription: Subscription) -> None:
        """Renew the leases of a subscription. Never raises: who calls it must outlive every error."""
        try:
            subscription.renew()
        except Exception as error:
            failing = self._failing.setdefault(subscription, _Failing(self._clock(), 0, ""))
            failing.count += 1
            failing.error = str(error) or repr(error)
            _logger.warning(
                "leases were not renewed, %d times in a row now; other workers may take the events over: %s",
                failing.count,
                failing.error,
                exc_info=None if isinstance(error, AG06Error) else error,
            )
        else:
            if subscription in self._failing:
                count = self._failing.pop(subscription).count
                _logger.warning("leases are renewed again, after %d failures in a row", count)

    def check(self) -> HealthResult:
        """Warn while leases cannot be renewed; fail once they have ended for that reason."""
        failing = list(self._failing.values())
        if not failing:
            return HealthResult("pass")
        seconds = self._clock() - min(one.since for one in failing)
        words = f"leases are not renewed for {seconds:.0f} s: {failing[0].error}"
        if seconds < self._visibility:
            return HealthResult("warn", words, round(seconds, 3), "unrenewed", "s")
        return HealthResult(
            "fail", f"{words}; other workers take these events over", round(seconds, 3), "unrenewed", "s"
        )
