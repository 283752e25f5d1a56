"""How long the operations of a store take, and how many events go through one: the same names on every store.

An operation is what the store does at once, such as a transaction or a call of a script, however many callers share it.
Waiting for events is none, nor is one that the store did not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from ag06.monitoring.instruments import BATCH_SIZE, STORE_OPERATION
from ag06.persistence.log import Settlement, deliveries_of

begin = perf_counter
"""Return what `Measured.done` takes: when an operation began."""


class Measured:
    """One kind of operation. May be used by any thread."""

    __slots__ = ("_observe", "_size")

    def __init__(self, name: str, *, carries: bool = False) -> None:
        """Bind the metrics of operations called `name`; `carries`: events go through them."""
        self._observe = STORE_OPERATION.labels(name).observe
        self._size = BATCH_SIZE.labels(name).observe if carries else None

    def done(self, began: float, events: int = 0) -> None:
        """Count an operation that ends now, with so many events."""
        self._observe(perf_counter() - began)
        if events and self._size is not None:
            self._size(float(events))

    def carried(self, events: int) -> None:
        """Count the events of an operation whose time is counted elsewhere, or went by waiting for them."""
        if events and self._size is not None:
            self._size(float(events))


APPEND, FETCH, COMMIT = (Measured(name, carries=True) for name in ("append", "fetch", "commit"))
START, RELEASE, RENEW = (Measured(name) for name in ("start", "release", "renew"))
REPLAY, STATS, MAINTAIN = (Measured(name) for name in ("replay", "stats", "maintain"))


def settled_by(settlements: Sequence[Settlement]) -> int:
    """Return how many deliveries these settle."""
    return sum([len(deliveries_of(one)) for one in settlements])
