"""Segments: events as Parquet files, written, verified and read back. The only module that imports pyarrow.

Everything here blocks: it is called from a thread.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import msgspec

from ag06.errors import ConfigurationError, StoreError
from ag06.event import Event, Priority, from_millis
from ag06.persistence.archive.selection import EVERYTHING, Placed, Selection
from ag06.persistence.log import Stored

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet
except ImportError:
    raise ConfigurationError("an archive needs fsspec and pyarrow: pip install 'ag06[archive]'") from None

SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("recorded", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("subject", pa.string()),
        pa.field("data", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("priority", pa.int8(), nullable=False),
        pa.field("correlation_id", pa.string()),
        pa.field("causation_id", pa.string()),
        pa.field("traceparent", pa.string()),
        pa.field("identity", pa.string()),
    ],
    metadata={b"ag06.segment": b"1"},
)
"""The columns of a segment; `data` is JSON. DuckDB, Polars and Spark read them as they are."""

_GROUP_ROWS = 50_000
_GROUP_BYTES = 16 << 20
_PAGE_BYTES = 8 << 20  # a zstd frame is a page: small ones find little to repeat
_READ_ROWS = 2_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_PRIORITIES = tuple(Priority)
_NOTHING = range(0)


class _Row(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An event as its body says, its data left as it is."""

    id: str
    type: str
    source: str
    data: msgspec.Raw
    time: dt.datetime
    priority: int = 1
    subject: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    identity: str | None = None


_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_decode_list = msgspec.json.Decoder(list[Any]).decode


class Summary(msgspec.Struct, frozen=True):
    """What a segment holds: positions `first` to `last`, recorded from `start_ms` to `last_ms`, both included.

    `types` counts its events by type; `ends` has the last position of each type and level.
    """

    events: int
    first: int
    last: int
    start_ms: int
    last_ms: int
    types: dict[str, int]
    ends: dict[tuple[str, int], int]


class SegmentWriter:
    """Makes one segment in memory out of events in the order of the log."""

    def __init__(self, ranges: Mapping[tuple[str, int], range], compressor: Executor, level: int = 3) -> None:
        """Take those events whose position is in the range of their type and level; compress at `level` of zstd.

        `compressor` runs what needs no interpreter, while the next events are read.
        """
        self.raw_bytes = 0
        self._ranges = ranges
        self._compressor = compressor
        self._compressing: Future[None] | None = None
        self._waiting: list[Stored] = []
        self._waiting_bytes = 0
        self._sink = pa.BufferOutputStream()
        self._writer = parquet.ParquetWriter(
            self._sink,
            SCHEMA,
            version="2.6",
            compression="zstd",
            compression_level=level,
            use_dictionary=["type", "source", "subject"],
            data_page_size=_PAGE_BYTES,
            write_page_checksum=True,
        )
        self._held: list[tuple[str, int, int, int, int]] = []
        self._times: list[tuple[int, int]] = []

    def add(self, page: Sequence[Stored]) -> None:
        """Add events that lie behind all that came before."""
        self._waiting_bytes += sum([len(stored.body) for stored in page])
        self._waiting += page
        if self._waiting_bytes >= _GROUP_BYTES or len(self._waiting) >= _GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        stored, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not stored:
            return
        rows = _rows(stored)
        table = _table(stored, rows)
        held = _held(table)
        if not all(self._wants(*part) for part in held):
            kept = [i for i, row in enumerate(rows) if self._wants_one(row, stored[i].position)]
            stored, table = [stored[i] for i in kept], table.take(pa.array(kept, pa.int64()))
            held = _held(table)
        if not stored:
            return
        self.raw_bytes += sum([len(one.body) for one in stored])
        recorded = pc.min_max(table.column("recorded").cast(pa.int64()))
        self._times.append((recorded["min"].as_py(), recorded["max"].as_py()))
        self._held += held
        self._await_compressor()
        self._compressing = self._compressor.submit(self._writer.write_table, table)

    def _await_compressor(self) -> None:
        compressing, self._compressing = self._compressing, None
        if compressing is not None:
            compressing.result()

    def _wants(self, event_type: str, level: int, first: int, last: int, _: int) -> bool:
        part = self._ranges.get((event_type, level), _NOTHING)
        return part.start <= first and last < part.stop

    def _wants_one(self, row: _Row, position: int) -> bool:
        return position in self._ranges.get((row.type, row.priority), _NOTHING)

    def close(self) -> tuple[pa.Buffer, Summary | None]:
        """Return the bytes of the file and what it holds; `None`: nothing, so there is no need for a file."""
        self._write()
        self._await_compressor()
        self._writer.close()
        data = self._sink.getvalue()
        if not self._held:
            return data, None
        types: Counter[str] = Counter()
        ends: dict[tuple[str, int], int] = {}
        for event_type, level, _, last, count in self._held:
            types[event_type] += count
            ends[event_type, level] = last
        return data, Summary(
            events=types.total(),
            first=min(first for _, _, first, _, _ in self._held),
            last=max(ends.values()),
            start_ms=min(start for start, _ in self._times),
            last_ms=max(last for _, last in self._times),
            types=dict(types),
            ends=ends,
        )


def _held(table: pa.Table) -> list[tuple[str, int, int, int, int]]:
    """Return type, level, first and last position and number of events of each stream in a table."""
    wanted = [("position", "min"), ("position", "max"), ("position", "count")]
    found = table.group_by(["type", "priority"]).aggregate(wanted)
    names = ("type", "priority", "position_min", "position_max", "position_count")
    return list(zip(*(found.column(name).to_pylist() for name in names), strict=True))


