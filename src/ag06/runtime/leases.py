"""Renewal of a worker's leases from a thread of its own, for as long as its event loop turns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ag06.persistence.log import Subscription
from ag06.runtime.heartbeat import Heartbeat
from ag06.runtime.renewals import Renewals

_logger = logging.getLogger("ag06.runtime")


class LeaseKeeper(threading.Thread):
    """Renews every subscription three times in a visibility timeout.

    It stops while the event loop has not turned for a visibility timeout: other workers take over what waits here.
    """

    def __init__(
        self, subscriptions: Sequence[Subscription], visibility: float, heartbeat: Heartbeat | None = None
    ) -> None:
        """Renew `subscriptions`, whose leases last `visibility` seconds, while the loop of `heartbeat` turns."""
        super().__init__(name="ag06-leases", daemon=True)
        self._subscriptions = tuple(subscriptions)
        self._interval = visibility / 3
        self._heartbeat = heartbeat
        self.renewals = Renewals(visibility)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Renew until stopped."""
        warned = False
        while not self._stopped.wait(self._interval):
            if self._heartbeat is not None and self._heartbeat.is_late:
                if not warned:
                    _logger.warning(
                        "the event loop has not turned for %.1f s: leases are not renewed, other workers take over",
                        self._heartbeat.age,
                    )
                warned = True
                continue
            warned = False
            for subscription in self._subscriptions:
                self.renewals.renew(subscription)

    def stop(self) -> None:
        """Renew no more; returns at once."""
        self._stopped.set()
