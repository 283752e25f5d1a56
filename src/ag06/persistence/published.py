"""What became of events that were handed in: counted by type, each type's counter bound at its first event.

An event that a journal took counts as stored. Where the store turns out to have the same, or another one with its id,
it counts again when the journal is drained: as what it came to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ag06.content import check_name
from ag06.errors import AG06Error, InvalidEvent, OutcomeUnknown
from ag06.monitoring.instruments import DUPLICATES, PUBLISHED
from ag06.monitoring.metrics import MOST_CHILDREN
from ag06.monitoring.names import OTHER
from ag06.persistence.log import Appended, Record

_WORDS = {
    Appended.STORED: "stored",
    Appended.REPEATED: "repeated",
    Appended.DUPLICATE: "duplicate",
    Appended.CLASH: "refused",
    Appended.FULL: "refused",
}


class _Stored(dict[str, Callable[[], None]]):
    """What counts one stored event of a type; bound when it is first asked for."""

    def __missing__(self, event_type: str) -> Callable[[], None]:
        bound = PUBLISHED.labels(event_type, "stored").inc
        if len(self) < MOST_CHILDREN:
            self[event_type] = bound
        return bound


class Published:
    """Counts for one publisher; any number of threads may use it.

    Attributes:
        stored: by type, what to call for one event that is stored.
    """

    def __init__(self) -> None:
        """Bind nothing yet."""
        self.stored = _Stored()

    def many(self, records: Sequence[Record], outcomes: Sequence[Appended]) -> None:
        """Count events that the log has answered to together."""
        seen = Counter(zip([record.type for record in records], outcomes, strict=True))
        for (event_type, outcome), times in seen.items():
            count(event_type, outcome, times)

    def failed(self, event_type: object, error: BaseException) -> None:
        """Count an event that the log may not have got: refused, or unknown where only the answer may be missing."""
        told = isinstance(error, AG06Error) and not isinstance(error, OutcomeUnknown)
        try:
            name = check_name("type", event_type)
        except InvalidEvent:
            name = OTHER
        PUBLISHED.labels(name, "refused" if told else "unknown").inc()


def count(event_type: str, outcome: Appended, times: int = 1) -> None:
    """Count so many events of a type with one outcome."""
    PUBLISHED.labels(event_type, _WORDS[outcome]).inc(times)
    if outcome is Appended.DUPLICATE:
        DUPLICATES.inc(times)
