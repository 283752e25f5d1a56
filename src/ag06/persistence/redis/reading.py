"""Reading: the streams of many types and levels as one log, in the order of positions, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import Query, Stored
from ag06.persistence.measuring import REPLAY, begin
from ag06.persistence.redis.portion import Portion, reply_limits
from ag06.persistence.redis.scripts import script
from ag06.persistence.redis.wire import Wire

_PAGE = 1_000
_UNKNOWN_BYTES = 1 << 16
"""What an event is taken to have before one of its stream was read."""
_GROWTH = 8
_MOST_REPLY = 64 << 20
"""Bytes of a reply for more than one event after which it is given up: the events are larger than those before."""
_LARGEST_N = (1 << 20) - 1


def id_of(position: int) -> str:
    """Return the stream id of a position."""
    return f"{position >> 20}-{position & _LARGEST_N}"


def position_of(identity: bytes) -> int:
    """Return the position of a stream id."""
    millis, _, number = identity.partition(b"-")
    return (int(millis) << 20) | int(number)


class _Cursor(msgspec.Struct):
    """How far one stream was read, what was read but not yet given out, and how much to ask for."""

    key: str
    next: int
    ended: bool = False
    entries: list[Stored] = []
    count: int = 0
    """How many events were asked for last."""
    mean: float = _UNKNOWN_BYTES
    """Bytes of an event."""


async def read_pages(wire: Wire, query: Query) -> AsyncIterator[list[Stored]]:
    """Yield what `query` asks for, up to what was stored when the call began. Holds a few pages in memory."""
    start = max(query.start_ms << 20, query.after + 1)
    keys, end = await _extent(wire, query)
    if query.newest is not None:
        start = max(start, await _newest(wire, keys, start, end, query.newest))
    cursors = [_Cursor(key, start) for key in keys]
    portion = Portion()
    while cursors and start <= end:
        await _fill([cursor for cursor in cursors if not (cursor.entries or cursor.ended)], wire, end, portion)
        cursors = [cursor for cursor in cursors if cursor.entries or not cursor.ended]
        page = _merge(cursors)
        if page:
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
    newest = script("newest")
    replies = await wire.ask(*[wire.call(newest, key, id_of(end), id_of(start), number) for key in keys])
    positions = sorted((position_of(identity) for identities in replies for identity in identities), reverse=True)
    return positions[min(number, len(positions)) - 1] if positions else start


async def _fill(cursors: Sequence[_Cursor], wire: Wire, end: int, portion: Portion) -> None:
    """Read on in streams whose page is used up, about a portion in each reply, and less after one that did not come."""
    left = list(cursors)
    while left:
        batch = _next_batch(left, len(cursors), portion.bytes)
        commands = [("XRANGE", one.key, id_of(one.next), id_of(end), "COUNT", one.count) for one in batch]
        began = begin()
        try:
            most = None if portion.bytes == 1 else _MOST_REPLY
            replies = await wire.request(commands, most_reply=most)
        except OutcomeUnknown as error:
            if not portion.failed() and portion.is_hopeless:
                raise await _unreadable(wire, batch[0], end, error) from None
            continue
        REPLAY.done(began)
        portion.came()
        for cursor, entries in zip(batch, replies, strict=True):
            if isinstance(entries, Exception):
                raise wire.explain(entries)
            _take(cursor, entries)
        del left[: len(batch)]


def _next_batch(cursors: Sequence[_Cursor], sharing: int, most_bytes: int) -> list[_Cursor]:
    """Return the first of `cursors`, with what to ask for in each, for one reply."""
    batch: list[_Cursor] = []
    expected = 0.0
    for cursor in cursors:
        wanted = int(most_bytes / sharing / (cursor.mean + 100))
        cursor.count = max(1, min(_PAGE, wanted, cursor.count * _GROWTH))
        expected += cursor.count * cursor.mean
        if batch and expected > most_bytes:
            break
        batch.append(cursor)
    return batch


def _take(cursor: _Cursor, entries: Sequence[Any]) -> None:
    cursor.entries = [_stored(identity, fields[1]) for identity, fields in entries]
    cursor.ended = len(entries) < cursor.count
    if entries:
        cursor.next = cursor.entries[-1].position + 1
        cursor.mean = sum([len(stored.body) for stored in cursor.entries]) / len(entries)


async def _unreadable(wire: Wire, cursor: _Cursor, end: int, error: OutcomeUnknown) -> StoreUnavailable:
    """Return an error for an event that does not come, although it was asked for alone."""
    found = await wire.run("measure", cursor.key, id_of(cursor.next), id_of(end))
    if not found:
        return StoreUnavailable(str(error))
    identity, size = found
    return StoreUnavailable(
        f"{wire.address.shown} closes the connection instead of sending an event of {size} bytes ({identity.decode()} "
        f"in {cursor.key}); raise what the server allows for one client: {await reply_limits(wire)}"
    )


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
