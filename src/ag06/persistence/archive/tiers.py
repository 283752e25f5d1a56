"""Archive and live log as one ordered stream, whatever a run moves from the one to the other meanwhile."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from operator import itemgetter

import msgspec

from ag06.errors import ArchiveUnavailable
from ag06.event import read_event
from ag06.persistence.archive.manifest import Entry, parse_entry
from ag06.persistence.archive.merging import Merger
from ag06.persistence.archive.one_thread import OneThread
from ag06.persistence.archive.reading import Missing, read_entry
from ag06.persistence.archive.selection import Placed, Selection
from ag06.persistence.log import EventLog, Query

_logger = logging.getLogger("ag06.persistence")
_MOST_PAGES = 8
"""Pages of the live log for which the archives are asked for once."""


async def read_tiers(log: EventLog, selection: Selection, *, salvage: bool = False) -> AsyncGenerator[list[Placed]]:
    """Yield pages of what is selected, in the order of the log, up to what was recorded when the call began.

    An event leaves the live log only when the log knows of the archive that has it. So whatever is missing from a page
    of the live log is in an archive that the log names when it is asked after that page was read.
    """
    tiers = _Tiers(log, selection, salvage)
    try:
        await tiers.begin()
        async for page in tiers.merger.pages():
            yield page
    finally:
        await tiers.close()


class _Tiers:
    def __init__(self, log: EventLog, selection: Selection, salvage: bool) -> None:
        self._log = log
        self._selection = selection
        self._salvage = salvage
        self._known: set[str] = set()
        self._thread = OneThread("ag06-replay")
        self.merger: Merger[Placed] = Merger(itemgetter(0))

    async def begin(self) -> None:
        types = None if self._selection.types is None else tuple(self._selection.types)
        newest = [stored.position async for page in self._log.read(Query(types=types, newest=1)) for stored in page]
        entries = await self._new_entries()
        last = max([*newest, *(entry.last for entry in entries)], default=-1)
        self._selection = msgspec.structs.replace(self._selection, last=last)
        self._add(entries)
        query = Query(start_ms=self._selection.start_ms, end_ms=self._selection.end_ms, types=types, below=last + 1)
        self.merger.add(-1, self._live(query))

    async def close(self) -> None:
        await self.merger.close()
        self._thread.close()

    async def _new_entries(self) -> list[Entry]:
        """Return what the log has archived since it was asked last."""
        urls = [url for url in await self._log.archives() if url not in self._known]
        self._known.update(urls)
        return [entry for entry in map(parse_entry, urls) if entry is not None]

    def _add(self, entries: list[Entry]) -> None:
        rest = msgspec.structs.replace(self._selection, after=self.merger.reached)
        for entry in entries:
            if rest.touches(entry):
                self.merger.add(entry.first, self._archived(entry, rest))

    async def _archived(self, entry: Entry, selection: Selection) -> AsyncIterator[list[Placed]]:
        pages = self._thread.pages(lambda: read_entry(entry, selection, self._salvage))
        try:
            async for page in pages:
                yield page
        except ArchiveUnavailable as error:
            if isinstance(error, Missing) and entry.url not in await self._log.archives():
                return  # the retention deleted it meanwhile, as it would have a moment before the replay
            if not self._salvage:
                _say_what_to_do(error)
                raise
            _logger.error("%s: not read", error)  # noqa: TRY400 - it is read on

    async def _live(self, query: Query) -> AsyncIterator[list[Placed]]:
        held: list[Placed] = []
        pages, most = 0, 1
        async for page in self._log.read(query):
            events = [(stored.position, read_event(stored.body, stored.recorded_ms)) for stored in page]
            held += [placed for placed in events if self._selection.wants(placed[1])]
            pages += 1
            if pages >= most:
                self._add(await self._new_entries())
                if held:
                    yield held
                held, pages, most = [], 0, min(most * 2, _MOST_PAGES)
        self._add(await self._new_entries())
        if held:
            yield held


def _say_what_to_do(error: ArchiveUnavailable) -> None:
    if "salvage=True" not in str(error):
        what = "put it back, replay around it with start and end (--start, --end), or without it with salvage=True"
        error.args = (f"{error}; {what} (--salvage)",)
