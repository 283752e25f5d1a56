"""Writing: events in the order of the log become segments, cut by UTC day and by size. Everything here blocks."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ag06.errors import ArchiveUnavailable
from ag06.ids import new_id
from ag06.knob import Knob
from ag06.persistence.archive.manifest import Manifest, Segment, checksum
from ag06.persistence.archive.segments import SegmentWriter
from ag06.persistence.archive.storage import Storage
from ag06.persistence.log import Cut, Stored

Stream = tuple[str, int]
"""A type and a level of priority."""

_SEGMENT_BYTES = 64 << 20
_BATCH_BYTES = 192 << 20
_BATCH_SEGMENTS = 500
_DAY_MS = 86_400_000


class BatchWriter:
    """Writes the segments of one manifest after the other."""

    def __init__(self, home: Storage, ranges: Mapping[Stream, range], compression: Knob) -> None:
        """Write into the folder `home` what lies in the ranges of positions; other events are left out.

        Each segment is compressed at the level where `compression` stands as it begins.
        """
        self._home = home
        self._ranges = ranges
        self._compression = compression
        self._compressor = ThreadPoolExecutor(1, "ag06-archive-zstd")
        self.events = 0
        self._begin()

    def _begin(self) -> None:
        self._run = new_id()
        self._segments: list[Segment] = []
        self._ends: dict[Stream, int] = {}
        self._bytes = 0
        self._writer: SegmentWriter | None = None
        self._day = -1

    @property
    def full(self) -> bool:
        """Whether it is time to finish a manifest."""
        return self._bytes >= _BATCH_BYTES or len(self._segments) >= _BATCH_SEGMENTS

    def add(self, page: Sequence[Stored]) -> None:
        """Take events that lie behind all that came before."""
        while page:
            day = page[0].recorded_ms // _DAY_MS
            if day != self._day or (self._writer is not None and self._writer.raw_bytes >= _SEGMENT_BYTES):
                self._end_segment()
            if self._writer is None:
                self._writer, self._day = self._segment(), day
            cut = len(page)
            if page[-1].recorded_ms // _DAY_MS != day:
                cut = next(i for i, stored in enumerate(page) if stored.recorded_ms // _DAY_MS != day)
            self._writer.add(page[:cut])
            page = page[cut:]

    def _segment(self) -> SegmentWriter:
        return SegmentWriter(self._ranges, self._compressor, self._compression.value)

    def _end_segment(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        data, held = writer.close()
        if held is None:
            return
        path = f"{dt.date(1970, 1, 1) + dt.timedelta(self._day)}/{self._run}-{len(self._segments):04}.parquet"
        self._segments.append(
            Segment(
                path=path,
                bytes=len(data),
                blake2b=checksum(data),
                events=held.events,
                first=held.first,
                last=held.last,
                start_ms=held.start_ms,
                last_ms=held.last_ms,
                types=held.types,
            )
        )
        self._home.write(path, data)
        self._ends |= held.ends
        self._bytes += writer.raw_bytes
        self.events += held.events

    def finish(self) -> Manifest | None:
        """Return the manifest of what was written since the last one, not yet written itself; `None`: nothing was."""
        self._end_segment()
        if not self._segments:
            return None
        cuts = tuple(Cut(event_type, level, last + 1) for (event_type, level), last in self._ends.items())
        manifest = Manifest(self._run, dt.datetime.now(dt.UTC), tuple(self._segments), cuts)
        self._begin()
        return manifest

    def close(self) -> None:
        """Delete what no manifest names: the disk may be full of it."""
        self._compressor.shutdown()
        for segment in self._segments:
            with contextlib.suppress(ArchiveUnavailable):  # the next run clears it away
                self._home.delete(segment.path)