def _rows(stored: Sequence[Stored]) -> list[_Row]:
    """Decode many bodies at once; name the one that cannot be."""
    try:
        rows = _decode_rows(b"[%b]" % b",".join([one.body for one in stored]))
        if len(rows) == len(stored):
            return rows
    except msgspec.DecodeError:
        pass
    for one in stored:
        try:
            _decode_rows(b"[%b]" % one.body)
        except msgspec.DecodeError as error:
            raise StoreError(
                f"the event at position {one.position} cannot be archived: {error}; "
                "upgrade ag06 if a newer release wrote it"
            ) from error
    raise StoreError(f"an event between {stored[0].position} and {stored[-1].position} is not one JSON object")


def _table(stored: Sequence[Stored], rows: Sequence[_Row]) -> pa.Table:
    text = pa.string()
    columns = [
        pa.array([one.position for one in stored], pa.int64()),
        pa.array([one.recorded_ms for one in stored], pa.int64()).cast(pa.timestamp("ms", "UTC")),
        pa.array([row.id for row in rows], text),
        pa.array([row.type for row in rows], text),
        pa.array([row.source for row in rows], text),
        pa.array([row.subject for row in rows], text),
        pa.array([bytes(row.data) for row in rows], pa.binary()).cast(text),
        pa.array([row.time for row in rows], pa.timestamp("us", "UTC")),
        pa.array([row.priority for row in rows], pa.int8()),
        pa.array([row.correlation_id for row in rows], text),
        pa.array([row.causation_id for row in rows], text),
        pa.array([row.traceparent for row in rows], text),
        pa.array([row.identity for row in rows], text),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read_segment(data: bytes, selection: Selection = EVERYTHING) -> Iterator[list[Placed]]:
    """Yield the selected events of a segment, some at a time; raise `StoreError` where it is damaged."""
    for group in range(group_count(data)):
        yield from read_group(data, group, selection)


def group_count(data: bytes) -> int:
    """Return how many row groups a segment has."""
    try:
        return int(_open(data).num_row_groups)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"its footer cannot be read: {error}") from error


def read_group(data: bytes, group: int, selection: Selection = EVERYTHING) -> Iterator[list[Placed]]:
    """Yield the selected events of one row group."""
    try:
        file = _open(data)
        statistics = file.metadata.row_group(group).column(0).statistics
        if statistics is not None and (statistics.max <= selection.after or statistics.min > selection.last):
            return
        for batch in file.iter_batches(_READ_ROWS, row_groups=[group], use_threads=False):
            chosen = _select(batch, selection)
            if chosen.num_rows:
                yield _placed(chosen)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"row group {group} cannot be read: {error}") from error


def check_segment(data: bytes) -> tuple[int, int, int]:
    """Decode every column of a segment; return its events, first and last position. Raise if they do not ascend."""
    events, first, last = 0, -1, -1
    try:
        file = _open(data)
        for group in range(file.num_row_groups):
            positions = file.read_row_group(group).column(0).combine_chunks()
            least = pc.min(pc.subtract(positions[1:], positions[:-1])).as_py()
            if positions[0].as_py() <= last or (least is not None and least <= 0):
                raise StoreError(f"the positions of row group {group} do not ascend")
            first = positions[0].as_py() if not events else first
            last = positions[-1].as_py()
            events += len(positions)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"it cannot be decoded: {error}") from error
    return events, first, last


def _open(data: bytes) -> parquet.ParquetFile:
    return parquet.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)


def _select(batch: pa.RecordBatch, selection: Selection) -> pa.RecordBatch:
    masks = []
    positions, recorded = batch.column(0), batch.column(1)
    if positions[0].as_py() <= selection.after:
        masks.append(pc.greater(positions, pa.scalar(selection.after)))
    if positions[-1].as_py() > selection.last:
        masks.append(pc.less_equal(positions, pa.scalar(selection.last)))
    if selection.start_ms:
        masks.append(pc.greater_equal(recorded.cast(pa.int64()), pa.scalar(selection.start_ms)))
    if selection.end_ms is not None:
        masks.append(pc.less(recorded.cast(pa.int64()), pa.scalar(selection.end_ms)))
    for column, names in (("type", selection.types), ("source", selection.sources)):
        if names is not None:
            masks.append(pc.is_in(batch.column(column), pa.array(sorted(names), pa.string())))
    if selection.correlation_id is not None:
        masks.append(pc.fill_null(pc.equal(batch.column("correlation_id"), selection.correlation_id), False))
    for mask in masks[1:]:
        masks[0] = pc.and_(masks[0], mask)
    return batch.filter(masks[0]) if masks else batch


def _placed(batch: pa.RecordBatch) -> list[Placed]:
    whole = {"recorded": pa.int64(), "time": pa.int64(), "data": pa.binary()}
    columns = {name: batch.column(name) for name in SCHEMA.names}
    values = {name: column.cast(whole.get(name, column.type)).to_pylist() for name, column in columns.items()}
    values["data"] = _decode_list(b"[%b]" % b",".join(values["data"]))
    return [
        (
            position,
            Event(
                id=id_,
                type=type_,
                source=source,
                data=data,
                time=_EPOCH + dt.timedelta(0, 0, time),
                priority=_PRIORITIES[priority],
                subject=subject,
                correlation_id=correlation_id,
                causation_id=causation_id,
                traceparent=trace,
                recorded=from_millis(recorded),
            ),
        )
        for (
            position,
            recorded,
            id_,
            type_,
            source,
            subject,
            data,
            time,
            priority,
            correlation_id,
            causation_id,
            trace,
            _,
        ) in zip(*values.values(), strict=True)
    ]
