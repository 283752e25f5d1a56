"""One run: what is settled leaves the live log once it was written, read back and made known, and not before."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

import msgspec

from ag06.errors import ArchiveDamaged, ConfigurationError
from ag06.event import from_millis
from ag06.ids import new_id
from ag06.knob import Knob
from ag06.persistence.archive.compression import compression_level
from ag06.persistence.archive.leading import leading
from ag06.persistence.archive.manifest import Manifest, encode
from ag06.persistence.archive.mending import clear, look_back, speaks_of
from ag06.persistence.archive.merging import Merger
from ag06.persistence.archive.one_thread import OneThread
from ag06.persistence.archive.reading import Missing, verify
from ag06.persistence.archive.storage import Storage, open_storage
from ag06.persistence.log import Cut, EventLog, Query, Stored
from ag06.persistence.stores import masked
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06.persistence.archive.batch import BatchWriter, Stream

_logger = logging.getLogger("ag06.persistence")

ROLE = "archive"
"""What a process leads that archives, or deletes archives."""

_PIECE_BYTES = 4 << 20
_PIECE_EVENTS = 20_000
_MOST_QUERIES = 16

Stage = Literal["waiting", "writing", "written", "verified", "registered", "dropped"]


class Progress(msgspec.Struct, frozen=True):
    """How far a run is: the stage of its present batch, and the events written so far."""

    stage: Stage
    events: int


Watch = Callable[[Progress], None]


class Archived(msgspec.Struct, frozen=True):
    """What one call archived.

    Attributes:
        url: the folder of this log in the archive; the archive's own URL while it has none.
        files: the URLs of the segments, Parquet files.
        events: how many events they hold.
        start: when the first of them was recorded; `None`: there was nothing to archive.
        end: just after the last of them was recorded, so that `[start, end)` has them all.
    """

    url: str
    files: tuple[str, ...] = ()
    events: int = 0
    start: dt.datetime | None = None
    end: dt.datetime | None = None


def _silent(_: Progress) -> None:
    pass


async def archive_settled(
    log: EventLog,
    before_ms: int,
    url: str,
    types: Sequence[str] | None = None,
    *,
    without: frozenset[str] = frozenset(),
    holder: str | None = None,
    wait: bool = True,
    only_if_any: bool = False,
    watch: Watch | None = None,
    compression: Knob | None = None,
) -> Archived | None:
    """Archive what was recorded before `before_ms` and is settled, of some types or all but those in `without`.

    Returns `None` if another process archives this log now and it is not to `wait` for that; also, without a look at
    the archive, if nothing is settled and that is asked for by `only_if_any`. Raises `ArchiveUnavailable` or
    `ConfigurationError` if the archive cannot be written or does not read back: what it was to take is in the log then.
    What it writes is compressed as `compression` says, which may move meanwhile.
    """

    async def settled() -> list[Cut]:
        return [cut for cut in await log.settled(before_ms, types) if cut.type not in without]

    if only_if_any and not await settled():
        return None
    watch = watch or _silent
    thread = OneThread("ag06-archive")
    try:
        storage = await thread.call(open_storage, url)
        watch(Progress("waiting", 0))
        async with leading(log, ROLE, holder or new_id(), wait=wait) as led:
            if not led:
                return None
            name = await _folder_of(log, storage)
            if name is None and not await settled():
                return Archived(storage.url)
            home = await _home(log, storage, name, thread)
            run = _Run(log, home, thread, watch, compression or compression_level())
            await run.mend()
            await run.archive(await settled())
            return run.result()
    finally:
        thread.close()


async def _folder_of(log: EventLog, storage: Storage) -> str | None:
    """Return the name of the folder that the log has in this archive; `None` before its first run there."""
    base = storage.url.rstrip("/") + "/"
    names = [url.removeprefix(base).rstrip("/") for url in await log.archives() if url.startswith(base)]
    return next((name for name in names if name and "/" not in name), None)


async def _home(log: EventLog, storage: Storage, name: str | None, thread: OneThread) -> Storage:
    """Return the folder that is this log's alone, written to once so that what cannot work fails now."""
    home = storage.folder(name or new_id())
    await thread.call(home.write, "about.json", b'{"what":"events archived by ag06","format":1}\n')
    if name is None:
        await log.add_archive(home.url + "/")
    return home


