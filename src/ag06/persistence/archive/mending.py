"""What a run that was killed left behind: manifests to finish, deletions to finish, files that nothing names."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable

import msgspec

from ag06.errors import ArchiveDamaged
from ag06.event import from_millis, id_and_subject
from ag06.persistence.archive.manifest import FOLDER, Entry, Manifest, parse_entry
from ag06.persistence.archive.one_thread import OneThread
from ag06.persistence.archive.reading import Missing, read_entry, read_manifest
from ag06.persistence.archive.selection import Selection
from ag06.persistence.archive.storage import CORRUPT, PARTIAL, Storage
from ag06.persistence.log import EventLog, Query
from ag06.persistence.stores import masked

_logger = logging.getLogger("ag06.persistence")
DELETED = ".deleted"
"""A manifest beside which a file of this suffix lies is being deleted."""

_DOUBTFUL = 2
"""Runs are one after the other and each mends first, so only the last manifests may still have events in the log."""


class Left(msgspec.Struct, frozen=True):
    """What earlier runs left.

    Attributes:
        unknown: manifests that the log does not know of, so that it has their events still.
        undropped: those that it knows of, some of whose events it has nevertheless.
        unreadable: whether a manifest of either kind is damaged, so that nobody knows which events it speaks of.
        reached: up to where the last runs archived streams; an event before that is in an archive, if in the log too.
    """

    unknown: tuple[Manifest, ...]
    undropped: tuple[Manifest, ...]
    unreadable: bool
    reached: dict[tuple[str, int], int]


async def look_back(log: EventLog, home: Storage, thread: OneThread) -> Left:
    """Finish deletions, then say what else an earlier run left."""
    known = {entry.run: entry for entry in map(parse_entry, await log.archives()) if entry is not None}
    files = await thread.call(home.list)
    deleted = runs_of(files, DELETED)
    _say_what_is_gone(files, home, [entry for run, entry in known.items() if run not in deleted])
    for run in sorted(deleted):
        await finish_deletion(log, home, thread, run, known.get(run))
    runs = sorted(runs_of(files, ".json") - deleted)
    last = [run for run in runs if run in known][-_DOUBTFUL:]
    found = {run: await _readable(home, thread, run) for run in runs if run not in known or run in last}
    unknown = [manifest for run, manifest in found.items() if manifest is not None and run not in known]
    doubtful = [manifest for run, manifest in found.items() if manifest is not None and run in known]
    reached = {(cut.type, cut.level): cut.below for manifest in doubtful for cut in manifest.cuts}
    undropped = [manifest for manifest in doubtful if await _in_log(log, manifest)]
    return Left(tuple(unknown), tuple(undropped), None in found.values(), reached)


def _say_what_is_gone(files: Iterable[str], home: Storage, entries: Iterable[Entry]) -> None:
    """Warn of runs that archived here of which there is no manifest, or no segment at all."""
    files = list(files)
    names = {path.removesuffix(CORRUPT) for path in files}
    whole = runs_of(files, ".json") & {_run_of(path) for path in names if path.endswith(".parquet")}
    gone = [entry for entry in entries if entry.folder == home.url + "/" and entry.run not in whole]
    if gone:
        start, last = min(entry.start_ms for entry in gone), max(entry.last_ms for entry in gone)
        _logger.warning(
            "archive %s: files of %d earlier runs are gone (events recorded from %s to %s), such as %s; put them back: "
            "replays of that range fail without them",
            masked(home.url),
            len(gone),
            from_millis(start).isoformat(),
            from_millis(last).isoformat(),
            masked(home.file_url(gone[0].path)),
        )


async def _readable(home: Storage, thread: OneThread, run: str) -> Manifest | None:
    """Return a manifest; one that is damaged is said in the log and left alone, and so are the events it speaks of."""
    try:
        return await thread.call(read_manifest, home, run)
    except ArchiveDamaged as error:
        _logger.error("%s", error)  # noqa: TRY400 - whoever reads its range is told as well
        return None


async def _in_log(log: EventLog, manifest: Manifest) -> bool:
    """Whether the live log still has something that a manifest names."""
    for cut in manifest.cuts:
        async for page in log.read(Query(types=(cut.type,), level=cut.level, below=cut.below)):
            if page:
                return True
    return False


async def speaks_of(log: EventLog, home: Storage, thread: OneThread, manifest: Manifest) -> bool:
    """Whether a manifest that the log does not know of is its own, not that of a copy of it which archives here too.

    Both have the same events up to where they parted: so it is enough to find the newest that each cut would take.
    """
    entry = manifest.entry(home.url + "/")
    for cut in manifest.cuts:
        query = Query(types=(cut.type,), level=cut.level, below=cut.below, newest=1)
        newest = [stored async for page in log.read(query) for stored in page][-1:]
        for stored in newest:
            place = Selection(after=stored.position - 1, last=stored.position)
            if id_and_subject(stored.body)[0] not in await thread.call(_ids, entry, place):
                return False
    return True


def _ids(entry: Entry, selection: Selection) -> list[str]:
    return [event.id for page in read_entry(entry, selection) for _, event in page]


async def finish_deletion(log: EventLog, home: Storage, thread: OneThread, run: str, entry: Entry | None) -> None:
    """Delete what a manifest names, and it: the log forgets it first, so that nobody looks for what is gone."""
    if entry is not None:
        await log.remove_archive(entry.url)
    await thread.call(_delete_files, home, run)


def _delete_files(home: Storage, run: str) -> None:
    try:
        segments = read_manifest(home, run).segments
    except (Missing, ArchiveDamaged):
        paths = [path for path in home.list() if _is_segment(path, run)]
    else:
        paths = [segment.path for segment in segments]
    for path in paths:
        home.delete(path)
    home.delete(f"{FOLDER}/{run}.json")
    home.delete(f"{FOLDER}/{run}{DELETED}")


def clear(home: Storage) -> None:
    """Delete segments that no manifest names: the run that wrote them was killed before it wrote one. Blocks."""
    files = home.list()
    runs = runs_of(files, ".json") | runs_of(files, DELETED) | runs_of(files, ".json" + CORRUPT)
    for path in files:
        if path.endswith(PARTIAL) or (path.endswith(".parquet") and _run_of(path) not in runs):
            home.delete(path)


def runs_of(files: Iterable[str], suffix: str) -> set[str]:
    """Return the runs that have a manifest, or another file of such a suffix beside it."""
    return {
        posixpath.basename(path).removesuffix(suffix)
        for path in files
        if path.startswith(FOLDER + "/") and path.endswith(suffix)
    }


def _is_segment(path: str, run: str) -> bool:
    return path.endswith(".parquet") and _run_of(path) == run


def _run_of(path: str) -> str:
    return posixpath.basename(path).rpartition("-")[0]
