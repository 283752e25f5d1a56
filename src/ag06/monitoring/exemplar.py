"""The trace of one value that a histogram's bucket counted, as a record of fixed size beside the bucket.

The record carries a checksum: another process may read it, or this one may be killed, in the middle of its writing.
"""

from __future__ import annotations

import struct
import zlib

import msgspec

_RECORD = struct.Struct("<II2d16s8s")
_BODY = struct.Struct("<2d16s8s")
_CHECKED = 8
SIZE = _RECORD.size


class Exemplar(msgspec.Struct, frozen=True):
    """A `value` counted at `time` (epoch seconds) in the span `span_id` of the trace `trace_id` (lower-case hex)."""

    value: float
    time: float
    trace_id: str
    span_id: str


def pack(value: float, time: float, trace_id: str, span_id: str) -> bytes:
    """Return the record; raise `ValueError` unless the ids are 32 and 16 hexadecimal digits."""
    trace, span = bytes.fromhex(trace_id), bytes.fromhex(span_id)
    if len(trace) != 16 or len(span) != 8:
        raise ValueError(f"trace id {trace_id!r}, span id {span_id!r}: 32 and 16 hexadecimal digits")
    return _RECORD.pack(zlib.crc32(_BODY.pack(value, time, trace, span)), 1, value, time, trace, span)


def unpack(record: bytes) -> Exemplar | None:
    """Return what a record says; `None` where none was written, or not all of it."""
    checksum, written, value, time, trace, span = _RECORD.unpack(record)
    if not written or checksum != zlib.crc32(record[_CHECKED:]):
        return None
    return Exemplar(value, time, trace.hex(), span.hex())
