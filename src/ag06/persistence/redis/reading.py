"""Reading: the streams of many types and levels as one log, in the order of positions, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from ag06.persistence.log import Query, Stored
from ag06.persistence.measuring import REPLAY, begin
from ag06.persistence.redis.wire import Wire

_PAGE = 1_000
_FIRST_PAGE = 100
_PAGE_BYTES = 4 << 20
_LARGEST_N = (1 << 20) - 1


def id_of(position: int) -> str:
    """Return the stream id of a position."""
    return f"{position >> 20}-{position & _LARGEST_N}"


def position_of(identity: bytes) -> int:
    """Return the position of a stream id."""
    millis, _, number = identity.partition(b"-")
    return (int(millis) << 20) | int(number)


class _Cursor(msgspec.Struct):
    """How far one stream was read, and what was read but not yet given out."""

    key: str
    next: int
    ended: bool = False
    entries: list[Stored] = []


async def read_pages(wire: Wire, query: Query) -> AsyncIterator[list[Stored]]:
    """Yield what `query` asks for, up to what was stored when the call began. Holds a few pages in memory."""
    start = max(query.start_ms << 20, query.after + 1)
    keys, end = await _extent(wire, query)
    if query.newest is not None:
        start = max(start, await _newest(wire, keys, start, end, query.newest))
    cursors = [_Cursor(key, start) for key in keys]
    count = _FIRST_PAGE
    while cursors and start <= end:
        await _fill([cursor for cursor in cursors if not cursor.entries], wire, end, count)
        cursors = [cursor for cursor in cursors if cursor.entries or not cursor.ended]
        page = _merge(cursors)
        if page:
            mean = sum([len(stored.body) for stored in page]) / len(page)
            count = max(1, min(_PAGE, int(_PAGE_BYTES / (mean + 100) / max(1, len(cursors)))))
            yield page


async def _extent(wire: Wire, query: Query) -> tuple[list[str], int]:
    """Return the streams to read and the last position to give out."""
    prefix = wire.address.prefix
    last, known = await wire.ask(("GET", f"{prefix}clock"), ("HKEYS", f"{prefix}added"))
    end = position_of(last) if last else -1
    if query.end_ms is not None:
        end = min(end, (query.end_ms << 20) - 1)
    if query.below is not None:
        end = min(end, query.below - 1)
    types = sorted(known_type.decode() for known_type in known)
    if query.types is not None:
        types = [known_type for known_type in types if known_type in query.types]
    levels = range(4) if query.level is None else (query.level,)
    return [f"{prefix}s:{known_type}:{level}" for known_type in types for level in levels], end


async def _newest(wire: Wire, keys: Sequence[str], start: int, end: int, number: int) -> int:
    """Return the position of the event that has about `number` newer ones behind it, or `start`."""
    if number < 1:
        return end + 1
    if not keys or start > end:
        return start
    replies = await wire.ask(*[("XREVRANGE", key, id_of(end), id_of(start), "COUNT", number) for key in keys])
    positions = sorted((position_of(entry[0]) for entries in replies for entry in entries), reverse=True)
    return positions[min(number, len(positions)) - 1] if positions else start


async def _fill(cursors: Sequence[_Cursor], wire: Wire, end: int, count: int) -> None:
    wanting = [cursor for cursor in cursors if not cursor.ended]
    if not wanting:
        return
    began = begin()
    replies = await wire.ask(
        *[("XRANGE", cursor.key, id_of(cursor.next), id_of(end), "COUNT", count) for cursor in wanting]
    )
    REPLAY.done(began)
    for cursor, entries in zip(wanting, replies, strict=True):
        cursor.entries = [_stored(identity, fields[1]) for identity, fields in entries]
        cursor.ended = len(entries) < count
        if entries:
            cursor.next = cursor.entries[-1].position + 1


def _stored(identity: bytes, body: bytes) -> Stored:
    millis, _, number = identity.partition(b"-")
    recorded_ms = int(millis)
    return Stored((recorded_ms << 20) | int(number), recorded_ms, body)


def _merge(cursors: Sequence[_Cursor]) -> list[Stored]:
    """Take what lies before the end of every page in hand: nothing that is still to be read can come before it."""
    if len(cursors) == 1:
        page, cursors[0].entries = cursors[0].entries, []
        return page
    bound = min((cursor.next for cursor in cursors if not cursor.ended), default=None)
    page = []
    for cursor in cursors:
        entries = cursor.entries
        if bound is None or entries[-1].position < bound:
            page += entries
            cursor.entries = []
        else:
            cut = next(i for i, stored in enumerate(entries) if stored.position >= bound)
            page += entries[:cut]
            cursor.entries = entries[cut:]
    page.sort(key=_position)
    return page


def _position(stored: Stored) -> int:
    return stored.position