class _Run:
    def __init__(self, log: EventLog, home: Storage, thread: OneThread, watch: Watch, compression: Knob) -> None:
        self._log = log
        self._home = home
        self._thread = thread
        self._watch = watch
        self._compression = compression
        self._written = 0
        self._done: list[Manifest] = []
        self._reached: dict[Stream, int] = {}

    def result(self) -> Archived:
        done = [segment for manifest in self._done for segment in manifest.segments]
        if not done:
            return Archived(self._home.url)
        return Archived(
            self._home.url,
            tuple(self._home.file_url(segment.path) for segment in done),
            sum(segment.events for segment in done),
            from_millis(min(segment.start_ms for segment in done)),
            from_millis(max(segment.last_ms for segment in done) + 1),
        )

    def _tell(self, stage: Stage) -> None:
        self._watch(Progress(stage, self._written))

    async def mend(self) -> None:
        """Finish what a run before this one left: what its manifests name was written, so it may leave the log."""
        left = await look_back(self._log, self._home, self._thread)
        kept: list[Manifest] = []
        damaged: list[Manifest] = []
        for manifest in (*left.undropped, *left.unknown):
            try:
                if manifest in left.unknown and not await speaks_of(self._log, self._home, self._thread, manifest):
                    raise ConfigurationError(
                        f"archive {masked(self._home.file_url(manifest.path))} has events that this log never had: a "
                        "copy of the log archives there too; give this one the URL of another archive"
                    )
                kept.append(await self._keep(manifest.run))
            except (ArchiveDamaged, Missing) as error:
                _logger.error("%s; its events stay in the live log", error)  # noqa: TRY400 - the run goes on
                damaged.append(manifest)
                if manifest in left.unknown:
                    await self._thread.call(self._home.set_aside, manifest.path)
        self._done += [manifest for manifest in kept if manifest in left.unknown]
        await self._thread.call(clear, self._home)
        if left.unreadable:
            return  # the log may have events that only it speaks of: whatever is there is archived, if once more
        again = {(cut.type, cut.level) for manifest in damaged for cut in manifest.cuts}
        reached = left.reached | {(cut.type, cut.level): cut.below for one in self._done for cut in one.cuts}
        self._reached = {stream: below for stream, below in reached.items() if stream not in again}
        for manifest in kept:
            # A cut takes all that lies before it, with what a damaged manifest was to have: that is archived anew.
            cuts = tuple(cut for cut in manifest.cuts if (cut.type, cut.level) not in again)
            await self._drop(msgspec.structs.replace(manifest, cuts=cuts))

    async def archive(self, cuts: Sequence[Cut]) -> None:
        """Write one manifest's segments after the other's; what one names leaves the log while the next is written."""
        ranges = {(cut.type, cut.level): range(self._reached.get((cut.type, cut.level), 0), cut.below) for cut in cuts}
        writer = await self._thread.call(_writer, self._home, ranges, self._compression)
        queries = _queries(cuts)
        dropping: asyncio.Task[None] | None = None
        try:
            for start in range(0, len(queries), _MOST_QUERIES):
                async with aclosing(self._manifests(writer, queries[start : start + _MOST_QUERIES])) as written:
                    async for manifest in written:
                        kept = await self._keep(manifest.run)
                        self._done.append(kept)
                        if dropping is not None:
                            await dropping
                        dropping = start_task(self._drop(kept), "ag06 archive drop")
            if dropping is not None:
                await dropping
        finally:
            await self._thread.call(writer.close)
            if dropping is not None:
                dropping.cancel()  # it may take long; the next run goes on with it
                await asyncio.wait([dropping])

    async def _manifests(self, writer: BatchWriter, queries: Sequence[Query]) -> AsyncGenerator[Manifest]:
        """Write what the queries find; yield each manifest once it is written as well."""
        async with aclosing(_pieces([self._log.read(query) for query in queries])) as pieces:
            async for piece in pieces:
                await self._thread.call(writer.add, piece)
                self._written = writer.events
                self._tell("writing")
                if writer.full and (manifest := await self._finish(writer)) is not None:
                    yield manifest
        if (manifest := await self._finish(writer)) is not None:
            yield manifest

    async def _finish(self, writer: BatchWriter) -> Manifest | None:
        manifest = await self._thread.call(writer.finish)
        self._written = writer.events
        if manifest is not None:
            await self._thread.call(self._home.write, manifest.path, encode(manifest))
            self._tell("written")
        return manifest

    async def _keep(self, run: str) -> Manifest:
        """Read back what a run wrote, then let the log know of it."""
        manifest = await self._thread.call(verify, self._home, run)
        self._tell("verified")
        await self._log.add_archive(manifest.entry(self._home.url + "/").url)
        self._tell("registered")
        return manifest

    async def _drop(self, manifest: Manifest) -> None:
        for cut in manifest.cuts:
            await self._log.drop(cut)
        self._tell("dropped")


def _writer(home: Storage, ranges: dict[Stream, range], compression: Knob) -> BatchWriter:
    from ag06.persistence.archive.batch import BatchWriter  # pyarrow takes its time, and a thread to spend it in

    return BatchWriter(home, ranges, compression)


def _queries(cuts: Sequence[Cut]) -> list[Query]:
    """Return what to read: types that are cut at the same place at once, so that few streams need merging."""
    belows: dict[str, int] = {}
    for cut in cuts:
        belows[cut.type] = max(cut.below, belows.get(cut.type, 0))
    together: dict[int, list[str]] = {}
    for event_type, below in belows.items():
        together.setdefault(below, []).append(event_type)
    return [Query(types=tuple(types), below=below) for below, types in sorted(together.items())]


async def _pieces(sources: Sequence[AsyncIterator[list[Stored]]]) -> AsyncGenerator[list[Stored]]:
    """Yield what the sources have in the order of the log, in pieces that are worth a turn of the thread."""
    merger: Merger[Stored] = Merger(attrgetter("position"))
    for source in sources:
        merger.add(-1, source)
    piece: list[Stored] = []
    size = 0
    try:
        async for page in merger.pages():
            piece += page
            size += sum([len(stored.body) for stored in page])
            if size >= _PIECE_BYTES or len(piece) >= _PIECE_EVENTS:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece
    finally:
        await merger.close()
