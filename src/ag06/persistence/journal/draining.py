"""Draining: records go from a journal to the store, in order, each once; what it refuses for good is set aside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ag06.errors import ConfigurationError, StoreUnavailable
from ag06.persistence.journal.dead_letter_file import CLASHED, Letters, Refusal
from ag06.persistence.journal.entries import Entry
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.journal.late import Candidate, candidate, find_late
from ag06.persistence.journal.page import Page
from ag06.persistence.log import Appended, Disconnected, EventLog, Record
from ag06.persistence.published import count

_logger = logging.getLogger("ag06.persistence.journal")

_NEWS = (Appended.DUPLICATE, Appended.CLASH)
"""What nobody has counted yet: an event counts as stored when a journal has taken it."""
_JUDGED_AHEAD = 100_000
"""Records whose late duplicates are looked for in one turn over the log."""
_DISCONNECTIONS = 3
"""How often the server closes the connection on one event before that is a refusal."""
_CONTROLS = 3
"""Other events that are sent to learn whether the store refuses one event or all."""
_MOST_UNPROVED = 10
"""Events set aside one after the other while the store has taken none: beyond that it is the store that is ill."""


def is_refusal(error: Exception) -> bool:
    """Whether an error may be about the records that were sent, and not about the store as a whole."""
    return isinstance(error, Disconnected) or not isinstance(error, (StoreUnavailable, ConfigurationError))


class Draining:
    """Hands records on to the store and counts what became of them."""

    def __init__(self, inner: EventLog, clock: Callable[[], float], letters: Letters) -> None:
        """Drain to `inner`; `clock` gives seconds since the epoch; `letters` take what it refuses for good."""
        self._inner = inner
        self._clock = clock
        self._letters = letters
        self._page = Page()
        self._judged: tuple[JournalFile, int] | None = None
        self._late_ids: set[str] = set()
        self._tried: dict[str, int] = {}  # how often one event alone was refused, until it is stored or set aside
        self._unproved = 0
        self.late = 0
        """Duplicates that were dropped."""
        self.found_late = 0
        """Those of them that the store does not know of, as it has forgotten what they equal."""
        self.refused = 0
        """Events that were set aside."""

    async def some(self, file: JournalFile, *, leave_last: bool = False) -> bool:
        """Hand on the next page of a journal; return whether there was one.

        `leave_last`: only if more is left than can be sent within about a second. Raises `StoreUnavailable`, or what
        else says that the store takes nothing now.
        """
        entries = await file.read(limit=self._page.events)
        if not entries or (leave_last and len(entries) == file.events and self._page.passes_soon(_records(entries))):
            return False
        await self._judge(file, entries)
        while True:
            kept = [entry for entry in entries if entry.record.id not in self._late_ids]
            try:
                outcomes = await self._timed(kept)
            except Exception as error:
                if not is_refusal(error):
                    raise
                if len(entries) > 1:
                    entries = entries[: len(entries) // 2]
                    continue
                await self._refused(file, entries[0], error)
            else:
                await self._done(file, entries, kept, outcomes)
            return True

    async def _timed(self, entries: Sequence[Entry]) -> list[Appended]:
        """Send entries, and learn from it how many to send at once."""
        records = _records(entries)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            outcomes = await self.send(records, synced=any(entry.synced for entry in entries))
        except BaseException:
            self._page.failed(records, clock() - began)
            raise
        if records:
            self._page.passed(records, clock() - began)
            self._tried.clear()
            self._unproved = 0
        return outcomes

    async def _done(
        self, file: JournalFile, entries: Sequence[Entry], kept: Sequence[Entry], outcomes: Sequence[Appended]
    ) -> None:
        """Note in the journal what became of entries that follow each other, and count what nobody has counted."""
        for entry, outcome in zip(kept, outcomes, strict=True):
            if outcome is Appended.CLASH:
                await self._set_aside(entry, CLASHED)
        await file.mark([entry.number for entry in entries])
        self.late += len(entries) - len(kept)
        self.found_late += len(entries) - len(kept)
        for entry, outcome in zip(kept, outcomes, strict=True):
            if outcome in _NEWS:
                count(entry.record.type, outcome)
        for entry in entries:
            if entry.record.id in self._late_ids:
                count(entry.record.type, Appended.DUPLICATE)

    async def send(self, records: Sequence[Record], *, synced: bool) -> list[Appended]:
        """Append records that their publishers hold for stored; raise `StoreUnavailable` if that is to be repeated."""
        if not records:
            return []
        outcomes = await self._append(records, synced=synced)
        self.late += outcomes.count(Appended.DUPLICATE)
        return outcomes

    async def _append(self, records: Sequence[Record], *, synced: bool) -> list[Appended]:
        """Append records, without `synced` where the store cannot give that."""
        try:
            return await self._inner.append(records, durability="fsync" if synced else None)
        except ConfigurationError as error:
            if not synced:
                raise
            _logger.error("the journal's events are less durable in the store than was asked for: %s", error)  # noqa: TRY400
            return await self._inner.append(records)

    # What the store refuses

    async def _refused(self, file: JournalFile, entry: Entry, error: Exception) -> None:
        """Set an event aside that was refused alone; raise `error` if that may be no fault of the event."""
        tried = self._tried[entry.record.id] = self._tried.get(entry.record.id, 0) + 1
        cut_off = isinstance(error, Disconnected)
        if cut_off and tried < _DISCONNECTIONS:
            raise error
        if not await self._takes_another(file, entry):
            self._unproved += 1
            if self._unproved > _MOST_UNPROVED:
                raise error
            await self._inner.open()  # the server answers, and its user may do what a log needs
        refusal = Refusal(
            "disconnected" if cut_off else "refused", type(error).__name__, str(error) or repr(error), tried
        )
        await self._set_aside(entry, refusal)
        await file.mark([entry.number])
        count(entry.record.type, Appended.CLASH)
        self._tried.pop(entry.record.id, None)

    async def _takes_another(self, file: JournalFile, refused: Entry) -> bool:
        """Return whether the store takes another event of this journal: then it refused this one, and not all."""
        for entry in self._controls(refused, await file.read(refused.number)):
            try:
                await self._append([entry.record], synced=entry.synced)
            except Exception as error:
                if not is_refusal(error):
                    raise
            else:  # it is sent once more in its turn, and its outcome counts then: the store knows its id by now
                self._unproved = 0
                return True
        return False

    def _controls(self, refused: Entry, following: Sequence[Entry]) -> list[Entry]:
        """Return a few events that may go first: nothing of their subjects waits before them.

        Preferred are those of another type, which the server keeps apart, and small ones.
        """
        subjects = {refused.record.subject} - {None}
        last = self._judged[1] if self._judged is not None else -1
        found = []
        for entry in following:
            record = entry.record
            if record.subject in subjects or record.id in self._late_ids or entry.number > last:
                continue
            found.append(entry)
            if record.subject is not None:
                subjects.add(record.subject)
        found.sort(key=lambda entry: (entry.record.type == refused.record.type, len(entry.record.body)))
        return found[:_CONTROLS]

    async def _set_aside(self, entry: Entry, refusal: Refusal) -> None:
        """Keep an event as a dead letter of the journal, durably, before the journal lets go of it."""
        now_ms = int(self._clock() * 1000)
        await asyncio.to_thread(self._letters.keep, entry.record, refusal, now_ms, synced=entry.synced)
        self.refused += 1
        _logger.error(
            "event %s of type %s was refused for good (%s) and is set aside; see: ag06 journal show %s",
            entry.record.id,
            entry.record.type,
            refusal.message,
            entry.record.id,
        )

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
        self._late_ids = await self._late(candidates)
        self._judged = (file, last)

    async def _late(self, candidates: Sequence[Candidate]) -> set[str]:
        """Return the ids of late duplicates; events of a type that the store cannot read are judged by its append."""
        try:
            return await find_late(self._inner, candidates, int(self._clock() * 1000))
        except Exception as error:
            if not is_refusal(error):
                raise
        types = {found.type for found in candidates}
        if len(types) == 1:
            return set()
        late: set[str] = set()
        for event_type in sorted(types):
            late |= await self._late([found for found in candidates if found.type == event_type])
        return late


def _records(entries: Sequence[Entry]) -> list[Record]:
    return [entry.record for entry in entries]
