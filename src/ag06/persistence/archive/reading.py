"""Reading an archive back: every file is checked before anything of it is believed. Everything here blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache

from ag06.errors import ArchiveDamaged, ArchiveUnavailable, StoreError
from ag06.event import from_millis
from ag06.persistence.archive import manifest as manifests
from ag06.persistence.archive.manifest import Entry, Manifest, Segment
from ag06.persistence.archive.selection import EVERYTHING, Placed, Selection
from ag06.persistence.archive.storage import CORRUPT, Storage, open_storage
from ag06.persistence.stores import masked

_logger = logging.getLogger("ag06.persistence")


class Missing(ArchiveUnavailable):
    """A file of an archive is not there: it was lost, or the retention took it a moment ago."""


def read_manifest(storage: Storage, run: str) -> Manifest:
    """Return a manifest as it lies in a log's folder."""
    path = f"{manifests.FOLDER}/{run}.json"
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise Missing(f"archive {masked(storage.file_url(path))} is not there") from None
    try:
        manifest = manifests.decode(data)
        if manifest.run != run:
            raise StoreError(f"it is that of another run, {manifest.run}")
    except StoreError as error:
        url = masked(storage.file_url(path))
        raise ArchiveDamaged(f"archive {url}: {error}; restore the file from a backup", url) from error
    return manifest


@lru_cache(maxsize=256)
def _manifest(folder: str, run: str) -> Manifest:
    """Return a manifest; it never changes, so once is enough."""
    return read_manifest(open_storage(folder), run)


def manifest_of(entry: Entry) -> Manifest:
    """Return the manifest that an entry stands for."""
    try:
        return _manifest(entry.folder, entry.run)
    except ArchiveUnavailable as error:
        _add_range(error, entry)
        raise


def read_entry(entry: Entry, selection: Selection = EVERYTHING, salvage: bool = False) -> Iterator[list[Placed]]:
    """Yield the selected events of one manifest, some at a time.

    `salvage` goes on behind a segment that is damaged or not there, and says in the log what that was.
    """
    storage = open_storage(entry.folder)
    try:
        for segment in manifest_of(entry).segments:
            if selection.touches(segment):
                yield from _read_segment(storage, segment, selection, salvage)
    except ArchiveUnavailable as error:
        _add_range(error, entry)
        raise


def _read_segment(storage: Storage, segment: Segment, selection: Selection, salvage: bool) -> Iterator[list[Placed]]:
    from ag06.persistence.archive import segments

    try:
        data = load_segment(storage, segment)
    except (ArchiveDamaged, Missing) as error:
        if not salvage:
            raise
        _logger.error("%s", error)  # noqa: TRY400 - it is read on
        if isinstance(error, Missing):
            return
    else:
        yield from segments.read_segment(data, selection)
        return
    yield from _salvage(storage, segment, selection)


def load_segment(storage: Storage, segment: Segment) -> bytes:
    """Return the bytes of a segment if they are those that were written; set the file aside if they are not."""
    for _ in range(2):  # what came damaged over a network comes whole the second time
        try:
            data = storage.read(segment.path)
        except FileNotFoundError:
            raise _missing(storage, segment) from None
        if manifests.checksum(data) == segment.blake2b:
            return data
    where = storage.set_aside(segment.path)
    raise _damaged(storage, segment, where)


def _missing(storage: Storage, segment: Segment) -> ArchiveUnavailable:
    try:
        storage.read(segment.path + CORRUPT)
    except FileNotFoundError:
        return Missing(f"archive {masked(storage.file_url(segment.path))} is not there{_range(segment)}")
    return _damaged(storage, segment, storage.file_url(segment.path + CORRUPT))


def _damaged(storage: Storage, segment: Segment, where: str) -> ArchiveDamaged:
    return ArchiveDamaged(
        f"archive {masked(where)} is damaged: its checksum does not match{_range(segment)}; put a good copy at "
        f"{masked(storage.file_url(segment.path))}, or read what is left of it with salvage=True (--salvage)",
        where,
    )


def _salvage(storage: Storage, segment: Segment, selection: Selection) -> Iterator[list[Placed]]:
    """Yield what can still be read of a damaged segment; every page of it has a checksum of its own."""
    from ag06.persistence.archive import segments

    path = segment.path
    try:
        data = storage.read(path)
    except FileNotFoundError:
        path += CORRUPT
        data = storage.read(path)  # it was there a moment ago
    where = masked(storage.file_url(path))
    try:
        count = segments.group_count(data)
    except StoreError as error:
        _logger.error("archive %s: nothing of it can be read: %s", where, error)  # noqa: TRY400
        return
    for group in range(count):
        try:
            # Read whole before anything of it is given out, so that a damaged group is left out as a whole.
            pages = list(segments.read_group(data, group, selection))
        except StoreError as error:
            _logger.error("archive %s: %s", where, error)  # noqa: TRY400
            continue
        yield from pages


def verify(storage: Storage, run: str) -> Manifest:
    """Read back everything that a run wrote; return its manifest if all of it is as it was written."""
    from ag06.persistence.archive import segments

    manifest = read_manifest(storage, run)
    for segment in manifest.segments:
        data = load_segment(storage, segment)
        found = segments.check_segment(data)
        if found != (segment.events, segment.first, segment.last):
            url = masked(storage.file_url(segment.path))
            raise ArchiveDamaged(f"archive {url} does not hold what its manifest says, but {found}", url)
    return manifest


def _range(part: Segment | Entry) -> str:
    start, last = from_millis(part.start_ms), from_millis(part.last_ms)
    return f" (events recorded from {start.isoformat()} to {last.isoformat()})"


def _add_range(error: ArchiveUnavailable, entry: Entry) -> None:
    """Say of what range the events are that cannot be had, where the error does not."""
    if "(events recorded" not in str(error):
        error.args = (f"{error}{_range(entry)}",)
