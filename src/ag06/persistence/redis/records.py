"""Records on their way to the server: packed for the scripts, in pieces that do not hold it up for long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ag06.persistence.log import Record

_MOST_RECORDS = 500
_MOST_BYTES = 1 << 20

_pack = msgspec.msgpack.Encoder().encode


class Chunk(msgspec.Struct):
    """What one script call appends: runs of records (see append.lua) and the ids in them."""

    runs: list[tuple[Any, ...]]
    ids: list[str]
    size: int = 0
    script: str = "append"

    def packed(self) -> bytes:
        """Return the argument for the script."""
        return _pack(self.runs)


def row(record: Record, max_backlog: int = 0) -> tuple[Any, ...]:
    """Return a record as the scripts expect it: all text, for the server's msgpack knows no binary type."""
    identity, content = record.identity, record.content
    return (
        record.type,
        record.level,
        record.subject,
        record.body.decode(),
        record.id,
        None if identity is None else identity.decode("latin-1"),
        record.window_ms,
        None if content is None else content.decode("latin-1"),
        record.due_ms,
        max_backlog,
    )


def cut_chunks(calls: Iterable[tuple[Sequence[Record], int]]) -> list[Chunk]:
    """Pack calls, each some records and a `max_backlog`, in order; a call may spread over several chunks."""
    chunk = Chunk([], [])
    chunks = [chunk]
    last: tuple[Any, ...] | None = None
    parts: list[str] = []
    for records, max_backlog in calls:
        for record in records:
            body, identity = record.body, record.identity
            if len(chunk.ids) >= _MOST_RECORDS or (chunk.ids and chunk.size + len(body) > _MOST_BYTES):
                chunk = Chunk([], [])
                chunks.append(chunk)
                last = None
            chunk.size += len(body)
            chunk.ids.append(record.id)
            if (
                identity is None
                or record.content is not None
                or record.subject is not None
                or record.due_ms
                or record.window_ms < 1
            ):
                chunk.runs.append((row(record, max_backlog),))
                chunk.script = "admit"
                last = None
                continue
            common = (record.type, record.level, record.window_ms, max_backlog)
            if common != last:
                last, parts = common, []
                chunk.runs.append((*common, parts))
            parts += (body.decode(), record.id, identity.decode("latin-1"))
    return chunks
