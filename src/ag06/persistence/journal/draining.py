"""Draining: records go from a journal to the store, in order, each once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ag06.errors import ConfigurationError
from ag06.persistence.journal.entries import Entry
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.journal.late import Candidate, candidate, find_late
from ag06.persistence.log import Appended, EventLog, Record
from ag06.persistence.published import count

_logger = logging.getLogger("ag06.persistence.journal")

_NEWS = (Appended.DUPLICATE, Appended.CLASH)
"""What nobody has counted yet: an event counts as stored when a journal has taken it."""
_JUDGED_AHEAD = 100_000
"""Records whose late duplicates are looked for in one turn over the log."""


class Draining:
    """Hands records on to the store and counts what became of them."""

    def __init__(self, inner: EventLog, clock: Callable[[], float]) -> None:
        """Drain to `inner`; `clock` gives seconds since the epoch."""
        self._inner = inner
        self._clock = clock
        self._judged: tuple[JournalFile, int] | None = None
        self._late_ids: set[str] = set()
        self.late = 0
        """Duplicates that were dropped."""
        self.found_late = 0
        """Those of them that the store does not know of, as it has forgotten what they equal."""
        self.refused = 0
        """Events whose id the store has with other content."""

    async def some(self, file: JournalFile, *, leave_last: bool = False) -> bool:
        """Hand on the next page of a journal; return whether there was one. `leave_last`: only if it is a full one."""
        entries = await file.read()
        if not entries or (leave_last and len(entries) == file.events):
            return False
        await self._judge(file, entries)
        kept = [entry.record for entry in entries if entry.record.id not in self._late_ids]
        self.late += len(entries) - len(kept)
        self.found_late += len(entries) - len(kept)
        outcomes = await self.send(kept, synced=any(entry.synced for entry in entries))
        await file.mark([entry.number for entry in entries])
        for record, outcome in zip(kept, outcomes, strict=True):
            if outcome in _NEWS:
                count(record.type, outcome)
        for entry in entries:
            if entry.record.id in self._late_ids:
                count(entry.record.type, Appended.DUPLICATE)
        return True

    async def send(self, records: Sequence[Record], *, synced: bool) -> list[Appended]:
        """Append records that their publishers hold for stored; raise `StoreUnavailable` if that is to be repeated."""
        if not records:
            return []
        try:
            outcomes = await self._inner.append(records, durability="fsync" if synced else None)
        except ConfigurationError as error:
            if not synced:
                raise
            _logger.error("the journal's events are less durable in the store than was asked for: %s", error)  # noqa: TRY400
            outcomes = await self._inner.append(records)
        for record, outcome in zip(records, outcomes, strict=True):
            if outcome is Appended.DUPLICATE:
                self.late += 1
            elif outcome is Appended.CLASH:
                self.refused += 1
                _logger.error(
                    "event %s is in the store already with other content; the journal's is dropped", record.id
                )
        return outcomes

    async def _judge(self, file: JournalFile, entries: Sequence[Entry]) -> None:
        """Look for late duplicates among the entries that come next, unless that was done."""
        if self._judged is not None and self._judged[0] is file and self._judged[1] >= entries[-1].number:
            return
        self._late_ids = set()
        candidates: list[Candidate] = []
        page, last = entries, entries[-1].number
        while page:
            candidates += [found for entry in page if (found := candidate(entry.record)) is not None]
            last = page[-1].number
            if last - entries[0].number >= _JUDGED_AHEAD:
                break
            page = await file.read(last)
        self._late_ids = await find_late(self._inner, candidates, int(self._clock() * 1000))
        self._judged = (file, last)
