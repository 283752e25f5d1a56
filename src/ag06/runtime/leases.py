"""Keeps the leases of a worker alive from a thread of its own, so that a step that blocks the loop is not run twice."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ag06.persistence.log import Subscription
from ag06.runtime.renewals import Renewals


class LeaseKeeper(threading.Thread):
    """Renews every subscription three times in a visibility timeout."""

    def __init__(self, subscriptions: Sequence[Subscription], visibility: float) -> None:
        """Renew `subscriptions`, whose leases last `visibility` seconds."""
        super().__init__(name="ag06-leases", daemon=True)
        self._subscriptions = tuple(subscriptions)
        self._interval = visibility / 3
        self.renewals = Renewals(visibility)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Renew until stopped."""
        while not self._stopped.wait(self._interval):
            for subscription in self._subscriptions:
                self.renewals.renew(subscription)

    def stop(self) -> None:
        """Renew no more; returns at once."""
        self._stopped.set()
