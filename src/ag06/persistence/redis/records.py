"""Records on their way to the server: packed for the scripts, in pieces that do not hold it up for long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ag06.persistence.log import Record

_MOST_RECORDS = 500
_MOST_BYTES = 768 << 10
"""Of the bodies in one argument, which stays below the smallest limit that a server can have, 1 MiB."""

_pack = msgspec.msgpack.Encoder().encode
_unpack_doubt = msgspec.msgpack.Decoder(tuple[str, str, int]).decode


class Chunk(msgspec.Struct):
    """What one script call appends."""

    records: list[tuple[Record, int]]
    size: int = 0
    plain: bool = True
    """Whether append.lua takes it; otherwise admit.lua does, which takes every record."""

    @property
    def script(self) -> str:
        """The name of the script for it."""
        return "append" if self.plain else "admit"

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments of that script."""
        if self.plain:
            return tuple(_runs(self.records))
        return (_pack([row(record, max_backlog) for record, max_backlog in self.records]),)

    def ids(self) -> list[str]:
        """Return the ids in it, in order."""
        return [record.id for record, _ in self.records]


def row(record: Record, max_backlog: int = 0) -> tuple[Any, ...]:
    """Return a record as the scripts expect it: all text, for the server's msgpack knows no binary type."""
    identity, content = record.identity, record.content
    return (
        record.type,
        record.level,
        record.subject,
        record.body.decode(),
        record.id,
        None if identity is None else identity.hex(),
        record.window_ms,
        None if content is None else content.hex(),
        record.due_ms,
        max_backlog,
        0 if content is None else record.body.rindex(b',"time":"'),
        record.persisted_ms,
        *((None, None, None) if record.doubt is None else _unpack_doubt(record.doubt)),
        record.delay_ms,
    )


def doubt(slot: str, number: int, place: int) -> bytes:
    """Return what `Record.doubt` says: the receipt of the call that carried the record, and its place in the reply."""
    return _pack((slot, str(number), place + 1))


def cut_chunks(calls: Iterable[tuple[Sequence[Record], int]]) -> list[Chunk]:
    """Cut calls, each some records and a `max_backlog`, in order; a call may spread over several chunks.

    All of them are for one script: of two, a server that was restarted might know one, and do its chunks first.
    """
    chunk = Chunk([])
    chunks = [chunk]
    plain = True
    for records, max_backlog in calls:
        for record in records:
            size = len(record.body)
            if len(chunk.records) >= _MOST_RECORDS or (chunk.records and chunk.size + size > _MOST_BYTES):
                chunk = Chunk([])
                chunks.append(chunk)
            chunk.records.append((record, max_backlog))
            chunk.size += size
            if (
                record.subject is not None
                or record.content is not None
                or record.identity is None
                or record.due_ms
                or record.persisted_ms
                or record.window_ms < 1
            ):
                plain = False
    for chunk in chunks:
        chunk.plain = plain
    return chunks


def _runs(records: Sequence[tuple[Record, int]]) -> list[Any]:
    """Return plain records as append.lua takes them: what neighbours have in common is sent once."""
    arguments: list[Any] = []
    common: tuple[str, int, int, int] | None = None
    at = count = 0
    for record, max_backlog in records:
        own = (record.type, record.level, record.window_ms, max_backlog)
        if own != common:
            if common is not None:
                arguments[at] = count
            common, count = own, 0
            at = len(arguments) + 4
            arguments += (*own, 0)
        count += 1
        identity = record.identity or b""  # plain records have one
        arguments += (record.body, record.id, identity.hex())
    arguments[at] = count
    return arguments
