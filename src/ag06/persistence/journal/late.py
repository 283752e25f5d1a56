"""Which journalled events are duplicates of what the log has, where their identity is forgotten there by now.

A store remembers an identity for its window. A journal may be drained much later, and its events count from when they
were persisted: so the part of the log that lies within a window before that is read once more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from ag06.persistence.admission import Said, decode_said, own_identity
from ag06.persistence.log import EventLog, Query, Record

_SKEW_MS = 2_000
"""How far the clocks of publishers and of the store may be apart."""
_BREATH = 100
"""Events looked at before others have their turn."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """What is needed of a journalled record to find an event that equals it."""

    id: str
    type: str
    identity: bytes
    persisted_ms: int
    window_ms: int
    words: int


def candidate(record: Record) -> Candidate | None:
    """Return what to look for; `None` for a record that is compared with no other."""
    if record.identity is None or record.window_ms < 1 or record.identity == own_identity(record.id):
        return None
    words = _words(decode_said(record.body))
    return Candidate(record.id, record.type, record.identity, record.persisted_ms, record.window_ms, words)


async def find_late(log: EventLog, candidates: Sequence[Candidate], now_ms: int) -> set[str]:
    """Return the ids of those that equal an event recorded within their window before they were persisted.

    `now_ms`: milliseconds since the epoch. What was recorded less than a window ago is left to the store.
    """
    late: set[str] = set()
    if not candidates:
        return late
    start = min(found.persisted_ms - found.window_ms for found in candidates)
    end = min(max(found.persisted_ms for found in candidates), now_ms - min(found.window_ms for found in candidates))
    if start >= end:
        return late
    wanted: dict[bytes, list[Candidate]] = defaultdict(list)
    for found in candidates:
        wanted[found.identity].append(found)
    words = {found.words for found in candidates}
    query = Query(
        start_ms=max(0, start - _SKEW_MS), end_ms=end + _SKEW_MS, types=tuple({found.type for found in candidates})
    )
    count = 0
    async for page in log.read(query):
        for stored in page:
            said = decode_said(stored.body)
            for identity in _identities(said, words):
                late.update(
                    found.id
                    for found in wanted.get(identity, ())
                    if found.id != said.id and abs(found.persisted_ms - stored.recorded_ms) < found.window_ms
                )
            count += 1
            if count % _BREATH == 0:
                await asyncio.sleep(0)
    return late


def _words(said: Said) -> int:
    """Return a number for what must be the same before the hashes of an event are worth their time."""
    return hash((said.source, said.subject, bytes(said.data)))


def _identities(said: Said, words: set[int]) -> Sequence[bytes]:
    """Return the identities that a stored event may have had."""
    if said.identity is not None:
        return [bytes.fromhex(said.identity)] if len(said.identity) == 32 else []
    if said.causation_id is not None or _words(said) not in words:
        return []  # a step's output is compared with nothing
    return said.hashes()
