"""What a replay asks for, of the live log and of its archives alike."""

from __future__ import annotations

from typing import Any

import msgspec

from ag06.event import Event
from ag06.persistence.archive.manifest import Entry, Segment

END = (1 << 63) - 1
"""Behind every position."""

Placed = tuple[int, Event[Any]]
"""An event and its position in the log."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Positions above `after` up to `last`, recorded in `[start_ms, end_ms)`, of some types, sources, a correlation."""

    after: int = -1
    last: int = END
    start_ms: int = 0
    end_ms: int | None = None
    types: frozenset[str] | None = None
    sources: frozenset[str] | None = None
    correlation_id: str | None = None

    def touches(self, part: Entry | Segment) -> bool:
        """Whether something of a manifest or a segment may be selected."""
        return (
            part.last > self.after
            and part.first <= self.last
            and part.last_ms >= self.start_ms
            and (self.end_ms is None or part.start_ms < self.end_ms)
            and (self.types is None or isinstance(part, Entry) or not self.types.isdisjoint(part.types))
        )

    def wants(self, event: Event[Any]) -> bool:
        """Whether an event of the range and of the types is of the sources and the correlation."""
        return (self.sources is None or event.source in self.sources) and (
            self.correlation_id is None or event.correlation_id == self.correlation_id
        )


EVERYTHING = Selection()
