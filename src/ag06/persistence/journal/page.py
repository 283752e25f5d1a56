"""How much of a journal goes to the store at once: what passes in about a second over the link that there is."""

from __future__ import annotations

from collections.abc import Sequence

from ag06.persistence.log import Record

LARGEST = 500
_GROWS_SECONDS = 0.5
_SHRINKS_SECONDS = 2.0
_SOON_SECONDS = 1.0


class Page:
    """The number of events for the next call, from how the last ones went: halved, down to one, and doubled."""

    def __init__(self) -> None:
        """Begin with the largest page."""
        self.events = LARGEST
        self._rate: float | None = None

    def passed(self, records: Sequence[Record], seconds: float) -> None:
        """Note that the store took these records."""
        self._rate = _size(records) / max(seconds, 0.001)
        if seconds < _GROWS_SECONDS:
            self.events = min(LARGEST, self.events * 2)
        elif seconds > _SHRINKS_SECONDS:
            self.events = max(1, self.events // 2)

    def failed(self, records: Sequence[Record], seconds: float) -> None:
        """Note that the store did not take these records in that time."""
        self._rate = min(self._rate or float("inf"), _size(records) / max(seconds, 0.001))
        self.events = max(1, min(self.events, len(records)) // 2)

    def passes_soon(self, records: Sequence[Record]) -> bool:
        """Return whether these records should be with the store within about a second."""
        return self._rate is None or _size(records) <= self._rate * _SOON_SECONDS


def _size(records: Sequence[Record]) -> int:
    return sum(len(record.body) for record in records)
